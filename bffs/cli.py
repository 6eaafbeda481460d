"""The command line: options, commands, messages and exit codes.

What a command does is done elsewhere and imported when the command runs, so that `bffs --help` is quick. An error
that bffs knows becomes one line on standard error and its exit code (`errors`), in one place: `_Group.invoke`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bffs.errors import BffsError
from bffs.settings import (
    OPTIONS,
    MountOptions,
    Option,
    Settings,
    absolute_path,
    config_file,
    resolve,
)

if TYPE_CHECKING:
    from bffs.catalog import Catalog, Specimen
    from bffs.tiff import SliceLayout

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as a shell reports it."""

BROKEN_PIPE = 141
"""Exit code when the reader of the output has gone: 128 + SIGPIPE."""


@dataclass
class Given:
    """The common options as far as they are read, those before the command first: the later one wins."""

    flags: dict[str, str] = field(default_factory=dict)
    verbosity: int = 0
    """-1 quiet, 0 warnings, 1 information, 2 debugging."""

    def settings(self) -> Settings:
        """The flags merged with the environment and the files. Raises UsageError."""
        return resolve(self.flags, os.environ, config_file())


def _remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and param.name is not None:
        ctx.ensure_object(Given).flags[param.name] = value


def _raise_verbosity(ctx: click.Context, param: click.Parameter, value: int) -> None:
    given = ctx.ensure_object(Given)
    change = value if param.name == "verbose" else -value
    given.verbosity = max(-1, min(given.verbosity + change, 2))


def _attributes(option: Option) -> dict[str, Any]:
    """An option of the table as click wants it described; its text is kept for `resolve`."""
    shown = f" [{option.default}]" if option.default and not option.in_profile else ""
    kind: dict[str, Any] = {"metavar": option.metavar}
    switch: dict[str, Any] = {"is_flag": True, "flag_value": "yes"}
    return {
        "type": str,
        "default": None,
        "help": option.help + shown,
        "expose_value": False,
        "callback": _remember,
        **(kind if option.metavar else switch),
    }


def _table_option(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command this option of the table."""
    option = next(option for option in OPTIONS if option.name == name)
    return click.option(option.flag, **_attributes(option))


def _common_options() -> list[click.Parameter]:
    """The options that may stand before and after any command."""
    of_table = [
        click.Option([option.flag], **_attributes(option)) for option in OPTIONS if option.common
    ]
    count: dict[str, Any] = {"count": True, "expose_value": False, "callback": _raise_verbosity}
    verbose = click.Option(["-v", "--verbose"], help="Say more; twice for all.", **count)
    quiet = click.Option(["-q", "--quiet"], help="Say errors only.", **count)
    return [*of_table, verbose, quiet]


class _Command(click.Command):
    """A command that accepts the common options, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common_options()


class _Group(click.Group):
    """`bffs` itself: runs a command and turns the way it ends into a message and an exit code."""

    command_class = _Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _common_options()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx) or 0
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            code = INTERRUPTED
        except BrokenPipeError:
            _abandon_stdout()
            code = BROKEN_PIPE
        except Exception as error:
            if ctx.ensure_object(Given).verbosity > 0:
                traceback.print_exc()
            click.echo(f"bffs: {_explain(error)}", err=True)
            _abandon_stdout()
            code = error.exit_code if isinstance(error, BffsError) else 1
        ctx.exit(code)


def _explain(error: Exception) -> str:
    """What went wrong, on one line."""
    match error:
        case BffsError():
            text = str(error)
        case OSError(strerror=str(reason)):
            text = f"{reason}: {error.filename}" if error.filename else reason
        case _:
            text = f"internal error: {type(error).__name__}: {error} (-v shows more)"
    return " ".join(text.split())


