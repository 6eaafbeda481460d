"""A plugin of coverage: counts what runs in the threads of libfuse, too.

Python's tracing begins in threads that Python starts. Those of libfuse enter it from C; `bffs.fuse`
asks once in each of them for a thread state to keep, and there this lends a hand.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any


def coverage_init(registry: Any, options: Any) -> None:
    """Called by coverage in each process that it measures."""
    ensure = ctypes.pythonapi.PyGILState_Ensure

    def ensure_and_trace() -> int:
        state: int = ensure()
        sys.settrace(threading.gettrace())
        return state

    ctypes.pythonapi.PyGILState_Ensure = ensure_and_trace  # type: ignore[attr-defined]
