"""The Predictor: single patterns, what must hold for any trace, and the traces of real programs.

The programs run against a model of the kernel (page cache and readahead, requests slightly out of
order) and a model of the owner, which takes every wish for fetched and counts which blocks were
wished before they were demanded.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bffs.predictor import Plan, Predictor
from bffs.tracks import Wish
from bffs.units import KIB, MIB

BLOCK = 128 * KIB
SIZE = 22_300_123
BAND = (9_000_000, 9_000_000 + 356_000)
"""64 rows of a slice."""


# --- models ---------------------------------------------------------------------------------------


class Read(NamedTuple):
    """What a program asks the kernel for; an open if it is of no bytes."""

    slice: int
    start: int = 0
    stop: int = 0


PAGE = 4 * KIB
REQUEST = 256  # pages: the mount's read_ahead_kb is 1024


class Kernel:
    """Turns reads into the requests that reach the driver, as Linux's `ondemand_readahead` does."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.cached = [bytearray(-(-size // PAGE)) for size in sizes]
        self.ahead: dict[
            int, tuple[int, int, int]
        ] = {}  # slice -> start, pages, of which asynchronous
        self.last: dict[int, int] = {}

    def requests(self, read: Read) -> Iterator[Read]:
        if read.stop == read.start:
            self.ahead.pop(read.slice, None)
            self.last.pop(read.slice, None)
            return
        cached = self.cached[read.slice]
        page, last = read.start // PAGE, -(-min(read.stop, self.sizes[read.slice]) // PAGE)
        while page < last:
            start, size, late = self.ahead.get(read.slice, (-1, 0, 0))
            trigger = start + size - late
            if not cached[page]:
                yield from self.miss(read.slice, page, last - page, start + size)
            elif late and page == trigger:
                yield from self.window(read.slice, start + size, _next_size(size), None)
            self.last[read.slice] = page
            page += 1

    def miss(self, index: int, page: int, wanted: int, expected: int) -> Iterator[Read]:
        if page == expected:
            size = _next_size(self.ahead[index][1])
            yield from self.window(index, page, size, size)
        elif page == 0 or wanted > REQUEST or page - self.last.get(index, -9) == 1:
            size = _first_size(wanted)
            yield from self.window(index, page, size, size - wanted if size > wanted else size)
        else:
            yield from self.fill(index, page, page + wanted)

    def window(self, index: int, page: int, size: int, late: int | None) -> Iterator[Read]:
        self.ahead[index] = page, size, size if late is None else late
        yield from self.fill(index, page, page + size)

    def fill(self, index: int, page: int, last: int) -> Iterator[Read]:
        cached = self.cached[index]
        last = min(last, len(cached))
        while page < last:
            if cached[page]:
                page += 1
                continue
            stop = page
            while stop < min(last, page + REQUEST) and not cached[stop]:
                cached[stop] = 1
                stop += 1
            yield Read(index, page * PAGE, min(stop * PAGE, self.sizes[index]))
            page = stop


def _first_size(wanted: int) -> int:
    size = 1 << (wanted - 1).bit_length()
    if size <= REQUEST // 32:
        return size * 4
    return size * 2 if size <= REQUEST // 4 else REQUEST


