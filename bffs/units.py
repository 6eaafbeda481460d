"""Sizes, names and times as people write and read them; pure functions without state."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from fractions import Fraction

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SUFFIXES = ("B", "K", "M", "G", "T", "P")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:I?B)?\s*", re.IGNORECASE)
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h)?\s*", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}
_DIGITS = re.compile(r"(\d+)")


def parse_size(text: str) -> int:
    """Bytes meant by `50G`, `512MiB`, `1.5T` or `4096`; suffixes are powers of 1024, as in `ls -h`.

    Raises ValueError for anything else.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 512M or 50G")
    number, suffix = match.groups()
    return int(Fraction(number) * 1024 ** _SUFFIXES.index(suffix.upper() or "B"))


def format_size(size: int) -> str:
    """`size` bytes in at most five characters, rounded up as `ls -lh` does: 512, 9.8K, 25G."""
    value = float(size)
    for suffix in _SUFFIXES:
        if value <= 1023 or suffix == _SUFFIXES[-1]:
            break
        value /= 1024
    if suffix == "B":
        return f"{size}"
    tenths = math.ceil(value * 10)
    return f"{tenths / 10:.1f}{suffix}" if tenths < 100 else f"{math.ceil(value)}{suffix}"


def format_size_below(size: float) -> str:
    """The largest whole number of gigabytes, or below ten of them of megabytes, that is not above `size` bytes."""
    return f"{int(size // GIB)}G" if size >= 10 * GIB else f"{int(size // MIB)}M"


def parse_duration(text: str) -> float:
    """Seconds meant by `30s`, `5m`, `1.5h` or `90`. Raises ValueError for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time such as 30s or 5m")
    number, unit = match.groups()
    return float(number) * _SECONDS[(unit or "s").lower()]


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which runs of digits compare as numbers: slice-9 before slice-10."""
    return tuple(
        (1, int(piece)) if piece.isdecimal() else (0, piece)
        for piece in _DIGITS.split(name)
        if piece
    )


def format_time(seconds: int) -> str:
    """Seconds since 1970 as UTC in ISO 8601: 2019-08-14T21:05:33Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def format_duration(seconds: float) -> str:
    """A time as people say it: 42 s, 3 min, 2 h 10 min, 3 days."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 100 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} days"
