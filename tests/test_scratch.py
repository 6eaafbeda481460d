"""What is saved in a mount: as on a local folder, the dataset untouched, and never a request to the store."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bffs import demo
from bffs.beneath import Beneath
from tests import scratch_machine
from tests.conftest import Mounter, drivers, flags_of
from tests.s3server import S3Server

OBJECTS = {
    key: content
    for key, content in demo.dataset(width=250, height=200, slices=9)
    if not key.startswith(demo.TEST_FOLDER)
}
SPECIMEN = min(OBJECTS).partition("/")[0]
SLICE = min(key.partition("/")[2] for key in OBJECTS if key.endswith(".tif") and SPECIMEN in key)
SIZE = len(OBJECTS[f"{SPECIMEN}/{SLICE}"])


@pytest.fixture(scope="module")
def mounter(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounter]:
    mounter = Mounter(flags_of(server), tmp_path_factory.mktemp("scratch"))
    yield mounter
    mounter.close()


@pytest.fixture(scope="module")
def tree(mounter: Mounter) -> Path:
    """The mount that most tests save in."""
    tree: Path = mounter(f"--scratch={mounter.folder}/kept")
    assert [*(tree / "stacks/train" / SPECIMEN).iterdir()]  # from a header, once and for all
    return tree


@pytest.fixture
def folder(tree: Path, server: S3Server) -> Iterator[Path]:
    """A specimen's folder; no test asks anything of the store."""
    server.reset()
    yield tree / "train" / SPECIMEN
    assert server.log() == []


