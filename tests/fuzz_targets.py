"""What is fuzzed: everything that bffs parses and did not write itself a moment ago.

Each target takes any bytes. It returns, or raises one of the errors that are promised for bad
input - which it then swallows - and makes sure of what must hold; anything else it raises is a
finding. `scripts/fuzz` lets atheris look for inputs; `test_fuzz.py` runs the corpora that it left in
`tests/corpus/`, and some chance, with every test run.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import shutil
import sqlite3
import struct
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

from bffs import manifest, patience, snapshot, stacks, tiff
from bffs.cache import BLOCK, DiskCache, checksum
from bffs.catalog import build_specimen, list_catalog
from bffs.content import BytesContent
from bffs.errors import BffsError, UsageError
from bffs.index import Index
from bffs.precedence import resolve
from bffs.profiles import load_dataset
from bffs.s3 import S3Store
from bffs.settings import Dataset, Settings
from bffs.store import Listing, ObjectInfo

DATASET = Dataset(
    name="fuzz", endpoint_url="http://127.0.0.1:9", region="r", bucket="bucket",
    splits=(("TEST/", "test"), ("", "train")),
)  # fmt: skip

Target = Callable[[bytes], None]


@functools.cache
def _folder() -> Path:
    """A folder for this process, gone with it."""
    folder = Path(tempfile.mkdtemp(prefix="bffs-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# -- the header of a slice --------------------------------------------------------------------------------------


def tiff_header(data: bytes) -> None:
    """A header is None or says where pixels lie, all of them within the object; and what can be
    shown of such slices has a size, or a reason."""
    header = tiff.slice_header(BytesContent(data))
    if header is None:
        return
    layout, runs, obstacle, *_ = header
    assert bool(runs) != bool(obstacle)
    if runs is not None:
        assert runs.starts[0] == 0 and len(runs.starts) == len(runs.offsets)
        for start, stop, offset in zip(
            runs.starts, (*runs.starts[1:], layout.bytes), runs.offsets, strict=True
        ):
            assert 0 <= offset <= offset + stop - start <= len(data) and start <= stop
    objects = [ObjectInfo(f"7/a-{number}.tif", "e", len(data), 0) for number in range(3)]
    specimen = build_specimen("train", "7/", objects, Counter())
    for offer in stacks.offers(specimen, stacks.views(specimen, layout, obstacle, None), 10):
        assert offer.size >= 0 and bool(offer.size) != bool(offer.why_not), offer


# -- a listing --------------------------------------------------------------------------------------------------


class _Raw(io.BytesIO):
    """What botocore reads a body from."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


@functools.cache
def _store() -> tuple[S3Store, list[bytes]]:
    """A store whose every answer is the last of the bytes beside it."""
    settings = Settings(dataset=DATASET, sign_requests=False, cache_dir=_folder())
    store, answers = S3Store(settings), [b""]

    def answer(request: Any, **_: Any) -> AWSResponse:
        return AWSResponse(request.url, 200, HTTPHeaders(), _Raw(answers[-1]))

    store._client.meta.events.register("before-send.s3", answer)
    return store, answers


def listing(data: bytes) -> None:
    """An answer to a listing is pages of sound objects, or an error that says so in one line."""
    store, answers = _store()
    answers[:] = [data]
    with _no_pauses(), suppress(BffsError):
        for page in store.list("7/"):
            assert all(type(obj.size) is int and obj.key for obj in page.objects)


@contextlib.contextmanager
def _no_pauses() -> Iterator[None]:
    """Between attempts, which are as good as the first here."""
    pause, patience.FIRST_PAUSE = patience.FIRST_PAUSE, 0.0
    try:
        yield
    finally:
        patience.FIRST_PAUSE = pause


# -- names, manifests -------------------------------------------------------------------------------------------


class _Keys:
    """A store of these keys, in the order in which they come."""

    def __init__(self, keys: list[str]) -> None:
        self._keys = list(dict.fromkeys(keys))

    def list(self, prefix: str, *, folders: bool = False) -> Iterator[Listing]:
        """See `ObjectStore.list`."""
        below = [key for key in self._keys if key.startswith(prefix)]
        inner = [key for key in below if folders and "/" in key[len(prefix) :]]
        here = [ObjectInfo(key, "e", len(key), 0) for key in below if key not in inner]
        cut = {prefix + key[len(prefix) :].partition("/")[0] + "/": None for key in inner}
        yield Listing(here, list(cut))

    def read_into(self, *_: Any, **__: Any) -> None:
        """Never called."""
        raise AssertionError


