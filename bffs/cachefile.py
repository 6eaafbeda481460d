"""A cached object: the local part of one object version, as a sparse file and its checksums.

The data file holds the bytes, each block at its own offset; a complete one is byte for byte the object. The `.sums`
file beside it is a header of 32 bytes (magic, block size, object size, a hash of key and ETag; little-endian, as
`_HEADER` says) and then one unsigned 64-bit xxh3 a block; zero means absent (a checksum that happens to be zero is
stored as one).

A block's sum is written after its bytes. Whatever a crash, a flipped bit or a lost file leaves behind is therefore a
sum that doesn't fit, and a sum that doesn't fit is a miss. Blocks are checked whenever they are read, until they have
been checked once in this process.

Threads: everything may be called from any thread. The one lock guards the descriptors while they are taken over, and
is never held across I/O.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import struct
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from bffs.store import ObjectInfo
from bffs.units import KIB

log = logging.getLogger(__name__)

BLOCK = 128 * KIB
"""Bytes in a block, the unit that is present or absent, and checked."""

_MAGIC = b"bffs-v1\n"
_HEADER = struct.Struct("<8sQQQ")
_PAGE = 4096
_CHECKED = 8
"""Blocks that are read in one go to be checked."""

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


def checksum(data: memoryview) -> int:
    """xxh3 of a block, never zero."""
    return xxhash.xxh3_64_intdigest(data) or 1


def block_count(size: int) -> int:
    """Blocks in an object of `size` bytes."""
    return -(-size // BLOCK)


class Seal(NamedTuple):
    """A file as long as nobody writes to it: its inode, and when that was last done (ns)."""

    inode: int
    written: int


class CachedObject:
    """The local part of one object version. Reads are verified; a fault is a miss.

    Its file descriptors live as long as the object, so a reader needs only a reference, even to an
    evicted file. `on_damage` is called for each block, or whole file, that is dropped. If it is still
    the file of the seal `known`, nothing of it is checked again.
    """

    def __init__(
        self,
        obj: ObjectInfo,
        path: Path,
        on_damage: Callable[[], None] = lambda: None,
        known: Seal | None = None,
    ) -> None:
        self.obj = obj
        self.path = path
        self._on_damage = on_damage
        self._sums_path = path.with_name(path.name + ".sums")
        self._fd = -1
        self._sums_fd = -1
        self._lock = threading.Lock()
        self._sums = array("Q", bytes(8 * block_count(obj.size)))
        self._verified = bytearray(block_count(obj.size))
        self._refreshed = -math.inf
        self.refresh()
        if known is not None and self.is_whole and _sealed(self._fd) == known:
            self._verified = bytearray(b"\1" * len(self._verified))

    def __del__(self) -> None:
        for fd in (self._fd, self._sums_fd):
            if fd >= 0:
                os.close(fd)

    @property
    def is_there(self) -> bool:
        """Whether there is a file of it, as far as is known here."""
        return self._fd >= 0

    @property
    def fd(self) -> int:
        """The descriptor of the bytes, -1 if there is none."""
        return self._fd

    @property
    def is_whole(self) -> bool:
        """Whether all blocks are said to be here."""
        return self._fd >= 0 and 0 not in self._sums

    @property
    def is_checked(self) -> bool:
        """Whether every block is here and has been checked in this process."""
        return self._fd >= 0 and self._verified.find(0) < 0

    def seal(self) -> Seal | None:
        """What a file is known by that every block of was checked in this process; None for others."""
        return _sealed(self._fd) if self.is_checked else None

    def check(self) -> bool:
        """Check all blocks that have not been; whether the whole object is here and sound.

        Reads them, a few blocks at a time, as long as nothing is missing.
        """
        buffer = memoryview(bytearray(_CHECKED * BLOCK))
        block = 0
        while (block := self._verified.find(0, block)) >= 0:
            offset = block * BLOCK
            size = min(len(buffer), self.obj.size - offset)
            if self.read_into(offset, buffer[:size]) != size:
                return False
            block += _CHECKED
        return self.is_checked

    def refresh(self, stale: float = 0.0) -> None:
        """Learn what other processes have added since, if it is `stale` seconds ago that this was
        last done."""
        now = time.monotonic()
        if now - self._refreshed < stale:
            return
        self._refreshed = now
        if self._sums_fd < 0:
            self._open_for_reading()
        if self._sums_fd < 0:
            return
        try:
            data = os.pread(self._sums_fd, len(self._sums) * 8, _HEADER.size)
        except OSError as error:
            log.debug("can't read %s: %s", self._sums_path, error)
            return
        if len(data) == len(self._sums) * 8:
            self._sums = array("Q", data)

    def has(self, block: int) -> bool:
        """Whether that block is said to be here."""
        return self._sums[block] != 0

    def missing(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Runs of blocks (first, stop) between `first` and `stop` that are not here."""
        run: int | None = None
        for block, block_sum in enumerate(self._sums[first:stop], first):
            if block_sum and run is not None:
                yield run, block
                run = None
            elif not block_sum and run is None:
                run = block
        if run is not None:
            yield run, min(stop, len(self._sums))

    def bytes_present(self) -> int:
        """Bytes of the object that are here now, whoever has added them."""
        self.refresh()
        blocks = sum(1 for block_sum in self._sums if block_sum)
        tail = self.obj.size % BLOCK
        return blocks * BLOCK - (BLOCK - tail if tail and self._sums[-1] else 0)

    def is_evicted(self) -> bool:
        """Whether another process or thread has unlinked the file since it was opened here."""
        return self._fd >= 0 and os.fstat(self._fd).st_nlink == 0

    def read_into(self, offset: int, into: memoryview) -> int:
        """Copy bytes from `offset` on to the front of `into`; how many, perhaps fewer than fit, 0
        for a miss."""
        first, last = offset // BLOCK, (offset + len(into) - 1) // BLOCK
        stop = first
        while stop <= last and self._sums[stop]:
            stop += 1
        if stop == first or self._fd < 0:
            return 0
        n = min(len(into), stop * BLOCK - offset)
        try:
            if os.preadv(self._fd, [into[:n]], offset) != n:
                self._drop(first, "it is cut short")
                return 0
        except OSError as error:
            self._drop(first, error)
            return 0
        if self._verified.find(0, first, stop) < 0:
            return n
        for block in range(first, stop):
            if not self._verified[block] and not self._verify(block, offset, into[:n]):
                return max(0, block * BLOCK - offset)
        return n

    def _verify(self, block: int, offset: int, data: memoryview) -> bool:
        """Check one block, some or all of whose bytes were just read to `data`, which begins at
        `offset`."""
        start, stop = block * BLOCK, min((block + 1) * BLOCK, self.obj.size)
        whole = data[max(0, start - offset) : stop - offset]
        if len(whole) < stop - start:
            edge, at = whole, max(0, offset - start)
            whole = memoryview(bytearray(stop - start))
            try:
                os.preadv(self._fd, [whole], start)
            except OSError as error:
                self._drop(block, error)
                return False
            if whole[at : at + len(edge)] != edge:
                self._drop(block, "it changes while it is read")
                return False
        if checksum(whole) != self._sums[block]:
            self._drop(block, "its checksum does not fit")
            return False
        self._verified[block] = 1
        return True

    def _drop(self, block: int, why: object) -> None:
        if not self._sums[block]:
            return  # by another thread, which has read the same
        self._sums[block] = 0
        self._verified[block] = 0
        if self._sums_fd >= 0:
            with suppress(OSError):
                os.pwrite(self._sums_fd, bytes(8), _HEADER.size + 8 * block)
        log.warning("block %d of %s is fetched again: %s", block, self.obj.key, why)
        self._on_damage()

    def add(self, block: int, data: memoryview, sums: array[int], direct: bool) -> None:
        """Store consecutive blocks from `block` on; `data` starts on a page and may end with the
        object's tail.

        `direct` writes whole pages past the page cache where the file system allows it: that takes
        0.4 s of CPU a GB instead of 2.6, and the kernel keeps the pages of the mounted file anyway.
        Raises OSError.
        """
        if self._fd < 0:
            self._create()
        offset = block * BLOCK
        written = self._write_direct(offset, data) if direct else 0
        while written < len(data):
            written += os.pwrite(self._fd, data[written:], offset + written)
        os.pwrite(self._sums_fd, sums.tobytes(), _HEADER.size + 8 * block)
        self._sums[block : block + len(sums)] = sums
        # Not marked as verified: that is for bytes that have come back from the disk.

    def _write_direct(self, offset: int, data: memoryview) -> int:
        """Write the whole pages of `data`; how many bytes that were, 0 where the file system
        refuses."""
        pages = len(data) - len(data) % _PAGE
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except FileNotFoundError:  # evicted just now; the open file takes the bytes
            return 0
        except OSError as error:
            if error.errno == errno.EINVAL:
                return 0
            raise
        try:
            return os.pwrite(fd, data[:pages], offset)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return 0
            raise
        finally:
            os.close(fd)

    def _open_for_reading(self) -> None:
        """Open both files if they are there and belong to this version; remove what is damaged."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with ExitStack() as opened:
            try:
                sums_fd = os.open(self._sums_path, flags)
                opened.callback(os.close, sums_fd)
                fd = os.open(self.path, flags)
                opened.callback(os.close, fd)
                sound = os.pread(sums_fd, _HEADER.size, 0) == _header(self.obj)
                sound = sound and os.fstat(fd).st_size == self.obj.size
            except FileNotFoundError:
                return
            except OSError as error:
                log.debug("can't use %s: %s", self.path, error)
                return
            if sound:
                self._adopt(fd, sums_fd)
                opened.pop_all()
                return
        log.warning("the cached part of %s is damaged and is fetched again", self.obj.key)
        self._on_damage()
        remove_cached(self.path)

    def _create(self) -> None:
        """Make both files, or open those that another process has just made. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with ExitStack() as opened:
            fd = os.open(self.path, flags, 0o600)
            opened.callback(os.close, fd)
            os.ftruncate(fd, self.obj.size)
            # The checksums appear last and whole: whoever finds them finds a data file of the full length.
            try:
                sums_fd = _publish(self._sums_path, _header(self.obj), 8 * len(self._sums))
            except FileExistsError:
                sums_fd = os.open(self._sums_path, flags, 0o600)
            opened.callback(os.close, sums_fd)
            self._adopt(os.dup(fd), os.dup(sums_fd))

    def _adopt(self, fd: int, sums_fd: int) -> None:
        """Keep the descriptors, unless another thread was faster."""
        with self._lock:
            if self._fd < 0:
                self._sums_fd = sums_fd
                self._fd = fd  # last: whoever sees it takes the checksums' for granted
                return
        os.close(fd)
        os.close(sums_fd)


