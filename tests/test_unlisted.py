"""`stacks` as a link to a folder that no listing names: whoever asks comes in, whoever looks at everything doesn't."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bffs.unlisted import LINK, inside, outside
from tests.conftest import Binding, Mounter
from tests.s3server import S3Server
from tests.slices import tiff

PLANE = bytes(range(250)) * 200
OBJECTS = {f"7/s-{z:04}.tif": tiff(200, 250, PLANE) for z in range(1, 4)}


@given(
    st.sampled_from(["", "stacks", ".stacks", "train", "stacks.tif", "a"]),
    st.text("/a.", max_size=5),
)
def test_paths_there_and_back(first: str, rest: str) -> None:
    path = f"/{first}{rest}"
    there = outside(path)
    assert not (there + "/").startswith(f"{LINK}/")
    assert inside(there) == inside(path)
    if (path + "/").startswith(f"{LINK}/"):
        assert inside(there) == path
    elif not (path + "/").startswith("/.stacks/"):
        assert there == inside(path) == path


@pytest.mark.parametrize(
    "command",
    ["ls -laR .", "find .", "du -a .", "tar cf - . | tar t", "cp -r . ../copy; find ../copy"],
)
def test_walkers_stay_out(mounter: Mounter, server: S3Server, command: str) -> None:
    tree = mounter()
    before = server.stats()["requests"].get("get", 0)
    done = subprocess.run(
        ["sh", "-ec", command], cwd=tree, capture_output=True, text=True, timeout=60, check=True
    )
    assert "s-0001.tif" in done.stdout and "stacks" in done.stdout
    assert "stacks/" not in done.stdout and "7.v3draw" not in done.stdout
    if command.startswith(("ls", "find", "du")):
        assert server.stats()["requests"].get("get", 0) == before


def test_python_walkers_stay_out(mounter: Mounter) -> None:
    tree = mounter()
    assert not [each for each in os.walk(tree) if "stacks" in each[0]]
    assert list(tree.glob("stacks/*/*")) == [tree / "stacks/train/7"]


@pytest.mark.parametrize("binding", get_args(Binding))
@pytest.mark.parametrize("options", [(), ("--read-only",)])
def test_whoever_asks_comes_in(
    mounter: Mounter, binding: Binding, options: tuple[str, ...]
) -> None:
    tree = mounter(*options, binding=binding)
    stacks = tree / "stacks"
    status = stacks.lstat()
    assert (os.readlink(stacks), status.st_size) == (".stacks", len(".stacks"))
    assert stat.S_ISLNK(status.st_mode) and status.st_mtime == stacks.stat().st_mtime
    names = [path.name for path in tree.iterdir()]
    assert ".stacks" not in names and "stacks" in names
    assert status.st_ino != stacks.stat().st_ino
    folder = stacks / "train" / "7"
    assert (folder / "7.v3draw").read_bytes()[43:] == 3 * PLANE
    assert folder.resolve() == (tree / ".stacks/train/7").resolve()
    assert (folder.resolve() / "7.v3draw").stat().st_ino == (folder / "7.v3draw").stat().st_ino
    around = folder / "ome" / "../../../../train/7/s-0001.tif"
    assert around.read_bytes() == OBJECTS["7/s-0001.tif"]
    for change in (stacks.unlink, lambda: stacks.rename(tree / "other"), stacks.rmdir):
        with pytest.raises(OSError, match=r"Read-only|Not a directory"):
            change()
    with pytest.raises(FileExistsError):
        (tree / ".stacks").mkdir()
    with pytest.raises(OSError, match="Invalid argument"):
        os.readlink(tree / "train")


@pytest.mark.parametrize("binding", get_args(Binding))
def test_what_is_saved_among_stacks(mounter: Mounter, binding: Binding) -> None:
    kept = mounter.folder / "kept"
    tree = mounter(f"--scratch={kept}", binding=binding)
    folder = tree / "stacks" / "train" / "7"
    subprocess.run(["mkdir", "-p", folder / "sub" / "deep"], check=True)
    (folder / "sub" / "a.swc").write_text("traced")
    assert (kept / "stacks/train/7/sub/a.swc").read_text() == "traced"
    assert (folder / "sub" / "a.swc").read_text() == "traced"
    (folder / "sub" / "a.swc").rename(tree / "train/7/b.swc")
    (tree / "train/7/b.swc").rename(folder / "c.swc")
    os.link(folder / "c.swc", tree / "train/7/d.swc")
    (folder / "e.swc").symlink_to("../../../stacks/train/7/c.swc")
    assert os.readlink(folder / "e.swc") == "../../../stacks/train/7/c.swc"
    assert (folder / "e.swc").read_text() == "traced"
    os.setxattr(folder / "c.swc", "user.stacks", b"1")
    assert os.getxattr(folder / "c.swc", "user.stacks") == b"1"
    with (folder / "c.swc").open("rb") as file:  # unlinked while it is open
        (folder / "c.swc").unlink()
        assert file.read() == b"traced" and os.fstat(file.fileno()).st_nlink == 1
    assert not (folder / "c.swc").exists() and (tree / "train/7/d.swc").read_text() == "traced"
    names = ["7.imagej.tif", "7.ome.btf", "7.ome.zarr", "7.v3draw", "e.swc", "ome", "shutu", "sub"]
    assert [path.name for path in folder.iterdir()] == names
    with pytest.raises(OSError, match="Read-only"):
        (folder / "7.v3draw").write_bytes(b"")


def test_what_was_saved_in_a_folder_of_that_name(mounter: Mounter) -> None:
    """The local folder has the paths that people use, whatever the kernel is shown."""
    kept = mounter.folder / "kept"
    (kept / "stacks/train/7").mkdir(parents=True)
    (kept / "stacks/train/7/old.swc").write_text("old")
    tree = mounter(f"--scratch={kept}")
    assert (tree / "stacks/train/7/old.swc").read_text() == "old"
    done = mounter.run("info", *mounter.flags, f"--scratch={kept}",
                       f"--cache-dir={mounter.folder / 'cache'}", "7")  # fmt: skip
    assert "stacks/train/7/old.swc" in done.stdout
