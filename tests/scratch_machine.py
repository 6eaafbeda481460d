"""Random operations on a mount's scratch layer and on a plain local folder, which must come to the same.

`run` takes steps from a seeded generator and applies each to both: results, error numbers, attributes, contents and
names must agree. Now and then it kills the driver (-9), mounts again and compares everything. Run as a script for as
long as you like; on a difference it prints the latest steps.

    python tests/scratch_machine.py [--seed N] [--steps N] [--binding libfuse3|libfuse2|fusepy] [--no-crash]
    python tests/scratch_machine.py --file [--seed N] [--steps N]    # one file instead, as fsx does it
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("a", "b", "c.swc", "naïve", ".DS_Store", "with space", "x" * 255)
LONGEST = 300_000
_LARGEST = 2_000_000
_HANDLES = 5
_REMEMBERED = 100
_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: str, new: str, flags: int) -> None:
    """See renameat2(2)."""
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Side:
    """One of the two folders, and the files that are open in it."""

    def __init__(self, root: Path, hidden: frozenset[str] = frozenset()) -> None:
        self.root = root
        self.hidden = hidden
        """Names in the root that are the dataset's."""

        self.handles: dict[int, int] = {}

    def at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def names(self, path: str) -> list[str]:
        found = [each.name for each in os.scandir(self.at(path))]
        if not path:
            found = [name for name in found if name not in self.hidden]
        return sorted(found)

    def status(self, path: str) -> tuple[object, ...]:
        found = os.lstat(self.at(path))
        return _shown(found, with_size=not stat.S_ISDIR(found.st_mode))

    def whole(self) -> dict[str, object]:
        """Everything that can be seen, by path."""
        found: dict[str, object] = {}
        folders = [""]
        while folders:
            folder = folders.pop()
            for name in self.names(folder):
                path = f"{folder}/{name}".lstrip("/")
                mode = os.lstat(self.at(path)).st_mode
                content: object = None
                if stat.S_ISDIR(mode):
                    folders.append(path)
                elif stat.S_ISLNK(mode):
                    content = os.readlink(self.at(path))
                elif stat.S_ISREG(mode):
                    content = Path(self.at(path)).read_bytes()
                found[path] = (self.status(path), content)
        return found

    def close(self) -> None:
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()


def _shown(found: os.stat_result, *, with_size: bool = True) -> tuple[object, ...]:
    size = found.st_size if with_size else None
    return (oct(found.st_mode), size, found.st_nlink, found.st_uid, found.st_gid)


Step = tuple[Any, ...]


