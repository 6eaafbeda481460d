"""Options that fit what was measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from bffs.settings import Settings
from bffs.units import MIB, format_size_below

NARROW = 4 * MIB
WIDE = 200 * MIB
"""Bytes a second: fewer connections than usual below the one, lest a read waits behind others; more
above the other where the store is `FAR`, lest each request waits for its first byte."""

FAR = 0.05
FEW, MANY = 8, 64

AMPLE = 4
"""Times its size that a cache has room for before a larger one is suggested, of half the room."""


SPARE = 2
"""Times `--memory` that a machine should have: the rest is for Python, the kernel, and who reads."""


def suggest(settings: Settings, figures: Mapping[str, float]) -> dict[str, str]:
    """Texts for options by key, of those that should be otherwise.

    `figures` are those of `findings`: `latency` in seconds, `bandwidth` in bytes a second, `cache_room_bytes`
    and `memory` in bytes; what was not measured is left as it is.
    """
    options = {}
    bandwidth, latency = figures.get("bandwidth", 0.0), figures.get("latency", 0.0)
    if 0 < bandwidth < NARROW and settings.max_connections > FEW:
        options["max_connections"] = str(FEW)
    elif bandwidth > WIDE and latency > FAR and settings.max_connections < MANY:
        options["max_connections"] = str(MANY)
    room = figures.get("cache_room_bytes")
    if room is not None and room < settings.cache_size and room >= MIB:
        options["cache_size"] = format_size_below(room)
    elif room is not None and room > AMPLE * settings.cache_size:
        options["cache_size"] = format_size_below(room / 2)
    free = figures.get("memory")
    if free is not None and free < SPARE * settings.memory:
        options["memory"] = format_size_below(max(64 * MIB, free / 4))
    return options
