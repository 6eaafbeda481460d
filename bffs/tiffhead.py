"""What stands before the pixels of a TIFF that bffs makes: the header, and the directories of all
pages, so that one read indexes everything.

Pure. The layout is that of TIFF 6.0 and of BigTIFF: header, directories one after another, then
the values that don't fit into a directory's entries.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from bffs.tiff import SliceLayout, item_size

CLASSIC = 1 << 32
"""No offset and no byte count of a classic TIFF reaches this."""

_ASCII, _SHORT, _LONG, _RATIONAL, _LONG8 = 2, 3, 4, 5, 16
_NUMBERS = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}
_KINDS = {"u": 1, "i": 2, "f": 3}
"""SampleFormat, by the first letter of numpy's type."""


class _Form(NamedTuple):
    """Classic or big: mark and rest of the header, and how `struct` calls numbers of entries, of
    items, and offsets."""

    header: tuple[str, tuple[int, ...]]
    entries: str
    offset: str
    entry_size: int


_FORMS = {
    False: _Form(("HI", (42, 8)), "H", "I", 12),
    True: _Form(("HHHQ", (43, 8, 0, 16)), "Q", "Q", 20),
}

_Field = tuple[int, int, int, bytes]
"""Tag, type, number of items, and their bytes."""


def tiff_head(
    layout: SliceLayout,
    offsets: Sequence[int],
    rows: int,
    *,
    text: bytes = b"",
    pixel_size: tuple[float, float] | None = None,
    big: bool = False,
) -> bytes:
    """Header and directories of pages whose pixels begin at `offsets`, each one strip of `rows`
    rows. The first has the description `text`, with its zero, and the size of a pixel in
    micrometres along y and x.

    Without `big`, offsets and the bytes of a page are below `CLASSIC`.
    """
    order = layout.byte_order
    form = _FORMS[big]
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + form.header[0], *form.header[1])
    pages = [_fields(layout, offset, rows, big) for offset in offsets]
    pages[0] += _first_fields(order, text, pixel_size)
    around = struct.calcsize(order + form.entries + form.offset)
    sizes = [around + form.entry_size * len(fields) for fields in pages]
    at, rest_at = len(head), len(head) + sum(sizes)
    parts, rest = [head], b""
    for page, (fields, size) in enumerate(zip(pages, sizes, strict=True), 1):
        at += size
        directory, more = _directory(sorted(fields), rest_at + len(rest), order, form)
        rest += more
        parts += [directory, struct.pack(order + form.offset, at if page < len(pages) else 0)]
    return b"".join([*parts, rest])


def _fields(layout: SliceLayout, offset: int, rows: int, big: bool) -> list[_Field]:
    long = _LONG8 if big else _LONG
    kind = _KINDS[layout.dtype[0]]
    numbers = [
        (256, _LONG, layout.width),
        (257, _LONG, rows),
        (258, _SHORT, 8 * item_size(layout.dtype)),
        (259, _SHORT, 1),
        (262, _SHORT, 0 if layout.white_is_zero else 1),
        (273, long, offset),
        (277, _SHORT, 1),
        (278, _LONG, rows),
        (279, long, rows * layout.row_bytes),
        *([(339, _SHORT, kind)] if kind != 1 else []),
    ]
    return [
        (tag, type_, 1, struct.pack(layout.byte_order + _NUMBERS[type_], value))
        for tag, type_, value in numbers
    ]


def _first_fields(order: str, text: bytes, pixel_size: tuple[float, float] | None) -> list[_Field]:
    fields = [(270, _ASCII, len(text), text)] if text else []
    if pixel_size is not None:
        y, x = (struct.pack(order + "2I", *_per_unit(size)) for size in pixel_size)
        fields += [
            (282, _RATIONAL, 1, x),
            (283, _RATIONAL, 1, y),
            (296, _SHORT, 1, struct.pack(order + "H", 1)),
        ]
    return fields


def _directory(
    fields: Sequence[_Field], rest_at: int, order: str, form: _Form
) -> tuple[bytes, bytes]:
    """A directory without the link to the next, and what of its values is to be put at offset
    `rest_at`."""
    inline = struct.calcsize(form.offset)
    packed, rest = [struct.pack(order + form.entries, len(fields))], b""
    for tag, type_, items, data in fields:
        value = data
        if len(data) > inline:
            value = struct.pack(order + form.offset, rest_at + len(rest))
            rest += data + bytes(len(data) % 2)
        packed += [
            struct.pack(f"{order}HH{form.offset}", tag, type_, items),
            value.ljust(inline, b"\0"),
        ]
    return b"".join(packed), rest


def _per_unit(micrometres: float) -> tuple[int, int]:
    """Pixels per micrometre as a TIFF RATIONAL."""
    return 1_000_000, max(1, round(micrometres * 1_000_000))
