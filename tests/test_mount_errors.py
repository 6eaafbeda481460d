"""How mounting fails: one line that says what to do, the exit code of its kind, and soon."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bffs.mountpoint import mount_at
from tests.conftest import ROOT, Mounter, drivers, flags_of
from tests.s3server import S3Server

OBJECTS = {"1/a-0001.tif": 1000}
KEY = "the-right-key"
SECRET = "a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server that knows one access key."""
    with S3Server(OBJECTS, bucket="neurons", access_key=KEY) as server:
        yield server


@pytest.fixture
def mounter(server: S3Server, tmp_path: Path) -> Iterator[Mounter]:
    mounter = Mounter(flags_of(server), tmp_path)
    (tmp_path / "mnt").mkdir()
    yield mounter
    server.reset()
    if mount_at(tmp_path / "mnt") is not None:
        mounter.run("umount", str(tmp_path / "mnt"))
    mounter.close()


HIDE_DEVICES = 'mount -t tmpfs none /dev && exec "$@"'


def fails(mounter: Mounter, code: int, *args: str, prefix: Sequence[str] = (), **env: str) -> str:
    """The line that a mount ends with, besides `code`, leaving nothing behind; soon, for `run` does not wait long."""
    secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    done = mounter.run("mount", *mounter.flags, *args, env=secrets | env, prefix=prefix)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr
    (line,) = done.stderr.splitlines()
    mountpoint = mounter.folder / "mnt"
    assert mount_at(mountpoint) is None and not drivers(mountpoint)
    assert [*(mounter.folder / "bffs").glob("*")] == []
    return line