@pytest.fixture
def work(folder: Path, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own in the specimen's."""
    return made(folder / str(request.node.name))


def kept(mounter: Mounter) -> Path:
    return mounter.folder / "kept"


# -- where it is ------------------------------------------------------------------------------------------------


def test_what_is_saved_lies_in_a_plain_folder_and_is_there_next_time(mounter: Mounter) -> None:
    done = mounter.run("mount", *mounter.flags, str(made(mounter.folder / "one")))
    line, *_ = done.stdout.splitlines()
    assert done.returncode == 0 and done.stderr == ""
    where = Path(line.rpartition(" ")[2])
    assert where.parent == mounter.folder / ".local/share/bffs/scratch"
    assert stat.S_IMODE(where.stat().st_mode) == 0o700
    tree = mounter.folder / "one"
    for name in (f"train/{SPECIMEN}/x.swc", "notes.txt", f"stacks/train/{SPECIMEN}/roi.zip"):
        (tree / name).write_text(name)
        assert (where / name).read_text() == name
    assert mounter.run("umount", str(tree)).returncode == 0
    assert mounter.run("mount", "-q", *mounter.flags, str(tree)).stdout == ""
    assert (tree / f"train/{SPECIMEN}/x.swc").read_text() == f"train/{SPECIMEN}/x.swc"
    assert mounter.run("umount", str(tree)).returncode == 0


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_it_is_shown_among_the_datasets_files_in_order(folder: Path) -> None:
    before = [path.name for path in folder.iterdir()]
    for name in (".DS_Store", "a.swc", "zz"):
        (folder / name).touch()
    names = [path.name for path in folder.iterdir()]
    assert names == sorted([*before, ".DS_Store", "a.swc", "zz"])
    for name in (".DS_Store", "a.swc", "zz"):
        (folder / name).unlink()
    assert [path.name for path in folder.iterdir()] == before


def test_a_folder_shows_its_latest_change(folder: Path) -> None:
    weight = folder.stat().st_size
    (folder / "new").write_bytes(b"12345")
    changed = folder.stat()
    assert changed.st_mtime_ns > time.time_ns() - 10**10 and changed.st_size == weight
    links = changed.st_nlink
    (folder / "more").mkdir()
    assert folder.stat().st_nlink == links + 1 and folder.stat().st_ino == changed.st_ino
    (folder / "more").rmdir()
    (folder / "new").unlink()


@pytest.mark.parametrize("how", ["somebody else's", "a link", "a file"])
def test_a_folder_that_is_not_ones_own_is_refused(mounter: Mounter, how: str) -> None:
    place = mounter.folder / f"foreign {how}"
    if how == "somebody else's":
        if os.geteuid():
            pytest.skip("only root can make such a folder")
        place.mkdir()
        os.chown(place, 12345, 12345)
    elif how == "a link":
        if os.geteuid():
            pytest.skip("only root can make such a link")
        place.symlink_to(made(mounter.folder / "target"))
        os.chown(place, 12345, 12345, follow_symlinks=False)
    else:
        place.touch()
    mountpoint = made(mounter.folder / f"mnt {how}")
    done = mounter.run("mount", *mounter.flags, f"--scratch={place}", str(mountpoint))
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith(f"bffs: {place}") and "--read-only" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_folder_and_the_mountpoint_are_not_one_in_the_other(mounter: Mounter) -> None:
    for inside in ("", "below"):
        mountpoint = mounter.folder / f"nested{len(inside)}"
        mountpoint.mkdir()
        scratch = mountpoint / inside if inside else mounter.folder
        done = mounter.run("mount", *mounter.flags, f"--scratch={scratch}", str(mountpoint))
        assert done.returncode == 6 and "one in the other" in done.stderr


# -- the dataset is immutable -----------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[Path, Path, Path], object]] = {
    "open to write": lambda f, s, o: os.open(s, os.O_WRONLY),
    "open to append": lambda f, s, o: os.open(s, os.O_RDWR | os.O_APPEND),
    "open to truncate": lambda f, s, o: os.open(s, os.O_WRONLY | os.O_TRUNC),
    "create over it": lambda f, s, o: s.write_bytes(b""),
    "truncate": lambda f, s, o: os.truncate(s, 0),
    "unlink": lambda f, s, o: s.unlink(),
    "rename it": lambda f, s, o: s.rename(f / "new"),
    "rename over it": lambda f, s, o: o.rename(s),
    "exchange": lambda f, s, o: scratch_machine.renameat2(str(o), str(s), 2),
    "rename its folder": lambda f, s, o: f.rename(f.with_name("new")),
    "remove its folder": lambda f, s, o: f.rmdir(),
    "link it": lambda f, s, o: os.link(s, f / "new"),
    "chmod": lambda f, s, o: s.chmod(0o666),
    "chmod its folder": lambda f, s, o: f.chmod(0o777),
    "chown": lambda f, s, o: os.chown(s, 1, 1),
    "utime": lambda f, s, o: os.utime(s),
    "setxattr": lambda f, s, o: os.setxattr(s, "user.x", b"1"),
    "removexattr": lambda f, s, o: os.removexattr(s, "user.bffs.key"),
    "create in bffs's own folder": lambda f, s, o: (f.parents[1] / ".bffs" / "x").touch(),
    "make a folder there": lambda f, s, o: (f.parents[1] / ".bffs" / "x").mkdir(),
    "rename into it": lambda f, s, o: o.rename(f.parents[1] / ".bffs" / "x"),
    "overwrite the manifest": lambda f, s, o: (f / "manifest.json").write_text("{}"),
    "overwrite a stack": lambda f, s, o: next(stacks(f).glob("*.v3draw")).write_text("{}"),
}


def stacks(folder: Path) -> Path:
    return folder.parents[1] / "stacks" / "train" / folder.name


@pytest.mark.parametrize("how", REFUSED)
def test_the_dataset_can_not_be_changed(folder: Path, how: str) -> None:
    own = folder / "own"
    own.write_text("mine")
    with own.open(), pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        REFUSED[how](folder, folder / SLICE, own)
    assert own.read_text() == "mine"
    own.unlink()
    assert (folder / SLICE).stat().st_size == SIZE and not (folder / "new").exists()


