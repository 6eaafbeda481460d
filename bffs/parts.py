"""Parts of objects in memory, within one budget.

An object is cut into parts of `PART` bytes, each with a page-aligned buffer while it is in use, and
those into blocks of `cache.BLOCK` bytes, the unit in which bytes become readable.

Memory is what blocks take, `memory` bytes and never more: a buffer is address space, and only
blocks that have been filled count. A part is *pinned* while it is fetched, copied or written;
others are given up when memory is needed: first those read to their end, then the least recently
used.

Threads: none of this is thread-safe, its owner's lock guards it, except that `Parts.find` and the
attributes of a part may be read without: see `blocks`.
"""

from __future__ import annotations

import math
import mmap
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress

from cachetools import LRUCache

from bffs.cachefile import BLOCK
from bffs.store import ObjectInfo
from bffs.units import MIB

BLOCKS_IN_PART = 64
PART = BLOCKS_IN_PART * BLOCK
"""Bytes in a part: a buffer, and the most that one request fetches. 8 MiB costs boto3 0.5 s of CPU
a GB, 1 MiB 1.5."""

HUGE_BLOCKS = 2 * MIB // BLOCK
"""Blocks in a huge page. Parts that will hold as many are made of such: filling them takes 0.4 s of
CPU a GB less, since pages are neither made nor looked up 4 KiB at a time."""

_HUGE_PAGES = tuple(
    ((1 << HUGE_BLOCKS) - 1) << first for first in range(0, BLOCKS_IN_PART, HUGE_BLOCKS)
)
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)

READY = 24 * MIB
"""Bytes that are made ready before anybody wants them, enough for a slice of usual size: in a virtual machine
whose host takes free memory back, 22 MB of fresh pages cost 5-45 ms, while the first reader waits."""

KEPT_SPENT = 4
"""Parts read to their end that stay in memory all the same: requests of one reader arrive out of
order."""

PartKey = tuple[str, str, int]
"""Key, ETag, number of the part."""


class Waiter:
    """A reader that waits for some blocks of a part, `until` then (`time.monotonic`).

    `error` is why they have not come yet, or never will.
    """

    __slots__ = ("error", "gate", "need", "until")

    def __init__(self, need: int, until: float) -> None:
        self.need = need
        self.until = until
        self.error: BaseException | None = None
        self.gate = threading.Lock()
        self.gate.acquire()


