"""Long proofs of the cache with real mounts and real processes: kills, flipped bits, bad disks, limits, neighbours.

The suite runs a short form of each. The full one takes half an hour and prints its figures::

    LONG=1 scripts/test tests/test_cache_proofs.py -s -o faulthandler_timeout=3600
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from bffs.cache import BLOCK
from bffs.units import KIB, MIB
from tests.conftest import DRIVER_WAIT, Mounter, drivers, flags_of
from tests.s3server import S3Server, pattern

LONG = bool(os.environ.get("LONG"))
ROOT = os.geteuid() == 0

pytestmark = pytest.mark.timeout(3600 if LONG else 120)


def stack(slices: int, size: int) -> dict[str, int]:
    """Keys and sizes of a stack of made-up content."""
    return {f"90/s-{number:04}.tif": size for number in range(1, slices + 1)}


def content(key: str, start: int, stop: int) -> bytes:
    return pattern(key, start, stop)


def is_right(mountpoint: Path, key: str, size: int) -> bool:
    return (mountpoint / "train" / key).read_bytes() == content(key, 0, size)


def ended(mountpoint: Path, mounter: Mounter) -> None:
    """Unmount, and wait until the driver is gone."""
    assert mounter.run("umount", str(mountpoint)).returncode == 0
    end = time.monotonic() + DRIVER_WAIT
    while drivers(mountpoint) and time.monotonic() < end:
        time.sleep(0.02)


class Readers:
    """Threads that read at random, and what went wrong."""

    def __init__(
        self, mountpoints: list[Path], objects: dict[str, int], threads: int, most: int = MIB
    ) -> None:
        self.objects = objects
        self.wrong: list[str] = []
        self.short: list[str] = []
        self.failed: list[str] = []
        self.read = [0] * threads
        self.most = most
        self.stop = threading.Event()
        self.threads = [
            threading.Thread(target=self._read, args=(mountpoints[n % len(mountpoints)], n))
            for n in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _read(self, mountpoint: Path, number: int) -> None:
        dice = random.Random(number * 7919 + time.monotonic_ns())
        try:
            while not self.stop.is_set():
                key, size = dice.choice(list(self.objects.items()))
                with (mountpoint / "train" / key).open("rb", buffering=0) as file:
                    for _ in range(dice.randrange(1, 8)):
                        start = dice.randrange(size)
                        length = min(dice.randrange(1, self.most), size - start)
                        found = os.pread(file.fileno(), length, start)
                        if found != content(key, start, start + len(found)):
                            self.wrong.append(f"{key} from {start}, {length} bytes")
                        if len(found) < length:  # the driver was killed in the middle
                            self.short.append(f"{key} from {start}: {len(found)} of {length}")
                        self.read[number] += len(found)
        except OSError as error:
            self.failed.append(str(error))


# -- the cache, as its files tell -------------------------------------------------------------------------------


def cached_files(cache: Path) -> list[Path]:
    return sorted(p for p in cache.glob("v1/*/??/*") if p.suffix != ".sums")


def present(cache: Path, objects: dict[str, int], server: S3Server) -> dict[str, set[int]]:
    """Which blocks of which keys are there."""
    names = names_of(cache, objects, server)
    found: dict[str, set[int]] = {}
    for path in cached_files(cache):
        with suppress(FileNotFoundError):
            sums = path.with_name(path.name + ".sums").read_bytes()[32:]
            found[names[path.name]] = {
                n for n in range(len(sums) // 8) if sums[8 * n : 8 * n + 8] != bytes(8)
            }
    return found


def names_of(cache: Path, objects: dict[str, int], server: S3Server) -> dict[str, str]:
    """The key behind each name of a cached file."""
    import xxhash

    from tests.s3server import made_up

    return {
        xxhash.xxh3_128_hexdigest(f"{key}\n{made_up(key, size).etag}".encode()): key
        for key, size in objects.items()
    }


def fetched(server: S3Server) -> list[tuple[str, int]]:
    """Every block that was asked for, as often as it was."""
    return [
        (get.key, block)
        for get in server.log()
        for block in range(get.start // BLOCK, -(-get.stop // BLOCK))
    ]


def assert_accounted(cache: Path) -> None:
    """Everything on the disk is in the ledger, for at least what it takes; nothing is left over."""
    with closing(sqlite3.connect(cache / "v1" / "index.sqlite3")) as connection:
        rows = dict(connection.execute("SELECT path, bytes FROM files"))
        (total,) = connection.execute("SELECT bytes FROM total").fetchone()
    assert total == sum(rows.values())
    for path in cached_files(cache):
        name = str(path.relative_to(cache / "v1"))
        taken = path.stat().st_blocks * 512
        assert taken <= rows[name] + 16 * KIB, (name, taken, rows[name])  # ext4's own blocks
    assert not list(cache.glob("v1/*/??/draft-*"))
    datas = {path.name for path in cached_files(cache)}
    assert {p.stem for p in cache.glob("v1/*/??/*.sums")} <= datas


# -- kill -9 ----------------------------------------------------------------------------------------------------


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """Four readers fill the cache while the driver is killed: never a wrong byte, nothing is fetched again."""
    kills = 200 if LONG else 4
    objects = stack(24, 6 * MIB + 77)
    dice = random.Random(4)
    again = filled = 0
    with S3Server(objects) as server:
        server.shape(latency=0.005, total=60e6)
        mounter = Mounter(flags_of(server), tmp_path)
        mountpoint, cache = tmp_path / "mnt", tmp_path / "cache"
        try:
            for number in range(kills):
                before = present(cache, objects, server)
                blocks = sum(map(len, before.values()))
                if blocks > 800:  # most of it is here: begin anew
                    filled += blocks
                    shutil.rmtree(cache / "v1")
                    before = {}
                server.reset()
                server.shape(latency=0.005, total=60e6)
                driver = mounter.start(mountpoint, "-f")
                while not (mountpoint / "train").is_dir():
                    time.sleep(0.01)
                readers = Readers([mountpoint], objects, 4)
                while number % 10 and not any(readers.read):  # at times before anything is read
                    assert driver.poll() is None and not readers.failed
                    time.sleep(0.01)
                time.sleep(dice.uniform(0.0, 1.0))
                assert driver.poll() is None
                driver.send_signal(signal.SIGKILL)
                readers.join()
                driver.communicate()
                assert readers.wrong == []
                assert mounter.run("umount", str(mountpoint)).returncode == 0
                twice = [pair for pair in fetched(server) if pair[1] in before.get(pair[0], ())]
                again += len(twice)
                assert twice == [], number
            last = present(cache, objects, server)
            server.reset()
            mountpoint = mounter()
            assert all(is_right(mountpoint, key, size) for key, size in objects.items())
            assert [pair for pair in fetched(server) if pair[1] in last.get(pair[0], ())] == []
            ended(mountpoint, mounter)
            assert_accounted(cache)
            print(
                f"\n{kills} kills, {filled + sum(map(len, last.values()))} blocks cached, {again} again"
            )
        finally:
            mounter.close()


# -- damage -----------------------------------------------------------------------------------------------------


def flip(path: Path, dice: random.Random) -> int:
    """Flip one bit; at which byte."""
    at = dice.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << dice.randrange(8)]))
    return at


def test_flipped_bits_and_cut_files(tmp_path: Path) -> None:
    """Bits of data, checksums and ledger are flipped and files cut: each flip in data is noticed."""
    rounds, each = (50, 20) if LONG else (2, 15)
    objects = stack(6, 5 * MIB + 1001)
    dice = random.Random(5)
    done = {"data": 0, "sums": 0, "ledger": 0, "cut": 0}
    with S3Server(objects) as server:
        names = names_of(tmp_path, objects, server)
        mounter = Mounter(flags_of(server), tmp_path)
        cache = tmp_path / "cache"
        warm = ("warm", *mounter.flags, f"--cache-dir={cache}", "90")
        try:
            for _ in range(rounds):
                assert mounter.run(*warm).returncode == 0
                assert_accounted(cache)
                flipped: set[tuple[str, int]] = set()
                for _ in range(each):
                    path = dice.choice(cached_files(cache))
                    what = dice.choices(["data", "sums", "ledger", "cut"], [14, 4, 1, 1])[0]
                    done[what] += 1
                    match what:
                        case "data":
                            pair = names[path.name], flip(path, dice) // BLOCK
                            flipped ^= {pair} if pair not in flipped else set()
                        case "sums":
                            flip(path.with_name(path.name + ".sums"), dice)
                        case "ledger":
                            flip(cache / "v1" / "index.sqlite3", dice)
                        case "cut":
                            victim = dice.choice([path, path.with_name(path.name + ".sums")])
                            os.truncate(victim, dice.randrange(1, victim.stat().st_size))
                server.reset()
                mountpoint = mounter()
                assert all(is_right(mountpoint, key, size) for key, size in objects.items())
                assert flipped <= set(fetched(server))
                ended(mountpoint, mounter)
            print(f"\ndamaged: {done}")
        finally:
            mounter.close()


# -- bad disks --------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that mounts a disk at `<tmp_path>/cache`."""
    path = tmp_path / "cache"

    def mount(*command: str) -> Path:
        path.mkdir(mode=0o700)
        if not ROOT or subprocess.run([*command, path], check=False).returncode:
            pytest.skip("no disk can be mounted here")
        path.chmod(0o700)
        return path

    yield mount
    subprocess.run(["umount", "-l", path], check=False, capture_output=True)


