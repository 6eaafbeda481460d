"""The composition root: build the layers, mount, say when the tree is usable, serve, and stop it
all in reverse.

`mount` becomes a daemon unless it stays in the foreground. All threads start after the fork.

In the driver, the main thread waits for signals while FUSE serves on a thread of its own: Python's
handlers run in the main thread only, and libfuse's loop would never give it back.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from bffs import company, daemon, logs, metrics, notify, traces
from bffs import mountpoint as mountpoints
from bffs.errors import MountError, UsageError
from bffs.private import own_scratch_folder, scratch_folder
from bffs.settings import MountOptions, Settings

if TYPE_CHECKING:
    from bffs.catalog import Catalog
    from bffs.fuse import Session
    from bffs.kernelahead import KernelReadahead
    from bffs.tree import Folder

log = logging.getLogger(__name__)

ListingProgress = Callable[[int, int, int], None]
ShowProgress = Callable[[], AbstractContextManager[ListingProgress | None]]

GC_THRESHOLDS = (50_000, 20, 50)
"""For gc.set_threshold: a catalog is 53,926 objects that stay, and to look through them again and
again while a folder is listed takes a fifth of the time."""

_ENDED = b"\0"
_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
_REFRESH = signal.SIGHUP
"""List the bucket anew."""


def mount(
    settings: Settings, options: MountOptions, show_progress: ShowProgress = nullcontext
) -> int:
    """Mount, and return the exit code: at once when the tree is usable, or after the unmount in the
    foreground.

    `show_progress` makes a context that yields the callback of a listing. Raises BffsError before
    the fork or in the foreground; a forked driver reports its own.
    """
    read_only = options.read_only or "ro" in options.fuse_options
    if read_only and "rw" in options.fuse_options:
        raise UsageError("-o rw: with --read-only there is nothing to write to")
    mountpoint = mountpoints.normalize(options.mountpoint)
    mountpoints.check(mountpoint, allow_other=options.allow_other)
    metrics.check(options.metrics)
    scratch = None if read_only else _scratch_folder(settings, mountpoint)

    from bffs import fuse  # noqa: F401 - raises MountError where FUSE is missing, better now than forked

    logs.to_terminal(options.verbosity)
    if options.foreground:
        if options.log_file is not None:
            logs.to_file(logs.made_private(options.log_file), options.verbosity)

        def ready() -> None:
            notify.tell("READY=1", f"STATUS=mounted at {mountpoint}")

        notify.tell(f"STATUS=mounting at {mountpoint}")
        _drive(settings, options, mountpoint, scratch, show_progress, ready)
        return 0

    log_file = logs.made_private(options.log_file)

    def drive(ready: Callable[[], None]) -> None:
        def leave_terminal() -> None:
            logs.to_file(log_file, options.verbosity)
            ready()

        _drive(settings, options, mountpoint, scratch, show_progress, leave_terminal)

    return daemon.run(drive)


def unmount(mountpoint: Path) -> None:
    """Unmount; see `mountpoint.unmount`."""
    mountpoints.unmount(mountpoints.normalize(mountpoint))


def _drive(
    settings: Settings,
    options: MountOptions,
    mountpoint: Path,
    scratch: Path | None,
    show_progress: ShowProgress,
    ready: Callable[[], None],
) -> None:
    """Be the driver: returns after the unmount. Raises BffsError."""
    from bffs import layout, refresh, views
    from bffs.blocks import BlockReader
    from bffs.cache import DiskCache
    from bffs.checking import Checker
    from bffs.fuse import Session, is_reader_killed
    from bffs.late import LateStore
    from bffs.readahead import Readahead
    from bffs.saving import Saving
    from bffs.shapes import Shapes
    from bffs.status import FOLDER, Sources, Status
    from bffs.tree import Tree
    from bffs.views import Choice

    _raise_file_limit()
    if scratch is not None:
        company.block_signal()
    gc.set_threshold(*GC_THRESHOLDS)
    with ExitStack() as stack:
        status: Status | None = None
        told = traces.told_on(signal.SIGUSR1, lambda: status and status.figures())
        stack.enter_context(told)
        store = LateStore(settings)
        stack.callback(store.close)
        catalog = refresh.obtain(settings, store, show_progress, anew=options.refresh, or_kept=True)
        cache = DiskCache(settings.cache_dir, settings.dataset, settings.cache_size)
        stack.callback(cache.close)
        blocks = BlockReader(
            store,
            cache,
            memory=settings.memory,
            connections=settings.max_connections,
            deadline=settings.deadline,
            abandoned=is_reader_killed,
        )
        stack.callback(blocks.close)
        stack.callback(store.stop)
        checker = Checker(cache)
        readahead = Readahead(
            blocks, memory=settings.memory, most=settings.readahead, checker=checker
        )
        shapes = Shapes(settings, blocks, cache)
        choice = Choice(shapes, settings.dataset.voxel, settings.shutu_overlap)
        errors: Counter[str] = Counter()

        def passing() -> dict[str, Any]:
            return session.passthrough_figures()

        status = Status(
            mountpoint,
            settings,
            Sources(
                blocks,
                store,
                cache,
                readahead,
                lambda: session.handles,
                errors,
                passing,
                lambda: refresher.catalog,
                scratch,
            ),
        )

        made: layout.Made = {}

        def build(catalog: Catalog) -> Folder:
            beside = {FOLDER: status.folder}
            return layout.build(catalog, settings.dataset, readahead, cache, choice, beside, made)

        def change(before: Catalog, after: Catalog) -> None:
            changed = refresh.compare(before, after)
            session.changed = True
            former, tree.root = tree.root, build(after)
            stacks = views.around(changed.paths, former)
            if saving is not None:
                saving.settle()
            blocks.retire(changed.gone, changed.new)
            session.revoke(mountpoint, changed.paths)
            session.invalidate([*changed.paths, *refresh.around(changed.paths), *stacks])
            log.warning("the bucket has changed: %d files", len(changed.paths))

        tree = Tree(build(catalog))
        signals = stack.enter_context(_Signals())
        stack.enter_context(mountpoints.driver_of(mountpoint))
        saving = None if scratch is None else stack.enter_context(Saving(tree, scratch))
        session = Session(
            tree if saving is None else saving.files,
            errors,
            on_ready=signals.end,
            writable=saving is not None,
            pass_through=options.passthrough,
        )
        if saving is not None:
            saving.start(session)
        refresher = refresh.Refresher(settings, store, catalog, change)
        if options.metrics is not None:
            status.metrics_port = stack.enter_context(
                metrics.served(options.metrics, status.counts)
            )
        blocks.start()
        threading.Thread(target=blocks.make_ready, name="bffs-memory", daemon=True).start()
        cache.start()
        checker.start()
        stack.callback(checker.close)

        failure: list[BaseException] = []

        def serve() -> None:
            try:
                session.serve(str(mountpoint), _fuse_options(settings, options, scratch is None))
            except BaseException as error:
                failure.append(error)
            finally:
                signals.end()

        serving = threading.Thread(target=serve, name="bffs-fuse", daemon=True)
        serving.start()
        stack.callback(serving.join)
        stack.callback(session.stop)
        stack.callback(blocks.abort)
        while signals.wait() == _REFRESH:
            pass
        if not session.is_ready:
            raise failure[0] if failure else MountError("stopped before the mount was usable")
        session.kernel_readahead = _kernel_readahead(mountpoint)
        if options.verbosity >= 0:
            _say_how(mountpoint, scratch, session)
        ready()
        refresher.start()
        stack.callback(refresher.close)
        if not settings.offline:
            threading.Thread(target=store.connect, name="bffs-connect", daemon=True).start()
        while signals.wait() == _REFRESH:
            if saving is not None:
                saving.look_again()
            refresher.now()
        notify.tell("STOPPING=1", f"STATUS=unmounting {mountpoint}")
        if failure:
            raise failure[0]


class _Signals:
    """Wakes the main thread for a signal to stop, or when `end` is called from another thread.

    Events won't do: a handler that sets one while the same thread waits for it can deadlock.
    """

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (*_STOP_SIGNALS, _REFRESH):
            signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)

    def end(self) -> None:
        """Wake the main thread."""
        os.write(self._writer, _ENDED)

    def wait(self) -> int:
        """Wait for `_REFRESH`, a signal that asks to stop, or `end` (0); which it was."""
        while True:
            said = os.read(self._reader, 1)[0]
            if said == _ENDED[0] or said == _REFRESH or said in _STOP_SIGNALS:
                return said


def _scratch_folder(settings: Settings, mountpoint: Path) -> Path:
    """The scratch folder, made if need be. Raises MountError."""
    instead = "choose another with --scratch DIR, or none with --read-only"
    try:
        folder = own_scratch_folder(settings)
    except OSError as error:
        where = scratch_folder(settings)
        raise MountError(
            f"{where}: can't keep what is saved: {error.strerror}; {instead}"
        ) from error
    if folder.is_relative_to(mountpoint) or mountpoint.is_relative_to(folder):
        raise MountError(f"{folder} and the mountpoint can't be one in the other; {instead}")
    return folder


def _fuse_options(settings: Settings, options: MountOptions, read_only: bool) -> dict[str, Any]:
    """libfuse's mount options; the user's own come last.

    The kernel judges by the modes where others may come in. Else it leaves that to the driver, who is the same user:
    so writing to the dataset is said to be impossible (EROFS), not forbidden.
    """
    chosen: dict[str, Any] = {
        "fsname": "bffs:" + settings.dataset.bucket.replace(",", "_"),
        "subtype": "bffs",
        "ro": read_only,
        "default_permissions": read_only or options.allow_other,
    }
    if options.allow_other:
        chosen["allow_other"] = True
    for option in options.fuse_options:
        for word in option.split(","):
            name, equals, value = word.partition("=")
            if name:
                chosen[name] = value if equals else True
    return chosen


def _say_how(mountpoint: Path, scratch: Path | None, session: Session) -> None:
    if scratch is not None:
        print(f"what is saved in {mountpoint} is kept in {scratch}", flush=True)
    if session.why_no_passthrough is None:
        print("what is cached whole is read by the kernel itself (passthrough)", flush=True)
    else:
        log.info("no passthrough: %s", session.why_no_passthrough)


def _raise_file_limit() -> None:
    """As many open files as allowed: two for each cached object in use, one a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _kernel_readahead(mountpoint: Path) -> KernelReadahead | None:
    """The mount's kernel readahead, raised, where this user may."""
    from bffs.kernelahead import KernelReadahead

    mounted = mountpoints.mount_at(mountpoint)
    if mounted is None:
        return None
    try:
        return KernelReadahead(mounted.readahead)
    except OSError as error:
        why = "kernel readahead stays at its default (%s): as root, echo %d > %s"
        log.info(why, error, mountpoints.READ_AHEAD_KB, mounted.readahead)
        return None
