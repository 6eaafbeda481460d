"""`stacks/<split>/<id>/`: the files of `stacks` as nodes of the tree.

::

    <id>.imagej.tif  <id>.ome.btf  <id>.v3draw
    <id>.ome.zarr/  .zgroup .zattrs 0/.zarray 0/<z>/<band>/0
    ome/<id>.companion.ome
    shutu/<id>-<n>.tif  <id>-StitchCoord.txt  <id>-.StitchCoord.txt

What is in such a folder depends on a header of the specimen (`shapes`), so that its first listing
costs one small request, and its name none. These files are views: they take no room, and neither
they nor their folders count in the size of what is above them.

Threads: any; what is made lazily may be made twice, with the same result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import NamedTuple

import xxhash

from bffs import stacks
from bffs.blocks import BlockReader
from bffs.catalog import Specimen, unusable
from bffs.content import Content, MappedContent
from bffs.errors import ObjectChanged
from bffs.pixels import Pixels
from bffs.readahead import SpecimenReadahead
from bffs.shapes import Shapes
from bffs.stacks import Stack, StackFile, Unfit, ZarrArray
from bffs.tree import Attributes, Folder, Node, Numbered, Weight, file_attributes
from bffs.unlisted import LINK

log = logging.getLogger(__name__)

ROOT = LINK[1:]

_COMPANION = "ome"
_SHUTU = "shutu"

_NOT_KNOWN = -1
"""Folders in a folder whose entries aren't known yet."""


class Choice(NamedTuple):
    """What all stacks of a mount are made with: how shapes are learnt, the size of a voxel in
    micrometres along z, y, x, and the rows that ShuTu's tiles share."""

    shapes: Shapes
    voxel: tuple[float, float, float] | None
    overlap: int


def around(paths: Iterable[str], root: Folder) -> list[str]:
    """What changes below `stacks` of the tree at `root` when these files do, as far as anybody can
    have seen it."""
    changed: dict[str, None] = {}
    for specimen in {path.rpartition("/")[0] for path in paths}:
        _, split, name = specimen.split("/")
        folder: Node | None = root
        place = ""
        for step in (ROOT, split, name):
            place += f"/{step}"
            changed[place] = None
            folder = folder.entries.get(step) if isinstance(folder, Folder) else None
        if isinstance(folder, Folder) and _is_known(folder.entries):
            changed.update(dict.fromkeys(_paths(folder, place)))
    return list(changed)


def _paths(folder: Folder, path: str) -> Iterator[str]:
    if isinstance(folder.entries, _Planes):
        yield from (f"{path}/{each}" for each in folder.entries.seen())
        return
    for name, node in folder.entries.items():
        yield f"{path}/{name}"
        if isinstance(node, Folder) and node.is_known:
            yield from _paths(node, f"{path}/{name}")


def _is_known(entries: Mapping[str, Node]) -> bool:
    return isinstance(entries, _Views) and "made" in vars(entries)


