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

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from math import gcd
from typing import NamedTuple

from bffs.units import KIB, MIB

_END = 1 << 62  # as a stretch's stop: to the end of the slice, however long it is

# Within a slice.
_HEAD = (
    64 * KIB
)  # a stream that starts below is trusted at its second read: files are read from the start
_LARGE = 512 * KIB  # so is one whose reads are this large: the kernel itself took it for sequential
_SKIP = MIB  # a stream survives gaps of this much
_REORDERED = (
    2 * MIB
)  # and requests that come late by this much: two or three of 1 MiB are in flight
_FIRST = MIB  # the first window of a stream; then ...
_GROWTH = 4  # ... this many times what it has read
_STREAMS = 8  # remembered per visit

# From slice to slice.
_REACH = 8  # steps that a walk may leave out (they were in the page cache), or a pool of threads be out of order
_NEAR = 16  # slices between two visits that may be the start of a walk
_HUNCH = 5  # slices between two visits that are believed a walk after one step, if the first was read whole
_COLUMN = 32  # slices at most that a narrow template is wanted of; wide ones are limited by depth
_WHOLE = 64  # slices at most that are wanted whole: bounds the plan where slices are tiny
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

    __slots__ = ("due", "joins", "start", "stop", "sure")

    def __init__(self, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.joins = 0
        self.sure = False
        self.due = 0  # at this offset the next plan is due


class _Visit:
    """What was read of one slice. Times are counted in demands."""

    __slots__ = ("back", "block", "born", "index", "scattered", "seen", "size", "streams")

    def __init__(self, index: int, size: int, block: int, now: int) -> None:
        self.index = index
        self.size = size
        self.block = block
        self.streams: list[_Stream] = []  # the one read last comes first
        self.scattered = False  # more streams than are remembered
        self.born = now
        self.seen = now  # last demanded
        self.back = -_ACTIVE  # last demanded after another slice had been: several are read at once

    def note(self, start: int, stop: int) -> bool:
        """Add what was demanded; True if a plan is due for it. The stream it belongs to is then the
        first."""
        streams = self.streams
        for position, stream in enumerate(streams):
            gap = start - stream.stop
            if stream.sure:
                if not -_REORDERED <= gap <= _SKIP:
                    continue
            elif gap > self.block or stop < stream.start - self.block:
                continue
            if position:
                streams.insert(0, streams.pop(position))
            if start < stream.start:
                stream.start = start
            if stop <= stream.stop:
                return False
            if stream.sure:
                stream.stop = stop
                return stop >= stream.due
            if gap >= 0:
                stream.joins += 1
                stream.sure = stream.joins > 1 or (
                    gap == 0 and (stream.start < _HEAD or stop - start >= _LARGE)
                )
            stream.stop = stop
            return stream.sure
        if len(streams) == _STREAMS:
            self.scattered = True
            streams.remove(min(reversed(streams), key=lambda old: old.stop - old.start))
        streams.insert(0, _Stream(start, stop))
        return False

    def whole(self) -> bool:
        """The slice is being read through: in one go from near its start to beyond its middle."""
        near = max(self.block, self.size >> 4)
        return any(
            stream.start <= near and 2 * (stream.stop - stream.start) > self.size
            for stream in self.streams
        )

    def stretches(self) -> list[tuple[int, int]]:
        """What was read, in order, joined across gaps of less than a block; nothing if it was
        scattered."""
        merged: list[tuple[int, int]] = []
        if self.scattered:
            return merged
        for start, stop in sorted((stream.start, stream.stop) for stream in self.streams):
            if stop >= self.size - self.block:
                stop = _END
            if merged and start <= merged[-1][1] + self.block:
                merged[-1] = merged[-1][0], max(stop, merged[-1][1])
            else:
                merged.append((start, stop))
        return merged


class _Track:
    """One walk through the slices: by `stride`, if that is not zero, confirmed by `steps` steps."""

    __slots__ = (
        "arrivals",
        "front",
        "number",
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
        self.arrivals = [visit.index]  # the last three
        self.front = visit.index  # the foremost slice, or one that was opened just after it
        self.stride = 0
        self.steps = 0
        self.wished: tuple[Wish, ...] = ()
        self.stale = False  # a jump cancelled what was wished
        self.returned = (
            -_ACTIVE
        )  # last demanded after another track had been: several are read at once

    def steps_to(self, index: int) -> int | None:
        """How many steps a proven walk is from the slice; None if it never comes there, or not
        soon."""
        if self.steps < 2:
            return None
        steps, rest = divmod(index - self.front, self.stride)
        return None if rest or not -_REACH <= steps <= _REACH else steps

    def add(self, visit: _Visit) -> None:
        """The walk has come to another slice."""
        index = visit.index
        steps = self.steps_to(index)
        self.arrivals.append(index)
        if len(self.arrivals) > 3:
            del self.arrivals[0]
        if len(self.arrivals) == 3:
            first, second, _ = self.arrivals
            if index - second == second - first != 0:  # two equal steps decide, whatever was before
                self.steps = self.steps + 1 if self.stride == index - second else 2
                self.stride = index - second
                self.front = index
            elif steps is None:  # threads that start out of order: the stride that holds all three
                self.stride = gcd(second - first, index - second)
                if second + index < 2 * first:
                    self.stride = -self.stride
                self.steps = 2
                self.front = max(self.arrivals) if self.stride > 0 else min(self.arrivals)
            elif steps >= 0:
                self.steps += 1
                self.front = index
        else:
            self.stride = index - self.front
            self.steps = 1
            self.front = index
        self.visits.pop(index, None)  # a stale visit to the same slice
        self.visits[index] = visit
        if len(self.visits) > _VISITS:
            del self.visits[next(iter(self.visits))]

    def template(self, visit: _Visit) -> list[tuple[int, int]]:
        """The stretches wanted of the slices that follow `visit`, in order; none if nothing is
        known."""
        if not self.steps:
            return []
        last = list(islice((old for old in reversed(self.visits.values()) if old is not visit), 8))
        if self.steps > 1:
            left = (old for old in last[:4] if old.seen < visit.born)
            for later, earlier in pairwise(left):
                common = _in_common(later.stretches(), earlier.stretches(), visit.block)
                if common:
                    return common
        whole = visit.whole() + sum(old.whole() for old in last)
        if whole > 1 or (whole and self.steps == 1 and abs(self.stride) <= _HUNCH):
            return [(0, _END)]
        return []

    def ahead(self, template: list[tuple[int, int]]) -> int:
        """How many of the next slices are wanted: more as the walk goes on."""
        if template == [(0, _END)]:
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
        """A slice was opened, for the first time or again; reads may follow or be met by the page
        cache."""
        for track in self._tracks:
            steps = track.steps_to(index)
            if steps is not None and 0 < steps <= _REACH // 2:
                track.front = index
                return

    def demanded(self, index: int, start: int, stop: int, depth: int) -> Plan | None:
        """Somebody reads bytes `start` to `stop` of a slice; None if nothing about the last plan
        changes.

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
                visit.seen = visit.back = now
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
            if track.steps and not _dense([*track.arrivals, index]):
                self._part(track, nearest)
            return track
        # Far steps: the last two tracks are single slices, and this one comes as far after them again.
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

    def _part(self, track: _Track, keep: int) -> None:
        """Two visits were no walk but two readers: `track` keeps one slice, a new track gets the
        other."""
        (other,) = (visit for index, visit in track.visits.items() if index != keep)
        rest = _Track(track.number, track.visits[keep])
        track.visits, track.arrivals, track.front = rest.visits, rest.arrivals, keep
        track.stride = track.steps = 0
        self._new_track(other, place=1)

    def _new_track(self, visit: _Visit, place: int = 0) -> _Track:
        """A track of one visit; the longest unused one goes for it, walks and planned ones last of
        all."""
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
                track.stale = bool(track.wished)
                track.wished = ()
        return jump

    def _plan(self, track: _Track, visit: _Visit, depth: int, jump: bool) -> Plan | None:
        template = track.template(visit)
        if not _conforms(visit, template):
            template = []
        queue = _Queue(self._sizes, self._block, depth)
        visits = [visit, *self._read_in_turn(track, visit)]
        share = depth // len(visits)
        for each in visits:
            self._plan_rest(queue, each, template, share)
        if template:
            last = len(self._sizes) - 1
            missing = track.ahead(template)
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

    def _read_in_turn(self, track: _Track, visit: _Visit) -> Iterator[_Visit]:
        """The track's other slices that are being read at the same time, by a pool of threads."""
        for old in track.visits.values():
            if (
                self._now - old.back < _ACTIVE
                and old is not visit
                and old.streams[0].sure
                and old.streams[0].stop < old.size
            ):
                yield old

    def _plan_rest(
        self, queue: _Queue, visit: _Visit, template: list[tuple[int, int]], share: int
    ) -> None:
        """Wish for what is still to be read of a slice that is being read, up to `share` bytes."""
        first, ahead = visit.streams[0], 0
        rest = [(_after(visit.streams, start), stop) for start, stop in template]
        if not any(start <= first.stop <= stop for start, stop in rest):
            for stream in visit.streams:
                if stream.sure and stream.stop < visit.size:
                    ahead = max(_FIRST, _GROWTH * (stream.stop - stream.start))
                    rest.insert(0, (stream.stop, stream.stop + ahead))
                    break
        # Nearest first: what lies just ahead of the reader, then the other stretches.
        rest.sort(key=lambda each: each[0] < first.start)
        room = share
        for start, stop in rest:
            if room > 0 and start < min(stop, visit.size):
                room -= queue.add(visit.index, start, min(stop, start + room)) - start
        planned = queue.reach(visit.index, first.stop)
        if planned >= visit.size:
            first.due = first.stop + self._replan
        else:
            first.due = first.stop + min(
                self._replan, max(self._block, (planned - first.stop) // 2)
            )


class _Queue:
    """Wishes in the making, of no more than `depth` bytes; those of one slice are added in one
    go."""

    __slots__ = ("_block", "_sizes", "room", "wishes")

    def __init__(self, sizes: Sequence[int], block: int, depth: int) -> None:
        self._sizes = sizes
        self._block = block
        self.room = max(0, depth // block * block)
        self.wishes: list[Wish] = []

    def add(self, index: int, start: int, stop: int) -> int:
        """Wish for the blocks of a stretch as far as there is room; the offset up to which they
        reach."""
        block = self._block
        start -= start % block
        stop = min(self._sizes[index], stop + -stop % block)
        same = [wish for wish in self.wishes[-2 * _STREAMS :] if wish.slice == index]
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
    """Whether three slices may belong to one walk: at most as many are left out between them as are
    there."""
    first, second, third = indices
    return max(indices) - min(indices) <= 4 * gcd(second - first, third - second)


def _in_common(
    later: list[tuple[int, int]], earlier: list[tuple[int, int]], tolerance: int
) -> list[tuple[int, int]]:
    """Those stretches of the later slice that the earlier one has too, a `tolerance` more or
    less."""
    return [
        (start, stop)
        for start, stop in later
        if any(abs(start - a) <= tolerance and abs(stop - b) <= tolerance for a, b in earlier)
    ]


def _conforms(visit: _Visit, template: list[tuple[int, int]]) -> bool:
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
