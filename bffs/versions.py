"""The versions of bffs and of what it stands on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from bffs import __version__
from bffs.errors import MountError


def versions() -> dict[str, str]:
    """By name, bffs first; nothing but the FUSE library is loaded for it."""
    return {
        "bffs": __version__,
        "Python": platform.python_version(),
        **_fuse(),
        **{name: _installed(name) for name in ("boto3", "tifffile")},
        platform.system(): platform.release(),
    }


def _fuse() -> dict[str, str]:
    try:
        from bffs.binding import LIBFUSE, binding
    except MountError:
        return {"libfuse": "missing"}
    name = {"fuse": "fusepy"}.get(binding.__name__, binding.__name__)
    return {"libfuse": ".".join(map(str, LIBFUSE)), name: _installed(name)}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
