"""Readahead: tells `blocks` what readers will want next.

Every slice that is read through `Readahead.content` reports its demands to the Predictor of its
specimen, and what that predicts is queued as prefetch: the rest of the same slice before the next
slices. How far ahead follows from what the link carries and from a share of the memory budget.

Threads: contents are read from any thread. Each specimen's predictor has a lock, held for
microseconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from bffs.blocks import BlockReader
from bffs.cachefile import CachedObject
from bffs.checking import Checker
from bffs.content import Content
from bffs.expectation import Expectation
from bffs.parts import PART
from bffs.predictor import Plan, Predictor
from bffs.schedule import Priority
from bffs.store import ByteRange, ObjectInfo
from bffs.tracks import Wish
from bffs.units import MIB

ACTIVE = 3.0
"""Seconds after its last demand during which a specimen counts as being read, and gets its share of
memory."""

RESERVE = 4 * PART
"""Bytes that may be ahead of a reader beside those on their way. As many as are on their way, which is four times
as much on a link of 1 GB/s, made reading 5 % slower: memory that is used for the first time is dear."""

AROUND = 16
"""Slices on either side of one: while the kernel reads all of them by itself, nothing has to be foreseen,
which would take half of the time of an open."""

PROOF = 2 * MIB
"""Bytes of a slice after which a reader that came there from the slice before is believed to be one:
the kernel itself reads up to so much past what a program reads."""


class Progress(NamedTuple):
    """How far the readers of a specimen are: its slices, the position of the one demanded last (None
    if it isn't known), and how many seconds ago that was."""

    name: str
    slices: Sequence[ObjectInfo]
    latest: int | None
    age: float


class Readahead:
    """Follows all readers of a mount. `most` is the bytes to read ahead, None for as much as is
    useful; `checker` lets the kernel read what is cached by itself."""

    def __init__(
        self,
        blocks: BlockReader,
        *,
        memory: int,
        most: int | None,
        checker: Checker | None = None,
    ) -> None:
        self.blocks = blocks
        self.checker = checker
        self._share = memory // 2
        self._most = most
        self._last_demand: dict[str, float] = {}
        self._specimens: dict[str, SpecimenReadahead] = {}

    def specimen(self, name: str, slices: Sequence[ObjectInfo]) -> SpecimenReadahead:
        """A follower for one specimen's readers; `name` is unique in the mount."""
        made = self._specimens[name] = SpecimenReadahead(self, name, slices)
        return made

    def lately(self, seconds: float) -> list[Progress]:
        """The specimens that something was demanded of in the last `seconds`, the latest first."""
        now = time.monotonic()
        ages = sorted((now - last, name) for name, last in tuple(self._last_demand.items()))
        recent = [(age, name, self._specimens[name]) for age, name in ages if age <= seconds]
        return [Progress(name, each.slices, each.latest, age) for age, name, each in recent]

    def noted(self, name: str) -> None:
        """Something of specimen `name` is demanded now."""
        self._last_demand[name] = time.monotonic()

    def depth(self) -> int:
        """Bytes that may be ahead of a reader who is demanding something now."""
        now = time.monotonic()
        active = sum(now - last < ACTIVE for last in tuple(self._last_demand.values()))
        useful = self.blocks.link.window + RESERVE
        return min(self._share // active, useful if self._most is None else self._most)


class SpecimenReadahead:
    """Follows the readers of one specimen."""

    def __init__(self, readahead: Readahead, name: str, slices: Sequence[ObjectInfo]) -> None:
        self._readahead = readahead
        self._blocks = readahead.blocks
        self._name = name
        self.slices = slices
        self._lock = threading.Lock()
        self._predictor = Predictor([obj.size for obj in slices])
        self._tracks: set[int] = set()
        self._plans = 0
        self._expectation = Expectation()
        self._passing = bytearray(len(slices))
        """Of each slice, 1 if the kernel could read it by itself when it was opened last."""

        self.latest: int | None = None
        """The position of the slice that something was demanded of last."""
        self._limits: dict[int, int | None] = {}
        self.preface: Sequence[ByteRange] = ()
        """What is wanted of each further slice before anything else: its header, where the pixels
        are given out only after a look at it."""

    def content(self, index: int, limit: int | None = None, *, entered: bool = False) -> Content:
        """The content of a slice, for a handle that is being opened.

        No byte from `limit` on will be read through it. `entered` says that its reader has come from
        the slice before without opening anything, so that it may be the kernel reading ahead.
        """
        if not self._is_amid_passing(index):
            with self._lock:
                self._predictor.opened(index)
        return SliceContent(self, self._blocks, self.slices[index], index, limit, entered)

    def reached(self, index: int) -> int | None:
        """Where the latest reader of slice `index` has come to, if it is remembered."""
        with self._lock:
            return self._predictor.reached(index)

    def demanded(self, index: int, start: int, stop: int, limit: int | None = None) -> None:
        """A reader asks for these bytes of slice `index` now, and will for none from `limit` on."""
        self._note(index)
        depth = self._readahead.depth()
        if not depth:
            return
        hunch = self._blocks.link.quickly
        cancelled: set[int] = set()
        with self._lock:
            self._limits[index] = limit
            plan = self._predictor.demanded(index, start, stop, depth, hunch)
            if plan is None:
                return
            self._plans += 1
            order = self._plans
            if plan.jump:
                cancelled, self._tracks = self._tracks - {plan.track}, set()
            self._tracks.add(plan.track)
        for track in cancelled:
            for priority in Priority:
                self._blocks.cancel((self._name, track, priority))
        self._follow(plan, index, order)

    def whole(self, index: int) -> CachedObject | None:
        """What is cached of a slice that is being opened, if the kernel may read it by itself.

        That is then taken for a read of all of it: nothing more will be heard of the reader.
        """
        obj, checker = self.slices[index], self._readahead.checker
        if checker is None or self._blocks.is_retired(obj):
            return None
        check = self._expectation.is_worth_checking()
        cached = checker.whole(obj, check=check)
        self._passing[index] = cached is not None
        if cached is not None and check:
            if self._is_amid_passing(index):
                self._note(index)
            else:
                self.demanded(index, 0, obj.size)
        return cached

    def _note(self, index: int) -> None:
        self.latest = index
        self._readahead.noted(self._name)

    def _is_amid_passing(self, index: int) -> bool:
        """Whether the kernel could read the slice and all around it by itself, so that nothing has to
        be foreseen."""
        return self._passing.find(0, max(0, index - AROUND), index + AROUND + 1) < 0

    def left(self, size: int, seconds: float) -> None:
        """A handle by which the kernel read a slice of `size` bytes by itself was open for so long."""
        self._expectation.note(size, seconds)

    def _follow(self, plan: Plan, index: int, order: int) -> None:
        """Queue what is planned: the rest of slice `index` before that of others."""
        wishes = _whole_parts(self._limited(plan.wishes), self.slices)
        same = [w for w in wishes if w.slice == index]
        others = self._prefaced([w for w in wishes if w.slice != index])
        for priority, queued in ((Priority.FILE, same), (Priority.SLICES, others)):
            self._blocks.prefetch(
                (self._name, plan.track, priority),
                priority,
                [(self.slices[w.slice], w.start, w.stop) for w in queued],
                order,
            )
        if self._readahead.checker is not None and self._expectation.is_asked:
            self._readahead.checker.ahead(
                [self.slices[index] for index in dict.fromkeys(w.slice for w in others)]
            )

    def _limited(self, wishes: Sequence[Wish]) -> list[Wish]:
        """The wishes as far as readers may still read that far."""
        limited = []
        for wish in wishes:
            limit = self._limits.get(wish.slice)
            stop = wish.stop if limit is None else min(wish.stop, limit)
            if wish.start < stop:
                limited.append(wish._replace(stop=stop))
        return limited

    def _prefaced(self, wishes: list[Wish]) -> list[Wish]:
        """The wishes, with what the first one for a slice doesn't bring soon of its preface before
        it."""
        if not self.preface:
            return wishes
        prefaced: list[Wish] = []
        for place, wish in enumerate(wishes):
            if not place or wishes[place - 1].slice != wish.slice:
                size = self.slices[wish.slice].size
                for start, stop in self.preface:
                    soon = min(wish.stop, wish.start + PART)
                    if start < size and not wish.start <= start < soon:
                        prefaced.append(Wish(wish.slice, start, min(stop, size)))
            prefaced.append(wish)
        return prefaced


def _whole_parts(wishes: Sequence[Wish], slices: Sequence[ObjectInfo]) -> Sequence[Wish]:
    """The wishes of a long plan, without the beginning of a part that its last one ends with.

    The part comes whole with a later plan: one that grows bit by bit can't take the memory of a
    part that was read, and fresh pages cost 0.2 s of CPU a GB.
    """
    if len(wishes) < 2 or sum(w.stop - w.start for w in wishes) < 4 * PART:
        return wishes
    last = wishes[-1]
    if last.stop == slices[last.slice].size:
        return wishes
    stop = last.stop - last.stop % PART
    return [*wishes[:-1], last._replace(stop=stop)] if stop > last.start else wishes[:-1]


class SliceContent:
    """A slice whose demands are followed; see `Content`."""

    def __init__(
        self,
        follower: SpecimenReadahead,
        blocks: BlockReader,
        obj: ObjectInfo,
        index: int,
        limit: int | None,
        entered: bool,
    ) -> None:
        self._follower = follower
        self._blocks = blocks
        self.obj = obj
        self._index = index
        self._limit = limit
        self._unproven = entered
        self._began = obj.size
        self._whole: CachedObject | None = None
        self._passed_at = 0.0

    @property
    def size(self) -> int:
        return self.obj.size

    def reached(self) -> int | None:
        """Where the latest reader of the slice has come to, if it is remembered."""
        return self._follower.reached(self._index)

    def read_into(self, offset: int, into: memoryview) -> int:
        stop = min(offset + len(into), self.obj.size)
        if offset < stop:
            start = offset
            if self._unproven:
                start = self._began = min(self._began, offset)
                self._unproven = stop - start <= PROOF
            if not self._unproven:
                self._follower.demanded(self._index, start, stop, self._limit)
        return self._blocks.read_into(self.obj, offset, into)

    def backing(self) -> int | None:
        """See `Backed.backing`."""
        self._whole = self._follower.whole(self._index)
        self._passed_at = time.monotonic()
        return None if self._whole is None else self._whole.fd

    def close(self) -> None:
        """The handle is closed."""
        if self._whole is not None:
            self._follower.left(self.obj.size, time.monotonic() - self._passed_at)
