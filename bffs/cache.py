"""The disk cache: what has been read once stays on the local disk, verified, shared and bounded.

Layout below the cache folder (0700, files 0600)::

    v1/index.sqlite3                          how much is stored and when it was last used
    v1/<dataset>/<hh>/<name>                  the bytes: a sparse file, each block at its own offset
    v1/<dataset>/<hh>/<name>.sums             which blocks are there, and their checksums

`<dataset>` is a hash of endpoint and bucket, `<name>` of key and ETag, `<hh>` its first two digits.
So a file belongs to one version of one object, and a complete one is byte for byte the object.

A `.sums` file is a header of 32 bytes (magic, block size, object size, a hash of key and ETag;
little-endian, as `_HEADER` says) and then one unsigned 64-bit xxh3 a block; zero means absent (a
checksum that happens to be zero is stored as one). A block's sum is written after its bytes.
Whatever a crash, a flipped bit or a lost file leaves behind is therefore a sum that doesn't fit,
and a sum that doesn't fit is a miss. Blocks are checked whenever they are read, until they have
been checked once in this process.

Sharing: any number of processes use one folder. Adding a block is two writes that need no lock,
since two processes would write the same bytes. Nothing is ever rewritten or truncated in place:
evicting a file unlinks it, so whoever has it open reads on undisturbed. Room is reserved in the
index, whose transactions SQLite isolates across processes, before bytes are written; a killed
process leaves no lock behind.

The disk is optional. A fault of it (full, read-only, gone, broken) is a miss; writing pauses for
`_RETRY_DISK` seconds and says so once. Nothing here raises to a reader.

Threads: everything may be called from any thread. `CachedObject` has one lock for its set of known
blocks, never held across I/O.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import struct
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import xxhash
from cachetools import LRUCache

from bffs.index import Index
from bffs.private import CACHE_VERSION, dataset_folder, own_dataset_folder
from bffs.settings import Dataset
from bffs.store import ObjectInfo
from bffs.units import KIB

log = logging.getLogger(__name__)

BLOCK = 128 * KIB
"""Bytes in a block, the unit that is present or absent, and checked."""

_MAGIC = b"bffs-v1\n"
_HEADER = struct.Struct("<8sQQQ")
_PAGE = 4096
_RETRY_DISK = 30.0
_KNOWN_OBJECTS = 256
"""Objects whose files are kept open; two descriptors each."""

_NOWHERE = Path(os.devnull) / "nowhere"
"""A path that can't be, for objects that have no local part: below a device there is nothing."""


def checksum(data: memoryview) -> int:
    """xxh3 of a block, never zero."""
    return xxhash.xxh3_64_intdigest(data) or 1


def block_count(size: int) -> int:
    """Blocks in an object of `size` bytes."""
    return -(-size // BLOCK)


class CachedObject:
    """The local part of one object version. Reads are verified; a fault is a miss.

    Its file descriptors live as long as the object, so a reader needs only a reference, even to an
    evicted file.
    """

    def __init__(self, obj: ObjectInfo, path: Path) -> None:
        self.obj = obj
        self.path = path
        self._sums_path = path.with_name(path.name + ".sums")
        self._fd = -1
        self._sums_fd = -1
        self._lock = threading.Lock()
        self._sums = array("Q", bytes(8 * block_count(obj.size)))
        self._verified = bytearray(block_count(obj.size))
        self.refresh()

    def __del__(self) -> None:
        for fd in (self._fd, self._sums_fd):
            if fd >= 0:
                os.close(fd)

    def refresh(self) -> None:
        """Learn what other processes have added since."""
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
        """Bytes of the object that are here."""
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
        log.warning("block %d of %s is fetched again: %s", block, self.obj.key, why)
        self._sums[block] = 0
        self._verified[block] = 0
        if self._sums_fd >= 0:
            with suppress(OSError):
                os.pwrite(self._sums_fd, bytes(8), _HEADER.size + 8 * block)

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
            sums_fd, draft = tempfile.mkstemp(dir=self.path.parent, prefix="draft-")
            opened.callback(os.close, sums_fd)
            try:
                os.write(sums_fd, _header(self.obj) + bytes(8 * len(self._sums)))
                os.link(draft, self._sums_path)
            except FileExistsError:
                sums_fd = os.open(self._sums_path, flags, 0o600)
                opened.callback(os.close, sums_fd)
            finally:
                os.unlink(draft)
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


class DiskCache:
    """All that is cached of one dataset, within limits that all processes keep together.

    `limit` is the most bytes that may be stored in the cache folder, `floor` the bytes of the disk
    that stay free.
    """

    def __init__(self, folder: Path, dataset: Dataset, limit: int) -> None:
        self._cache_dir = folder
        self._dataset = dataset
        self._objects = dataset_folder(folder, dataset)
        self._index = Index(folder / CACHE_VERSION, limit)
        self._known: LRUCache[tuple[str, str], CachedObject] = LRUCache(_KNOWN_OBJECTS)
        self._lock = threading.Lock()
        self._paused_until = 0.0
        self._ours = False
        try:
            self._claim()
        except OSError as error:
            self._pause(error)

    def close(self) -> None:
        """Write down what was used, and forget the open files."""
        with suppress(OSError, sqlite3.Error):
            self._index.close()
        with self._lock:
            self._known.clear()

    def open(self, obj: ObjectInfo) -> CachedObject:
        """The local part of `obj`, perhaps empty. Never raises."""
        identity = (obj.key, obj.etag)
        with self._lock:
            cached = self._known.get(identity)
        if cached is None or cached.is_evicted():
            cached = CachedObject(obj, self._path(obj) if self._ours else _NOWHERE)
            with self._lock:
                self._known[identity] = cached
        return cached

    def touch(self, obj: ObjectInfo) -> None:
        """Note that `obj` is in use now; written down with the next reservation."""
        if self._ours:
            self._index.touch(self._path(obj))

    def add(self, obj: ObjectInfo, block: int, data: memoryview, sums: array[int]) -> None:
        """Store consecutive blocks if there is room; see `CachedObject.add`. Never raises."""
        if time.monotonic() < self._paused_until:
            return
        try:
            if self._paused_until:
                self._claim()
                self._paused_until = 0.0
            cached = self.open(obj)
            if self._index.reserve(self._path(obj), obj, len(data)):
                cached.add(block, data, sums, direct=True)
        except (OSError, sqlite3.Error) as error:
            self._pause(error)

    def _claim(self) -> None:
        """Make the folders, or make sure that nobody else did, who could plant bytes. Raises OSError."""
        own_dataset_folder(self._cache_dir, self._dataset)
        self._ours = True
        with self._lock:
            self._known.clear()  # what was opened nowhere, or is gone

    def _path(self, obj: ObjectInfo) -> Path:
        name = _short_hash(f"{obj.key}\n{obj.etag}")
        return self._objects / name[:2] / name

    def _pause(self, error: Exception) -> None:
        if time.monotonic() < self._paused_until:
            return  # another thread has said so
        log.warning("nothing is cached on disk for %.0f s: %s", _RETRY_DISK, error)
        self._paused_until = time.monotonic() + _RETRY_DISK


def remove_cached(path: Path) -> None:
    """Unlink a cached file, its checksums first: a data file without them counts for nothing."""
    for name in (path.with_name(path.name + ".sums"), path):
        with suppress(FileNotFoundError):
            name.unlink()


def _short_hash(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode())


def _header(obj: ObjectInfo) -> bytes:
    identity = xxhash.xxh3_64_intdigest(f"{obj.key}\n{obj.etag}".encode())
    return _HEADER.pack(_MAGIC, BLOCK, obj.size, identity)
