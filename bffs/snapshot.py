"""The catalog on the local disk, so that a mount or an `ls` needs no listing.

One file a dataset in the cache folder: a header of 32 bytes (`_HEADER`: magic with the version,
length and xxh3_128 of what follows) and then JSON, a column for each field of a specimen's objects,
names without their prefix. JSON is read in C, 53,926 keys in 50 ms, and shows itself to whoever
looks.

A snapshot is replaced whole, by a rename, and only by a complete catalog; one that is cut short,
damaged or of another version counts as none. Two processes may write at once: the later one stays.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import xxhash

from bffs.catalog import Catalog, Specimen
from bffs.private import dataset_folder, is_own_dataset_folder, own_dataset_folder
from bffs.settings import Dataset
from bffs.store import ObjectInfo

log = logging.getLogger(__name__)

_MAGIC = b"bffscat1"
_HEADER = struct.Struct("<8sQ16s")


def save(catalog: Catalog, cache_dir: Path, dataset: Dataset) -> None:
    """Keep `catalog`; a disk that can't take it is no error, only logged."""
    path = _path(cache_dir, dataset)
    body = json.dumps(_encode(catalog, dataset), separators=(",", ":")).encode()
    try:
        own_dataset_folder(cache_dir, dataset)
        fd, draft = tempfile.mkstemp(dir=path.parent, prefix="draft-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(_HEADER.pack(_MAGIC, len(body), xxhash.xxh3_128_digest(body)) + body)
                file.flush()
                os.fsync(fd)
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
    except OSError as error:
        log.info("the listing can't be kept: %s", error)  # the disk cache warns of the same


def load(cache_dir: Path, dataset: Dataset) -> Catalog | None:
    """The catalog that was kept for this dataset and its splits, or None."""
    path = _path(cache_dir, dataset)
    try:
        if not is_own_dataset_folder(cache_dir, dataset):
            return None
        content = path.read_bytes()
    except OSError:
        return None
    try:
        magic, length, digest = _HEADER.unpack_from(content)
        body = memoryview(content)[_HEADER.size :]
        if magic != _MAGIC or len(body) != length or xxhash.xxh3_128_digest(body) != digest:
            raise ValueError("its checksum does not fit")
        return _decode(json.loads(bytes(body)), dataset)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        log.warning("the listing that was kept is damaged, the bucket is listed anew: %s", error)
        return None


def mark(cache_dir: Path, dataset: Dataset) -> tuple[int, int] | None:
    """Something that changes whenever a snapshot is kept; None while there is none."""
    try:
        found = _path(cache_dir, dataset).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _path(cache_dir: Path, dataset: Dataset) -> Path:
    return dataset_folder(cache_dir, dataset) / "catalog"


def _encode(catalog: Catalog, dataset: Dataset) -> dict[str, Any]:
    return {
        "splits": dataset.splits,
        "listed_at": catalog.listed_at,
        "left_out": dict(catalog.left_out),
        "specimens": [
            {
                "id": specimen.id,
                "split": specimen.split,
                "prefix": specimen.prefix,
                "slices": _columns(specimen.slices, specimen.prefix),
                "swc": _columns([specimen.swc] if specimen.swc else [], specimen.prefix),
                "others": _columns(specimen.others, specimen.prefix),
            }
            for specimen in catalog.specimens
        ],
    }


def _decode(kept: Any, dataset: Dataset) -> Catalog | None:
    if [tuple(pair) for pair in kept["splits"]] != list(dataset.splits):
        return None
    specimens = []
    for entry in kept["specimens"]:
        swc = _objects(entry["swc"], entry["prefix"])
        specimens.append(
            Specimen(
                entry["id"],
                entry["split"],
                entry["prefix"],
                _objects(entry["slices"], entry["prefix"]),
                swc[0] if swc else None,
                _objects(entry["others"], entry["prefix"]),
            )
        )
    return Catalog(tuple(specimens), MappingProxyType(kept["left_out"]), kept["listed_at"])


def _columns(objects: Sequence[ObjectInfo], prefix: str) -> list[list[Any]]:
    """Names, ETags, sizes and times of the objects."""
    return [
        [obj.key.removeprefix(prefix) for obj in objects],
        [obj.etag for obj in objects],
        [obj.size for obj in objects],
        [obj.mtime for obj in objects],
    ]


def _objects(columns: list[list[Any]], prefix: str) -> tuple[ObjectInfo, ...]:
    names, etags, sizes, times = columns
    keys = [prefix + name for name in names]
    return tuple(map(ObjectInfo, keys, etags, sizes, times))