def read_in_bad_weather(
    tmp_path: Path, spoil: Callable[[Path], object], *, cached_first: bool = True
) -> str:
    """Read some, spoil the disk, and read everything, twice; the driver's log."""
    objects = stack(8, 4 * MIB + 5)
    log = tmp_path / "log"
    with S3Server(objects) as server:
        mounter = Mounter(flags_of(server), tmp_path)
        try:
            mountpoint = mounter("--log-file", str(log))
            keys = list(objects)
            assert all(is_right(mountpoint, key, objects[key]) for key in keys[:3])
            time.sleep(1.0)  # what is read is being written
            spoil(tmp_path / "cache")
            forget(mountpoint)
            for _ in range(2):
                assert all(is_right(mountpoint, key, size) for key, size in objects.items())
                forget(mountpoint)
        finally:
            mounter.close()
    return log.read_text()


def forget(mountpoint: Path) -> None:
    """Have the kernel forget the pages of all files that are mounted."""
    for path in (mountpoint / "train/90").iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def warnings(log: str) -> list[str]:
    return [line for line in log.splitlines() if " WARNING " in line or " ERROR " in line]


def test_a_disk_that_runs_full(tmp_path: Path, disk: Callable[..., Path]) -> None:
    disk("mount", "-t", "tmpfs", "-o", "size=40m,mode=700", "tmpfs")

    def fill(cache: Path) -> None:
        with suppress(OSError), (cache / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    log = warnings(read_in_bad_weather(tmp_path, fill))
    assert len(log) <= 1, log  # the floor is below zero: nothing is written, or the ledger can't be


def test_a_disk_that_becomes_read_only(tmp_path: Path, disk: Callable[..., Path]) -> None:
    """As ext4 does it after an error, with files open for writing."""
    disk("mount", "-o", "loop", str(ext4(tmp_path / "image")))

    def abort(cache: Path) -> None:
        subprocess.run(["mount", "-o", "remount,abort", cache], check=True)

    log = warnings(read_in_bad_weather(tmp_path, abort))
    assert len(log) == 1 and "nothing is cached on disk for 30 s" in log[0]


def ext4(image: Path) -> Path:
    """An empty file system."""
    with image.open("wb") as file:
        file.truncate(128 * MIB)
    command = ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(image)]
    if not shutil.which("mkfs.ext4") or subprocess.run(command, check=False).returncode:
        pytest.skip("there is no mkfs.ext4")
    return image


