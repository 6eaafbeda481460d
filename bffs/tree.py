"""The tree: folders and files, found by path; what every layer of the mount speaks.

A `Folder` learns its entries when it is first asked for them. Nothing in here touches the network:
names, sizes and times are known from the catalog.

Threads: nodes are immutable but for the lazily made entries of a folder, which two threads may make
at once with the same result.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import xxhash

from bffs.beneath import OpenFile
from bffs.content import Content

_FIRST_FREE_INODE = 2

LIVE = ""
"""The `version` of a file that has other bytes each time it is opened, of which the kernel keeps none."""


class Attributes(NamedTuple):
    """What stat tells of a node. `size` in bytes, `mtime` in seconds since 1970.

    `blocks`, the 512 bytes that du counts, follow from the size of a file unless they are given.
    """

    ino: int
    mode: int
    size: int
    mtime: int
    nlink: int
    blocks: int | None = None


class LocalAttributes(Attributes):
    """What stat tells of something on the local disk: as `status` says where the fields don't."""

    status: os.stat_result


class Weight(NamedTuple):
    """What a folder holds: bytes of all files below it, the latest of their times, folders directly
    in it (-1 if that isn't known)."""

    size: int
    mtime: int
    folders: int


class File(Protocol):
    """A read-only file. There are 53,926 of them in a mount: implementations keep little."""

    @property
    def attributes(self) -> Attributes:
        """What stat tells."""
        ...

    @property
    def version(self) -> str:
        """Which bytes it holds: two nodes of one path with the same version are the same file; or
        LIVE."""
        ...

    def open(self) -> Content:
        """The content, for a new handle."""
        ...

    def xattrs(self) -> Mapping[str, bytes]:
        """All extended attributes."""
        ...


class Folder:
    """A read-only folder, made of its entries when they are first asked for: a dict, or another mapping
    in the order of the names."""

    def __init__(
        self, path: str, weigh: Callable[[], Weight], entries: Callable[[], Mapping[str, Node]]
    ) -> None:
        self.path = path
        self._weigh = weigh
        self._entries = entries

    @cached_property
    def attributes(self) -> Attributes:
        """`size` is the sum of all files below, so that `ls -l` shows what a folder weighs."""
        size, mtime, folders = self._weigh()
        return Attributes(inode(self.path), stat.S_IFDIR | 0o555, size, mtime, 2 + folders)

    @cached_property
    def entries(self) -> Mapping[str, Node]:
        """Nodes by name, in the order of their names."""
        made = self._entries()
        return {name: made[name] for name in sorted(made)} if isinstance(made, dict) else made

    @property
    def is_known(self) -> bool:
        """Whether its entries have been asked for already."""
        return "entries" in vars(self)

    def again(self) -> Folder:
        """The folder as it is now."""
        return self

    def xattrs(self) -> Mapping[str, bytes]:
        """Folders have none."""
        return {}


class LocalFile(Protocol):
    """A file in scratch: a regular one, a symbolic link, a pipe or a socket."""

    @property
    def attributes(self) -> LocalAttributes:
        """What stat tells."""
        ...

    @property
    def version(self) -> str:
        """Which file of the disk it is."""
        ...

    def open(self, flags: int = os.O_RDONLY) -> OpenFile:
        """The file itself, for a new handle; `flags` as for open(2)."""
        ...

    def xattrs(self) -> Mapping[str, bytes]:
        """All extended attributes."""
        ...


Node = File | LocalFile | Folder


class Numbered(Mapping[str, Node]):
    """Entries `0` to `count - 1` and those `beside` them, in the order of their names.

    A numbered one is made when it is looked up and then forgotten, so that a million of them cost
    nothing.
    """

    def __init__(
        self, count: int, make: Callable[[int], Node], beside: Mapping[str, Node] | None = None
    ) -> None:
        self._count = count
        self._make = make
        self._beside = beside or {}

    def __getitem__(self, name: str) -> Node:
        if name in self._beside:
            return self._beside[name]
        if name.isascii() and name.isdecimal() and len(name) < 20:
            number = int(name)
            if number < self._count and str(number) == name:
                return self._make(number)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted([*self._beside, *map(str, range(self._count))]))

    def __len__(self) -> int:
        return self._count + len(self._beside)


class FileSystem(Protocol):
    """What the FUSE adapter serves. Every method may be called from any thread and raises OSError
    or BffsError."""

    def find(self, path: str) -> Node:
        """The node at an absolute path. Raises FileNotFoundError or NotADirectoryError."""
        ...

    def statfs(self) -> os.statvfs_result | None:
        """The disk that new files go to, or None for a file system that takes none."""
        ...


class WritableFileSystem(FileSystem, Protocol):
    """A `FileSystem` that takes new files. What it can't change answers EROFS. Modes are exact: the
    kernel has taken the umask off."""

    def create(self, path: str, flags: int, mode: int) -> tuple[LocalFile, OpenFile]:
        """Make and open a file; `flags` as for open(2)."""
        ...

    def mkdir(self, path: str, mode: int) -> None:
        """Make a folder."""
        ...

    def mknod(self, path: str, mode: int, device: int) -> None:
        """Make a file, a pipe or a socket."""
        ...

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link at `path`."""
        ...

    def link(self, old: str, new: str) -> None:
        """Make another name of a file."""
        ...

    def readlink(self, path: str) -> str:
        """Where a symbolic link points."""
        ...

    def unlink(self, path: str) -> None:
        """Remove a file."""
        ...

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        ...

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Rename; `flags` as for renameat2(2)."""
        ...

    def written(self, path: str) -> None:
        """The kernel has written to a file by itself, of that name when it was opened, through a
        handle that is now closed; of what was written by mapping it does not know the time."""
        ...

    def end_request(self) -> None:
        """The request that this thread was busy with has been answered."""
        ...

    def describe(self, content: OpenFile, *, counted: bool) -> LocalAttributes:
        """What stat tells of an open file. Without `counted`, libfuse takes off the link of one that
        has lost its name."""
        ...

    def truncate(self, path: str, size: int) -> None:
        """Cut or extend a file."""
        ...

    def chmod(self, path: str, mode: int) -> None:
        """Change the permissions."""
        ...

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Change the owner or the group; -1 leaves it."""
        ...

    def set_times(self, path: str, times: Any) -> None:
        """Change the times; see `Beneath.set_times`."""
        ...

    def access(self, path: str, mode: int) -> None:
        """Raise OSError unless this user may; see access(2)."""
        ...

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        """Set an extended attribute; see setxattr(2)."""
        ...

    def removexattr(self, path: str, name: str) -> None:
        """Remove an extended attribute."""
        ...

    def sync_folder(self, path: str) -> None:
        """Wait until the disk has the names in a folder."""
        ...


class Tree:
    """A read-only `FileSystem` below one root folder, which may be replaced by another at any time."""

    def __init__(self, root: Folder) -> None:
        self.root = root

    def find(self, path: str) -> Node:
        """See `FileSystem.find`."""
        node: Node = self.root
        for name in path.split("/"):
            if not name:
                continue
            if not isinstance(node, Folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            found = node.entries.get(name)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            node = found
        return node

    def statfs(self) -> None:
        """A read-only tree takes no files."""


def inode(path: str) -> int:
    """The inode number of a path within the mount, the same in every mount."""
    return max(_FIRST_FREE_INODE, xxhash.xxh3_64_intdigest(os.fsencode(path)) >> 1)


def file_attributes(path: str, size: int, mtime: int) -> Attributes:
    """Attributes of a read-only file."""
    return Attributes(inode(path), stat.S_IFREG | 0o444, size, mtime, 1)
