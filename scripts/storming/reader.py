"""Child process: reads files one after the other, and counts what is wrong.

    reader.py FOLDER KEY...

Out: one line of JSON: bytes that were `wrong` or missing, `errors`, and bytes read.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path

from tests.s3server import pattern

REQUEST = 1 << 20


def main() -> None:
    """Read what the command line names."""
    folder, keys = Path(sys.argv[1]), sys.argv[2:]
    buffer = memoryview(mmap.mmap(-1, REQUEST))
    wrong = errors = size = 0
    for key in keys:
        fd = os.open(folder / key, os.O_RDONLY)
        end = os.fstat(fd).st_size
        at = 0
        while at < end:
            try:
                n = os.preadv(fd, [buffer[: min(REQUEST, end - at)]], at)
            except OSError as error:
                print(f"{key} at {at}: {error}", file=sys.stderr)
                errors += 1
                n = 0
            expected = pattern(key, at, at + n)
            if buffer[:n] != expected:
                wrong += sum(a != b for a, b in zip(buffer[:n], expected, strict=True))
            if n == 0:
                wrong += end - at
                break
            at += n
        size += at
        os.close(fd)
    print(json.dumps({"wrong": wrong, "errors": errors, "bytes": size}))


if __name__ == "__main__":
    main()
