"""The catalog: a listing of the bucket turned into specimens.

Listing costs one request for the root, one for each further folder that holds a split, and then one
a specimen (or more, a thousand keys a page), several at a time. Everything after that - paths,
sizes, manifests - is answered from the catalog without a request.

Keys are untrusted. A key becomes a file only if it is `<split folder><id>/<name>` with an id and a
name that a file system can hold; everything else is left out and counted under its reason, and
never turned into another path. Nor may there be any number of them: beyond limits that no dataset
of stacks comes near, keys are counted and forgotten, and at last no longer asked for.

A `Catalog` is immutable and may be read from any thread.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from bffs.errors import NoSuchSpecimen
from bffs.settings import Dataset
from bffs.store import Listing, ObjectInfo, ObjectStore
from bffs.units import natural_key

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

MAX_NAME = 255
"""Bytes in a file name, as Linux limits it (NAME_MAX)."""

MAX_FILES = 100_000
"""Files that are shown in one folder."""

MAX_OBJECTS = 500_000
"""Files that are shown in all, ten times those of the largest dataset known: about 500 MB."""

MAX_FOLDERS = 20_000

MAX_KEYS = 1_000_000
MAX_PAGES = 20_000
"""Keys, and pages, after which a folder is listed no further."""

SYNTHESIZED = frozenset({"manifest.json"})
"""Names inside a specimen's folder that bffs makes itself; an object of that name is left out."""

