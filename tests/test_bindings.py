"""The bindings and libraries of FUSE, and who mounts: the same tree with each, for root and for an ordinary user."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bffs.mountpoint import mount_at
from tests import scratch_machine
from tests.conftest import ROOT, Binding, Bucket, Mounter, drivers

DEVICE = Path("/dev/fuse")


def place(key: str) -> str:
    """Where an object of the demo's dataset is in the mount."""
    folder = "TEST_DATA_SET/"
    return f"test/{key.removeprefix(folder)}" if key.startswith(folder) else f"train/{key}"


def check_tree(tree: Path, bucket: Bucket) -> None:
    """Names, attributes and bytes are right."""
    files = {place(key): content for key, content in bucket.objects.items() if key[-1] != "/"}
    found = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    found = {name for name in found if not name.startswith("stacks/")}
    made = ("manifest.json", ".bffs/status.json")
    assert {name for name in found if not name.endswith(made)} == set(files)
    assert len(found) == len(files) + 7  # a manifest for each of five folders, two files at the top
    inodes = set()
    for name, content in files.items():
        path = tree / name
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(content).digest()
        status = path.stat()
        assert (status.st_size, stat.S_IMODE(status.st_mode)) == (len(content), 0o444)
        assert os.getxattr(path, "user.bffs.etag") == hashlib.md5(content).hexdigest().encode()
        inodes.add(status.st_ino)
    assert len(inodes) == len(files)
    assert (tree / "train").stat().st_size == sum(
        path.stat().st_size for path in (tree / "train").rglob("*") if path.is_file()
    )
    assert [path.name for path in tree.iterdir()] == [
        ".bffs",
        "specimens_manifest.json",
        "stacks",
        "test",
        "train",
    ]
    with pytest.raises(OSError, match="Read-only"):
        (tree / next(iter(files))).write_bytes(b"")
    assert not (tree / "absent").exists()


def check_scratch(tree: Path, plain: Path, binding: Binding) -> None:
    """What can be saved is as on the disk."""
    folder = next((tree / "train").iterdir())
    plain.mkdir()
    mounted = scratch_machine.Side(folder, frozenset(path.name for path in folder.iterdir()))
    flags = binding == "libfuse3"
    did = scratch_machine.run(8, 300, mounted, scratch_machine.Side(plain), flags=flags)
    assert did > 30


@pytest.mark.parametrize(
    ("binding", "library"),
    [("libfuse3", "libfuse3.so"), ("libfuse2", "libfuse.so.2"), ("fusepy", "libfuse.so.2")],
)
def test_each_binding_shows_the_same(
    mounted: Mounter, bucket: Bucket, binding: Binding, library: str
) -> None:
    tree = mounted(binding=binding)
    (driver,) = drivers(tree)
    assert f"/{library}" in Path(f"/proc/{driver}/maps").read_text()
    check_tree(tree, bucket)
    check_scratch(tree, mounted.folder / "plain", binding)
    done = mounted.run("umount", str(tree))
    assert (done.returncode, done.stderr) == (0, "")


# -- an ordinary user -------------------------------------------------------------------------------------------


class Ordinary:
    """Runs commands as an ordinary user with a home of his own."""

    def __init__(self, account: pwd.struct_passwd, home: Path, python: list[str]) -> None:
        self.uid = account.pw_uid
        self.home = home
        self._account = account
        self.python = python

    def run(self, *args: str, python: bool = True) -> subprocess.CompletedProcess[str]:
        """Run Python (or another program) with `args`."""
        return as_user(self._account, [*(self.python if python else ()), *args], self.home)


def as_user(
    account: pwd.struct_passwd, command: list[str], home: Path
) -> subprocess.CompletedProcess[str]:
    packages = sysconfig.get_path("purelib")
    env = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{packages}",
        "TMPDIR": str(home),
    }
    return subprocess.run(
        command, user=account.pw_uid, group=account.pw_gid, extra_groups=[], env=env, cwd=home,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=45, check=False,
    )  # fmt: skip


@pytest.fixture
def ordinary() -> Iterator[Ordinary]:
    """An ordinary user who may use FUSE."""
    if os.geteuid() != 0:
        pytest.skip("not root: every other mount of these tests is an ordinary user's")
    if shutil.which("fusermount3") is None:
        pytest.skip("there is no fusermount3 on this machine")
    account = pwd.getpwnam("nobody")
    with contextlib.ExitStack() as stack:
        mode = stat.S_IMODE(DEVICE.stat().st_mode)
        stack.callback(DEVICE.chmod, mode)
        DEVICE.chmod(0o666)  # as udev makes it
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bffs-user-")))
        os.chown(home, account.pw_uid, account.pw_gid)
        yield Ordinary(account, home, _python_of(account, home))


def _python_of(account: pwd.struct_passwd, home: Path) -> list[str]:
    """A Python that the user may run, with bffs and all it needs; skips the test if there is none."""
    same = f"python3.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{same}"):
        with contextlib.suppress(OSError):  # of a folder that is root's alone
            command = [python, "-c", "import bffs.cli, boto3, mfusepy"]
            if as_user(account, command, home).returncode == 0:
                return [python]
    pytest.skip(f"{account.pw_name} may not read {sys.executable}, its packages or this checkout")


