"""What the user chose, as values: the dataset, the settings of all commands, those of a mount.

Nothing below the command line changes them. Where they come from is `precedence`'s matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bffs.units import GIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Where a dataset is and how its keys become specimens.

    `splits` pairs a folder at the root of the bucket with a split name; the empty folder stands for all other
    root folders. The access key is the one that the dataset's publishers printed for everyone, or None. Without
    `endpoint_url` it is on AWS.
    """

    name: str
    endpoint_url: str | None
    region: str
    bucket: str
    splits: tuple[tuple[str, str], ...] = (("", "train"),)
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    voxel: tuple[float, float, float] | None = None
    """Micrometres from one voxel to the next along z, y, x, if they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a command needs to know besides its own arguments. Sizes in bytes, paths absolute."""

    dataset: Dataset
    aws_profile: str | None = None
    sign_requests: bool = True
    cache_dir: Path
    cache_size: int = 50 * GIB
    memory: int = 512 * MIB
    max_connections: int = 32
    offline: bool = False
    """Whether nothing may be asked of the store."""

    deadline: float = 300.0
    """Seconds that a read waits for a store that is away."""

    refresh_after: float = 24 * 3600.0
    """Seconds after which a mount lists the bucket anew."""

    shutu_overlap: int = 128
    """Rows that two neighbouring tiles for ShuTu share."""
    scratch: Path | None = None
    """Folder for what is saved in a mount; None for the dataset's own in the user's data folder."""

    readahead: int | None = None
    """Bytes to read ahead at most; 0 for none, None for as much as the link asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What `bffs mount` alone needs. Paths are absolute."""

    mountpoint: Path
    foreground: bool = False
    allow_other: bool = False
    refresh: bool = False
    """List the bucket before anything is shown, whatever was kept."""

    log_file: Path | None = None
    metrics: int | None = None
    """Port of this machine on which figures for Prometheus are served; 0 for any that is free."""

    fuse_options: tuple[str, ...] = ()
    read_only: bool = False
    """Take no files to save."""

    passthrough: bool = True
    """Let the kernel read by itself what is cached whole, where it can."""

    verbosity: int = 0
    """-1 quiet, 0 warnings, 1 information, 2 debugging."""