class _Views(Mapping[str, Node]):
    """Entries that a header tells of: it is read when they are listed, or one of `names`, which may be
    among them, is looked for.

    Where the slice with that header has been replaced, `tell` is told, and there are none until the
    bucket is listed anew; looking for one raises ObjectChanged.
    """

    def __init__(
        self,
        names: Collection[str],
        make: Callable[[], dict[str, Node]],
        tell: Callable[[ObjectChanged], None],
    ) -> None:
        self._names = names
        self._make = make
        self._tell = tell

    @cached_property
    def made(self) -> dict[str, Node]:
        """All of them. Raises BffsError."""
        return self._make()

    def __getitem__(self, name: str) -> Node:
        if name not in self._names:
            raise KeyError(name)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        try:
            return iter(sorted(self.made))
        except ObjectChanged as error:
            self._tell(error)
            return iter(())

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Planes(Numbered):
    """The folders of a Zarr array's planes, in which are those of bands, in which is a chunk each.

    They are hundreds of thousands, made when they are looked up and then forgotten, but for having
    been `seen`. `chunk` makes the file of plane z and band.
    """

    def __init__(
        self,
        array: ZarrArray,
        folder: Callable[[str, Callable[[], Mapping[str, Node]], int], Folder],
        chunk: Callable[[int, int], Node],
        metadata: Node,
    ) -> None:
        super().__init__(array.stack.depth, self._plane, {".zarray": metadata})
        self._bands = array.bands
        self._folder = folder
        self._chunk = chunk
        self._planes_seen = bytearray(array.stack.depth)
        self._bands_seen = bytearray(array.stack.depth * array.bands)

    def _plane(self, z: int) -> Folder:
        self._planes_seen[z] = 1
        return self._folder(
            f"{z}", lambda: Numbered(self._bands, partial(self._band, z)), self._bands
        )

    def _band(self, z: int, band: int) -> Folder:
        self._bands_seen[z * self._bands + band] = 1
        return self._folder(f"{z}/{band}", lambda: Numbered(1, lambda _: self._chunk(z, band)), 0)

    def seen(self) -> Iterator[str]:
        """Paths below the array of what anybody has looked up or listed."""
        yield from self._beside
        yield from (str(z) for z, seen in enumerate(self._planes_seen) if seen)
        at = -1
        while (at := self._bands_seen.find(1, at + 1)) >= 0:
            z, band = divmod(at, self._bands)
            yield f"{z}/{band}"
            yield f"{z}/{band}/0"


