"""The dataset in Python, without a mount: specimens, slices, manifests, and arrays that are read when
they are looked at. The way in is `bffs.open_dataset`::

    with bffs.open_dataset() as dataset:
        specimen = dataset["651806289"]
        plane = specimen.slices[100][:]                  # numpy: a slice
        corner = specimen.slices[100][:256, :256]        # a region of one
        volume = specimen[100:150, 512:1024, 300:812]    # and through many
        faint = specimen.dask()[:, 512:1024].min(axis=0).compute()

What is read comes through the same blocks and the same cache as a mount's. A region costs the blocks
of 128 KiB that it touches; only who reads slices whole has the next ones fetched ahead. Slices whose
pixels don't lie in their objects as they are (compressed ones) are fetched whole and decoded.

Threads: all of it may be used from any number of threads of one process. Another process, also one
that was forked, opens the dataset anew.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

from bffs import catalog, manifest, regions, tiff
from bffs.content import Content
from bffs.engine import Engine
from bffs.errors import BffsError, BrokenPromise, UsageError
from bffs.manifest import Manifest
from bffs.options import OPTIONS
from bffs.pixels import Pixels
from bffs.precedence import resolve
from bffs.profiles import config_file, did_you_mean
from bffs.regions import Band
from bffs.settings import Settings
from bffs.shapes import Shape
from bffs.store import ObjectInfo
from bffs.tiff import Runs, SliceLayout

if TYPE_CHECKING:
    import dask.array
    import numpy as np

    Array = np.ndarray[Any, Any]


def open_dataset(
    dataset: str = "", *, anew: bool = False, **options: str | float | bool | Path
) -> Dataset:
    """Open a dataset for reading, best in a `with` statement: at its end all threads end.

    `dataset` is a profile, as for `--dataset`. The `options` are those of the command line, with
    underscores: `endpoint_url`, `bucket`, `cache_dir`, `cache_size="20G"`, `memory`, `offline=True`
    and so on. As there, what is not given comes from the environment, the configuration file or the
    profile. `anew` lists the bucket in any case. Raises UsageError, StoreError.
    """
    known = {option.key for option in OPTIONS}
    for key in options:
        if key not in known:
            raise UsageError(f"open_dataset has no {key!r}; {did_you_mean(key, sorted(known))}")
    texts = {key: "yes" if value is True else str(value) for key, value in options.items()}
    texts = {key: text for key, text in texts.items() if options[key] is not False}
    if dataset:
        texts["dataset"] = dataset
    return Dataset(resolve(texts, os.environ, config_file()), anew=anew)


class Dataset(Sequence["Specimen"]):
    """An open dataset: a sequence of its specimens, which are also found by their ids."""

    def __init__(self, settings: Settings, *, anew: bool = False) -> None:
        self.settings = settings
        """What was chosen."""

        self._engine = Engine(settings, anew=anew)
        self._specimens = tuple(
            Specimen(self._engine, each) for each in self._engine.catalog.specimens
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Fail the reads that still wait, and end all threads. What was read stays valid."""
        self._engine.close()

    def __len__(self) -> int:
        return len(self._specimens)

    @overload
    def __getitem__(self, which: int | str) -> Specimen: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[Specimen, ...]: ...
    def __getitem__(self, which: int | str | slice) -> Specimen | tuple[Specimen, ...]:
        """A specimen by its position, or by its id: the one of the test set where both have it, as in
        the published manifest; `"train/<id>"` names the other. Raises NoSuchSpecimen, IndexError."""
        if not isinstance(which, str):
            return self._specimens[which]
        listed = self._engine.catalog
        return self._specimens[listed.specimens.index(listed.find(which)[-1])]

    def manifest(self) -> Manifest:
        """The manifest of the whole dataset, as its publishers made it."""
        return manifest.whole_dataset(self._engine.catalog)