def test_a_file_that_is_open_stays_when_it_can_not_be_replaced(folder: Path) -> None:
    own = folder / "own"
    own.write_text("mine")
    with own.open() as opened:
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (folder / SLICE).rename(own)
        assert opened.read() == "mine" and own.read_text() == "mine"
    assert own.read_text() == "mine"
    own.unlink()


def test_access_tells_what_can_be_written(folder: Path, work: Path) -> None:
    (work / "own").touch()
    assert os.access(work / "own", os.W_OK) and os.access(folder, os.W_OK | os.X_OK)
    assert os.access(folder / SLICE, os.R_OK) and not os.access(folder / SLICE, os.W_OK)


def test_inode_numbers_are_ones_own(folder: Path, work: Path) -> None:
    for number in range(20):
        (work / f"{number}").touch()
    found = {path: path.stat().st_ino for path in folder.rglob("*")}
    assert len(set(found.values())) == len(found)
    listed = {entry.path: entry.inode() for entry in os.scandir(work)}
    assert listed == {str(path): ino for path, ino in found.items() if path.parent == work}


# -- as on a local disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_with_crashes(
    mounter: Mounter, server: S3Server, tmp_path: Path, seed: int
) -> None:
    """In full: python tests/scratch_machine.py --steps 100000."""
    option = f"--scratch={tmp_path}/kept"
    tree = mounter(option)
    folder = tree / "train" / SPECIMEN
    plain = made(tmp_path / "plain")
    mounted = scratch_machine.Side(folder, frozenset(path.name for path in folder.iterdir()))
    server.reset()
    did = scratch_machine.run(
        seed, 700, mounted, scratch_machine.Side(plain), lambda: mounter.crash(tree, option)
    )
    assert did > 100 and server.log() == []
    assert mounter.run("umount", str(tree)).returncode == 0


def test_random_writes_truncates_and_maps(work: Path) -> None:
    """As fsx does, with what was written kept in memory. In full: python tests/scratch_machine.py --file."""
    scratch_machine.exercise(work / "file", random.Random(4), 400)


def test_what_was_synced_survives_a_crash(mounter: Mounter, tmp_path: Path) -> None:
    tree = mounter(f"--scratch={tmp_path}/kept")
    folder = tree / "train" / SPECIMEN
    fd = os.open(folder / "result", os.O_RDWR | os.O_CREAT)
    assert os.write(fd, os.urandom(3_000_000)) == 3_000_000
    os.fsync(fd)
    with mmap.mmap(fd, 0) as view:
        view[1000:1004] = b"bffs"
        view.flush()
    mounter.crash(tree, f"--scratch={tmp_path}/kept")
    found = (folder / "result").read_bytes()
    assert len(found) == 3_000_000 and found[1000:1004] == b"bffs"
    with pytest.raises(OSError, match=r"not connected|aborted"):
        os.fsync(fd)
    os.close(fd)


@pytest.mark.parametrize("is_open", [True, False], ids=["while it is open", "closed"])
def test_a_crash_between_the_two_steps_of_replacing_loses_no_name(
    mounter: Mounter, tmp_path: Path, is_open: bool
) -> None:
    """What libfuse does with a file that is open: first out of the way, then renamed over."""
    kept = tmp_path / "kept"
    (kept / ".bffs/unlinked").mkdir(parents=True)
    (kept / "train" / SPECIMEN).mkdir(parents=True)
    (kept / ".bffs/unlinked/1-0").write_text("precious")
    if is_open:
        (kept / ".bffs/unlinked/1-0.was").symlink_to(f"train/{SPECIMEN}/x.swc")
    kept.chmod(0o700)
    tree = mounter(f"--scratch={kept}")
    found = tree / "train" / SPECIMEN / "x.swc"
    assert found.exists() == is_open
    assert list((kept / ".bffs/unlinked").iterdir()) == []


