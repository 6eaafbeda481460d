"""A mount in which everything goes wrong: `python -m tests.faulty_tree MOUNTPOINT LOG`.

`/<callback>/<exception>` fails with that exception in that callback: any of bffs's errors, any of
Python's, or `OSError-<errno>`. `/good` is a file that works.
"""

from __future__ import annotations

import builtins
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from bffs import errors, logs
from bffs.content import BytesContent, Content
from bffs.fuse import Session
from bffs.tree import Attributes, Folder, Node, Tree, Weight, file_attributes

GOOD = b"all is well\n"
FOREIGN = [
    *("ValueError", "KeyError", "AssertionError", "RecursionError", "MemoryError", "StopIteration"),
    *("KeyboardInterrupt", "SystemExit", "GeneratorExit", "BaseException", "UnicodeDecodeError"),
    *("OSError-0", "OSError-100000", "OSError--5"),
]
"""Exceptions that nobody foresees."""

OURS = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.BffsError)
]
OF_SYSTEM = ["OSError-28", "OSError-20", "FileNotFoundError-2", "TimeoutError-110"]


def make(name: str) -> BaseException:
    """The exception of that name."""
    kind, _, number = name.partition("-")
    if kind == "UnicodeDecodeError":
        return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "made up")
    found = getattr(errors, kind, None) or getattr(builtins, kind)
    made = found(int(number), "made up") if number else found("made up")
    assert isinstance(made, BaseException)
    return made


class FaultyFile:
    """A file that fails in one of its methods, or in none."""

    def __init__(self, path: str, where: str, name: str) -> None:
        self._path, self._where, self._name = path, where, name
        self.version = "1"

    def _fail(self, where: str) -> None:
        if where == self._where:
            raise make(self._name)

    @property
    def attributes(self) -> Attributes:
        """See `File.attributes`."""
        self._fail("getattr")
        return file_attributes(self._path, len(GOOD), 0)

    def open(self) -> Content:
        """See `File.open`."""
        self._fail("open")
        return _FaultyContent(lambda: self._fail("read"))

    def xattrs(self) -> Mapping[str, bytes]:
        """See `File.xattrs`."""
        self._fail("xattr")
        return {}


class _FaultyContent(BytesContent):
    def __init__(self, fail: Callable[[], None]) -> None:
        super().__init__(GOOD)
        self._fail_reading = fail

    def read_into(self, offset: int, into: memoryview) -> int:
        self._fail_reading()
        return super().read_into(offset, into)


class _FaultyEntries(dict[str, Node]):
    """Entries that can be looked up, but not listed."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def items(self) -> Iterable[tuple[str, Node]]:  # type: ignore[override]
        raise make(self._name)

    def __iter__(self) -> Iterator[str]:
        raise make(self._name)


class _Listed(Folder):
    def __init__(self, path: str, name: str) -> None:
        super().__init__(path, lambda: Weight(0, 0, 0), dict)
        self.__dict__["entries"] = _FaultyEntries(name)


def folder(path: str, entries: Mapping[str, Node]) -> Folder:
    """A folder that works."""
    return Folder(path, lambda: Weight(0, 0, 0), lambda: entries)


def main() -> None:
    """Serve until it is unmounted."""
    mountpoint, log = sys.argv[1], Path(sys.argv[2])
    logs.to_file(log, 0)
    names = [*OURS, *FOREIGN, *OF_SYSTEM]
    top: dict[str, Node] = {"good": FaultyFile("/good", "", "")}
    for where in ("getattr", "open", "read", "xattr"):
        files = {name: FaultyFile(f"/{where}/{name}", where, name) for name in names}
        top[where] = folder(f"/{where}", files)
    top["readdir"] = folder("/readdir", {name: _Listed(f"/readdir/{name}", name) for name in names})
    session = Session(
        Tree(folder("/", top)), Counter(), on_ready=lambda: print("ready", flush=True)
    )
    session.serve(mountpoint, {"ro": True, "fsname": "bffs:faulty", "subtype": "bffs"})
    logging.shutdown()


if __name__ == "__main__":
    main()
