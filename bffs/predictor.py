"""What will be read next of one specimen: further on in this slice, and in the slices that follow.

Pure: no I/O, no clock, no threads. A `Predictor` is told every demand that reaches the driver and
answers with a `Plan` of what to prefetch, or with None while the last plan still holds, which is
the answer nearly always.

What it keeps, from small to large, all of it bounded:

- a *stream* is a stretch of one slice that grows forwards as it is read;
- a *visit* is what was read of one slice: a few streams;
- a *track* is one walk through the slices: its visits as they arrived, and the stride between them.

What the next slices of a track are wanted for is its *template*: the stretches that the last two
slices it left have in common (a region of interest, headers, or the whole slice), or the whole
slice if it is being read through.

Locks: none; the owner calls one Predictor from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise, takewhile
from math import gcd
from typing import NamedTuple

from bffs.units import KIB, MIB

_Stretch = tuple[int, int]  # from and up to which offset of a slice
_END = 1 << 62  # as a stretch's stop: to the end of the slice, however long it is

# Within a slice. A stream is trusted at its third read in succession, at its fifth if there are
# gaps of up to a block; at its second if it starts below _HEAD, as files are read from the start,
# or if its reads are _LARGE, as the kernel itself then took it for sequential. It survives a few
# gaps of _SKIP, and requests that come late by _REORDERED: two or three of 1 MiB are in flight.
_HEAD = 64 * KIB
_LARGE = 512 * KIB
_SKIP = MIB
_REORDERED = 2 * MIB
_FIRST = MIB  # the first window of a stream; then ...
_GROWTH = 4  # ... this many times what it has read
_STREAMS = 8  # remembered per visit

# From slice to slice. A walk may leave out _NEAR steps (they were in the page cache), or be out of
# order by as many (a pool of threads). Two visits may start a walk if they are not more than _NEAR
# apart; they already make one if they are not more than _HUNCH apart and the first was read whole
# and just now.
_NEAR = 16
_HUNCH = 5
_LATE = 3  # demands of a slice that may come after it was left for the next one
_COLUMN = 32  # slices at most that a narrow template is wanted of
_WHOLE = 64  # slices at most that a wide one is wanted of: bounds the plan where slices are tiny
_ACTIVE = 64  # demands for which a slice or track left for another counts as still being read
_VISITS = 32  # remembered per track
_TRACKS = 8  # remembered


class Wish(NamedTuple):
    """Bytes wanted soon: `start` to `stop` (half-open) of the slice with this index."""

    slice: int
    start: int
    stop: int


class Plan(NamedTuple):
    """What to prefetch for a track, nearest first, *instead* of what was planned for it before.

    `track` is a number that is never used again for another track. `jump` says that the demand
    fitted no prediction: what is queued for the specimen's other tracks should be cancelled too.
    Wishes lie within their slices, don't overlap, and begin and end at multiples of the block or at
    a slice's end; they may name bytes that are there already.
    """

    track: int
    jump: bool
    wishes: tuple[Wish, ...]


class _Stream:
    """A stretch of a slice being read forwards; `sure` once it is believed that it goes on."""

    __slots__ = ("due", "start", "stop", "sure", "trust")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.trust = 0
        self.sure = False
        self.due = 0  # at this offset the next plan is due

    def judge(self, gap: int, length: int, block: int) -> None:
        """Believe more or less that it goes on, as `length` bytes were read after a gap."""
        if gap > block:
            self.trust -= 2
        elif gap > 0:
            self.trust += 1
        elif gap == 0:
            self.trust += 4 if self.start < _HEAD or length >= _LARGE else 2
        self.trust = min(self.trust, 6)
        self.sure = self.trust > (0 if self.sure else 3)


class _Visit:
    """What was read of one slice. Times are counted in demands."""

    __slots__ = ("back", "block", "born", "index", "seen", "size", "streams")

    def __init__(self, index: int, size: int, block: int, now: int) -> None:
        self.index = index
        self.size = size
        self.block = block
        self.streams: list[_Stream] = []  # the one read last comes first
        self.born = now
        self.seen = now  # last demanded
        self.back = -_ACTIVE  # last demanded after another slice of the same walk had been

    def note(self, start: int, stop: int) -> bool:
        """Add what was demanded, to the stream that is then the first; True if a plan is due."""
        streams = self.streams
        for position, stream in enumerate(streams):
            gap = start - stream.stop
            if stream.sure:
                if gap > _SKIP or stop < stream.stop - _REORDERED:
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

    def _overtake(self, stream: _Stream) -> None:
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
        streams.insert(0, _Stream(start, stop))

    def whole(self) -> bool:
        """The slice is being read through: in one go from near its start to beyond its middle."""
        near = max(self.block, self.size >> 4)
        return any(
            stream.start <= near and 2 * (stream.stop - stream.start) > self.size
            for stream in self.streams
        )

    def read_in_turn(self, now: int) -> bool:
        """It is, or lately was, read at the same time as other slices of its walk."""
        return now - self.back < _ACTIVE

    def goes_on(self) -> bool:
        """The stream read last is believed to go on."""
        return self.streams[0].sure and self.streams[0].stop < self.size

    def stretches(self) -> list[_Stretch]:
        """What was read, in order, joined across gaps of a block."""
        merged: list[_Stretch] = []
        for start, stop in sorted((stream.start, stream.stop) for stream in self.streams):
            reach = stop if stop < self.size - self.block else _END
            if merged and start <= merged[-1][1] + self.block:
                merged[-1] = merged[-1][0], max(reach, merged[-1][1])
            else:
                merged.append((start, reach))
        return merged


class _Track:
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

    def __init__(self, number: int, visit: _Visit) -> None:
        self.number = number
        self.visits = {visit.index: visit}  # in the order of their arrival
        self.arrivals = [visit.index]  # the last four
        self.front = visit.index  # the foremost slice that was demanded
        self.opened = visit.index  # the foremost that was opened since
        self.stride = 0
        self.steps = 0
        self.wished: tuple[Wish, ...] = ()
        self.stale = False  # a jump cancelled what was wished
        self.returned = -_ACTIVE  # last demanded after another track had been

    def steps_to(self, index: int) -> int | None:
        """How many steps a proven walk is from the slice; None if it doesn't come there soon."""
        if self.steps > 1:
            for origin in (self.front, self.opened):
                steps, rest = divmod(index - origin, self.stride)
                if not rest and -_NEAR <= steps <= _NEAR:
                    return steps
        return None

    def add(self, visit: _Visit) -> None:
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

    def template(self, visit: _Visit, now: int) -> list[_Stretch]:
        """The stretches wanted of the slices after `visit`, in order; none if nothing is known."""
        if not self.steps:
            return []
        last = [old for old in islice(reversed(self.visits.values()), 16) if old is not visit]
        if self.steps == 1:
            near = abs(self.stride) <= _HUNCH and visit.born - last[0].seen <= _ACTIVE // 4
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

    def ahead(self, template: list[_Stretch], size: int) -> int:
        """How many of the next slices, of `size` bytes, are wanted: more as the walk goes on."""
        if 2 * _length(template, size) > size:
            return min(_WHOLE, 1 << min(6, 2 * self.steps - 2))
        return min(_COLUMN, max(4, self.steps // 4))


class Predictor:
    """Foresees what will be read of one specimen, whose slices have the given sizes in bytes.

    Plans are rounded to multiples of `block` bytes. While a reader goes straight on, a new plan is
    made every `replan` bytes. Not thread-safe. Nothing raises: demands outside the slices are
    ignored.
    """

    def __init__(
        self, sizes: Sequence[int], *, block: int = 128 * KIB, replan: int = 8 * MIB
    ) -> None:
        self._sizes = sizes
        self._block = block
        self._replan = replan
        self._now = 0  # demands so far
        self._number = 0  # of tracks so far
        self._tracks: list[_Track] = []  # the one demanded last comes first
        self._visit: _Visit | None = None  # the slice demanded last, in that track

    def opened(self, index: int) -> None:
        """A slice was opened, maybe not for the first time; the page cache may meet its reads."""
        for track in self._tracks:
            if track.steps > 1:
                steps, rest = divmod(index - track.opened, track.stride)
                if not rest and 0 < steps <= _NEAR:
                    track.opened = index

    def demanded(self, index: int, start: int, stop: int, depth: int) -> Plan | None:
        """Bytes `start` to `stop` of a slice are read; None if the last plan still holds.

        `depth` is how many bytes may be held ahead for one track; the plan's wishes are never more
        in all.
        """
        self._now += 1
        visit = self._visit
        if visit is None or visit.index != index:
            return self._elsewhere(index, start, stop, depth)
        visit.seen = self._now
        if stop > visit.size:
            stop = visit.size
        if not 0 <= start < stop or not visit.note(start, stop):
            return None
        return self._plan(self._tracks[0], visit, depth, jump=False)

    def _elsewhere(self, index: int, start: int, stop: int, depth: int) -> Plan | None:
        """Another slice is demanded than the last time."""
        if not 0 <= index < len(self._sizes):
            return None
        stop = min(stop, self._sizes[index])
        if not 0 <= start < stop:
            return None
        now, before = self._now, self._tracks[0] if self._tracks else None
        known = False
        track: _Track | None = None
        for track in self._tracks:
            visit = track.visits.get(index)
            if visit is not None and now - visit.seen <= _ACTIVE:
                visit.seen = now
                if track is before:
                    visit.back = now
                known = True
                break
        else:
            visit = _Visit(index, self._sizes[index], self._block, now)
            track = self._walk_to(index)
            if track is not None:
                track.add(visit)
        assert visit is not None
        fresh = track is None
        if track is None:
            track = self._new_track(visit)
        elif track is not before:
            track.returned = now
            self._tracks.remove(track)
            self._tracks.insert(0, track)
        self._visit = visit
        jump = fresh and self._jumped()
        due = visit.note(start, stop)
        if due or track.stale or (track.steps and not known):
            return self._plan(track, visit, depth, jump)
        return Plan(track.number, True, ()) if jump else None

    def _walk_to(self, index: int) -> _Track | None:
        """The track that a slice not being read yet belongs to, ready for the visit to be added."""
        distances = ((track.steps_to(index), track) for track in self._tracks)
        proven = [(abs(steps), track) for steps, track in distances if steps is not None]
        if proven:
            return min(proven, key=lambda each: each[0])[1]
        for track in self._tracks:
            if track.steps > 1 and _dense([*track.arrivals[-2:], index]):
                return track  # threads that started out of order hid the stride
        unproven = [
            (abs(index - old), track, old)
            for track in self._tracks
            if track.steps < 2
            for old in track.visits
        ]
        if not unproven:
            return None
        distance, track, nearest = min(unproven, key=lambda each: each[0])
        if distance <= _NEAR:
            if track.steps and not _dense([*track.arrivals[-2:], index]):
                return self._part(track, nearest)
            return track
        # Far steps: the last two tracks are single slices, and this one is as far from them again.
        if len(self._tracks) > 1:
            later, earlier = self._tracks[:2]
            if (
                not later.steps
                and not earlier.steps
                and index - later.front == later.front - earlier.front
            ):
                earlier.add(later.visits[later.front])
                earlier.number, earlier.wished = later.number, later.wished
                del self._tracks[0]
                return earlier
        return None

    def _part(self, track: _Track, keep: int) -> _Track:
        """Two visits were no walk but two readers: the track of one, after making the other's."""
        (other,) = (index for index in track.visits if index != keep)
        kept = _Track(track.number, track.visits[keep])
        kept.wished, kept.stale, kept.returned = track.wished, track.stale, track.returned
        self._tracks.remove(track)
        self._tracks.insert(0, kept)
        self._new_track(track.visits[other], place=1)
        return kept

    def _new_track(self, visit: _Visit, place: int = 0) -> _Track:
        """A track of one visit. If there are too many, the longest unused goes, walks last."""
        if len(self._tracks) >= _TRACKS:
            idle = [track for track in self._tracks[1:] if track.steps < 2 and not track.wished]
            self._tracks.remove(idle[-1] if idle else self._tracks[-1])
        self._number += 1
        track = _Track(self._number, visit)
        self._tracks.insert(place, track)
        return track

    def _jumped(self) -> bool:
        """Whether a new track is a jump, after which the others' plans are void.

        It is one if something is planned for a track that was not read in turn with others lately.
        So the second reader of a specimen voids the first one's plan once, and reads here and there
        do not do so every time.
        """
        others = self._tracks[1:]
        jump = any(track.wished and self._now - track.returned > _ACTIVE for track in others)
        if jump:
            for track in others:
                track.stale = track.stale or bool(track.wished)
                track.wished = ()
        return jump

    def _plan(self, track: _Track, visit: _Visit, depth: int, jump: bool) -> Plan | None:
        template = track.template(visit, self._now)
        if not _conforms(visit, template):
            template = []
        queue = _Queue(self._sizes, self._block, depth)
        beside = (old for old in track.visits.values() if old.read_in_turn(self._now))
        visits = [visit, *(old for old in beside if old is not visit and old.goes_on())]
        share = depth // len(visits)
        for each in visits:
            self._plan_rest(queue, each, template, share)
        if template:
            last = len(self._sizes) - 1
            missing = track.ahead(template, visit.size)
            index = visit.index + track.stride
            while missing and queue.room and 0 <= index <= last:
                old = track.visits.get(index)
                if old is None or self._now - old.seen > _ACTIVE:
                    missing -= 1
                    for start, stop in template:
                        queue.add(index, start, stop)
                index += track.stride
        wishes = tuple(queue.wishes)
        if wishes == track.wished and not jump and not track.stale:
            return None
        track.wished = wishes
        track.stale = False
        return Plan(track.number, jump, wishes)

    def _plan_rest(
        self, queue: _Queue, visit: _Visit, template: list[_Stretch], share: int
    ) -> None:
        """Wish for what is still to be read of a slice that is being read, up to `share` bytes."""
        first = visit.streams[0]
        going = [
            stream
            for stream in visit.streams
            if stream.sure
            and stream.stop < visit.size
            and not any(start <= stream.stop <= stop + visit.block for start, stop in template)
        ]
        wanted = []
        for stream in going:
            ahead = max(_FIRST, _GROWTH * (stream.stop - stream.start))
            wanted.append((stream.stop, stream.stop + min(ahead, share // len(going))))
        wanted += [(_after(visit.streams, start), stop) for start, stop in template]
        room = share
        for start, stop in wanted:
            if room > 0 and start < min(stop, visit.size):
                room -= queue.add(visit.index, start, min(stop, start + room)) - start
        # The next plan is due when half of this one is used up.
        planned = queue.reach(visit.index, first.stop)
        half = share if planned >= visit.size else planned - first.stop
        first.due = first.stop + min(self._replan, max(self._block, half // 2))


class _Queue:
    """Wishes in the making, `depth` bytes at most; those of one slice are added in one go."""

    __slots__ = ("_block", "_sizes", "room", "wishes")

    def __init__(self, sizes: Sequence[int], block: int, depth: int) -> None:
        self._sizes = sizes
        self._block = block
        self.room = max(0, depth // block * block)
        self.wishes: list[Wish] = []

    def add(self, index: int, start: int, stop: int) -> int:
        """Wish for the blocks of a stretch as far as there is room; the offset they reach."""
        block = self._block
        start -= start % block
        stop = min(self._sizes[index], stop + -stop % block)
        same = takewhile(lambda wish: wish.slice == index, reversed(self.wishes))
        for wish in sorted(same):
            if wish.stop > start:
                if wish.start > start:
                    stop = min(stop, wish.start)
                    break
                start = wish.stop
        stop = min(stop, start + self.room)
        if start < stop:
            self.wishes.append(Wish(index, start, stop))
            self.room = (self.room - (stop - start)) // block * block
        return stop

    def reach(self, index: int, start: int) -> int:
        """How far a slice is wished for without a gap from an offset on."""
        for wish in self.wishes:
            if wish.slice == index and wish.start <= start < wish.stop:
                return wish.stop
        return start


def _dense(indices: list[int]) -> bool:
    """Whether three slices may be of one walk, which left out no more than two between them."""
    first, second, third = indices
    return max(indices) - min(indices) <= 4 * gcd(second - first, third - second)


def _length(template: list[_Stretch], size: int) -> int:
    """Bytes that a slice of `size` bytes has in the stretches."""
    return sum(max(0, min(stop, size) - start) for start, stop in template)


def _in_common(later: _Visit, earlier: _Visit) -> list[_Stretch]:
    """What was read of the later slice and of the earlier too, give or take a block."""
    before = earlier.stretches()
    return [
        (start, stop)
        for start, stop in later.stretches()
        if any(abs(start - a) <= later.block and abs(stop - b) <= later.block for a, b in before)
    ]


def _conforms(visit: _Visit, template: list[_Stretch]) -> bool:
    """Whether what was read of a slice looks like the beginning of the template."""
    slack = 8 * visit.block
    return any(
        start - visit.block <= stream.start <= min(start + slack, stop)
        for start, stop in template
        for stream in visit.streams
    )


def _after(streams: list[_Stream], start: int) -> int:
    """Where what is left of a stretch begins, after the stream that has read its beginning."""
    return max(
        (stream.stop for stream in streams if stream.start - _SKIP <= start < stream.stop),
        default=start,
    )
