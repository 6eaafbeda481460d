"""docs/behaviour.md: every sentence has a test; those that no other module has are here."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Mounter, until
from tests.s3server import S3Server, pattern
from tests.test_refresh import change

TEXT = (ROOT / "docs" / "behaviour.md").read_text()
SIZE = 3_000_000
KEYS = [f"7/a-{number:04}.tif" for number in range(1, 4)]
CHANGED = "7/b-0001.tif"


def promises() -> list[tuple[str, list[str]]]:
    """Each sentence, and the tests that it names."""
    found = []
    for item in re.findall(r"^- (.*?)(?=^- |^#|\Z)", TEXT, re.MULTILINE | re.DOTALL):
        sentence, _, comment = item.partition("<!--")
        found.append((" ".join(sentence.split()), re.findall(r"[\w.]*test_\w+\.test_\w+", comment)))
    return found


@pytest.mark.parametrize(("sentence", "tests"), promises())
def test_every_promise_has_a_test(sentence: str, tests: list[str]) -> None:
    assert sentence.endswith(".") and ". " not in sentence.replace("e.g. ", ""), "one sentence each"
    assert tests
    for name in tests:
        module, _, function = name.partition(".")
        assert callable(getattr(importlib.import_module(f"tests.{module}"), function)), name


def test_nothing_is_said_without_a_test() -> None:
    below = TEXT.partition("\n## ")[2]
    lines = [line for line in below.splitlines() if line and not line.startswith(("#", "-", " "))]
    assert lines[1:] == []


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server({**dict.fromkeys(KEYS, SIZE), CHANGED: b"old!" * 500_000}) as made:
        yield made


def test_an_old_handle_may_end_where_the_new_version_does(
    server: S3Server, mounter: Mounter
) -> None:
    mountpoint = mounter()
    path = mountpoint / "train" / CHANGED
    fd = os.open(path, os.O_RDONLY)
    change(server, mountpoint, {CHANGED: b"new"})
    assert path.read_bytes() == b"new"
    assert os.pread(fd, 4, 100_000) == b""
    with pytest.raises(OSError, match="Stale"):
        os.pread(fd, 4, 0)
    os.close(fd)


def test_a_refused_read_is_permission_denied(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter()
    server.fault("status", value=403, kind="get")
    with pytest.raises(PermissionError):
        (mountpoint / "train" / KEYS[0]).read_bytes()


def test_the_cache_keeps_to_its_size(mounter: Mounter) -> None:
    mountpoint = mounter("--cache-size=5M")
    for _ in range(2):
        for key in KEYS:
            assert (mountpoint / "train" / key).read_bytes() == pattern(key, 0, SIZE)

    def stored() -> int:
        files = [path for path in (mounter.folder / "cache").rglob("*") if path.is_file()]
        kept = [path for path in files if "index" not in path.name and path.name != "catalog"]
        return sum(path.stat().st_blocks * 512 for path in kept)

    until(stored)
    time.sleep(0.5)
    assert stored() <= 5 << 20


def test_what_the_store_flips_only_verify_finds(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter()
    path = mountpoint / "train" / CHANGED
    server.fault("flip", at=1000, kind="get", key=CHANGED)
    flipped = bytearray(b"old!" * 500_000)
    flipped[1000] ^= 0xFF
    assert path.read_bytes() == flipped
    server.reset()
    until(lambda: int(os.getxattr(path, "user.bffs.cached")) == len(flipped))
    done = mounter.run("verify", *mounter.flags, f"--cache-dir={mounter.folder / 'cache'}", "7")
    assert done.returncode == 1 and Path(CHANGED).name in done.stdout + done.stderr
    assert mounter.run("umount", str(mountpoint)).returncode == 0
    assert (mounter() / "train" / CHANGED).read_bytes() == b"old!" * 500_000


_MAP = "import mmap, sys; f = open(sys.argv[1], 'rb'); mmap.mmap(f.fileno(), 0, prot=1)[-1]"


def test_a_mapped_read_that_fails_is_a_bus_error(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter("--deadline=1")
    server.fault("reset", kind="get")
    done = subprocess.run(
        [sys.executable, "-c", _MAP, str(mountpoint / "train" / KEYS[0])],
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGBUS
