"""Requests in; attributes, bytes and errnos out: what libfuse calls when a mount is read.

The bindings' own methods turn every reply into new Python objects and swallow errors in their own
ways. `Adapter` overrides those that matter: a read fills libfuse's buffer in place, a folder is
listed with the attributes of all its entries in one go, and every exception becomes an errno of the
one table in `errors` - whatever it doesn't know is EIO with a traceback in the log, and the mount
lives on.

Threads: libfuse calls from many threads at once; the table of handles is a dict whose single
operations are atomic. libfuse changes the working directory to `/`: nothing below may use a
relative path.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import signal
import stat
import threading
from collections import Counter
from collections.abc import Collection
from typing import Any, Protocol

from bffs.beneath import OpenFile
from bffs.binding import LIBFUSE, asking_process, binding, view_of
from bffs.content import Content
from bffs.errors import to_errno
from bffs.kernelahead import KernelReadahead
from bffs.passthrough import Inode, Passthrough, hand_out
from bffs.tree import LIVE, Attributes, File, FileSystem, Folder, LocalAttributes, LocalFile, Node
from bffs.unlisted import LINK, TARGET, inside, link_attributes

log = logging.getLogger(__name__)

MAX_BACKGROUND = 64
"""Reads that the kernel has under way for its page cache."""

REQUEST_SIZE = 1 << 20
"""Bytes in a read request at most; needs the mount's read_ahead_kb raised too."""

_NO_INTERRUPT = (3, 15)
"""The libfuse that hears of killed readers only if it may wake the thread that serves them, by a signal."""

_AUTO_INVAL_DATA = 1 << 12
_ASYNC_DIO = 1 << 15
_READDIRPLUS_AUTO = 1 << 14
_PARALLEL_DIROPS = 1 << 18
_READDIR_PLUS = 1
_FILL_DIR_PLUS = 2
_XATTR_NAMESPACE = "user."
_LINK = LINK.encode()
_NS = 10**9


class Host(Protocol):
    """What an adapter needs to know of its mount."""

    files: FileSystem
    changed: bool
    """Whether files of the tree have changed since it was mounted."""

    is_trusted: bool
    """Whether the kernel may remember what it is told."""

    handles: dict[int, Open]
    """What is open, by libfuse's number of the handle."""

    posing: Collection[bytes]
    """Paths that are to be taken for something else; see `Session.revoke`."""

    errors: Counter[str]
    """Failed reads, by the errno's name."""

    passthrough: Passthrough | None
    """What the kernel reads by itself, if it does."""

    kernel_readahead: KernelReadahead | None
    """What it reads ahead, if that can be changed."""

    def connecting(self, connection: Any) -> None:
        """The kernel is about to connect; `connection` is libfuse 3's struct fuse_conn_info."""
        ...

    def started(self, library: Any, config: Any) -> None:
        """The kernel has connected; called from `init`. `config` is libfuse 3's struct fuse_config."""
        ...


class Reading:
    """Names the operations that are served; the bindings register those that are found here."""

    use_ns = True
    flag_nullpath_ok = True
    flag_nopath = True

    getattr = opendir = readdir = releasedir = init = True
    open = read = release = readlink = statfs = getxattr = listxattr = True


class Open:
    """What a handle stands for: a folder's listing, or the content of a file, which process `pid`
    opened at `path`."""

    __slots__ = ("content", "ino", "inode", "node", "path", "pid")

    def __init__(
        self, node: Node, content: Content | OpenFile | None = None, path: bytes = b""
    ) -> None:
        self.node = node
        self.content = content
        self.path = path
        self.pid = asking_process() if path else 0
        self.ino = 0 if content is None else node.attributes.ino
        self.inode: Inode | None = None
        """What it is counted for in `Passthrough`."""

    def close(self) -> None:
        """Let go of the content."""
        close = getattr(self.content, "close", None)
        if close is not None:
            close()


