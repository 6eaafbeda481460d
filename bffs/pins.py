"""Which specimens are pinned: a small file each, so that pins outlive a lost ledger and need no lock.

A pin is `<dataset folder>/pins/<hash of the specimen's prefix>`, JSON with the prefix and the names of its cached files
at that time. Making or removing one is a single step of the file system.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import xxhash

log = logging.getLogger(__name__)


def pin(dataset_folder: Path, prefix: str, names: Iterable[str]) -> None:
    """Pin the specimen of that prefix, whose cached files have these names. Raises OSError."""
    path = _marker(dataset_folder, prefix)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    fd, draft = tempfile.mkstemp(dir=path.parent, prefix="draft-")
    try:
        with os.fdopen(fd, "w") as file:
            json.dump({"prefix": prefix, "files": list(names)}, file)
            file.flush()
            os.fsync(fd)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def unpin(dataset_folder: Path, prefix: str) -> None:
    """Take the pin away, if there is one. Raises OSError."""
    with suppress(FileNotFoundError):
        _marker(dataset_folder, prefix).unlink()


def is_pinned(dataset_folder: Path, prefix: str) -> bool:
    """Whether the specimen of that prefix is pinned."""
    return _marker(dataset_folder, prefix).exists()


def pinned_files(cache_folder: Path) -> Iterator[str]:
    """Names of the cached files of all pinned specimens of all datasets."""
    for path in cache_folder.glob("*/pins/*"):
        if not path.name.startswith("draft-"):
            try:
                yield from map(str, json.loads(path.read_bytes())["files"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("a pin is damaged, please pin the specimen again: %s: %s", path, error)


def _marker(dataset_folder: Path, prefix: str) -> Path:
    return dataset_folder / "pins" / xxhash.xxh3_128_hexdigest(prefix.encode())
