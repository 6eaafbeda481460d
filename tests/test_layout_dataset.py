"""The real dataset's keys and sizes, listed over S3: what its publishers wrote about it must come out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bffs import layout, manifest
from bffs.blocks import BlockReader
from bffs.cache import DiskCache
from bffs.catalog import Catalog, list_catalog
from bffs.profiles import load_dataset
from bffs.readahead import Readahead
from bffs.s3 import S3Store
from bffs.settings import Dataset, Settings
from bffs.shapes import Shapes
from bffs.tree import Folder, Tree
from bffs.units import GIB, MIB
from bffs.views import Choice
from tests.s3server import LAYOUT, TOTAL_BYTES, S3Server

SLICES = 53_705
PUBLISHED_BYTES = 2_671_458_682_941
"""The sum of `bytes` over the published manifest, in which the specimen of both sets counts once."""

IN_BOTH = "741428906"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(layout=LAYOUT) as server:
        yield server


@pytest.fixture(scope="module")
def dataset(server: S3Server) -> Dataset:
    return replace(load_dataset("brightfield"), endpoint_url=server.endpoint_url, bucket="bucket")


@pytest.fixture(scope="module")
def store(dataset: Dataset) -> Iterator[S3Store]:
    store = S3Store(Settings(dataset=dataset, cache_dir=Path("/nowhere"), sign_requests=False))
    yield store
    store.close()


@pytest.fixture(scope="module")
def catalog(store: S3Store, dataset: Dataset) -> Catalog:
    return list_catalog(store, dataset)


@pytest.fixture(scope="module")
def tree(
    catalog: Catalog,
    dataset: Dataset,
    store: S3Store,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Tree]:
    cache = DiskCache(tmp_path_factory.mktemp("dataset") / "cache", dataset, GIB)
    blocks = BlockReader(store, cache, memory=64 * MIB, connections=2)
    readahead = Readahead(blocks, memory=64 * MIB, most=None)
    settings = Settings(dataset=dataset, cache_dir=tmp_path_factory.mktemp("shapes"))
    choice = Choice(Shapes(settings, blocks, cache), dataset.voxel, 128)
    yield Tree(layout.build(catalog, dataset, readahead, cache, choice))
    cache.close()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with LAYOUT.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_listing_takes_few_requests(server: S3Server, catalog: Catalog) -> None:
    requests = server.stats()["requests"]
    assert set(requests) == {"list"}
    assert requests["list"] <= 2 + 115 + 20


def test_every_specimen_and_object_is_there(catalog: Catalog, rows: list[dict[str, str]]) -> None:
    assert len(catalog.specimens) == 115
    assert catalog.splits == ("train", "test")
    assert len(catalog.of_split("train")) == 105 and len(catalog.of_split("test")) == 10
    assert sum(len(specimen.slices) for specimen in catalog.specimens) == SLICES
    assert sum(specimen.swc is not None for specimen in catalog.specimens) == 105
    assert all(specimen.swc is None for specimen in catalog.of_split("test"))
    assert not any(specimen.others for specimen in catalog.specimens)
    assert catalog.left_out == {"folder marker": 116}
    assert sum(o.size for s in catalog.specimens for o in s.objects()) == TOTAL_BYTES
    found = [(s.split, s.id, s.prefix, len(s.slices), s.slice_bytes) for s in catalog.specimens]
    assert found == [
        (row["split"], row["id"], row["prefix"], int(row["slices"]), int(row["total_slice_bytes"]))
        for row in rows
    ]


def test_slices_are_in_numeric_order(catalog: Catalog, rows: list[dict[str, str]]) -> None:
    for specimen, row in zip(catalog.specimens, rows, strict=True):
        first = int(row["first_slice"])
        assert [obj.key for obj in specimen.slices] == [
            f"{row['prefix']}{row['slice_stem']}-{number:04}.tif"
            for number in range(first, first + int(row["slices"]))
        ]


def test_the_published_manifest(catalog: Catalog, rows: list[dict[str, str]]) -> None:
    whole = manifest.whole_dataset(catalog)
    assert len(whole) == 114
    train = [row["id"] for row in rows if row["split"] == "train"]
    test = [row["id"] for row in rows if row["split"] == "test"]
    assert list(whole) == train + [each for each in test if each != IN_BOTH]
    assert sum(entry["bytes"] for entry in whole.values()) == PUBLISHED_BYTES
    assert whole[IN_BOTH]["bucket_prefix"] == f"TEST_DATA_SET/{IN_BOTH}/"
    assert whole[IN_BOTH]["swc"] is None
    assert len(whole[IN_BOTH]["image_stack"]) == 591
    for entry in whole.values():
        assert list(entry) == ["id", "bucket_prefix", "swc", "bytes", "image_stack"]
    assert json.loads(manifest.encode(whole)) == whole
    assert list(json.loads(manifest.encode(whole))) == list(whole)


def test_the_specimen_of_both_sets_is_in_both_folders(catalog: Catalog, tree: Tree) -> None:
    assert [specimen.split for specimen in catalog.find(IN_BOTH)] == ["train", "test"]
    names = {}
    for split in ("train", "test"):
        folder = tree.find(f"/{split}/{IN_BOTH}")
        assert isinstance(folder, Folder)
        names[split] = set(folder.entries)
    assert f"{IN_BOTH}.swc" in names["train"] and f"{IN_BOTH}.swc" not in names["test"]


def test_the_tree(tree: Tree) -> None:
    assert list(tree.root.entries) == ["specimens_manifest.json", "stacks", "test", "train"]
    folders = {}
    for split, count in (("train", 105), ("test", 10)):
        node = tree.find(f"/{split}")
        assert isinstance(node, Folder)
        folders[split] = node
        assert len(node.entries) == count
        assert list(node.entries) == sorted(node.entries)
        assert node.attributes.nlink == 2 + count
    inodes, files, size = set(), 0, 0
    for folder in folders.values():
        for specimen in folder.entries.values():
            assert isinstance(specimen, Folder)
            below = 0
            for node in specimen.entries.values():
                inodes.add(node.attributes.ino)
                below += node.attributes.size
                files += 1
            assert specimen.attributes.size == below
            assert list(specimen.entries) == sorted(specimen.entries)
            size += below
    assert files == len(inodes) == SLICES + 105 + 115
    assert sum(folder.attributes.size for folder in folders.values()) == size
    whole = tree.find("/specimens_manifest.json").attributes.size
    assert tree.root.attributes.size == size + whole
    manifests = sum(
        node.attributes.size
        for folder in folders.values()
        for specimen in folder.entries.values()
        if isinstance(specimen, Folder)
        for name, node in specimen.entries.items()
        if name == "manifest.json"
    )
    assert size - manifests == TOTAL_BYTES


def test_names_and_attributes_need_no_request(server: S3Server, tree: Tree) -> None:
    server.reset()
    for path in ("/", "/train", "/test/741428906", "/train/647225829/647225829.swc"):
        assert tree.find(path).attributes.size > 0
    with pytest.raises(FileNotFoundError):
        tree.find("/train/647225829/absent.tif")
    assert server.stats()["requests"] == {}
