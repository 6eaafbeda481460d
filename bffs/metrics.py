"""The figures of a mount for Prometheus, over HTTP on this machine alone (`bffs mount --metrics PORT`).

The figures are those of the status file, taken when they are asked for. There are no names of files
in them, as any user of this machine may ask.

Threads: the server's, one more for each request; they end with `served`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bffs.errors import BffsError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

HOST = "127.0.0.1"

_COUNTERS = {
    "from_memory": ("memory_read_bytes", "Bytes given to readers out of memory."),
    "from_disk": ("disk_read_bytes", "Bytes given to readers out of the disk cache."),
    "fetched": ("fetched_bytes", "Bytes that came from the store."),
    "prefetched": (
        "prefetched_bytes",
        "Bytes that came from the store before they were asked for.",
    ),
    "waits": ("waits", "Reads that had to wait for the store."),
    "waited_for": ("waited_bytes", "Bytes given to readers who had to wait for them."),
    "not_written": ("not_written_bytes", "Bytes that the disk cache had no time or room for."),
    "damaged": ("damaged_blocks", "Blocks in the disk cache that did not fit their checksums."),
}
_LABELLED = {
    "requests": ("requests", "kind", "Requests to the store."),
    "retries": ("retries", "reason", "Requests that failed and were made again."),
    "errors": ("read_errors", "errno", "Reads that failed."),
}
_GAUGES = {
    ("memory", "limit"): ("memory_limit_bytes", "Memory that may be used for blocks."),
    ("memory", "used"): ("memory_used_bytes", "Memory that is used for blocks."),
    ("memory", "pinned"): ("memory_pinned_bytes", "Memory that can't be given up now."),
    ("memory", "unwritten"): ("memory_unwritten_bytes", "Bytes to be written to the disk cache."),
    ("queue", "demands"): ("queued_demands", "Reads whose fetch has not begun."),
    ("queue", "streams"): (
        "prefetch_streams",
        "Readers for whom something is to be fetched ahead.",
    ),
    ("queue", "prefetching"): (
        "prefetching_bytes",
        "Bytes on their way before they are asked for.",
    ),
    ("queue", "connections"): ("busy_connections", "Connections to the store in use."),
    ("link", "latency"): ("link_latency_seconds", "Time to a first block at best."),
    ("link", "bandwidth"): ("link_bandwidth_bytes_per_second", "The most that came in a second."),
    ("link", "window"): ("link_window_bytes", "Bytes that may be on their way ahead of readers."),
    ("cache", "limit"): ("cache_limit_bytes", "What the disk cache may hold."),
    ("cache", "stored"): ("cache_stored_bytes", "What the disk cache holds, of all datasets."),
    ("cache", "pinned"): ("cache_pinned_bytes", "What of it is pinned."),
}


def check(port: int | None) -> None:
    """Raise BffsError where metrics are wanted and what they need is missing."""
    if port is not None:
        try:
            import prometheus_client  # noqa: F401
        except ImportError as error:
            raise BffsError(
                "metrics need prometheus_client: pip install 'bffs[metrics]'"
            ) from error


@contextmanager
def served(port: int, counts: Callable[[], Mapping[str, Any]]) -> Iterator[int]:
    """Serve on that port, or on any free one for 0; yields which. Raises BffsError where it can't."""
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

    registry = CollectorRegistry()
    registry.register(_Collector(counts))
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        raise BffsError(
            f"no metrics on {HOST}:{port}: {os.strerror(error.errno or 0)}; choose another "
            "--metrics PORT, or 0 for any that is free"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    """Makes metrics of the counts of a mount, each time that it is asked."""

    def __init__(self, counts: Callable[[], Mapping[str, Any]]) -> None:
        self._counts = counts

    def describe(self) -> list[Metric]:
        """None in advance: nothing is asked before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counts = self._counts()
        for key, (name, text) in _COUNTERS.items():
            yield CounterMetricFamily(f"bffs_{name}", text, value=counts[key])
        for key, (name, label, text) in _LABELLED.items():
            counter = CounterMetricFamily(f"bffs_{name}", text, labels=[label])
            for kind, count in counts[key].items():
                counter.add_metric([kind], count)
            yield counter
        for (section, key), (name, text) in _GAUGES.items():
            if key in counts[section]:
                yield GaugeMetricFamily(f"bffs_{name}", text, value=counts[section][key])
        yield GaugeMetricFamily("bffs_open_files", "Open files.", value=counts["open"])
        yield GaugeMetricFamily(
            "bffs_start_time_seconds", "When it was mounted.", value=counts["started"]
        )