def test_renaming(work: Path) -> None:
    a, b, folder = work / "a", work / "b", work / "folder"
    a.write_text("a")
    b.write_text("b")
    with b.open() as old:
        a.rename(b)
        assert old.read() == "b" and os.fstat(old.fileno()).st_nlink == 0
    assert b.read_text() == "a" and not a.exists()
    a.write_text("a")
    for flags, reason in ((1, errno.EEXIST), (4, errno.EINVAL)):
        with pytest.raises(OSError, match=os.strerror(reason)):
            scratch_machine.renameat2(str(a), str(b), flags)
    scratch_machine.renameat2(str(a), str(work / "c"), 1)
    scratch_machine.renameat2(str(work / "c"), str(b), 2)
    assert (work / "c").read_text() == "a" and b.read_text() == "a"
    folder.mkdir()
    (folder / "x").touch()
    folder.rename(work / "moved")
    assert [path.name for path in (work / "moved").iterdir()] == ["x"]
    for target, reason in ((b, errno.ENOTDIR), (work / "moved" / "in", errno.EINVAL)):
        with pytest.raises(OSError, match=os.strerror(reason)):
            (work / "moved").rename(target)
    other = made(work / "other")
    (other / "y").touch()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        (work / "moved").rename(other)
    with pytest.raises(IsADirectoryError):
        b.rename(other)
    (other / "y").unlink()
    (work / "moved").rename(other)
    assert (other / "x").exists()


def test_deleting(work: Path) -> None:
    file = work / "file"
    file.write_text("text")
    with file.open("r+") as opened:
        file.unlink()
        assert [*work.iterdir()] == []
        assert os.fstat(opened.fileno()).st_nlink == 0
        opened.write("more")
        opened.flush()
        opened.seek(0)
        assert opened.read() == "more" and os.fstat(opened.fileno()).st_size == 4
        os.ftruncate(opened.fileno(), 2)
        os.fchmod(opened.fileno(), 0o600)
        assert stat.S_IMODE(os.fstat(opened.fileno()).st_mode) == 0o600
        file.write_text("another")
        opened.seek(0)
        assert opened.read() == "mo" and file.read_text() == "another"
    inner = made(work / "inner")
    with (inner / "open").open("w") as opened:
        (inner / "open").unlink()
        inner.rmdir()
        opened.write("nowhere")
    for gone, reason in ((inner, errno.ENOENT), (work, errno.ENOTEMPTY), (file, errno.ENOTDIR)):
        with pytest.raises(OSError, match=os.strerror(reason)):
            gone.rmdir()
    with pytest.raises(IsADirectoryError):
        work.unlink()
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        (work / ("x" * 256)).touch()


