"""The catalog's limits: a bucket of any number of keys takes bounded memory, and says what it left out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bffs import catalog
from bffs.catalog import list_catalog
from bffs.store import Listing, ObjectInfo
from tests.conftest import DATASET
from tests.fakes import MTIME, FakeStore


class Listed(FakeStore):
    """Lists what it is told, page by page: the root, and the same in each folder."""

    def __init__(self, folders: list[str], pages: Iterator[list[str]] | list[list[str]]) -> None:
        super().__init__({})
        self.folders = folders
        self.pages = pages
        self.asked = 0

    def list(self, prefix: str, *, folders: bool = False) -> Iterator[Listing]:
        """See `ObjectStore.list`."""
        if folders:
            yield Listing([], self.folders)
            return
        for names in self.pages:
            self.asked += 1
            yield Listing([ObjectInfo(f"{prefix}{name}", "e", 1, MTIME) for name in names], [])


def endless() -> Iterator[list[str]]:
    number = 0
    while True:
        yield [f"a-{number + n:09}.tif" for n in range(10)]
        number += 10


def test_a_folder_of_too_many_files_is_cut_and_the_rest_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog, "MAX_FILES", 30)
    store = Listed(["1/"], [[f"a-{n:03}-{page}.tif" for n in range(10)] for page in range(9)])
    (specimen,) = (listed := list_catalog(store, DATASET)).specimens
    assert len(specimen.slices) == 30
    assert listed.left_out == {"beyond 30 files in a folder": 60}


def test_a_folder_without_an_end_is_listed_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_FILES", 50)
    monkeypatch.setattr(catalog, "MAX_KEYS", 200)
    store = Listed(["1/"], endless())
    (specimen,) = (listed := list_catalog(store, DATASET)).specimens
    assert len(specimen.slices) == 50 and store.asked <= 22
    assert listed.left_out == {
        "beyond 50 files in a folder": 150,
        "folder that was not listed to its end": 1,
    }


def test_pages_without_keys_and_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_PAGES", 100)
    store = Listed(["1/"], iter(list, None))
    listed = list_catalog(store, DATASET)
    assert listed.specimens == () and store.asked <= 102
    assert listed.left_out == {"folder that was not listed to its end": 1}


def test_keys_far_below_a_folder_are_counted_and_forgotten() -> None:
    store = Listed(["1/"], [[f"deep/{n}.tif" for n in range(1000)], ["a.tif"]])
    (specimen,) = (listed := list_catalog(store, DATASET)).specimens
    assert [obj.key for obj in specimen.slices] == ["1/a.tif"]
    assert listed.left_out == {"below a specimen's folder": 1000}


def test_too_many_folders_and_too_many_files_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MAX_FOLDERS", 7)
    monkeypatch.setattr(catalog, "MAX_OBJECTS", 35)
    store = Listed([f"{n}/" for n in range(10)], [[f"{n}.tif" for n in range(10)]])
    calls: list[tuple[int, int, int]] = []
    listed = list_catalog(store, DATASET, progress=lambda *call: calls.append(call))
    assert [specimen.id for specimen in listed.specimens] == ["0", "1", "2"]
    assert listed.left_out == {"beyond 7 folders": 3, "beyond 35 files": 40}
    assert calls[-1] == (7, 7, 70)


def test_a_key_that_is_listed_twice_is_one_file() -> None:
    store = Listed(["1/"], [["a.tif", "b.tif"], ["b.tif", "c.tif", "1.swc"], ["1.swc"]])
    (specimen,) = (listed := list_catalog(store, DATASET)).specimens
    assert [obj.key for obj in specimen.slices] == ["1/a.tif", "1/b.tif", "1/c.tif"]
    assert listed.left_out == {"listed twice": 2}
