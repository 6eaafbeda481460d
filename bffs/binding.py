"""The binding of libfuse, loaded: mfusepy with libfuse 3, or with libfuse 2 where that is all there is; fusepy
(libfuse 2) where mfusepy is absent.

libfuse 3 is preferred for requests of 1 MiB, which halve the CPU time of a read.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
from contextlib import suppress
from typing import Any

from bffs.errors import MountError


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

_MALLOC = {-3: 16 << 20, -1: 16 << 20, -8: 8}
"""M_MMAP_THRESHOLD, M_TRIM_THRESHOLD (bytes) and M_ARENA_MAX of mallopt(3)."""

_version = binding._libfuse.fuse_version()
LIBFUSE = divmod(_version, 10) if _version < 100 else divmod(_version, 100)
"""Major and minor version of the libfuse in use."""


def keep_freed_memory() -> None:
    """Let malloc keep the buffers that libfuse allocates and frees at every read.

    As it comes, glibc maps each of 1 MiB anew: 256 page faults a read, a second of CPU a GB.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC.items():
            mallopt(parameter, value)


def asking_process() -> int:
    """The process whose request this thread is busy with."""
    return int(binding._libfuse.fuse_get_context().contents.pid)


@functools.lru_cache(64)
def array_of(size: int) -> Any:
    """The ctypes type of `size` bytes; ctypes makes it anew each time that nobody holds it."""
    return ctypes.c_ubyte * size


def view_of(buffer: Any, size: int) -> memoryview:
    """The memory that a pointer of the binding points to."""
    address = ctypes.addressof(buffer.contents)
    return memoryview(array_of(size).from_address(address)).cast("B")
