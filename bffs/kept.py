"""Small files that are kept beside the disk cache, whole or not at all.

A file is a header of 32 bytes (`_HEADER`: magic with the version, length and xxh3_128 of what
follows) and a body. It is replaced whole, by a rename; one that is cut short, damaged or of another
version is a ValueError, one in somebody else's folder counts as none. Two processes may
write at once: the later one stays.
"""

from __future__ import annotations

import logging
import os
import struct
import tempfile
from pathlib import Path

import xxhash

from bffs.private import dataset_folder, is_own_dataset_folder, own_dataset_folder
from bffs.settings import Dataset

log = logging.getLogger(__name__)

_HEADER = struct.Struct("<8sQ16s")


def save(cache_dir: Path, dataset: Dataset, name: str, magic: bytes, body: bytes) -> None:
    """Keep `body` under `name`; a disk that can't take it is no error, only logged."""
    try:
        path = own_dataset_folder(cache_dir, dataset) / name
        fd, draft = tempfile.mkstemp(dir=path.parent, prefix="draft-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(_HEADER.pack(magic, len(body), xxhash.xxh3_128_digest(body)) + body)
                file.flush()
                os.fsync(fd)
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
    except OSError as error:
        log.info("the %s can't be kept: %s", name, error)  # the disk cache warns of the same


def load(cache_dir: Path, dataset: Dataset, name: str, magic: bytes) -> bytes | None:
    """What was kept under `name`, or None. Raises ValueError where it is damaged."""
    path = dataset_folder(cache_dir, dataset) / name
    try:
        if not is_own_dataset_folder(cache_dir, dataset):
            return None
        content = path.read_bytes()
    except OSError:
        return None
    body = content[_HEADER.size :]
    if len(content) < _HEADER.size:
        raise ValueError("it is cut short")
    found, length, digest = _HEADER.unpack_from(content)
    if found != magic or len(body) != length or xxhash.xxh3_128_digest(body) != digest:
        raise ValueError("its checksum does not fit")
    return body
