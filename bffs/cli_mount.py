"""Commands that mount and unmount."""

from __future__ import annotations

from pathlib import Path

import click

from bffs import completing
from bffs.cli_options import Given, absolute, catalog_of, command, table_option
from bffs.settings import MountOptions


@command()
@click.argument("mountpoint", callback=absolute, shell_complete=completing.folders)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option("--read-only", is_flag=True, help="Let nothing be saved in the mount.")
@table_option("scratch")
@table_option("cache-size")
@table_option("memory")
@table_option("max-connections")
@table_option("offline")
@table_option("deadline")
@table_option("readahead")
@table_option("shutu-overlap")
@table_option("refresh-after")
@click.option("--refresh", is_flag=True, help="List the bucket anew before mounting.")
@click.option("--allow-other", is_flag=True, help="Let other users read the files, too.")
@click.option(
    "--no-passthrough",
    is_flag=True,
    help="Let the kernel read nothing from the cache by itself.",
)
@click.option("--log-file", metavar="F", callback=absolute, help="Write messages to this file.")
@click.option(
    "--metrics",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help="Serve figures for Prometheus on this port of this machine; 0 for any that is free.",
)
@click.option(
    "-o",
    "fuse_options",
    metavar="OPTS",
    multiple=True,
    help="Options for FUSE, separated by commas.",
)
@click.pass_obj
def mount(
    given: Given,
    mountpoint: Path,
    foreground: bool,
    read_only: bool,
    refresh: bool,
    allow_other: bool,
    no_passthrough: bool,
    log_file: Path | None,
    metrics: int | None,
    fuse_options: tuple[str, ...],
) -> int:
    """Show the dataset as files below MOUNTPOINT.

    Returns when the files are there, or stays in the foreground with -f. The dataset can't be changed;
    what programs save beside it is kept on this machine, in the folder that is printed.
    """
    from bffs.mount import mount
    from bffs.tables import listing_progress

    options = MountOptions(
        mountpoint=mountpoint,
        foreground=foreground,
        read_only=read_only,
        refresh=refresh,
        allow_other=allow_other,
        passthrough=not no_passthrough,
        log_file=log_file,
        metrics=metrics,
        fuse_options=tuple(option for text in fuse_options for option in text.split(",") if option),
        verbosity=given.verbosity,
    )
    return mount(given.settings(), options, listing_progress)


@command()
@click.argument("mountpoint", callback=absolute, shell_complete=completing.mounted)
def umount(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT, also after a crash."""
    from bffs.mount import unmount

    unmount(mountpoint)


@command()
@click.argument("specimen_id", metavar="ID", shell_complete=completing.specimens)
@click.argument("folder", metavar="DIR", callback=absolute, shell_complete=completing.folders)
@click.pass_obj
def link(given: Given, specimen_id: str, folder: Path) -> None:
    """Make DIR a folder of links to the files of one specimen.

    For programs that want to write beside what they open, in a folder of yours. The dataset must be
    mounted. Of an id in both sets this is the test one; `train/ID` names the other.
    """
    from bffs.catalog import base_name
    from bffs.linking import link_folder, mounted_folder

    settings = given.settings()
    specimen = catalog_of(settings, given.verbosity).find(specimen_id)[-1]
    names = [base_name(obj.key) for obj in specimen.objects()]
    made = link_folder(mounted_folder(specimen, settings.dataset), names, folder)
    click.echo(f"{made:,} links in {folder}")


@command()
@click.argument("mountpoint", callback=absolute, required=False, shell_complete=completing.folders)
def demo(mountpoint: Path | None) -> int:
    """Mount a small made-up dataset from an S3 server of its own."""
    from bffs.demo import run_demo

    return run_demo(mountpoint)