class Specimen:
    """One neuron in one split: a lazy array (z, y, x), indexed as numpy's are, and what belongs to it."""

    ndim = 3

    def __init__(self, engine: Engine, listed: catalog.Specimen) -> None:
        self._engine = engine
        self.listed = listed
        """What the listing says: the objects of its folder, with keys, ETags, sizes and times."""

    def __repr__(self) -> str:
        return f"<Specimen {self.split}/{self.id}: {len(self)} slices>"

    @property
    def id(self) -> str:
        """Its name in the dataset."""
        return self.listed.id

    @property
    def split(self) -> str:
        """`train` or `test`, unless the profile knows others."""
        return self.listed.split

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """The slices, in the order of the stack."""
        return tuple(Slice(self, index) for index in range(len(self)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns: learnt from the header of the first slice, and kept.

        Raises BffsError where that can't be read, or is no greyscale image.
        """
        layout = self._layout
        return len(self), layout.height, layout.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the pixels. Raises BffsError; see `shape`."""
        import numpy as np

        return np.dtype(self._layout.dtype).newbyteorder(
            "<" if self._layout.byte_order == "<" else ">"
        )

    @property
    def voxel(self) -> tuple[float, float, float] | None:
        """Micrometres from one voxel to the next along z, y, x, if they are known."""
        return self._engine.settings.dataset.voxel

    def manifest(self) -> Manifest:
        """What `manifest.json` in a mount has. Raises BffsError; see `shape`."""
        return manifest.of_specimen(self.listed, self._engine.settings.dataset, self._layout)

    def swc(self) -> str | None:
        """The text of the traced neuron, None if there is none. Raises BffsError."""
        swc = self.listed.swc
        return None if swc is None else self._engine.read(swc).decode(errors="replace")

    def __len__(self) -> int:
        return len(self.listed.slices)

    def __getitem__(self, index: Any) -> Any:
        """Pixels: a number for three whole numbers, else an array. Raises BffsError, IndexError."""
        import numpy as np

        chosen = regions.box(index, self.shape)
        whole = np.empty([len(each) for each in chosen.ranges], self.dtype)
        if whole.size:
            fill = self._fill_decoded if self._shape.obstacle else self._fill
            fill(whole, *chosen.ranges)
        return whole[chosen.finish]

    def __iter__(self) -> Iterator[Array]:
        return (each[...] for each in self.slices)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return _read_as(self, dtype, copy)

    def dask(self, rows: int | None = None) -> dask.array.Array:
        """The stack as a dask array, whose chunks are slices, or so many `rows` of one.

        Regions of it cost what they touch. Compute them with threads, as dask does unless told
        otherwise. Raises BffsError, also where dask is missing.
        """
        try:
            import dask.array as da
            import numpy as np
        except ImportError as error:
            raise BffsError("dask is missing: pip install 'bffs[array]'") from error
        chunks = (1, rows or self.shape[1], self.shape[2])
        meta = np.empty((0, 0, 0), self.dtype)
        array: dask.array.Array = da.from_array(  # type: ignore[no-untyped-call]
            self, chunks, name=False, asarray=False, meta=meta
        )
        return array

    # -- reading --------------------------------------------------------------------------------------------------

    @cached_property
    def _shape(self) -> Shape:
        return self._engine.shape(self.listed)

    @property
    def _layout(self) -> SliceLayout:
        layout = self._shape.layout
        if layout is None or not layout.grey:
            obstacle = self._shape.obstacle
            raise BffsError(f"{self.split}/{self.id} can't be read as an array: {obstacle}")
        return layout

    @cached_property
    def _pixels(self) -> Pixels:
        return self._engine.pixels(self.listed, self._layout)

    def _fill(self, whole: Array, planes: range, rows: range, columns: range) -> None:
        """Read pixels into `whole`, while those that come next are fetched."""
        layout = self._layout
        item = tiff.item_size(layout.dtype)
        bands = list(regions.bands(rows, columns, layout.row_bytes, item))
        likely = self._pixels.runs(planes[0])  # those of all slices, as good as always
        wants = [
            [(self.listed.slices[z], *span) for span in regions.spans(likely, band.span)]
            for z in planes
            for band in bands
        ]
        for first, z in zip(range(0, len(wants), len(bands)), planes, strict=True):
            wants[first][:0] = [(self.listed.slices[z], *span) for span in self._shape.header]
        is_slice = len(planes) == 1 and (len(rows), len(columns)) == (layout.height, layout.width)
        with self._engine.ahead(wants) as reach:
            places = itertools.count()
            for plane, z in zip(whole, planes, strict=True):
                content = self._engine.content(self.listed, z, followed=is_slice)
                runs = self._pixels.runs(z)
                for band in bands:
                    reach(next(places))
                    _fill_band(plane, band, content, runs, layout, rows.step, columns)

    def _fill_decoded(self, whole: Array, planes: range, rows: range, columns: range) -> None:
        """The same where pixels don't lie in the slices as they are."""
        objects = [self.listed.slices[z] for z in planes]
        with self._engine.ahead([[(obj, 0, obj.size)] for obj in objects]) as reach:
            for place, (plane, obj) in enumerate(zip(whole, objects, strict=True)):
                reach(place)
                image = self._decoded(obj)
                plane[...] = image[_slice(rows), _slice(columns)]

    def _decoded(self, obj: ObjectInfo) -> Array:
        try:
            image: Array = tiff.decode(self._engine.read(obj))
        except ValueError as error:
            raise BffsError(f"{obj.key} can't be decoded: {error}") from error
        kind = image.dtype.newbyteorder("=").name
        if (*image.shape, kind) != (*self.shape[1:], self._layout.dtype):
            raise BrokenPromise(
                f"{obj.key} has {' x '.join(map(str, image.shape))} {kind}, not "
                f"{self._layout.in_words} like the others"
            )
        return image


class Slice:
    """One slice: a lazy array (y, x). Nothing is read before it is indexed: `slice[:]` is all of it,
    `slice[100:612, 300:812]` a region."""

    ndim = 2

    def __init__(self, specimen: Specimen, index: int) -> None:
        self.specimen = specimen
        self.index = index
        """Its position in the stack, from 0."""

        self.listed = specimen.listed.slices[index]
        """What the listing says: key, ETag, size in bytes, time."""

    def __repr__(self) -> str:
        return f"<Slice {self.index} of {self.specimen.split}/{self.specimen.id}: {self.name}>"

    @property
    def name(self) -> str:
        """The file's name."""
        return catalog.base_name(self.listed.key)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns. Raises BffsError; see `Specimen.shape`."""
        return self.specimen.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the pixels. Raises BffsError; see `Specimen.shape`."""
        return self.specimen.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """Pixels: a number for two whole numbers, else an array. Raises BffsError, IndexError."""
        parts = index if isinstance(index, tuple) else (index,)
        return self.specimen[(self.index, *parts)]

    def __iter__(self) -> Iterator[Array]:
        return iter(self[...])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return _read_as(self, dtype, copy)

    def read(self) -> bytes:
        """The file, byte for byte. Raises BffsError."""
        return self.specimen._engine.read(self.listed)


def _fill_band(
    plane: Array,
    band: Band,
    content: Content,
    runs: Runs,
    layout: SliceLayout,
    step: int,
    columns: range,
) -> None:
    """Read one band and lay its pixels where they belong in a plane of the result."""
    import numpy as np

    start, stop = band.span
    data = np.empty(stop - start, np.uint8)
    view, done = data.data, 0
    for at, end in regions.spans(runs, band.span):
        if content.read_into(at, view[done : done + end - at]) < end - at:
            raise BrokenPromise("a slice ends before its pixels do")
        done += end - at
    item = plane.dtype.itemsize
    pixels = np.ndarray(
        (band.number, len(columns)),
        plane.dtype,
        data.data,
        strides=(step * layout.row_bytes, columns.step * item),
    )
    plane[band.first : band.first + band.number] = pixels


def _slice(chosen: range) -> slice:
    """An ascending range as a slice."""
    return slice(chosen.start, chosen.stop, chosen.step)


def _read_as(source: Specimen | Slice, dtype: Any, copy: bool | None) -> Array:
    """All of it, as numpy's protocol wants it."""
    if copy is False:
        raise ValueError("what is fetched can't be had without a copy")
    array: Array = source[...]
    return array if dtype is None else array.astype(dtype, copy=False)
