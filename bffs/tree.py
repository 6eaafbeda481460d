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
from typing import NamedTuple, Protocol

import xxhash

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
    """A read-only folder, made of its entries when they are first asked for."""

    def __init__(
        self, path: str, weigh: Callable[[], Weight], entries: Callable[[], Mapping[str, Node]]
    ) -> None:
        self._path = path
        self._weigh = weigh
        self._entries = entries

    @cached_property
    def attributes(self) -> Attributes:
        """`size` is the sum of all files below, so that `ls -l` shows what a folder weighs."""
        size, mtime, folders = self._weigh()
        return Attributes(inode(self._path), stat.S_IFDIR | 0o555, size, mtime, 2 + folders)

    @cached_property
    def entries(self) -> Mapping[str, Node]:
        """Nodes by name, in the order of their names."""
        made = self._entries()
        return made if isinstance(made, Numbered) else {name: made[name] for name in sorted(made)}

    @property
    def is_known(self) -> bool:
        """Whether its entries have been asked for already."""
        return "entries" in self.__dict__

    def xattrs(self) -> Mapping[str, bytes]:
        """Folders have none."""
        return {}


Node = File | Folder


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