@pytest.fixture(params=["background", "foreground"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The mountpoint, and -f or not."""
    return [str(tmp_path / "mnt"), *(["-f"] if request.param == "foreground" else [])]


# -- the store --------------------------------------------------------------------------------------------------


def test_a_wrong_key_is_4(mounter: Mounter, where: list[str]) -> None:
    said = fails(mounter, 4, *where, AWS_ACCESS_KEY_ID="another")
    assert "refuses access to bucket neurons" in said and "check the credentials" in said


def test_no_key_is_4(mounter: Mounter, where: list[str]) -> None:
    said = fails(mounter, 4, *where, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    assert "no credentials" in said and "AWS_ACCESS_KEY_ID" in said


def test_a_missing_bucket_is_1(mounter: Mounter, where: list[str]) -> None:
    said = fails(mounter, 1, *where, "--bucket", "absent")
    assert "no bucket absent; check --bucket" in said


def test_an_unreachable_endpoint_is_3(mounter: Mounter, where: list[str]) -> None:
    said = fails(mounter, 3, *where, "--endpoint-url", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 can't be reached" in said


def test_an_endpoint_that_answers_no_tls_is_3(
    mounter: Mounter, server: S3Server, where: list[str]
) -> None:
    url = server.endpoint_url.replace("http:", "https:")
    assert "no secure connection" in fails(mounter, 3, *where, "--endpoint-url", url)


def test_nonsense_from_the_endpoint_is_1(
    mounter: Mounter, server: S3Server, where: list[str]
) -> None:
    server.fault("xml", kind="list")
    assert "does not answer like S3; check --endpoint-url" in fails(mounter, 1, *where)


# -- FUSE -------------------------------------------------------------------------------------------------------


def test_no_libfuse_is_6(mounter: Mounter, where: list[str]) -> None:
    said = fails(mounter, 6, *where, FUSE_LIBRARY_PATH="/nonexistent/libfuse.so")
    assert "libfuse is missing" in said and "apt install" in said


def test_no_binding_is_6(mounter: Mounter, where: list[str]) -> None:
    hidden = mounter.folder / "hidden"
    hidden.mkdir()
    for name in ("mfusepy", "fuse"):
        (hidden / f"{name}.py").write_text("raise ImportError('hidden by a test')\n")
    said = fails(mounter, 6, *where, PYTHONPATH=f"{hidden}:{ROOT}")
    assert "pip install mfusepy" in said


def test_an_option_that_fuse_does_not_know_is_6(mounter: Mounter, where: list[str]) -> None:
    """The only failure with two lines: libfuse prints the first itself."""
    done = mounter.run(
        "mount", *mounter.flags, *where, "-o", "nonsense", env={"AWS_ACCESS_KEY_ID": KEY}
    )
    assert done.returncode == 6
    assert "nonsense" in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[1:] == [f"bffs: FUSE could not mount at {where[0]}"]


# -- the mountpoint ---------------------------------------------------------------------------------------------


def test_an_absent_mountpoint_is_6(mounter: Mounter) -> None:
    path = mounter.folder / "absent"
    assert f"{path} does not exist; mkdir -p {path}" in fails(mounter, 6, str(path))


def test_a_file_is_no_mountpoint(mounter: Mounter) -> None:
    path = mounter.folder / "file"
    path.touch()
    assert f"{path} is not a folder" in fails(mounter, 6, str(path))
    assert f"{path}/x does not exist" in fails(mounter, 6, f"{path}/x")


def test_a_folder_with_files_is_no_mountpoint(mounter: Mounter) -> None:
    (mounter.folder / "mnt" / "file").touch()
    said = fails(mounter, 6, str(mounter.folder / "mnt"))
    assert "is not empty; its files would be hidden" in said


def test_a_link_to_itself_is_no_mountpoint(mounter: Mounter) -> None:
    (mounter.folder / "loop").symlink_to("loop")
    assert "loop" in fails(mounter, 6, str(mounter.folder / "loop"))


def test_a_mountpoint_in_use_is_6(mounter: Mounter) -> None:
    mountpoint = mounter(env={"AWS_ACCESS_KEY_ID": KEY})
    done = mounter.run("mount", *mounter.flags, str(mountpoint))
    assert done.returncode == 6
    advice = f"bffs: {mountpoint} is mounted already; `bffs umount {mountpoint}` first\n"
    assert done.stderr == advice


@pytest.mark.parametrize(
    ("path", "said"), [("mnt", "nothing is mounted"), ("/", "not of bffs"), ("no", "nothing is")]
)
def test_unmounting_what_is_not_a_mount_of_bffs_is_6(
    mounter: Mounter, path: str, said: str
) -> None:
    done = mounter.run("umount", str(mounter.folder / path))
    assert (done.returncode, done.stdout) == (6, "")
    (line,) = done.stderr.splitlines()
    assert said in line


# -- the rest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--cache-size", "much"], ["--memory", "1K"], ["-o", "rw", "--read-only"]]
)
def test_wrong_values_are_2(mounter: Mounter, where: list[str], arguments: list[str]) -> None:
    assert fails(mounter, 2, *where, *arguments).startswith(f"bffs: {arguments[0]}")


def test_no_mountpoint_at_all_is_2(mounter: Mounter) -> None:
    done = mounter.run("mount")
    assert done.returncode == 2 and "MOUNTPOINT" in done.stderr


def test_an_unknown_specimen_is_5(mounter: Mounter) -> None:
    done = mounter.run("info", *mounter.flags, "12345", env={"AWS_ACCESS_KEY_ID": KEY})
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "bffs: no specimen 12345 in this dataset; `bffs ls` shows all\n"


def test_secrets_in_the_endpoint_are_not_repeated(mounter: Mounter, where: list[str]) -> None:
    said = fails(mounter, 2, *where, "--endpoint-url", f"https://me:{SECRET}@s3.example.org")
    assert "credentials come from" in said


@pytest.mark.parametrize("log_file", ["absent/log", "mnt"])
def test_a_log_that_cannot_be_written_is_said_before_anything_is_done(
    mounter: Mounter, server: S3Server, where: list[str], log_file: str
) -> None:
    server.reset()
    path = mounter.folder / log_file
    said = fails(mounter, 1, *where, "--log-file", str(path))
    assert f"no log can be written to {path}" in said and "--log-file" in said
    assert server.stats()["requests"] == {}


def test_a_cache_that_cannot_be_written_is_said_but_no_hindrance(mounter: Mounter) -> None:
    (mounter.folder / "file").touch()
    path = mounter.folder / "mnt"
    done = mounter.run(
        "mount", *mounter.flags, f"--cache-dir={mounter.folder / 'file'}", str(path),
        env={"AWS_ACCESS_KEY_ID": KEY},
    )  # fmt: skip
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "nothing is cached on disk" in line and str(mounter.folder / "file") in line
    try:
        assert len((path / "train" / "1" / "a-0001.tif").read_bytes()) == 1000
    finally:
        assert mounter.run("umount", str(path)).returncode == 0


def test_no_fuse_device_is_6(mounter: Mounter, where: list[str]) -> None:
    """As in a container without it: /dev is hidden in a mount namespace of its own."""
    if os.geteuid() != 0:
        pytest.skip("only root can hide /dev/fuse")
    said = fails(mounter, 6, *where, prefix=["unshare", "-m", "sh", "-c", HIDE_DEVICES, "sh"])
    assert said.startswith("bffs: /dev/fuse is missing")
