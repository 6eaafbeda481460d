"""What will be read next of one specimen: further on in this slice, and in the slices that follow.

Pure: no I/O, no clock, no threads. A `Predictor` is told every demand that reaches the driver and
answers with a `Plan` of what to prefetch, or with None while the last plan still holds, which is
the answer nearly always. What it goes by are its tracks (`tracks`).

Locks: none; the owner calls one Predictor from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from math import gcd
from typing import NamedTuple

from bffs.tracks import (
    ACTIVE,
    FULL,
    LARGE,
    NEAR,
    REORDERED,
    SKIP,
    Stream,
    Stretch,
    Track,
    Visit,
    Wish,
)
from bffs.units import KIB, MIB

_FIRST = MIB  # the first window of a stream; then ...
_GROWTH = 4  # ... this many times what it has read
_TRACKS = 8  # remembered


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
        self._tracks: list[Track] = []  # the one demanded last comes first
        self._visit: Visit | None = None  # the slice demanded last, in that track
        self._eager = True  # slices that were expected to be read through were

    def reached(self, index: int) -> int | None:
        """The end of what was last demanded in a row of a slice; None if it isn't remembered."""
        for track in self._tracks:
            if index in track.visits:
                return track.visits[index].streams[0].stop
        return None

    def opened(self, index: int) -> None:
        """A slice was opened, maybe not for the first time; the page cache may meet its reads."""
        for track in self._tracks:
            if track.steps > 1:
                steps, rest = divmod(index - track.opened, track.stride)
                if not rest and 0 < steps <= NEAR:
                    track.opened = index

    def demanded(
        self, index: int, start: int, stop: int, depth: int, hunch: int = 0
    ) -> Plan | None:
        """Bytes `start` to `stop` of a slice are read; None if the last plan still holds.

        `depth` is how many bytes may be held ahead for one track; the plan's wishes are never more
        in all. `hunch` is how many may be wished for when a slice's first bytes are read and nothing
        else is known.
        """
        self._now += 1
        visit = self._visit
        if visit is None or visit.index != index:
            return self._elsewhere(index, start, stop, depth, hunch)
        visit.seen = self._now
        if stop > visit.size:
            stop = visit.size
        if not 0 <= start < stop:
            return None
        due = visit.note(start, stop)
        if not self._revise_hunch(visit, start, stop, hunch) and not due:
            return None
        return self._plan(self._tracks[0], visit, depth, jump=False)

    def _elsewhere(self, index: int, start: int, stop: int, depth: int, hunch: int) -> Plan | None:
        """Another slice is demanded than the last time."""
        if not 0 <= index < len(self._sizes):
            return None
        stop = min(stop, self._sizes[index])
        if not 0 <= start < stop:
            return None
        now, before = self._now, self._tracks[0] if self._tracks else None
        known = False
        track: Track | None = None
        for track in self._tracks:
            visit = track.visits.get(index)
            if visit is not None and now - visit.seen <= ACTIVE:
                visit.seen = now
                if track is before:
                    visit.back = now
                known = True
                break
        else:
            visit = Visit(index, self._sizes[index], self._block, now)
            track = self._walk_to(index)
            if track is not None:
                track.add(visit)
        assert visit is not None
        if self._visit is not None and (self._visit.eager or not self._eager):
            self._eager = self._visit.whole()
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
        due = self._revise_hunch(visit, start, stop, hunch) or due
        if not known and track.steps < 2 and start > REORDERED and stop - start >= FULL:
            # The kernel asks for the rest of a longer read, or of one that begins within a page, only
            # when it has this answer: that would be a second latency.
            visit.lean_on()
            due = True
        if due or track.stale or (track.steps and not known):
            return self._plan(track, visit, depth, jump)
        return Plan(track.number, True, ()) if jump else None

    def _revise_hunch(self, visit: Visit, start: int, stop: int, hunch: int) -> bool:
        """Believe from its first read at the front that a slice is read through, or no longer.

        Whoever opens a slice then has it in one round trip instead of four. At first `hunch` bytes
        are risked, all once a read is large; nothing after a slice for which that was wrong.
        """
        if visit.streams[0].start:
            if visit.eager:
                visit.doubt()
                self._eager = False
                return True
            return False
        large = stop - start >= LARGE and (visit.eager or not start)
        risk = visit.size if large else hunch
        if not self._eager or risk <= visit.eager or stop >= risk:
            return False
        visit.trust(risk)
        return True

    def _walk_to(self, index: int) -> Track | None:
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
        if distance <= NEAR:
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

    def _part(self, track: Track, keep: int) -> Track:
        """Two visits were no walk but two readers: the track of one, after making the other's."""
        (other,) = (index for index in track.visits if index != keep)
        kept = Track(track.number, track.visits[keep])
        kept.wished, kept.stale, kept.returned = track.wished, track.stale, track.returned
        self._tracks.remove(track)
        self._tracks.insert(0, kept)
        self._new_track(track.visits[other], place=1)
        return kept

    def _new_track(self, visit: Visit, place: int = 0) -> Track:
        """A track of one visit. If there are too many, the longest unused goes, walks last."""
        if len(self._tracks) >= _TRACKS:
            idle = [track for track in self._tracks[1:] if track.steps < 2 and not track.wished]
            self._tracks.remove(idle[-1] if idle else self._tracks[-1])
        self._number += 1
        track = Track(self._number, visit)
        self._tracks.insert(place, track)
        return track

    def _jumped(self) -> bool:
        """Whether a new track is a jump, after which the others' plans are void.

        It is one if something is planned for a track that was not read in turn with others lately.
        So the second reader of a specimen voids the first one's plan once, and reads here and there
        do not do so every time.
        """
        others = self._tracks[1:]
        jump = any(track.wished and self._now - track.returned > ACTIVE for track in others)
        if jump:
            for track in others:
                track.stale = track.stale or bool(track.wished)
                track.wished = ()
        return jump

    def _plan(self, track: Track, visit: Visit, depth: int, jump: bool) -> Plan | None:
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
                if old is None or self._now - old.seen > ACTIVE:
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

    def _plan_rest(self, queue: _Queue, visit: Visit, template: list[Stretch], share: int) -> None:
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
            read = stream.stop - stream.start
            ahead = max(_FIRST, _GROWTH * read * stream.is_proven, visit.eager - read)
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


def _conforms(visit: Visit, template: list[Stretch]) -> bool:
    """Whether what was read of a slice looks like the beginning of the template."""
    slack = 8 * visit.block
    return any(
        start - visit.block <= stream.start <= min(start + slack, stop)
        for start, stop in template
        for stream in visit.streams
    )


def _after(streams: list[Stream], start: int) -> int:
    """Where what is left of a stretch begins, after the stream that has read its beginning."""
    return max(
        (stream.stop for stream in streams if stream.start - SKIP <= start < stream.stop),
        default=start,
    )
