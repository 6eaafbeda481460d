"""`scripts/soak` in short: it finds nothing where nothing is wrong, and says so where something is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.soaking import main, things
from scripts.soaking.reader import Reader
from scripts.soaking.weather import Record, Weather
from tests.s3server import S3Server


def test_a_short_run_ends_without_a_finding(capfd: pytest.CaptureFixture[str]) -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse on this machine")
    short = ["--minutes=0.1", "--mounts=1", "--load=1e6", "--weather=1", "--seed=1"]
    assert main.main(short) == 0, capfd.readouterr()
    assert "0 findings" in capfd.readouterr().out


def test_a_wrong_byte_is_found(tmp_path: Path) -> None:
    key = next(iter(things.slices()))
    path = things.place(tmp_path, key)
    path.parent.mkdir(parents=True)
    content = bytearray(things.expected(key, 0, things.SLICE))
    content[5000] ^= 1
    path.write_bytes(content)
    with (tmp_path / "diary").open("w+b") as diary:
        reader = Reader(tmp_path, 1e9, 0, diary)
        with reader.opened(key) as fd:
            reader.read(key, fd, 0, 4096)
            assert reader.report.wrong == []
            reader.read(key, fd, 4096, 4096)
    assert reader.report.wrong == [f"{key} from 4096: 4096 bytes for 4096, differing at 904"]


def test_only_bad_weather_excuses() -> None:
    with S3Server({}) as server:
        record = Record(server)
        record.change(Weather("bad", excuse=True))
        assert record.excuses(0, 1e12)
        record.change(Weather("good"))
        assert not record.excuses(0, 1)
        assert not record.excuses(1e11, 1e12)
