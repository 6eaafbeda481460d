"""Files that the kernel reads and writes by itself: in real mounts, where kernel, libfuse and rights allow it."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bffs import passthrough
from bffs.cachefile import remove_cached
from bffs.expectation import Expectation
from bffs.mountpoint import mount_at
from tests.conftest import Mounter, drivers, flags_of, flip, status, until
from tests.s3server import S3Server

CYCLES = int(os.environ.get("BFFS_CYCLES", "500"))
STEPS = int(os.environ.get("BFFS_MACHINE_STEPS", "500"))

SIZE = 3 * (1 << 20) + 12345
SLICES = 12
SPECIMEN = "651806289"
NAMES = [f"reconstruction_0_{n:04}.tif" for n in range(1, SLICES + 1)]
DATA = [os.urandom(SIZE) for _ in NAMES]
SWC = b"1 1 0 0 0 1 -1\n" * 1000


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    objects = {f"{SPECIMEN}/{name}": data for name, data in zip(NAMES, DATA, strict=True)}
    with S3Server({**objects, f"{SPECIMEN}/{SPECIMEN}.swc": SWC}) as running:
        yield running


@pytest.fixture
def mounted(server: S3Server, tmp_path: Path) -> Iterator[Mounter]:
    """Mounts of a machine that can do it; on the bare one of `scripts/fresh` it must."""
    why = passthrough.why_not()
    if why is not None:
        (pytest.fail if os.environ.get("BFFS_FRESH") else pytest.skip)(f"no passthrough: {why}")
    mounter = Mounter(flags_of(server), tmp_path)
    yield mounter
    mounter.close()


def _figures(mountpoint: Path) -> Any:
    return status(mountpoint)["passthrough"]


def _read_by_driver(mountpoint: Path) -> int:
    """Bytes that the driver has handed to readers."""
    figures = status(mountpoint)
    return int(figures["from_memory"] + figures["from_disk"])


def _is_open(mountpoint: Path) -> bool:
    """Whether the driver has handles that pass through: the kernel tells of a close when it likes."""
    return bool(_figures(mountpoint)["files"])


def _passes(mountpoint: Path, path: Path) -> bool:
    """Whether the file, now opened, passes through; no other does."""
    with path.open("rb"):
        return bool(_figures(mountpoint)["files"])


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def refresh(mountpoint: Path) -> None:
    """Make a mount list the bucket anew, and wait until it has."""
    listed = status(mountpoint)["listing"]["listed_at"]
    [driver] = drivers(mountpoint)
    os.kill(driver, signal.SIGHUP)
    until(lambda: status(mountpoint)["listing"]["listed_at"] > listed)


def _slices(mountpoint: Path) -> list[Path]:
    return [mountpoint / "train" / SPECIMEN / name for name in NAMES]


@pytest.fixture
def warm(mounted: Mounter) -> Path:
    """A mount whose slices are cached whole, just mounted."""
    _fill(mounted)
    return mounted()


def _fill(mounted: Mounter) -> None:
    done = mounted.run("warm", *mounted.flags, f"--cache-dir={mounted.folder / 'cache'}", SPECIMEN)
    assert done.returncode == 0, done.stderr


def test_cached_slices_are_read_without_the_driver(warm: Path) -> None:
    for path, data in zip(_slices(warm), DATA, strict=True):
        assert path.read_bytes() == data
    assert (warm / "train" / SPECIMEN / f"{SPECIMEN}.swc").read_bytes() == SWC
    figures = _figures(warm)
    assert figures == {"on": True, "why_not": None, "opened": SLICES + 1, "files": 0}
    assert _read_by_driver(warm) == 0


def test_can_be_switched_off(mounted: Mounter) -> None:
    mountpoint = mounted("--no-passthrough")
    _slices(mountpoint)[0].read_bytes()
    assert _figures(mountpoint) == {"on": False, "why_not": "it was not wished for"}


def test_a_slice_that_becomes_whole_while_open_passes_through_from_the_next_open_on(
    mounted: Mounter,
) -> None:
    mountpoint = mounted()
    path = _slices(mountpoint)[0]
    with path.open("rb") as first:
        assert first.read() == DATA[0]
        until(lambda: int(os.getxattr(path, "user.bffs.cached")) == SIZE)
        with path.open("rb") as second:
            assert second.read() == DATA[0]
        assert _figures(mountpoint)["opened"] == 0
    until(lambda: _passes(mountpoint, path))
    before, opened = _read_by_driver(mountpoint), _figures(mountpoint)["opened"]
    with path.open("rb") as third, path.open("rb") as fourth:
        assert third.read() == fourth.read() == DATA[0]
        assert _figures(mountpoint)["files"] == 1
    assert _figures(mountpoint)["opened"] == opened + 2
    assert _read_by_driver(mountpoint) == before


def test_offline_too(mounted: Mounter) -> None:
    _fill(mounted)
    mountpoint = mounted("--offline", "--read-only")
    for path, data in zip(_slices(mountpoint), DATA, strict=True):
        assert path.read_bytes() == data
    assert _figures(mountpoint)["opened"] == SLICES


def test_a_damaged_block_does_not_pass_through(mounted: Mounter, warm: Path) -> None:
    for file in (mounted.folder / "cache").glob("v1/*/??/*"):
        if file.stat().st_size == SIZE:
            flip(file, SIZE // 2)
    path = _slices(warm)[0]
    with path.open("rb") as opened:
        assert opened.read() == DATA[0]
        assert _figures(warm)["opened"] == 0
    for path, data in zip(_slices(warm), DATA, strict=True):
        assert path.read_bytes() == data
    assert status(warm)["damaged"] == SLICES


def test_eviction_leaves_open_files_readable(mounted: Mounter, warm: Path) -> None:
    path = _slices(warm)[0]
    with path.open("rb") as opened:
        assert opened.read(10) == DATA[0][:10]
        with mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            cache = f"--cache-dir={mounted.folder / 'cache'}"
            assert mounted.run("evict", *mounted.flags, cache, SPECIMEN).returncode == 0
            drop_page_cache()
            assert mapped[:] == DATA[0]
        assert opened.read() == DATA[0][10:]
        with path.open("rb") as another:
            assert another.read() == DATA[0]
        assert _figures(warm)["opened"] == 2
    until(lambda: not _is_open(warm))
    before = status(warm)["fetched"]
    assert path.read_bytes() == DATA[0]
    assert status(warm)["fetched"] >= before + SIZE


def test_a_replaced_slice_is_never_mixed(
    server: S3Server, warm: Path, request: pytest.FixtureRequest
) -> None:
    path, key, other = _slices(warm)[0], f"{SPECIMEN}/{NAMES[0]}", os.urandom(SIZE)
    request.addfinalizer(lambda: server.change({key: DATA[0]}))
    old = os.open(path, os.O_RDONLY)
    with mmap.mmap(old, 0, prot=mmap.PROT_READ) as mapped:
        assert os.pread(old, 10, 0) == DATA[0][:10]
        server.change({key: other})
        refresh(warm)
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(old, 10, 0)
        with path.open("rb") as anew:
            assert anew.read() == other
            drop_page_cache()
            assert mapped[:] == DATA[0]
        until(lambda: int(os.getxattr(path, "user.bffs.cached")) == SIZE)
        until(lambda: _passes(warm, path))
        with path.open("rb") as again:
            assert again.read() == other
    with pytest.raises(OSError, match="Input/output error"):
        os.close(old)
    until(lambda: not _is_open(warm))
    assert path.read_bytes() == other


def test_a_removed_slice_is_gone(
    server: S3Server, warm: Path, request: pytest.FixtureRequest
) -> None:
    path, key = _slices(warm)[0], f"{SPECIMEN}/{NAMES[0]}"
    request.addfinalizer(lambda: server.change({key: DATA[0]}))
    old = os.open(path, os.O_RDONLY)
    server.change({key: None})
    refresh(warm)
    with pytest.raises(OSError, match="Input/output error"):
        os.pread(old, 10, 0)
    assert not path.exists()
    with pytest.raises(OSError, match="Input/output error"):
        os.close(old)


def test_killed_with_files_open(mounted: Mounter, warm: Path) -> None:
    path = _slices(warm)[0]
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        mounted.crash(warm)
        drop_page_cache()
        assert mapped[:] == DATA[0]  # the kernel needs no driver for it
    with suppress(OSError):  # nobody is there to be told
        os.close(fd)
    assert path.read_bytes() == DATA[0]
    assert _figures(warm)["opened"] == 1


def test_unmounted_with_files_open(mounted: Mounter, warm: Path) -> None:
    path = _slices(warm)[0]
    fd = os.open(path, os.O_RDONLY)
    [driver] = drivers(warm)
    os.kill(driver, signal.SIGTERM)
    until(lambda: not drivers(warm))
    drop_page_cache()
    with suppress(OSError):
        data = os.pread(fd, SIZE, 0)
        assert data == DATA[0]
    with suppress(OSError):
        os.close(fd)
    mounted.run("umount", str(warm))
    assert mount_at(warm) is None


def test_nothing_grows_with_opening_and_closing(warm: Path) -> None:
    path = _slices(warm)[0]
    path.read_bytes()
    before = status(warm)["descriptors"]
    for _ in range(CYCLES):
        os.close(os.open(path, os.O_RDONLY))
    until(lambda: not _is_open(warm))
    figures = status(warm)
    assert figures["passthrough"] == {"on": True, "why_not": None, "opened": CYCLES + 1, "files": 0}
    assert figures["descriptors"] <= before + 2


def test_four_readers(warm: Path) -> None:
    def read(number: int) -> None:
        for path, data in zip(_slices(warm)[number % 2 :], DATA[number % 2 :], strict=True):
            assert path.read_bytes() == data

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(8)))
    assert _read_by_driver(warm) == 0


def test_who_only_looks_at_slices_makes_few_be_checked() -> None:
    expectation = Expectation()
    assert not expectation.is_asked
    checked = 0
    for _ in range(500):
        if expectation.is_worth_checking():
            checked += 1
            expectation.note(100_000_000, 0.001)
    assert checked < 12
    while not expectation.is_worth_checking():
        pass
    expectation.note(100_000_000, 0.02)
    assert all(expectation.is_worth_checking() for _ in range(10))


def test_what_is_saved_passes_through(warm: Path) -> None:
    path = warm / "train" / SPECIMEN / "result.bin"
    data = os.urandom(SIZE)
    with path.open("w+b") as opened:
        opened.write(data)
        opened.flush()
        assert os.fstat(opened.fileno()).st_size == SIZE
        assert path.read_bytes() == data
        with mmap.mmap(opened.fileno(), 0) as mapped:
            mapped[100:200] = bytes(100)
        opened.seek(0)
        assert opened.read(300) == data[:100] + bytes(100) + data[200:300]
        os.ftruncate(opened.fileno(), 1000)
        assert path.stat().st_size == 1000
    with path.open("ab") as opened:
        opened.write(b"more")
    assert path.stat().st_size == 1004
    assert path.read_bytes()[1000:] == b"more"
    figures = _figures(warm)
    assert figures["opened"] == 4


def test_the_time_of_a_mapped_write_shows(warm: Path) -> None:
    path = warm / "train" / SPECIMEN / "mapped.bin"
    path.write_bytes(bytes(10_000))
    os.utime(path, (1, 1))
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        assert path.stat().st_mtime == 1
        mapped[:10] = b"x" * 10
    until(lambda: path.stat().st_mtime > 1)


# -- in the hands of chance ----------------------------------------------------------------------------------------


class Remote:
    """A `Holder` in another process."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("holder.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *request: object) -> Any:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return json.loads(self._child.stdout.readline())

    def close(self) -> None:
        self._child.communicate()