_SLICE = re.compile(r"\.tiff?$", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Specimen:
    """One neuron in one split: its slices in numeric order, its tracing, and whatever else its
    folder holds."""

    id: str
    split: str
    prefix: str
    slices: tuple[ObjectInfo, ...]
    swc: ObjectInfo | None
    others: tuple[ObjectInfo, ...]

    @property
    def slice_bytes(self) -> int:
        """Bytes of all slices, as the published manifest counts them (without the SWC)."""
        return sum(obj.size for obj in self.slices)

    def objects(self) -> Iterable[ObjectInfo]:
        """Every object of the folder."""
        yield from self.slices
        if self.swc is not None:
            yield self.swc
        yield from self.others


@dataclass(frozen=True, slots=True)
class Catalog:
    """All specimens, in listing order within each split, and how many keys were left out for which
    reason."""

    specimens: tuple[Specimen, ...]
    left_out: Mapping[str, int]
    listed_at: float

    @property
    def splits(self) -> tuple[str, ...]:
        """The split names, in the order in which they were listed."""
        return tuple(dict.fromkeys(specimen.split for specimen in self.specimens))

    def of_split(self, split: str) -> tuple[Specimen, ...]:
        """The specimens of one split."""
        return tuple(specimen for specimen in self.specimens if specimen.split == split)

    def find(self, specimen_id: str) -> tuple[Specimen, ...]:
        """The specimen of that id in each split that has it; `<split>/<id>` names just one.

        Raises NoSuchSpecimen.
        """
        split, _, bare = specimen_id.strip("/").rpartition("/")
        found = tuple(s for s in self.specimens if s.id == bare and split in ("", s.split))
        if not found:
            raise NoSuchSpecimen(f"no specimen {specimen_id} in this dataset; `bffs ls` shows all")
        return found


def base_name(key: str) -> str:
    """The last segment of a key: the file's name."""
    return key.rpartition("/")[2]


def list_catalog(
    store: ObjectStore,
    dataset: Dataset,
    *,
    connections: int = 16,
    progress: Callable[[int, int, int], None] | None = None,
) -> Catalog:
    """List the whole bucket, `connections` requests at a time.

    `progress(folders_done, folders, keys)` is called from this thread after each folder. Raises
    StoreError.
    """
    left_out: Counter[str] = Counter()
    places = _specimen_folders(store, dataset, left_out)
    specimens: list[Specimen] = []
    done = keys = shown = 0
    with closing(
        _in_parallel(lambda place: _list_folder(store, *place), places, connections)
    ) as found:
        for specimen, reasons in found:
            done += 1
            size = sum(1 for _ in specimen.objects())
            keys += size + sum(reasons.values())
            left_out.update(reasons)
            if shown + size > MAX_OBJECTS:
                left_out[f"beyond {MAX_OBJECTS} files"] += size
            elif size:
                shown += size
                specimens.append(specimen)
            if progress is not None:
                progress(done, len(places), keys)
    return Catalog(tuple(specimens), MappingProxyType(dict(left_out)), time.time())


def build_specimen(
    split: str, prefix: str, objects: Iterable[ObjectInfo], left_out: Counter[str]
) -> Specimen:
    """Sort the objects below `prefix` into a specimen; count in `left_out` what can't be shown."""
    specimen_id = base_name(prefix.removesuffix("/"))
    slices: list[ObjectInfo] = []
    swc: ObjectInfo | None = None
    others: list[ObjectInfo] = []
    seen: set[str] = set()
    for obj in objects:
        name = obj.key.removeprefix(prefix)
        if len(slices) + len(others) >= MAX_FILES:
            left_out[f"beyond {MAX_FILES} files in a folder"] += 1
        elif not name:
            left_out["folder marker"] += 1
        elif "/" in name:
            left_out["folder marker" if name.endswith("/") else "below a specimen's folder"] += 1
        elif (reason := unusable(name)) is not None:
            left_out[reason] += 1
        elif name in SYNTHESIZED:
            left_out["has the name of a file that bffs makes"] += 1
        elif name in seen:
            left_out["listed twice"] += 1
        elif _SLICE.search(name):
            slices.append(obj)
        elif name == f"{specimen_id}.swc":
            swc = obj
        else:
            others.append(obj)
        seen.add(name)
    if swc is None:
        swc = next((obj for obj in others if obj.key.endswith(".swc")), None)
        others = [obj for obj in others if obj is not swc]
    slices.sort(key=lambda obj: natural_key(base_name(obj.key)))
    return Specimen(specimen_id, split, prefix, tuple(slices), swc, tuple(others))


def unusable(name: str) -> str | None:
    """Why `name` can't be a file's name, or None if it can."""
    if name in ("", ".", ".."):
        return "empty or dotted name"
    if _CONTROL.search(name):
        return "control character in a name"
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return "invalid UTF-8"
    return "name too long" if length > MAX_NAME else None


def _specimen_folders(
    store: ObjectStore, dataset: Dataset, left_out: Counter[str]
) -> list[tuple[str, str]]:
    """(split, prefix) of each specimen's folder, in listing order, split by split."""
    roots = {folder for folder, _ in dataset.splits if folder}
    places: list[tuple[str, str]] = []
    for folder, split in dataset.splits:
        for page in _pages(store, folder, left_out, folders=True):
            for obj in page.objects:
                left_out["folder marker" if obj.key.endswith("/") else "outside any specimen"] += 1
            for prefix in page.folders:
                if prefix in roots:
                    continue
                reason = unusable(prefix.removeprefix(folder).removesuffix("/"))
                if len(places) >= MAX_FOLDERS:
                    left_out[f"beyond {MAX_FOLDERS} folders"] += 1
                elif reason is not None:
                    left_out[reason] += 1
                else:
                    places.append((split, prefix))
    order = {split: number for number, (_, split) in enumerate(sorted(dataset.splits))}
    return sorted(places, key=lambda place: order[place[0]])


def _in_parallel(
    call: Callable[[T], R], items: Sequence[T], threads: int
) -> Generator[R, None, None]:
    """What `call` makes of each item, in their order, made by daemon threads.

    Those of an executor would keep an interrupted program alive until the last answer or time-out.
    """
    todo: queue.SimpleQueue[tuple[T, Future[R]]] = queue.SimpleQueue()
    futures: deque[Future[R]] = deque()
    for item in items:
        futures.append(Future())
        todo.put((item, futures[-1]))

    def work() -> None:
        with suppress(queue.Empty):
            while True:
                item, future = todo.get_nowait()
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(call(item))
                    except BaseException as error:
                        future.set_exception(error)

    for number in range(min(threads, len(items))):
        threading.Thread(target=work, name=f"bffs-list-{number}", daemon=True).start()
    try:
        while futures:
            yield futures[0].result()
            futures.popleft()  # and what it holds
    finally:
        for future in futures:
            future.cancel()


def _list_folder(store: ObjectStore, split: str, prefix: str) -> tuple[Specimen, Counter[str]]:
    left_out: Counter[str] = Counter()
    objects = (obj for page in _pages(store, prefix, left_out) for obj in page.objects)
    return build_specimen(split, prefix, objects, left_out), left_out


def _pages(
    store: ObjectStore, prefix: str, left_out: Counter[str], *, folders: bool = False
) -> Iterator[Listing]:
    """The pages of a folder, as many as anybody needs."""
    keys = 0
    for number, page in enumerate(store.list(prefix, folders=folders)):
        if keys >= MAX_KEYS or number >= MAX_PAGES:
            left_out["folder that was not listed to its end"] += 1
            log.warning("%r holds more than %d keys; the rest is not listed", prefix, keys)
            return
        keys += len(page.objects) + len(page.folders)
        yield page
