"""The tree of a small bucket: names, sizes, times, attributes, manifests, and what untrusted keys become."""

from __future__ import annotations

import hashlib
import io
import json
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from bffs import layout
from bffs.blocks import BlockReader
from bffs.cache import BLOCK, DiskCache
from bffs.catalog import Catalog, list_catalog
from bffs.readahead import Readahead
from bffs.s3 import S3Store
from bffs.settings import Dataset, Settings
from bffs.shapes import Shapes
from bffs.store import ObjectStore
from bffs.tree import Folder, Node, Tree, inode
from bffs.units import GIB, MIB
from bffs.views import Choice
from tests.fakes import MTIME, FakeStore
from tests.s3server import S3Server, Source

np = pytest.importorskip("numpy")

DATASET = Dataset(
    name="d",
    endpoint_url="http://s3.test",
    region="r",
    bucket="b",
    splits=(("TEST/", "test"), ("", "train")),
)


def slice_of(number: int, height: int = 200, width: int = 1500) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.full((height, width), number, "uint16"))
    return file.getvalue()


OBJECTS = {
    "TEST/": b"",
    "TEST/9/": b"",
    "TEST/9/b-0010.tif": slice_of(10),
    "7/": b"",
    "7/a-2.tif": slice_of(2),
    "7/a-10.tif": slice_of(10),
    "7/7.swc": b"1 1 0 0 0 1 -1\n",
    "7/notes.txt": b"more",
    "8/only.swc": b"",
    "9/a-1.tiff": b"not a TIFF",
}


class Made(Tree):
    """A tree over a store, with what it is made of."""

    def __init__(self, store: ObjectStore, folder: Path, dataset: Dataset = DATASET) -> None:
        self.catalog = list_catalog(store, dataset, connections=4)
        self.cache = DiskCache(folder / "cache", dataset, GIB)
        self.blocks = BlockReader(store, self.cache, memory=64 * MIB, connections=2)
        self.blocks.start()
        readahead = Readahead(self.blocks, memory=64 * MIB, most=0)
        settings = Settings(dataset=dataset, cache_dir=folder / "cache")
        choice = Choice(Shapes(settings, self.blocks, self.cache), dataset.voxel, 128)
        super().__init__(layout.build(self.catalog, dataset, readahead, self.cache, choice))

    def read(self, path: str) -> bytes:
        node = self.find(path)
        assert not isinstance(node, Folder)
        content = node.open()
        into = bytearray(content.size + 1)
        return bytes(into[: content.read_into(0, memoryview(into))])

    def close(self) -> None:
        self.blocks.close()
        self.cache.close()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Made]:
    tree = Made(FakeStore(OBJECTS), tmp_path)
    yield tree
    tree.close()


def walk(folder: Folder, path: str = "") -> Iterator[tuple[str, Node]]:
    for name, node in folder.entries.items():
        yield f"{path}/{name}", node
        if isinstance(node, Folder):
            yield from walk(node, f"{path}/{name}")


# -- names ------------------------------------------------------------------------------------------------------


def test_every_object_has_one_path(tree: Made) -> None:
    found = [path for path, _ in walk(tree.root)]
    assert [path for path in found if path.count("/") < 4 or "/stacks/" not in path] == [
        "/specimens_manifest.json",
        "/stacks",
        "/stacks/test",
        "/stacks/test/9",
        "/stacks/train",
        "/stacks/train/7",
        "/stacks/train/8",
        "/stacks/train/9",
        "/test",
        "/test/9",
        "/test/9/b-0010.tif",
        "/test/9/manifest.json",
        "/train",
        "/train/7",
        "/train/7/7.swc",
        "/train/7/a-10.tif",
        "/train/7/a-2.tif",
        "/train/7/manifest.json",
        "/train/7/notes.txt",
        "/train/8",
        "/train/8/manifest.json",
        "/train/8/only.swc",
        "/train/9",
        "/train/9/a-1.tiff",
        "/train/9/manifest.json",
    ]
    assert tree.catalog.left_out == {"folder marker": 3}


@pytest.mark.parametrize("path", [p for p in OBJECTS if not p.endswith("/")])
def test_files_have_the_bytes_of_their_objects(tree: Made, path: str) -> None:
    place = path.replace("TEST/", "/test/") if path.startswith("TEST/") else f"/train/{path}"
    assert tree.read(place) == OBJECTS[path]


