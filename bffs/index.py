"""The ledger of the disk cache: how many bytes each cached file holds, when it was last used, what
must go.

A SQLite database (WAL) shared by all processes that use the cache folder. Room is reserved *before*
bytes are written, in one transaction that also evicts, so the limits hold across processes; a
process that dies in between leaves a reservation that is too large, never one that is too small,
and no lock.

The ledger is only an account: presence and integrity of blocks are with the files themselves
(`cache`). A database that is lost or damaged is made anew from the files.

Threads: one connection behind one lock. `reserve` is called by the threads that write the cache,
never by a reader; `touch` only notes the time.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

from bffs.store import ObjectInfo
from bffs.units import GIB

log = logging.getLogger(__name__)

FLOOR_SHARE = 0.1
FLOOR_BYTES = 10 * GIB
"""Of the disk, this share or this many bytes are left free, whichever is less."""

_PATIENCE = 10.0
"""Seconds to wait for other processes."""

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY,      -- relative to the ledger's folder
    key TEXT NOT NULL,          -- of the object, for people
    bytes INTEGER NOT NULL,     -- reserved: at least what the file holds
    used REAL NOT NULL,         -- seconds since 1970
    pinned INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON files (pinned, used);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON files BEGIN
    UPDATE total SET bytes = bytes + new.bytes;
END;
CREATE TRIGGER IF NOT EXISTS grown AFTER UPDATE OF bytes ON files BEGIN
    UPDATE total SET bytes = bytes + new.bytes - old.bytes;
END;
CREATE TRIGGER IF NOT EXISTS gone AFTER DELETE ON files BEGIN
    UPDATE total SET bytes = bytes - old.bytes;
END;
"""
"""Leaves its transaction open: the files that are there already are counted in the same one."""


class Index:
    """The ledger of one cache folder; `limit` is the most bytes it may hold."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._connection: sqlite3.Connection | None = None
        self._folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}

    def __del__(self) -> None:
        self._disconnect()

    def touch(self, path: Path) -> None:
        """Note that the file was used just now."""
        name = str(path.relative_to(self._folder))
        self._used[name] = time.time()

    def reserve(self, path: Path, obj: ObjectInfo, size: int) -> bool:
        """Make room for `size` more bytes in the file; False if there is none even after evicting.

        Raises OSError or sqlite3.Error.
        """
        name = str(path.relative_to(self._folder))
        with self._lock:
            try:
                return self._reserve(name, obj.key, size)
            except OSError:
                self._disconnect()  # the folder may be gone, and the ledger with it
                raise
            except sqlite3.DatabaseError as error:
                self._disconnect()
                if isinstance(error, sqlite3.OperationalError):
                    raise
                log.warning("the cache's ledger is damaged and is made anew: %s", error)
                self._remove()
                return self._reserve(name, obj.key, size)

    def close(self) -> None:
        """Write down when files were last used. Raises sqlite3.Error."""
        with self._lock:
            if self._used and (self._connection is not None or self._folder.exists()):
                with self._connect() as transaction:
                    self._note_use(transaction)
            self._disconnect()

    def _reserve(self, name: str, key: str, size: int) -> bool:
        connection = self._connect()
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            self._note_use(connection)
            if not self._make_room(connection, name, size):
                return False
            connection.execute(
                "INSERT INTO files (path, key, bytes, used) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (path) DO UPDATE SET bytes = bytes + excluded.bytes, used = excluded.used",
                (name, key, size, time.time()),
            )
        return True

    def _make_room(self, connection: sqlite3.Connection, name: str, size: int) -> bool:
        """Evict the files used longest ago until `size` bytes more fit, never `name` or a pinned
        one."""
        disk = os.statvfs(self._folder)
        spare = disk.f_bavail * disk.f_frsize - min(
            disk.f_blocks * disk.f_frsize * FLOOR_SHARE, FLOOR_BYTES
        )
        (total,) = connection.execute("SELECT bytes FROM total").fetchone()
        missing = max(size - spare, total + size - self._limit)
        if missing <= 0:
            return True
        for victim, held in connection.execute(
            "SELECT path, bytes FROM files WHERE pinned = 0 AND path != ? ORDER BY used", (name,)
        ).fetchall():
            for doomed in (f"{victim}.sums", victim):
                with suppress(FileNotFoundError):
                    (self._folder / doomed).unlink()
            connection.execute("DELETE FROM files WHERE path = ?", (victim,))
            missing -= held
            if missing <= 0:
                return True
        return False

    def _note_use(self, connection: sqlite3.Connection) -> None:
        used, self._used = self._used, {}
        connection.executemany(
            "UPDATE files SET used = max(used, ?) WHERE path = ?",
            # A copy, made in one step: a `touch` that began before may still add to it.
            [(when, path) for path, when in tuple(used.items())],
        )

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            file = self._folder / "index.sqlite3"
            connection = sqlite3.connect(
                file, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            try:
                _use_wal(connection)
                connection.execute("PRAGMA synchronous = normal")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if not version:
                    connection.executescript(_SCHEMA)
                    self._count_files(connection)
                    connection.execute("PRAGMA user_version = 1")
                    connection.commit()
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                (self._folder / f"index.sqlite3{suffix}").unlink()

    def _count_files(self, connection: sqlite3.Connection) -> None:
        """Enter files that are there without a ledger, by the space they take on the disk."""
        for file in self._folder.glob("*/??/*"):
            if file.suffix == ".sums":
                continue
            with suppress(FileNotFoundError):  # another process may evict it
                found = file.stat()
                connection.execute(
                    "INSERT OR IGNORE INTO files (path, key, bytes, used) VALUES (?, '', ?, ?)",
                    (
                        str(file.relative_to(self._folder)),
                        found.st_blocks * 512,
                        found.st_mtime,
                    ),
                )


def _use_wal(connection: sqlite3.Connection) -> None:
    """Wait for other processes that do the same; SQLite's own time-out doesn't cover this."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)
