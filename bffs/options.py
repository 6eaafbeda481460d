"""The options of all commands, in one table: `OPTIONS`.

The command line, the environment and the configuration files are derived from it: a new option is a line here and a
field of `Settings`. What turns its text into the value raises ValueError with the reason. Pure, but for the
home and the working folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import platformdirs

from bffs.units import MIB, format_size, parse_duration, parse_size

DEFAULT_DATASET = "brightfield"
DEFAULT_REGION = "us-east-1"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOO_MUCH = 1 << 62
"""Bytes that no file or memory has."""

# -- values: text in, value out, ValueError with the reason -----------------------------------------------------


def absolute_path(text: str, folder: Path | None = None) -> Path:
    """`text` as a path from the root: `~` expanded, otherwise relative to `folder` or the working directory.

    Nothing on the way is looked at, for it may be a dead mount; links stay links.
    """
    path = os.path.expanduser(text)  # pathlib's own fails for an unknown ~user
    return Path(os.path.abspath(folder / path if folder else path))


def _cache_dir(text: str) -> Path:
    return absolute_path(text or platformdirs.user_cache_dir("bffs"))


def _scratch(text: str) -> Path | None:
    return absolute_path(text) if text else None


def _endpoint_url(text: str) -> str | None:
    if not text:
        return None
    if "@" in text:  # not repeated in the message: it may hold a password
        raise ValueError(
            "an endpoint holds no user or password; credentials come from the AWS environment"
        )
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
        usable = usable and not (url.query or url.fragment or " " in text)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{text!r} is not an endpoint such as https://s3.example.org")
    return text.rstrip("/")


def _bucket(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+|arn:\S+", text):
        raise ValueError(f"{text!r} is not a bucket (its name alone, without s3:// and folders)")
    return text


def _region(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]+", text):
        raise ValueError(f"{text!r} is not a region such as {DEFAULT_REGION}")
    return text


def _text(text: str) -> str:
    return text


def _text_or_none(text: str) -> str | None:
    return text or None


def _yes(text: str) -> bool:
    """What a switch says."""
    match text.lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise ValueError(f"{text!r} is neither true nor false")


def _not(text: str) -> bool:
    """The opposite of what a switch says."""
    return not _yes(text)


def _size(text: str) -> int:
    try:
        value = parse_size(text)
    except OverflowError:
        value = _TOO_MUCH
    if value >= _TOO_MUCH:
        raise ValueError(f"{text[:20]!r} is too much")
    return value


def _size_from(minimum: int) -> Callable[[str], int]:
    def size(text: str) -> int:
        value = _size(text)
        if value < minimum:
            raise ValueError(f"{text!r} is too little, at least {format_size(minimum)} is needed")
        return value

    return size


def _connections(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= 256:
        raise ValueError(f"{text!r} is not a number from 1 to 256")
    return int(text)


def _rows(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError(f"{text!r} is no number of rows")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 < hours < 1e6:
        raise ValueError(f"{text!r} is no number of hours")
    return hours * 3600


def _deadline(text: str) -> float:
    seconds = parse_duration(text)
    if not 1 <= seconds <= 24 * 3600:
        raise ValueError(f"{text!r} is not from 1s to 24h")
    return seconds


def _readahead(text: str) -> int | None:
    match text.lower():
        case "auto":
            return None
        case "off":
            return 0
    if not text[:1].isdecimal():
        raise ValueError(f"{text!r} is not auto, off or a size such as 64M")
    return _size(text)


# -- the table --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: `cache-size` is `--cache-size`, `BFFS_CACHE_SIZE`, and `cache_size` in a file.

    Without a `metavar` it is a switch. `parse` turns text into the value or raises ValueError with the reason;
    `default` is text, too. `target` is its field of `Settings` or `Dataset`, where that isn't called like the
    option. `common` options are accepted by every command; those `in_profile` may stand in a dataset profile.
    """

    name: str
    metavar: str | None
    parse: Callable[[str], Any]
    default: str
    help: str
    target: str = ""
    common: bool = False
    in_profile: bool = False

    @property
    def key(self) -> str:
        """Its name in files."""
        return self.name.replace("-", "_")

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"BFFS_{self.key.upper()}"

    def value_of(self, text: str) -> Any:
        """What `text` means; nothing stands for the default. Raises ValueError with the reason."""
        text = text or self.default
        if _CONTROL.search(text):
            raise ValueError("there is a control character in it")
        return self.parse(text)


# fmt: off
DATASET = Option("dataset", "PROFILE", _text, DEFAULT_DATASET, "Dataset profile: its name, or a .toml file.",
                  common=True)
OF_DATASET = (
    Option("endpoint-url", "URL", _endpoint_url, "", "S3 service; empty for AWS.", common=True, in_profile=True),
    Option("bucket", "NAME", _bucket, "", "Bucket.", common=True, in_profile=True),
    Option("region", "NAME", _region, DEFAULT_REGION, "Region of the bucket.", common=True, in_profile=True),
)
OF_SETTINGS = (
    Option("profile", "NAME", _text_or_none, "", "AWS profile that holds the credentials.",
           target="aws_profile", common=True, in_profile=True),
    Option("no-sign-request", None, _not, "no", "Use no credentials, for a public bucket.",
           target="sign_requests", common=True, in_profile=True),
    Option("cache-dir", "DIR", _cache_dir, "", "Folder of the disk cache (~/.cache/bffs).", common=True),
    Option("cache-size", "SIZE", _size_from(MIB), "50G", "Most that the disk cache holds."),
    Option("memory", "SIZE", _size_from(64 * MIB), "512M", "Memory for blocks, 64M at least."),
    Option("max-connections", "N", _connections, "32", "Connections to the store, 1 to 256."),
    Option("offline", None, _yes, "no", "Ask nothing of the store: show what was listed, read what is cached."),
    Option("deadline", "TIME", _deadline, "5m", "Longest that a read waits for a store that is away."),
    Option("readahead", "auto|off|SIZE", _readahead, "auto", "Most to read ahead."),
    Option("shutu-overlap", "ROWS", _rows, "128", "Rows that neighbouring tiles for ShuTu share."),
    Option("scratch", "DIR", _scratch, "", "Folder for what is saved in mounts (~/.local/share/bffs/...)."),
    Option("refresh-after", "HOURS", _hours, "24", "Age at which a mount lists the bucket anew."),
)
# fmt: on

OPTIONS = (DATASET, *OF_DATASET, *OF_SETTINGS)
"""Every option. A new one is a line in `OF_SETTINGS`."""
