"""Where each thread is, told to the log when a signal asks for it.

Not by faulthandler, which looks at the frames of threads that go on meanwhile and kills the process now and then
(https://github.com/python/cpython/issues/116008; here within 400 signals while four programs read). It has its part
where the process dies anyway: see `logs`.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

log = logging.getLogger(__name__)


@contextmanager
def told_on(number: int, figures: Callable[[], object]) -> Iterator[None]:
    """While this lasts, the signal `number` has where each thread is, and what `figures` returns, written to the log.

    By a thread of its own, so that it is said what an unmounting waits for, too. To be entered by the main thread;
    afterwards the signal is ignored.
    """
    # A signal's handler may put to such a queue, whatever it interrupts.
    asked: SimpleQueue[bool] = SimpleQueue()

    def answer() -> None:
        while asked.get():
            log.warning("where each thread is (its most recent call last):\n%s", where())
            try:
                log.warning("the state: %s", json.dumps(figures()))
            except Exception:  # of something that is closed already, perhaps
                log.exception("the state can't be told")

    signal.signal(number, lambda *_: asked.put(True))
    threading.Thread(target=answer, name="bffs-traces", daemon=True).start()
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_IGN)
        asked.put(False)


def where() -> str:
    """Where each thread of this process is, as a traceback tells it, once for all that are at one place; safe while
    they go on."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    places: dict[str, list[str]] = {}
    for ident, frame in sys._current_frames().items():
        names_there = places.setdefault("".join(traceback.format_stack(frame)), [])
        names_there.append(names.get(ident, "libfuse"))
    return "".join(f"{', '.join(sorted(there))}:\n{place}" for place, there in places.items())
