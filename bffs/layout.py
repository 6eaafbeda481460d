"""The layout: specimens as folders, with their slices, tracings and manifests.

::

    .bffs/status.json
    specimens_manifest.json
    <split>/<id>/<slice>.tif ... <id>.swc manifest.json
    stacks/<split>/<id>/                                    see `views` and `unlisted`

A folder's size counts the manifests below it, so the first stat of one makes them (1 ms a
specimen).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType

from bffs import manifest, views
from bffs.cache import DiskCache
from bffs.catalog import Catalog, Specimen, base_name
from bffs.content import BytesContent, Content, ObjectContent
from bffs.readahead import Readahead, SpecimenReadahead
from bffs.settings import Dataset
from bffs.store import ObjectInfo
from bffs.tiff import SliceLayout
from bffs.tree import Attributes, Folder, Node, Weight, file_attributes
from bffs.unlisted import LINK
from bffs.views import Choice, StackFolder

WHOLE_MANIFEST = "specimens_manifest.json"
MANIFEST = "manifest.json"


def build(
    catalog: Catalog,
    dataset: Dataset,
    readahead: Readahead,
    cache: DiskCache,
    choice: Choice,
    beside: Mapping[str, Node] = MappingProxyType({}),
    former: Made | None = None,
) -> Folder:
    """The root folder of a mount; `choice` is for its stacks, `beside` what else it holds.

    `former` is what was made for the catalog before, and afterwards what was made for this one. A
    specimen that is as it was keeps its folders, and with them what they know of the names that the
    kernel has seen: before Linux 6.16 it would not ask for these again when they change one day.
    """
    listed = int(catalog.listed_at)
    entries: dict[str, Node] = dict(beside)
    stacks: dict[str, Node] = {}
    former = {} if former is None else former
    made: Made = {}
    for _, split in dataset.splits:
        for specimen in catalog.of_split(split):
            folder = former.get((split, specimen.id))
            if folder is None or folder.specimen != specimen:
                folder = _SpecimenFolder(specimen, dataset, readahead, cache, choice)
            made[split, specimen.id] = folder
        specimens = [folder for (of, _), folder in made.items() if of == split]
        entries[split] = _folder(f"/{split}", {s.id: s.folder for s in specimens}, listed)
        path = f"/{views.ROOT}/{split}"
        stacks[split] = _folder(path, {s.id: s.stack_folder for s in specimens}, listed)
    former.clear()
    former.update(made)
    entries[views.ROOT] = _folder(f"/{views.ROOT}", stacks, listed)
    entries[WHOLE_MANIFEST] = _Synthesized(
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
            sum(isinstance(node, Folder) for name, node in entries.items() if path + name != LINK),
        )

    return Folder(path, weigh, lambda: entries)


class _Synthesized:
    """A file that bffs makes, anew for each handle: the manifests of all keys are 15 MB, better not kept."""

    def __init__(self, path: str, mtime: int, make: Callable[[], bytes]) -> None:
        self._path = path
        self._mtime = mtime
        self._make = make

    @cached_property
    def attributes(self) -> Attributes:
        return file_attributes(self._path, len(self._make()), self._mtime)

    @property
    def version(self) -> str:
        return f"{self._mtime} {self.attributes.size}"

    def open(self) -> Content:
        return BytesContent(self._make())

    def xattrs(self) -> dict[str, bytes]:
        return {}


class _SpecimenFolder:
    """The folder of one specimen in one split."""

    def __init__(
        self,
        specimen: Specimen,
        dataset: Dataset,
        readahead: Readahead,
        cache: DiskCache,
        choice: Choice,
    ) -> None:
        self.id = specimen.id
        self.path = f"/{specimen.split}/{specimen.id}"
        self.cache = cache
        self.blocks = readahead.blocks
        self.checker = readahead.checker
        self.specimen = specimen
        self._readahead = readahead
        self._shapes = choice.shapes
        self._mtime = max(obj.mtime for obj in specimen.objects())
        self._manifest = _Synthesized(
            f"{self.path}/{MANIFEST}",
            self._mtime,
            lambda: manifest.encode(manifest.of_specimen(specimen, dataset, self._slice_layout)),
        )
        self.folder = Folder(self.path, self._weigh, self._entries)
        self.stack_folder = StackFolder(
            specimen, choice, readahead.blocks, lambda: self.follower
        ).folder

    @cached_property
    def follower(self) -> SpecimenReadahead:
        """What follows the readers of the slices, made when the first is opened."""
        return self._readahead.specimen(self.path, self.specimen.slices)

    @cached_property
    def _slice_layout(self) -> SliceLayout | None:
        """The layout of the first slice if it is known already; kept, as a manifest's size may not
        change."""
        shape = self._shapes.known(self.specimen)
        return None if shape is None else shape.layout

    def _weigh(self) -> Weight:
        objects = sum(obj.size for obj in self.specimen.objects())
        return Weight(objects + self._manifest.attributes.size, self._mtime, 0)

    def _entries(self) -> dict[str, Node]:
        entries: dict[str, Node] = {MANIFEST: self._manifest}
        for index, obj in enumerate(self.specimen.slices):
            entries[base_name(obj.key)] = _SliceFile(self, obj, index)
        swc = [self.specimen.swc] if self.specimen.swc is not None else []
        for obj in (*swc, *self.specimen.others):
            entries[base_name(obj.key)] = _ObjectFile(self, obj)
        return entries


class _ObjectFile:
    """An object as a file."""

    __slots__ = ("_folder", "_obj")

    def __init__(self, folder: _SpecimenFolder, obj: ObjectInfo) -> None:
        self._folder = folder
        self._obj = obj

    @property
    def attributes(self) -> Attributes:
        obj = self._obj
        return file_attributes(f"{self._folder.path}/{base_name(obj.key)}", obj.size, obj.mtime)

    @property
    def version(self) -> str:
        return self._obj.etag

    def open(self) -> Content:
        return ObjectContent(self._folder.blocks, self._obj, self._folder.checker)

    def xattrs(self) -> dict[str, bytes]:
        return {
            "user.bffs.key": self._obj.key.encode(),
            "user.bffs.etag": self._obj.etag.encode(),
            "user.bffs.cached": str(self._folder.cache.open(self._obj).bytes_present()).encode(),
        }


class _SliceFile(_ObjectFile):
    """A slice as a file, whose readers are followed."""

    __slots__ = ("_index",)

    def __init__(self, folder: _SpecimenFolder, obj: ObjectInfo, index: int) -> None:
        super().__init__(folder, obj)
        self._index = index

    def open(self) -> Content:
        return self._folder.follower.content(self._index)


Made = dict[tuple[str, str], _SpecimenFolder]
"""Folders of specimens by split and id; see `build`."""