class StackFolder:
    """The folder of one specimen's stack. `follower` makes what follows the readers of its slices."""

    def __init__(
        self,
        specimen: Specimen,
        choice: Choice,
        blocks: BlockReader,
        follower: Callable[[], SpecimenReadahead],
    ) -> None:
        self._specimen = specimen
        self._choice = choice
        self._blocks = blocks
        self._follower = follower
        self._mtime = max(obj.mtime for obj in specimen.objects())
        self._path = f"/{ROOT}/{specimen.split}/{specimen.id}"
        name = specimen.id
        wholes = [name + ending for ending in (*stacks.WHOLE, stacks.ZARR)]
        entries = _Views([*wholes, _COMPANION, _SHUTU], self._entries, self._tell)
        self.folder = self._folder(self._path, lambda: entries, _NOT_KNOWN)
        self._has_told = False

    def _folder(
        self, path: str, entries: Callable[[], Mapping[str, Node]], folders: int = 0
    ) -> Folder:
        return Folder(path, lambda: Weight(0, self._mtime, folders), entries)

    def _entries(self) -> dict[str, Node]:
        shape = self._choice.shapes.learn(self._specimen)
        stack, obstacle = stacks.views(
            self._specimen, shape.layout, shape.obstacle, self._choice.voxel
        )
        if stack is None:
            return {}
        entries: dict[str, Node] = {}
        name = self._specimen.id
        with suppress(Unfit):
            entries[_COMPANION] = self._companion(stack)
        if not obstacle:
            for ending, make in stacks.WHOLE.items():
                with suppress(Unfit):
                    entries[name + ending] = self._file(
                        f"{self._path}/{name}{ending}", partial(make, stack)
                    )
            entries[name + stacks.ZARR] = self._zarr(stack)
            with suppress(Unfit):
                entries[_SHUTU] = self._shutu(stack)
        return {name: node for name, node in entries.items() if unusable(name) is None}

    def _tell(self, error: ObjectChanged) -> None:
        if not self._has_told:
            self._has_told = True
            log.warning(
                "%s; %s shows no files until `bffs refresh` lists the bucket anew",
                error,
                self._path[1:],
            )

    # -- what is in it --------------------------------------------------------------------------------------

    def _file(self, path: str, make: Callable[[], StackFile]) -> _StackNode:
        return _StackNode(self, path, make)

    def _companion(self, stack: Stack) -> Folder:
        path = f"{self._path}/{_COMPANION}"
        name = self._specimen.id + stacks.COMPANION
        file = self._file(f"{path}/{name}", lambda: stacks.companion(self._specimen, stack))
        return self._folder(path, lambda: {name: file})

    def _shutu(self, stack: Stack) -> Folder:
        path = f"{self._path}/{_SHUTU}"
        name = stack.id
        tiles = stacks.shutu_tiles(stack, self._choice.overlap)
        stacks.shutu_tile(stack, tiles[0])  # raises Unfit for all of them

        def entries() -> dict[str, Node]:
            files: dict[str, Callable[[], StackFile]] = {
                f"{name}-{number}.tif": partial(stacks.shutu_tile, stack, tile)
                for number, tile in enumerate(tiles, 1)
            }
            for ending in ("-StitchCoord.txt", "-.StitchCoord.txt"):
                files[name + ending] = lambda: StackFile(stacks.stitch_coordinates(stack, tiles))
            return {each: self._file(f"{path}/{each}", make) for each, make in files.items()}

        return self._folder(path, entries)

    def _zarr(self, stack: Stack) -> Folder:
        path = f"{self._path}/{stack.id}{stacks.ZARR}"
        array = stacks.zarr_array(stack)
        files: dict[str, bytes] = {
            ".zgroup": stacks.zarr_group(),
            ".zattrs": stacks.zarr_attributes(stack),
        }
        entries: dict[str, Node] = {
            name: self._file(f"{path}/{name}", partial(StackFile, data))
            for name, data in files.items()
        }
        entries["0"] = self._zarr_array(f"{path}/0", array)
        return self._folder(path, lambda: entries, 1)

    def _zarr_array(self, path: str, array: ZarrArray) -> Folder:
        def folder(name: str, entries: Callable[[], Mapping[str, Node]], folders: int) -> Folder:
            return self._folder(f"{path}/{name}", entries, folders)

        def chunk(z: int, band: int) -> Node:
            return self._file(f"{path}/{z}/{band}/0", lambda: array.chunk(z, band))

        metadata = self._file(f"{path}/.zarray", lambda: StackFile(array.metadata()))
        planes = _Planes(array, folder, chunk, metadata)
        return self._folder(path, lambda: planes, array.stack.depth)

    # -- what its files share ---------------------------------------------------------------------------------

    @cached_property
    def version(self) -> str:
        """That of all files: the versions of all slices."""
        return xxhash.xxh3_64_hexdigest(
            "\n".join(obj.etag for obj in self._specimen.slices).encode()
        )

    @property
    def mtime(self) -> int:
        """Seconds since 1970: that of the latest slice."""
        return self._mtime

    def slice_content(self, index: int, stop: int, entered: bool) -> Content:
        """The pixels of a slice; see `Pixels.content`."""
        return self._pixels.content(index, stop, entered)

    @cached_property
    def _pixels(self) -> Pixels:
        shape = self._choice.shapes.learn(self._specimen)
        assert shape.layout is not None
        follower = self._follower()
        follower.preface = shape.header

        def follow(index: int, limit: int, entered: bool) -> Content:
            return follower.content(index, limit, entered=entered)

        return Pixels(self._blocks, self._specimen.slices, shape.layout, follow)


class _StackNode:
    """A synthesized file; what it is made of is computed anew whenever it is opened."""

    __slots__ = ("_folder", "_make", "_path", "_size")

    def __init__(self, folder: StackFolder, path: str, make: Callable[[], StackFile]) -> None:
        self._folder = folder
        self._path = path
        self._make = make
        self._size = make().size

    @property
    def attributes(self) -> Attributes:
        # One block and not none: tar takes files without any for nothing but holes.
        return file_attributes(self._path, self._size, self._folder.mtime)._replace(blocks=1)

    @property
    def version(self) -> str:
        return self._folder.version

    def open(self) -> Content:
        head, slices, span, data_at, fill, by_plane = self._make()
        find = self._folder.slice_content
        return MappedContent(head, data_at, slices, span, fill, find, by_plane=by_plane)

    def xattrs(self) -> dict[str, bytes]:
        return {}
