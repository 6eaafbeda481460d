"""What was read of a specimen, and where that leads: streams, visits and tracks.

From small to large, all of it bounded:

- a *stream* is a stretch of one slice that grows forwards as it is read;
- a *visit* is what was read of one slice: a few streams;
- a *track* is one walk through the slices: its visits as they arrived, and the stride between them.

What the next slices of a track are wanted for is its *template*: the stretches that the last two
slices it left have in common (a region of interest, headers, or the whole slice), or the whole
slice if it is being read through.

Pure, and without locks: one `Predictor` owns all of it.
"""

from __future__ import annotations

from itertools import islice, pairwise
from math import gcd
from typing import NamedTuple

from bffs.units import KIB, MIB

Stretch = tuple[int, int]  # from and up to which offset of a slice
_END = 1 << 62  # as a stretch's stop: to the end of the slice, however long it is

# Within a slice. A stream is trusted at its third read in succession, at its fifth if there are
# gaps of up to a block; at its second if it starts below HEAD, as files are read from the start,
# or if its reads are LARGE, as the kernel itself then took it for sequential. It survives a few
# gaps of SKIP, and requests that come late by REORDERED: two or three of 1 MiB are in flight.
HEAD = 64 * KIB
LARGE = 512 * KIB
FULL = MIB  # what the kernel asks for at most: the read behind it may be longer
SKIP = MIB
REORDERED = 2 * MIB
_STREAMS = 8  # remembered per visit

# From slice to slice. A walk may leave out NEAR steps (they were in the page cache), or be out of
# order by as many (a pool of threads). Two visits may start a walk if they are not more than NEAR
# apart; they already make one if they are not more than _HUNCH apart and the first was read whole
# and just now.
NEAR = 16
_HUNCH = 5
_LATE = 3  # demands of a slice that may come after it was left for the next one
_COLUMN = 32  # slices at most that a narrow template is wanted of
_WHOLE = 64  # slices at most that a wide one is wanted of: bounds the plan where slices are tiny
ACTIVE = 64  # demands for which a slice or track left for another counts as still being read
_VISITS = 32  # remembered per track


_LEAN = 1  # the trust in a stream of one read that is believed to go on


class Wish(NamedTuple):
    """Bytes wanted soon: `start` to `stop` (half-open) of the slice with this index."""

    slice: int
    start: int
    stop: int


class Stream:
    """A stretch of a slice being read forwards; `sure` once it is believed that it goes on."""

    __slots__ = ("due", "start", "stop", "sure", "trust")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.trust = 0
        self.sure = False
        self.due = 0  # at this offset the next plan is due

    @property
    def is_proven(self) -> bool:
        """Whether it was read on at least once."""
        return self.trust > _LEAN

    def judge(self, gap: int, length: int, block: int) -> None:
        """Believe more or less that it goes on, as `length` bytes were read after a gap."""
        if gap > block:
            self.trust -= 2
        elif gap > 0:
            self.trust += 1
        elif gap == 0:
            self.trust += 4 if self.start < HEAD or length >= LARGE else 2
        self.trust = min(self.trust, 6)
        self.sure = self.trust > (0 if self.sure else 3)


class Visit:
    """What was read of one slice. Times are counted in demands."""

    __slots__ = ("back", "block", "born", "eager", "index", "seen", "size", "streams")

    def __init__(self, index: int, size: int, block: int, now: int) -> None:
        self.index = index
        self.size = size
        self.block = block
        self.streams: list[Stream] = []  # the one read last comes first
        self.eager = 0  # bytes from its front that are expected to be read
        self.born = now
        self.seen = now  # last demanded
        self.back = -ACTIVE  # last demanded after another slice of the same walk had been

    def note(self, start: int, stop: int) -> bool:
        """Add what was demanded, to the stream that is then the first; True if a plan is due."""
        streams = self.streams
        for position, stream in enumerate(streams):
            gap = start - stream.stop
            if stream.sure:
                if gap > SKIP or stop < stream.stop - REORDERED:
                    continue
            elif gap > self.block or start < stream.start:
                continue
            if position:
                streams.insert(0, streams.pop(position))
            if stop <= stream.stop:
                return False
            stream.stop = stop
            stream.judge(gap, stop - start, self.block)
            if len(streams) > 1:
                self._overtake(stream)
            return stream.sure and stop >= stream.due
        self._begin(start, stop)
        return False

    def trust(self, risk: int) -> None:
        """Believe that the stream at the front goes on, for `risk` bytes at least."""
        self.eager = risk
        self.streams[0].sure = True
        self.streams[0].trust = 4

    def lean_on(self) -> None:
        """Believe for a start that what was read last goes on."""
        self.streams[0].sure = True
        self.streams[0].trust = _LEAN

    def doubt(self) -> None:
        """Believe it no longer."""
        self.eager = 0
        for stream in self.streams:
            if not stream.start:
                stream.sure = False
                stream.trust = 0

    def _overtake(self, stream: Stream) -> None:
        """Make one of a stream and those further on that it has come up to."""
        for other in self.streams[1:]:
            if stream.start < other.start <= stream.stop < other.stop:
                stream.stop = other.stop
                self.streams.remove(other)

    def _begin(self, start: int, stop: int) -> None:
        """What was demanded continues no stream, but may lie just before one."""
        streams = self.streams
        for stream in streams:
            if start < stream.start <= stop <= stream.stop:
                stream.start = start
                streams.remove(stream)
                streams.insert(0, stream)
                return
        if len(streams) == _STREAMS:
            unsure = [stream for stream in streams if not stream.sure]
            streams.remove((unsure or streams)[-1])
        streams.insert(0, Stream(start, stop))

    def whole(self) -> bool:
        """The slice is being read through: in one go from near its start to beyond its middle."""
        near = max(self.block, self.size >> 4)
        return any(
            stream.start <= near and 2 * (stream.stop - stream.start) > self.size
            for stream in self.streams
        )

    def read_in_turn(self, now: int) -> bool:
        """It is, or lately was, read at the same time as other slices of its walk."""
        return now - self.back < ACTIVE

    def goes_on(self) -> bool:
        """The stream read last is believed to go on."""
        return self.streams[0].sure and self.streams[0].stop < self.size

    def stretches(self) -> list[Stretch]:
        """What was read, in order, joined across gaps of a block."""
        merged: list[Stretch] = []
        for start, stop in sorted((stream.start, stream.stop) for stream in self.streams):
            reach = stop if stop < self.size - self.block else _END
            if merged and start <= merged[-1][1] + self.block:
                merged[-1] = merged[-1][0], max(reach, merged[-1][1])
            else:
                merged.append((start, reach))
        return merged