class Buffer:
    """`PART` bytes of page-aligned address space; `touched` says which of its blocks take
    memory."""

    __slots__ = ("_huge", "memory", "touched", "view")

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, PART, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.memory)
        self.touched = 0
        self._huge: bool | None = None

    def prepare(self, expected: int) -> None:
        """Choose the size of its pages, for a part that will hold `expected` blocks of it."""
        huge = expected >= HUGE_BLOCKS
        if huge is not self._huge and _MADV_HUGEPAGE is not None:
            with suppress(OSError):  # a kernel without huge pages
                self.memory.madvise(_MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self._huge = huge

    def touch(self) -> None:
        """Take all of its memory now."""
        self.prepare(BLOCKS_IN_PART)
        with suppress(OSError), open("/dev/zero", "rb", buffering=0) as zeros:
            zeros.readinto(self.view)  # without the interpreter's lock
        self.touched = (1 << BLOCKS_IN_PART) - 1

    def untouched(self, mask: int) -> int:
        """The blocks that will take memory when those of `mask` are filled."""
        if self._huge:
            mask = sum(page for page in _HUGE_PAGES if mask & page)
        return mask & ~self.touched

    def empty(self) -> int:
        """Give its memory back; how many bytes that was. Taking it again costs page faults, about
        0.2 s a GB."""
        freed = self.touched.bit_count() * BLOCK
        self.memory.madvise(mmap.MADV_DONTNEED)
        self.touched = 0
        return freed


class Part:
    """`PART` bytes of an object (fewer at its end). Bit masks: bit n is the part's n-th block.

    `have` are the blocks that can be read, `busy` those on their way, `sums` their checksums.
    """

    __slots__ = (
        "buffer",
        "busy",
        "have",
        "index",
        "obj",
        "pins",
        "size",
        "spent",
        "sums",
        "waiters",
    )

    def __init__(self, obj: ObjectInfo, index: int, buffer: Buffer) -> None:
        self.obj = obj
        self.index = index
        self.size = min(PART, obj.size - index * PART)
        self.buffer = buffer
        self.have = 0
        self.busy = 0
        self.pins = 0
        self.spent = False
        self.sums = array("Q", bytes(8 * BLOCKS_IN_PART))
        self.waiters: list[Waiter] = []

    @property
    def key(self) -> PartKey:
        return self.obj.key, self.obj.etag, self.index

    def readable(self, start: int) -> int:
        """Bytes from `start` on that are here without a gap."""
        ahead = self.have >> (start // BLOCK)
        blocks = (~ahead & (ahead + 1)).bit_length() - 1
        return min((start // BLOCK + blocks) * BLOCK, self.size) - start if blocks else 0

    def arrived(self, mask: int) -> None:
        """Mark blocks as readable and wake who waits for them."""
        self.have |= mask
        self.busy &= ~mask
        if self.waiters:
            for waiter in [w for w in self.waiters if self.have & w.need == w.need]:
                self.waiters.remove(waiter)
                waiter.gate.release()

    def fail(self, mask: int, error: BaseException) -> None:
        """Wake who waits for any of these blocks, with `error`."""
        for waiter in self.waiting(mask):
            self.waiters.remove(waiter)
            waiter.error = error
            waiter.gate.release()

    def waiting(self, mask: int) -> list[Waiter]:
        """Who waits for any of these blocks."""
        return [waiter for waiter in self.waiters if waiter.need & mask]


class Parts:
    """All parts in memory; `limit` is the budget and `used` what is taken of it, in bytes; `first` is how
    many buffers are worth being made ready.

    `starved` is set when there was no memory for somebody, until some may be free again.
    """

    def __init__(self, limit: int) -> None:
        self.limit = max(limit, 4 * PART)
        self.first = min(READY, self.limit // 8) // PART
        self.used = 0
        self.starved = False
        self._parts: dict[PartKey, Part] = {}
        self._idle: LRUCache[PartKey, Part] = LRUCache(math.inf)
        self._spent: OrderedDict[PartKey, Part] = OrderedDict()
        self._free: list[Buffer] = []
        self._ready: list[Buffer] = []

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts.values())

    def keep_ready(self, buffer: Buffer) -> None:
        """Use `buffer`, which has been touched, for a part to come, unless its memory is wanted
        already."""
        if self.used + PART <= self.limit:
            self._ready.append(buffer)
            self.used += PART

    def find(self, key: PartKey) -> Part | None:
        """That part, if it is here. May be called from any thread without a lock."""
        return self._parts.get(key)

    def add(
        self, obj: ObjectInfo, index: int, mask: int, expected: int, spare: int = 0
    ) -> Part | None:
        """A new part with room for the blocks of `mask`, of which `expected` will follow; None
        without memory."""
        spare_buffers = self._ready or self._free
        part = Part(obj, index, spare_buffers.pop() if spare_buffers else Buffer())
        part.buffer.prepare(expected)
        if not self.make_room(part, mask, spare, expected):
            self.used -= part.buffer.empty()  # it may have got another's memory, but too little
            self._free.append(part.buffer)
            return None
        self._parts[part.key] = part
        self._idle[part.key] = part
        return part

    def make_room(self, part: Part, mask: int, spare: int = 0, expected: int = 0) -> bool:
        """Let the blocks of `mask` take memory, giving up idle parts; False if `spare` bytes would
        not remain.

        The memory of a given up part is reused as it is where the part is new and expects to fill
        most of it, and that of one read to its end even while there is other memory: fresh pages
        cost 0.2 s of CPU a GB.
        """
        self.pin(part)
        try:
            if not part.buffer.touched and len(self._spent) > KEPT_SPENT:
                self._give_up(part, expected)
            while True:
                missing = part.buffer.untouched(mask)
                size = missing.bit_count() * BLOCK
                if self.used + size + spare <= self.limit:
                    break
                if self._ready:
                    self.used -= self._ready[-1].empty()
                    self._free.append(self._ready.pop())
                    continue
                if not self._spent and not self._idle:
                    self.starved = True
                    return False
                self._give_up(part, expected)
            part.buffer.touched |= missing
            self.used += size
            return True
        finally:
            part.pins -= 1
            if part.pins == 0 and part.key in self._parts:
                self._idle[part.key] = part

    def pin(self, part: Part) -> None:
        """Keep it, until as many calls of `unpin`."""
        part.pins += 1
        if part.pins == 1:
            self._idle.pop(part.key, None)
            self._spent.pop(part.key, None)

    def unpin(self, part: Part) -> None:
        """One reason less to keep it."""
        part.pins -= 1
        if part.pins == 0:
            (self._spent if part.spent else self._idle)[part.key] = part

    def spend(self, part: Part) -> None:
        """It was read to its end."""
        part.spent = True
        if self._idle.get(part.key) is part:  # not another that has taken its place
            del self._idle[part.key]
            self._spent[part.key] = part

    def _give_up(self, part: Part, expected: int) -> None:
        """Forget an idle part, and leave its memory to `part` or to nobody."""
        key, idle = self._spent.popitem(last=False) if self._spent else self._idle.popitem()
        del self._parts[key]
        if not part.buffer.touched and idle.buffer.touched.bit_count() <= 2 * expected:
            part.buffer, idle.buffer = idle.buffer, part.buffer
        else:
            self.used -= idle.buffer.empty()
        self._free.append(idle.buffer)
