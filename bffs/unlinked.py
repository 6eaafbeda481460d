"""Files of the scratch folder that have lost their name but are still open.

The kernel asks for the attributes of an open file by name even when it has none, so libfuse gives such a file another
one, an `alias`, until it is closed. Here it moves into a private folder meanwhile: out of sight, and not in the way
when the folder it was in is removed.

libfuse does the same to a file that is about to be replaced by a rename, just before. So that a crash between the two
doesn't lose the name, a note says for a moment where the file was; `recover` brings it back.

Threads: any; single operations on dicts are atomic. A rename follows on the thread that has moved its target away.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter
from contextlib import suppress

from bffs.beneath import Beneath

RENAME_NOREPLACE = 1
_NOTE = ".was"
_NOTE_TIME = 0.02
"""Seconds after which a file that was moved away is taken for deleted; a rename follows within microseconds."""


class Unlinked:
    """The files moved into `folder` (below the root of `disk`), which must exist."""

    def __init__(self, disk: Beneath, folder: str) -> None:
        self._disk = disk
        self._folder = folder
        self._numbers = itertools.count()
        self._places: dict[str, str] = {}
        self._inodes: Counter[int] = Counter()
        self._thread = threading.local()

    def place(self, alias: str) -> str | None:
        """Where the file of that alias is, if there is one."""
        return self._places.get(alias)

    def has(self, file: str) -> bool:
        """Whether a file of this absolute path is here."""
        return file.startswith(f"{self._disk.root}/{self._folder}/")

    def names(self, ino: int) -> int:
        """How many of a file's names are here."""
        return self._inodes.get(ino, 0)

    def is_same(self, name: str, other: str) -> bool:
        """Whether `name`, which was just moved away, is another name of the file `other`."""
        last = self._last()
        return (
            last is not None
            and last[0] == name
            and os.path.samestat(self._disk.stat(last[2]), self._disk.stat(other))
        )

    def take(self, name: str, alias: str) -> None:
        """Move `name` away. Raises OSError."""
        place = f"{self._folder}/{os.getpid()}-{next(self._numbers)}"
        with self._disk.at(place) as (folder, base):
            os.symlink(name, base + _NOTE, dir_fd=folder)
        try:
            self._disk.rename(name, place)
        except OSError:
            self._forget_note(place)
            raise
        self._places[alias] = place
        self._inodes[self._disk.stat(place).st_ino] += 1
        self._thread.last = (name, alias, place)
        timer = threading.Timer(_NOTE_TIME, self._forget_note, [place])
        timer.daemon = True
        timer.start()

    def replaced(self, name: str) -> None:
        """`name` has been renamed over."""
        last = self._last()
        self.forget_last()
        if last is not None and last[0] == name:
            self._forget_note(last[2])

    def kept(self, name: str) -> bool:
        """Renaming over `name` has failed; whether the file that was moved away is back there."""
        last = self._last()
        self.forget_last()
        if last is None or last[0] != name:
            return False
        _, alias, place = last
        self._disk.rename(place, name, RENAME_NOREPLACE)
        self._forget_note(place)
        self._places[alias] = name
        self._inodes[self._disk.stat(name).st_ino] -= 1
        return True

    def drop(self, alias: str) -> bool:
        """Delete the file of that alias, which has been closed; whether there was one."""
        place = self._places.pop(alias, None)
        if place is None:
            return False
        if place.startswith(f"{self._folder}/"):
            self._inodes[self._disk.stat(place).st_ino] -= 1
            self._remove(place)
            self._forget_note(place)
        return True

    def close(self) -> None:
        """Delete all that is here: nobody can have it open any more."""
        for alias in tuple(self._places):
            self.drop(alias)

    def recover(self) -> None:
        """Clear what a mount has left here that ended in between; no other may be running."""
        names = [name for name, _ in self._disk.scan(self._folder)]
        for name in names:
            place = f"{self._folder}/{name}"
            if name.endswith(_NOTE):
                continue
            if name + _NOTE in names:
                with self._disk.at(place + _NOTE) as (folder, note):
                    was = os.readlink(note, dir_fd=folder)
                with suppress(OSError):
                    self._disk.rename(place, was, RENAME_NOREPLACE)
            self._remove(place)
        for name in names:
            if name.endswith(_NOTE):
                self._remove(f"{self._folder}/{name}")

    def forget_last(self) -> None:
        """What this thread does next has nothing to do with the file that it moved away last."""
        self._thread.last = None

    def _last(self) -> tuple[str, str, str] | None:
        """Name, alias and place of the file that this thread has just moved away."""
        last: tuple[str, str, str] | None = getattr(self._thread, "last", None)
        return last

    def _forget_note(self, place: str) -> None:
        self._remove(place + _NOTE)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError), self._disk.at(path) as (folder, name):
            os.unlink(name, dir_fd=folder)
