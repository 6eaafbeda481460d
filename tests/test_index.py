"""The ledger: limits that hold before bytes are written, what is evicted, and what damage and neighbours do."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bffs import index as index_module
from bffs.index import Index
from bffs.store import ObjectInfo
from bffs.units import GIB, KIB

LIMIT = 100 * KIB


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks at each look, so that no two files are used at once; no floor."""
    now = itertools.count(1)
    lock = threading.Lock()

    def tick() -> float:
        with lock:
            return float(next(now))

    monkeypatch.setattr(index_module.time, "time", tick)
    monkeypatch.setattr(index_module, "FLOOR_BYTES", 0)


def file_of(folder: Path, name: str) -> Path:
    return folder / "dataset" / name[:2] / name


def of_any_size(name: str) -> ObjectInfo:
    """An object that no file is too long for."""
    return ObjectInfo(f"specimen/{name}", "e", GIB, 0)


def write(index: Index, folder: Path, name: str, size: int) -> bool:
    """Reserve room and take it, as the cache does."""
    path = file_of(folder, name)
    if not index.reserve(path, of_any_size(name), size):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(b"x" * size)
    path.with_name(path.name + ".sums").touch()
    return True


def there(folder: Path) -> dict[str, int]:
    """Names and sizes of the files that are there."""
    files = folder.glob("*/??/*")
    return {path.name: path.stat().st_size for path in files if path.suffix != ".sums"}


def rows(folder: Path) -> dict[str, int]:
    """What the ledger says of each file; it must agree with its own sum."""
    with closing(sqlite3.connect(folder / "index.sqlite3")) as connection:
        found = dict(connection.execute("SELECT path, bytes FROM files").fetchall())
        (total,) = connection.execute("SELECT bytes FROM total").fetchone()
    assert total == sum(found.values())
    return {Path(path).name: size for path, size in found.items()}


def pin(folder: Path, name: str) -> None:
    with closing(sqlite3.connect(folder / "index.sqlite3")) as connection:
        connection.execute("UPDATE files SET pinned = 1 WHERE path LIKE ?", (f"%{name}",))
        connection.commit()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def index(folder: Path) -> Iterator[Index]:
    index = Index(folder, LIMIT)
    yield index
    index.close()


# -- limits -----------------------------------------------------------------------------------------------------


def test_room_is_made_before_it_is_taken(index: Index, folder: Path) -> None:
    for n in range(30):
        path = file_of(folder, f"{n:02}")
        assert index.reserve(path, of_any_size("k"), 9 * KIB)
        assert sum(there(folder).values()) <= LIMIT - 9 * KIB
        assert sum(rows(folder).values()) <= LIMIT
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(9 * KIB))
    assert len(there(folder)) == 11
    assert rows(folder) == there(folder)


def test_what_was_used_longest_ago_goes_first(index: Index, folder: Path) -> None:
    for name in ("aa", "bb", "cc", "dd"):
        write(index, folder, name, 25 * KIB)
    index.touch(file_of(folder, "aa"))
    write(index, folder, "bb", 0)
    write(index, folder, "ee", 25 * KIB)
    assert set(there(folder)) == {"aa", "bb", "dd", "ee"}
    write(index, folder, "ff", 50 * KIB)
    assert set(there(folder)) == {"bb", "ee", "ff"}
    assert not list(folder.glob("*/*/cc.sums"))


def test_a_file_is_not_evicted_for_itself(index: Index, folder: Path) -> None:
    assert write(index, folder, "aa", 60 * KIB)
    assert not write(index, folder, "aa", 60 * KIB)
    assert there(folder) == {"aa": 60 * KIB} == rows(folder)


def test_what_is_pinned_stays(index: Index, folder: Path) -> None:
    for name in ("aa", "bb", "cc"):
        write(index, folder, name, 30 * KIB)
    pin(folder, "aa")
    assert write(index, folder, "dd", 70 * KIB)
    assert there(folder) == {"aa": 30 * KIB, "dd": 70 * KIB}
    assert not write(index, folder, "ee", 71 * KIB)
    assert "aa" in there(folder)


def test_use_is_written_down_at_the_end(folder: Path) -> None:
    first = Index(folder, LIMIT)
    for name in ("aa", "bb"):
        write(first, folder, name, 40 * KIB)
    first.touch(file_of(folder, "aa"))
    first.close()
    second = Index(folder, LIMIT)
    write(second, folder, "cc", 40 * KIB)
    second.close()
    assert set(there(folder)) == {"aa", "cc"}