class Track:
    """One walk through the slices: by `stride`, if that is not zero, confirmed by `steps` steps."""

    __slots__ = (
        "arrivals",
        "front",
        "number",
        "opened",
        "returned",
        "stale",
        "steps",
        "stride",
        "visits",
        "wished",
    )

    def __init__(self, number: int, visit: Visit) -> None:
        self.number = number
        self.visits = {visit.index: visit}  # in the order of their arrival
        self.arrivals = [visit.index]  # the last four
        self.front = visit.index  # the foremost slice that was demanded
        self.opened = visit.index  # the foremost that was opened since
        self.stride = 0
        self.steps = 0
        self.wished: tuple[Wish, ...] = ()
        self.stale = False  # a jump cancelled what was wished
        self.returned = -ACTIVE  # last demanded after another track had been

    def steps_to(self, index: int) -> int | None:
        """How many steps a proven walk is from the slice; None if it doesn't come there soon."""
        if self.steps > 1:
            for origin in (self.front, self.opened):
                steps, rest = divmod(index - origin, self.stride)
                if not rest and -NEAR <= steps <= NEAR:
                    return steps
        return None

    def add(self, visit: Visit) -> None:
        """The walk has come to another slice, or after a while to one of its slices again."""
        index = visit.index
        self.visits.pop(index, None)
        self.visits[index] = visit
        if len(self.visits) > _VISITS:
            del self.visits[next(iter(self.visits))]
        if index not in self.arrivals:
            self._step(index)
            self.opened = self.front

    def _step(self, index: int) -> None:
        """Take the slice into account for stride and steps."""
        known = self.steps_to(index) is not None
        self.arrivals = [*self.arrivals[-3:], index]
        strides = {later - earlier for earlier, later in pairwise(self.arrivals)}
        if len(strides) == 1:
            # Equal steps decide: two make a walk, and three make another one of a walk, as two may
            # be chance among threads that are out of order.
            (stride,) = strides
            self.steps = self.steps + 1 if stride == self.stride else len(self.arrivals) - 1
            self.stride = stride
            self.front = index
        elif not known:  # threads that started out of order: the stride that holds the last three
            first, second, _ = last = self.arrivals[-3:]
            self.stride = gcd(second - first, index - second)
            if second + index < 2 * first:
                self.stride = -self.stride
            self.steps = 2
            self.front = max(last) if self.stride > 0 else min(last)
        elif (index - self.front) * self.stride > 0:
            self.steps += 1
            self.front = index

    def template(self, visit: Visit, now: int) -> list[Stretch]:
        """The stretches wanted of the slices after `visit`, in order; none if nothing is known."""
        if not self.steps:
            return []
        last = [old for old in islice(reversed(self.visits.values()), 16) if old is not visit]
        if self.steps == 1:
            near = abs(self.stride) <= _HUNCH and visit.born - last[0].seen <= ACTIVE // 4
            return [(0, _END)] if near and last[0].whole() else []
        # Read in turn by several threads, the last slices are unfinished: the fullest pair counts.
        in_turn = any(old.read_in_turn(now) for old in last)
        left = (old for old in last[: None if in_turn else 4] if old.seen < visit.born + _LATE)
        pairs = (_in_common(one, other) for one, other in pairwise(left))
        if in_turn:
            common = max(pairs, key=lambda each: _length(each, visit.size), default=[])
        else:
            common = next(filter(None, pairs), [])
        if not common and visit.whole() + sum(old.whole() for old in last) > 1:
            return [(0, _END)]
        return common

    def ahead(self, template: list[Stretch], size: int) -> int:
        """How many of the next slices, of `size` bytes, are wanted: more as the walk goes on."""
        if 2 * _length(template, size) > size:
            return min(_WHOLE, 1 << min(6, 2 * self.steps - 2))
        return min(_COLUMN, max(4, self.steps // 4))


def _length(template: list[Stretch], size: int) -> int:
    """Bytes that a slice of `size` bytes has in the stretches."""
    return sum(max(0, min(stop, size) - start) for start, stop in template)


def _in_common(later: Visit, earlier: Visit) -> list[Stretch]:
    """What was read of the later slice and of the earlier too, give or take a block."""
    before = earlier.stretches()
    return [
        (start, stop)
        for start, stop in later.stretches()
        if any(abs(start - a) <= later.block and abs(stop - b) <= later.block for a, b in before)
    ]