def test_a_cache_that_vanishes(tmp_path: Path) -> None:
    log = warnings(read_in_bad_weather(tmp_path, shutil.rmtree))
    assert len(log) == 1 and "nothing is cached on disk for 30 s" in log[0]


def test_a_disk_that_breaks(tmp_path: Path, disk: Callable[..., Path]) -> None:
    """The file under a loop device is cut: the disk answers what is beyond with EIO."""
    image = ext4(tmp_path / "image")
    disk("mount", "-o", "loop,errors=continue", str(image))

    def break_it(cache: Path) -> None:
        os.sync()
        os.truncate(image, 8 * MIB)
        Path("/proc/sys/vm/drop_caches").write_text("3")

    log = read_in_bad_weather(tmp_path, break_it)
    noticed = ("is fetched again", "nothing is cached on disk", "is made anew")
    assert any(words in log for words in noticed) and len(warnings(log)) <= 20, log
    print("\n" + "\n".join(line[:150] for line in warnings(log)[:5]))


# -- limits and neighbours --------------------------------------------------------------------------------------


def occupied(pids: list[int], cache: Path) -> int:
    """Bytes that the cached files take on the disk, with evicted ones that processes still hold open."""
    found: dict[int, int] = {}
    for path in cache.glob("v1/*/??/*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            found[stat.st_ino] = stat.st_blocks * 512
    for pid in pids:
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(fd).startswith(f"{cache}/v1/"):
                    stat = os.stat(fd)
                    if not stat.st_nlink:
                        found[stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())


def test_the_limit_while_much_more_is_read(tmp_path: Path) -> None:
    """Four readers read many times what the cache may hold: it never holds much more, and all go on."""
    limit, size, slices = (256 * MIB, 22_300_000, 193) if LONG else (64 * MIB, 7_000_000, 40)
    objects = stack(slices, size)
    most, sampled = 0, 0
    with S3Server(objects) as server:
        mounter = Mounter(flags_of(server), tmp_path)
        try:
            mountpoint = mounter(f"--cache-size={limit}")
            turns = [list(objects)[n::4] for n in range(4)]
            done = [0] * 4
            halfway = [0.0] * 4
            begun = time.monotonic()

            def read(number: int) -> None:
                for key in turns[number]:
                    assert is_right(mountpoint, key, size)
                    done[number] += 1
                halfway[number] = time.monotonic() - begun

            readers = [threading.Thread(target=read, args=(n,)) for n in range(4)]
            for reader in readers:
                reader.start()
            pids = drivers(mountpoint)
            while any(reader.is_alive() for reader in readers):
                most = max(most, occupied(pids, tmp_path / "cache"))
                sampled += 1
                time.sleep(0.02)
            for reader in readers:
                reader.join()
            assert done == [len(turn) for turn in turns]
            assert most <= limit + 32 * MIB
            assert max(halfway) < 3 * min(halfway)
            ended(mountpoint, mounter)
            assert occupied([], tmp_path / "cache") <= limit + MIB
            print(
                f"\n{size * slices >> 20} MiB read under {limit >> 20} MiB: at most {most >> 20} MiB "
                f"({sampled} samples), readers took {[round(s, 1) for s in halfway]} s"
            )
        finally:
            mounter.close()


def test_two_mounts_and_a_warming_on_one_cache(tmp_path: Path) -> None:
    """Random reads through two mounts while everything is warmed: each block is fetched about once."""
    seconds, slices, size = (60, 120, 22_300_000) if LONG else (3, 80, 5_000_000)
    objects = stack(slices, size)
    with S3Server(objects) as server:
        server.shape(latency=0.03, per_connection=50e6, total=45e6)
        mounter = Mounter(flags_of(server), tmp_path)
        try:
            mounts = [mounter(), mounter()]
            readers = Readers(mounts, objects, 4, most=256 * KIB)
            begun = time.monotonic()
            warming = subprocess.Popen(
                [sys.executable, "-m", "bffs", "warm", *mounter.flags,
                 f"--cache-dir={tmp_path / 'cache'}", "90"],
                env=mounter.environment(),
                stdout=subprocess.PIPE,
                text=True,
            )  # fmt: skip
            time.sleep(seconds)
            code = warming.poll()
            warmed = time.monotonic() - begun
            readers.join()
            out, _ = warming.communicate(timeout=600)
            assert warming.returncode == 0 and "100 %" in out
            assert readers.wrong + readers.short + readers.failed == []
            blocks = fetched(server)
            ratio = len(blocks) / len(set(blocks))
            assert len(set(blocks)) == sum(-(-size // BLOCK) for size in objects.values())
            print(
                f"\n{sum(readers.read) >> 20} MiB read in {seconds} s, warming "
                f"{'done within' if code is not None else 'went on after'} {warmed:.0f} s; "
                f"each block was fetched {ratio:.4f} times"
            )
            assert ratio <= 1.05
            server.reset()
            assert all(is_right(mounts[0], key, size) for key, size in objects.items())
            assert server.stats()["requests"] == {}
        finally:
            mounter.close()


def test_warm_reads_after_a_restart_ask_nothing(tmp_path: Path) -> None:
    objects = stack(8, 5 * MIB + 9)
    with S3Server(objects) as server:
        mounter = Mounter(flags_of(server), tmp_path)
        try:
            mountpoint = mounter()
            assert all(is_right(mountpoint, key, size) for key, size in objects.items())
            ended(mountpoint, mounter)
            server.reset()
            mountpoint = mounter()
            assert all(is_right(mountpoint, key, size) for key, size in objects.items())
            readers = Readers([mountpoint], objects, 4)
            time.sleep(1.0)
            readers.join()
            assert readers.wrong + readers.short + readers.failed == []
            assert server.stats()["requests"] == {}
        finally:
            mounter.close()


UNCHECKED = """
import sys
from bffs.cachefile import CachedObject
CachedObject._verify = lambda self, block, offset, data: True
from bffs.__main__ import main
main()
"""


@pytest.mark.skipif(not LONG, reason="a measurement; LONG=1 takes it")
def test_what_verification_costs(tmp_path: Path) -> None:
    """First reads of cached slices through a new mount, with and without the checksums, in turn.

    What is taken is the CPU time of driver and reader, which other programs change less than the time on the clock.
    """
    objects = stack(40, 22_300_000)
    taken: dict[bool, list[float]] = {True: [], False: []}
    with S3Server(objects) as server:
        mounter = Mounter(flags_of(server), tmp_path)
        cache = f"--cache-dir={tmp_path / 'cache'}"
        try:
            assert mounter.run("warm", *mounter.flags, cache, "90").returncode == 0
            for turn, checked in itertools.product(range(8), (True, False)):
                mountpoint = tmp_path / f"m{turn}{checked}"
                mountpoint.mkdir()
                start = ["-m", "bffs"] if checked else ["-c", UNCHECKED]
                driver = subprocess.Popen(
                    [sys.executable, *start, "mount", "-f", *mounter.flags, cache, str(mountpoint)],
                    env=mounter.environment(),
                )
                while not (mountpoint / "train").is_dir():
                    time.sleep(0.05)
                time.sleep(1.0)  # until it has connected, which takes CPU time, too
                begun = cpu_seconds(driver.pid) + time.thread_time()
                for key in objects:
                    with (mountpoint / "train" / key).open("rb", buffering=0) as file:
                        while file.read(MIB):
                            pass
                taken[checked].append(cpu_seconds(driver.pid) + time.thread_time() - begun)
                driver.terminate()
                assert driver.wait(20) == 0
        finally:
            mounter.close()
    size = sum(objects.values()) / 1e9
    best = {checked: min(each) / size for checked, each in taken.items()}
    print(
        f"\nCPU s/GB: {best[True]:.3f} verified, {best[False]:.3f} not; {json.dumps(rounded(taken))}"
    )
    assert best[True] <= 1.10 * best[False]


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rounded(times: dict[bool, list[float]]) -> dict[str, Any]:
    return {str(k): [round(t, 2) for t in v] for k, v in times.items()}
