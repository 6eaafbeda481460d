"""libfuse's main loop in steps, so that there is one between its end and the end of what libfuse keeps of the mount.

`fuse_main_real`, which the binding calls, frees that as soon as the loop has ended, whoever uses it: a thread that
tells the kernel what to forget crashes then. Here it is never freed, for the process ends soon, and the connection is
closed only after `ended`.

The functions and structs are those of libfuse 3.12 and later (include/fuse.h, fuse_lowlevel.h), which has a name for
each version of them. With another libfuse the binding's own main serves.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from typing import Any

from bffs.binding import LIBFUSE, binding

NAMES = (
    "fuse_parse_cmdline_312",
    "fuse_new_31",
    "fuse_mount",
    "fuse_daemonize",
    "fuse_get_session",
    "fuse_set_signal_handlers",
    "fuse_remove_signal_handlers",
    "fuse_loop_cfg_create",
    "fuse_loop_cfg_set_clone_fd",
    "fuse_loop_cfg_set_idle_threads",
    "fuse_loop_cfg_set_max_threads",
    "fuse_loop_mt_312",
    "fuse_unmount",
)


class _Arguments(ctypes.Structure):
    """struct fuse_args"""

    _fields_ = (("argc", c_int), ("argv", POINTER(c_char_p)), ("allocated", c_int))


class _Chosen(ctypes.Structure):
    """struct fuse_cmdline_opts, with room for what later versions append"""

    _fields_ = (
        ("singlethread", c_int),
        ("foreground", c_int),
        ("debug", c_int),
        ("nodefault_subtype", c_int),
        ("mountpoint", c_char_p),
        ("show_version", c_int),
        ("show_help", c_int),
        ("clone_fd", c_int),
        ("max_idle_threads", c_uint),
        ("max_threads", c_uint),
        ("later", c_uint * 64),
    )


def in_steps(ended: Callable[[], None]) -> Callable[..., int] | None:
    """What may be called in place of `fuse_main_real` and returns the same; None if this libfuse isn't known so well.

    `ended` is called by the thread of the loop when that has ended. Whatever libfuse keeps of the mount stays where it
    is, but may not be used any more when `ended` returns.
    """
    library = binding._libfuse
    if LIBFUSE < (3, 12) or not all(hasattr(library, name) for name in NAMES):
        return None
    for name in ("fuse_new_31", "fuse_get_session", "fuse_loop_cfg_create"):
        getattr(library, name).restype = c_void_p

    def main(argc: int, argv: Any, operations: Any, size: int, data: Any) -> int:
        arguments, chosen = _Arguments(argc, argv, 0), _Chosen()
        if library.fuse_parse_cmdline_312(byref(arguments), byref(chosen)):
            return 1
        fuse = c_void_p(library.fuse_new_31(byref(arguments), operations, c_size_t(size), data))
        if fuse.value is None:
            return 3
        if library.fuse_mount(fuse, c_char_p(chosen.mountpoint)):
            return 4
        library.fuse_daemonize(1)  # which only leaves the current folder
        session = c_void_p(library.fuse_get_session(fuse))
        library.fuse_set_signal_handlers(session)
        config = c_void_p(library.fuse_loop_cfg_create())
        library.fuse_loop_cfg_set_clone_fd(config, chosen.clone_fd)
        library.fuse_loop_cfg_set_idle_threads(config, chosen.max_idle_threads)
        library.fuse_loop_cfg_set_max_threads(config, chosen.max_threads)
        result = library.fuse_loop_mt_312(fuse, config)
        library.fuse_remove_signal_handlers(session)
        ended()
        library.fuse_unmount(fuse)
        return 8 if result else 0

    return main