def test_an_ordinary_user_mounts_reads_and_unmounts(ordinary: Ordinary, bucket: Bucket) -> None:
    tree = ordinary.home / "mnt"
    ordinary.run("mkdir", str(tree), python=False)
    flags = [*bucket.flags, "--no-sign-request"]
    try:
        done = ordinary.run("-m", "bffs", "mount", *flags, str(tree))
        assert (done.returncode, done.stderr) == (0, "")
        (driver,) = drivers(tree)
        assert Path(f"/proc/{driver}").stat().st_uid == ordinary.uid
        key = next(key for key in bucket.objects if key.endswith(".tif"))
        read = (
            "import hashlib, pathlib, sys; file = pathlib.Path(sys.argv[1]); "
            "print(hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_uid)"
        )
        done = ordinary.run("-c", read, str(tree / place(key)))
        assert done.stdout.split() == [
            hashlib.sha256(bucket.objects[key]).hexdigest(),
            str(ordinary.uid),
        ]
        with pytest.raises(PermissionError):  # not even root, without --allow-other
            next(tree.iterdir())
        done = ordinary.run("-m", "bffs", "umount", str(tree))
        assert (done.returncode, done.stderr) == (0, "")
        assert mount_at(tree) is None
        assert not drivers(tree)
    finally:
        if mount_at(tree) is not None:
            subprocess.run(["umount", "-l", tree], check=False)


SAVE = """
import errno, os, sys
slice = sys.argv[1]
own = os.path.dirname(slice) + "/own"
with open(own, "x") as file:
    file.write("mine")
print(open(own).read(), os.access(own, os.W_OK), os.access(slice, os.W_OK))
for change in (lambda: open(slice, "r+b"), lambda: os.truncate(slice, 0), lambda: os.rename(own, slice)):
    try:
        change()
    except OSError as error:
        print(errno.errorcode[error.errno])
os.chmod(own, 0)
try:
    open(own)
except PermissionError:
    print("forbidden")
os.unlink(own)
"""


def test_an_ordinary_user_saves_and_can_not_change_the_dataset(
    ordinary: Ordinary, bucket: Bucket
) -> None:
    tree = ordinary.home / "mnt"
    ordinary.run("mkdir", str(tree), python=False)
    try:
        done = ordinary.run("-m", "bffs", "mount", *bucket.flags, "--no-sign-request", str(tree))
        assert (done.returncode, done.stderr) == (0, "")
        key = next(key for key in bucket.objects if key.endswith(".tif"))
        done = ordinary.run("-c", SAVE, str(tree / place(key)))
        assert (done.stdout.split(), done.stderr) == (
            ["mine", "True", "False", "EROFS", "EROFS", "EROFS", "forbidden"],
            "",
        )
        assert ordinary.run("-m", "bffs", "umount", str(tree)).returncode == 0
    finally:
        if mount_at(tree) is not None:
            subprocess.run(["umount", "-l", tree], check=False)


def test_the_mounts_of_others_are_let_alone(
    ordinary: Ordinary, bucket: Bucket, mounted: Mounter
) -> None:
    done = ordinary.run("-m", "bffs", "mount", *bucket.flags, "--no-sign-request", "/mnt")
    assert done.returncode == 6 and len(done.stderr.splitlines()) == 1
    mounter = Mounter([*bucket.flags, "--no-sign-request"], ordinary.home / "root")
    mounter.folder.mkdir(mode=0o755)
    try:
        tree = mounter()
        done = ordinary.run("-m", "bffs", "umount", str(tree))
        assert done.returncode == 6
        assert done.stderr == f"bffs: {tree} can't be unmounted: is it another user's?\n"
        assert ordinary.run("ls", str(tree), python=False).returncode != 0
        shared = mounter("--allow-other")
        done = ordinary.run("ls", str(shared), python=False)
        assert done.stdout.split() == ["specimens_manifest.json", "stacks", "test", "train"]
    finally:
        mounter.close()


def test_a_device_that_is_not_for_everybody_is_said(ordinary: Ordinary, bucket: Bucket) -> None:
    DEVICE.chmod(0o600)
    tree = ordinary.home / "mnt"
    ordinary.run("mkdir", str(tree), python=False)
    done = ordinary.run("-m", "bffs", "mount", *bucket.flags, str(tree))
    assert done.returncode == 6
    assert done.stderr == (
        "bffs: /dev/fuse may not be used by this user: as root, chmod 666 /dev/fuse\n"
    )


def test_sharing_needs_the_administrators_consent(ordinary: Ordinary, bucket: Bucket) -> None:
    conf = Path("/etc/fuse.conf")
    if conf.exists() and "user_allow_other" in conf.read_text().split("\n"):
        pytest.skip("this machine allows it")
    tree = ordinary.home / "mnt"
    ordinary.run("mkdir", str(tree), python=False)
    done = ordinary.run("-m", "bffs", "mount", *bucket.flags, "--allow-other", str(tree))
    assert done.returncode == 6
    assert "user_allow_other in /etc/fuse.conf" in done.stderr
