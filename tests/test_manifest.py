"""From a listing to specimens and manifests, over an object store in memory."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bffs.catalog import Catalog, build_specimen, list_catalog, unusable
from bffs.errors import NoSuchSpecimen, StoreError
from bffs.manifest import encode, of_specimen, published, whole_dataset
from bffs.settings import Dataset
from bffs.store import ObjectInfo
from tests.fakes import MTIME, FakeStore

DATASET = Dataset(
    name="d",
    endpoint_url="http://s3.test",
    region="r",
    bucket="b",
    splits=(("TEST_DATA_SET/", "test"), ("", "train")),
)
SINGLE = Dataset(name="d", endpoint_url=None, region="r", bucket="b")


def stack(prefix: str, count: int, first: int = 1, size: int = 10) -> dict[str, bytes]:
    """Slices with four digits, named as in the published dataset."""
    stem = f"{prefix}reconstruction_0_0539044533_{size}"
    return {f"{stem}-{number:04}.tif": b"x" * size for number in range(first, first + count)}


OBJECTS = {
    **dict.fromkeys(("200/", "300/", "TEST_DATA_SET/", "TEST_DATA_SET/300/"), b""),
    **stack("200/", 12, first=7),
    "200/200.swc": b"# tracing",
    **stack("300/", 2, size=20),
    "300/300.swc": b"# tracing",
    **stack("TEST_DATA_SET/300/", 3, size=30),
    **stack("TEST_DATA_SET/100/", 1, size=40),
}


def catalog(objects: dict[str, bytes], dataset: Dataset = DATASET) -> Catalog:
    return list_catalog(FakeStore(objects), dataset, connections=3)


def found(listed: Catalog) -> list[tuple[str, str]]:
    return [(specimen.split, specimen.id) for specimen in listed.specimens]


# -- the catalog ------------------------------------------------------------------------------------------------


def test_folders_become_specimens_of_their_split() -> None:
    listed = catalog(OBJECTS)
    assert found(listed) == [("train", "200"), ("train", "300"), ("test", "100"), ("test", "300")]
    assert listed.splits == ("train", "test")
    assert [specimen.id for specimen in listed.of_split("test")] == ["100", "300"]
    assert listed.left_out == {"folder marker": 4}


def test_a_specimen_has_its_slices_in_order_and_its_tracing() -> None:
    first = catalog(OBJECTS).specimens[0]
    numbers = [obj.key[-8:-4] for obj in first.slices]
    assert numbers == [f"{number:04}" for number in range(7, 19)]
    assert first.swc is not None
    assert first.swc.key == "200/200.swc"
    assert first.slice_bytes == 120
    assert sum(obj.size for obj in first.objects()) == 120 + len(b"# tracing")


def test_slices_without_leading_zeros_are_in_numeric_order() -> None:
    listed = catalog({f"1/s-{number}.tif": b"x" for number in range(1, 12)}, SINGLE)
    names = [obj.key for obj in listed.specimens[0].slices]
    assert names == [f"1/s-{number}.tif" for number in range(1, 12)]


def test_without_further_splits_all_is_train() -> None:
    listed = catalog(OBJECTS, SINGLE)
    assert found(listed) == [("train", "200"), ("train", "300")]
    # its specimens lie too deep for a dataset whose profile does not name the folder
    assert listed.left_out["below a specimen's folder"] == 4


def test_specimens_are_found_by_id_and_split() -> None:
    listed = catalog(OBJECTS)
    assert [specimen.split for specimen in listed.find("300")] == ["train", "test"]
    assert [specimen.split for specimen in listed.find("test/300/")] == ["test"]
    for absent in ("400", "test/200", "other/300", ""):
        with pytest.raises(NoSuchSpecimen):
            listed.find(absent)


def test_progress_counts_folders_and_keys() -> None:
    calls: list[tuple[int, int, int]] = []
    list_catalog(FakeStore(OBJECTS), DATASET, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert calls[-1][2] == len(OBJECTS) - 1  # all but the marker of the test folder itself


def test_an_empty_bucket_is_an_empty_catalog() -> None:
    assert catalog({}).specimens == ()
    assert catalog({"200/": b""}).specimens == ()


def test_a_listing_that_fails_fails_the_catalog() -> None:
    class Broken(FakeStore):
        def info(self, key: str) -> ObjectInfo:
            if key.startswith("300/"):
                raise StoreError("broken")
            return super().info(key)

    with pytest.raises(StoreError, match="broken"):
        list_catalog(Broken(OBJECTS), DATASET, connections=2)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("loose.txt", "outside any specimen"),
        ("200/deep/a.tif", "below a specimen's folder"),
        ("200/deep/", "folder marker"),
        ("200/.", "empty or dotted name"),
        ("200/..", "empty or dotted name"),
        ("../x.tif", "empty or dotted name"),
        ("200/a\nb.tif", "control character in a name"),
        ("200/" + "é" * 128 + ".tif", "name too long"),
        ("x" * 256 + "/a.tif", "name too long"),
        ("200/manifest.json", "has the name of a file that bffs makes"),
    ],
)
def test_keys_that_cannot_be_files_are_left_out_and_counted(key: str, reason: str) -> None:
    listed = catalog({**OBJECTS, key: b"?"})
    before = catalog(OBJECTS)
    assert listed.specimens == before.specimens
    assert Counter(listed.left_out) - Counter(before.left_out) == {reason: 1}


@given(st.lists(st.text(alphabet="ab./\x00é9-", max_size=6), max_size=8))
def test_no_key_is_lost_or_becomes_another_path(names: list[str]) -> None:
    """Every object is either shown under its own name or counted, whatever its name is."""
    left_out: Counter[str] = Counter()
    objects = [ObjectInfo(f"7/{name}", "e", 1, MTIME) for name in dict.fromkeys(names)]
    specimen = build_specimen("train", "7/", objects, left_out)
    shown = list(specimen.objects())
    assert len(shown) + left_out.total() == len(objects)
    assert len(set(shown)) == len(shown)
    for obj in shown:
        name = obj.key.removeprefix("7/")
        assert unusable(name) is None
        assert "/" not in name
        assert "\x00" not in name


# -- manifests --------------------------------------------------------------------------------------------------


def test_the_published_fields_in_their_order() -> None:
    manifest = published(catalog(OBJECTS).specimens[1])
    assert list(manifest.items()) == [
        ("id", "300"),
        ("bucket_prefix", "300/"),
        ("swc", "300/300.swc"),
        ("bytes", 40),
        ("image_stack", list(stack("300/", 2, size=20))),
    ]


def test_an_id_in_both_sets_keeps_its_place_with_the_test_sets_values() -> None:
    manifest = whole_dataset(catalog(OBJECTS))
    assert list(manifest) == ["200", "300", "100"]
    assert manifest["300"]["bucket_prefix"] == "TEST_DATA_SET/300/"
    assert manifest["300"]["swc"] is None
    assert manifest["300"]["bytes"] == 90


def test_one_specimens_manifest_says_where_it_is_and_what_its_slices_are() -> None:
    listed = catalog(OBJECTS)
    train, test = listed.find("300")
    manifest = of_specimen(test, DATASET)
    assert list(manifest)[:5] == list(published(test))
    assert manifest["split"] == "test"
    assert manifest["endpoint_url"] == "http://s3.test"
    assert manifest["bucket"] == "b"
    assert manifest["directory"] == "test/300"
    assert [part["name"] for part in manifest["slices"]] == [
        key.rpartition("/")[2] for key in manifest["image_stack"]
    ]
    assert manifest["slices"][0] == {
        "name": "reconstruction_0_0539044533_30-0001.tif",
        "bytes": 30,
        "etag": test.slices[0].etag,
        "last_modified": "2019-08-14T21:05:33Z",
    }
    assert of_specimen(train, DATASET)["directory"] == "train/300"


def test_encoded_manifests_are_json_in_utf_8() -> None:
    listed = catalog({**OBJECTS, "neuron-é/1.tif": b"x"})
    for manifest in (whole_dataset(listed), of_specimen(listed.specimens[0], DATASET)):
        encoded = encode(manifest)
        assert json.loads(encoded) == manifest
        assert encoded.endswith(b"}\n")
    assert "neuron-é".encode() in encode(whole_dataset(listed))
