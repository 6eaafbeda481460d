"""The snapshot of a catalog: whole, checked, private, or none."""

import random
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from bffs import snapshot
from bffs.catalog import Catalog, list_catalog
from bffs.private import dataset_folder
from bffs.settings import Dataset
from tests.fakes import FakeStore

DATASET = Dataset(
    name="t",
    endpoint_url="http://s3.test",
    region="r",
    bucket="b",
    splits=(("TEST_DATA_SET/", "test"), ("", "train")),
)
OBJECTS = {
    "90/": b"",
    "90/s-0009.tif": b"123",
    "90/s-0010.tif": b"12",
    "90/90.swc": b"1",
    "90/notes é.txt": b"n",
    "90/../evil": b"",
    "TEST_DATA_SET/91/a-0001.tif": b"1234",
}


@pytest.fixture
def catalog() -> Catalog:
    return list_catalog(FakeStore(OBJECTS), DATASET)


def test_what_is_kept_comes_back_equal(catalog: Catalog, tmp_path: Path) -> None:
    assert catalog.left_out
    assert snapshot.load(tmp_path, DATASET) is None
    snapshot.save(catalog, tmp_path, DATASET)
    assert snapshot.load(tmp_path, DATASET) == catalog


def test_it_is_private_and_leaves_no_draft(catalog: Catalog, tmp_path: Path) -> None:
    snapshot.save(catalog, tmp_path, DATASET)
    snapshot.save(catalog, tmp_path, DATASET)
    (kept,) = dataset_folder(tmp_path, DATASET).iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_other_splits_or_another_bucket_have_none(catalog: Catalog, tmp_path: Path) -> None:
    snapshot.save(catalog, tmp_path, DATASET)
    assert snapshot.load(tmp_path, replace(DATASET, splits=(("", "train"),))) is None
    assert snapshot.load(tmp_path, replace(DATASET, bucket="c")) is None


def test_damage_is_none(catalog: Catalog, tmp_path: Path) -> None:
    snapshot.save(catalog, tmp_path, DATASET)
    (kept,) = dataset_folder(tmp_path, DATASET).iterdir()
    whole = kept.read_bytes()
    chance = random.Random(1)
    for _ in range(200):
        place = chance.randrange(len(whole))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        kept.write_bytes(flipped)
        assert snapshot.load(tmp_path, DATASET) is None
        kept.write_bytes(whole[:place])
        assert snapshot.load(tmp_path, DATASET) is None
    kept.write_bytes(whole)
    assert snapshot.load(tmp_path, DATASET) == catalog


def test_what_somebody_else_planted_is_not_believed(catalog: Catalog, tmp_path: Path) -> None:
    snapshot.save(catalog, tmp_path, DATASET)
    folder = dataset_folder(tmp_path, DATASET)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert snapshot.load(tmp_path, DATASET) is None


def test_a_disk_that_takes_nothing_is_no_error(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="bffs")
    (tmp_path / "file").write_text("")
    snapshot.save(catalog, tmp_path / "file", DATASET)
    assert "can't be kept" in caplog.text


def test_its_mark_changes_with_every_snapshot(catalog: Catalog, tmp_path: Path) -> None:
    marks = [snapshot.mark(tmp_path, DATASET)]
    for _ in range(3):
        snapshot.save(catalog, tmp_path, DATASET)
        marks.append(snapshot.mark(tmp_path, DATASET))
    assert marks[0] is None
    assert len(set(marks)) == len(marks)
