"""The FUSE adapter, and the only import of mfusepy or fusepy: requests in; attributes, bytes and
errnos out.

The bindings' own methods turn every reply into new Python objects and swallow errors in their own
ways. `_Adapter` overrides those that matter: a read fills libfuse's buffer in place, a folder is
listed with the attributes of all its entries in one go, and every exception becomes an errno of the
one table in `errors` - whatever it doesn't know is EIO with a traceback in the log, and the mount
lives on.

Bindings: mfusepy with libfuse 3, or with libfuse 2 where that is all there is; fusepy (libfuse 2)
where mfusepy is absent. libfuse 3 is preferred for requests of 1 MiB, which halve the CPU time of a
read.

Threads: libfuse calls from many threads at once; the table of handles is a dict whose single
operations are atomic. libfuse changes the working directory to `/`: nothing below may use a
relative path.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import importlib
import itertools
import logging
import os
import signal
import stat
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bffs.content import Content
from bffs.errors import MountError, to_errno
from bffs.tree import LIVE, Attributes, File, FileSystem, Folder, Node


def _load_binding() -> Any:
    """mfusepy on libfuse 3 if there is one, mfusepy on libfuse 2, or fusepy. Raises MountError."""
    chosen = bool(os.environ.get("FUSE_LIBRARY_PATH"))
    for name in () if chosen else ("libfuse3.so.4", "libfuse3.so.3"):
        with suppress(OSError):
            ctypes.CDLL(name)
            os.environ["FUSE_LIBRARY_PATH"] = (
                name  # mfusepy itself would take libfuse 2 if both are there
            )
            break
    try:
        try:
            return importlib.import_module("mfusepy")
        except ImportError:
            if not chosen:
                os.environ.pop("FUSE_LIBRARY_PATH", None)  # fusepy knows libfuse 2 only
            return importlib.import_module("fuse")
    except ImportError as error:
        raise MountError("there is no FUSE binding: pip install mfusepy (or fusepy)") from error
    except OSError as error:
        raise MountError(
            "libfuse is missing: apt install fuse3 (with fusepy: libfuse2), or your system's equivalent"
        ) from error


binding = _load_binding()
log = logging.getLogger(__name__)

TIMEOUT = 24 * 3600.0
"""Seconds for which the kernel may remember names, attributes and the absence of names: the dataset
never changes."""

NEGATIVE_TIMEOUT = 60.0
"""Seconds for which it may remember that a name is absent: before Linux 6.16 nothing but their end
makes it ask again. Asking costs no request to the store."""

MAX_BACKGROUND = 64
IDLE_THREADS = 64
MAX_THREADS = 512
"""Reads that the kernel has under way for its page cache, threads that are kept to serve all
requests, and how many there may be: reads that wait for a store that is away must not keep an `ls`
waiting, nor the news that a reader was killed."""

REQUEST_SIZE = 1 << 20
"""Bytes in a read request at most; needs the mount's read_ahead_kb raised too."""

_ASYNC_DIO = 1 << 15
_PARALLEL_DIROPS = 1 << 18
_READDIRPLUS_AUTO = 1 << 14
_NOTIFY_INC_EPOCH = 8
_READDIR_PLUS = 1
_FILL_DIR_PLUS = 2
_XATTR_NAMESPACE = "user."

_MALLOC = {-3: 16 << 20, -1: 16 << 20, -8: 8}
"""M_MMAP_THRESHOLD, M_TRIM_THRESHOLD (bytes) and M_ARENA_MAX of mallopt(3)."""

_version = binding._libfuse.fuse_version()
LIBFUSE = divmod(_version, 10) if _version < 100 else divmod(_version, 100)
"""Major and minor version of the libfuse in use."""


class _Operations:
    """Names the operations that are served; the bindings register those that are found here."""

    use_ns = True
    flag_nullpath_ok = True
    flag_nopath = True

    getattr = opendir = readdir = releasedir = init = True
    open = read = release = statfs = getxattr = listxattr = True


class _Open(NamedTuple):
    """What a handle stands for; `content` is None for a folder."""

    node: Node
    content: Content | None = None


