"""The layout: specimens as folders, with their slices, tracings and manifests.

::

    specimens_manifest.json
    <split>/<id>/<slice>.tif ... <id>.swc manifest.json

A folder's size counts the manifests below it, so the first stat of one makes them (1 ms a
specimen).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, partial

from bffs import manifest
from bffs.cache import DiskCache
from bffs.catalog import Catalog, Specimen, base_name
from bffs.content import BytesContent, Content, LocalContent, ObjectContent
from bffs.errors import BffsError
from bffs.readahead import Readahead, SpecimenReadahead
from bffs.settings import Dataset
from bffs.store import ObjectInfo
from bffs.tiff import SliceLayout, slice_layout
from bffs.tree import File, Folder, Node, Weight, file_attributes

WHOLE_MANIFEST = "specimens_manifest.json"
MANIFEST = "manifest.json"


def build(catalog: Catalog, dataset: Dataset, readahead: Readahead, cache: DiskCache) -> Folder:
    """The root folder of a mount."""
    listed = int(catalog.listed_at)
    entries: dict[str, Node] = {}
    for _, split in dataset.splits:
        folders = {
            specimen.id: _SpecimenFolder(specimen, dataset, readahead, cache).folder
            for specimen in catalog.of_split(split)
        }
        entries[split] = _folder(f"/{split}", folders, listed)
    entries[WHOLE_MANIFEST] = _synthesized(
        f"/{WHOLE_MANIFEST}", listed, lambda: manifest.encode(manifest.whole_dataset(catalog))
    )
    return _folder("/", entries, listed)


def _folder(path: str, entries: Mapping[str, Node], otherwise: int) -> Folder:
    """A folder of these entries; `otherwise` is its time if it has none."""

    def weigh() -> Weight:
        attributes = [node.attributes for node in entries.values()]
        return Weight(
            sum(each.size for each in attributes),
            max((each.mtime for each in attributes), default=otherwise),
            sum(isinstance(node, Folder) for node in entries.values()),
        )

    return Folder(path, weigh, lambda: entries)


def _synthesized(path: str, mtime: int, make: Callable[[], bytes]) -> File:
    """A file that bffs makes, anew for each handle: 53,926 keys make 15 MB of manifests, better not
    kept."""
    return File(
        lambda: file_attributes(path, len(make()), mtime),
        lambda: BytesContent(make()),
    )


class _SpecimenFolder:
    """The folder of one specimen in one split."""

    def __init__(
        self, specimen: Specimen, dataset: Dataset, readahead: Readahead, cache: DiskCache
    ) -> None:
        self._specimen = specimen
        self._readahead = readahead
        self._cache = cache
        self._path = f"/{specimen.split}/{specimen.id}"
        self._mtime = max(obj.mtime for obj in specimen.objects())
        self._manifest = _synthesized(
            f"{self._path}/{MANIFEST}",
            self._mtime,
            lambda: manifest.encode(manifest.of_specimen(specimen, dataset, self._slice_layout)),
        )
        self.folder = Folder(self._path, self._weigh, self._entries)

    def _weigh(self) -> Weight:
        objects = sum(obj.size for obj in self._specimen.objects())
        return Weight(objects + self._manifest.attributes.size, self._mtime, 0)

    @cached_property
    def _slice_layout(self) -> SliceLayout | None:
        """The layout of the first slice if its header is here already; kept, as a manifest's size
        may not change."""
        first = next(iter(self._specimen.slices), None)
        if first is None or not first.size:
            return None
        cached = self._cache.open(first)
        with suppress(BffsError):
            return slice_layout(LocalContent(cached)) if cached.has(0) else None
        return None

    @cached_property
    def _follower(self) -> SpecimenReadahead:
        return self._readahead.specimen(self._path, self._specimen.slices)

    def _entries(self) -> dict[str, Node]:
        entries: dict[str, Node] = {MANIFEST: self._manifest}
        for index, obj in enumerate(self._specimen.slices):
            self._add(entries, obj, partial(self._open_slice, index))
        swc = [self._specimen.swc] if self._specimen.swc is not None else []
        for obj in (*swc, *self._specimen.others):
            self._add(entries, obj, partial(ObjectContent, self._readahead.blocks, obj))
        return entries

    def _open_slice(self, index: int) -> Content:
        return self._follower.content(index)

    def _add(self, entries: dict[str, Node], obj: ObjectInfo, open: Callable[[], Content]) -> None:
        name = base_name(obj.key)
        path = f"{self._path}/{name}"
        entries[name] = File(
            partial(file_attributes, path, obj.size, obj.mtime), open, partial(self._xattrs, obj)
        )

    def _xattrs(self, obj: ObjectInfo) -> dict[str, bytes]:
        return {
            "user.bffs.key": obj.key.encode(),
            "user.bffs.etag": obj.etag.encode(),
            "user.bffs.cached": str(self._cache.open(obj).bytes_present()).encode(),
        }
