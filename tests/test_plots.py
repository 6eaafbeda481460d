"""Pictures: what is drawn, in which form, and what is said where they can't be."""

from __future__ import annotations

import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from PIL import Image

from bffs import plots
from bffs.catalog import Catalog, Specimen
from bffs.errors import BffsError, UsageError
from bffs.inventory import Holding
from bffs.store import ObjectInfo
from bffs.units import GIB


def specimen(name: str, split: str, slices: int, size: int) -> Specimen:
    objects = tuple(ObjectInfo(f"{name}/{n}.tif", "e", size, 0) for n in range(slices))
    return Specimen(name, split, f"{name}/", objects, None, ())


SPECIMENS = (
    specimen("1", "train", 40, GIB),
    specimen("2", "train", 7, GIB),
    specimen("[3]", "test", 12, GIB),
)
CATALOG = Catalog(SPECIMENS, MappingProxyType({}), 0.0)
HOLDINGS = [
    Holding(SPECIMENS[0], SPECIMENS[0].slices, [GIB] * 20 + [0] * 20, False),
    Holding(SPECIMENS[2], SPECIMENS[2].slices, [0] * 6 + [GIB // 2] * 6, True),
]


def texts_of(monkeypatch: pytest.MonkeyPatch, draw: Any, path: Path) -> list[str]:
    """What is written in the picture that `draw` saves."""
    saved: list[Any] = []
    save = plots._save

    def save_and_keep(figure: Any, path: Path) -> None:
        saved.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", save_and_keep)
    draw(path)
    return [text.get_text() for text in saved[0].findobj(lambda each: hasattr(each, "get_text"))]


def test_the_picture_of_the_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sizes.png"
    texts = texts_of(monkeypatch, lambda path: plots.sizes(CATALOG, path), path)
    assert {
        "Each stack, the largest first",
        "train: 2 specimens",
        "test: 1 specimen",
        "[3]",
    } <= set(texts)
    assert " 40G, 40 slices" in texts
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 1000


def test_the_picture_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache.png"
    texts = texts_of(monkeypatch, lambda path: plots.cache(HOLDINGS, path), path)
    assert "half of the slice is here" in texts
    assert {"train/1", "test/[3]", " 20G of 40G, 50 %", " 3.0G of 12G, 25 %, pinned"} <= set(texts)
    with Image.open(path) as image:
        found: list[tuple[int, Any]] = image.convert("RGB").getcolors(1 << 24) or []
    whole, half, nothing = (0x3B, 0x6E, 0xA5), (0x9D, 0xBB, 0xD8), (0xE8, 0xE8, 0xE8)
    for wanted in (whole, half, nothing):
        assert any(
            all(abs(a - b) < 4 for a, b in zip(wanted, colour, strict=True)) for _, colour in found
        )


@pytest.mark.parametrize(("name", "begins"), [("a.svg", b"<?xml"), ("b.PDF", b"%PDF")])
def test_the_ending_is_the_form(tmp_path: Path, name: str, begins: bytes) -> None:
    plots.check_form(tmp_path / name)
    plots.cache(HOLDINGS, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_what_can_not_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"a\.gif: the name of a picture ends in \.png"):
        plots.check_form(tmp_path / "a.gif")
    with pytest.raises(BffsError, match="nothing is cached yet"):
        plots.cache([], tmp_path / "a.png")
    with pytest.raises(BffsError, match="can't write"):
        plots.cache(HOLDINGS, tmp_path / "absent" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BffsError, match=r"pip install 'bffs\[plot\]'"):
        plots.sizes(CATALOG, tmp_path / "a.png")
