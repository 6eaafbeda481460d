"""What the kernel reads ahead in a mount: as much as suits each kind of file.

It reads as far as two windows past what a program reads. A slice ends there; in a TIFF of a whole stack comes the next
plane, which nobody may want to see, so that the window of such a file is smaller.

The window is one knob for all files of a mount, and a file takes it over when it has been opened: after the driver's
answer. So it is turned before each answer to what suits that file. Of two that are opened at the same moment one may
get the other's window, at the cost of a little time or a MiB.

Threads: any; no locks.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bffs.content import Content, MappedContent
from bffs.mountpoint import PLANE_READ_AHEAD_KB, READ_AHEAD_KB


class KernelReadahead:
    """The readahead of one mount, which is turned at its `knob`. Raises OSError where this user may not."""

    def __init__(self, knob: Path) -> None:
        self._knob = knob
        self._kib = 0
        self._turn(READ_AHEAD_KB)

    def suit(self, content: Content) -> None:
        """A file of that content is about to be opened."""
        by_plane = isinstance(content, MappedContent) and content.by_plane
        kib = PLANE_READ_AHEAD_KB if by_plane else READ_AHEAD_KB
        if kib != self._kib:
            with suppress(OSError):
                self._turn(kib)

    def _turn(self, kib: int) -> None:
        self._knob.write_text(str(kib))
        self._kib = kib