class Steps:
    """Makes up steps; without `flags`, which libfuse 2 does not know, none of renameat2(2)."""

    def __init__(self, seed: int, *, flags: bool) -> None:
        self.chance = random.Random(seed)
        self._flags = flags
        self._opened = 0

    def path(self) -> str:
        """Mostly in the root, at most three deep."""
        depth = self.chance.choice((1, 1, 1, 2, 2, 3))
        return "/".join(self.chance.choice(NAMES) for _ in range(depth))

    def data(self) -> bytes:
        size = self.chance.choice((0, 1, 100, 4096, 5000, 70_000, 140_000))
        return self.chance.randbytes(self.chance.randint(size // 2, size))

    def handle(self) -> int:
        return self.chance.randrange(max(0, self._opened - _HANDLES), self._opened + 1)

    def next(self) -> Step:
        chance, path = self.chance, self.path
        offset = chance.choice((0, 1, 4095, 4096, chance.randrange(LONGEST)))
        match chance.randrange(34):
            case 0 | 1 | 2:
                return ("write", path(), self.data(), chance.choice("wwax"))
            case 3 | 4:
                return ("read", path())
            case 5 | 6:
                self._opened += 1
                access = chance.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
                more = [os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, 0]
                flags = access | chance.choice(more) | chance.choice(more)
                return ("open", path(), self._opened, flags, chance.choice((0o644, 0o600, 0o755)))
            case 7 | 8 | 9:
                return ("pwrite", self.handle(), self.data(), offset)
            case 10 | 11:
                return ("pread", self.handle(), chance.choice((1, 5000, LONGEST)), offset)
            case 12:
                return ("map", self.handle(), offset, chance.randbytes(chance.randrange(1, 9000)))
            case 13:
                return ("ftruncate", self.handle(), chance.randrange(LONGEST))
            case 14:
                return ("fstat", self.handle())
            case 15:
                return ("close", self.handle())
            case 16 | 17 | 18:
                return ("rename", path(), path())
            case 19 if self._flags:
                return ("renameat2", path(), path(), chance.choice((1, 2)))
            case 19 | 20 | 21:
                return ("unlink", path())
            case 22 | 23 | 24:
                return ("mkdir", path(), chance.choice((0o777, 0o700)))
            case 25:
                return ("rmdir", path())
            case 26:
                return ("chmod", path(), chance.choice((0o644, 0o755, 0o600, 0o444)))
            case 27:
                return ("utime", path(), chance.randrange(1 << 60), chance.randrange(1 << 60))
            case 28:
                return ("symlink", path(), path())
            case 29:
                return ("link", path(), path())
            case 30:
                return ("truncate", path(), chance.randrange(LONGEST))
            case 31:
                return ("fsync", self.handle())
            case 32:
                return ("xattr", path(), chance.choice((b"", b"1", self.data()[:500])))
            case _:
                return ("flock", self.handle(), chance.choice((fcntl.LOCK_EX, fcntl.LOCK_UN)))


def apply(side: Side, step: Step) -> object:
    """Do a step; what came of it."""
    kind, *args = step
    if kind in _BY_HANDLE:
        fd = side.handles.get(args[0])
        if fd is None:
            return "not open"
        return _BY_HANDLE[kind](side, fd, *args)
    return _BY_PATH[kind](side, *args)


def _write(side: Side, path: str, data: bytes, mode: str) -> object:
    with open(side.at(path), f"{mode}b") as file:
        file.write(data)
    return side.status(path)


def _read(side: Side, path: str) -> object:
    return Path(side.at(path)).read_bytes()


def _open(side: Side, path: str, number: int, flags: int, mode: int) -> object:
    side.handles[number] = os.open(side.at(path), flags, mode)
    return side.status(path)


def _pwrite(side: Side, fd: int, _: int, data: bytes, offset: int) -> object:
    return os.pwrite(fd, data, offset), _shown(os.fstat(fd))


def _pread(side: Side, fd: int, _: int, size: int, offset: int) -> object:
    return os.pread(fd, size, offset)


def _map(side: Side, fd: int, _: int, offset: int, data: bytes) -> object:
    size = os.fstat(fd).st_size
    if not size:
        return "empty"
    with mmap.mmap(fd, size) as view:
        at = offset % size
        piece = data[: size - at]
        view[at : at + len(piece)] = piece
        view.flush()
        return bytes(view)


def _close(side: Side, fd: int, number: int) -> object:
    os.close(side.handles.pop(number))
    return ()


def _utime(side: Side, path: str, atime: int, mtime: int) -> object:
    os.utime(side.at(path), ns=(atime, mtime), follow_symlinks=False)
    found = os.lstat(side.at(path))
    return found.st_atime_ns, found.st_mtime_ns


def _xattr(side: Side, path: str, value: bytes) -> object:
    if value:
        os.setxattr(side.at(path), "user.test", value)
    else:
        os.removexattr(side.at(path), "user.test")
    return {name: os.getxattr(side.at(path), name) for name in os.listxattr(side.at(path))}


def _changed(side: Side, path: str, change: Callable[[str], object]) -> object:
    change(side.at(path))
    return side.status(path)


def _ftruncate(side: Side, fd: int, _: int, size: int) -> object:
    os.ftruncate(fd, size)
    return _shown(os.fstat(fd))


_BY_HANDLE: dict[str, Callable[..., object]] = {
    "pwrite": _pwrite,
    "pread": _pread,
    "map": _map,
    "ftruncate": _ftruncate,
    "fstat": lambda side, fd, _: _shown(os.fstat(fd)),
    "close": _close,
    "fsync": lambda side, fd, _: os.fsync(fd),
    "flock": lambda side, fd, _, how: fcntl.flock(fd, how | fcntl.LOCK_NB),
}

_BY_PATH: dict[str, Callable[..., object]] = {
    "write": _write,
    "read": _read,
    "open": _open,
    "rename": lambda side, old, new: os.rename(side.at(old), side.at(new)),
    "renameat2": lambda side, old, new, flags: renameat2(side.at(old), side.at(new), flags),
    "unlink": lambda side, path: os.unlink(side.at(path)),
    "mkdir": lambda side, path, mode: _changed(side, path, lambda at: os.mkdir(at, mode)),
    "rmdir": lambda side, path: os.rmdir(side.at(path)),
    "chmod": lambda side, path, mode: _changed(side, path, lambda at: os.chmod(at, mode)),
    "utime": _utime,
    "symlink": lambda side, old, new: Path(side.at(new)).symlink_to(old),
    "link": lambda side, old, new: os.link(side.at(old), side.at(new), follow_symlinks=False),
    "truncate": lambda side, path, size: _changed(side, path, lambda at: os.truncate(at, size)),
    "xattr": _xattr,
}


def outcome(side: Side, step: Step) -> object:
    try:
        return apply(side, step)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def run(
    seed: int,
    steps: int,
    mounted: Side,
    plain: Side,
    crash: Callable[[], None] | None = None,
    *,
    flags: bool = True,
) -> int:
    """Take `steps` steps; returns how many did something. `crash` kills the driver and mounts again; for `flags` see
    `Steps`."""
    make = Steps(seed, flags=flags)
    done: list[Step] = []
    succeeded = 0
    for number in range(steps):
        step = make.next()
        expected, found = outcome(plain, step), outcome(mounted, step)
        if not isinstance(expected, str):
            done.append(step)
        if found != expected:
            raise AssertionError(
                f"seed {seed}, step {number}: {_short(step)}\n"
                f"on disk: {_short(expected)}\nmounted: {_short(found)}\nbefore it:\n"
                + "\n".join(_short(each) for each in done[-_REMEMBERED:])
            )
        succeeded += not isinstance(expected, str)
        if len(plain.handles) > _HANDLES:
            for side in (plain, mounted):
                os.close(side.handles.pop(min(side.handles)))
        if number % 100 == 99:
            compare(plain, mounted, f"seed {seed}, step {number}")
        if crash is not None and make.chance.randrange(250) == 0:
            for side in (plain, mounted):
                side.close()
            time.sleep(0.05)  # a file just deleted while it was open comes back after a crash
            crash()
            compare(plain, mounted, f"seed {seed}, crash after step {number}")
    for side in (plain, mounted):
        side.close()
    compare(plain, mounted, f"seed {seed}, end")
    return succeeded


def compare(plain: Side, mounted: Side, when: str) -> None:
    expected, found = plain.whole(), mounted.whole()
    for path in sorted(expected.keys() | found.keys()):
        if expected.get(path) != found.get(path):
            raise AssertionError(
                f"{when}: {path}\non disk:  {_short(expected.get(path))}\n"
                f"mounted: {_short(found.get(path))}"
            )


def _short(value: object) -> str:
    text = repr(value).replace(NAMES[-1], "x...")
    return text if len(text) < 150 else f"{text[:100]}... ({len(text)} characters)"


def exercise(path: Path, chance: random.Random, steps: int) -> None:
    """Write, truncate, map and read a file at random, as fsx does, and compare it with a copy in memory."""
    content = bytearray()
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for step in range(steps):
        size, offset = chance.randrange(1, 70_000), chance.randrange(_LARGEST)
        data = chance.randbytes(size)
        match chance.randrange(8):
            case 0 | 1 | 2:
                assert os.pwrite(fd, data, offset) == size
                _extend(content, offset + size)
                content[offset : offset + size] = data
            case 3:
                os.ftruncate(fd, offset)
                _extend(content, offset)
                del content[offset:]
            case 4 if content:
                with mmap.mmap(fd, len(content)) as view:
                    at = offset % len(content)
                    piece = data[: len(content) - at]
                    view[at : at + len(piece)] = piece
                    content[at : at + len(piece)] = piece
                    if chance.random() < 0.5:
                        view.flush()
            case 5:
                os.close(fd)
                fd = os.open(path, os.O_RDWR)
            case 6 if chance.random() < 0.2:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            case _:
                found = os.pread(fd, size, offset)
                assert found == content[offset : offset + size], f"step {step}: {offset} {size}"
        assert os.fstat(fd).st_size == len(content), f"step {step}"
    os.close(fd)
    assert path.read_bytes() == content


def _extend(content: bytearray, size: int) -> None:
    content.extend(bytes(max(0, size - len(content))))


def main() -> None:
    """Run until told to stop, on a dataset of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--binding", default="libfuse3")
    parser.add_argument("--no-crash", action="store_true")
    parser.add_argument("--file", action="store_true")
    options = parser.parse_args()
    from tests.conftest import Mounter, flags_of
    from tests.s3server import S3Server

    specimen = "900000001"
    objects: dict[str, bytes | int] = {f"{specimen}/s-{n:04}.tif": 5000 for n in range(3)}
    with (
        tempfile.TemporaryDirectory(prefix="bffs-machine-") as work,
        S3Server(objects, bucket="neurons") as server,
    ):
        mounter = Mounter(flags_of(server), Path(work))
        try:
            tree = mounter(binding=options.binding)
            folder = tree / "train" / specimen
            if options.file:
                server.reset()
                exercise(folder / "file", random.Random(options.seed), options.steps)
                print(f"seed {options.seed}: {options.steps} steps, {len(server.log())} requests")
                return
            plain = Path(work, "plain")
            plain.mkdir()
            server.reset()
            mounted = Side(folder, frozenset(each.name for each in folder.iterdir()))
            crash = (
                None if options.no_crash else (lambda: mounter.crash(tree, binding=options.binding))
            )
            flags = options.binding == "libfuse3"
            done = run(options.seed, options.steps, mounted, Side(plain), crash, flags=flags)
            print(
                f"seed {options.seed}: {options.steps} steps, {done} of them did something;",
                end=" ",
            )
            print(f"{len(server.log())} requests to the store")
        finally:
            mounter.close()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
