"""A second process that opens, reads, maps and closes files on request: `python tests/holder.py`, a request a line."""

from __future__ import annotations

import json
import mmap
import os
import sys
from typing import Any


class Holder:
    """What one process has open, by the numbers that its user gives."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._maps: dict[int, mmap.mmap] = {}

    def open(self, number: int, path: str, flags: int) -> None:
        self._files[number] = os.open(path, flags)

    def read(self, number: int, offset: int, size: int) -> str:
        """In pages of its own, as O_DIRECT asks for."""
        with mmap.mmap(-1, -(-size // 4096) * 4096) as pages:
            view = memoryview(pages)[:size]
            n = os.preadv(self._files[number], [view], offset)
            data = bytes(view[:n]).hex()
            view.release()
            return data

    def map(self, number: int, name: int) -> None:
        self._maps[name] = mmap.mmap(self._files[number], 0, prot=mmap.PROT_READ)

    def look(self, name: int, offset: int, size: int) -> str:
        return self._maps[name][offset : offset + size].hex()

    def unmap(self, name: int) -> None:
        self._maps.pop(name).close()

    def close(self, number: int) -> None:
        os.close(self._files.pop(number))


def _answer(holder: Holder, request: list[Any]) -> Any:
    name, *arguments = request
    try:
        return getattr(holder, name)(*arguments)
    except OSError as error:
        return {"errno": error.errno}


if __name__ == "__main__":
    held = Holder()
    for line in sys.stdin:
        print(json.dumps(_answer(held, json.loads(line))), flush=True)