def test_modes_times_and_links(work: Path) -> None:
    old = os.umask(0o027)
    try:
        (work / "file").touch()
        made(work / "folder")
    finally:
        os.umask(old)
    assert stat.S_IMODE((work / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((work / "folder").stat().st_mode) == 0o750
    os.utime(work / "file", ns=(1_111_111_111_222_333_444, 5))
    found = (work / "file").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_111_111_111_222_333_444, 5)
    (work / "link").symlink_to("../../train")
    assert os.readlink(work / "link") == "../../train"
    (work / "to slice").symlink_to(f"../{SLICE}")
    assert (work / "to slice").stat().st_size == SIZE
    os.utime(work / "link", ns=(1, 2), follow_symlinks=False)
    assert (work / "link").lstat().st_mtime_ns == 2
    os.link(work / "file", work / "again")
    (work / "again").write_text("through the other name")
    assert (work / "file").read_text() == "through the other name"
    one, two = (work / "file").stat(), (work / "again").stat()
    assert (one.st_ino, one.st_nlink, one.st_size) == (two.st_ino, 2, two.st_size)
    (work / "file").unlink()
    assert (work / "again").stat().st_nlink == 1
    os.mkfifo(work / "pipe")
    assert stat.S_ISFIFO((work / "pipe").stat().st_mode)
    os.setxattr(work / "again", "user.colour", b"blue")
    assert os.listxattr(work / "again") == ["user.colour"]
    os.removexattr(work / "again", "user.colour")
    with pytest.raises(FileExistsError):
        os.open(work / "again", os.O_CREAT | os.O_EXCL)
    fd = os.open(work / "space", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(fd, 0, 100_000)
    assert os.fstat(fd).st_size == 100_000
    os.close(fd)
    disk = os.statvfs(work)
    assert disk.f_bavail > 0 and disk.f_namemax == 255


def test_appending_from_several_processes(work: Path) -> None:
    write = (
        "import os, sys; fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for n in range(200): os.write(fd, (sys.argv[2] * 99 + '\\n').encode())"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", write, work / "log", name]) for name in "abc"
    ]
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    lines = (work / "log").read_text().splitlines()
    assert sorted(lines) == sorted([name * 99 for name in "abc" for _ in range(200)])


@pytest.mark.parametrize("lock", ["flock", "lockf"])
def test_locks_hold_between_processes(work: Path, lock: str) -> None:
    take = (
        f"import fcntl, sys; file = open(sys.argv[1], 'a')\n"
        f"fcntl.{lock}(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    with (work / "lock").open("a") as file:
        getattr(fcntl, lock)(file, fcntl.LOCK_EX)
        command = [sys.executable, "-c", take, str(work / "lock")]
        refused = subprocess.run(command, check=False, capture_output=True, text=True)
        assert "BlockingIOError" in refused.stderr
        getattr(fcntl, lock)(file, fcntl.LOCK_UN)
        assert subprocess.run(command, check=False).returncode == 0


def test_nothing_leads_out_of_the_folder(tmp_path: Path) -> None:
    """A link that somebody lays into the scratch folder, between a look-up and its use, leads bffs nowhere."""
    (tmp_path / "secret").write_text("secret")
    root = made(tmp_path / "root")
    (root / "planted").symlink_to(tmp_path)
    (root / "file").symlink_to(tmp_path / "secret")
    disk = Beneath(root)
    for use in (disk.stat, disk.scan, lambda path: disk.open(path, os.O_WRONLY | os.O_CREAT)):
        with pytest.raises(NotADirectoryError):
            use("planted/secret")
    with pytest.raises(NotADirectoryError):
        disk.rename("file", "planted/file")
    with pytest.raises(NotADirectoryError):
        disk.link("file", "planted/file")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        disk.open("file", os.O_WRONLY)
    assert stat.S_ISLNK(disk.stat("planted").st_mode)
    disk.close()
    assert (tmp_path / "secret").read_text() == "secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "secret"]


# -- several mounts ---------------------------------------------------------------------------------------------


@pytest.fixture
def pair(mounter: Mounter, tmp_path: Path) -> tuple[Path, Path]:
    """The same specimen's folder in two mounts of one scratch folder."""
    trees = [mounter(f"--scratch={tmp_path}/kept") for _ in range(2)]
    return (trees[0] / "train" / SPECIMEN, trees[1] / "train" / SPECIMEN)


def test_two_mounts_show_the_same_at_once(pair: tuple[Path, Path]) -> None:
    for turn in range(20):
        one, two = pair[turn % 2], pair[1 - turn % 2]
        name = f"f{turn}"
        assert not (two / name).exists()
        (one / name).write_text("one")
        assert (two / name).read_text() == "one"
        assert name in {path.name for path in two.iterdir()}
        (two / name).write_text("changed and longer")
        assert (one / name).stat().st_size == 18 and (
            one / name
        ).read_text() == "changed and longer"
        (one / name).write_text("changed and LONGER")
        assert (two / name).read_text() == "changed and LONGER"
        (two / name).rename(two / "moved")
        assert (one / "moved").exists() and not (one / name).exists()
        (one / "moved").unlink()
        assert not (two / "moved").exists()
        assert "moved" not in {path.name for path in two.iterdir()}


def test_a_second_mount_ends_what_the_first_remembers(mounter: Mounter, tmp_path: Path) -> None:
    option = f"--scratch={tmp_path}/kept"
    one = mounter(option) / "train" / SPECIMEN
    (one / "file").write_text("old")
    (one / "gone").touch()
    assert not (one / "new").exists()
    assert (one / "file").stat().st_size == 3 and [*one.iterdir()]
    with (one / "file").open() as opened:
        assert opened.read() == "old"
        two = mounter(option) / "train" / SPECIMEN
        (two / "file").write_text("longer than before")
        (two / "new").touch()
        (two / "gone").unlink()
        assert os.fstat(opened.fileno()).st_size == 18
        assert (one / "file").read_text() == "longer than before"
    names = {path.name for path in one.iterdir()}
    assert (one / "new").exists() and not (one / "gone").exists()
    assert "new" in names and "gone" not in names


def test_a_mount_that_crashed_is_no_company(mounter: Mounter, tmp_path: Path) -> None:
    option = f"--scratch={tmp_path}/kept"
    one = mounter(option)
    mounter.crash(one, option)
    (one / "file").write_text("x")
    assert (one / "file").read_text() == "x"


def test_a_mount_that_ends_leaves_nothing_of_deleted_files_that_were_open(
    mounter: Mounter, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    mountpoint = mounter(f"--scratch={kept}")
    with (mountpoint / "file").open("wb", buffering=0) as opened:
        opened.write(b"x" * 100_000)
        (mountpoint / "file").unlink()
        assert [*(kept / ".bffs/unlinked").iterdir()]
        assert mounter.run("umount", str(mountpoint)).returncode == 0
    assert not [*(kept / ".bffs/unlinked").iterdir()]


# -- names that the dataset takes -------------------------------------------------------------------------------


def test_a_name_that_appears_in_the_dataset_is_set_aside(tmp_path: Path) -> None:
    with S3Server({f"{SPECIMEN}/s-0001.tif": 1000}, bucket="growing") as server:
        mounter = Mounter(flags_of(server), tmp_path)
        try:
            log = tmp_path / "log"
            tree = mounter("--log-file", str(log))
            folder = tree / "train" / SPECIMEN
            (folder / "s-0002.tif").write_text("mine")
            (folder / "s-0002.tif.scratch").write_text("older")
            other = tree / "train" / "900000002"
            other.write_text("a file where a folder will be")
            server.change({f"{SPECIMEN}/s-0002.tif": b"the dataset's", "900000002/a-1.tif": b"x"})
            assert (
                mounter.run("refresh", *mounter.flags, f"--cache-dir={tmp_path}/cache").returncode
                == 0
            )
            end = time.monotonic() + 20
            while (folder / "s-0002.tif").read_bytes() != b"the dataset's":
                assert time.monotonic() < end
                time.sleep(0.1)
            assert (folder / "s-0002.tif.scratch.scratch").read_text() == "mine"
            assert (folder / "s-0002.tif.scratch").read_text() == "older"
            assert other.with_name("900000002.scratch").read_text().startswith("a file where")
            (other / "new").write_text("in it")
            assert [path.name for path in other.iterdir()] == ["a-1.tif", "manifest.json", "new"]
            assert log.read_text().count("the one that was saved is") == 2
            assert mounter.run("umount", str(tree)).returncode == 0
            again = mounter()
            assert (again / "train" / SPECIMEN / "s-0002.tif.scratch.scratch").read_text() == "mine"
            assert (again / "train/900000002/new").read_text() == "in it"
        finally:
            mounter.close()


# -- commands ---------------------------------------------------------------------------------------------------


def test_info_lists_what_was_saved(mounter: Mounter, folder: Path, work: Path) -> None:
    (work / "a.swc").write_bytes(b"x" * 2048)
    option = f"--scratch={mounter.folder}/kept"
    flags = [*mounter.flags, f"--cache-dir={mounter.folder}/cache", option]
    done = mounter.run("info", f"train/{SPECIMEN}", *flags, "--json")
    name = f"train/{SPECIMEN}/{work.name}/a.swc"
    assert json.loads(done.stdout)["saved_files"][name] == 2048
    assert f"  2.0K  {name}\n" in mounter.run("info", f"train/{SPECIMEN}", *flags).stdout


def test_link_makes_a_folder_to_write_in(
    mounter: Mounter, tree: Path, server: S3Server, tmp_path: Path
) -> None:
    place = tmp_path / "new" / "links"
    flags = [*mounter.flags, f"--cache-dir={mounter.folder}/cache"]
    for _ in range(2):
        done = mounter.run("link", f"train/{SPECIMEN}", str(place), *flags)
        assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in place.iterdir()) == sorted(
        key.partition("/")[2] for key in OBJECTS if key.startswith(SPECIMEN) and key[-1] != "/"
    )
    assert (place / SLICE).is_symlink() and (place / SLICE).stat().st_size == SIZE
    (place / f"{SLICE}_app2.swc").write_text("beside the link")
    (place / SLICE).unlink()
    (place / SLICE).write_text("mine")
    done = mounter.run("link", f"train/{SPECIMEN}", str(place), *flags)
    assert done.returncode == 1 and f"{place / SLICE} is in the way" in done.stderr
    done = mounter.run("link", "1", str(place), *flags)
    assert done.returncode == 5


def test_link_needs_a_mount(tmp_path: Path) -> None:
    with S3Server({"1/a-1.tif": 1000}, bucket="unmounted") as server:
        mounter = Mounter(flags_of(server), tmp_path)
        done = mounter.run("link", "1", str(tmp_path / "links"), *mounter.flags)
    assert done.returncode == 6 and "bffs mount" in done.stderr
    assert not (tmp_path / "links").exists()


# -- programs ---------------------------------------------------------------------------------------------------


def test_vaa3d_writes_beside_its_input_and_again(folder: Path) -> None:
    """APP2: the tracing written, read again and rewritten twice, by sorting and by resampling."""
    swc = folder / f"{SLICE}_x1_y2_z3_app2.swc"
    lines = [f"{n} 2 {n} {n} 0 1 {n - 1}\n" for n in range(1, 2000)]
    swc.write_text("".join(lines))
    for _ in range(2):
        read = swc.read_text().splitlines(keepends=True)
        with swc.open("w") as file:
            file.writelines(read[::-1])
    assert swc.read_text() == "".join(lines)
    (folder / f"{SLICE}.marker").write_text("#x,y,z\n")
    swc.unlink()
    (folder / f"{SLICE}.marker").unlink()


def test_shutu_writes_many_images_with_back_seeks_and_renames_over(work: Path) -> None:
    """mylib: stdio, the links of the IFDs patched behind; the dark field's rename and a new file in its place."""
    chance = random.Random(5)
    expected = {}
    for number in range(24):
        content = bytearray()
        name = work / f"X.tif.imFlat{number}.tif"
        with name.open("wb", buffering=4096) as file:
            for _ in range(6):
                piece = chance.randbytes(chance.randrange(20_000, 60_000))
                file.write(piece)
                content += piece
                place = chance.randrange(len(content) - 4)
                file.seek(place)
                file.write(b"LINK")
                content[place : place + 4] = b"LINK"
                file.seek(0, os.SEEK_END)
        expected[name] = bytes(content)
    assert {path: path.read_bytes() for path in work.iterdir()} == expected
    tile = work / "X.tif.imFlat0.tif"
    tile.rename(work / "X.org.tif")
    tile.write_bytes(b"corrected")
    (work / "part").write_bytes(b"auto.swc")
    (work / "part").rename(work / "X.tif.auto.swc")
    assert (work / "X.org.tif").read_bytes() == expected[tile]
    assert tile.read_bytes() == b"corrected"


def test_git_works_in_a_specimens_folder(work: Path) -> None:
    def git(*args: str) -> str:
        names = ("-c", "user.name=x", "-c", "user.email=x@x", "-c", "init.defaultBranch=main")
        done = subprocess.run(
            ["git", *names, *args], cwd=work, check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    git("init")
    for number in range(20):
        (work / f"macro{number}.ijm").write_text(f"run({number});\n" * number)
    git("add", ".")
    git("commit", "-qm", "first")
    (work / "macro3.ijm").write_text("changed\n")
    git("commit", "-qam", "second")
    git("repack", "-adq")
    git("fsck", "--strict")
    assert git("status", "--porcelain") == "" and len(git("log", "--oneline").splitlines()) == 2
    git("checkout", "-q", "HEAD~1")
    assert (work / "macro3.ijm").read_text() == "run(3);\n" * 3


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE"])
def test_sqlite_works_in_a_specimens_folder(work: Path, mode: str) -> None:
    write = (
        "import sqlite3, sys\n"
        "for n in range(30):\n"
        " db = sqlite3.connect(sys.argv[1], timeout=60)\n"
        " with db: db.execute('INSERT INTO t VALUES (?)', (n,))\n"
        " db.close()"
    )
    with sqlite3.connect(work / "db") as db:
        assert db.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode.lower(),)
        db.execute("CREATE TABLE t (n)")
    writers = [subprocess.Popen([sys.executable, "-c", write, work / "db"]) for _ in range(3)]
    assert [writer.wait(90) for writer in writers] == [0, 0, 0]
    assert db.execute("SELECT count(*), sum(n) FROM t").fetchone() == (90, 3 * 435)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_an_editor_saves(work: Path) -> None:
    """Vim's way with a backup, and the way of those that write a new file and rename it, synced."""
    text = work / "notes.txt"
    text.write_text("first\n")
    text.rename(work / "notes.txt~")
    fd = os.open(text, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, b"second\n")
    os.fsync(fd)
    os.close(fd)
    (work / "notes.txt~").unlink()
    new = work / ".notes.txt.swp"
    with new.open("x") as file, text.open() as reading:
        file.write("third\n")
        file.flush()
        os.fsync(file.fileno())
        new.rename(text)
        folder = os.open(work, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        assert reading.read() == "second\n"
    assert text.read_text() == "third\n"
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        os.open(work, os.O_TMPFILE | os.O_RDWR)  # so programs make a named one instead


def test_many_threads_save_at_once(work: Path) -> None:
    def save(thread: int) -> None:
        chance = random.Random(thread)
        for turn in range(30):
            file = work / f"{thread}-{turn % 5}"
            data = chance.randbytes(chance.randrange(200_000))
            file.with_suffix(".part").write_bytes(data)
            file.with_suffix(".part").rename(file)
            assert file.read_bytes() == data

    failures: list[BaseException] = []

    def run(thread: int) -> None:
        try:
            save(thread)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len([*work.iterdir()]) == 40


def test_no_handle_is_left_open(tree: Path, work: Path, mounter: Mounter) -> None:
    (driver,) = drivers(tree)
    for number in range(50):
        (work / f"{number}").write_bytes(b"x" * 1000)
    end = time.monotonic() + 10
    while any(str(kept(mounter)) in target for target in open_files(driver)):
        assert time.monotonic() < end
        time.sleep(0.05)


def open_files(process: int) -> list[str]:
    found = []
    for entry in os.scandir(f"/proc/{process}/fd"):
        try:
            found.append(os.readlink(entry.path))
        except FileNotFoundError:
            continue
    return [target for target in found if not target.endswith(("/kept", "/mounts"))]