class _Adapter(binding.FUSE):  # type: ignore[misc, name-defined]
    """Answers libfuse from a `FileSystem`. Constructing one mounts, serves, and returns after the
    unmount."""

    def __init__(self, session: Session, mountpoint: str, options: dict[str, Any]) -> None:
        self._session = session
        self._files = session.files
        self._handles: dict[int, _Open] = {}
        self._numbers = itertools.count(1)
        self._threads = threading.local()
        self._uid, self._gid = os.getuid(), os.getgid()
        super().__init__(_Operations(), mountpoint, foreground=True, **options)

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
            conn.contents.want &= ~_READDIRPLUS_AUTO
            config.contents.use_ino = 1
            config.contents.kernel_cache = 1
            config.contents.nullpath_ok = 1
            config.contents.entry_timeout = TIMEOUT
            config.contents.attr_timeout = TIMEOUT
            config.contents.negative_timeout = NEGATIVE_TIMEOUT
        self._session.started(binding._libfuse)

    def _find(self, path: bytes | None, fip: Any = None) -> Node:
        """The node of a request: libfuse leaves the path out where there is a handle."""
        if path is None:
            return self._handles[fip.contents.fh].node
        return self._files.find(os.fsdecode(path))

    def _answer_getattr(self, path: bytes | None, buf: Any, fip: Any = None) -> None:
        ctypes.memset(buf, 0, ctypes.sizeof(binding.c_stat))
        self._fill(buf.contents, self._find(path, fip).attributes)

    def _fill(self, st: Any, attributes: Attributes) -> None:
        st.st_ino, st.st_mode, st.st_size, seconds, st.st_nlink, blocks = attributes
        st.st_uid = self._uid
        st.st_gid = self._gid
        # A folder's size is that of its files, but its blocks are none: du adds up both.
        if blocks is None:
            blocks = 0 if stat.S_ISDIR(attributes.mode) else -(-attributes.size // 512)
        st.st_blocks = blocks
        st.st_blksize = REQUEST_SIZE
        st.st_mtimespec.tv_sec = st.st_ctimespec.tv_sec = st.st_atimespec.tv_sec = seconds

    def opendir(self, path: bytes, fip: Any) -> None:
        """Open a folder; the kernel may keep its entries."""
        node = self._find(path)
        if not isinstance(node, Folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        fip.contents.fh = self._keep(_Open(node))
        fip.contents.keep_cache = 1
        if hasattr(fip.contents, "cache_readdir"):
            fip.contents.cache_readdir = 1

    def _answer_readdir(
        self, path: bytes | None, buf: Any, filler: Any, offset: int, fip: Any, flags: int = -1
    ) -> None:
        """List a folder from `offset` on; `flags` come with libfuse 3, where attributes travel along.

        libfuse passes attributes on only where each entry has an offset: the place of the next one.
        """
        node = self._handles[fip.contents.fh].node
        assert isinstance(node, Folder)
        plus = () if flags < 0 else (_FILL_DIR_PLUS if flags & _READDIR_PLUS else 0,)
        st = binding.c_stat()
        for place, name in enumerate((b".", b".."), 1):
            if offset < place and filler(buf, name, None, place, *(plus and (0,))):
                return
        first = max(0, offset - 2)
        children = itertools.islice(node.entries.items(), first, None)
        for place, (entry, child) in enumerate(children, first + 3):
            self._fill(st, child.attributes)
            if filler(buf, os.fsencode(entry), st, place, *plus):
                return

    def releasedir(self, path: bytes | None, fip: Any) -> None:
        """Forget a folder's handle."""
        del self._handles[fip.contents.fh]

    def _keep(self, opened: _Open) -> int:
        number = next(self._numbers)
        self._handles[number] = opened
        return number

    def open(self, path: bytes, fip: Any) -> None:
        """Open a file for reading."""
        node = self._find(path)
        if isinstance(node, Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if fip.contents.flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        # The kernel keeps one set of pages a file: while an old version is still open, the new one
        # is read past them, or a program could get some of each.
        shared = node.version != LIVE and (
            not self._session.changed or not self._is_open_in_another_version(node)
        )
        fip.contents.keep_cache = shared
        fip.contents.direct_io = not shared
        fip.contents.fh = self._keep(_Open(node, node.open()))

    def _is_open_in_another_version(self, node: File) -> bool:
        ino, version = node.attributes.ino, node.version
        return any(
            not isinstance(opened.node, Folder)
            and opened.node.attributes.ino == ino
            and opened.node.version != version
            for opened in tuple(self._handles.values())
        )

    def read(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        """Fill libfuse's buffer in place."""
        address = ctypes.addressof(buf.contents)
        view = memoryview(_array_of(size).from_address(address)).cast("B")
        content = self._handles[fip.contents.fh].content
        assert content is not None
        return content.read_into(offset, view)

    def release(self, path: bytes | None, fip: Any) -> None:
        """Forget a handle."""
        del self._handles[fip.contents.fh]

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


class Session:
    """One mount of a file system: `serve` mounts and answers until it is unmounted or `stop` is
    called.

    `changed` is set before the first file of the mount changes; `errors` counts failed reads by the
    errno's name.
    `on_ready` is called from a thread of libfuse as soon as the mount answers.
    """

    def __init__(
        self, files: FileSystem, errors: Counter[str], on_ready: Callable[[], None]
    ) -> None:
        self.files = files
        self.is_ready = False
        self.changed = False
        self.errors = errors
        self._is_stopped = False
        self._on_ready = on_ready
        self._fuse: int | None = None
        self._thread: int | None = None

    def serve(self, mountpoint: str, options: dict[str, Any]) -> None:
        """Mount and answer; returns after the unmount. Raises MountError if libfuse can't mount."""
        self._thread = threading.get_ident()
        _keep_freed_memory()
        if LIBFUSE[0] == 2:
            options = options | {
                "use_ino": True,
                "kernel_cache": True,
                "entry_timeout": TIMEOUT,
                "attr_timeout": TIMEOUT,
                "negative_timeout": NEGATIVE_TIMEOUT,
                "max_background": MAX_BACKGROUND,
            }
        elif LIBFUSE >= (3, 12):
            # libfuse complains on stderr where only one of the two is given.
            options = options | {"max_threads": MAX_THREADS, "max_idle_threads": IDLE_THREADS}
        try:
            _Adapter(self, mountpoint, options)
        except RuntimeError as error:
            raise MountError(f"FUSE could not mount at {mountpoint}") from error
        finally:
            self._fuse = None

    def started(self, library: Any) -> None:
        """The kernel has connected; called from `init`."""
        library.fuse_get_context.restype = ctypes.POINTER(binding.fuse_context)
        self._fuse = library.fuse_get_context().contents.fuse
        if self._is_stopped:
            self._exit()
        self.is_ready = True
        self._on_ready()

    def invalidate(self, paths: Iterable[str]) -> None:
        """Make the kernel forget attributes, entries and pages of these files and folders, and
        that names were absent. Never from a thread that answers a request.

        Needs libfuse 3; with libfuse 2 what the kernel knows ends with its time-outs.
        """
        forget = getattr(binding._libfuse, "fuse_invalidate_path", None)
        if self._fuse is None or forget is None:
            return
        for path in paths:
            forget(ctypes.c_void_p(self._fuse), os.fsencode(path))
        _increment_epoch()

    def stop(self) -> None:
        """Make `serve` return, as soon as it has mounted if it is about to. From another thread
        only."""
        self._is_stopped = True
        if self._fuse is not None and self._thread is not None:
            self._exit()
            signal.pthread_kill(self._thread, signal.SIGTERM)  # interrupts its wait

    def _exit(self) -> None:
        binding._libfuse.fuse_exit(ctypes.c_void_p(self._fuse))


def is_reader_killed() -> bool:
    """Whether who waits for the answer to this thread's request has been killed; no other signal
    ends a read."""
    if not binding._libfuse.fuse_interrupted():
        return False
    pid = binding.fuse_get_context()[2]
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("SigPnd", "ShdPnd") and int(value, 16) >> (signal.SIGKILL - 1) & 1:
                return True
    return False


def _increment_epoch() -> None:
    """Make the kernel look up every name again (FUSE_NOTIFY_INC_EPOCH, since Linux 6.16).

    Older kernels refuse the message, and remember absent names until their time is up.
    """
    message = struct.pack("=IiQ", 16, _NOTIFY_INC_EPOCH, 0)
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(entry.path) == "/dev/fuse":
                os.write(int(entry.name), message)


def _keep_freed_memory() -> None:
    """Let malloc keep the buffers that libfuse allocates and frees at every read.

    As it comes, glibc maps each of 1 MiB anew: 256 page faults a read, a second of CPU a GB.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


@functools.lru_cache(64)
def _array_of(size: int) -> Any:
    """The ctypes type of `size` bytes; ctypes makes it anew each time that nobody holds it."""
    return ctypes.c_ubyte * size


def _reply(data: bytes, into: Any, size: int) -> int:
    """Answer an extended attribute request: the length alone if no buffer was given."""
    if size == 0:
        return len(data)
    if len(data) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    ctypes.memmove(into, data, len(data))
    return len(data)
