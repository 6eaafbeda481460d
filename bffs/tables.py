"""What the commands print about a dataset: tables, lists and records made from a catalog.

Pure functions without I/O, but for `listing_progress`, which draws on the terminal. Lines are never wrapped or cut,
and what goes into a pipe has no colours.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from bffs.catalog import Catalog, Specimen, base_name
from bffs.settings import Dataset
from bffs.stacks import Offer
from bffs.tiff import SliceLayout
from bffs.units import format_size, format_time, natural_key

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 10_000
"""Columns that no line reaches, so that rich neither wraps nor cuts one."""


class Row(NamedTuple):
    """One specimen in the size table; `bytes` are those of the slices, as in the published manifest."""

    id: str
    split: str
    slices: int
    bytes: int
    swc: bool


SORT_KEYS: dict[str, Callable[[Row], Any]] = {
    "size": lambda row: row.bytes,
    "id": lambda row: natural_key(row.id),
    "slices": lambda row: row.slices,
}


def select(catalog: Catalog, names: Sequence[str]) -> list[Specimen]:
    """The specimens that `names` name by split, id or `<split>/<id>`, each once; without names all of them.

    Raises NoSuchSpecimen.
    """
    if not names:
        return list(catalog.specimens)
    chosen: dict[tuple[str, str], Specimen] = {}
    for name in names:
        split = name.rstrip("/")
        found = catalog.of_split(split) if split in catalog.splits else catalog.find(name)
        chosen.update({(specimen.split, specimen.id): specimen for specimen in found})
    return list(chosen.values())


def rows(specimens: Iterable[Specimen], sort: str) -> list[Row]:
    """A row for each specimen in the order of `sort`, smallest first; the id decides between equals."""
    return sorted(
        map(_row, specimens), key=lambda row: (SORT_KEYS[sort](row), natural_key(row.id), row.split)
    )


def _row(specimen: Specimen) -> Row:
    swc = specimen.swc is not None
    return Row(specimen.id, specimen.split, len(specimen.slices), specimen.slice_bytes, swc)


def as_json(table: Iterable[Row]) -> str:
    """The rows as a list of objects."""
    return json.dumps([row._asdict() for row in table], indent=4) + "\n"


def as_csv(table: Iterable[Row]) -> str:
    """The rows under a header; `swc` is true or false."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows((*row[:-1], json.dumps(row.swc)) for row in table)
    return text.getvalue()


def totals(table: Sequence[Row], splits: Iterable[str]) -> list[tuple[str, str]]:
    """A label and the sums for each of `splits` that is in the table, and for all if that isn't just one."""
    present = [split for split in splits if any(row.split == split for row in table)]
    sums = [(split, _sums([row for row in table if row.split == split])) for split in present]
    return sums if len(sums) == 1 else [*sums, ("total", _sums(table))]