class Adapter(binding.FUSE):  # type: ignore[misc]
    """Answers libfuse from a `FileSystem`. Constructing one mounts, serves, and returns after the
    unmount."""

    _served: type = Reading

    def __init__(self, session: Host, mountpoint: str, options: dict[str, Any]) -> None:
        self._session = session
        self._files = session.files
        self._handles = session.handles
        self._numbers = itertools.count(1)
        self._threads = threading.local()
        self._uid, self._gid = os.getuid(), os.getgid()
        super().__init__(self._served(), mountpoint, foreground=True, **options)

    def _wrapper(self, method: Any, *args: Any) -> int:
        if not hasattr(self._threads, "kept"):
            # One level more than the binding gives back: else each request of a libfuse thread makes
            # a Python thread state and destroys it, with a mapping of memory and its page faults.
            ctypes.pythonapi.PyGILState_Ensure()
            self._threads.kept = True
        try:
            return method(*args) or 0
        except BaseException as error:
            number = to_errno(error)
            if number is None:
                log.exception("unexpected error in %s, answered with EIO", method.__name__)
                number = errno.EIO
            elif number == errno.EIO and not getattr(error, "is_told", False):
                log.error("%s: %s", method.__name__, error)
            elif number == errno.ENOENT and method.__name__ == "_answer_readdir":
                number = errno.EIO  # glibc would take the folder for one that ends here
            if method.__name__ == "read":
                self._session.errors[errno.errorcode[number]] += 1
            return -number

    def _answer_init(self, conn: Any, config: Any = None) -> None:
        if config:
            conn.contents.max_background = MAX_BACKGROUND
            conn.contents.congestion_threshold = MAX_BACKGROUND * 3 // 4
            conn.contents.max_readahead = REQUEST_SIZE
            conn.contents.want |= conn.contents.capable & _PARALLEL_DIROPS
            # A reader can't be killed while it waits for a direct read that the kernel has split.
            conn.contents.want &= ~_ASYNC_DIO
            # Attributes always travel with names: the kernel's own guess leaves out most of them.
            # What changes is invalidated, or else a file just written would be read again.
            conn.contents.want &= ~(_READDIRPLUS_AUTO | _AUTO_INVAL_DATA)
            self._session.connecting(conn.contents)
            if LIBFUSE >= _NO_INTERRUPT:
                config.contents.intr, config.contents.intr_signal = 1, signal.SIGUSR2
            config.contents.use_ino = 1
            config.contents.nullpath_ok = 1
        self._session.started(binding._libfuse, config)

    def _find(self, path: bytes | None, fip: Any = None) -> Node:
        """The node of a request: libfuse leaves the path out where there is a handle."""
        if path is None:
            return self._handles[fip.contents.fh].node
        return self._files.find(inside(os.fsdecode(path)))

    def _answer_getattr(self, path: bytes | None, buf: Any, fip: Any = None) -> None:
        ctypes.memset(buf, 0, ctypes.sizeof(binding.c_stat))
        if self._session.posing and path in self._session.posing:
            buf.contents.st_mode = stat.S_IFSOCK
            return
        self._fill(buf.contents, self._attributes(path, fip))

    def _attributes(self, path: bytes | None, fip: Any) -> Attributes:
        attributes = self._find(path, fip).attributes
        return link_attributes(attributes.mtime) if path == _LINK else attributes

    def _fill(self, st: Any, attributes: Attributes) -> None:
        st.st_ino, st.st_mode, st.st_size, seconds, st.st_nlink, blocks = attributes
        if isinstance(attributes, LocalAttributes):
            self._fill_local(st, attributes)
            return
        st.st_uid = self._uid
        st.st_gid = self._gid
        # A folder's size is that of its files, but its blocks are none: du adds up both.
        if blocks is None:
            blocks = 0 if stat.S_ISDIR(attributes.mode) else -(-attributes.size // 512)
        st.st_blocks = blocks
        st.st_blksize = REQUEST_SIZE
        for times in (st.st_atimespec, st.st_mtimespec, st.st_ctimespec):
            times.tv_sec, times.tv_nsec = seconds, 0

    def _fill_local(self, st: Any, attributes: LocalAttributes) -> None:
        status = attributes.status
        st.st_uid, st.st_gid, st.st_rdev = status.st_uid, status.st_gid, status.st_rdev
        st.st_blocks = attributes.blocks
        st.st_blksize = REQUEST_SIZE
        for times, ns in (
            (st.st_atimespec, status.st_atime_ns),
            (st.st_mtimespec, status.st_mtime_ns),
            (st.st_ctimespec, status.st_ctime_ns),
        ):
            times.tv_sec, times.tv_nsec = divmod(ns, _NS)

    def opendir(self, path: bytes, fip: Any) -> None:
        """Open a folder; the kernel may keep its entries."""
        node = self._find(path)
        if not isinstance(node, Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        fip.contents.fh = self._keep(Open(node))
        fip.contents.keep_cache = self._session.is_trusted
        if hasattr(fip.contents, "cache_readdir"):
            fip.contents.cache_readdir = self._session.is_trusted

    def _answer_readdir(
        self, path: bytes | None, buf: Any, filler: Any, offset: int, fip: Any, flags: int = -1
    ) -> None:
        """List a folder from `offset` on; `flags` come with libfuse 3, where attributes travel along.

        libfuse passes attributes on only where each entry has an offset: the place of the next one.
        """
        opened = self._handles[fip.contents.fh]
        node = opened.node
        assert isinstance(node, Folder)
        if offset == 0:
            opened.node = node = node.again()
        plus = () if flags < 0 else (_FILL_DIR_PLUS if flags & _READDIR_PLUS else 0,)
        st = binding.c_stat()
        for place, name in enumerate((b".", b".."), 1):
            if offset < place and filler(buf, name, None, place, *(plus and (0,))):
                return
        first = max(0, offset - 2)
        children = itertools.islice(node.entries.items(), first, None)
        for place, (entry, child) in enumerate(children, first + 3):
            attributes = child.attributes
            if node.path + entry == LINK:
                attributes = link_attributes(attributes.mtime)
            self._fill(st, attributes)
            if filler(buf, os.fsencode(entry), st, place, *plus):
                return

    def releasedir(self, path: bytes | None, fip: Any) -> None:
        """Forget a folder's handle."""
        del self._handles[fip.contents.fh]

    def _keep(self, opened: Open) -> int:
        number = next(self._numbers)
        self._handles[number] = opened
        return number

    def open(self, path: bytes, fip: Any) -> None:
        """Open a file for reading."""
        node = self._find(path)
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self._open(node, fip, path)

    def _open(self, node: File | LocalFile, fip: Any, path: bytes) -> None:
        if fip.contents.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        # The kernel keeps one set of pages a file: while an old version is still open, the new one
        # is read past them, or a program could get some of each.
        shared = node.version != LIVE and (
            not self._session.changed or not self._is_open_in_another_version(node)
        )
        content = node.open()
        if self._session.kernel_readahead is not None:
            self._session.kernel_readahead.suit(content)
        self._answer_open(Open(node, content, path), fip, keep=shared, direct=not shared)

    def _answer_open(self, opened: Open, fip: Any, *, keep: bool, direct: bool) -> None:
        """Give a handle out: for the kernel to read by itself, with its pages kept or not, or
        `direct`, without pages."""
        info = fip.contents
        try:
            backing = self._backing(opened, info.flags, keep=keep, direct=direct)
        except BaseException:
            opened.close()
            raise
        if backing:
            hand_out(info, backing)
        else:
            info.keep_cache, info.direct_io = keep, direct
        info.fh = self._keep(opened)

    def _backing(self, opened: Open, flags: int, *, keep: bool, direct: bool) -> int:
        """The backing id of what passes through, else 0."""
        passthrough, node = self._session.passthrough, opened.node
        if passthrough is None or isinstance(node, Folder):
            return 0
        if direct and not passthrough.passes(opened.ino, node.version):
            return 0
        # Who asks for O_DIRECT first gets what he gets without passthrough: any alignment.
        content = opened.content if keep and not direct and not flags & os.O_DIRECT else None
        opened.inode = passthrough.enter(opened.ino, node.version, content)
        return opened.inode.backing

    def _is_open_in_another_version(self, node: File | LocalFile) -> bool:
        ino, version = node.attributes.ino, node.version
        return any(
            not isinstance(opened.node, Folder)
            and (opened.inode is None or not opened.inode.is_disowned)
            and opened.ino == ino
            and opened.node.version != version
            for opened in tuple(self._handles.values())
        )

    def read(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        """Fill libfuse's buffer in place."""
        content = self._handles[fip.contents.fh].content
        assert content is not None
        return content.read_into(offset, view_of(buf, size))

    def release(self, path: bytes | None, fip: Any) -> None:
        """Forget a handle."""
        opened = self._handles.pop(fip.contents.fh)
        if opened.inode is not None and self._session.passthrough is not None:
            self._session.passthrough.leave(opened.inode)
        opened.close()

    def readlink(self, path: bytes, buf: Any, size: int) -> None:
        """Where a symbolic link points, with a NUL behind it."""
        target = os.fsencode(self._target(path))[: size - 1] + b"\0"
        ctypes.memmove(buf, target, len(target))

    def _target(self, path: bytes) -> str:
        if path != _LINK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return TARGET

    def statfs(self, path: bytes, buf: Any) -> None:
        """What df shows: the size of the dataset, all of it used."""
        size = self._files.find("/").attributes.size
        st = buf.contents
        st.f_bsize = st.f_frsize = 4096
        st.f_blocks = -(-size // 4096)
        st.f_bfree = st.f_bavail = 0
        st.f_namemax = 255

    def getxattr(self, path: bytes, name: bytes, value: Any, size: int, *position: Any) -> int:
        """One extended attribute. Only `user.` exists: ENOTSUP for others keeps `ls -l` from asking
        again."""
        wanted = os.fsdecode(name)
        if not wanted.startswith(_XATTR_NAMESPACE):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        found = self._find(path).xattrs().get(wanted)
        if found is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return _reply(found, value, size)

    def listxattr(self, path: bytes, names: Any, size: int) -> int:
        """The names of all extended attributes."""
        found = self._find(path).xattrs()
        return _reply(b"".join(os.fsencode(name) + b"\0" for name in found), names, size)

    if hasattr(binding.FUSE, "getattr_fuse_3"):
        getattr_fuse_2 = getattr_fuse_3 = fgetattr = _answer_getattr
        readdir_fuse_2 = readdir_fuse_3 = _answer_readdir
        init_fuse_2 = init_fuse_3 = _answer_init
    else:
        getattr = fgetattr = _answer_getattr
        readdir = _answer_readdir
        init = _answer_init


def _reply(data: bytes, into: Any, size: int) -> int:
    """Answer an extended attribute request: the length alone if no buffer was given."""
    if size == 0:
        return len(data)
    if len(data) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    ctypes.memmove(into, data, len(data))
    return len(data)
