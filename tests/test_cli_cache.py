"""The commands of the cache, as a shell sees them, on a server that counts requests."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import random
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bffs.cli import main
from bffs.errors import UsageError
from bffs.inventory import parse_slices
from tests.conftest import CREDENTIALS, Mounter, clean, flags_of, flip
from tests.s3server import S3Server

SLICE = 300_000
STACK = [f"90/s-{number:04}.tif" for number in range(1, 9)]
FILES = {key: random.Random(key).randbytes(SLICE) for key in STACK}
FILES |= {"90/90.swc": b"# tracing\n" * 30}
FILES |= {f"100/s-{n:04}.tif": random.Random(n).randbytes(SLICE) for n in range(1, 4)}

Bffs = Callable[..., Result]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        **clean(os.environ),
        **CREDENTIALS,
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
    }


@pytest.fixture
def command(server: S3Server, tmp_path: Path) -> list[str]:
    """`bffs` on that bucket, with a cache of this test's own."""
    server.reset()
    cache = f"--cache-dir={tmp_path / 'cache'}"
    return [sys.executable, "-m", "bffs", *flags_of(server), cache]


@pytest.fixture
def bffs(command: list[str], environment: dict[str, str]) -> Iterator[Bffs]:
    """Runs a command in this process, which is quicker."""

    def run(*arguments: str, **variables: str) -> Result:
        return CliRunner().invoke(main, [*command[3:], *arguments], env=environment | variables)

    yield run
    logging.getLogger("bffs").setLevel(logging.NOTSET)


def said(result: Result, code: int = 0) -> str:
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def data_files(tmp_path: Path) -> list[Path]:
    """Cached files, in the order of their names."""
    files = (tmp_path / "cache").glob("v1/*/??/*")
    return sorted(path for path in files if path.suffix != ".sums")


# -- warm -------------------------------------------------------------------------------------------------------


def test_warm_fetches_what_is_missing_and_only_that(bffs: Bffs, server: S3Server) -> None:
    assert said(bffs("warm", "90", "--check")) == "train/90  0 of 8 slices, 0 of 2.3M, 0 %\n"
    assert said(bffs("warm", "90", "--slices", "2:6:2")) == (
        "train/90  2 of 2 slices, 586K of 586K, 100 %\n"
    )
    gets = {(get.key, get.start) for get in server.log()}
    assert {key for key, _ in gets} == {STACK[2], STACK[4]}
    assert said(bffs("warm", "90")) == "train/90  8 of 8 slices, 2.3M of 2.3M, 100 %\n"
    sent = server.stats()["sent"]["get"]
    assert sent == sum(len(FILES[key]) for key in [*STACK, "90/90.swc"])
    assert said(bffs("warm", "90", "--check")) == "train/90  8 of 8 slices, 2.3M of 2.3M, 100 %\n"
    assert said(bffs("warm", "train"))
    assert server.stats()["sent"]["get"] == sum(map(len, FILES.values()))


@pytest.mark.parametrize("text", ["", "5", "a:b", "1:2:3:4", "1:2:0", ":x"])
def test_slices_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="--slices"):
        parse_slices(text)


@pytest.mark.parametrize("text", [":", "1:", ":-1", "::-1", "-3:", "2:7:2", " 1 : 2 "])
def test_slices_are_pythons(text: str) -> None:
    stack = list(range(10))
    assert stack[parse_slices(text)] == eval(f"stack[{text}]", {"stack": stack})


def test_warm_with_json_prints_objects(bffs: Bffs, server: S3Server) -> None:
    server.shape(per_connection=200_000)
    try:
        lines = [json.loads(line) for line in said(bffs("warm", "90", "--json")).splitlines()]
    finally:
        server.shape()
    assert lines[-1] == {
        "event": "specimen",
        "id": "90",
        "split": "train",
        "slices": 8,
        "cached_slices": 8,
        "file_bytes": 8 * SLICE + 300,
        "cached_bytes": 8 * SLICE + 300,
        "pinned": False,
    }
    progress = lines[:-1]
    assert progress and all(line["event"] == "progress" for line in progress)
    last = progress[-1]
    assert 0 < last["fetched_bytes"] == last["cached_bytes"] <= last["bytes"]
    assert last["bytes_per_second"] > 0 and last["seconds_left"] >= 0