def _sums(table: Sequence[Row]) -> str:
    size = format_size(sum(row.bytes for row in table))
    return f"{_count(len(table), 'specimen')}, {_count(sum(row.slices for row in table), 'slice')}, {size}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def as_table(table: Sequence[Row], splits: Iterable[str], console: Console) -> str:
    """The rows, one a line, and below them the totals in the order of `splits`, styled as `console` allows."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "split"):
        grid.add_column(column)
    for column in ("slices", "size", "swc"):
        grid.add_column(column, justify="right")
    for row in table:
        # Text, not str: an id is a stranger's, and rich would take [brackets] in it for markup
        name, split = Text(row.id), Text(row.split)
        grid.add_row(
            name, split, f"{row.slices}", format_size(row.bytes), "yes" if row.swc else "no"
        )
    sums = totals(table, splits)
    width = max(len(label) for label, _ in sums)
    with console.capture() as capture:
        console.print(grid)
        console.print()
        for label, text in sums:
            console.print(Text(f"{label:{width}}  {text}"))
    return capture.get()


def standard_output() -> Console:
    """The console on standard output: coloured on a terminal, and as wide as any line needs."""
    from rich.console import Console

    return Console(width=_WIDE)


def describe(
    specimen: Specimen,
    dataset: Dataset,
    layout: SliceLayout | None,
    cached: int,
    offers: Sequence[Offer] = (),
    saved: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """All that is known of a specimen, `cached` bytes of which are here; `layout` is a slice's.

    `saved` are the files that were saved beside it, by their paths in a mount.

    Sizes in bytes, times in UTC, `voxel` in micrometres along z, y, x; of the files in `stacks` the
    sizes, or why they aren't there.
    """
    objects = list(specimen.objects())
    shape = [len(specimen.slices), layout.height, layout.width] if layout else None
    return {
        **_row(specimen)._asdict(),
        "endpoint_url": dataset.endpoint_url,
        "bucket": dataset.bucket,
        "prefix": specimen.prefix,
        "smallest_slice": min((obj.size for obj in specimen.slices), default=None),
        "largest_slice": max((obj.size for obj in specimen.slices), default=None),
        "first_slice": base_name(specimen.slices[0].key) if specimen.slices else None,
        "last_slice": base_name(specimen.slices[-1].key) if specimen.slices else None,
        "swc_file": base_name(specimen.swc.key) if specimen.swc else None,
        "swc_bytes": specimen.swc.size if specimen.swc else None,
        "shape": shape,
        "dtype": layout.dtype if layout else None,
        "voxel": list(dataset.voxel) if dataset.voxel else None,
        "stack_files": {offer.name: offer.size for offer in offers if not offer.why_not},
        "stack_files_absent": {offer.name: offer.why_not for offer in offers if offer.why_not},
        "saved_files": dict(saved),
        "cached_bytes": cached,
        "files": len(objects),
        "file_bytes": sum(obj.size for obj in objects),
        "oldest": format_time(min(obj.mtime for obj in objects)),
        "newest": format_time(max(obj.mtime for obj in objects)),
    }


def as_text(about: dict[str, Any]) -> str:
    """A description (see `describe`) for people, a line for each fact."""
    facts = {
        "specimen": f"{about['split']}/{about['id']}",
        "where": f"{about['endpoint_url'] or 'AWS'} bucket {about['bucket']}, {about['prefix']}",
        "slices": f"{about['slices']:,}, {format_size(about['bytes'])} ({about['bytes']:,} bytes)",
    }
    if about["slices"]:
        sizes = sorted({about["smallest_slice"], about["largest_slice"]})
        facts["each"] = f"{' to '.join(f'{size:,}' for size in sizes)} bytes"
        facts["first"] = about["first_slice"]
        facts["last"] = about["last_slice"]
        facts["shape"] = "not a TIFF that bffs understands"
    if about["shape"]:
        facts["shape"] = f"{' x '.join(map(str, about['shape']))} (z, y, x), {about['dtype']}"
    if about["voxel"]:
        facts["voxel"] = f"{' x '.join(map(str, about['voxel']))} micrometres (z, y, x)"
    facts["swc"] = (
        f"{about['swc_file']}, {format_size(about['swc_bytes'])}" if about["swc"] else "none"
    )
    facts["files"] = f"{about['files']:,}, {format_size(about['file_bytes'])}"
    share = 100 * about["cached_bytes"] // max(1, about["file_bytes"])
    facts["cached"] = f"{format_size(about['cached_bytes'])}, {share} %"
    facts["uploaded"] = f"{about['oldest']} to {about['newest']}"
    text = "".join(f"{label:10}{fact}\n" for label, fact in facts.items())
    files = {name: format_size(size) for name, size in about["stack_files"].items()}
    files |= {name: f"absent: {why}" for name, why in about["stack_files_absent"].items()}
    if files:
        width = max(map(len, files))
        text += f"{'stack':10}stacks/{about['split']}/{about['id']}/\n"
        text += "".join(f"{'':12}{name:{width}}  {fact}\n" for name, fact in files.items())
    if saved := about["saved_files"]:
        text += f"{'saved':10}{len(saved):,}, {format_size(sum(saved.values()))}\n"
        text += "".join(f"{'':12}{format_size(size):>6}  {name}\n" for name, size in saved.items())
    return text


@contextmanager
def listing_progress() -> Iterator[Callable[[int, int, int], None] | None]:
    """A bar on standard error while the bucket is listed; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("listing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[keys]:,} keys"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, keys=0)

        def show(done: int, folders: int, keys: int) -> None:
            bar.update(task, completed=done, total=folders, keys=keys)

        yield show
