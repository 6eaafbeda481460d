"""Slices for tests: TIFF files as strange as the format allows, byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence

FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}


def tiff(
    height: int,
    width: int,
    pixels: bytes,
    *,
    order: str = "<",
    big: bool = False,
    rows: int = 0,
    gap: int = 0,
    last: bool = False,
    front: int = 0,
    **fields: tuple[int, int],
) -> bytes:
    """A slice: strips of `rows` rows (0: one strip), `gap` bytes of rubbish before each, and the
    directory behind them if `last`. `front` is more rubbish before the first one.

    `fields` are tags (`t259=(3, 5)`: kind and value) in place of the usual ones or besides.
    """
    item = len(pixels) // (height * width)
    rows = rows or height
    strip = rows * width * item
    strips = [pixels[at : at + strip] for at in range(0, len(pixels), strip)]
    entry, count, link = (20, "Q", "Q") if big else (12, "H", "I")
    long = 16 if big else 4
    head_size = 16 if big else 8
    tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * item]),
        259: (3, [1]),
        262: (3, [1]),
        273: (long, [0] * len(strips)),
        277: (3, [1]),
        278: (4, [rows]),
        279: (long, [len(each) for each in strips]),
    }
    for name, (kind, value) in fields.items():
        tags[int(name[1:])] = (kind, [value])
    inline = struct.calcsize(link)
    tables = sum(
        struct.calcsize(FORMATS[kind]) * len(values)
        for kind, values in tags.values()
        if struct.calcsize(FORMATS[kind]) * len(values) > inline
    )
    directory = 2 * 8 + entry * len(tags) + tables
    at = head_size + (0 if last else directory) + front
    body = [b"\xa5" * front]
    places = []
    for each in strips:
        body += [b"\x5a" * gap, each]
        places.append(at + gap)
        at += gap + len(each)
    kind_of_offsets, given = tags[273]
    if not any(given):
        tags[273] = (kind_of_offsets, places)
    start = at if last else head_size
    table_at = start + struct.calcsize(order + count) + entry * len(tags) + inline
    entries, data = [struct.pack(order + count, len(tags))], []
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{FORMATS[kind]}", *values)
        if len(packed) > inline:
            data.append(packed)
            packed, table_at = struct.pack(order + link, table_at), table_at + len(packed)
        field = struct.pack(f"{order}HH{link}", tag, kind, len(values))
        entries.append(field + packed.ljust(inline, b"\0"))
    directory_bytes = b"".join([*entries, struct.pack(order + link, 0), *data])
    mark = b"II" if order == "<" else b"MM"
    head = mark + (
        struct.pack(order + "HHHQ", 43, 8, 0, start)
        if big
        else struct.pack(order + "HI", 42, start)
    )
    if last:
        return b"".join([head, *body, directory_bytes])
    return b"".join([head, directory_bytes.ljust(directory, b"\0"), *body])


def front_of(height: int, width: int) -> bytes:
    """What comes before the pixels of an 8-bit slice with one strip."""
    blank = tiff(height, width, bytes(height * width)) if height * width < 1 << 20 else b""
    if blank:
        return blank[: len(blank) - height * width]
    small = tiff(1, 1, b"\0", t256=(4, width), t257=(4, height), t278=(4, height))
    head = tiff(
        1,
        1,
        b"\0",
        t256=(4, width),
        t257=(4, height),
        t278=(4, height),
        t279=(4, height * width),
        t273=(4, len(small) - 1),
    )
    return head[:-1]
