"""The status file: true, alive, and no burden."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Mounter, drivers, flags_of, status, until
from tests.s3server import S3Server, pattern

OBJECTS = {f"1/a-{number:04}.tif": 3_000_000 for number in range(1, 5)} | {"1/..": 5, "1/x/y": 5}
FIRST = "1/a-0001.tif"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(OBJECTS, bucket="neurons") as server:
        yield server


@pytest.fixture
def mounter(server: S3Server, tmp_path: Path) -> Iterator[Mounter]:
    mounter = Mounter(flags_of(server), tmp_path)
    yield mounter
    server.reset()
    mounter.close()


def test_the_figures_are_those_of_the_server(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter("--readahead=off")
    server.reset()
    assert (mountpoint / "train" / FIRST).read_bytes() == pattern(FIRST, 0, 3_000_000)
    told = status(mountpoint)
    assert told["fetched"] == server.stats()["sent"]["get"] >= 3_000_000
    assert told["pid"] in drivers(mountpoint)
    assert told["errors"] == {}
    assert told["mountpoint"] == str(mountpoint)
    listing = told["listing"]
    assert (listing["specimens"], sum(listing["left_out"].values())) == (1, 2)


def test_it_is_read_anew_and_has_no_size(mounter: Mounter) -> None:
    mountpoint = mounter()
    before = status(mountpoint)
    (mountpoint / "train" / FIRST).read_bytes()
    after = status(mountpoint)
    assert (before["fetched"], after["now"] > before["now"]) == (0, True)
    assert after["fetched"] >= 3_000_000
    path = mountpoint / ".bffs/status.json"
    assert path.stat().st_size == 0 and (mountpoint / ".bffs").stat().st_size == 0
    with path.open("rb") as file:
        assert file.read(5) + file.read() and file.read() == b""


def test_a_failed_read_is_counted_by_its_errno(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter("--readahead=off")
    server.fault("status", value=412, kind="get", key=FIRST)
    with pytest.raises(OSError, match="Stale"):
        (mountpoint / "train" / FIRST).read_bytes()
    assert list(status(mountpoint)["errors"]) == ["ESTALE"]


def test_nothing_waits_and_nothing_is_held_when_all_is_read(mounter: Mounter) -> None:
    mountpoint = mounter()
    for key in OBJECTS:
        if key.endswith(".tif"):
            (mountpoint / "train" / key).read_bytes()

    def at_rest() -> bool:
        told = status(mountpoint)
        return not told["memory"]["pinned"] and not told["queue"]["connections"]

    until(at_rest)
    told = status(mountpoint)
    assert told["memory"]["unwritten"] == told["queue"]["demands"] == 0
    assert 0 < told["memory"]["used"] <= told["memory"]["limit"]
