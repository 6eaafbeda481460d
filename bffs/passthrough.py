"""Passthrough: the kernel reads and writes an open file of the mount in a local file by itself, at that disk's speed.

Since Linux 6.9 the driver may answer an open with a *backing id*, for which it has registered a local file; libfuse
passes that on since 3.17. Reads, writes and mappings of that handle then never come to the driver, and the pages are
those of the local file. Registering takes CAP_SYS_ADMIN.

The kernel goes by the inode: while one handle is open that reads through the driver, another open must not pass
through, nor the other way round, nor with another id; it answers EIO to a driver that gets this wrong. So the first
open of an inode decides for all until the last handle is closed, or until the inode is disowned.

Constants and layouts are those of <linux/fuse.h> and of libfuse 3.17's <fuse_common.h>; everything is off where they
can't be relied on.

Threads: any. One lock guards the table of inodes and is held across no I/O.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import platform
import re
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from bffs.binding import LIBFUSE, binding
from bffs.errors import ObjectChanged

log = logging.getLogger(__name__)

_LIBFUSE = (3, 17)
_LINUX = (6, 9)
_CAP_SYS_ADMIN = 21
_CAPABLE = 1 << 29
_BACKING_OPEN = 0x4010E501
_BACKING_CLOSE = 0x4004E502
_BACKING_MAP = struct.Struct("=iIQ")
_BACKING_ID = struct.Struct("=I")
_BACKING_ID_AT = 36
"""Offset in bytes of `backing_id` in struct fuse_file_info, behind the 32 bits of `poll_events`."""

_STACK_DEPTH = 1
"""How many file systems may be on top of each other: ours on a plain one."""

_HOPELESS = (errno.EPERM, errno.ELOOP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)


def why_not() -> str | None:
    """What is missing here for passthrough, None if nothing is."""
    if LIBFUSE < _LIBFUSE or LIBFUSE[0] > _LIBFUSE[0] or not _is_known():
        version = ".".join(map(str, LIBFUSE))
        return f"it takes libfuse 3.17 or later with mfusepy, this is libfuse {version}"
    linux = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    if linux < _LINUX:
        return f"it takes Linux 6.9 or later, this is {platform.release()}"
    if not _is_privileged():
        return "it takes CAP_SYS_ADMIN: mount as root, on the host"
    return None


def negotiate(connection: Any) -> str | None:
    """Ask the kernel for it in `init`, where its struct fuse_conn_info is given, unless `why_not`
    tells against it; what is missing then, None if nothing is."""
    if not connection.capable & _CAPABLE:
        return "this kernel was built without FUSE passthrough"
    connection.want |= _CAPABLE
    connection.max_backing_stack_depth = _STACK_DEPTH
    return None


class Inode:
    """What is open of one file: in one version, all of it with one backing id or all with none, 0."""

    __slots__ = ("backing", "handles", "ino", "is_disowned", "version")

    def __init__(self, ino: int, version: str, backing: int) -> None:
        self.ino = ino
        self.version = version
        self.backing = backing
        self.handles = 0
        self.is_disowned = False


class Passthrough:
    """Decides what passes through; `device` is the descriptor of the mount's /dev/fuse."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._inodes: dict[int, Inode] = {}
        self._why: str | None = None
        self.opened = 0
        """Handles that were opened to pass through."""

    def figures(self) -> dict[str, Any]:
        """Handles opened so far to pass through, and files of which such are open now."""
        with self._lock:
            passing = sum(1 for inode in self._inodes.values() if inode.backing)
        why = self._why
        return {"on": why is None, "why_not": why, "opened": self.opened, "files": passing}

    def passes(self, ino: int, version: str) -> bool:
        """Whether the file is open and passes through. Raises ObjectChanged if it does so in another
        version, next to which the kernel can't open this one."""
        with self._lock:
            inode = self._inodes.get(ino)
        if inode is None or not inode.backing:
            return False
        if inode.version != version:
            raise ObjectChanged("it is still open in its former version, close that first")
        return True

    def enter(self, ino: int, version: str, content: object) -> Inode:
        """Count a new handle, which uses the kernel's pages, of a file that doesn't pass through in
        another version. May read all of a file to check it."""
        with self._lock:
            inode = self._inodes.get(ino)
            if inode is not None:
                return self._counted(inode)
        made = Inode(ino, version, self._register(content))
        with self._lock:
            inode = self._inodes.setdefault(ino, made)
            self._counted(inode)
        if inode is not made:
            self._forget(made.backing)
        return inode

    def leave(self, inode: Inode) -> None:
        """Count a handle off that was counted."""
        with self._lock:
            inode.handles -= 1
            if inode.handles:
                return
            if self._inodes.get(inode.ino) is inode:
                del self._inodes[inode.ino]
        self._forget(inode.backing)

    def disown(self, ino: int) -> bool:
        """Have nothing to do with what is open of a file any more, as its inode is about to be made
        useless; whether it passes through."""
        with self._lock:
            inode = self._inodes.get(ino)
            if inode is None or not inode.backing:
                return False
            del self._inodes[ino]
            inode.is_disowned = True
            return True

    def _counted(self, inode: Inode) -> Inode:
        inode.handles += 1
        self.opened += bool(inode.backing)
        return inode

    def _register(self, content: object) -> int:
        # By name: to ask whether it is a `Backed` takes more time than all else here.
        backing = getattr(content, "backing", None)
        if self._why is not None or backing is None:
            return 0
        fd = backing()
        if fd is None:
            return 0
        request = bytearray(_BACKING_MAP.pack(fd, 0, 0))
        try:
            return int(fcntl.ioctl(self._device, _BACKING_OPEN, request))
        except OSError as error:
            if error.errno in _HOPELESS and self._why is None:
                stacked = "the cache is on a stacked file system, like overlayfs"
                self._why = stacked if error.errno == errno.ELOOP else error.strerror
                log.warning("no passthrough any more: %s", self._why)
            return 0

    def _forget(self, backing: int) -> None:
        if backing:
            with suppress(OSError):  # at the end of the mount everything is forgotten
                fcntl.ioctl(self._device, _BACKING_CLOSE, _BACKING_ID.pack(backing))


def hand_out(file_info: Any, backing: int) -> None:
    """Answer an open with a backing id, in libfuse's struct fuse_file_info, whose `keep_cache` and
    `direct_io` stay 0: the kernel takes neither beside it."""
    ctypes.c_int32.from_address(ctypes.addressof(file_info) + _BACKING_ID_AT).value = backing


def _is_known() -> bool:
    """Whether the binding's structures are those that were looked at: else offsets would be guesses."""
    info, connection = binding.fuse_file_info, binding.fuse_conn_info
    depth = getattr(connection, "max_backing_stack_depth", None)
    return (
        ctypes.sizeof(ctypes.c_void_p) == 8
        and info.poll_events.offset == _BACKING_ID_AT - 4
        and ctypes.sizeof(info) >= _BACKING_ID_AT + 4
        and depth is not None
        and depth.offset == 40
    )


def _is_privileged() -> bool:
    """CAP_SYS_ADMIN, of the system and not of a user namespace."""
    try:
        status = Path("/proc/self/status").read_text()
        users = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        return False
    capable = re.search(r"^CapEff:\s*(\w+)", status, re.MULTILINE)
    return (
        users == ["0", "0", str(0xFFFFFFFF)]
        and capable is not None
        and bool(int(capable[1], 16) >> _CAP_SYS_ADMIN & 1)
    )
