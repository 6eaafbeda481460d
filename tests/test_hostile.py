"""Keys, listings, folders and headers that somebody made to do harm."""

from __future__ import annotations

import json
import logging
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bffs import logs
from tests.conftest import Mounter
from tests.s3server import S3Server, pattern

SHOWN = [
    "1/a-0001.tif",
    "1/A-0001.tif",
    "1/e\u0301.tif",
    "1/\u00e9.tif",
    "1/ .tif",
    "1/-rf",
    "2/x.tif",
]
LEFT_OUT = [
    "../../etc/passwd", "1/../../../../etc/passwd", "/etc/passwd", "//x", "1/..", "1/.", "1//a.tif",
    "./1/a.tif", "../a.tif", "1/nul\0.tif", "1/line\nfeed.tif", "1/\x1b[31mred.tif", "1/" + 300 * "x",
    "1/" + 100 * "\u65e5" + ".tif", "1/manifest.json", "specimens_manifest.json", "2", "1/a-0001.tif/b.tif",
    "a\nb/c.tif", 300 * "y" + "/a.tif",
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(dict.fromkeys([*SHOWN, *LEFT_OUT], 1000), bucket="neurons") as server:
        yield server


def test_hostile_keys_are_left_out_and_counted_never_another_path(mounter: Mounter) -> None:
    mountpoint = mounter()
    train = mountpoint / "train"
    found = {
        str(path.relative_to(train))
        for path in train.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert found == set(SHOWN)
    for key in SHOWN:
        assert (train / key).read_bytes() == pattern(key, 0, 1000)
    assert {path.name for path in mountpoint.iterdir()} == {
        "train", "test", "stacks", "specimens_manifest.json", ".bffs"
    } - {name for name in ("test",) if not (mountpoint / name).exists()}  # fmt: skip
    manifest = json.loads((train / "1/manifest.json").read_text())
    assert manifest["id"] == "1"  # ours, not the bucket's
    left_out = json.loads((mountpoint / ".bffs/status.json").read_text())["listing"]["left_out"]
    assert sum(left_out.values()) >= 15 and all(count > 0 for count in left_out.values())


@pytest.mark.parametrize("fault", [{"do": "repeat", "nth": 1}, {"do": "cut"}, {"do": "xml"}])
def test_a_listing_that_makes_no_sense_leaves_the_mount_as_it_was(
    mounter: Mounter, server: S3Server, fault: dict[str, object]
) -> None:
    mountpoint = mounter()
    server.fault(**fault, kind="list")  # type: ignore[arg-type]
    assert mounter.run(
        "refresh", *mounter.flags, f"--cache-dir={mounter.folder / 'cache'}"
    ).returncode
    assert (mountpoint / "train/2/x.tif").read_bytes() == pattern("2/x.tif", 0, 1000)


@pytest.mark.parametrize("command", [["ls"], ["mount", "MOUNTPOINT"]])
def test_a_store_without_encryption_is_announced_in_one_line(
    mounter: Mounter, command: list[str]
) -> None:
    flags = ["--endpoint-url", "http://store.invalid", "--bucket", "b", "--no-sign-request"]
    (mounter.folder / "mnt").mkdir()
    words = [word.replace("MOUNTPOINT", str(mounter.folder / "mnt")) for word in command]
    done = mounter.run(*words, *flags)
    assert done.returncode == 3
    said, _ = done.stderr.splitlines()
    assert "http://store.invalid is not encrypted" in said
    secure = [word.replace("http:", "https:") for word in flags]
    assert "encrypted" not in mounter.run(*words, *secure).stderr


# -- planted ----------------------------------------------------------------------------------------------------


def foreign(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 12345, 12345)


def test_a_cache_folder_of_somebody_else_is_not_used(mounter: Mounter) -> None:
    cache = mounter.folder / "theirs"
    cache.mkdir()
    foreign(cache)
    mountpoint = mounter(f"--cache-dir={cache}")
    assert (mountpoint / "train/2/x.tif").read_bytes() == pattern("2/x.tif", 0, 1000)
    assert mounter.run("umount", str(mountpoint)).returncode == 0
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("planted", ["foreign", "fifo", "foreign link"])
def test_a_planted_log_is_refused(mounter: Mounter, planted: str) -> None:
    """As in a folder like /tmp that everybody may write to."""
    log, aim = mounter.folder / "the.log", mounter.folder / "aim"
    match planted:
        case "foreign":
            log.touch()
            foreign(log)
        case "foreign link":
            aim.write_text("precious\n")
            log.symlink_to(aim)
            os.lchown(log, 12345, 12345)
        case "fifo":
            os.mkfifo(log)
    mountpoint = mounter.folder / "mnt"
    mountpoint.mkdir()
    done = mounter.run("mount", *mounter.flags, "--log-file", str(log), str(mountpoint))
    assert done.returncode == 1 and not os.path.ismount(mountpoint)
    (line,) = done.stderr.splitlines()
    assert f"no log can be written to {log}" in line and "--log-file" in line
    assert not aim.exists() or aim.read_text() == "precious\n"


def test_a_log_may_be_a_link_of_ones_own(mounter: Mounter) -> None:
    log, aim = mounter.folder / "the.log", mounter.folder / "aim"
    log.symlink_to(aim)
    aim.touch(0o644)
    mountpoint = mounter("--log-file", str(log), "-v")
    assert mounter.run("umount", str(mountpoint)).returncode == 0
    assert stat.S_IMODE(aim.stat().st_mode) == 0o600


def test_each_log_that_is_begun_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, umask = logging.getLogger().handlers[:], os.umask(0)
    try:
        monkeypatch.setattr(logs, "LARGEST", 200)
        logs.to_file(logs.made_private(tmp_path / "log"), 0)
        for number in range(10):
            logging.getLogger("bffs.test").warning("a line of some length, number %d", number)
    finally:
        os.umask(umask)
        logging.basicConfig(handlers=before, force=True)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"log": 0o600, "log.1": 0o600}


def test_what_a_mount_writes_is_for_its_user_alone(mounter: Mounter) -> None:
    """Whatever the umask: the cache, the listing, the log, the lock of the driver."""
    log = mounter.folder / "log" / "own.log"
    log.parent.mkdir()
    before = os.umask(0)
    try:
        mountpoint = mounter("--log-file", str(log), "-v")
        assert (mountpoint / "train/2/x.tif").read_bytes() == pattern("2/x.tif", 0, 1000)
    finally:
        os.umask(before)
    assert mounter.run("umount", str(mountpoint)).returncode == 0
    made = [log, mounter.folder / "cache", *(mounter.folder / "cache").rglob("*")]
    open_to_others = [p for p in made if p.stat().st_mode & 0o077 and _is_reachable(p, mounter)]
    assert open_to_others == []


def _is_reachable(path: Path, mounter: Mounter) -> bool:
    """Whether nothing above it keeps others out."""
    above = [folder for folder in path.parents if folder.is_relative_to(mounter.folder / "cache")]
    return all(folder.stat().st_mode & 0o011 for folder in above)


def test_others_see_nothing_of_a_mount(mounter: Mounter) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    mountpoint = mounter()
    look = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "ls", str(mountpoint)]
    os.chmod(mounter.folder, stat.S_IRWXU | stat.S_IROTH | stat.S_IXOTH)
    done = subprocess.run(look, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "train" not in done.stdout
