"""The scratch layer: a local folder laid over the read-only tree, for everything that is saved in a mount.

The folder mirrors the tree: what is saved as `train/651806289/x.swc` in the mount is `train/651806289/x.swc` in it.
What the tree has can't be changed: EROFS, at once. A name that both have is given to the tree and the saved file is
renamed to `<name>.scratch`, on the disk, too (`settle`).

Threads: any number; the disk is the only state, but for the few files in `Unlinked`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from bffs.beneath import OpenFile
from bffs.overlay import NOT_PASSED_ON, OverlaidFile, Overlay, is_private, os_error
from bffs.saved import settle
from bffs.tree import FileSystem, Folder, LocalAttributes

_ALIAS = re.compile(r".*/\.fuse_hidden[0-9a-f]{16}")
"""Names that libfuse gives to open files which lose their own."""

_RENAMES = 1 | 2
"""RENAME_NOREPLACE and RENAME_EXCHANGE of renameat2(2)."""

T = TypeVar("T")


class _SameFile(Exception):
    """Both names are of one file, so that there is nothing to rename."""


class Scratch(Overlay):
    """A `WritableFileSystem`: an `Overlay` that takes new files.

    `on_stale` is told what the kernel must look up again.
    """

    def __init__(
        self,
        lower: FileSystem,
        root: Path,
        on_link: Callable[[], None] = lambda: None,
        on_stale: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(lower, root, on_link)
        self._on_stale = on_stale
        self._umask = os.umask(0o077)
        os.umask(self._umask)

    def recover(self) -> None:
        """Clear what a crashed mount has left; no other mount may use the folder."""
        self._unlinked.recover()

    def settle(self) -> None:
        """Give the tree every name that it has, and move what was saved under one aside."""
        root = self._lower.find("/")
        assert isinstance(root, Folder)
        settle(self.disk, root)

    def written(self, path: str) -> None:
        """See `WritableFileSystem.written`."""
        self._on_stale(path)

    def access(self, path: str, mode: int) -> None:
        """See `WritableFileSystem.access`."""
        node = self.find(path)
        allowed = stat.S_IMODE(node.attributes.mode)
        if isinstance(node.attributes, LocalAttributes) and not self._is_in_lower(path):
            with self.disk.named(self._own(path)) as name:
                if not os.access(name, mode):
                    raise os_error(errno.EACCES)
        elif mode & os.W_OK and not allowed & stat.S_IWUSR:
            _refuse()
        elif mode & os.X_OK and not allowed & stat.S_IXUSR:
            raise os_error(errno.EACCES)

    def readlink(self, path: str) -> str:
        """See `WritableFileSystem.readlink`."""
        with self.disk.at(self._own(path)) as (folder, name):
            return os.readlink(name, dir_fd=folder)

    def create(self, path: str, flags: int, mode: int) -> tuple[OverlaidFile, OpenFile]:
        """See `WritableFileSystem.create`."""
        own = self._new(path)
        passed = flags & ~NOT_PASSED_ON
        try:
            fd = self._with_folders(
                path, lambda: self.disk.open(own, passed | os.O_CREAT | os.O_EXCL, mode)
            )
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            fd = self.disk.open(own, passed)
        else:
            if mode & self._umask:
                os.fchmod(fd, mode)
        return OverlaidFile(self, own, os.fstat(fd)), OpenFile(fd)

    def mkdir(self, path: str, mode: int) -> None:
        """See `WritableFileSystem.mkdir`."""
        self._make(path, mode, lambda name, folder: os.mkdir(name, mode, dir_fd=folder))

    def mknod(self, path: str, mode: int, device: int) -> None:
        """See `WritableFileSystem.mknod`."""
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise os_error(errno.EPERM)
        self._make(path, mode, lambda name, folder: os.mknod(name, mode, dir_fd=folder))

    def symlink(self, target: str, path: str) -> None:
        """See `WritableFileSystem.symlink`."""
        self._make(path, 0, lambda name, folder: os.symlink(target, name, dir_fd=folder))

    def _make(self, path: str, mode: int, make: Callable[[str, int], None]) -> None:
        own = self._new(path)

        def make_it() -> None:
            with self.disk.at(own) as (folder, name):
                make(name, folder)

        self._with_folders(path, make_it)
        if mode & self._umask:
            with self.disk.named(own) as name:
                os.chmod(name, stat.S_IMODE(mode))

    def link(self, old: str, new: str) -> None:
        """See `WritableFileSystem.link`."""
        source, target = self._own(old), self._new(new)
        self._linked()
        self._with_folders(new, lambda: self.disk.link(source, target))
        self._on_stale(old)

    def unlink(self, path: str) -> None:
        """See `WritableFileSystem.unlink`."""
        if self._unlinked.drop(path):
            return
        with self.disk.at(self._own(path)) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def rmdir(self, path: str) -> None:
        """See `WritableFileSystem.rmdir`."""
        with self.disk.at(self._own(path)) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        """See `WritableFileSystem.rename`."""
        if flags & ~_RENAMES:
            raise os_error(errno.EINVAL)
        if _ALIAS.fullmatch(new):
            self._unlinked.take(self._own(old), new)
            return
        try:
            source, target = self._own(old), self._new(new)
            if self._unlinked.is_same(target, source):
                raise _SameFile
            self._with_folders(new, lambda: self.disk.rename(source, target, flags))
        except (OSError, _SameFile) as error:
            if self._unlinked.kept(new[1:]):
                self._on_stale(new)
            if isinstance(error, OSError):
                raise
            return
        self._unlinked.replaced(target)

    def truncate(self, path: str, size: int) -> None:
        """See `WritableFileSystem.truncate`."""
        fd = self.disk.open(self._own(path), os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def chmod(self, path: str, mode: int) -> None:
        """See `WritableFileSystem.chmod`."""
        with self.disk.named(self._own(path)) as name:
            os.chmod(name, mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """See `WritableFileSystem.chown`."""
        with self.disk.at(self._own(path)) as (folder, name):
            os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)

    def set_times(self, path: str, times: Any) -> None:
        """See `WritableFileSystem.set_times`."""
        self.disk.set_times(self._own(path), times)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        """See `WritableFileSystem.setxattr`."""
        with self.disk.named(self._own(path)) as file:
            os.setxattr(file, name, value, flags)

    def removexattr(self, path: str, name: str) -> None:
        """See `WritableFileSystem.removexattr`."""
        with self.disk.named(self._own(path)) as file:
            os.removexattr(file, name)

    def sync_folder(self, path: str) -> None:
        """See `WritableFileSystem.sync_folder`."""
        try:
            fd = self.disk.open(path[1:] or ".", os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def end_request(self) -> None:
        """See `WritableFileSystem.end_request`."""
        self._unlinked.forget_last()

    # -- names --

    def _own(self, path: str) -> str:
        """Where something saved is on the disk. Raises EROFS if it is the tree's."""
        place = self._unlinked.place(path)
        if place is not None:
            return place
        return self._new(path)

    def _new(self, path: str) -> str:
        """Where something is to be saved. Raises EROFS if the tree has that name."""
        if is_private(path) or self._is_in_lower(path):
            _refuse()
        return path[1:]

    def _with_folders(self, path: str, do: Callable[[], T]) -> T:
        """Do something that makes `path`, if need be after making the tree's folders on the disk."""
        try:
            return do()
        except FileNotFoundError:
            parent = os.path.dirname(path)
            if not self._is_in_lower(parent):
                raise
            names = parent[1:].split("/")
            for depth in range(len(names)):
                self._make_folder("/".join(names[: depth + 1]))
            return do()

    def _make_folder(self, own: str) -> None:
        with self.disk.at(own) as (folder, name):
            try:
                os.mkdir(name, 0o755, dir_fd=folder)
            except FileExistsError:
                if not stat.S_ISDIR(self.disk.stat(own).st_mode):
                    raise


def _refuse() -> NoReturn:
    raise os_error(errno.EROFS)