spans = st.tuples(st.integers(0, SIZE), st.sampled_from([1, 4096, 70_000, 1 << 20]))


class Machine(RuleBasedStateMachine):
    """Two processes with handles and maps of a few slices, which are evicted and fetched meanwhile."""

    mountpoint: Path
    cache: Path
    fill: Callable[[], object]

    def __init__(self) -> None:
        super().__init__()
        self.fill()
        self.holders = [Remote(), Remote()]
        self.numbers = itertools.count()
        self.files: dict[int, tuple[Remote, int, bool]] = {}
        self.maps: dict[int, tuple[Remote, int]] = {}

    def teardown(self) -> None:
        for holder in self.holders:
            holder.close()

    @rule(who=st.integers(0, 1), index=st.integers(0, 2), direct=st.integers(0, 9))
    def open(self, who: int, index: int, direct: int) -> None:
        number, flags = next(self.numbers), os.O_RDONLY | (0 if direct else os.O_DIRECT)
        path = str(_slices(self.mountpoint)[index])
        assert self.holders[who]("open", number, path, flags) is None
        self.files[number] = self.holders[who], index, not direct

    @precondition(lambda self: self.files)
    @rule(data=st.data(), span=spans)
    def read(self, data: st.DataObject, span: tuple[int, int]) -> None:
        number = data.draw(st.sampled_from(sorted(self.files)))
        holder, index, direct = self.files[number]
        start, size = span
        if direct:
            start, size = start - start % 4096, -(-size // 4096) * 4096
        assert holder("read", number, start, size) == DATA[index][start : start + size].hex()

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.files)))
        assert self.files.pop(number)[0]("close", number) is None

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def map(self, data: st.DataObject) -> None:
        number, name = data.draw(st.sampled_from(sorted(self.files))), next(self.numbers)
        holder, index, _ = self.files[number]
        assert holder("map", number, name) is None
        self.maps[name] = holder, index

    @precondition(lambda self: self.maps)
    @rule(data=st.data(), span=spans)
    def look(self, data: st.DataObject, span: tuple[int, int]) -> None:
        name = data.draw(st.sampled_from(sorted(self.maps)))
        holder, index = self.maps[name]
        start, size = span
        assert holder("look", name, start, size) == DATA[index][start : start + size].hex()

    @precondition(lambda self: self.maps)
    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.maps)))
        assert self.maps.pop(name)[0]("unmap", name) is None

    @rule(which=st.integers(0, SLICES - 1))
    def evict(self, which: int) -> None:
        """As another process does it, as long as there is something left to pass through."""
        files = [f for f in self.cache.glob("v1/*/??/*") if f.stat().st_size == SIZE]
        if len(files) > SLICES // 2:
            remove_cached(files[which % len(files)])

    @rule(index=st.integers(0, 2))
    def read_whole(self, index: int) -> None:
        assert _slices(self.mountpoint)[index].read_bytes() == DATA[index]


def test_any_order_of_handles(mounted: Mounter, warm: Path) -> None:
    class OnThisMount(Machine):
        mountpoint = warm
        cache = mounted.folder / "cache"
        fill = staticmethod(lambda: _fill(mounted))

    run_state_machine_as_test(
        OnThisMount,
        settings=settings(
            max_examples=-(-STEPS // 100),
            stateful_step_count=100,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert status(warm)["errors"] == {}
    figures = _figures(warm)
    assert figures["on"] and figures["opened"] > 0, figures
