"""What goes wrong at the store, for some time, and for which waits that is an excuse."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from tests.s3server import S3Server

AFTERMATH = 30.0
"""Seconds after bad weather for which it still is an excuse: pauses between attempts grow to 10 s,
and a connection that stalls is given up after 20."""


class Weather(NamedTuple):
    """`faults` are for `S3Server.fault`, `shape` for `S3Server.shape`; `excuse` if an operation may
    take more than 10 s in it, or a little later."""

    name: str
    faults: tuple[Mapping[str, Any], ...] = ()
    shape: Mapping[str, float] = {}
    excuse: bool = False


WEATHERS = (
    Weather("calm"),
    Weather("far", shape={"latency": 0.03, "per_connection": 50e6, "total": 200e6}),
    Weather("503", ({"do": "status", "value": 503, "probability": 0.05},)),
    Weather("resets", ({"do": "reset", "at": 200_000, "probability": 0.02},)),
    Weather("truncations", ({"do": "close", "at": 70_000, "probability": 0.02},)),
    Weather("nonsense", ({"do": "xml", "kind": "get", "probability": 0.03},)),
    Weather("wrong ranges", ({"do": "range", "value": 1, "kind": "get", "probability": 0.03},)),
    Weather("wrong lengths", ({"do": "resize", "value": -9, "kind": "get", "probability": 0.03},)),
    Weather("slow", shape={"latency": 0.3, "per_connection": 3e6, "total": 12e6}),
    Weather("stalls", ({"do": "stall", "value": 600, "at": 60_000, "kind": "get",
                        "probability": 0.005},), excuse=True),
    Weather("drips", ({"do": "drip", "value": 20_000, "kind": "get", "probability": 0.01},),
            excuse=True),
    Weather("away", ({"do": "reset"},), excuse=True),
    Weather("everything", (
        {"do": "status", "value": 503, "probability": 0.05},
        {"do": "reset", "at": 200_000, "probability": 0.02},
        {"do": "close", "at": 70_000, "probability": 0.02},
        {"do": "stall", "value": 600, "at": 60_000, "kind": "get", "probability": 0.005},
    ), excuse=True),
)  # fmt: skip


class Record:
    """The weather so far."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._excuses: list[tuple[float, float]] = []
        self._bad_since: float | None = None
        self.now = WEATHERS[0]

    def change(self, weather: Weather) -> None:
        """Let this be the weather from now on."""
        now = time.monotonic()
        if self._bad_since is not None:
            self._excuses.append((self._bad_since, now + AFTERMATH))
        self._bad_since = now if weather.excuse else None
        self._server.reset()
        self._server.shape(**weather.shape)
        for number, fault in enumerate(weather.faults):
            self._server.fault(**{"seed": number, **fault})
        self.now = weather

    def excuses(self, began: float, ended: float) -> bool:
        """Whether something was wrong at the store between these times."""
        if self._bad_since is not None and ended > self._bad_since:
            return True
        return any(start < ended and began < stop for start, stop in self._excuses)
