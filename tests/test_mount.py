"""What a mount shows: names, sizes, times, bytes. One real mount, read by this and other processes."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import mmap
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tifffile
from PIL import Image

from bffs import demo
from tests.conftest import Mounter, flags_of
from tests.s3server import MTIME, S3Server, made_up, pattern

ODD = "900000009"
SIZES = (0, 1, 131_071, 131_072, 131_073, 1_048_581, 6_000_001)
"""Around the block, the request and the readahead window."""

DEMO = dict(demo.dataset(width=250, height=200, slices=9))
MADE_UP = {f"{ODD}/odd-{number:04}.tif": size for number, size in enumerate(SIZES, 1)}
UNUSABLE = {
    "stray.txt": b"outside any specimen",
    f"{ODD}/../escape.tif": b"dotted",
    f"{ODD}//empty.tif": b"nameless",
    f"{ODD}/{'x' * 256}.tif": b"too long",
    f"{ODD}/folder/deep.tif": b"below the specimen",
    f"{ODD}/manifest.json": b"bffs makes this one",
}

OBJECTS = {**DEMO, **{key: pattern(key, 0, size) for key, size in MADE_UP.items()}}
"""What the mount must show."""


def place(key: str) -> str:
    """Where an object is in the mount."""
    folder = demo.TEST_FOLDER
    return f"test/{key.removeprefix(folder)}" if key.startswith(folder) else f"train/{key}"


FILES = {place(key): content for key, content in OBJECTS.items() if not key.endswith("/")}
SLICES = sorted(name for name in FILES if name.endswith(".tif") and ODD not in name)
LARGE = place(f"{ODD}/odd-0007.tif")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server that counts requests."""
    with S3Server({**DEMO, **MADE_UP, **UNUSABLE}, bucket="neurons") as server:
        yield server


@pytest.fixture(scope="module")
def mounter(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounter]:
    """Mounts of that server for all tests of this module, with one cache."""
    mounter = Mounter(flags_of(server), tmp_path_factory.mktemp("mounts"))
    yield mounter
    mounter.close()


@pytest.fixture(scope="module")
def tree(mounter: Mounter) -> Path:
    """The mount that most tests read."""
    return mounter()


@pytest.fixture(scope="module")
def read_only(mounter: Mounter) -> Path:
    """A mount that takes no files."""
    return mounter("--read-only")