def test_warm_that_is_interrupted_goes_on_where_it_stopped(
    bffs: Bffs, command: list[str], environment: dict[str, str], server: S3Server
) -> None:
    said(bffs("ls"))
    server.shape(per_connection=100_000)
    try:
        warming = subprocess.Popen(
            [*command, "warm", "90", "--max-connections", "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while server.stats()["sent"].get("get", 0) < SLICE:
            time.sleep(0.05)
        warming.send_signal(signal.SIGINT)
        out, err = warming.communicate(timeout=30)
    finally:
        server.shape()
    assert (warming.returncode, out) == (130, "")
    assert err.startswith("bffs: stopped with ") and err.endswith("; the same command goes on\n")
    here = int(json.loads(said(bffs("warm", "90", "--check", "--json")))["cached_bytes"])
    assert here > 0
    before = server.stats()["sent"]["get"]
    said(bffs("warm", "90"))
    assert server.stats()["sent"]["get"] - before == 8 * SLICE + 300 - here


def test_warm_shows_bytes_rate_and_time_left_on_a_terminal(
    command: list[str], environment: dict[str, str], server: S3Server
) -> None:
    server.shape(per_connection=150_000)
    try:
        main, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        warming = subprocess.Popen(
            [*command, "warm", "90", "--max-connections", "4"],
            env=environment | {"TERM": "xterm"},
            stdout=subprocess.DEVNULL,
            stderr=terminal,
        )
        os.close(terminal)
        shown = b""
        while select.select([main], [], [], 30)[0]:
            try:
                shown += os.read(main, 4096)
            except OSError:  # the end
                break
        os.close(main)
        assert warming.wait(30) == 0
    finally:
        server.shape()
    assert b"warming" in shown and b" of 2.3M, " in shown and b"/s, " in shown and b" left" in shown


def test_warm_says_beforehand_what_does_not_fit(bffs: Bffs, server: S3Server) -> None:
    result = bffs("warm", "90", "--cache-size", "1M")
    assert result.exit_code == 1
    assert result.stderr == (
        "bffs: 2.3M do not fit into the cache, which `bffs cache` shows: warming the first 3 of 9 "
        "files, 879K; see --cache-size\n"
    )
    assert result.stdout == "train/90  3 of 8 slices, 879K of 2.3M, 37 %\n"
    assert server.stats()["sent"]["get"] == 3 * SLICE


def test_warm_makes_room_but_not_of_what_is_pinned(bffs: Bffs) -> None:
    said(bffs("warm", "100"))
    said(bffs("warm", "90", "--slices", ":1", "--cache-size", "1M"))
    assert json.loads(said(bffs("warm", "100", "--check", "--json")))["cached_slices"] == 2
    said(bffs("warm", "100"))
    said(bffs("pin", "100"))
    assert "do not fit" in said(bffs("warm", "90", "--slices", ":2", "--cache-size", "1M"), 1)
    assert json.loads(said(bffs("warm", "100", "--check", "--json")))["cached_slices"] == 3


def test_warm_of_objects_that_have_changed(bffs: Bffs, server: S3Server) -> None:
    said(bffs("ls"))
    server.change({STACK[3]: b"another"})
    try:
        error = said(bffs("warm", "90"), 1)
    finally:
        server.change({STACK[3]: FILES[STACK[3]]})
    assert error.splitlines()[-1] == (
        "bffs: 1 files are no longer those that were listed: `bffs refresh`, and warm again"
    )


def test_warm_without_the_store_or_the_specimen(bffs: Bffs, environment: dict[str, str]) -> None:
    said(bffs("ls"))
    error = said(bffs("--endpoint-url", "http://127.0.0.1:1", "warm", "90"), 3)
    assert "can't be reached" in error and len(error.splitlines()) == 1
    assert "no specimen 91" in said(bffs("warm", "91"), 5)
    assert "Missing argument 'ID...'" in said(bffs("warm"), 2)
    assert "--slices 3" in said(bffs("warm", "90", "--slices", "3"), 2)


def test_warm_waits_for_the_store_and_gives_up_in_the_end(
    bffs: Bffs, server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    said(bffs("ls"))
    server.fault("reset", times=5)
    said(bffs("warm", "90", "--slices", ":2", "--deadline", "30s"))
    server.fault("reset")
    error = said(bffs("warm", "90", "--deadline", "1s", "--max-connections", "2"), 3)
    server.reset()
    assert "can't be reached" in error.splitlines()[-1]
    assert "waiting up to 1 s for it" in caplog.text


# -- evict, pin, unpin ------------------------------------------------------------------------------------------


def test_what_is_evicted_is_gone_and_what_is_pinned_stays(bffs: Bffs, tmp_path: Path) -> None:
    said(bffs("warm", "train"))
    assert said(bffs("pin", "100")) == "train/100  3 of 3 slices, 879K of 879K, 100 %, pinned\n"
    assert said(bffs("evict", "train"), 1) == (
        "bffs: nothing was evicted, for train/100 is pinned; `bffs unpin` first\n"
    )
    assert len(data_files(tmp_path)) == 12
    assert said(bffs("evict", "90")) == "train/90  2.3M evicted\n"
    assert len(data_files(tmp_path)) == 3
    assert said(bffs("unpin", "train")) == "train/100  no longer pinned\ntrain/90  was not pinned\n"
    assert said(bffs("evict", "train")) == "train/100  879K evicted\ntrain/90  0 evicted\n"
    assert data_files(tmp_path) == []


def test_more_pinned_than_the_cache_holds_is_said(bffs: Bffs) -> None:
    result = bffs("pin", "90", "--cache-size", "1M")
    assert result.exit_code == 0
    assert result.stderr.startswith(
        "bffs: what is pinned is 2.3M in all, more than the cache holds"
    )


# -- verify -----------------------------------------------------------------------------------------------------


def test_verify_finds_flipped_bits_and_drops_them(bffs: Bffs, tmp_path: Path) -> None:
    said(bffs("warm", "90"))
    sound = said(bffs("verify"))
    assert sound.startswith("9 files, 2.3M checked in ")
    assert sound.endswith(" s, 9 of them against the store's MD5: all is well\n")
    files = [path for path in data_files(tmp_path) if path.stat().st_size == SLICE]
    for path in files[:2]:
        flip(path, 200_000)
    flip(files[2].with_name(files[2].name + ".sums"), 3)
    result = bffs("verify", "90", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert sorted(found["damaged_blocks"].values()) == [1, 1, 1]
    assert (found["sound"], found["md5_agree"]) == (False, 6)
    assert json.loads(said(bffs("verify", "--json")))["sound"]
    assert json.loads(said(bffs("warm", "90", "--check", "--json")))["cached_slices"] == 5
    said(bffs("warm", "90"))
    assert json.loads(said(bffs("verify", "--json")))["md5_agree"] == 9


def test_verify_compares_with_the_stores_md5(bffs: Bffs, tmp_path: Path) -> None:
    """As if other bytes had been planted with checksums that fit."""
    said(bffs("warm", "90"))
    one, other = [path for path in data_files(tmp_path) if path.stat().st_size == SLICE][:2]
    one.write_bytes(other.read_bytes())
    sums = one.with_name(one.name + ".sums")
    header = sums.read_bytes()[:32]
    sums.write_bytes(header + other.with_name(other.name + ".sums").read_bytes()[32:])
    result = bffs("verify")
    assert result.exit_code == 1
    assert "not what the store has (MD5)" in result.stdout
    assert len(data_files(tmp_path)) == 8


def test_etags_that_are_no_md5s_are_noticed(tmp_path: Path, environment: dict[str, str]) -> None:
    with S3Server({f"90/s-{n}.tif": 200_000 for n in range(4)}) as made_up:
        options = [*flags_of(made_up), f"--cache-dir={tmp_path / 'cache'}"]
        said(CliRunner().invoke(main, [*options, "warm", "90"], env=environment))
        text = said(CliRunner().invoke(main, [*options, "verify"], env=environment))
    assert text.splitlines()[1] == (
        "the ETags of this bucket are no MD5s: checked against checksums only"
    )
    assert len(data_files(tmp_path)) == 4


# -- cache ------------------------------------------------------------------------------------------------------


def test_the_table_of_the_cache(bffs: Bffs, tmp_path: Path) -> None:
    said(bffs("warm", "90", "--slices", ":6"))
    said(bffs("pin", "100"))
    for variables in ({}, {"NO_COLOR": "1"}, {"COLUMNS": "80"}):
        text = said(bffs("cache", **variables))
        assert text.splitlines()[:6] == [
            "id   split  slices  of  cached    of  share  pinned",
            "100  train       0   3       0  879K    0 %     yes",
            "90   train       6   8    1.8M  2.3M   74 %      no",
            "",
            f"folder  {tmp_path}/cache",
            "stored  1.8M of 50G, 0 of it pinned",
        ]
        assert "\x1b" not in text


def test_the_cache_as_json(bffs: Bffs, tmp_path: Path) -> None:
    empty = json.loads(said(bffs("cache", "--json")))
    assert (empty["stored"], empty["specimens"]) == (0, [])
    said(bffs("warm", "90"))
    found = json.loads(said(bffs("cache", "--json", "--cache-size", "1G")))
    assert (found["folder"], found["limit"]) == (str(tmp_path / "cache"), 1 << 30)
    assert [specimen["cached_bytes"] for specimen in found["specimens"]] == [8 * SLICE + 300]
    assert found["stored"] >= 8 * SLICE and found["elsewhere"] < 65536


def test_all_who_tell_what_is_cached_agree(server: S3Server, tmp_path: Path, bffs: Bffs) -> None:
    mounter = Mounter(flags_of(server), tmp_path)
    try:
        mount = mounter()
        paths = [mount / "train" / key for key in STACK]
        cached = [int(os.getxattr(path, "user.bffs.cached")) for path in paths]
        assert cached == [0] * 8
        said(bffs("warm", "90", "--slices", "1:3"))
        cached = [int(os.getxattr(path, "user.bffs.cached")) for path in paths]
        assert cached == [0, SLICE, SLICE, 0, 0, 0, 0, 0]
        about = json.loads(said(bffs("info", "90", "--json")))
        cached = [int(os.getxattr(path, "user.bffs.cached")) for path in paths]
        assert about["cached_bytes"] == sum(cached)  # with the header that `info` has read
        record = json.loads(said(bffs("cache", "--json")))["specimens"][0]
        assert record["cached_bytes"] == sum(cached)
        assert paths[1].read_bytes() == FILES[STACK[1]]
        said(bffs("evict", "90"))
        assert [int(os.getxattr(path, "user.bffs.cached")) for path in paths] == [0] * 8
    finally:
        mounter.close()


def test_a_cache_of_somebody_else_is_refused_in_one_line(bffs: Bffs, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "v1").symlink_to(tmp_path)
    for name in ("warm", "evict", "pin", "unpin", "verify"):
        assert said(bffs(name, "90"), 1) == (
            f"bffs: the cache can't be used: {tmp_path}/cache/v1: is not a folder of this user; "
            "choose another --cache-dir\n"
        )


def test_verify_removes_what_killed_processes_left(bffs: Bffs, tmp_path: Path) -> None:
    said(bffs("warm", "90", "--slices", ":2"))
    one, other = data_files(tmp_path)
    lone = one.with_name(one.name + ".sums")
    one.unlink()
    draft = other.with_name("draft-abc")
    draft.touch()
    fresh = other.with_name("f" * 32)
    fresh.touch()
    for path in (lone, draft):
        os.utime(path, (0, 0))
    said(bffs("verify"))
    assert not lone.exists() and not draft.exists() and fresh.exists() and other.exists()
