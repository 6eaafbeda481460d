"""The ledger of the disk cache: how many bytes each cached file holds, when it was last used, what
must go.

A SQLite database shared by all processes that use the cache folder. Room is reserved *before* bytes
are written, in one transaction that also evicts, so the limits hold across processes; a process that
dies in between leaves a reservation that is too large, never one that is too small, and no lock.

The ledger is only an account: presence and integrity of blocks are with the files themselves
(`cache`). A database that is lost or damaged is made anew from the files; after a crash of the
machine, for which nothing here waits for the disk, it is checked and completed from them.

It has a rollback journal, not a WAL: a process maps the index of a WAL into its memory, and dies
when somebody cuts that file. Measured: 6,300 transactions a second, 5,400 with a WAL (two processes
7,700 and 5,900).

What is pinned (`pins`) is never evicted; the ledger's own mark of it only spares the search.

Threads: one connection behind one lock. No reader ever waits for it: `reserve` is called by the
threads that write the cache, and `touch` only notes the time.
"""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from bffs import pins
from bffs.store import ObjectInfo
from bffs.units import GIB

T = TypeVar("T")

log = logging.getLogger(__name__)

FLOOR_SHARE = 0.1
FLOOR_BYTES = 10 * GIB
"""Of the disk, this share or this many bytes are left free, whichever is less."""

_PATIENCE = 10.0
"""Seconds to wait for other processes."""

_VERSION = 3
"""Of the ledger; another one's is made anew from the files."""

_PAGE = 4096

_SETTINGS = ("mmap_size = 0", "journal_mode = persist", "synchronous = off")
"""Of each connection: what others cut is never mapped, and no transaction waits for the disk (with
fsyncs there are a quarter as many a second)."""

_FAULTS = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
}
"""SQLite's words for faults of the disk and for neighbours; whatever else goes wrong is damage."""

