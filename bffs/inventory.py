"""What of the dataset is in the cache, specimen by specimen.

The figures behind `bffs cache`, `bffs warm --check` and the picture of the cache are those of the cached files
themselves, and so agree with `user.bffs.cached` and `bffs info`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bffs.cache import DiskCache
from bffs.catalog import Specimen
from bffs.errors import UsageError
from bffs.store import ObjectInfo
from bffs.units import MIB, format_size

if TYPE_CHECKING:
    from rich.console import Console

_NEGLIGIBLE = MIB
"""Bytes that the disk may take more than the files hold, rounded up to whole pages."""


class Holding(NamedTuple):
    """What is here of some objects of a specimen: bytes of each, in the order of `objects`."""

    specimen: Specimen
    objects: Sequence[ObjectInfo]
    here: Sequence[int]
    pinned: bool

    @property
    def bytes_here(self) -> int:
        """Bytes that are here."""
        return sum(self.here)

    @property
    def bytes(self) -> int:
        """Bytes of the objects, here or not."""
        return sum(obj.size for obj in self.objects)

    @property
    def slices(self) -> list[tuple[ObjectInfo, int]]:
        """The slices among the objects, each with its bytes that are here."""
        slices = set(self.specimen.slices)
        return [pair for pair in zip(self.objects, self.here, strict=True) if pair[0] in slices]

    @property
    def slices_here(self) -> int:
        """Slices that are here whole."""
        return sum(here == obj.size for obj, here in self.slices)


def parse_slices(text: str) -> slice:
    """What `A:B` or `A:B:K` means in Python: positions from 0, or from the end if negative.

    Raises UsageError.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
        if len(numbers) not in (2, 3) or numbers[2:] == [0]:
            raise ValueError
    except ValueError:
        raise UsageError(
            f"--slices {text}: give positions as Python does, from 0: 100:150, ::10 or -20:"
        ) from None
    return slice(*numbers)


def choose(specimen: Specimen, positions: slice | None) -> list[ObjectInfo]:
    """The slices at these positions of the stack, or every file of the specimen."""
    return list(specimen.objects()) if positions is None else list(specimen.slices[positions])


def take(
    specimens: Iterable[Specimen], cache: DiskCache, positions: slice | None = None
) -> list[Holding]:
    """What is here of the chosen objects of each specimen. Raises BffsError."""
    files = cache.files()

    def here(obj: ObjectInfo) -> int:
        return cache.open(obj).bytes_present() if cache.path(obj) in files else 0

    holdings = []
    for specimen in specimens:
        objects = choose(specimen, positions)
        pinned = cache.is_pinned(specimen.prefix)
        holdings.append(Holding(specimen, objects, [here(obj) for obj in objects], pinned))
    return holdings


def limits(holdings: Iterable[Holding], cache: DiskCache) -> dict[str, Any]:
    """What the cache holds in all and may hold; sizes in bytes. Raises BffsError."""
    stored, pinned, spare = cache.account()
    here = sum(cache.files().values())
    return {
        "folder": str(cache.folder),
        "limit": cache.limit,
        "stored": stored,
        "pinned": pinned,
        "spare": max(0, min(spare, cache.limit - stored)),
        "elsewhere": max(0, here - sum(holding.bytes_here for holding in holdings)),
    }


def as_dict(holding: Holding) -> dict[str, Any]:
    """A holding for a program; sizes in bytes."""
    return {
        "id": holding.specimen.id,
        "split": holding.specimen.split,
        "slices": len(holding.slices),
        "cached_slices": holding.slices_here,
        "file_bytes": holding.bytes,
        "cached_bytes": holding.bytes_here,
        "pinned": holding.pinned,
    }


def as_text(holding: Holding) -> str:
    """A holding for people, on one line."""
    text = (
        f"{holding.specimen.split}/{holding.specimen.id}  "
        f"{holding.slices_here} of {len(holding.slices)} slices, "
        f"{format_size(holding.bytes_here)} of {format_size(holding.bytes)}, {share(holding)}"
    )
    return f"{text}, pinned" if holding.pinned else text


def as_table(holdings: Sequence[Holding], limits: dict[str, Any], console: Console) -> str:
    """The holdings, one a line, and below them the limits, styled as `console` allows."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "split"):
        grid.add_column(column)
    for column in ("slices", "of", "cached", "of", "share", "pinned"):
        grid.add_column(column, justify="right")
    for holding in holdings:
        grid.add_row(
            Text(holding.specimen.id),
            Text(holding.specimen.split),
            f"{holding.slices_here}",
            f"{len(holding.slices)}",
            format_size(holding.bytes_here),
            format_size(holding.bytes),
            share(holding),
            "yes" if holding.pinned else "no",
        )
    sizes = {name: format_size(size) for name, size in limits.items() if name != "folder"}
    lines = [
        ("folder", limits["folder"]),
        ("stored", f"{sizes['stored']} of {sizes['limit']}, {sizes['pinned']} of it pinned"),
        ("free", f"{sizes['spare']} before something must go"),
    ]
    if limits["elsewhere"] > _NEGLIGIBLE:
        lines.append(("other", f"{sizes['elsewhere']} of files that have been replaced"))
    with console.capture() as capture:
        if holdings:
            console.print(grid)
            console.print()
        for label, text in lines:
            console.print(Text(f"{label:8}{text}"))
    return capture.get()


def share(holding: Holding) -> str:
    """What share of it is here, in per cent, rounded down."""
    return f"{100 * holding.bytes_here // max(1, holding.bytes)} %"
