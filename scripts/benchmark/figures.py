"""What is worth knowing of a measurement, and which target each figure has. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

from scripts.benchmark.drivers import BFFS, CEILING
from scripts.benchmark.measure import Measurement
from scripts.benchmark.plans import SLOW
from tests.s3server import Shape

KIB, MIB = 1 << 10, 1 << 20

Values = Mapping[str, float]
"""One figure of each driver that has it."""


class Terms(NamedTuple):
    """What targets depend on: the store's shape, and the memory that bffs may use, in bytes."""

    shape: Shape
    memory: int


class Target(NamedTuple):
    """A goal in words, and whether the drivers' values meet it; None when there is nothing to
    compare with."""

    text: str
    met: Callable[[Values], bool | None]


class Figure(NamedTuple):
    """One line of the table. `of` gives the value of a measurement, None if it has none."""

    case: str
    title: str
    unit: str
    of: Callable[[Measurement], float | None]
    target: Callable[[Terms], Target | None]
    more_is_better: bool = True


def peers(values: Values) -> dict[str, float]:
    """The values of everything but bffs and the ceiling."""
    return {name: value for name, value in values.items() if name not in (BFFS, CEILING)}


def best_peer(values: Values, *, more_is_better: bool) -> float | None:
    """The best value that a peer reaches."""
    found = peers(values).values()
    if not found:
        return None
    return max(found) if more_is_better else min(found)


def median(measurements: list[Measurement], figure: Figure) -> float | None:
    """The figure's median over the runs that gave it."""
    values = [figure.of(m) for m in measurements if m.error is None]
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


# ---------------------------------------------------------------------------------------- values


def _mb_per_second(m: Measurement) -> float | None:
    return m.size / m.seconds / 1e6


def _first_ms(m: Measurement) -> float | None:
    return m.first[0] * 1e3 if m.first else None


def _ms_a_slice_from_fourth(m: Measurement) -> float | None:
    return statistics.fmean(m.each[3:]) * 1e3 if len(m.each) > 3 else None


def _worst_ms(m: Measurement) -> float | None:
    return max(m.each) * 1e3 if m.each else None


def _worst_jump_ms(m: Measurement) -> float | None:
    return max(m.first[2::3]) * 1e3 if len(m.first) > 2 else None


def _slowest_share(m: Measurement) -> float | None:
    return min(m.rates) / statistics.fmean(m.rates) if len(m.rates) > 1 else None


def _cpu_per_gb(m: Measurement) -> float | None:
    return m.cpu / m.size * 1e9 if m.cpu is not None else None


def _memory_mib(m: Measurement) -> float | None:
    return m.memory / MIB if m.memory is not None else None


def _fetched_ratio(m: Measurement) -> float | None:
    return m.fetched / m.size


def _fetched_beyond(factor: float) -> Callable[[Measurement], float | None]:
    """KiB a read that were fetched beyond `factor` times what was asked for."""

    def value(m: Measurement) -> float | None:
        return (m.fetched - factor * m.size) / len(m.each) / KIB if m.each else None

    return value


# --------------------------------------------------------------------------------------- targets


def _no_target(_: Terms) -> Target | None:
    return None


def _at_most(text: str, limit: Callable[[Terms], float]) -> Callable[[Terms], Target]:
    def target(terms: Terms) -> Target:
        most = limit(terms)
        return Target(
            f"≤ {text.format(most)}",
            lambda values: values[BFFS] <= most if BFFS in values else None,
        )

    return target


def _at_least(
    floor: float = 0.0, *, of_ceiling: float = 0.0, **times: float
) -> Callable[[Terms], Target]:
    """At least `floor`, this share of the ceiling, and so many times each peer (`peers`: the best
    one)."""

    def met(values: Values) -> bool | None:
        if BFFS not in values:
            return None
        bars = [floor] if floor else []
        if of_ceiling and CEILING in values:
            bars.append(of_ceiling * values[CEILING])
        for name, factor in times.items():
            group = [
                v for peer, v in peers(values).items() if name in ("peers", peer.split("-")[0])
            ]
            bars += [factor * max(group)] if group else []
        return values[BFFS] >= max(bars) if bars else None

    words = [f"{floor:g}"] if floor else []
    words += [f"{of_ceiling:.0%} of ceiling"] if of_ceiling else []
    words += [
        f"{factor:g} x {'best peer' if name == 'peers' else name}" for name, factor in times.items()
    ]
    return lambda _: Target("≥ " + ", ".join(words), met)


