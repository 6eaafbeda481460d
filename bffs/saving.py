"""A mount's scratch layer in use: laid over the tree, cleared, kept coherent with other mounts of the same folder.

What the kernel remembers for a day must not change behind its back. It may, where another mount shares the folder or
a file has two names, each of which the kernel takes for a file: then it is told to remember nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from bffs.company import Company
from bffs.errors import MountError
from bffs.fuse import Session
from bffs.saved import PRIVATE, saved_paths
from bffs.scratch import Scratch
from bffs.tree import FileSystem

_PATIENCE = 1.0
"""Seconds that a request waits for the kernel to forget."""


class Saving:
    """`files` is `tree` with the folder `root` on top. Raises MountError where that can't be used."""

    def __init__(self, tree: FileSystem, root: Path) -> None:
        with _explained(root):
            self.files = Scratch(tree, root, self._judge, self._forget)
        self._root = root
        self._session: Session | None = None
        self._company: Company | None = None
        self._is_alone = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._company is not None:
            self._company.close()
        self.files.close()

    def start(self, session: Session) -> None:
        """Join the other mounts of the folder, before the session serves: waits until they know."""
        self._session = session
        with _explained(self._root):
            self._company = Company(self._root / PRIVATE / "mounts", self._have_company)
            if self._is_alone:
                self.files.recover()
            self.settle()

    def settle(self) -> None:
        """Move what was saved under names that the tree has aside."""
        self.files.settle()

    def look_again(self) -> None:
        """Make the kernel forget what it knows of the folder, which somebody may have changed."""
        if self._session is not None:
            self._session.invalidate(saved_paths(self._root))

    def _have_company(self, is_alone: bool) -> None:
        self._is_alone = is_alone
        self._judge()
        if not is_alone:
            self.look_again()

    def _judge(self) -> None:
        if self._session is not None:
            self._session.trust(self._is_alone and not self.files.has_links)

    def _forget(self, path: str) -> None:
        """Make the kernel look up this file again, and all names. Asked by a thread that answers a request, so it is
        done by another, which might have to wait for one."""
        if self._session is not None:
            worker = threading.Thread(target=self._session.invalidate, args=[[path]], daemon=True)
            worker.start()
            worker.join(_PATIENCE)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MountError(
            f"{root}: {error.strerror}; choose another folder with --scratch DIR, or none with --read-only"
        ) from error