@pytest.mark.parametrize("path", ["/", "", "//", "/train", "/train/", "//train//7/"])
def test_slashes_do_not_matter(tree: Made, path: str) -> None:
    assert isinstance(tree.find(path), Folder)


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/train/6", "/train/7/a-3.tif", "/TRAIN", "/train/7/..", "/train/.", "/test/7"],
)
def test_what_is_not_there(tree: Made, path: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        tree.find(path)
    assert caught.value.filename == path


@pytest.mark.parametrize("path", ["/specimens_manifest.json/x", "/train/7/a-2.tif/x/y"])
def test_a_file_is_no_folder(tree: Made, path: str) -> None:
    with pytest.raises(NotADirectoryError):
        tree.find(path)


def test_a_split_without_specimens_is_an_empty_folder(tmp_path: Path) -> None:
    tree = Made(FakeStore({"7/a-1.tif": b"x"}), tmp_path)
    test = tree.find("/test")
    assert isinstance(test, Folder)
    assert list(test.entries) == [] and test.attributes.size == 0
    assert test.attributes.mtime == int(tree.catalog.listed_at)
    tree.close()


def test_an_empty_bucket_is_an_empty_tree(tmp_path: Path) -> None:
    tree = Made(FakeStore({}), tmp_path)
    assert [path for path, _ in walk(tree.root)] == [
        "/specimens_manifest.json",
        "/stacks",
        "/stacks/test",
        "/stacks/train",
        "/test",
        "/train",
    ]
    assert json.loads(tree.read("/specimens_manifest.json")) == {}
    tree.close()


# -- attributes -------------------------------------------------------------------------------------------------


def test_attributes_of_files(tree: Made) -> None:
    for path, node in walk(tree.root):
        attributes = node.attributes
        if isinstance(node, Folder):
            assert attributes.mode == stat.S_IFDIR | 0o555
        else:
            assert attributes.mode == stat.S_IFREG | 0o444
            assert attributes.size == len(tree.read(path))
            assert attributes.nlink == 1
    found = tree.find("/train/7/a-2.tif").attributes
    assert found.mtime == MTIME


def test_a_folder_weighs_what_is_below_it(tree: Made) -> None:
    for path, node in [("", tree.root), *walk(tree.root)]:
        if isinstance(node, Folder) and not path.startswith("/stacks"):
            below = [n for p, n in walk(node, path) if not p.startswith("/stacks/")]
            files = [n for n in below if not isinstance(n, Folder)]
            entries = {f"{path}/{name}": entry for name, entry in node.entries.items()}
            entries.pop("/stacks", None)  # which is shown as a link
            folders = [entry for entry in entries.values() if isinstance(entry, Folder)]
            assert node.attributes.size == sum(n.attributes.size for n in files), path
            assert node.attributes.nlink == 2 + len(folders)


def test_stacks_weigh_nothing(tree: Made) -> None:
    for path, node in [("", tree.root), *walk(tree.root)]:
        if path.startswith("/stacks"):
            assert (node.attributes.size == 0) == isinstance(node, Folder), path
            assert isinstance(node, Folder) or node.attributes.blocks == 1
    assert tree.find("/stacks").attributes.nlink == 4
    assert tree.find("/stacks/train/7").attributes.nlink == 1  # not known without its entries


def test_stacks_are_what_the_slices_allow(tree: Made) -> None:
    def names(path: str) -> list[str]:
        folder = tree.find(path)
        assert isinstance(folder, Folder)
        return list(folder.entries)

    assert names("/stacks/test/9") == [
        "9.imagej.tif",
        "9.ome.btf",
        "9.ome.zarr",
        "9.v3draw",
        "ome",
        "shutu",
    ]
    assert names("/stacks/train/8") == []  # no slices
    assert names("/stacks/train/9") == []  # no TIFF
    assert tree.find("/train/7").attributes.mtime == MTIME


def test_inodes_are_the_same_in_every_mount(tree: Made, tmp_path: Path) -> None:
    other = Made(FakeStore(OBJECTS | {"5/new.tif": b""}), tmp_path / "other")
    mine = {path: node.attributes.ino for path, node in walk(tree.root)}
    theirs = {path: node.attributes.ino for path, node in walk(other.root)}
    assert mine.items() <= theirs.items()
    assert len(set(theirs.values())) == len(theirs)
    other.close()
    assert inode("/train/7/a-2.tif") == 327254655285889003


@given(st.text(st.characters(codec="utf-8"), max_size=50))
def test_inodes_fit_into_63_bits_and_leave_the_root_its_own(path: str) -> None:
    assert 2 <= inode(path) < 1 << 63


def test_extended_attributes(tree: Made) -> None:
    content = OBJECTS["7/a-2.tif"]
    assert tree.find("/train/7/a-2.tif").xattrs() == {
        "user.bffs.key": b"7/a-2.tif",
        "user.bffs.etag": hashlib.md5(content).hexdigest().encode(),
        "user.bffs.cached": b"0",
    }
    node = tree.find("/train/7/a-2.tif")
    assert not isinstance(node, Folder)
    node.open().read_into(0, memoryview(bytearray(1)))
    tree.blocks.close()
    assert tree.find("/train/7/a-2.tif").xattrs()["user.bffs.cached"] == str(BLOCK).encode()
    assert tree.find("/train/7/7.swc").xattrs()["user.bffs.key"] == b"7/7.swc"
    assert tree.find("/train/7").xattrs() == {} == tree.find("/train/7/manifest.json").xattrs()


def test_many_threads_find_the_same(tree: Made) -> None:
    paths = [path for path, _ in walk(tree.root)]
    fresh = Tree(tree.root)

    def look(_: int) -> list[Any]:
        return [fresh.find(path).attributes for path in paths]

    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(look, range(16))
    assert all(other == first for other in others)


# -- manifests --------------------------------------------------------------------------------------------------


def test_manifests_are_files_of_their_exact_size(tree: Made) -> None:
    for path in ("/specimens_manifest.json", "/train/7/manifest.json", "/test/9/manifest.json"):
        text = tree.read(path)
        assert len(text) == tree.find(path).attributes.size
        json.loads(text)
    whole = json.loads(tree.read("/specimens_manifest.json"))
    assert list(whole) == ["7", "8", "9"]
    assert whole["9"]["bucket_prefix"] == "TEST/9/"
    assert whole["7"]["image_stack"] == ["7/a-2.tif", "7/a-10.tif"]
    mine = json.loads(tree.read("/train/9/manifest.json"))
    assert mine["bucket_prefix"] == "9/" and mine["directory"] == "train/9"


def test_a_manifest_tells_the_shape_once_a_header_has_been_seen(tmp_path: Path) -> None:
    first = Made(FakeStore(OBJECTS), tmp_path)
    before = first.read("/train/7/manifest.json")
    assert "shape" not in json.loads(before)
    first.read("/train/7/a-2.tif")
    assert first.read("/train/7/manifest.json") == before  # its size was told, and may not change
    first.close()
    second = Made(FakeStore(OBJECTS), tmp_path)
    found = json.loads(second.read("/train/7/manifest.json"))
    assert found["shape"] == [2, 200, 1500] and found["dtype"] == "uint16"
    assert "shape" not in json.loads(second.read("/train/8/manifest.json"))
    second.close()


def test_a_slice_that_is_no_tiff_has_a_manifest_without_a_shape(tmp_path: Path) -> None:
    first = Made(FakeStore(OBJECTS), tmp_path)
    first.read("/train/9/a-1.tiff")
    first.close()
    second = Made(FakeStore(OBJECTS), tmp_path)
    assert "shape" not in json.loads(second.read("/train/9/manifest.json"))
    second.close()


# -- untrusted keys ---------------------------------------------------------------------------------------------

LONG = "x" * 300
HOSTILE: dict[str, tuple[str, int]] = {
    "../passwd.tif": ("empty or dotted name", 1),
    "./a.tif": ("empty or dotted name", 1),
    "/etc/passwd.tif": ("empty or dotted name", 1),
    "//a.tif": ("empty or dotted name", 0),  # of the folder "/", as the one before
    "TEST/../a.tif": ("empty or dotted name", 1),
    "TEST//a.tif": ("empty or dotted name", 1),
    "7/..": ("empty or dotted name", 1),
    "7/.": ("empty or dotted name", 1),
    "7//a.tif": ("below a specimen's folder", 1),
    "7/../8/a.tif": ("below a specimen's folder", 1),
    "7/deeper/a.tif": ("below a specimen's folder", 1),
    "7/a-1.tif/x": ("below a specimen's folder", 1),  # where a-1.tif is a file
    "7/deeper/": ("folder marker", 1),
    "7/": ("folder marker", 1),
    "TEST/": ("folder marker", 1),
    "empty folder/": ("folder marker", 1),
    "7/nul\0.tif": ("control character in a name", 1),
    "7/new\nline.tif": ("control character in a name", 1),
    "7/escape\x1b[31m.tif": ("control character in a name", 1),
    "7/delete\x7f.tif": ("control character in a name", 1),
    "bell\x07/a.tif": ("control character in a name", 1),
    f"7/{LONG}.tif": ("name too long", 1),
    f"7/{'é' * 128}": ("name too long", 1),
    f"{LONG}/a.tif": ("name too long", 1),
    "7/manifest.json": ("has the name of a file that bffs makes", 1),
    "7": ("outside any specimen", 1),
    "readme.txt": ("outside any specimen", 1),
    "specimens_manifest.json": ("outside any specimen", 1),
    "TEST/readme.txt": ("outside any specimen", 1),
}
SOUND = {
    "7/a-1.tif": "/train/7/a-1.tif",
    "7/...": "/train/7/...",
    "7/ a b&<é>%41.tif": "/train/7/ a b&<é>%41.tif",
    "7/日本.tif": "/train/7/日本.tif",
    f"7/{'é' * 127}": f"/train/7/{'é' * 127}",
    "7/back\\slash.tif": "/train/7/back\\slash.tif",
    "7/-rf": "/train/7/-rf",
    "train/a.tif": "/train/train/a.tif",
    "stacks/a.tif": "/train/stacks/a.tif",
    ".bffs/status.json": "/train/.bffs/status.json",
    "TEST/7/a-1.tif": "/test/7/a-1.tif",
    "TEST/TEST/a.tif": "/test/TEST/a.tif",
    "test/a.tif": "/train/test/a.tif",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """The tree of a bucket full of such keys, listed over S3; the sound ones hold their own key."""
    objects: dict[str, Source] = {key: key.encode() for key in (*HOSTILE, *SOUND)}
    with S3Server(objects) as server:
        store = S3Store(
            Settings(
                dataset=Dataset(
                    name="d",
                    endpoint_url=server.endpoint_url,
                    region="r",
                    bucket="bucket",
                    splits=DATASET.splits,
                ),
                sign_requests=False,
                cache_dir=Path("/nowhere"),
            )
        )
        tree = Made(store, tmp_path_factory.mktemp("hostile"))
        yield tree
        tree.close()
        store.close()


def test_keys_that_can_not_be_paths_are_left_out_and_counted(hostile: Made) -> None:
    made = {"manifest.json", "specimens_manifest.json"}
    files = {path for path, node in walk(hostile.root) if not isinstance(node, Folder)}
    assert {path for path in files if path.rpartition("/")[2] not in made} == set(SOUND.values())
    expected: dict[str, int] = {}
    for reason, count in HOSTILE.values():
        expected[reason] = expected.get(reason, 0) + count
    assert dict(hostile.catalog.left_out) == expected


@pytest.mark.parametrize("key", SOUND)
def test_no_key_becomes_the_path_of_another(hostile: Made, key: str) -> None:
    assert hostile.read(SOUND[key]) == key.encode()
    assert hostile.find(SOUND[key]).xattrs()["user.bffs.key"] == key.encode()


def test_what_bffs_makes_is_not_what_the_bucket_says(hostile: Made) -> None:
    manifest = json.loads(hostile.read("/train/7/manifest.json"))
    assert manifest["id"] == "7"
    assert all(key in SOUND for key in manifest["image_stack"])
    assert "7" in json.loads(hostile.read("/specimens_manifest.json"))


keys = st.lists(
    st.text(st.sampled_from("ab./\0\n7TES"), min_size=1, max_size=12), unique=True, max_size=12
)


@given(keys)
def test_whatever_the_keys_are_every_one_is_shown_or_counted(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str]
) -> None:
    catalog: Catalog = list_catalog(FakeStore(dict.fromkeys(keys, b"")), DATASET, connections=1)
    shown = [obj.key for specimen in catalog.specimens for obj in specimen.objects()]
    assert len(shown) == len(set(shown)) and set(shown) <= set(keys)
    places = [
        (specimen.split, specimen.id, key.rpartition("/")[2])
        for specimen in catalog.specimens
        for key in (obj.key for obj in specimen.objects())
    ]
    assert len(places) == len(set(places))
    for place in places:
        assert not {"", ".", ".."} & set(place)
        assert not any(ch in name for name in place for ch in "/\0\n")
    assert bool(catalog.left_out) == (len(shown) < len(keys))
