"""The tree with a local folder on top, as it is seen: what the tree has always wins.

All access to the folder goes through `Beneath`: nothing in it can lead out of it.

Threads: any number; nodes are of the moment when they were asked for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import xxhash

from bffs.beneath import Beneath, OpenFile
from bffs.saved import PRIVATE, settle
from bffs.tree import Attributes, FileSystem, Folder, LocalAttributes, Node, Weight
from bffs.unlinked import Unlinked

_UNLINKED = f"{PRIVATE}/unlinked"
_INODES = 1 << 63
"""Inode numbers from here on are those of the local disk; the tree has none of them."""

_NO_FOLDERS = 2
"""Links of a folder that holds none."""

NOT_PASSED_ON = os.O_APPEND | os.O_DIRECT | os.O_CREAT | os.O_EXCL
"""Flags of open(2) that the kernel sees to. Appending is asked for at each write: pages of a mapped file are
written through any handle."""


class Overlay:
    """A `FileSystem`: `lower` with the folder `root` on top, which must exist.

    `on_link` is told of the first file with several names, `has_links` from then on.
    """

    def __init__(
        self, lower: FileSystem, root: Path, on_link: Callable[[], None] = lambda: None
    ) -> None:
        self.disk = Beneath(root)
        self.has_links = False
        self._lower = lower
        self._on_link = on_link
        for folder in (PRIVATE, _UNLINKED):
            with self.disk.at(folder) as (fd, name), suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=fd)
        self._unlinked = Unlinked(self.disk, _UNLINKED)

    def close(self) -> None:
        """Let go of the folder, and of what nobody can have open any more."""
        with suppress(OSError):
            self._unlinked.close()
        self.disk.close()

    def find(self, path: str) -> Node:
        """See `FileSystem.find`."""
        try:
            node = self._lower.find(path)
        except FileNotFoundError:
            return self._find_own(path)
        return self._over(path, node)

    def _over(self, path: str, node: Node) -> Node:
        """What the tree has, as it is shown."""
        if isinstance(node, Folder) and not is_private(path):
            return _Merged(self, path, node)
        return node

    def _find_own(self, path: str) -> Node:
        own = self._unlinked.place(path) or path[1:]
        if is_private(path):
            raise os_error(errno.ENOENT)
        try:
            return self._node(path, own, self.disk.stat(own))
        except NotADirectoryError:
            if self._is_in_lower(os.path.dirname(path)):
                raise os_error(errno.ENOENT) from None
            raise

    def _node(self, path: str, own: str, status: os.stat_result) -> Node:
        if stat.S_ISDIR(status.st_mode):
            return _Merged(self, path, None, status)
        return OverlaidFile(self, own, status)

    def entries(self, path: str, lower: Folder | None) -> Mapping[str, Node]:
        """What a folder holds, the tree's and the disk's, in the order of their names."""
        base = path.rstrip("/")
        try:
            found = self.disk.scan(path[1:] or ".")
        except (FileNotFoundError, NotADirectoryError):
            if lower is None:
                raise
            found = []
        shared = lower is not None and any(name in lower.entries for name, _ in found)
        if shared and lower is not None and settle(self.disk, lower, path[1:], deep=False):
            return self.entries(path, lower)
        own = {
            name: self._node(f"{base}/{name}", f"{base}/{name}"[1:], status)
            for name, status in found
            if not is_private(f"{base}/{name}")
        }
        return _Entries(own, lower, lambda name, node: self._over(f"{base}/{name}", node))

    def describe(self, content: OpenFile, *, counted: bool = False) -> LocalAttributes:
        """See `WritableFileSystem.describe`."""
        status = os.fstat(content.fd)
        if counted or not self._unlinked.names(status.st_ino):
            return self.attributes(status)
        where = os.readlink(f"/proc/self/fd/{content.fd}")
        return self.attributes(status, unlinked=self._unlinked.has(where))

    def attributes(self, status: os.stat_result, *, unlinked: bool = False) -> LocalAttributes:
        """What stat tells of something on the disk. Of the names that `Unlinked` has, libfuse takes
        the one off that an `unlinked` file is asked for by."""
        links = status.st_nlink
        if links > 1 and not stat.S_ISDIR(status.st_mode):
            self._linked()
        links -= self._unlinked.names(status.st_ino) - unlinked
        made = LocalAttributes(
            self._inode(status),
            status.st_mode,
            status.st_size,
            int(status.st_mtime),
            links,
            status.st_blocks,
        )
        made.status = status
        return made

    def xattrs(self, own: str, status: os.stat_result) -> dict[str, bytes]:
        """The extended attributes of something on the disk that users may have made."""
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return {}
        with self.disk.named(own) as file:
            names = [name for name in os.listxattr(file) if name.startswith("user.")]
            return {name: os.getxattr(file, name) for name in names}

    def _inode(self, status: os.stat_result) -> int:
        if status.st_dev == self.disk.device:
            return _INODES | status.st_ino
        return _INODES | xxhash.xxh3_64_intdigest(b"%d %d" % (status.st_dev, status.st_ino)) >> 1

    def statfs(self) -> os.statvfs_result:
        """See `FileSystem.statfs`."""
        return os.statvfs(self.disk.root)

    def _is_in_lower(self, path: str) -> bool:
        try:
            self._lower.find(path)
        except FileNotFoundError:
            return False
        return True

    def _linked(self) -> None:
        if not self.has_links:
            self.has_links = True
            self._on_link()


class _Entries(Mapping[str, Node]):
    """The entries of the disk and those of the tree; `show` turns each of these into what is shown."""

    def __init__(
        self, own: Mapping[str, Node], lower: Folder | None, show: Callable[[str, Node], Node]
    ) -> None:
        self._own = own
        self._lower: Mapping[str, Node] = {} if lower is None else lower.entries
        self._show = show

    def __getitem__(self, name: str) -> Node:
        node = self._lower.get(name)
        return self._own[name] if node is None else self._show(name, node)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._own.keys() | self._lower.keys()) if self._own else self._lower)

    def __len__(self) -> int:
        return len(self._own.keys() | self._lower.keys())


class _Merged(Folder):
    """A folder as it was when it was asked for: the tree's (`lower`), the disk's, or both."""

    def __init__(
        self,
        overlay: Overlay,
        path: str,
        lower: Folder | None,
        status: os.stat_result | None = None,
    ) -> None:
        super().__init__(path, lambda: Weight(0, 0, 0), dict)
        self._overlay = overlay
        self._lower = lower
        self._status = status

    @cached_property
    def entries(self) -> Mapping[str, Node]:
        """See `Overlay.entries`."""
        return self._overlay.entries(self.path, self._lower)

    @cached_property
    def attributes(self) -> Attributes:
        """Of the tree's folders the owner may write to; size and inode number stay, the latest
        change counts."""
        if self._lower is None:
            assert self._status is not None
            return self._overlay.attributes(self._status)
        lower = self._lower.attributes
        lower = lower._replace(mode=lower.mode | stat.S_IWUSR)
        try:
            status = self._overlay.disk.stat(self.path[1:] or ".")
        except OSError:
            return lower
        folders = max(0, status.st_nlink - 2)
        if lower.nlink != _NO_FOLDERS:  # those that the disk only mirrors are none of its own
            own = self._own(self._lower)
            folders = sum(stat.S_ISDIR(each.st_mode) for each in own)
            if not own:
                return lower
        links = lower.nlink + folders if lower.nlink >= _NO_FOLDERS else lower.nlink
        mtime = max(int(status.st_mtime), lower.mtime)
        made = LocalAttributes(lower.ino, lower.mode, lower.size, mtime, links, 0)
        made.status = status
        return made

    def _own(self, lower: Folder) -> list[os.stat_result]:
        """What is in the folder that the tree hasn't got."""
        found = self._overlay.disk.scan(self.path[1:] or ".")
        return [each for name, each in found if name not in lower.entries and name != PRIVATE]

    def xattrs(self) -> Mapping[str, bytes]:
        """Those of a folder on the disk alone."""
        if self._lower is not None or self._status is None:
            return {}
        return self._overlay.xattrs(self.path[1:], self._status)

    def again(self) -> Folder:
        """The folder as it is now, or an empty one where it is no more."""
        try:
            found = self._overlay.find(self.path)
        except FileNotFoundError:
            return Folder(self.path, lambda: Weight(0, 0, 0), dict)
        return found if isinstance(found, Folder) else self


class OverlaidFile:
    """A file, link, pipe or socket on the disk, as it was when it was asked for."""

    __slots__ = ("_overlay", "_own", "_status")

    def __init__(self, overlay: Overlay, own: str, status: os.stat_result) -> None:
        self._overlay = overlay
        self._own = own
        self._status = status

    @property
    def attributes(self) -> LocalAttributes:
        return self._overlay.attributes(self._status, unlinked=self._own.startswith(_UNLINKED))

    @property
    def version(self) -> str:
        return f"{self._status.st_dev} {self._status.st_ino}"

    def open(self, flags: int = os.O_RDONLY) -> OpenFile:
        return OpenFile(self._overlay.disk.open(self._own, flags & ~NOT_PASSED_ON))

    def xattrs(self) -> Mapping[str, bytes]:
        return self._overlay.xattrs(self._own, self._status)


def is_private(path: str) -> bool:
    """Whether a path in the mount is bffs's own."""
    return path == f"/{PRIVATE}" or path.startswith(f"/{PRIVATE}/")


def os_error(number: int) -> OSError:
    """The exception of an errno."""
    return OSError(number, os.strerror(number))