def _abandon_stdout() -> None:
    """Let go of output that can't be written, or Python complains about it again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from bffs import __version__

        click.echo(f"bffs {__version__}")
        ctx.exit()


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version.",
)
def main() -> None:
    """Show an S3 bucket of neuron image stacks as local files, read lazily."""


# -- commands ---------------------------------------------------------------------------------------------------


def _absolute(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    return None if value is None else absolute_path(value)


@main.command()
@click.argument("mountpoint", callback=_absolute)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option(
    "--read-only", is_flag=True, expose_value=False, help="Refuse all writing (as is the default)."
)
@_table_option("cache-size")
@_table_option("memory")
@_table_option("max-connections")
@_table_option("readahead")
@_table_option("refresh-after")
@click.option("--refresh", is_flag=True, help="List the bucket anew before mounting.")
@click.option("--allow-other", is_flag=True, help="Let other users read the files, too.")
@click.option("--log-file", metavar="F", callback=_absolute, help="Write messages to this file.")
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
    refresh: bool,
    allow_other: bool,
    log_file: Path | None,
    fuse_options: tuple[str, ...],
) -> int:
    """Show the dataset as files below MOUNTPOINT.

    Returns when the files are there, or stays in the foreground with -f.
    """
    from bffs.mount import mount
    from bffs.tables import listing_progress

    options = MountOptions(
        mountpoint=mountpoint,
        foreground=foreground,
        refresh=refresh,
        allow_other=allow_other,
        log_file=log_file,
        fuse_options=tuple(option for text in fuse_options for option in text.split(",") if option),
        verbosity=given.verbosity,
    )
    return mount(given.settings(), options, listing_progress)


@main.command()
@click.argument("mountpoint", callback=_absolute)
def umount(mountpoint: Path) -> None:
    """Unmount MOUNTPOINT, also after a crash."""
    from bffs.mount import unmount

    unmount(mountpoint)


@main.command()
@click.argument("names", metavar="[train|test|ID]...", nargs=-1)
@click.option(
    "--sort",
    type=click.Choice(["size", "id", "slices"]),
    default="size",
    show_default=True,
    help="Order, smallest first.",
)
@click.option("--json", "form", flag_value="json", help="Print a JSON list.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV with a header.")
@click.pass_obj
def ls(given: Given, names: tuple[str, ...], sort: str, form: str | None) -> None:
    """Show how large the specimens are.

    Sizes are those of the slices. The sums for each split are at the end.
    """
    from bffs import tables

    catalog = _list(given.settings(), given.verbosity)
    table = tables.rows(tables.select(catalog, names), sort)
    match form:
        case "json":
            text = tables.as_json(table)
        case "csv":
            text = tables.as_csv(table)
        case _:
            text = tables.as_table(table, catalog.splits, tables.standard_output())
    click.echo(text, nl=False, color=True)  # colours are the console's decision


@main.command()
@click.argument("specimen_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_obj
def info(given: Given, specimen_id: str, as_json: bool) -> None:
    """Show what there is of one specimen.

    Of an id in both sets this is the test one; `train/ID` names the other.
    """
    from bffs import tables

    settings = given.settings()
    specimen = _list(settings, given.verbosity).find(specimen_id)[-1]
    about = tables.describe(specimen, settings.dataset, *_look_at(specimen, settings))
    click.echo(json.dumps(about, indent=4) if as_json else tables.as_text(about), nl=as_json)


@main.command()
@click.argument("specimen_id", metavar="[ID]", required=False)
@click.option("-o", "--output", metavar="FILE", callback=_absolute, help="Write to this file.")
@click.pass_obj
def manifest(given: Given, specimen_id: str | None, output: Path | None) -> None:
    """Print the dataset's manifest, or that of one specimen, as JSON.

    Of an id in both sets this is the test one, as published; `train/ID` names the other.
    """
    from bffs.manifest import encode, of_specimen, whole_dataset

    settings = given.settings()
    catalog = _list(settings, given.verbosity)
    if specimen_id is None:
        text = encode(whole_dataset(catalog))
    else:
        text = encode(of_specimen(catalog.find(specimen_id)[-1], settings.dataset))
    if output is None:
        click.echo(text, nl=False)
    else:
        _replace_file(output, text)


@main.command()
@click.pass_obj
def refresh(given: Given) -> None:
    """List the bucket anew.

    The listing is kept, and mounts of this dataset take it over within seconds.
    """
    catalog = _list(given.settings(), given.verbosity, anew=True)
    files = sum(1 for specimen in catalog.specimens for _ in specimen.objects())
    click.echo(f"{len(catalog.specimens)} specimens, {files:,} files")


@main.command()
@click.argument("mountpoint", callback=_absolute, required=False)
def demo(mountpoint: Path | None) -> int:
    """Mount a small made-up dataset from an S3 server of its own."""
    from bffs.demo import run_demo

    return run_demo(mountpoint)


def _list(settings: Settings, verbosity: int, *, anew: bool = False) -> Catalog:
    """The catalog of the dataset as it was kept, or listed now. Raises StoreError."""
    from bffs.late import LateStore
    from bffs.refresh import obtain
    from bffs.tables import listing_progress

    logging.basicConfig(format="bffs: %(message)s")
    logging.getLogger("bffs").setLevel(logging.WARNING - 10 * verbosity)
    with contextlib.closing(LateStore(settings)) as store:
        return obtain(settings, store, listing_progress, anew=anew)


def _look_at(specimen: Specimen, settings: Settings) -> tuple[SliceLayout | None, int]:
    """The layout of a specimen's first slice, and how many bytes of it all are cached.

    Raises StoreError.
    """
    from bffs.blocks import BlockReader
    from bffs.cache import DiskCache
    from bffs.content import ObjectContent
    from bffs.s3 import S3Store
    from bffs.tiff import slice_layout

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(S3Store(settings)))
        cache = DiskCache(settings.cache_dir, settings.dataset, settings.cache_size)
        stack.callback(cache.close)
        blocks = BlockReader(store, cache, memory=settings.memory, connections=1)
        stack.callback(blocks.close)
        blocks.start()
        layout = None
        if specimen.slices:
            first = specimen.slices[0]
            if first.size and not cache.open(first).has(0):
                # A read waits for a store that is away, for minutes; a listing says so in seconds.
                next(store.list(first.key))
            layout = slice_layout(ObjectContent(blocks, first))
        cached = sum(cache.open(obj).bytes_present() for obj in specimen.objects())
    return layout, cached


def _replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that nobody ever sees half of it. Raises OSError."""
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # a pipe, or /dev/stdout: written to, never replaced
        path.write_bytes(content)
        return
    part = path.with_name(f".bffs-{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise BffsError(f"can't write {path}: {error.strerror}") from error