def _jump_limit(_: Terms) -> float:
    return (2.5 * SLOW.latency + MIB / SLOW.total) * 1e3


FIGURES = (
    Figure(
        "cold",
        "one cold slice, first byte",
        "ms",
        _first_ms,
        _at_most("{:.0f} (1.5 latencies + 15)", lambda t: t.shape.latency * 1500 + 15),
        more_is_better=False,
    ),
    Figure("cold", "one cold slice, whole", "MB/s", _mb_per_second, _at_least(peers=2)),
    Figure(
        "order",
        "slices in order",
        "MB/s",
        _mb_per_second,
        _at_least(of_ceiling=0.8, peers=5),
    ),
    Figure("reverse", "in reverse", "MB/s", _mb_per_second, _at_least(of_ceiling=0.6)),
    Figure("fifth", "every fifth slice", "MB/s", _mb_per_second, _at_least(of_ceiling=0.6)),
    Figure(
        "region",
        "64 rows, a slice after the third",
        "ms",
        _ms_a_slice_from_fourth,
        _at_most("{:.0f}", lambda _: 10),
        more_is_better=False,
    ),
    Figure(
        "region",
        "64 rows, fetched beyond 1.5 x asked",
        "KiB",
        _fetched_beyond(1.5),
        _at_most("{:.0f} a slice", lambda _: 128),
        more_is_better=False,
    ),
    Figure(
        "random",
        "random 64 KiB, slowest",
        "ms",
        _worst_ms,
        _at_most("{:.0f} (1.5 latencies + 20)", lambda t: t.shape.latency * 1500 + 20),
        more_is_better=False,
    ),
    Figure(
        "random",
        "random 64 KiB, fetched beyond 4 x asked",
        "KiB",
        _fetched_beyond(4),
        _at_most("{:.0f} a read", lambda _: 256),
        more_is_better=False,
    ),
    Figure("four", "four readers, in sum", "MB/s", _mb_per_second, _at_least(of_ceiling=0.8)),
    Figure("four", "four readers, slowest to mean", "", _slowest_share, _at_least(0.5)),
    Figure(
        "disk", "again, page cache dropped", "MB/s", _mb_per_second, _at_least(rclone=2, s3fs=1.2)
    ),
    Figure("page", "again, from the page cache", "MB/s", _mb_per_second, _at_least(of_ceiling=0.6)),
    Figure(
        "jump",
        "slow link, first byte after a jump",
        "ms",
        _worst_jump_ms,
        _at_most("{:.0f} (2.5 latencies + 1 MiB)", _jump_limit),
        more_is_better=False,
    ),
    Figure(
        "order",
        "CPU of the driver, in order",
        "s/GB",
        _cpu_per_gb,
        _at_most("{:.1f}", lambda _: 1.5),
        more_is_better=False,
    ),
    Figure(
        "order",
        "peak memory, in order",
        "MiB",
        _memory_mib,
        _at_most("{:.0f} (--memory + 150)", lambda t: t.memory / MIB + 150),
        more_is_better=False,
    ),
    Figure(
        "order", "fetched to needed, in order", "", _fetched_ratio, _no_target, more_is_better=False
    ),
    Figure(
        "order",
        "time to mount",
        "s",
        lambda m: m.mount_seconds,
        _no_target,
        more_is_better=False,
    ),
)


class Row(NamedTuple):
    """A figure with the value of each driver, and what became of its target."""

    title: str
    unit: str
    values: dict[str, float]
    target: str
    met: bool | None
    of_ceiling: float | None
    of_best_peer: float | None


def rows(results: Mapping[str, Mapping[str, list[Measurement]]], terms: Terms) -> list[Row]:
    """All figures of `results` (case -> driver -> runs) that any driver has."""
    table = []
    for figure in FIGURES:
        medians = {d: median(runs, figure) for d, runs in results.get(figure.case, {}).items()}
        values = {driver: value for driver, value in medians.items() if value is not None}
        if not values:
            continue
        target = figure.target(terms)
        peer = best_peer(values, more_is_better=figure.more_is_better)
        table.append(
            Row(
                figure.title,
                figure.unit,
                values,
                target.text if target else "",
                target.met(values) if target else None,
                _ratio(values.get(BFFS), values.get(CEILING)),
                _ratio(values.get(BFFS), peer),
            )
        )
    return table


def _ratio(value: float | None, other: float | None) -> float | None:
    return value / other if value and other and value > 0 and other > 0 else None