def _sealed(fd: int) -> Seal:
    status = os.fstat(fd)
    return Seal(status.st_ino, status.st_mtime_ns)


def remove_cached(path: Path) -> None:
    """Unlink a cached file, its checksums first: a data file without them counts for nothing."""
    for name in (path.with_name(path.name + ".sums"), path):
        with suppress(FileNotFoundError):
            name.unlink()


def _header(obj: ObjectInfo) -> bytes:
    identity = xxhash.xxh3_64_intdigest(f"{obj.key}\n{obj.etag}".encode())
    return _HEADER.pack(_MAGIC, BLOCK, obj.size, identity)


def _publish(path: Path, header: bytes, zeros: int) -> int:
    """Make a file of `header` and so many zeros appear whole; its descriptor. A process that is
    killed meanwhile leaves nothing behind, where the file system can do that.

    Raises FileExistsError, and other OSErrors.
    """
    draft = ""
    try:
        fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        fd, draft = tempfile.mkstemp(dir=path.parent, prefix="draft-")
    try:
        os.write(fd, header)
        os.ftruncate(fd, len(header) + zeros)
        if draft:
            os.link(draft, path)
        else:  # with a folder's descriptor Python follows the link, which an absolute path needs not
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except BaseException:
        os.close(fd)
        raise
    finally:
        if draft:
            os.unlink(draft)
    return fd
