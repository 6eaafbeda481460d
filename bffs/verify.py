"""Checking what is cached: each block against its checksum, and whole objects against the store's MD5.

Bytes are read from the disk, not from the page cache. A block whose checksum doesn't fit is dropped, as a reader would
drop it. The ETag of an object that was uploaded in one request is its MD5, unless the store encrypts with keys of its
own; where no object at all fits its ETag, ETags are taken for no MD5s, and nothing is dropped for them.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bffs.cache import BLOCK, DiskCache, block_count
from bffs.cachefile import CachedObject
from bffs.store import ObjectInfo
from bffs.units import MIB, format_size

THREADS = 4
_STEP = MIB
_MD5 = re.compile("[0-9a-f]{32}")

_SETTLED = 600.0
"""Seconds since a file was last written after which nobody is about to write to it."""

_NO_MD5S = 3
"""Objects that must differ from their ETags, and none agree, until ETags are taken for no MD5s."""


@dataclass
class Report:
    """What was found. `bytes` were checked; `damaged` counts dropped blocks by key; `agree` and
    `differ` are the complete objects that were compared with an MD5."""

    files: int = 0
    bytes: int = 0
    damaged: dict[str, int] = field(default_factory=dict)
    agree: int = 0
    differ: list[str] = field(default_factory=list)
    etags_are_md5: bool = True
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.damaged and not (self.differ and self.etags_are_md5)

    def as_dict(self) -> dict[str, Any]:
        """For a program."""
        return {
            "files": self.files,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "damaged_blocks": self.damaged,
            "md5_agree": self.agree,
            "md5_differ": self.differ,
            "etags_are_md5": self.etags_are_md5,
        }

    def as_text(self) -> str:
        """For people: one line, and one for each file with something wrong."""
        files = "1 file" if self.files == 1 else f"{self.files:,} files"
        lines = [f"{files}, {format_size(self.bytes)} checked in {self.seconds:.1f} s"]
        lines[0] += f", {self.agree:,} of them against the store's MD5" if self.agree else ""
        lines[0] += ": all is well" if self.sound else ""
        for key, blocks in self.damaged.items():
            lines.append(f"{key}: {blocks} damaged, fetched again when it is read")
        if self.etags_are_md5:
            why = "not what the store has (MD5), fetched again when it is read"
            lines += [f"{key}: {why}" for key in self.differ]
        elif self.differ:
            lines.append("the ETags of this bucket are no MD5s: checked against checksums only")
        return "".join(f"{line}\n" for line in lines)


def verify(
    objects: Sequence[ObjectInfo], cache: DiskCache, report: Callable[[int], None]
) -> Report:
    """Check what is cached of `objects`; `report` is told the bytes checked since it was last called.

    Raises BffsError.
    """
    begun = time.monotonic()
    files = cache.files()
    found = Report()
    differing: list[ObjectInfo] = []
    here = [obj for obj in objects if cache.path(obj) in files]
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "bffs-verify")
    try:
        checks = pool.map(lambda obj: _check(obj, cache.path(obj)), here)
        for obj, (size, damaged, same) in zip(here, checks, strict=True):
            found.files += 1
            found.bytes += size
            if damaged:
                found.damaged[obj.key] = damaged
            if same is not None:
                found.agree += same
                if not same:
                    differing.append(obj)
            report(size)
    finally:
        pool.shutdown(cancel_futures=True)
    found.differ = [obj.key for obj in differing]
    found.etags_are_md5 = bool(found.agree) or len(differing) < _NO_MD5S
    if found.etags_are_md5:
        cache.evict(differing)
    _tidy(cache, files)
    found.seconds = time.monotonic() - begun
    return found


def _check(obj: ObjectInfo, path: Path) -> tuple[int, int, bool | None]:
    """Bytes checked, blocks dropped, and whether a complete object fits its ETag (None: can't be
    known)."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    cached = CachedObject(obj, path)
    blocks = block_count(obj.size)
    before = sum(map(cached.has, range(blocks)))
    whole = before == blocks and _MD5.fullmatch(obj.etag) is not None
    digest = hashlib.md5(usedforsecurity=False)
    buffer = memoryview(bytearray(_STEP))
    size = at = 0
    while at < obj.size:
        n = cached.read_into(at, buffer[: min(_STEP, obj.size - at)])
        if n and whole:
            digest.update(buffer[:n])
        size += n
        whole = whole and n > 0
        at = at + n if n else (at // BLOCK + 1) * BLOCK
    damaged = before - sum(map(cached.has, range(blocks)))
    if not cached.is_there and not path.exists():
        damaged = 1  # in its frame: it was removed as a whole
    return size, damaged, digest.hexdigest() == obj.etag if whole and not damaged else None


def _tidy(cache: DiskCache, files: dict[Path, int]) -> None:
    """Let the ledger say what files really take, and remove what killed processes left."""
    settled = time.time() - _SETTLED
    sizes = {}
    for path in files:
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < settled:
                sizes[path] = path.stat().st_blocks * 512
    cache.recount(sizes)
    cache.sweep(settled)