def test_closing_what_was_never_used_makes_nothing(tmp_path: Path) -> None:
    Index(tmp_path / "absent", LIMIT).close()
    assert not (tmp_path / "absent").exists()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="only since 3.13 Python tells of it")
def test_who_drops_it_closes_it_whatever_the_garbage_collector_sees_first(folder: Path) -> None:
    """A connection that is finalized before it is closed warns; here that is an error."""
    index = Index(folder, LIMIT)
    write(index, folder, "aa", KIB)
    earlier = [index._connection]
    cycle: list[object] = [index]
    cycle.append(cycle)
    del index
    gc.collect()  # after which the index comes behind its connection
    earlier.clear()
    del cycle
    gc.collect()


@settings(max_examples=40, deadline=None)
@given(
    actions=st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 60), st.booleans()), max_size=30
    )
)
def test_the_limit_holds_whatever_is_written(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("index")
    index = Index(folder, LIMIT)
    for name, size, reopen in actions:
        before = there(folder)
        if not write(index, folder, name * 2, size * KIB):
            assert before.get(name * 2, 0) + size * KIB > LIMIT
        assert rows(folder) == there(folder)
        assert sum(there(folder).values()) <= LIMIT
        if reopen:
            index.close()
    index.close()


# -- the disk's floor -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "floor_bytes", "fits"),
    [
        (100 * KIB, GIB, True),  # a tenth of 800 KiB is less than a GiB
        (89 * KIB, GIB, False),
        (89 * KIB, 50 * KIB, True),
        (59 * KIB, 50 * KIB, False),
        (0, 0, False),
    ],
)
def test_some_of_the_disk_stays_free(
    index: Index,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    floor_bytes: int,
    fits: bool,
) -> None:
    disk = SimpleNamespace(f_bavail=free // KIB, f_frsize=KIB, f_blocks=800)
    monkeypatch.setattr(index_module.os, "statvfs", lambda path: disk)
    monkeypatch.setattr(index_module, "FLOOR_BYTES", floor_bytes)
    assert write(index, folder, "aa", 10 * KIB) is fits


def test_files_go_when_others_fill_the_disk(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("aa", "bb", "cc"):
        write(index, folder, name, 20 * KIB)
    disk = SimpleNamespace(f_bavail=5, f_frsize=KIB, f_blocks=1000)
    monkeypatch.setattr(index_module.os, "statvfs", lambda path: disk)
    assert write(index, folder, "dd", 10 * KIB)
    assert set(there(folder)) == {"bb", "cc", "dd"}


# -- damage -----------------------------------------------------------------------------------------------------


def damage_lost(folder: Path) -> None:
    for path in folder.glob("index.sqlite3*"):
        path.unlink()


def damage_not_a_database(folder: Path) -> None:
    damage_lost(folder)
    (folder / "index.sqlite3").write_bytes(b"not a database at all" * 1000)


def damage_pages(folder: Path) -> None:
    path = folder / "index.sqlite3"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


def damage_schema_without_count(folder: Path) -> None:
    """As if the process had been killed between making the tables and counting the files."""
    damage_lost(folder)
    with closing(sqlite3.connect(folder / "index.sqlite3")) as connection:
        connection.execute("PRAGMA journal_mode = wal")


@pytest.mark.parametrize(
    "damage", [damage_lost, damage_not_a_database, damage_pages, damage_schema_without_count]
)
def test_a_damaged_ledger_is_made_anew_from_the_files(
    folder: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    index = Index(folder, LIMIT)
    for name in ("aa", "bb", "cc"):
        write(index, folder, name, 32 * KIB)
    index.close()
    assert callable(damage)
    damage(folder)
    index = Index(folder, LIMIT)
    assert write(index, folder, "dd", 32 * KIB)
    assert sum(there(folder).values()) <= LIMIT
    assert rows(folder) == there(folder)
    index.close()


def test_an_unusable_folder_is_an_error_not_a_new_ledger(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    index = Index(tmp_path / "file", LIMIT)
    with pytest.raises((OSError, sqlite3.Error)):
        index.reserve(tmp_path / "file" / "a", of_any_size("k"), 1)


def _write_on(folder: Path, done: Any) -> None:
    index = Index(folder, LIMIT)
    for n in itertools.count():
        if done.is_set():
            break
        with suppress(sqlite3.Error):
            write(index, folder, f"{n % 26:02}", KIB)
    index.close()


def test_cutting_its_files_kills_nobody(folder: Path) -> None:
    """What a process maps and somebody cuts, it can't read any more: SIGBUS."""
    context = multiprocessing.get_context("fork")
    done = context.Event()
    workers = [context.Process(target=_write_on, args=(folder, done)) for _ in range(2)]
    for worker in workers:
        worker.start()
    chance = random.Random(1)
    cuts = 0
    end = time.monotonic() + 60
    while cuts < 300 and time.monotonic() < end and all(each.is_alive() for each in workers):
        for file in folder.glob("index.*"):
            with suppress(FileNotFoundError):
                size = file.stat().st_size
                os.truncate(file, chance.choice((0, size // 2, max(0, size - 1))))
                cuts += size > 0
    done.set()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert cuts >= 300
    index = Index(folder, LIMIT)
    assert write(index, folder, "zz", KIB)
    index.close()
    assert 0 < sum(rows(folder).values()) <= LIMIT


def test_after_a_crash_of_the_machine_it_is_completed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written last may be lost then: a file would stay for ever, or count for too little."""
    index = Index(folder, LIMIT)
    for name in ("aa", "bb", "cc"):
        write(index, folder, name, 8 * KIB)
    index.close()
    with closing(sqlite3.connect(folder / "index.sqlite3")) as connection:
        connection.execute("DELETE FROM files WHERE path LIKE '%aa'")
        connection.execute("UPDATE files SET bytes = 1 WHERE path LIKE '%bb'")
        connection.execute("UPDATE total SET bytes = 5")
        connection.commit()
    monkeypatch.setattr(index_module, "_boot", lambda: "another")
    index = Index(folder, LIMIT)
    assert index.account().stored == 24 * KIB
    assert rows(folder) == there(folder)
    index.close()


def test_a_ledger_of_an_older_version_is_made_anew(folder: Path) -> None:
    """Though it has a WAL."""
    path = file_of(folder, "aa")
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(8 * KIB))
    with closing(sqlite3.connect(folder / "index.sqlite3")) as older:
        older.execute("PRAGMA journal_mode = wal")
        older.execute("CREATE TABLE files (path TEXT)")
        older.execute("PRAGMA user_version = 2")
        older.commit()
    index = Index(folder, LIMIT)
    assert write(index, folder, "bb", 8 * KIB)
    assert rows(folder) == there(folder)
    assert not [*folder.glob("*-wal"), *folder.glob("*-shm")]
    index.close()


# -- neighbours -------------------------------------------------------------------------------------------------


def _write_many(folder: Path, start: int, gate: object) -> None:
    index = Index(folder, LIMIT)
    gate.wait()  # type: ignore[attr-defined]
    for n in range(40):
        assert write(index, folder, f"{(start + n) % 26:02}", 4 * KIB)
    index.close()


def test_processes_reserve_at_once(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    workers = [context.Process(target=_write_many, args=(folder, n * 7, gate)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert 0 < sum(rows(folder).values()) <= LIMIT


def test_threads_touch_while_others_reserve(index: Index, folder: Path) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def touch() -> None:
        try:
            n = 0
            while not stop.is_set():
                n += 1
                index.touch(file_of(folder, f"{n % 500:04}"))
                if n % 20 == 0:
                    stop.wait(0.001)  # or the threads take the interpreter from SQLite at each row
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=touch) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for n in range(60):
            assert write(index, folder, f"{n % 26:02}", KIB)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert sum(rows(folder).values()) <= LIMIT


def test_a_process_killed_in_a_transaction_leaves_no_lock(folder: Path, index: Index) -> None:
    write(index, folder, "aa", KIB)

    def die(folder: Path) -> None:
        connection = sqlite3.connect(folder / "index.sqlite3", isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE files SET bytes = 0")
        index_module.os.kill(index_module.os.getpid(), 9)

    worker = multiprocessing.get_context("fork").Process(target=die, args=(folder,))
    worker.start()
    worker.join(30)
    assert worker.exitcode == -9
    assert write(index, folder, "bb", KIB)
    assert rows(folder) == {"aa": KIB, "bb": KIB}


# -- pins -------------------------------------------------------------------------------------------------------


def test_a_pinned_specimen_stays_whatever_it_gets_later(index: Index, folder: Path) -> None:
    write(index, folder, "aa", 30 * KIB)
    index.pin("specimen/", [file_of(folder, "aa"), file_of(folder, "bb")])
    write(index, folder, "bb", 30 * KIB)
    other = ObjectInfo("other/cc", "e", GIB, 0)
    assert index.reserve(file_of(folder, "cc"), other, 40 * KIB)
    assert not index.reserve(file_of(folder, "dd"), other, 41 * KIB)
    assert index.reserve(file_of(folder, "dd"), other, 40 * KIB)
    assert set(rows(folder)) == {"aa", "bb", "dd"}
    assert index.account()[:2] == (100 * KIB, 60 * KIB)
    index.unpin("specimen/", [file_of(folder, "aa"), file_of(folder, "bb")])
    assert index.reserve(file_of(folder, "ee"), other, 60 * KIB)
    assert "aa" not in rows(folder)


def test_pins_outlive_the_ledger(folder: Path) -> None:
    index = Index(folder, LIMIT)
    write(index, folder, "aa", 30 * KIB)
    write(index, folder, "bb", 30 * KIB)
    index.pin("specimen/", [file_of(folder, "aa")])
    index.close()
    damage_lost(folder)
    index = Index(folder, LIMIT)
    other = ObjectInfo("other/cc", "e", GIB, 0)
    assert index.reserve(file_of(folder, "cc"), other, 60 * KIB)
    assert set(there(folder)) == {"aa"}
    assert not index.reserve(file_of(folder, "cc"), other, 10 * KIB)
    index.close()


def test_nothing_is_evicted_in_vain(index: Index, folder: Path) -> None:
    for name in ("aa", "bb"):
        write(index, folder, name, 40 * KIB)
    assert not write(index, folder, "cc", 101 * KIB)
    assert set(there(folder)) == {"aa", "bb"}


def test_a_file_counts_for_no_more_than_its_object(index: Index, folder: Path) -> None:
    """Or what two processes store at once, and what a killed one reserved, would count for ever."""
    obj = ObjectInfo("specimen/aa", "e", 10 * KIB, 0)
    for _ in range(30):
        assert index.reserve(file_of(folder, "aa"), obj, 8 * KIB)
    assert rows(folder) == {"aa": 12 * KIB}


def test_files_are_evicted_on_request(index: Index, folder: Path) -> None:
    for name in ("aa", "bb"):
        write(index, folder, name, 40 * KIB)
    index.evict([file_of(folder, "aa"), file_of(folder, "absent")])
    assert set(rows(folder)) == set(there(folder)) == {"bb"}
    assert index.knows(file_of(folder, "bb")) and not index.knows(file_of(folder, "aa"))


def test_what_another_process_used_is_seen(index: Index, folder: Path) -> None:
    write(index, folder, "aa", KIB)
    now = index_module.time.time()
    write(index, folder, "bb", KIB)
    index.touch(file_of(folder, "aa"))
    other = Index(folder, LIMIT)
    assert other.used_since(now) == [file_of(folder, "bb")]
    index.flush()
    assert other.used_since(now) == [file_of(folder, "aa"), file_of(folder, "bb")]
    other.close()


def test_another_folder_in_its_place_gets_a_ledger_of_its_own(index: Index, folder: Path) -> None:
    write(index, folder, "aa", KIB)
    damage_lost(folder)
    other = Index(folder, LIMIT)
    write(other, folder, "bb", KIB)
    write(index, folder, "cc", KIB)
    assert set(rows(folder)) == {"aa", "bb", "cc"}
    other.close()


@pytest.mark.parametrize(
    "statement", ["DELETE FROM total", "UPDATE total SET bytes = 'x'", "DROP TABLE files"]
)
def test_a_ledger_that_makes_no_sense_is_made_anew(
    index: Index, folder: Path, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(index, folder, "aa", 32 * KIB)
    with closing(sqlite3.connect(folder / "index.sqlite3")) as connection:
        connection.execute(statement)
        connection.commit()
    assert write(index, folder, "bb", 32 * KIB)
    assert rows(folder) == there(folder)
    assert "made anew" in caplog.text