def _next_size(size: int) -> int:
    return min(REQUEST, size * 4 if size < REQUEST // 16 else size * 2)


def shuffled(requests: Iterable[Read], chance: random.Random) -> Iterator[Read]:
    """Up to three requests for a slice are in flight, and now and then one overtakes another."""
    flying: list[Read] = []
    for request in requests:
        if flying and request.slice != flying[-1].slice:
            yield from flying
            flying.clear()
        flying.append(request)
        if len(flying) == 3:
            yield flying.pop(chance.randrange(3) if chance.random() < 0.3 else 0)
    yield from flying


class Outcome(NamedTuple):
    """All in bytes, blocks counted whole except `asked` and `wished`."""

    demanded: int
    """Blocks that demands touched."""
    foreseen: int
    """Those of them that were wished for before."""
    unused: int
    """Blocks wished for and never demanded."""
    asked: int
    """Bytes of the requests."""
    wished: int
    """Bytes of all wishes, each byte counted once."""
    plans: int
    jumps: int

    @property
    def hits(self) -> float:
        return self.foreseen / self.demanded

    @property
    def excess(self) -> float:
        return self.unused / self.demanded


class Owner:
    """Keeps the account of a Predictor's wishes."""

    def __init__(self, sizes: Sequence[int], depth: int) -> None:
        self.sizes, self.depth = sizes, depth
        self.predictor = Predictor(sizes, block=BLOCK)
        self.wished: set[tuple[int, int]] = set()
        self.touched: set[tuple[int, int]] = set()
        self.foreseen: set[tuple[int, int]] = set()
        self.asked = self.plans = self.jumps = 0

    def demand(self, read: Read) -> Plan | None:
        self.asked += read.stop - read.start
        for block in range(read.start // BLOCK, -(-read.stop // BLOCK)):
            key = read.slice, block
            if key not in self.touched:
                self.touched.add(key)
                if key in self.wished:
                    self.foreseen.add(key)
        plan = self.predictor.demanded(*read, self.depth)
        if plan is not None:
            self.plans += 1
            self.jumps += plan.jump
            check(plan, self.sizes, self.depth)
            for wish in plan.wishes:
                self.wished.update(
                    (wish.slice, block)
                    for block in range(wish.start // BLOCK, -(-wish.stop // BLOCK))
                )
        return plan

    def outcome(self, after: int = 0) -> Outcome:
        """What came of it; of what was demanded, only the slices from `after` on."""

        def size(blocks: Iterable[tuple[int, int]]) -> int:
            return sum(
                min(BLOCK, self.sizes[index] - block * BLOCK)
                for index, block in blocks
                if index >= after
            )

        return Outcome(
            size(self.touched),
            size(self.foreseen),
            size(self.wished - self.touched),
            self.asked,
            size(self.wished),
            self.plans,
            self.jumps,
        )


def check(plan: Plan, sizes: Sequence[int], depth: int) -> None:
    """What holds for every plan."""
    assert sum(wish.stop - wish.start for wish in plan.wishes) <= max(depth, 0)
    for wish in plan.wishes:
        assert 0 <= wish.slice < len(sizes)
        assert 0 <= wish.start < wish.stop <= sizes[wish.slice]
        assert wish.start % BLOCK == 0
        assert wish.stop % BLOCK == 0 or wish.stop == sizes[wish.slice]
    ordered = sorted(plan.wishes)
    for one, other in itertools.pairwise(ordered):
        assert one.slice != other.slice or one.stop <= other.start


def play(
    reads: Iterable[Read],
    sizes: Sequence[int],
    *,
    depth: int = 256 * MIB,
    seed: int = 1,
    kernel: bool = True,
) -> Owner:
    """Run a program against the models; without `kernel` its reads are the requests."""
    owner = Owner(sizes, depth)
    model = Kernel(sizes)
    chance = random.Random(seed)

    def requests() -> Iterator[Read]:
        for read in reads:
            if read.stop == read.start:
                owner.predictor.opened(read.slice)
            if kernel:
                yield from model.requests(read)
            elif read.stop > read.start:
                yield read

    for request in shuffled(requests(), chance):
        owner.demand(request)
    return owner


# --- programs -------------------------------------------------------------------------------------


def through(index: int, size: int = SIZE, piece: int = MIB, start: int = 0) -> Iterator[Read]:
    """`cat` of a slice, in pieces."""
    yield Read(index)
    for offset in range(start, size, piece):
        yield Read(index, offset, min(size, offset + piece))


def imagej(index: int, size: int = SIZE) -> Iterator[Read]:
    """Three opens: 132 bytes; header and IFD byte by byte; 25 pieces from the first strip on."""
    yield Read(index)
    yield Read(index, 0, 132)
    yield Read(index)
    for offset in range(8):
        yield Read(index, offset, offset + 1)
    for offset in range(size - 140, size):
        yield Read(index, offset, offset + 1)
    piece = size // 25 // 8192 * 8192
    yield from through(index, size - 140, piece, 8)


def bioformats(index: int, size: int = SIZE) -> Iterator[Read]:
    """51 opens with a read of 1 MiB each, then everything in such reads."""
    for _ in range(51):
        yield Read(index)
        yield Read(index, 0, MIB)
    yield from through(index, size)


def tifffile(index: int, size: int = SIZE) -> Iterator[Read]:
    """The header, then one read of all pixels."""
    yield Read(index)
    yield Read(index, 0, 4096)
    yield Read(index, 8192, size)


def vaa3d(index: int, size: int = SIZE) -> Iterator[Read]:
    """Page faults of a mapping: the requests that were seen on a mount with 128 KiB readahead."""
    offset, piece = 0, 16 * KIB
    yield Read(index)
    while offset < size:
        yield Read(index, offset, min(size, offset + piece))
        offset += piece
        piece = min(128 * KIB, piece * 2)


def band(index: int, *, header: bool = False) -> Iterator[Read]:
    """Some rows of a slice, with or without its header before."""
    yield Read(index)
    if header:
        yield Read(index, 0, 4096)
    yield Read(index, *BAND)


def in_turn(programs: Sequence[Iterator[Read]], chance: random.Random) -> Iterator[Read]:
    """Threads that run side by side and take turns after each MiB, or sooner, at random."""

    def pieces(program: Iterator[Read]) -> Iterator[Read]:
        for index, start, stop in program:
            for offset in range(start, max(stop, start + 1), MIB):
                yield Read(index, offset, min(stop, offset + MIB))

    running = [pieces(program) for program in programs]
    turns = dict(zip(running, itertools.count(), strict=False))
    while running:
        # The one of two that is behind, or was started first: no thread starves.
        thread = min(chance.choice(running), chance.choice(running), key=turns.__getitem__)
        turns[thread] += len(programs)
        read = next(thread, None)
        if read is None:
            running.remove(thread)
        else:
            yield read


def pool(slices: Iterable[Iterator[Read]], threads: int, chance: random.Random) -> Iterator[Read]:
    """Threads that take the slices one after another."""
    waiting = iter(slices)

    def thread() -> Iterator[Read]:
        for one in waiting:
            yield from one

    return in_turn([thread() for _ in range(threads)], chance)


def stack(count: int, size: int = SIZE) -> list[int]:
    return [size] * count


WHOLE = {"cat": through, "ImageJ": imagej, "Bio-Formats": bioformats, "tifffile": tifffile}


@pytest.mark.parametrize("program", WHOLE)
@pytest.mark.parametrize(
    "order",
    [range(30), range(29, -1, -1), range(0, 150, 5), range(149, 0, -5), range(0, 300, 10)],
    ids=["in order", "reverse", "every fifth", "every fifth, reverse", "every tenth"],
)
def test_whole_slices_in_progression_are_foreseen(program: str, order: range) -> None:
    slices = [*order][:12]
    owner = play((read for i in slices for read in WHOLE[program](i)), stack(301))
    blocks = {key for key in owner.touched if key[0] not in slices[:2]}
    assert len(blocks & owner.foreseen) >= 0.95 * len(blocks)
    # What is too much is what was to come next.
    step = slices[1] - slices[0]
    for index, _ in owner.wished - owner.touched:
        assert (index - slices[-1]) * step > 0
        assert (index - slices[-1]) % step == 0
    assert owner.jumps == 0


def test_vaa3d_page_faults() -> None:
    owner = play((r for i in range(10) for r in vaa3d(i)), stack(10), kernel=False)
    assert owner.outcome(after=2).hits >= 0.99
    assert owner.outcome().unused == 0


def test_first_slice_is_read_ahead_in_itself_only() -> None:
    owner = play(through(7), stack(20))
    assert {index for index, _ in owner.wished} == {7}
    assert owner.outcome().hits >= 0.75


def test_a_whole_stack_ends_at_its_end() -> None:
    owner = play((r for i in range(12) for r in through(i)), stack(12))
    assert owner.outcome().unused == 0
    assert owner.outcome(after=2).hits == 1


def test_slices_of_unequal_size_are_wanted_whole() -> None:
    chance = random.Random(4)
    sizes = [chance.randrange(15, 30) * MIB + chance.randrange(MIB) for _ in range(12)]
    owner = play((r for i in range(12) for r in through(i, sizes[i])), sizes)
    assert owner.outcome().unused == 0
    assert owner.outcome(after=2).hits == 1


def test_small_slices() -> None:
    size = 300 * KIB
    owner = play((r for i in range(60) for r in through(i, size)), stack(60, size), depth=64 * MIB)
    assert owner.outcome(after=3).hits >= 0.98
    assert owner.outcome().unused == 0


@pytest.mark.parametrize(
    ("depth", "hits"), [(4 * MIB, 0.8), (8 * MIB, 0.9), (40 * MIB, 0.97), (1024 * MIB, 1)]
)
def test_any_depth_keeps_ahead(depth: int, hits: float) -> None:
    owner = play((r for i in range(10) for r in through(i)), stack(10), depth=depth)
    assert owner.outcome(after=2).hits >= hits
    assert owner.outcome().unused == 0


@pytest.mark.parametrize("threads", [2, 4, 8, 16])
@pytest.mark.parametrize("program", WHOLE)
def test_a_pool_of_threads_is_one_walk(program: str, threads: int) -> None:
    chance = random.Random(threads)
    reads = pool((WHOLE[program](i) for i in range(64)), threads, chance)
    owner = play(reads, stack(64))
    assert owner.jumps == 0
    assert owner.outcome(after=3 * threads).hits >= 0.95
    assert owner.outcome().unused == 0


@pytest.mark.parametrize("header", [False, True], ids=["band", "header and band"])
@pytest.mark.parametrize("step", [1, -1, 3])
def test_column_is_wanted_from_the_fourth_slice_on(header: bool, step: int) -> None:
    slices = range(400, 400 + 100 * step, step)
    owner = play((r for i in slices for r in band(i, header=header)), stack(800))
    later = {key for key in owner.touched if key[0] not in slices[:3]}
    assert later <= owner.foreseen
    assert owner.outcome().wished <= 1.5 * owner.asked + 100 * BLOCK * (2 if header else 1)
    assert owner.jumps == 0


def test_column_by_a_pool_of_threads() -> None:
    reads = pool((band(i, header=True) for i in range(100)), 8, random.Random(3))
    owner = play(reads, stack(100))
    assert owner.outcome(after=24).hits >= 0.9
    assert owner.outcome().excess <= 0.3


@pytest.mark.parametrize("threads", [2, 4, 8])
def test_chunks_of_slices_by_a_pool_of_threads(threads: int) -> None:
    """As dask reads an OME-Zarr: each thread takes a band of some rows, then the next band."""
    chunk = 2 * MIB
    chunks = (
        iter([Read(i, at, min(SIZE, at + chunk))])
        for i in range(16)
        for at in range(0, SIZE, chunk)
    )
    owner = play(pool(chunks, threads, random.Random(threads)), stack(16))
    assert owner.outcome(after=3).hits >= 0.95
    assert owner.outcome().unused == 0
    assert owner.jumps == 0


def test_four_readers_in_one_slice() -> None:
    quarter = 25 * MIB
    readers = [through(0, at + quarter, start=at) for at in range(0, 4 * quarter, quarter)]
    owner = play(in_turn(readers, random.Random(2)), [4 * quarter], depth=64 * MIB)
    assert owner.outcome().hits >= 0.8
    assert owner.outcome().unused == 0


def test_column_of_half_the_slice_is_not_the_whole_slice() -> None:
    half = 14 * MIB
    owner = play((r for i in range(20) for r in through(i, half)), stack(20))
    assert owner.outcome(after=3).hits >= 0.99
    last = {index for index, block in owner.wished if block * BLOCK > half + MIB}
    assert last <= {0, 1, 2}


def test_header_scan() -> None:
    reads = (r for i in range(100) for r in (Read(i), Read(i, 0, 4096)))
    owner = play(reads, stack(200))
    assert owner.outcome(after=3).hits == 1
    assert owner.outcome().wished <= 140 * BLOCK


def test_column_that_drifts() -> None:
    def reads() -> Iterator[Read]:
        for index in range(50):
            start = 5 * MIB + index * 40_000
            yield Read(index)
            yield Read(index, start, start + 2 * MIB)

    owner = play(reads(), stack(50))
    assert owner.outcome(after=3).hits >= 0.9


def test_a_column_after_whole_slices_and_back() -> None:
    def reads() -> Iterator[Read]:
        for index in range(10):
            yield from through(index)
        for index in range(10, 40):
            yield from band(index)
        for index in range(40, 50):
            yield from through(index)

    owner = play(reads(), stack(60))
    assert all((i, BAND[0] // BLOCK) in owner.foreseen for i in range(14, 40))
    # Until the column is seen, what was planned before stands; then no slice is wanted whole.
    assert not any((i, 40) in owner.wished for i in range(26, 40))
    assert {key for key in owner.touched if key[0] > 43} <= owner.foreseen


def test_every_fiftieth_slice() -> None:
    owner = play((r for i in range(0, 600, 50) for r in through(i)), stack(601))
    assert {key for key in owner.touched if key[0] > 100} <= owner.foreseen
    assert {index for index, _ in owner.wished} == {*range(0, 601, 50)}


def test_slices_looked_at_here_and_there_are_no_walk() -> None:
    slices = [100, 111, 94, 120, 107, 83, 101, 117]
    owner = play((r for i in slices for r in imagej(i)), stack(300))
    assert {index for index, _ in owner.wished - owner.touched} <= {104}


def test_two_slices_compared_again_and_again() -> None:
    size = 80 * MIB
    owner = play((r for i in [0, 9] * 4 for r in through(i, size)), stack(20, size), kernel=False)
    assert owner.outcome().unused == 0
    assert owner.jumps == 0


def test_the_tail_of_slices_of_unequal_size() -> None:
    chance = random.Random(11)
    sizes = [chance.randrange(15, 30) * MIB + chance.randrange(MIB) for _ in range(30)]
    owner = play((r for i in range(30) for r in through(i, sizes[i], start=13 * MIB)), sizes)
    assert {key for key in owner.touched if key[0] > 3} <= owner.foreseen
    assert owner.outcome(after=3).unused == 0


def overtaken(index: int, stop: int) -> Iterator[Read]:
    """A slice's first bytes in requests of 1 MiB, every other one overtaken by the next."""
    for at in range(0, stop, 2 * MIB):
        yield Read(index, at + MIB, at + 2 * MIB)
        yield Read(index, at, at + MIB)


def test_requests_that_overtake_each_other() -> None:
    owner = Owner(stack(20), 256 * MIB)
    for index in range(20):
        for read in overtaken(index, 18 * MIB):
            owner.demand(read)
        ahead = {block * BLOCK for other, block in owner.wished if other > index}
        assert (max(ahead, default=0) < 18 * MIB) or index < 3
    assert owner.outcome(after=3).hits >= 0.99


@pytest.mark.parametrize(("length", "every"), [(MIB, 2), (MIB, 5), (BLOCK, 4)])
def test_late_requests_do_not_crowd_out_what_else_was_read(length: int, every: int) -> None:
    reads = [(at, at + length) for at in range(4 * MIB, 90 * MIB, length)]
    for late in range(0, len(reads) - 1, every):
        reads[late], reads[late + 1] = reads[late + 1], reads[late]
    owner = Owner(stack(9, 100 * MIB), 256 * MIB)
    for index in range(9):
        for start, stop in [(0, 4096), *reads]:
            owner.demand(Read(index, start, stop))
    assert all((index, 0) in owner.foreseen for index in range(4, 9))


def test_reading_here_and_there_in_a_slice_read_whole_does_not_unsay_it() -> None:
    owner = play(through(0), stack(9))
    for at in range(10):
        owner.demand(Read(0, at * 2 * MIB, at * 2 * MIB + 4096))
    plan = owner.demand(Read(1, 0, MIB))
    assert plan is not None
    assert plan.wishes == (Wish(1, MIB, SIZE), Wish(2, 0, SIZE))


def test_readers_in_one_slice_get_what_is_ahead_of_them_first() -> None:
    owner = Owner([100 * MIB], 64 * MIB)
    for at in range(0, 20 * MIB, MIB):
        for base in (0, 50 * MIB):
            plan = owner.demand(Read(0, base + at, base + at + MIB))
            if plan is not None and plan.wishes:  # the second reader's first demand is a doubt
                assert plan.wishes[0].start == base + at + MIB
                assert len(plan.wishes) == 2 or owner.plans == 1
    assert owner.plans > 4


def test_a_hunch_is_given_up_when_something_else_is_read() -> None:
    predictor = Predictor([SIZE] * 300)
    assert predictor.demanded(7, 0, 16 * KIB, 64 * MIB, 8 * MIB) == Plan(
        1, False, (Wish(7, 0, 8 * MIB),)
    )
    assert predictor.demanded(7, 9 * MIB, 10 * MIB, 64 * MIB, 8 * MIB) == Plan(1, False, ())
    assert predictor.demanded(190, 0, 16 * KIB, 64 * MIB, 8 * MIB) is None


def test_a_hunch_that_is_borne_out_wants_the_rest() -> None:
    predictor = Predictor([SIZE])
    assert predictor.demanded(0, 0, 16 * KIB, 64 * MIB, 8 * MIB)
    assert predictor.demanded(0, 16 * KIB, 80 * KIB, 64 * MIB, 8 * MIB) is None
    plan = predictor.demanded(0, 80 * KIB, 80 * KIB + MIB, 64 * MIB, 8 * MIB)
    assert plan is not None
    assert plan.wishes[-1].stop == SIZE


def test_the_last_request_comes_after_the_next_slice_was_begun() -> None:
    reads = [Read(i, at, at + MIB) for i in range(20) for at in range(0, 14 * MIB, MIB)]
    for late in range(13, len(reads) - 1, 14):
        reads[late], reads[late + 1] = reads[late + 1], reads[late]
    owner = Owner(stack(24), 256 * MIB)
    for read in reads:
        owner.demand(read)
    assert owner.outcome(after=3).hits == 1
    assert not any(block * BLOCK > 15 * MIB for index, block in owner.wished if index > 6)


def test_a_sparse_reader_loses_its_window() -> None:
    size = 100 * MIB
    dense = [Read(0, at, at + 64 * KIB) for at in range(0, MIB, 64 * KIB)]
    sparse = [Read(0, at, at + 64 * KIB) for at in range(2 * MIB, size, MIB)]
    owner = Owner([size], 256 * MIB)
    for read in [*dense, *sparse]:
        owner.demand(read)
    assert owner.outcome().wished <= 16 * MIB


def test_random_reads_are_not_foreseen() -> None:
    chance = random.Random(5)

    def reads() -> Iterator[Read]:
        for _ in range(3000):
            start = chance.randrange(SIZE // PAGE) * PAGE
            index = chance.randrange(300)
            yield Read(index)
            yield Read(index, start, min(SIZE, start + 64 * KIB))

    owner = play(reads(), stack(300))
    assert owner.outcome().wished <= 0.05 * owner.asked
    assert owner.outcome().hits <= 0.05


@pytest.mark.parametrize("align", [PAGE, 64 * KIB])
def test_random_reads_in_one_slice_are_not_foreseen(align: int) -> None:
    chance = random.Random(6)
    size = 100 * MIB

    def reads() -> Iterator[Read]:
        for _ in range(100):
            start = chance.randrange(size // align) * align
            yield Read(0, start, min(size, start + 64 * KIB))

    wished = asked = 0
    for seed in range(50):
        owner = play(reads(), stack(3, size), seed=seed)
        wished += owner.outcome().wished
        asked += owner.asked
    assert wished <= 0.05 * asked


def test_four_readers_at_different_places() -> None:
    chance = random.Random(7)
    walks = [(r for i in range(at, at + 12) for r in through(i)) for at in (0, 100, 200, 300)]
    owner = play(in_turn(walks, chance), stack(400))
    for at in (0, 100, 200, 300):
        blocks = {key for key in owner.touched if at + 2 <= key[0] < at + 12}
        assert len(blocks & owner.foreseen) >= 0.95 * len(blocks)


@pytest.mark.parametrize("apart", [3, 6, 11, 15])
def test_two_readers_close_together(apart: int) -> None:
    chance = random.Random(apart)
    walks = [(r for i in range(at, at + 12) for r in through(i)) for at in (0, apart)]
    owner = play(in_turn(walks, chance), stack(apart + 12))
    for at in (0, apart):
        blocks = {key for key in owner.touched if at + 3 <= key[0] < at + 12}
        assert len(blocks & owner.foreseen) >= 0.9 * len(blocks)


def test_a_walk_beside_random_reads_goes_on() -> None:
    chance = random.Random(8)

    def elsewhere() -> Iterator[Read]:
        for _ in range(800):
            start = chance.randrange(SIZE // PAGE) * PAGE
            yield Read(chance.randrange(50, 300), start, min(SIZE, start + 64 * KIB))

    walk = (r for i in range(20) for r in through(i))
    owner = play(in_turn([walk, elsewhere()], chance), stack(300))
    blocks = {key for key in owner.touched if 2 <= key[0] < 20}
    assert len(blocks & owner.foreseen) >= 0.95 * len(blocks)
    assert owner.jumps <= 10


def test_a_jump_cancels_and_recovers() -> None:
    owner = play((r for i in range(6) for r in through(i)), stack(300))
    before = owner.predictor.demanded(6, 0, MIB, owner.depth)
    assert before is not None and before.wishes
    plan = owner.demand(Read(200, 0, MIB))
    assert plan is not None
    assert plan.jump
    assert plan.track != before.track
    assert all(wish.slice == 200 for wish in plan.wishes)
    for index in range(200, 206):
        for read in through(index):
            if read.stop:
                owner.demand(read)
    assert {key for key in owner.touched if 202 <= key[0] < 206} <= owner.foreseen
    assert owner.jumps == 1


def test_the_track_that_a_jump_cancelled_is_planned_again_when_it_is_read_on() -> None:
    owner = play((r for i in range(6) for r in through(i)), stack(300))
    owner.demand(Read(6, 0, MIB))
    jump = owner.demand(Read(200, 0, MIB))
    assert jump is not None and jump.jump
    plan = owner.demand(Read(6, MIB, 2 * MIB))
    assert plan is not None and not plan.jump
    assert plan.wishes[0] == Wish(6, 2 * MIB, SIZE)
    # Both are read in turn from now on: a third reader is no jump.
    assert owner.demand(Read(100, 0, MIB)) is None


def test_two_jumps_leave_no_track_without_a_plan() -> None:
    owner = play((r for i in range(6) for r in through(i)), stack(400))
    owner.demand(Read(6, 0, MIB))
    for index in (200, 300):
        for read in through(index, 20 * MIB):
            if read.stop:
                owner.demand(read)
    assert owner.jumps == 2
    plan = owner.demand(Read(6, MIB, 2 * MIB))
    assert plan is not None
    assert plan.wishes[0] == Wish(6, 2 * MIB, SIZE)


def test_reading_a_slice_again_is_no_jump() -> None:
    owner = play((r for i in range(6) for r in through(i)), stack(300))
    for read in through(5):
        if read.stop:
            owner.demand(read)
    assert owner.jumps == 0
    plan = owner.demand(Read(6, 0, MIB))
    assert plan is not None
    assert [wish.slice for wish in plan.wishes[:3]] == [6, 7, 8]


def test_slices_in_the_page_cache_are_passed_over() -> None:
    order = [0, 1, 2, 3, 4, 9, 10, 11, 14, 15]
    owner = play((r for i in order for r in through(i)), stack(60))
    blocks = {key for key in owner.touched if key[0] >= 2}
    assert len(blocks & owner.foreseen) >= 0.98 * len(blocks)
    assert owner.jumps == 0


def test_opens_lead_a_walk_over_many_cached_slices() -> None:
    def reads() -> Iterator[Read]:
        for index in range(6):
            yield from through(index)
        yield from map(Read, range(6, 50))
        yield from through(50)

    owner = play(reads(), stack(80))
    assert owner.jumps == 0
    assert (51, 0) in owner.wished


def test_reading_backwards_within_a_slice_plans_nothing() -> None:
    reads = [Read(0, max(0, at - MIB), at) for at in range(SIZE, 0, -MIB)]
    predictor = Predictor(stack(3))
    assert all(predictor.demanded(*read, 256 * MIB) is None for read in reads)


def test_one_read_is_no_evidence_and_two_are() -> None:
    predictor = Predictor(stack(3))
    assert predictor.demanded(0, 0, 16 * KIB, 256 * MIB) is None
    plan = predictor.demanded(0, 16 * KIB, 48 * KIB, 256 * MIB)
    assert plan == Plan(1, False, (Wish(0, 0, MIB + BLOCK),))


def test_next_slice_is_wanted_at_the_second_slices_first_read() -> None:
    owner = play(through(0), stack(9))
    plan = owner.demand(Read(1, 0, MIB))
    assert plan == Plan(1, False, (Wish(1, MIB, SIZE), Wish(2, 0, SIZE)))


def test_large_windows_grow_up_to_depth() -> None:
    predictor = Predictor([1 << 30])
    step = MIB // 4
    reach = 0
    for at in range(0, 256 * MIB, step):
        plan = predictor.demanded(0, at, at + step, 64 * MIB)
        if plan is not None:
            (wish,) = plan.wishes
            assert wish.start == at + step
            assert wish.stop == at + step + min(64 * MIB, max(MIB, 4 * (at + step)))
            reach = wish.stop
        assert at < MIB or reach > at + step
    assert reach > 310 * MIB


def test_a_large_first_read_wants_the_slice_whole() -> None:
    predictor = Predictor([SIZE] * 3)
    plan = predictor.demanded(1, 0, MIB, 64 * MIB)
    assert plan == Plan(1, False, (Wish(1, MIB, SIZE),))
    assert Predictor([SIZE]).demanded(0, MIB, 2 * MIB, 64 * MIB) is None
    assert Predictor([SIZE]).demanded(0, 0, MIB // 4, 64 * MIB) is None


def test_a_full_first_read_further_on_wants_what_follows_in_one_latency() -> None:
    plan = Predictor([SIZE]).demanded(0, 8 * MIB, 9 * MIB, 64 * MIB)
    assert plan == Plan(1, False, (Wish(0, 9 * MIB, 10 * MIB),))
    predictor = Predictor([SIZE])
    assert predictor.demanded(0, 8 * MIB, 9 * MIB - 4096, 64 * MIB) is None
    assert predictor.demanded(0, 16 * MIB, 17 * MIB, 64 * MIB) is None


def test_large_first_reads_that_lead_nowhere_are_seen_through() -> None:
    predictor = Predictor([SIZE] * 300)
    assert predictor.demanded(0, 0, MIB, 64 * MIB)
    plans = [predictor.demanded(index, 0, MIB, 64 * MIB) for index in (100, 170, 260)]
    wished = [wish for plan in plans if plan is not None for wish in plan.wishes]
    assert not wished


def test_a_walk_to_an_empty_slice() -> None:
    sizes = [MIB, MIB, MIB, 0, MIB]
    owner = play((r for i in (0, 1, 2) for r in through(i, MIB)), sizes)
    assert {index for index, _ in owner.wished} == {2, 4}


# --- what holds for any trace ---------------------------------------------------------------------

STEPS = st.tuples(
    st.sampled_from(["next", "back", "far", "near", "stay"]),
    st.integers(0, 40),
    st.sampled_from([1, PAGE, 16 * KIB, BLOCK, MIB]),
    st.sampled_from(["on", "start", "middle", "any"]),
    st.booleans(),
)


def wander(
    steps: Iterable[tuple[str, int, int, str, bool]], sizes: Sequence[int]
) -> Iterator[Read]:
    index, offset = 0, 0
    for move, n, length, place, opens in steps:
        index += {"next": 1, "back": -1, "far": n * 7, "near": n % 5 - 2, "stay": 0}[move]
        index %= len(sizes)
        if move != "stay" or place != "on":
            offset = {"on": offset, "start": 0, "middle": 5 * MIB, "any": n * 300_000}[place]
        if opens:
            yield Read(index)
        yield Read(index, offset, offset + length)
        offset += length


@settings(deadline=None, max_examples=300)
@given(
    st.lists(STEPS, max_size=200),
    st.lists(st.sampled_from([0, 5000, 300 * KIB, 3 * MIB, SIZE]), min_size=1, max_size=60),
    st.sampled_from([-1, 0, 1000, BLOCK, MIB + 5, 30 * MIB, 1 << 40]),
)
def test_any_trace_gives_proper_plans(
    steps: list[tuple[str, int, int, str, bool]], sizes: list[int], depth: int
) -> None:
    owner = Owner(sizes, depth)
    known = set()
    for read in wander(steps, sizes):
        if read.stop == read.start:
            owner.predictor.opened(read.slice)
            continue
        known.add(read.slice)
        plan = owner.demand(read)
        if plan is not None:
            # This slice first, then others being read, then the next ones, nearest first.
            slices = [wish.slice for wish in plan.wishes]
            assert read.slice not in slices or slices[0] == read.slice
            ahead = [index - read.slice for index in slices if index not in known]
            assert ahead == sorted(ahead) or ahead == sorted(ahead, reverse=True)
            assert not ahead or ahead[0] * ahead[-1] > 0
            assert slices[len(slices) - len(ahead) :] == [
                index + read.slice for index in ahead
            ] or (known & {*slices[1:]})


def _held(predictor: Predictor) -> tuple[int, int, int]:
    """The most tracks, visits of a track and streams of a visit."""
    tracks = predictor._tracks
    visits = [visit for track in tracks for visit in track.visits.values()]
    return (
        len(tracks),
        max(len(track.visits) for track in tracks),
        max(len(visit.streams) for visit in visits),
    )


def test_memory_is_bounded_whatever_is_read() -> None:
    chance = random.Random(9)
    predictor = Predictor(stack(500))
    index = 0
    for count in range(100_000):
        index = (index + chance.choice([0, 0, 0, 1, 1, -1, 5, chance.randrange(500)])) % 500
        start = chance.randrange(SIZE)
        predictor.demanded(index, start, start + chance.randrange(1, MIB), 64 * MIB)
        if count % 100 == 0:
            predictor.opened(chance.randrange(500))
            assert all(
                held <= most for held, most in zip(_held(predictor), (8, 32, 8), strict=True)
            )


@pytest.mark.parametrize(
    "read", [(-1, 0, 1), (3, 0, 1), (0, 5, 5), (0, 9, 5), (0, -5, 5), (0, SIZE, SIZE + 9)]
)
def test_demands_outside_the_slices_are_ignored(read: tuple[int, int, int]) -> None:
    predictor = Predictor(stack(3))
    for _ in range(3):
        assert predictor.demanded(*read, MIB) is None
        predictor.opened(read[0])
