"""What is fetched next: demanded ranges first, then the prefetch of each stream in turn, nearest
priority first.

A *piece* - consecutive blocks of one part that are neither here nor on their way - is cut only when
a connection is free to fetch it, so nothing is decided early: a demand never waits for a prefetch
that has not started, a cancelled prefetch costs nothing, and the size of a request follows from the
load (small while connections idle, large in bulk).

Prefetch that has started can stand in the way, too, where the link is slow or not known yet: what
nobody has foreseen then makes it give way, see `in_the_way`.

Threads: not thread-safe, its owner's lock guards it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from bffs.cachefile import BLOCK, CachedObject
from bffs.link import MIN_PIECE, Link
from bffs.parts import BLOCKS_IN_PART, PART, Part, Parts
from bffs.store import ByteRange, Interrupt, ObjectInfo
from bffs.units import MIB

RESERVED = 4
"""Connections that prefetching leaves free for demands, but no more than a quarter of them."""

SPLIT = 4
MIN_DEMAND = 2 * BLOCK
"""A demand is split among so many connections, in requests of at least so many bytes: on a link that
is full of prefetch a connection gets its share and no more."""

NEAR = 16 * MIB
"""Bytes ahead of a reader within which it is served as quickly as possible."""

IN_THE_WAY = 0.25
"""Seconds that the link needs at least for prefetch on its way before that has to give way; and no
less than two latencies, since asking again takes one or two."""

PAUSE = 1.0
"""Seconds before it has to again: each time some of what has come is lost."""


class Priority(IntEnum):
    """Why a prefetched range is wanted; lower goes first."""

    FILE = 0
    SLICES = 1
    WARM = 2


@dataclass(slots=True)
class Want:
    """Blocks `first` to `stop` of an object, those not yet dealt with; `first` moves on."""

    obj: ObjectInfo
    first: int
    stop: int
    cached: CachedObject | None = None
    """To look once more whether a block is on disk; not for a demand, whose reader waits for
    memory."""


@dataclass(slots=True)
class Stream:
    """What one reader's prefetch still wants, nearest first."""

    priority: Priority
    wants: deque[Want]
    order: int
    ahead: int = 0
    """Blocks between the reader and what is wanted next: here already, or on their way."""

    def follows(self, obj: ObjectInfo) -> bool:
        """Whether it wants what comes next in that object."""
        return self.priority == Priority.FILE and bool(self.wants) and self.wants[0].obj == obj


@dataclass(slots=True, eq=False)
class Piece:
    """Consecutive blocks of one part, to be fetched by one request, for a stream's prefetch or
    because they are demanded (None)."""

    part: Part
    first: int
    blocks: int
    stream: Hashable | None
    done: int = 0
    """Blocks that have arrived."""
    abandoned: bool = False
    """It has to give way, unless somebody waits for it."""
    interrupt: Interrupt = field(default_factory=Interrupt)

    @property
    def mask(self) -> int:
        """Its blocks within the part."""
        return ((1 << self.blocks) - 1) << self.first

    @property
    def span(self) -> ByteRange:
        """Its bytes within the part."""
        return _span(self.part, self.first, self.blocks)

    @property
    def arrived(self) -> ByteRange:
        """Those of its bytes that are here."""
        return _span(self.part, self.first, self.done)


