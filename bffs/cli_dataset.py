"""Commands that tell what is in the dataset."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bffs import completing
from bffs.cli_options import Given, absolute, catalog_of, command, table_option
from bffs.errors import BffsError
from bffs.settings import Settings

if TYPE_CHECKING:
    from bffs.catalog import Specimen
    from bffs.shapes import Shape


@command()
@click.argument(
    "names", metavar="[train|test|ID]...", nargs=-1, shell_complete=completing.selections
)
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

    catalog = catalog_of(given.settings(), given.verbosity)
    table = tables.rows(tables.select(catalog, names), sort)
    match form:
        case "json":
            text = tables.as_json(table)
        case "csv":
            text = tables.as_csv(table)
        case _:
            text = tables.as_table(table, catalog.splits, tables.standard_output())
    click.echo(text, nl=False, color=True)  # colours are the console's decision


@command()
@click.argument("specimen_id", metavar="ID", shell_complete=completing.specimens)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@table_option("offline")
@table_option("scratch")
@click.pass_obj
def info(given: Given, specimen_id: str, as_json: bool) -> None:
    """Show what there is of one specimen.

    Of an id in both sets this is the test one; `train/ID` names the other.
    """
    from bffs import stacks, tables
    from bffs.private import scratch_folder
    from bffs.saved import saved_beside

    settings = given.settings()
    specimen = catalog_of(settings, given.verbosity).find(specimen_id)[-1]
    shape, cached = _look_at(specimen, settings)
    seen = stacks.views(specimen, shape.layout, shape.obstacle, settings.dataset.voxel)
    offers = stacks.offers(specimen, seen, settings.shutu_overlap)
    saved = dict(saved_beside(scratch_folder(settings), specimen.split, specimen.id))
    about = tables.describe(specimen, settings.dataset, shape.layout, cached, offers, saved)
    click.echo(json.dumps(about, indent=4) if as_json else tables.as_text(about), nl=as_json)


@command()
@click.argument("specimen_id", metavar="[ID]", required=False, shell_complete=completing.specimens)
@click.option("-o", "--output", metavar="FILE", callback=absolute, help="Write to this file.")
@click.pass_obj
def manifest(given: Given, specimen_id: str | None, output: Path | None) -> None:
    """Print the dataset's manifest, or that of one specimen, as JSON.

    Of an id in both sets this is the test one, as published; `train/ID` names the other.
    """
    from bffs.manifest import encode, of_specimen, whole_dataset

    settings = given.settings()
    catalog = catalog_of(settings, given.verbosity)
    if specimen_id is None:
        text = encode(whole_dataset(catalog))
    else:
        text = encode(of_specimen(catalog.find(specimen_id)[-1], settings.dataset))
    if output is None:
        click.echo(text, nl=False)
    else:
        _replace_file(output, text)


@command()
@click.pass_obj
def refresh(given: Given) -> None:
    """List the bucket anew.

    The listing is kept, and mounts of this dataset take it over within seconds.
    """
    catalog = catalog_of(given.settings(), given.verbosity, anew=True)
    files = sum(1 for specimen in catalog.specimens for _ in specimen.objects())
    click.echo(f"{len(catalog.specimens)} specimens, {files:,} files")


def _look_at(specimen: Specimen, settings: Settings) -> tuple[Shape, int]:
    """The shape of a specimen's first slice, and how many bytes of it all are cached.

    Raises StoreError.
    """
    from bffs.blocks import BlockReader
    from bffs.cache import DiskCache
    from bffs.late import LateStore
    from bffs.shapes import Shapes

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(LateStore(settings)))
        cache = DiskCache(settings.cache_dir, settings.dataset, settings.cache_size)
        stack.callback(cache.close)
        blocks = BlockReader(store, cache, memory=settings.memory, connections=1)
        stack.callback(blocks.close)
        blocks.start()
        shapes = Shapes(settings, blocks, cache)
        if shapes.known(specimen) is None:
            # A read waits for a store that is away, for minutes; a listing says so in seconds.
            next(store.list(specimen.slices[0].key))
        shape = shapes.learn(specimen)
        blocks.close()  # what has just been fetched counts once it is written
        cached = sum(cache.open(obj).bytes_present() for obj in specimen.objects())
    return shape, cached


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
