"""The value types that all layers speak, and the protocol of an object store.

An object is known by key *and* ETag: an `ObjectInfo` names one immutable version, and every block,
cache file and open handle belongs to exactly one version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from bffs.errors import StoreError


class ObjectInfo(NamedTuple):
    """One version of one object, as it was listed.

    `etag` is without quotes; `size` in bytes; `mtime` in whole seconds since 1970 UTC (the store's
    LastModified).
    """

    key: str
    etag: str
    size: int
    mtime: int


class ByteRange(NamedTuple):
    """Half-open range of bytes: `start` is in it, `stop` is not."""

    start: int
    stop: int


class Listing(NamedTuple):
    """One page of a listing: the objects on it, and the folders when a delimiter was used."""

    objects: list[ObjectInfo]
    folders: list[str]


class Failure(NamedTuple):
    """A request that failed: when, in seconds since 1970, and why."""

    at: float
    reason: str


@dataclass
class Traffic:
    """What has been asked of a store: requests by kind (`get`, `list`), those that had to be asked
    again by the name of the error, and the latest of these."""

    requests: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    failure: Failure | None = None


class Interrupt:
    """Lets any thread break off what another is receiving, or is about to.

    What is over is not broken off, so a race is harmless.
    """

    __slots__ = ("_break_off", "_called")

    def __init__(self) -> None:
        self._break_off: Callable[[], None] | None = None
        self._called = False

    def arm(self, break_off: Callable[[], None] | None) -> None:
        """Have `break_off` called by a call of this, or at once if that has been; or nothing any
        more."""
        self._break_off = break_off
        if self._called and break_off is not None:
            break_off()

    @property
    def was_called(self) -> bool:
        """Whether it was, since it was made or reset."""
        return self._called

    def reset(self) -> None:
        """Forget that it was called."""
        self._called = False

    def __call__(self) -> None:
        """Break it off; it then fails as if the connection had broken."""
        self._called = True
        break_off = self._break_off
        if break_off is not None:
            break_off()


class ObjectStore(Protocol):
    """Read-only access to one bucket. All methods may be called from any thread.

    There is no method that writes, on purpose.
    """

    def list(self, prefix: str, *, folders: bool = False) -> Iterator[Listing]:
        """Pages of the keys below `prefix`; with `folders`, only its own level and the prefixes one
        deeper.

        Raises StoreError.
        """
        ...

    def read_into(
        self,
        obj: ObjectInfo,
        start: int,
        buffer: memoryview,
        advance: Callable[[int], None],
        persist: Callable[[StoreError], bool],
        interrupt: Interrupt,
    ) -> None:
        """Fill `buffer` with the bytes of this version of `obj` from offset `start` on.

        `advance(n)` is called, from whichever thread, as soon as the first `n` bytes of the buffer
        are valid, for growing `n` and last with the buffer's length. `persist(error)` is asked,
        from this thread, after each failure that may pass, whether to go on. Raises ObjectChanged
        where the version is gone, StoreError otherwise; what `advance` has reported stays valid
        even then.
        """
        ...
