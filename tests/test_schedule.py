"""`schedule`: what is fetched next, and what has to give way; no threads, no store."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bffs.cachefile import BLOCK
from bffs.link import Link
from bffs.parts import BLOCKS_IN_PART, PART, Parts, Waiter
from bffs.schedule import IN_THE_WAY, MIN_DEMAND, PAUSE, RESERVED, Piece, Priority, Schedule, Want
from bffs.store import ObjectInfo
from bffs.units import GIB, MIB

CONNECTIONS = 16
SIZE = 40 * MIB + 5
NOW = 100.0


def info(key: str) -> ObjectInfo:
    return ObjectInfo(key, "etag", SIZE, 0)


def blocks_of(piece: Piece) -> tuple[str, int, int]:
    """Key, first and last block of a piece within its object."""
    first = piece.part.index * BLOCKS_IN_PART + piece.first
    return piece.part.obj.key, first, first + piece.blocks


class World:
    """A schedule on a link of known speed, and its pieces."""

    def __init__(
        self,
        bandwidth: float = 0.0,
        latency: float = 0.1,
        memory: int = GIB,
        *,
        busy: bool = True,
    ) -> None:
        self.parts = Parts(memory)
        self.link = Link(memory // 2, PART)
        for n in range(200):
            if bandwidth:
                self.link.arrived(int(bandwidth / 100), n / 100, busy=busy)
        if bandwidth:
            self.link.answered(latency, 2.0, saturated=False)
        self.schedule = Schedule(self.parts, self.link, CONNECTIONS)

    def want(self, name: str, key: str, first: int, stop: int) -> None:
        wants = deque([Want(info(key), first, stop)])
        self.schedule.prefetch(name, Priority.SLICES, wants, 0)

    def pieces(self, idle: int = CONNECTIONS) -> list[Piece]:
        """All that may be fetched now."""
        found = []
        while (piece := self.schedule.next(idle)) is not None:
            found.append(piece)
        return found

    def end(self, piece: Piece, done: int | None = None) -> None:
        """`done` of its blocks have arrived; then it ends."""
        piece.done = piece.blocks if done is None else done
        piece.part.arrived(((1 << piece.done) - 1) << piece.first)
        piece.part.busy &= ~piece.mask
        self.schedule.ended(piece)
        self.parts.unpin(piece.part)


def test_a_demand_goes_before_prefetch_and_is_split_among_idle_connections() -> None:
    world = World()
    world.want("a", "far", 0, 64)
    world.schedule.demand(info("near"), [(3, 11)])
    pieces = world.pieces()
    demanded = [piece for piece in pieces if piece.stream is None]
    assert pieces[: len(demanded)] == demanded
    assert [blocks_of(piece) for piece in demanded] == [
        ("near", first, first + MIN_DEMAND // BLOCK) for first in range(3, 11, 2)
    ]


def test_prefetch_leaves_connections_to_demands() -> None:
    world = World()
    world.want("a", "far", 0, 320)
    assert 0 < len(world.pieces()) <= CONNECTIONS - RESERVED
    assert world.schedule.saturated


@given(st.integers(0, 300), st.integers(1, 320), st.integers(1, CONNECTIONS))
def test_pieces_cover_what_is_wanted_once(first: int, count: int, idle: int) -> None:
    world = World()
    stop = min(first + count, -(-SIZE // BLOCK))
    world.want("a", "x", first, stop)
    seen: list[int] = []
    while pieces := world.pieces(idle):
        for piece in pieces:
            _, begin, end = blocks_of(piece)
            seen += range(begin, end)
            world.end(piece)
    assert seen == list(range(first, stop))
    assert world.schedule.is_empty


def test_no_small_rest_of_a_part_is_a_request_of_its_own() -> None:
    world = World(bandwidth=1e9, latency=0.03)
    for _ in range(50):
        world.link.transferred(MIB, MIB / 50e6)  # requests of some 6 MiB
    world.link.window = GIB
    world.want("a", "x", 0, 320)
    world.schedule._streams["a"].ahead = 10_000  # far from its reader: only size counts
    assert [piece.blocks for piece in world.pieces()] == [BLOCKS_IN_PART] * 5


# -- giving way -------------------------------------------------------------------------------------------------


def on_its_way(world: World) -> list[Piece]:
    """Prefetch of more than the link carries soon."""
    world.want("a", "far", 0, 256)
    pieces = world.pieces()
    size = sum(piece.blocks for piece in pieces) * BLOCK
    assert size > world.link.bandwidth * max(IN_THE_WAY, 2 * world.link.latency)
    return pieces


def test_prefetch_gives_way_to_what_nobody_has_foreseen() -> None:
    world = World(bandwidth=12e6)
    pieces = on_its_way(world)
    assert set(world.schedule.in_the_way(info("near"), 7, NOW)) == set(pieces)
    assert all(piece.abandoned for piece in pieces)
    world.schedule.demand(info("near"), [(7, 8)])
    (demanded,) = world.pieces()
    for piece in pieces:
        world.end(piece, 1)
    assert not world.pieces(), "prefetch that begins at once would be in the way again"
    follows = deque([Want(info("near"), 8, 16)])
    world.schedule.prefetch("b", Priority.FILE, follows, 0)
    (following,) = world.pieces()
    assert blocks_of(following) == ("near", 8, 16)
    world.end(following)
    world.end(demanded)
    again = world.pieces()
    assert again and all(piece.stream == "a" for piece in again)
    seen: list[int] = []
    while again:
        for piece in again:
            seen += range(*blocks_of(piece)[1:])
            world.end(piece)
        again = world.pieces()
    assert sorted(seen) == sorted(set(range(256)) - {blocks_of(piece)[1] for piece in pieces}), (
        "what had not come is wanted again, and nothing twice"
    )


def test_a_stream_that_was_cancelled_meanwhile_does_not_come_back() -> None:
    world = World(bandwidth=12e6)
    pieces = on_its_way(world)
    world.schedule.in_the_way(info("near"), 7, NOW)
    world.schedule.cancel("a")
    for piece in pieces:
        world.end(piece, 0)
    assert not world.pieces() and world.schedule.is_empty


@pytest.mark.parametrize("block", [0, 200])
def test_its_own_readahead_does_not_give_way_to_a_reader(block: int) -> None:
    """Block 0 is on its way, block 200 is queued."""
    world = World(bandwidth=12e6)
    on_its_way(world)
    assert not world.schedule.in_the_way(info("far"), block, NOW)


def test_a_fast_link_is_through_with_it_soon() -> None:
    world = World(bandwidth=1e9, latency=0.03)
    world.want("a", "far", 0, 256)
    assert world.pieces()
    assert not world.schedule.in_the_way(info("near"), 7, NOW)


def test_a_link_from_which_little_was_wanted_is_not_taken_for_a_slow_one() -> None:
    world = World(bandwidth=12e6, busy=False)
    on_its_way(world)
    assert not world.schedule.in_the_way(info("near"), 7, NOW)


def test_what_somebody_waits_for_does_not_give_way() -> None:

    world = World(bandwidth=12e6)
    first, *others = on_its_way(world)
    first.part.waiters.append(Waiter(1 << first.first, NOW))
    assert set(world.schedule.in_the_way(info("near"), 7, NOW)) == set(others)
    assert not first.abandoned


def test_giving_way_takes_a_pause() -> None:
    """Random reads beside a reader in order would else keep its readahead from ever arriving."""
    world = World(bandwidth=12e6)
    on_its_way(world)
    assert world.schedule.in_the_way(info("near"), 7, NOW)
    assert not world.schedule.in_the_way(info("near"), 9, NOW + PAUSE / 2)
    assert world.schedule.in_the_way(info("near"), 9, NOW + PAUSE)


def test_a_demand_that_comes_to_nothing_does_not_hold_up_prefetch() -> None:
    world = World(bandwidth=12e6)
    pieces = on_its_way(world)
    assert world.schedule.in_the_way(info("near"), 7, NOW)
    for piece in pieces:
        world.end(piece)
    world.want("b", "other", 0, 8)
    assert world.pieces()