_SCHEMA = (
    "DROP TABLE IF EXISTS files",
    "DROP TABLE IF EXISTS total",
    """CREATE TABLE files (
        path TEXT PRIMARY KEY,      -- relative to the ledger's folder
        key TEXT NOT NULL,          -- of the object, for people
        bytes INTEGER NOT NULL,     -- reserved: at least what the file holds
        used REAL NOT NULL,         -- seconds since 1970
        pinned INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX by_use ON files (pinned, used)",
    """CREATE TABLE total (
        bytes INTEGER NOT NULL,
        pinned INTEGER NOT NULL,
        boot TEXT NOT NULL          -- of the machine, since when every change has been seen
    )""",
    "INSERT INTO total VALUES (0, 0, '')",
    """CREATE TRIGGER added AFTER INSERT ON files BEGIN
        UPDATE total SET bytes = bytes + new.bytes, pinned = pinned + new.bytes * new.pinned;
    END""",
    """CREATE TRIGGER changed AFTER UPDATE OF bytes, pinned ON files BEGIN
        UPDATE total SET bytes = bytes + new.bytes - old.bytes,
            pinned = pinned + new.bytes * new.pinned - old.bytes * old.pinned;
    END""",
    """CREATE TRIGGER gone AFTER DELETE ON files BEGIN
        UPDATE total SET bytes = bytes - old.bytes, pinned = pinned - old.bytes * old.pinned;
    END""",
)


class Account(NamedTuple):
    """Bytes: stored in all, pinned of these, and what the disk could still take above its floor."""

    stored: int
    pinned: int
    spare: int


class Index:
    """The ledger of one cache folder; `limit` is the most bytes it may hold.

    `stamp` is the time at which what is reserved or touched counts as used, instead of now.
    """

    def __init__(self, folder: Path, limit: int, stamp: float | None = None) -> None:
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._folder = folder
        self._limit = limit
        self._stamp = stamp
        self._lock = threading.Lock()
        self._used: dict[Path, float] = {}
        self.evicted = 0
        """Files that were evicted through this, to make room."""

    def touch(self, path: Path) -> None:
        """Note that the file was used just now."""
        self._used[path] = self._stamp or time.time()

    def reserve(self, path: Path, obj: ObjectInfo, size: int) -> bool:
        """Make room for `size` more bytes of `obj` in the file; False if there is none even after
        evicting.

        A file never counts for more than its object. Raises OSError or sqlite3.Error.
        """

        def reserve(connection: sqlite3.Connection) -> bool:
            self._note_use(connection)
            name = self._name(path)
            found = connection.execute("SELECT bytes FROM files WHERE path = ?", (name,)).fetchone()
            held = found[0] if found else 0
            most = -(-obj.size // _PAGE) * _PAGE
            grown = max(held, min(held + size, most))
            victims = self._victims(connection, name, held, grown, size)
            if victims is None:
                return False
            self._remove(connection, victims)
            self.evicted += len(victims)
            pinned = pins.is_pinned(self._dataset_folder(name), _prefix(obj.key))
            connection.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET "
                "key = excluded.key, bytes = excluded.bytes, pinned = excluded.pinned, "
                "used = max(used, excluded.used)",
                (name, obj.key, grown, self._stamp or time.time(), pinned),
            )
            return True

        return self._transact(reserve)

    def knows(self, path: Path) -> bool:
        """Whether the file is in the ledger: one that is not would stay for ever. Raises OSError
        or sqlite3.Error."""
        query = "SELECT count(*) FROM files WHERE path = ?"
        name = self._name(path)
        return bool(self._transact(lambda c: c.execute(query, (name,)).fetchone()[0]))

    def evict(self, paths: Iterable[Path]) -> None:
        """Remove these files. Raises OSError or sqlite3.Error."""
        names = [self._name(path) for path in paths]
        self._transact(lambda connection: self._remove(connection, names))

    def pin(self, prefix: str, paths: Iterable[Path]) -> None:
        """Never evict these files of the specimen with that prefix, nor others that it gets later.

        Raises OSError or sqlite3.Error.
        """
        names = [self._name(path) for path in paths]
        if names:
            pins.pin(self._dataset_folder(names[0]), prefix, names)
            self._mark(names, 1)

    def unpin(self, prefix: str, paths: Iterable[Path]) -> None:
        """Let the files of the specimen be evicted again. Raises OSError or sqlite3.Error."""
        names = [self._name(path) for path in paths]
        if names:
            pins.unpin(self._dataset_folder(names[0]), prefix)
            self._mark(names, 0)

    def account(self) -> Account:
        """What is stored, and what more there is room for. Raises OSError or sqlite3.Error."""

        def look(connection: sqlite3.Connection) -> Account:
            return Account(*_totals(connection), spare=spare(self._folder))

        return self._transact(look)

    def used_since(self, when: float) -> list[Path]:
        """Files that were used since then, seconds since 1970, the latest first, but for those with
        the stamp of this ledger. Raises OSError or sqlite3.Error."""
        query = (
            "SELECT path FROM files WHERE pinned IN (0, 1) AND used > ? AND used IS NOT ? "
            "ORDER BY used DESC LIMIT 64"
        )
        found = self._transact(lambda c: c.execute(query, (when, self._stamp)).fetchall())
        return [self._folder / name for (name,) in found]

    def recount(self, sizes: Mapping[Path, int]) -> None:
        """Correct what these files are counted for, none of which is being written now.

        Raises OSError or sqlite3.Error.
        """
        rows = [(size, self._name(path)) for path, size in sizes.items()]
        query = "UPDATE files SET bytes = ? WHERE path = ?"
        self._transact(lambda connection: connection.executemany(query, rows))

    def flush(self) -> None:
        """Write down when files were last used, for other processes to see. Raises OSError or
        sqlite3.Error."""
        if self._used:
            self._transact(self._note_use)

    def close(self) -> None:
        """Write down when files were last used. Raises OSError or sqlite3.Error."""
        try:
            if self._connection is not None or self._folder.exists():
                self.flush()
        finally:
            with self._lock:
                self._disconnect()

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, all or nothing of its changes made. A damaged ledger is made anew.

        Raises OSError or sqlite3.Error.
        """
        with self._lock:
            try:
                with self._transaction() as connection:
                    return work(connection)
            except OSError:
                raise
            except (sqlite3.Error, TypeError, ValueError) as error:
                if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _FAULTS:
                    raise
                log.warning("the cache's ledger is damaged and is made anew: %s", error)
                self._delete()
                with self._transaction() as connection:
                    return work(connection)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction, committed at the end; after an error the connection is closed, too."""
        try:
            connection = self._connect()
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
        except BaseException:
            self._disconnect()  # the folder may be gone, and the ledger with it
            raise

    def _victims(
        self, connection: sqlite3.Connection, name: str, held: int, grown: int, size: int
    ) -> list[str] | None:
        """The files used longest ago that must go, so that the file may grow; never a pinned one
        nor itself. None if that can't be, and then none need go."""
        stored, pinned = _totals(connection)
        missing = max(size - spare(self._folder), stored + grown - held - self._limit)
        if missing > stored - pinned:
            return None
        victims: list[str] = []
        query = "SELECT path, bytes FROM files WHERE pinned = 0 AND path != ? ORDER BY used"
        candidates = connection.execute(query, (name,))
        while missing > 0:
            candidate = candidates.fetchone()
            if candidate is None:
                return None
            victims.append(candidate[0])
            missing -= candidate[1]
        return victims

    def _remove(self, connection: sqlite3.Connection, names: Iterable[str]) -> None:
        for name in names:
            for doomed in (f"{name}.sums", name):
                with suppress(FileNotFoundError):
                    (self._folder / doomed).unlink()
            connection.execute("DELETE FROM files WHERE path = ?", (name,))

    def _mark(self, names: Iterable[str], pinned: int) -> None:
        rows = [(pinned, name) for name in names]
        query = "UPDATE files SET pinned = ? WHERE path = ?"
        self._transact(lambda connection: connection.executemany(query, rows))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder))

    def _dataset_folder(self, name: str) -> Path:
        return self._folder / name.partition("/")[0]

    def _note_use(self, connection: sqlite3.Connection) -> None:
        used, self._used = self._used, {}
        connection.executemany(
            "UPDATE files SET used = max(used, ?) WHERE path = ?",
            # A copy, made in one step: a `touch` that began before may still add to it.
            [(when, self._name(path)) for path, when in tuple(used.items())],
        )

    def _connect(self) -> sqlite3.Connection:
        file = self._folder / "index.sqlite3"
        if self._connection is not None and _inode(file) != self._inode:
            self._disconnect()  # somebody removed it, and perhaps made another
        if self._connection is None:
            os.stat(self._folder)  # its absence in the words of the system
            connection = sqlite3.connect(
                file, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
            try:
                for setting in _SETTINGS:
                    connection.execute(f"PRAGMA {setting}")
                if _version(connection) != _VERSION or _counted_in(connection) != _boot():
                    self._make(connection)
            except BaseException:
                connection.close()
                raise
            self._inode = _inode(file)
            self._connection = connection
            # By __del__ it would at times come too late: in a cycle the connection may be finalized first, which warns.
            self._closing = weakref.finalize(self, connection.close)
        return self._connection

    def _make(self, connection: sqlite3.Connection) -> None:
        """Make the tables if need be and enter the files that are there, unless another process has
        just done so."""
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if _version(connection) != _VERSION:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            if _counted_in(connection) != _boot():
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
                self._count_files(connection)
                connection.execute(
                    "UPDATE total SET boot = ?, (bytes, pinned) = "
                    "(SELECT ifnull(sum(bytes), 0), ifnull(sum(bytes * pinned), 0) FROM files)",
                    (_boot(),),
                )

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._closing()
            self._connection = None

    def _delete(self) -> None:
        for suffix in ("", "-journal", "-wal", "-shm"):  # the last two are those of older versions
            with suppress(FileNotFoundError):
                (self._folder / f"index.sqlite3{suffix}").unlink()

    def _count_files(self, connection: sqlite3.Connection) -> None:
        """Enter what the ledger does not know of the files, by the space they take on the disk."""
        pinned = set(pins.pinned_files(self._folder))
        for file in self._folder.glob("*/??/*"):
            if file.suffix == ".sums":
                continue
            with suppress(FileNotFoundError):  # another process may evict it
                found = file.stat()
                name = self._name(file)
                connection.execute(
                    "INSERT INTO files VALUES (?, '', ?, ?, ?) "
                    "ON CONFLICT (path) DO UPDATE SET bytes = max(bytes, excluded.bytes)",
                    (name, found.st_blocks * 512, found.st_mtime, name in pinned),
                )


def spare(folder: Path) -> int:
    """Bytes that the disk can take and still have its floor free; below zero when it lies under
    it. Raises OSError."""
    disk = os.statvfs(folder)
    floor = min(disk.f_blocks * disk.f_frsize * FLOOR_SHARE, FLOOR_BYTES)
    return int(disk.f_bavail * disk.f_frsize - floor)


def _prefix(key: str) -> str:
    """The folder of an object's key: its specimen's prefix."""
    return key[: key.rfind("/") + 1]


def _totals(connection: sqlite3.Connection) -> tuple[int, int]:
    """Bytes in all, and pinned."""
    stored, pinned = connection.execute("SELECT bytes, pinned FROM total").fetchone()
    return stored, pinned


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _inode(file: Path) -> int:
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return 0


def _counted_in(connection: sqlite3.Connection) -> str:
    """The boot of the machine in which the files were last compared with the ledger."""
    (boot,) = connection.execute("SELECT boot FROM total").fetchone()
    return str(boot)


@functools.cache
def _boot() -> str:
    """Which boot of the machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
