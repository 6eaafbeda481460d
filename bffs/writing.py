"""Requests that change something: what libfuse calls when a mount is written to.

Each goes to a `WritableFileSystem`, or to the open file itself. Data is written from the kernel's buffer in place.

Locks (flock, fcntl) and mapped writes are the kernel's own: they hold between all processes that use the same mount.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any, cast

from bffs.adapter import Adapter, Open, Reading
from bffs.beneath import OpenFile
from bffs.binding import binding, view_of
from bffs.overlay import OverlaidFile
from bffs.tree import Attributes, File, Folder, LocalFile, WritableFileSystem
from bffs.unlisted import LINK, TARGET, inside

_UNCHANGED = 0xFFFFFFFF
"""What chown(2) is given for an owner or group that stays, -1, as it arrives."""


_STATFS = (
    "f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail",
    "f_files", "f_ffree", "f_favail", "f_namemax",
)  # fmt: skip


_CHANGES = frozenset({"_answer_truncate", "_answer_chmod", "_answer_chown", "_answer_utimens"})
"""After one of these libfuse asks for the attributes, and passes them on as they are."""


class Writing(Reading):
    """Names the operations that are served."""

    create = write = truncate = fsync = fsyncdir = fallocate = True
    mkdir = mknod = symlink = link = unlink = rmdir = rename = True
    chmod = chown = utimens = access = setxattr = removexattr = True


class WritableAdapter(Adapter):
    """Answers libfuse from a `WritableFileSystem`."""

    _served = Writing

    @property
    def _writable(self) -> WritableFileSystem:
        return cast(WritableFileSystem, self._files)

    def _wrapper(self, method: Any, *args: Any) -> int:
        answer = super()._wrapper(method, *args)
        self._threads.latest = method.__name__
        if method.__name__ != "_answer_rename":  # the only one with which a request may go on
            self._writable.end_request()
        return answer

    def _local(self, fip: Any) -> OpenFile | None:
        """The open file of a request that comes with a handle."""
        if not fip:
            return None
        content = self._handles[fip.contents.fh].content
        return content if isinstance(content, OpenFile) else None

    def _attributes(self, path: bytes | None, fip: Any) -> Attributes:
        content = self._local(fip)
        if content is not None:
            changed = getattr(self._threads, "latest", None) in _CHANGES
            return self._writable.describe(content, counted=changed)
        return super()._attributes(path, fip)

    # -- files --

    def create(self, path: bytes, mode: int, fip: Any) -> None:
        """Make and open a file."""
        node, content = self._writable.create(_text(path), fip.contents.flags, mode)
        self._hand_out(node, content, fip, path)

    def _open(self, node: File | LocalFile, fip: Any, path: bytes) -> None:
        if isinstance(node, OverlaidFile):
            self._hand_out(node, node.open(fip.contents.flags), fip, path)
        else:
            super()._open(node, fip, path)

    def _hand_out(self, node: LocalFile, content: OpenFile, fip: Any, path: bytes) -> None:
        direct = self._session.changed and self._is_open_in_another_version(node)
        self._answer_open(
            Open(node, content, path), fip, keep=self._session.is_trusted, direct=direct
        )

    def release(self, path: bytes | None, fip: Any) -> None:
        """Forget a handle."""
        opened = self._handles[fip.contents.fh]
        super().release(path, fip)
        writing = fip.contents.flags & os.O_ACCMODE != os.O_RDONLY
        if writing and opened.inode is not None and opened.inode.backing:
            self._writable.written(os.fsdecode(opened.path))

    def write(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        """Write from the kernel's buffer in place."""
        content = self._local(fip)
        if content is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        # Pages of a mapped file come through any handle, and belong where they belong.
        append = bool(fip.contents.flags & os.O_APPEND) and not fip.contents.writepage
        return content.write(offset, view_of(buf, size), append=append)

    def _answer_truncate(self, path: bytes | None, size: int, fip: Any = None) -> None:
        content = self._local(fip)
        if content is not None:
            os.ftruncate(content.fd, size)
        else:
            self._writable.truncate(_text(path), size)

    def fsync(self, path: bytes | None, data_only: int, fip: Any) -> None:
        """Wait until the disk has a file."""
        content = self._local(fip)
        if content is not None:
            content.sync(data_only=bool(data_only))

    def fallocate(self, path: bytes | None, mode: int, offset: int, length: int, fip: Any) -> None:
        """Set disk space aside."""
        content = self._local(fip)
        if content is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        content.allocate(mode, offset, length)

    # -- names --

    def mkdir(self, path: bytes, mode: int) -> None:
        """Make a folder."""
        self._writable.mkdir(_text(path), mode)

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        """Make a file, a pipe or a socket."""
        self._writable.mknod(_text(path), mode, device)

    def symlink(self, target: bytes, path: bytes) -> None:
        """Make a symbolic link."""
        self._writable.symlink(os.fsdecode(target), _text(path))

    def _target(self, path: bytes) -> str:
        return TARGET if path == LINK.encode() else self._writable.readlink(_text(path))

    def link(self, old: bytes, new: bytes) -> None:
        """Make another name of a file."""
        self._writable.link(_text(old), _text(new))

    def unlink(self, path: bytes) -> None:
        """Remove a file."""
        self._writable.unlink(_text(path))

    def rmdir(self, path: bytes) -> None:
        """Remove an empty folder."""
        self._writable.rmdir(_text(path))

    def _answer_rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        self._writable.rename(_text(old), _text(new), flags)

    def fsyncdir(self, path: bytes | None, data_only: int, fip: Any) -> None:
        """Wait until the disk has the names in a folder."""
        folder = self._handles[fip.contents.fh].node
        assert isinstance(folder, Folder)
        self._writable.sync_folder(folder.path)

    # -- attributes --

    def _answer_chmod(self, path: bytes | None, mode: int, fip: Any = None) -> None:
        content = self._local(fip)
        if content is not None:
            os.fchmod(content.fd, mode)
        else:
            self._writable.chmod(_text(path), mode)

    def _answer_chown(self, path: bytes | None, uid: int, gid: int, fip: Any = None) -> None:
        owner, group = (-1 if number == _UNCHANGED else number for number in (uid, gid))
        content = self._local(fip)
        if content is not None:
            os.fchown(content.fd, owner, group)
        else:
            self._writable.chown(_text(path), owner, group)

    def _answer_utimens(self, path: bytes | None, times: Any, fip: Any = None) -> None:
        content = self._local(fip)
        if content is not None:
            content.set_times(times)
        else:
            self._writable.set_times(_text(path), times)

    def access(self, path: bytes, mode: int) -> None:
        """Whether this user may."""
        self._writable.access(_text(path), mode)

    def setxattr(
        self, path: bytes, name: bytes, value: Any, size: int, flags: int, *position: Any
    ) -> None:
        """Set an extended attribute."""
        data = ctypes.string_at(value, size)
        self._writable.setxattr(_text(path), os.fsdecode(name), data, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        """Remove an extended attribute."""
        self._writable.removexattr(_text(path), os.fsdecode(name))

    def statfs(self, path: bytes, buf: Any) -> None:
        """What df shows: the disk that new files go to."""
        found = self._files.statfs()
        assert found is not None
        st = buf.contents
        for name in _STATFS:
            setattr(st, name, getattr(found, name))

    if hasattr(binding.FUSE, "getattr_fuse_3"):
        truncate_fuse_2 = truncate_fuse_3 = ftruncate = _answer_truncate
        rename_fuse_2 = rename_fuse_3 = _answer_rename
        chmod_fuse_2 = chmod_fuse_3 = _answer_chmod
        chown_fuse_2 = chown_fuse_3 = _answer_chown
        utimens_fuse_2 = utimens_fuse_3 = _answer_utimens
    else:
        truncate = ftruncate = _answer_truncate
        rename = _answer_rename
        chmod = _answer_chmod
        chown = _answer_chown
        utimens = _answer_utimens


def _text(name: bytes | None) -> str:
    assert name is not None
    return inside(os.fsdecode(name))
