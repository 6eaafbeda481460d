"""A mount in the hands of chance, beside a model of a few lines.

Hypothesis draws a bucket with hostile names, mounts it, and then reads, lists, changes objects,
refreshes, makes the store fail, loses and damages the cache, kills the driver and mounts again, in
any order. After each step the mount must have behaved as the model says:

- bytes are those of the version that was opened, never others, never fewer;
- a handle of a version that is no longer listed gives ESTALE, and nothing else does but a version
  that the store has already replaced;
- a fault of the store that passes is no error, and nothing takes longer than `BOUND`;
- names, their order, sizes and ETags are those of the last listing; other names are absent.

Not drawn, because nobody could tell: a byte that the store itself flips (S3 sends no checksum of a
range; `bffs verify` finds what an MD5 ETag can show), and one that the local disk flips after bffs
has read it back and found it good.

Each example has a mount and a cache of its own. A short run belongs to every test run; the long one
is `BFFS_MACHINE_STEPS=10000 pytest tests/test_machine.py`. Hypothesis prints how to repeat a failure.
"""

from __future__ import annotations

import errno
import faulthandler
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeVar

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.conftest import Mounter, drivers, flags_of, kill, status
from tests.s3server import S3Server

T = TypeVar("T")

STEPS = int(os.environ.get("BFFS_MACHINE_STEPS", "0"))
STEPS_AN_EXAMPLE = 100 if STEPS else 25
EXAMPLES = -(-STEPS // STEPS_AN_EXAMPLE) if STEPS else 6

LONGEST = 24 * 3600 if STEPS else 600
"""Seconds for everything."""

BOUND = 30.0
"""Seconds that any step may take on a busy machine; the faults drawn here pass within a second."""

MIB = 1 << 20
SIZES = (0, 1, 511, 4096, 131_071, 131_072, 131_073, 400_000, MIB, 3 * MIB + 1,
         8 * MIB - 1, 8 * MIB, 8 * MIB + 1)  # fmt: skip
SPECIMENS = ("7", "8", "a b", "日本", "...", "train", ".bffs", "s" * 255)
NAMES = ("a-0001.tif", "A-0001.tif", "a-0002.tif", "a-0010.tif", "7.swc", "-rf", "b\\c.tif", "x.TIFF",
         "%41&<é>.tif", "日本.tif", "é" * 127, "notes.txt", "specimens_manifest.json")  # fmt: skip
SOUND = tuple(f"{specimen}/{name}" for specimen in SPECIMENS for name in NAMES)
HOSTILE = (
    "7/", "7//a.tif", "7/../8/a-0001.tif", "../a.tif", "/etc/passwd", "7/.", "7/..", "7/d/e.tif",
    "7/new\nline.tif", "7/\x1b[31m.tif", "7/\x7f", "7/manifest.json", f"7/{'l' * 300}.tif",
    f"7/{'é' * 128}", f"{'s' * 256}/a.tif", "loose.tif", "TEST_DATA_SET/", "TEST_DATA_SET/loose",
)  # fmt: skip

keys = st.one_of(
    st.sampled_from(SOUND[: 2 * len(NAMES)]),
    st.sampled_from(SOUND),
    st.sampled_from(SOUND[: 2 * len(NAMES)]).map("TEST_DATA_SET/{}".format),
    st.sampled_from(HOSTILE),
)
sizes = st.sampled_from(SIZES) | st.integers(0, 300_000)
versions = st.integers(0, 2)
objects = st.tuples(keys, sizes, versions)


class Version(NamedTuple):
    """One version of an object, and the file that the store serves it from."""

    content: bytes
    path: Path

    def __repr__(self) -> str:
        return f"<{len(self.content)} bytes>"


class Thing(NamedTuple):
    """A file of the mount, as it was listed."""

    key: str
    version: Version


@dataclass(eq=False)
class Handle:
    """An open file."""

    path: str
    fd: int
    thing: Thing


def shown_at(key: str) -> str | None:
    """The path below the mountpoint that `key` has, if it has one: the rules of the README, again."""
    split, rest = "train", key
    if key.startswith("TEST_DATA_SET/"):
        split, rest = "test", key.removeprefix("TEST_DATA_SET/")
    match rest.split("/"):
        case [specimen, name] if _is_name(specimen) and _is_name(name) and name != "manifest.json":
            return f"{split}/{specimen}/{name}"
    return None


def _is_name(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and len(name.encode()) <= 255
        and not re.search(r"[\x00-\x1f\x7f]", name)
    )


class World:
    """The server, and a folder for everything; shared by all examples."""

    def __init__(self, folder: Path, server: S3Server) -> None:
        self.folder = folder
        self.server = server
        self.numbers = count()
        self.steps = 0
        self.pool = ThreadPoolExecutor(8)

    def within_bound(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises; TimeoutError if that takes too long."""
        return self.pool.submit(call).result(timeout=BOUND)


world: World


@pytest.fixture(scope="module", autouse=True)
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    global world  # noqa: PLW0603 - hypothesis makes the machines, and gives them no arguments
    # Making a failure as short as can be takes minutes, more than other tests may hang.
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    with S3Server({}, bucket="chance") as server:
        world = World(tmp_path_factory.mktemp("machine"), server)
        yield
        world.pool.shutdown(wait=False)
        print(f"{world.steps} steps, {next(world.numbers)} mounts")


_MAPPER = """
import hashlib, mmap, os, sys
for line in sys.stdin:
    path, start, stop = bytes.fromhex(line.split()[0]), *map(int, line.split()[1:])
    fd = os.open(path, os.O_RDONLY)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
        digest = hashlib.md5(view[start:stop]).hexdigest()
    os.close(fd)
    print(digest, flush=True)
"""

FAULTS: dict[str, dict[str, float]] = {
    "503": {"value": 503}, "500": {"value": 500}, "429": {"value": 429},
    "reset": {"at": 0}, "reset later": {"at": 70_000}, "close": {"at": 1}, "close later": {"at": 131_072},
    "stall": {"at": 5_000, "value": 0.3}, "range": {"value": 1}, "range back": {"value": -1},
    "resize": {"value": 5}, "resize less": {"value": -5}, "xml": {}, "drip": {"value": 2_000_000},
}  # fmt: skip
DAMAGES = ("lose all", "lose data", "lose sums", "cut data", "garbage in sums", "lose ledger",
           "garbage in ledger", "cut ledger")  # fmt: skip
DAMAGES_AT_REST = (*DAMAGES, "flip data", "lose listing", "garbage in listing", "cut listing")


class Machine(RuleBasedStateMachine):
    """See the module."""

    # -- life ----------------------------------------------------------------------------------------------

    @initialize(
        tree=st.lists(objects, min_size=1, max_size=12, unique_by=lambda each: each[0]),
        cache_size=st.sampled_from(("4M", "50M", "1G")),
        readahead=st.sampled_from(("auto", "off", "1M")),
    )
    def begin(self, tree: list[tuple[str, int, int]], cache_size: str, readahead: str) -> None:
        self.handles: list[Handle] = []
        self.mapper: subprocess.Popen[str] | None = None
        self.steps = 0
        self.folder = world.folder / str(next(world.numbers))
        self.folder.mkdir()
        (self.folder / "objects").mkdir()
        self.made: dict[tuple[str, int, int], Version] = {}
        self.stored: dict[str, Version] = {}
        self.mounter = Mounter(flags_of(world.server), self.folder)
        self.options = [f"--cache-size={cache_size}", f"--readahead={readahead}", "--memory=64M"]
        world.server.reset()
        self._change({key: self._version(key, size, number) for key, size, number in tree})
        self._mount()
        self.listed = dict(self.stored)
        self.is_listing_lost = False

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        world.server.reset()
        for handle in self.handles:
            with suppress(OSError):
                os.close(handle.fd)
        if self.mapper is not None:
            self.mapper.kill()
            self.mapper.communicate()
        try:
            self.mounter.close()
        finally:
            self._change(dict.fromkeys(self.stored))
            shutil.rmtree(self.folder, ignore_errors=True)

    def _mount(self) -> None:
        self.mountpoint = world.within_bound(lambda: self.mounter(*self.options))

    def _version(self, key: str, size: int, number: int) -> Version:
        """The same bytes, and so the same ETag, whenever an object becomes the same again."""
        identity = key, size, number
        if identity not in self.made:
            content = random.Random(f"{identity}").randbytes(size)
            path = self.folder / "objects" / str(len(self.made))
            path.write_bytes(content)
            self.made[identity] = Version(content, path)
        return self.made[identity]

    def _change(self, changes: dict[str, Version | None]) -> None:
        for key, version in changes.items():
            if version is None:
                self.stored.pop(key, None)
            else:
                self.stored[key] = version
        world.server.change({key: version and version.path for key, version in changes.items()})

    @property
    def files(self) -> dict[str, Thing]:
        """What the mount must show."""
        places = {shown_at(key): Thing(key, version) for key, version in self.listed.items()}
        return {path: thing for path, thing in places.items() if path is not None}

    @invariant()
    def then(self) -> None:
        """Steps since the last mount, which takes as long as twenty of them."""
        world.steps += 1
        if hasattr(self, "steps"):
            self.steps += 1

    # -- the bucket ----------------------------------------------------------------------------------------

    @rule(what=objects)
    def put(self, what: tuple[str, int, int]) -> None:
        self._change({what[0]: self._version(*what)})

    @rule(data=st.data(), size=sizes, number=versions)
    def replace(self, data: st.DataObject, size: int, number: int) -> None:
        if self.stored:
            key = data.draw(st.sampled_from(sorted(self.stored)))
            self._change({key: self._version(key, size, number)})

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        if self.stored:
            self._change({data.draw(st.sampled_from(sorted(self.stored))): None})

    @rule(how=st.sampled_from(("SIGHUP", "SIGHUP", "SIGHUP", "bffs refresh")))
    def refresh(self, how: str) -> None:
        began = status(self.mountpoint)["listing"]["listed_at"]
        if how == "SIGHUP":
            (driver,) = drivers(self.mountpoint)
            os.kill(driver, signal.SIGHUP)
        else:
            done = self.mounter.run(
                "refresh", *self.mounter.flags, f"--cache-dir={self.folder / 'cache'}"
            )
            assert done.returncode == 0, done.stderr
        end = time.monotonic() + BOUND
        while status(self.mountpoint)["listing"]["listed_at"] == began:
            assert time.monotonic() < end, "the new listing is not shown"
            time.sleep(0.01)
        self.listed = dict(self.stored)
        self.is_listing_lost = False

    # -- reading -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.files and len(self.handles) < 6)
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.files)))
        thing = self.files[path]
        fd = world.within_bound(lambda: os.open(self.mountpoint / path, os.O_RDONLY))
        self.handles.append(Handle(path, fd, thing))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        self.handles.remove(handle)
        os.close(handle.fd)

    @precondition(lambda self: self.handles)
    @rule(
        data=st.data(),
        how=st.sampled_from(("once", "once", "threads")),
        size=st.sampled_from((1, 100, 4096, 131_073, MIB, 4 * MIB)),
        faults=st.lists(st.sampled_from(sorted(FAULTS)), max_size=2),
    )
    def read(self, data: st.DataObject, how: str, size: int, faults: list[str]) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        content = handle.thing.version.content
        offset = data.draw(st.integers(0, len(content) + 1))
        self._fail(faults)
        if how == "once":
            self._check(handle, offset, size, lambda: os.pread(handle.fd, size, offset))
            return
        offsets = [max(0, offset + shift) for shift in (-300_000, 0, 1000, 2 * MIB)]
        reads = [world.pool.submit(os.pread, handle.fd, size, each) for each in offsets]
        for each, future in zip(offsets, reads, strict=True):
            self._check(handle, each, size, lambda future=future: future.result(BOUND))  # type: ignore[misc]

    @precondition(lambda self: self.files)
    @rule(data=st.data(), faults=st.lists(st.sampled_from(sorted(FAULTS)), max_size=2))
    def read_whole(self, data: st.DataObject, faults: list[str]) -> None:
        path = data.draw(st.sampled_from(sorted(self.files)))
        handle = Handle(path, -1, self.files[path])
        size = len(handle.thing.version.content)
        self._fail(faults)
        self._check(handle, 0, size + 1, (self.mountpoint / path).read_bytes)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def read_direct(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.files)))
        thing = self.files[path]
        offset = data.draw(st.integers(0, len(thing.version.content))) // 512 * 512

        def read() -> bytes:
            fd = os.open(self.mountpoint / path, os.O_RDONLY | os.O_DIRECT)
            try:
                buffer = mmap.mmap(-1, MIB)
                return buffer[: os.preadv(fd, [buffer], offset)]
            finally:
                os.close(fd)

        self._check(Handle(path, -1, thing), offset, MIB, read)

    @precondition(lambda self: self._mappable())
    @rule(data=st.data(), size=st.sampled_from((1, 5000, 300_000)))
    def read_mapped(self, data: st.DataObject, size: int) -> None:
        """In a process of its own, which a wrong EIO or ESTALE would kill."""
        path = data.draw(st.sampled_from(self._mappable()))
        content = self.files[path].version.content
        start = data.draw(st.integers(0, len(content) - 1))
        if self.mapper is None:
            self.mapper = subprocess.Popen(
                [sys.executable, "-c", _MAPPER],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        mapper = self.mapper
        assert mapper.stdin is not None and mapper.stdout is not None
        mapper.stdin.write(f"{os.fsencode(self.mountpoint / path).hex()} {start} {start + size}\n")
        mapper.stdin.flush()
        said = world.within_bound(mapper.stdout.readline)
        assert said.strip() == _md5(content[start : start + size]), (path, start, size)

    def _unchanged(self) -> list[str]:
        """Files whose version the store still has, with something to map."""
        return sorted(
            path
            for path, (key, version) in self.files.items()
            if self.stored.get(key) == version and version.content
        )

    def _mappable(self) -> list[str]:
        """Those of which no other version is open: the new one is then read past the page cache,
        which the kernel keeps by file, and mapping it is refused."""
        opened = {
            handle.path for handle in self.handles if handle.thing != self.files.get(handle.path)
        }
        return [path for path in self._unchanged() if path not in opened]

    @precondition(lambda self: self._unchanged())
    @rule(data=st.data(), seconds=st.sampled_from((0.05, 0.5)))
    def read_while_the_store_is_away(self, data: st.DataObject, seconds: float) -> None:
        path = data.draw(st.sampled_from(self._unchanged()))
        world.server.fault("reset")
        reading = world.pool.submit((self.mountpoint / path).read_bytes)
        time.sleep(seconds)
        world.server.reset()
        size = len(self.files[path].version.content)
        self._check(Handle(path, -1, self.files[path]), 0, size, lambda: reading.result(BOUND))

    def _fail(self, faults: list[str]) -> None:
        world.server.reset()
        for number, name in enumerate(faults, 1):
            do = "status" if name.isdigit() else name.split()[0]
            world.server.fault(do, kind="get", nth=number, times=1, **FAULTS[name])

    def _check(self, handle: Handle, offset: int, size: int, read: Callable[[], bytes]) -> None:
        """A read through `handle` must give its version's bytes, or ESTALE where that is due."""
        key, version = handle.thing
        is_listed = self.files.get(handle.path) == handle.thing
        is_stored = self.stored.get(key) == version
        expected = version.content[offset : offset + size]
        try:
            found = world.within_bound(read)
        except OSError as error:
            if error.errno != errno.ESTALE or (is_listed and is_stored):
                raise AssertionError(f"{key}: there is no reason for {error}") from error
            return
        if not is_listed:
            # The kernel knows one size a file: where the new version has ended, it asks no more.
            end = len(self.files[handle.path].version.content) if handle.path in self.files else 0
            assert not found and (not expected or offset + len(expected) > end), (
                f"{key}: a version that is not listed is still read"
            )
            return
        if not is_stored and found:  # the kernel gives what it has before what is stale
            expected = expected[: len(found)]
        assert len(found) == len(expected), f"{key}: {len(found)} bytes, not {len(expected)}"
        assert found == expected, f"{key}: wrong bytes"

    # -- names ---------------------------------------------------------------------------------------------

    @rule()
    def list_everything(self) -> None:
        world.within_bound(self._list_everything)

    def _list_everything(self) -> None:
        expected: dict[str, set[str]] = {"train": set(), "test": set()}
        for path, thing in self.files.items():
            split, specimen, name = path.split("/")
            expected[split].add(specimen)
            expected.setdefault(f"{split}/{specimen}", {"manifest.json"}).add(name)
            found = os.stat(self.mountpoint / path)
            assert found.st_size == len(thing.version.content), path
            assert os.getxattr(self.mountpoint / path, "user.bffs.key") == thing.key.encode()
        for folder, names in expected.items():
            listed = [path.name for path in (self.mountpoint / folder).iterdir()]
            assert listed == sorted(names), folder
            inside = (os.stat(self.mountpoint / folder / name).st_size for name in names)
            assert os.stat(self.mountpoint / folder).st_size == sum(inside), folder

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def stat_a_handle(self, data: st.DataObject) -> None:
        """It may be one of a version that is gone; what others see must not change by that."""
        handle = data.draw(st.sampled_from(self.handles))
        with suppress(OSError):
            world.within_bound(lambda: os.fstat(handle.fd))

    @rule(key=keys)
    def look_for(self, key: str) -> None:
        path = shown_at(key)
        if path is not None:
            there = world.within_bound((self.mountpoint / path).exists)
            assert there == (path in self.files), path

    # -- the driver and its cache --------------------------------------------------------------------------

    @precondition(lambda self: self.steps > 12)
    @rule(
        how=st.sampled_from(("umount", "kill")),
        damages=st.lists(st.sampled_from(DAMAGES_AT_REST), max_size=3),
        seed=st.integers(0, 9),
    )
    def mount_again(self, how: str, damages: list[str], seed: int) -> None:
        self.steps = 0
        if how == "umount":
            self._close_all()
            done = self.mounter.run("umount", str(self.mountpoint))
            assert done.returncode == 0, done.stderr
        else:
            kill(self.mountpoint)
        end = time.monotonic() + BOUND
        while drivers(self.mountpoint):
            assert time.monotonic() < end, "the driver does not end"
            time.sleep(0.01)
        self._read_what_is_dead()
        for damage in damages:
            self._damage(damage, seed)
        self._mount()
        if self.is_listing_lost:
            self.listed = dict(self.stored)
            self.is_listing_lost = False

    def _read_what_is_dead(self) -> None:
        """Handles of a driver that was killed: what the kernel still has may be read, no more."""
        for handle in self.handles:
            with suppress(OSError):
                found = os.pread(handle.fd, 100, 0)
                assert found == handle.thing.version.content[: len(found)]
        self._close_all()

    @rule(how=st.sampled_from(DAMAGES), seed=st.integers(0, 9))
    def damage_the_cache_in_use(self, how: str, seed: int) -> None:
        self._damage(how, seed)

    def _close_all(self) -> None:
        for handle in self.handles:
            with suppress(OSError):  # not connected any more
                os.close(handle.fd)
        self.handles.clear()

    def _damage(self, how: str, seed: int) -> None:
        """Do something to the files of the cache; which ones, `seed` decides."""
        cache, chance = self.folder / "cache", random.Random(seed)
        sums = sorted(cache.glob("v1/*/??/*.sums"))
        data = [path.with_suffix("") for path in sums if path.with_suffix("").exists()]
        ledger = sorted(cache.glob("v1/index.*"))
        listings = sorted(cache.glob("v1/*/catalog"))
        match how:
            case "lose all":
                shutil.rmtree(cache / "v1", ignore_errors=True)
                self.is_listing_lost = True
            case "lose data" if data:
                chance.choice(data).unlink()
            case "lose sums" if sums:
                chance.choice(sums).unlink()
            case "cut data" if data:
                path = chance.choice(data)
                os.truncate(path, chance.randrange(path.stat().st_size + 1))
            case "flip data" if data:
                path = chance.choice(data)
                _flip(path, chance.randrange(max(1, path.stat().st_size)))
            case "garbage in sums" if sums:
                path = chance.choice(sums)
                with path.open("r+b") as file:
                    file.seek(chance.randrange(path.stat().st_size))
                    file.write(chance.randbytes(8))
            case "lose ledger":
                for path in ledger:
                    path.unlink()
            case "garbage in ledger" if ledger:
                chance.choice(ledger).write_bytes(b"garbage" * 1000)
            case "cut ledger" if ledger:
                path = chance.choice(ledger)
                os.truncate(path, chance.randrange(path.stat().st_size + 1))
            case "lose listing":
                for path in listings:
                    path.unlink()
                self.is_listing_lost = True
            case "cut listing" | "garbage in listing":
                for path in listings:
                    content = path.read_bytes()
                    cut = content[: chance.randrange(len(content))]
                    path.write_bytes(cut if how == "cut listing" else cut + b"garbage")
                self.is_listing_lost = True


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        if byte:
            file.seek(at)
            file.write(bytes([byte[0] ^ 0xFF]))


def _md5(content: bytes) -> str:
    import hashlib

    return hashlib.md5(content).hexdigest()


Machine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS_AN_EXAMPLE,
    derandomize=not STEPS,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    verbosity=hypothesis.Verbosity.normal,
)

TestMachine = pytest.mark.timeout(LONGEST)(Machine.TestCase)
