"""What the first slice of each specimen looks like: learnt from its header once, kept for good.

The headers' essence is one JSON file a dataset (see `kept`), by object version, so it is never out
of date; later mounts need no request. What can be learnt costs one small read, which waits no
longer than `PATIENCE` seconds: names of files must not keep an `ls` waiting for minutes. When the
store has just been found away, others wait `IMPATIENCE` seconds.

Threads: any may call. A header is read on a thread of its own that goes on when nobody waits any
more. No locks: the table is a dict whose single operations are atomic, and of two that write the
file at once the later one stays; what the other knew is learnt again some day.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from bffs import kept
from bffs.blocks import BlockReader
from bffs.cache import DiskCache
from bffs.catalog import Specimen
from bffs.content import Content, LocalContent, ObjectContent
from bffs.errors import BffsError, StoreUnreachable
from bffs.settings import Settings
from bffs.store import ByteRange, ObjectInfo
from bffs.tiff import SliceLayout, slice_header

log = logging.getLogger(__name__)

PATIENCE = 20.0
IMPATIENCE = 1.0
AWAY = 60.0
"""Seconds for which a store that did not answer is thought to be away."""

_NAME = "shapes"
_MAGIC = b"bffsshp1"
_MOST = 10_000


class Shape(NamedTuple):
    """What a specimen's first slice looks like: its layout, None if it is no TIFF; why its pixels
    can't be mapped, or nothing; and which bytes its header is."""

    layout: SliceLayout | None
    obstacle: str
    header: tuple[ByteRange, ...] = ()


NO_SLICES = Shape(None, "there are no slices")
_NO_TIFF = Shape(None, "not a TIFF that bffs understands")


class Shapes:
    """The shapes of one dataset's specimens."""

    def __init__(self, settings: Settings, blocks: BlockReader, cache: DiskCache) -> None:
        self._settings = settings
        self._blocks = blocks
        self._cache = cache
        self._learning: dict[str, _Learner] = {}
        self._away_until = 0.0
        self._shapes = self._load()

    def known(self, specimen: Specimen) -> Shape | None:
        """The shape, if it is known or its header is on this disk; asks nothing of the store."""
        if not specimen.slices:
            return NO_SLICES
        first = specimen.slices[0]
        shape = self._shapes.get(_key(first))
        if shape is None and first.size:
            cached = self._cache.open(first)
            with suppress(BffsError):
                return _shape(LocalContent(cached)) if cached.has(0) else None
        return shape

    def learn(self, specimen: Specimen) -> Shape:
        """The shape, for one small read if it isn't known. Raises BffsError if that fails."""
        if not specimen.slices:
            return NO_SLICES
        first = specimen.slices[0]
        key = _key(first)
        shape = self._shapes.get(key)
        if shape is not None:
            return shape
        learner = _Learner(lambda: self._keep(first))
        if self._learning.setdefault(key, learner) is learner:
            learner.start()
        learner = self._learning.get(key, learner)
        if not learner.done.wait(IMPATIENCE if time.monotonic() < self._away_until else PATIENCE):
            self._away_until = time.monotonic() + AWAY
            raise StoreUnreachable(
                f"the header of {first.key} isn't known yet, and the store does not answer"
            )
        self._learning.pop(key, None)
        self._away_until = 0.0
        if learner.shape is None:
            raise learner.error or BffsError(f"the header of {first.key} can't be read")
        return learner.shape

    def _keep(self, first: ObjectInfo) -> Shape:
        """Read a header and keep what it says, beside what other processes have learnt."""
        shape = _shape(ObjectContent(self._blocks, first))
        self._shapes[_key(first)] = shape
        for key, other in self._load().items():
            self._shapes.setdefault(key, other)
        latest = dict(list(self._shapes.items())[-_MOST:])
        body = json.dumps(latest, separators=(",", ":")).encode()
        kept.save(self._settings.cache_dir, self._settings.dataset, _NAME, _MAGIC, body)
        return shape

    def _load(self) -> dict[str, Shape]:
        try:
            settings = self._settings
            body = kept.load(settings.cache_dir, settings.dataset, _NAME, _MAGIC)
            return {key: _decoded(*value) for key, value in json.loads(body or b"{}").items()}
        except (ValueError, TypeError, AttributeError) as error:
            log.info("what was known of the slices is damaged and learnt anew: %s", error)
            return {}


class _Learner(threading.Thread):
    """Reads one header."""

    def __init__(self, read: Callable[[], Shape]) -> None:
        super().__init__(name="bffs-shape", daemon=True)
        self._read = read
        self.done = threading.Event()
        self.shape: Shape | None = None
        self.error: BffsError | None = None

    def run(self) -> None:
        try:
            self.shape = self._read()
        except BffsError as error:
            self.error = error
        finally:
            self.done.set()


def _shape(content: Content) -> Shape:
    """What a slice's header says. Raises BffsError if it can't be read."""
    header = slice_header(content)
    if header is None:
        return _NO_TIFF
    return Shape(header.layout, header.obstacle, header.read)


def _decoded(layout: list[Any] | None, obstacle: str, header: list[list[int]]) -> Shape:
    return Shape(
        None if layout is None else SliceLayout(*layout),
        obstacle,
        tuple(ByteRange(*span) for span in header),
    )


def _key(obj: ObjectInfo) -> str:
    return f"{obj.key}\n{obj.etag}"
