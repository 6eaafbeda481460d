"""Manifests: what the dataset's publishers wrote about it, made from the catalog. Pure functions.

The schema and the order are those of the published `specimens_manifest.json`: one flat object keyed
by specimen id, training specimens first, as listed; an id in both sets keeps its place but carries
the test set's values.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring
from typing import Any

from bffs.catalog import Catalog, Specimen, base_name
from bffs.settings import Dataset
from bffs.tiff import SliceLayout
from bffs.units import format_time

Manifest = dict[str, Any]


def published(specimen: Specimen) -> Manifest:
    """The five published fields of one specimen."""
    return {
        "id": specimen.id,
        "bucket_prefix": specimen.prefix,
        "swc": specimen.swc.key if specimen.swc is not None else None,
        "bytes": specimen.slice_bytes,
        "image_stack": [obj.key for obj in specimen.slices],
    }


def whole_dataset(catalog: Catalog) -> Manifest:
    """The published manifest of all specimens; of an id in several splits the last split's values
    stay."""
    return {specimen.id: published(specimen) for specimen in catalog.specimens}


def of_specimen(
    specimen: Specimen, dataset: Dataset, layout: SliceLayout | None = None
) -> Manifest:
    """One specimen's `manifest.json`: the published fields, then where it is and what its slices
    are.

    `directory` is relative to the mountpoint; `last_modified` is in UTC; `shape` and `dtype` are
    those of the whole stack, and there once the layout of a slice is known.
    """
    pixels = {}
    if layout is not None:
        pixels = {
            "shape": [len(specimen.slices), layout.height, layout.width],
            "dtype": layout.dtype,
        }
    return (
        published(specimen)
        | pixels
        | {
            "split": specimen.split,
            "endpoint_url": dataset.endpoint_url,
            "bucket": dataset.bucket,
            "directory": f"{specimen.split}/{specimen.id}",
            "slices": [
                {
                    "name": base_name(obj.key),
                    "bytes": obj.size,
                    "etag": obj.etag,
                    "last_modified": format_time(obj.mtime),
                }
                for obj in specimen.slices
            ],
        }
    )


def encode(manifest: Manifest) -> bytes:
    """`manifest` as JSON with a final newline: a line a field, and a line an item of a list.

    The standard library's indented output is made in Python, ten times slower, and spreads a slice
    over six lines.
    """
    return f"{_spread(manifest, 0)}\n".encode()


def _spread(value: Any, depth: int) -> str:
    """JSON of `value`, its first levels of objects and lists spread over indented lines."""
    inner, outer = "    " * (depth + 1), "    " * depth
    if isinstance(value, list) and value:
        items = (inner + _line(item) for item in value)
        return "[\n" + ",\n".join(items) + f"\n{outer}]"
    if isinstance(value, dict) and value:
        fields = (
            f"{inner}{_line(key)}: {_spread(field, depth + 1)}" for key, field in value.items()
        )
        return "{\n" + ",\n".join(fields) + f"\n{outer}}}"
    return _line(value)


def _line(value: Any) -> str:
    """JSON of `value` on one line. 53,705 slices are described at the first `ls` of a root: `dumps`,
    which makes an encoder at each call, would take 0.5 s for them. Keys are ours and plain."""
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, dict):
        fields = [
            f'"{key}": {encode_basestring(field) if type(field) is str else _line(field)}'
            for key, field in value.items()
        ]
        return f"{{{', '.join(fields)}}}"
    return repr(value) if type(value) is int else json.dumps(value)