def names(data: bytes) -> None:
    """Whatever the keys are, each is one sound path or is counted; and the manifests are JSON that
    says the same."""
    keys = data.decode("utf-8", "surrogateescape").split("\n\n")
    catalog = list_catalog(_Keys(keys), DATASET, connections=1)
    paths = [
        (specimen.split, specimen.id, obj.key.rpartition("/")[2])
        for specimen in catalog.specimens
        for obj in specimen.objects()
    ]
    assert len(set(paths)) == len(paths)
    for path in paths:
        for name in path:
            assert name not in ("", ".", "..") and not set(name) & set("/\0\n")
            assert len(name.encode()) <= 255
    assert bool(catalog.left_out) == (len(paths) < len(set(keys)))
    whole = manifest.whole_dataset(catalog)
    assert json.loads(manifest.encode(whole)) == whole
    for specimen in catalog.specimens:
        one = manifest.of_specimen(specimen, DATASET)
        assert json.loads(manifest.encode(one)) == one


# -- configuration ----------------------------------------------------------------------------------------------


def configuration(data: bytes) -> None:
    """A configuration file, or a profile, is understood or a UsageError of one line."""
    path = _folder() / "config.toml"
    path.write_bytes(data)
    for read in (lambda: resolve({}, {}, path), lambda: load_dataset(str(path))):
        said = ""
        try:
            read()
        except UsageError as error:
            said = str(error)
        assert len(said.splitlines()) <= 1, said


# -- files of the cache -----------------------------------------------------------------------------------------

OBJECT = ObjectInfo("7/a.tif", "etag", 2 * BLOCK + 100, 0)
CONTENT = bytes(range(256)) * (2 * BLOCK // 256) + b"x" * 100


@functools.cache
def _cached() -> tuple[Path, bytes]:
    """The file of a cached object, and what its `.sums` file says."""
    cache = DiskCache(_folder() / "cache", DATASET, 1 << 30)
    view = memoryview(CONTENT)
    blocks = [view[at : at + BLOCK] for at in range(0, len(view), BLOCK)]
    cache.add(OBJECT, 0, view, array("Q", map(checksum, blocks)))
    path = cache.open(OBJECT).path
    cache.close()
    return path, path.with_name(path.name + ".sums").read_bytes()


def sums(data: bytes) -> None:
    """Whatever a `.sums` file says, what comes from the cache is the object, or nothing."""
    path, sound = _cached()
    path.write_bytes(CONTENT[:-1] + b"!" if data[:1] == b"!" else CONTENT)
    spoilt = data[1:] if data[:1] == b"w" else sound[: len(data) % 9] + data[1:]
    path.with_name(path.name + ".sums").write_bytes(spoilt)
    cache = DiskCache(_folder() / "cache", DATASET, 1 << 30)
    try:
        cached = cache.open(OBJECT)
        buffer = bytearray(OBJECT.size)
        n = cached.read_into(0, memoryview(buffer))
        assert buffer[:n] == CONTENT[:n]
        cached.bytes_present(), list(cached.missing(0, 3))
    finally:
        cache.close()


def ledger(data: bytes) -> None:
    """Whatever the ledger is, there is room or an error that the cache expects."""
    folder = _folder() / "ledger"
    folder.mkdir(exist_ok=True)
    for suffix in ("", "-journal"):
        (folder / f"index.sqlite3{suffix}").unlink(missing_ok=True)
    (folder / "index.sqlite3").write_bytes(data)
    index = Index(folder, 1 << 40)
    with suppress(OSError, sqlite3.Error):
        index.reserve(folder / "d" / "aa" / "aabb", OBJECT, 1000)
        index.close()


def kept_listing(data: bytes) -> None:
    """Whatever a snapshot says, it is a catalog, or none."""
    cache = _folder() / "snapshots"
    if not cache.exists():
        snapshot.save(list_catalog(_Keys(["7/a.tif"]), DATASET), cache, DATASET)
    path = snapshot._path(cache, DATASET)
    header = struct.pack("<8sQ16s", b"bffscat1", len(data), xxhash.xxh3_128_digest(data))
    path.write_bytes(data[1:] if data[:1] == b"!" else header + data)
    catalog = snapshot.load(cache, DATASET)
    if catalog is not None:
        for specimen in catalog.specimens:
            assert all(isinstance(obj.key, str) for obj in specimen.objects())


TARGETS: dict[str, Target] = {
    "tiff": tiff_header,
    "listing": listing,
    "names": names,
    "configuration": configuration,
    "sums": sums,
    "ledger": ledger,
    "snapshot": kept_listing,
}
