"""Pictures of the dataset and of the cache, drawn by matplotlib, which is imported only here and only when one is asked
for. The form of a file follows from its ending.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bffs.catalog import Catalog
from bffs.errors import BffsError, UsageError
from bffs.inventory import Holding, share
from bffs.units import GIB, format_size

FORMS = (".png", ".svg", ".pdf")

_COLOURS = ("#3b6ea5", "#d98032", "#5a9e6f", "#8c6bb1")
"""One for each split, in their order."""

_WIDTH = 9.0
_ROW = 0.2
"""Inches: of a picture, and of a row for one specimen."""

_MOST_ROWS = 200


def check_form(path: Path) -> None:
    """Raise UsageError for a file whose ending is no form of picture."""
    if path.suffix.lower() not in FORMS:
        raise UsageError(f"{path.name}: the name of a picture ends in {', '.join(FORMS)}")


def sizes(catalog: Catalog, path: Path) -> None:
    """How large the stacks are: how many of each size, and each of them. Raises BffsError."""
    specimens = sorted(catalog.specimens, key=lambda specimen: specimen.slice_bytes)
    if not specimens:
        raise BffsError("there are no specimens to draw")
    colours = dict(zip(catalog.splits, _COLOURS * len(catalog.splits), strict=False))
    figure = _figure(1.0 + 2.6 + _ROW * len(specimens))
    above, below = figure.subplots(
        2, 1, gridspec_kw={"height_ratios": [2.6, max(1.0, _ROW * len(specimens))]}
    )
    gigabytes = {
        split: [specimen.slice_bytes / GIB for specimen in catalog.of_split(split)]
        for split in catalog.splits
    }
    largest = max(max(each) for each in gigabytes.values())
    step = _step(largest)
    above.hist(
        list(gigabytes.values()),
        bins=[step * n for n in range(math.ceil(largest / step) + 1)],
        stacked=True,
        color=list(colours.values()),
        edgecolor="white",
        label=[f"{split}: {_specimens(len(sizes))}" for split, sizes in gigabytes.items()],
    )
    above.set_ylabel("specimens")
    above.set_title("How many stacks are how large")
    above.yaxis.get_major_locator().set_params(integer=True)
    above.legend(frameon=False)
    rows = range(len(specimens))
    below.barh(
        rows,
        [specimen.slice_bytes / GIB for specimen in specimens],
        color=[colours[specimen.split] for specimen in specimens],
        height=0.75,
    )
    for row, specimen in zip(rows, specimens, strict=True):
        label = f" {format_size(specimen.slice_bytes)}, {len(specimen.slices)} slices"
        below.text(specimen.slice_bytes / GIB, row, label, va="center", fontsize=7)
    _name_rows(below, [specimen.id for specimen in specimens])
    below.set_title("Each stack, the largest first")
    below.tick_params(axis="x", top=True, labeltop=True)
    below.grid(axis="x", alpha=0.3)
    below.set_axisbelow(True)
    for axes in (above, below):
        axes.set_xlim(0, largest * 1.2)
        axes.set_xlabel("GiB")
    _save(figure, path)


def cache(holdings: Sequence[Holding], path: Path) -> None:
    """Which slices of which specimens are here: a row for each, from the first slice to the last.

    Raises BffsError.
    """
    shown = [holding for holding in holdings if holding.slices][:_MOST_ROWS]
    if not shown:
        raise BffsError("nothing is cached yet, so there is nothing to draw; see `bffs warm`")
    longest = max(len(holding.slices) for holding in shown)
    figure = _figure(1.3 + _ROW * len(shown))
    axes = figure.subplots()
    table = [
        [here / max(1, obj.size) for obj, here in holding.slices]
        + [math.nan] * (longest - len(holding.slices))
        for holding in shown
    ]
    image = axes.imshow(
        table,
        aspect="auto",
        interpolation="nearest",
        cmap=_shades(),
        vmin=0,
        vmax=1,
        extent=(0, longest, len(shown) - 0.5, -0.5),
    )
    for row, holding in enumerate(shown):
        label = (
            f" {format_size(holding.bytes_here)} of {format_size(holding.bytes)}, {share(holding)}"
        )
        label += ", pinned" if holding.pinned else ""
        axes.text(longest, row, label, va="center", fontsize=7)
    for row in range(1, len(shown)):
        axes.axhline(row - 0.5, color="white", linewidth=2)
    _name_rows(axes, [f"{each.specimen.split}/{each.specimen.id}" for each in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("slice, by position in the stack")
    axes.set_title("What is in the cache", loc="left")
    axes.tick_params(axis="x", labelsize=8)
    _explain_shades(figure, image)
    _save(figure, path)


def _figure(height: float) -> Any:
    """An empty figure. Raises BffsError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BffsError("pictures need matplotlib: pip install 'bffs[plot]'") from error
    return Figure(figsize=(_WIDTH, height), layout="constrained")


def _shades() -> Any:
    """From light to dark, as more of a slice is here; beyond the end of a stack nothing is drawn."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("here", ["#e8e8e8", "#9dbbd8", _COLOURS[0]])
    return shades.with_extremes(bad=(0, 0, 0, 0))


def _explain_shades(figure: Any, image: Any) -> None:
    """What the shades stand for, above the picture."""
    from matplotlib.patches import Patch

    handles = [
        Patch(color=image.cmap(share), label=f"{label} of the slice is here")
        for share, label in ((0.0, "nothing"), (0.5, "half"), (1.0, "all"))
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize=7)


def _specimens(count: int) -> str:
    return "1 specimen" if count == 1 else f"{count} specimens"


def _step(largest: float) -> float:
    """The width of a bar of the histogram: 1, 2 or 5 times a power of ten, for about 20 bars."""
    rough = largest / 20
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next((power * n for n in (1, 2, 5) if power * n >= rough), power * 10)


def _name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), labels=names, fontsize=7)
    axes.set_ylim(-0.6, len(names) - 0.4)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise BffsError(f"can't write {path}: {error.strerror}") from error