def files_below(folder: Path) -> dict[str, Path]:
    """All files that are not views of others, by their names relative to `folder`."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path for name, path in files.items() if not name.startswith("stacks/")}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- names and attributes ---------------------------------------------------------------------------------------


def test_every_usable_object_is_a_file_and_nothing_else_is(tree: Path) -> None:
    folders = {str(Path(name).parent) for name in FILES}
    made = {f"{folder}/manifest.json" for folder in folders}
    made |= {"specimens_manifest.json", ".bffs/status.json"}
    assert set(files_below(tree)) == set(FILES) | made


def test_folders_are_listed_in_order(tree: Path) -> None:
    for folder in (tree, *(path for path in tree.rglob("*") if path.is_dir())):
        names = [path.name for path in folder.iterdir()]
        assert names == sorted(names)


def test_sizes_times_and_modes_are_those_of_the_objects(tree: Path) -> None:
    for name, content in FILES.items():
        found = (tree / name).stat()
        assert (found.st_size, found.st_blocks) == (len(content), -(-len(content) // 512)), name
        assert stat.S_IMODE(found.st_mode) == 0o444 and stat.S_ISREG(found.st_mode)
        assert (found.st_uid, found.st_gid, found.st_nlink) == (os.getuid(), os.getgid(), 1)
    for name in MADE_UP:
        found = (tree / place(name)).stat()
        assert found.st_mtime == found.st_ctime == MTIME


def test_a_folder_weighs_what_is_below_it(tree: Path) -> None:
    folders = {path for path in tree.rglob("*") if path.is_dir()}
    stacks = {path for path in folders if path.relative_to(tree).parts[0] == "stacks"}
    assert {path.stat().st_size for path in stacks} == {0}
    for folder in {tree} | folders - stacks:
        files = files_below(folder).values()
        found = folder.stat()
        assert found.st_size == sum(path.stat().st_size for path in files)
        assert found.st_mtime == max(path.stat().st_mtime for path in files)
        assert stat.S_IMODE(found.st_mode) == (0o555 if folder == tree / ".bffs" else 0o755)
        inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
        assert found.st_nlink == 2 + len(inside)


def shell(command: str, **values: object) -> list[str]:
    """The lines that a command prints; nothing may go to standard error."""
    env = {"LC_ALL": "C", "PATH": os.environ["PATH"], **{k: str(v) for k, v in values.items()}}
    done = subprocess.run(
        ["sh", "-c", command], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def as_ls_says(size: float) -> str:
    """A size from 1K on in the words of `ls -h`, which rounds up."""
    size, unit = (size / 1024, "K") if size < 1 << 20 else (size / (1 << 20), "M")
    return f"{math.ceil(size * 10) / 10:.1f}{unit}" if size <= 9.9 else f"{math.ceil(size)}{unit}"


def test_ls_and_du_and_df_show_the_sizes(tree: Path) -> None:
    lines = [line.split() for line in shell('ls -lhS "$M/train"', M=tree)[1:]]
    sizes = {path.name: path.stat().st_size for path in (tree / "train").iterdir()}
    by_size = sorted(sizes, key=sizes.__getitem__, reverse=True)
    assert [line[-1] for line in lines] == by_size
    assert [line[4] for line in lines] == [as_ls_says(sizes[name]) for name in by_size]
    assert "5.8M" in shell('ls -lh "$F"', F=tree / LARGE)[0]
    blocks = sum(path.stat().st_blocks for path in files_below(tree).values())
    assert shell('du -s --block-size=512 "$M"', M=tree) == [f"{blocks}\t{tree}"]


def test_df_shows_the_disk_of_what_is_saved_or_else_the_dataset(
    tree: Path, read_only: Path, mounter: Mounter
) -> None:
    def df(folder: Path) -> list[int]:
        lines = shell('df --block-size=1 --output=size,used,avail "$M"', M=folder)
        return [int(word) for word in lines[1].split()]

    assert df(tree)[0] == df(mounter.folder)[0]
    size, used, free = df(read_only)
    assert 0 <= size - read_only.stat().st_size < 4096 and used == size and free == 0


def test_extended_attributes_name_the_object(tree: Path) -> None:
    key = f"{ODD}/odd-0006.tif"
    path = tree / place(key)
    names = ["user.bffs.key", "user.bffs.etag", "user.bffs.cached"]
    assert sorted(os.listxattr(path)) == sorted(names)
    assert os.getxattr(path, "user.bffs.key") == key.encode()
    assert os.getxattr(path, "user.bffs.etag") == made_up(key, MADE_UP[key]).etag.encode()
    path.read_bytes()
    end = time.monotonic() + 10  # what was read is written to the disk a little later
    while (cached := int(os.getxattr(path, "user.bffs.cached"))) < MADE_UP[key]:
        assert time.monotonic() < end, f"{cached} bytes are in the cache"
        time.sleep(0.05)
    for name, reason in (("user.other", errno.ENODATA), ("security.selinux", errno.ENOTSUP)):
        with pytest.raises(OSError, match=os.strerror(reason)):
            os.getxattr(path, name)
    assert os.listxattr(tree / "train") == []


def test_what_is_absent_is_said_so_without_asking_the_store(tree: Path, server: S3Server) -> None:
    tuple(tree.rglob("*"))
    before = server.stats()["requests"]
    for name in ("absent", "train/1", f"train/{ODD}/odd-0008.tif", f"train/{ODD}/escape.tif"):
        assert not (tree / name).exists()
    with pytest.raises(NotADirectoryError):
        (tree / LARGE / "below").stat()
    for path in (tree, *tree.rglob("*")):
        path.stat()
    assert server.stats()["requests"] == before


# -- writing ----------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Path, Path], object]] = {
    "create": lambda folder, file: os.open(folder / "new", os.O_CREAT | os.O_WRONLY),
    "open to write": lambda folder, file: os.open(file, os.O_WRONLY),
    "open to append": lambda folder, file: os.open(file, os.O_RDWR | os.O_APPEND),
    "open and truncate": lambda folder, file: os.open(file, os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda folder, file: os.truncate(file, 0),
    "unlink": lambda folder, file: os.unlink(file),
    "rename": lambda folder, file: os.rename(file, folder / "new"),
    "mkdir": lambda folder, file: os.mkdir(folder / "new"),
    "rmdir": lambda folder, file: os.rmdir(folder),
    "symlink": lambda folder, file: (folder / "new").symlink_to("x"),
    "link": lambda folder, file: os.link(file, folder / "new"),
    "mknod": lambda folder, file: os.mkfifo(folder / "new"),
    "chmod": lambda folder, file: os.chmod(file, 0o666),
    "chown": lambda folder, file: os.chown(file, 1, 1),
    "utimens": lambda folder, file: os.utime(file, (0, 0)),
    "setxattr": lambda folder, file: os.setxattr(file, "user.x", b"1"),
    "removexattr": lambda folder, file: os.removexattr(file, "user.bffs.key"),
}


@pytest.mark.parametrize("how", WRITES)
def test_nothing_can_be_written(read_only: Path, how: str) -> None:
    folder = read_only / "train" / ODD
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        WRITES[how](folder, folder / "odd-0006.tif")


def test_modes_say_so(read_only: Path) -> None:
    for path in (read_only, *read_only.rglob("*")):
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == (0o555 if path.is_dir() else 0o444)


# -- reading ----------------------------------------------------------------------------------------------------


def test_every_file_is_byte_for_byte_the_object(tree: Path) -> None:
    for name, content in FILES.items():
        assert digest((tree / name).read_bytes()) == digest(content), name


def test_pieces_are_the_bytes_of_the_object(tree: Path) -> None:
    content, chance = FILES[LARGE], random.Random(1)
    fd = os.open(tree / LARGE, os.O_RDONLY)
    try:
        for _ in range(200):
            offset = chance.randrange(len(content))
            size = chance.choice((1, 7, 4096, 131_072, 1 << 20, 3_000_000))
            assert os.pread(fd, size, offset) == content[offset : offset + size]
        for offset in (len(content), len(content) + 1, 1 << 40):
            assert os.pread(fd, 10, offset) == b""
    finally:
        os.close(fd)


def test_past_the_page_cache_too(mounter: Mounter) -> None:
    """O_DIRECT: each read is one request of the kernel, at any offset that is a multiple of 512."""
    tree = mounter()
    content, chance = FILES[LARGE], random.Random(2)
    buffer = mmap.mmap(-1, 1 << 20)
    fd = os.open(tree / LARGE, os.O_RDONLY | os.O_DIRECT)
    try:
        for _ in range(50):
            offset = chance.randrange(len(content) // 512) * 512
            n = os.preadv(fd, [buffer], offset)
            assert n == min(len(buffer), len(content) - offset)
            assert buffer[:n] == content[offset : offset + n]
    finally:
        os.close(fd)


def test_many_threads_on_one_file(mounter: Mounter, server: S3Server) -> None:
    tree = mounter("--cache-dir", f"{mounter.folder}/threads")
    server.reset()
    content = FILES[LARGE]
    fd = os.open(tree / LARGE, os.O_RDONLY)

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(20):
            offset = chance.randrange(len(content))
            assert os.pread(fd, 200_000, offset) == content[offset : offset + 200_000]

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))
    finally:
        os.close(fd)
    twice = [get for get in server.log() if LARGE.endswith(get.key)]
    assert twice and server.stats()["sent"]["get"] <= len(content)  # no byte is fetched twice


_DIGEST = "import hashlib, sys; [print(hashlib.sha256(open(f, 'rb').read()).hexdigest()) for f in sys.argv[1:]]"


def test_many_processes_at_once(mounter: Mounter) -> None:
    tree = mounter("--cache-dir", f"{mounter.folder}/processes")
    names = [LARGE, *SLICES[:6]]
    orders = [names, names[::-1], names[3:] + names[:3], names]
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _DIGEST, *(str(tree / name) for name in order)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for order in orders
    ]
    for reader, order in zip(readers, orders, strict=True):
        said, _ = reader.communicate(timeout=60)
        assert said.split() == [digest(FILES[name]) for name in order]


def test_mapped_into_memory(tree: Path) -> None:
    content = FILES[LARGE]
    with (
        (tree / LARGE).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        assert view[4_000_000:4_000_100] == content[4_000_000:4_000_100]
        assert digest(view[:]) == digest(content)


@pytest.mark.parametrize("name", SLICES[::7])
def test_programs_open_slices(tree: Path, name: str) -> None:
    path = tree / name
    expected = tifffile.imread(path).tobytes()
    assert expected in FILES[name] and len(expected) == 250 * 200
    view = tifffile.memmap(path, mode="r")
    assert view.shape == (200, 250) and view.tobytes() == expected
    with Image.open(path) as picture:
        assert picture.size == (250, 200) and picture.tobytes() == expected


# -- manifests --------------------------------------------------------------------------------------------------


def test_the_whole_manifest_has_the_published_fields(tree: Path) -> None:
    manifest = json.loads((tree / "specimens_manifest.json").read_bytes())
    train = sorted(path.name for path in (tree / "train").iterdir())
    test = sorted(path.name for path in (tree / "test").iterdir())
    assert list(manifest) == train + [name for name in test if name not in train]
    for specimen, entry in manifest.items():
        folder = "test" if specimen in test else "train"  # of an id in both sets: as published
        prefix = f"{demo.TEST_FOLDER if folder == 'test' else ''}{specimen}/"
        slices = sorted(key for key in OBJECTS if key.startswith(prefix) and key.endswith(".tif"))
        swc = f"{prefix}{specimen}.swc"
        assert entry == {
            "id": specimen,
            "bucket_prefix": prefix,
            "swc": swc if swc in OBJECTS else None,
            "bytes": sum(len(OBJECTS[key]) for key in slices),
            "image_stack": slices,
        }


def test_a_specimens_manifest_says_where_and_what_it_is(tree: Path, server: S3Server) -> None:
    published = json.loads((tree / "specimens_manifest.json").read_bytes())
    for folder in (*(tree / "train").iterdir(), *(tree / "test").iterdir()):
        split, specimen = folder.parts[-2:]
        manifest = json.loads((folder / "manifest.json").read_bytes())
        if published[specimen]["bucket_prefix"] == manifest["bucket_prefix"]:
            assert published[specimen].items() <= manifest.items()
        assert (manifest["split"], manifest["directory"]) == (split, f"{split}/{specimen}")
        assert (manifest["endpoint_url"], manifest["bucket"]) == (server.endpoint_url, "neurons")
        assert [entry["name"] for entry in manifest["slices"]] == sorted(
            path.name for path in folder.glob("*.tif")
        )
        for entry in manifest["slices"]:
            found = (folder / entry["name"]).stat()
            assert entry["bytes"] == found.st_size
            etag = os.getxattr(folder / entry["name"], "user.bffs.etag")
            assert entry["etag"] == etag.decode()


def test_a_manifest_knows_the_shape_once_a_header_was_seen(mounter: Mounter) -> None:
    path = (first := mounter()) / SLICES[0]
    path.read_bytes()
    end = time.monotonic() + 10
    while not int(os.getxattr(path, "user.bffs.cached")):
        assert time.monotonic() < end
        time.sleep(0.05)
    unmounted = mounter.run("umount", str(first))
    assert unmounted.returncode == 0, unmounted.stderr
    folder = (mounter() / SLICES[0]).parent
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["shape"] == [len(manifest["slices"]), 200, 250]
    assert manifest["dtype"] == "uint8"


# -- again ------------------------------------------------------------------------------------------------------


def test_a_second_mount_reads_from_the_disk_and_looks_the_same(
    mounter: Mounter, server: S3Server
) -> None:
    cache = ["--cache-dir", f"{mounter.folder}/again"]
    first = mounter(*cache)
    inodes = {name: path.stat().st_ino for name, path in files_below(first).items()}
    assert len(set(inodes.values())) == len(inodes)
    for name, content in FILES.items():
        assert (first / name).read_bytes() == content
    assert mounter.run("umount", str(first)).returncode == 0
    server.reset()
    second = mounter(*cache)
    assert {name: path.stat().st_ino for name, path in files_below(second).items()} == inodes
    for name, content in FILES.items():
        assert digest((second / name).read_bytes()) == digest(content)
    assert server.log() == []


def test_a_changed_object_is_an_error_and_never_a_mixture(tmp_path: Path) -> None:
    key = "1/a-0001.tif"
    old, new = os.urandom(5_000_000), os.urandom(5_000_000)
    with S3Server({key: old}, bucket="changing") as server:
        mounter = Mounter(flags_of(server), tmp_path)
        try:
            path = mounter("--readahead", "off") / "train" / key
            fd = os.open(path, os.O_RDONLY)
            libc = ctypes.CDLL(None)
            assert libc.posix_fadvise(fd, ctypes.c_long(0), ctypes.c_long(0), 1) == 0  # at random
            try:
                assert os.pread(fd, 1000, 0) == old[:1000]
                server.change({key: new})
                with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                    os.pread(fd, 1000, 4_000_000)
                assert os.pread(fd, 1000, 0) == old[:1000]
            finally:
                os.close(fd)
        finally:
            mounter.close()
