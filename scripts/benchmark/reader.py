"""Child process: reads a plan's files in order, as a client would, and times each.

In: one line of JSON (`root`, `request`, `reads`, `digests`), then, when "ready" has been answered,
a line to start. Out: one line of JSON, see `read_all`.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import time
from typing import Any

import xxhash

HEADER = 4096
"""Bytes of the first request at the start of a file: all clients look at the header first."""


def read_all(
    root: str, request: int, reads: list[tuple[str, int, int]], digests: bool
) -> dict[str, Any]:
    """Read each range of each file below `root`, `request` bytes at a time into one buffer.

    Returns `began` and `ended` on the monotonic clock, `first` and `each` (seconds from before open
    to the first bytes and to the last, one entry a read), `bytes`, and the `digests` if asked for.
    """
    buffer = memoryview(mmap.mmap(-1, request))
    first, each, found, total = [], [], [], 0
    began = time.monotonic()
    for name, start, stop in reads:
        opened, met = time.monotonic(), None
        digest = xxhash.xxh3_128()
        fd = os.open(f"{root}/{name}", os.O_RDONLY)
        at = start
        while at < stop:
            size = min(request if at else HEADER, stop - at)
            count = os.preadv(fd, [buffer[:size]], at)
            if not count:
                sys.exit(f"{name} ended at byte {at}, {stop} were promised")
            met = met or time.monotonic()
            if digests:
                digest.update(buffer[:count])
            at += count
        os.close(fd)
        each.append(time.monotonic() - opened)
        first.append((met or opened) - opened)
        found.append(digest.hexdigest())
        total += stop - start
    ended = time.monotonic()
    times = {"began": began, "ended": ended, "first": first, "each": each}
    return times | {"bytes": total, "digests": found if digests else []}


def main() -> None:
    """Follow the protocol above."""
    order = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(read_all(**order)), flush=True)


if __name__ == "__main__":
    main()
