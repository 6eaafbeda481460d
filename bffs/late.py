"""The store, connected when it is first needed.

Importing boto3 and making a client takes half a second, which a mount or an `ls` from a snapshot
neither needs nor waits for. May be used from any thread; its lock is held while connecting.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bffs.errors import StoreError, StoreUnreachable
from bffs.settings import Settings
from bffs.store import Interrupt, Listing, ObjectInfo, Traffic

if TYPE_CHECKING:
    from bffs.s3 import S3Store


log = logging.getLogger(__name__)


def is_exposed(url: str | None) -> bool:
    """Whether bytes go over a network as they are."""
    parts = urlsplit(url or "")
    host = parts.hostname or ""
    return parts.scheme == "http" and host not in ("localhost", "::1") and host[:4] != "127."


class LateStore:
    """An `ObjectStore` like `S3Store`, which with `offline` settings refuses everything at once."""

    def __init__(self, settings: Settings) -> None:
        if is_exposed(settings.dataset.endpoint_url):
            log.warning(
                "%s is not encrypted: others may see and change what is read; use https if it can",
                settings.dataset.endpoint_url,
            )
        self._settings = settings
        self._lock = threading.Lock()
        self._store: S3Store | None = None
        self._stopped = threading.Event()

    def connect(self) -> S3Store:
        """The store itself. Raises UsageError; StoreUnreachable where it may not be asked."""
        if self._settings.offline:
            raise StoreUnreachable("nothing is asked of the store, for this is --offline")
        from bffs.s3 import S3Store

        with self._lock:
            if self._store is None:
                self._store = S3Store(self._settings, self._stopped)
            return self._store

    def stop(self) -> None:
        """See `S3Store.stop`; from now on nothing is tried again."""
        self._stopped.set()
        if self._store is not None:
            self._store.stop()

    def close(self) -> None:
        """Close what was connected."""
        self._stopped.set()
        if self._store is not None:
            self._store.close()

    def traffic(self) -> Traffic:
        """What has been asked of the store so far."""
        store = self._store
        return Traffic() if store is None else store.traffic()

    def list(self, prefix: str, *, folders: bool = False) -> Iterator[Listing]:
        """See `ObjectStore.list`."""
        return self.connect().list(prefix, folders=folders)

    def read_into(
        self,
        obj: ObjectInfo,
        start: int,
        buffer: memoryview,
        advance: Callable[[int], None],
        persist: Callable[[StoreError], bool],
        interrupt: Interrupt,
    ) -> None:
        """See `ObjectStore.read_into`."""
        if self._settings.offline:
            raise StoreUnreachable(f"{obj.key} is not all in the cache, and this is --offline")
        self.connect().read_into(obj, start, buffer, advance, persist, interrupt)