class Schedule:
    """The queues, and what is on its way because of them."""

    def __init__(self, parts: Parts, link: Link, connections: int) -> None:
        self._parts = parts
        self._link = link
        self._prefetchers = connections - min(RESERVED, connections // 4)
        self._demands: deque[Want] = deque()
        self._streams: OrderedDict[Hashable, Stream] = OrderedDict()
        self._prefetching: set[Piece] = set()
        self._prefetching_bytes = 0
        self._demanded = 0
        self._yielding_to: ObjectInfo | None = None
        self._next_yield = 0.0
        self.saturated = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is waiting to be fetched."""
        return not (self._demands or self._streams)

    @property
    def is_prefetching(self) -> bool:
        """Whether prefetch is on its way."""
        return bool(self._prefetching)

    def figures(self) -> dict[str, int]:
        """Numbers of what is queued and on its way, and bytes of prefetch on its way."""
        return {
            "demands": len(self._demands),
            "streams": len(self._streams),
            "prefetching": self._prefetching_bytes,
        }

    def demand(self, obj: ObjectInfo, runs: Iterable[tuple[int, int]]) -> None:
        """Somebody waits for these runs of blocks (first, stop)."""
        self._demands.extend(Want(obj, *run) for run in runs)

    def prefetch(self, name: Hashable, priority: Priority, wants: deque[Want], order: int) -> None:
        """Want this instead of what stream `name` wanted before, unless that had a higher
        `order`."""
        before = self._streams.get(name)
        if before is not None and before.order > order:
            return
        if wants:
            self._streams[name] = Stream(priority, wants, order)
        else:
            self.cancel(name)

    def cancel(self, name: Hashable) -> None:
        """Forget what that stream wants and is not yet being fetched."""
        self._streams.pop(name, None)

    def clear(self) -> None:
        """Forget all that is not yet being fetched."""
        self._demands.clear()
        self._streams.clear()

    # -- cutting pieces ----------------------------------------------------------------------------------------

    def next(self, idle: int) -> Piece | None:
        """The most urgent piece that may be fetched now, its blocks marked busy and its part
        pinned; `idle` threads could fetch one."""
        for _ in range(len(self._demands)):
            want = self._demands[0]
            size = (want.stop - want.first) * BLOCK
            most = max(MIN_DEMAND, size // max(1, min(SPLIT, idle)))
            piece = self._take(want, most, None)
            if want.first == want.stop:
                self._demands.popleft()
            elif piece is None:
                self._demands.rotate(-1)  # no memory; those behind it may have theirs
            if piece is not None:
                return piece
        if self._demands:
            return None
        if not self._demanded:
            self._yielding_to = None
        return self._next_prefetch(idle)

    def ended(self, piece: Piece) -> None:
        """A piece is not on its way any more. What has given way is wanted again."""
        if piece.stream is None:
            self._demanded -= 1
            return
        self._prefetching.remove(piece)
        self._prefetching_bytes -= piece.blocks * BLOCK
        stream = self._streams.get(piece.stream)
        if piece.abandoned and piece.done < piece.blocks and stream is not None:
            first = piece.part.index * BLOCKS_IN_PART + piece.first
            rest = Want(piece.part.obj, first + piece.done, first + piece.blocks)
            stream.wants.appendleft(rest)
            stream.ahead = max(0, stream.ahead - (rest.stop - rest.first))

    def in_the_way(self, obj: ObjectInfo, block: int, now: float) -> list[Piece]:
        """The prefetch that has to give way to a demand for `block` of `obj`, marked as abandoned:
        its connections are to be interrupted.

        None if the demand was foreseen, for then what is on its way is its own readahead; none
        either where the link is through with it soon, or not known: what has been read in small steps so
        far would make any link look slow. Until what is demanded is here, none starts but
        of what follows in the same object.
        """
        link = self._link
        seconds = max(IN_THE_WAY, 2 * link.latency)
        coming = sum(piece.blocks - piece.done for piece in self._prefetching) * BLOCK
        soon = coming <= link.capacity * seconds
        if soon or not link.capacity or now < self._next_yield or self._is_foreseen(obj, block):
            return []
        pieces = [p for p in self._prefetching if not p.part.waiting(p.mask)]
        for piece in pieces:
            piece.abandoned = True
        self._yielding_to = obj
        self._next_yield = now + PAUSE
        link.overfilled()
        return pieces

    def _is_foreseen(self, obj: ObjectInfo, block: int) -> bool:
        index, bit = divmod(block, BLOCKS_IN_PART)
        part = self._parts.find((obj.key, obj.etag, index))
        if part is not None and (part.busy | part.have) >> bit & 1:
            return True
        return any(
            want.obj == obj and want.first <= block < want.stop
            for stream in self._streams.values()
            for want in stream.wants
        )

    def _next_prefetch(self, idle: int) -> Piece | None:
        free = self._prefetchers - len(self._prefetching)
        backlog = sum(w.stop - w.first for s in self._streams.values() for w in s.wants) * BLOCK
        if not backlog:
            self._streams.clear()
            self.saturated = False
            return None
        room = self._link.window - self._prefetching_bytes
        if free <= 0 or room < min(MIN_PIECE, self._link.window // 2):
            self.saturated = True
            return None
        # What a reader waits for next is split among the idle connections; what is still far from
        # it comes in requests of full size, which cost less.
        split = max(MIN_PIECE, backlog // max(1, min(free, idle)))
        for name in sorted(self._streams, key=lambda name: self._streams[name].priority):
            stream = self._streams[name]
            if self._yielding_to is not None and not stream.follows(self._yielding_to):
                continue
            while stream.wants:
                want = stream.wants[0]
                before = want.first
                far = stream.ahead * BLOCK >= NEAR
                most = self._link.piece if far else min(self._link.piece, split)
                piece = self._take(want, most, name)
                stream.ahead += want.first - before
                if piece is not None:
                    self._streams.move_to_end(name)  # each stream in turn
                    return piece
                if want.first < want.stop:
                    return None
                stream.wants.popleft()
            del self._streams[name]
        return None

    def _take(self, want: Want, most: int, stream: Hashable | None) -> Piece | None:
        """The first piece of about `most` bytes of `want` that has to be fetched.

        None with `want` used up if nothing of it is missing, None with some left if there is no
        memory.
        """
        while want.first < want.stop:
            index, first = divmod(want.first, BLOCKS_IN_PART)
            part = self._parts.find((want.obj.key, want.obj.etag, index))
            taken = part.have | part.busy if part is not None else 0
            on_disk = want.cached.has if want.cached is not None else _nowhere
            if taken >> first & 1 or on_disk(want.first):
                want.first += 1
                continue
            limit = min(BLOCKS_IN_PART - first, want.stop - want.first)
            if limit * BLOCK > most * 3 // 2:  # else what is left would be a request of its own
                limit = max(1, most // BLOCK)
            count = 1
            while (
                count < limit
                and not taken >> (first + count) & 1
                and not on_disk(want.first + count)
            ):
                count += 1
            mask = ((1 << count) - 1) << first
            spare = 0 if stream is None else 2 * PART
            if part is None:
                expected = min(BLOCKS_IN_PART - first, want.stop - want.first)
                part = self._parts.add(want.obj, index, mask, expected, spare)
                if part is None:
                    return None
            elif not self._parts.make_room(part, mask, spare):
                return None
            part.busy |= mask
            self._parts.pin(part)
            want.first += count
            piece = Piece(part, first, count, stream)
            if stream is None:
                self._demanded += 1
            else:
                self._prefetching.add(piece)
                self._prefetching_bytes += count * BLOCK
            return piece
        return None


def _span(part: Part, first: int, blocks: int) -> ByteRange:
    return ByteRange(first * BLOCK, min((first + blocks) * BLOCK, part.size))


def _nowhere(block: int) -> bool:
    return False
