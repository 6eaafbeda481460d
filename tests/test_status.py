"""The figures of a mount: true, alive, no burden; in its file, for people, for Prometheus, in the log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from bffs import outside
from bffs.errors import MountError
from tests.conftest import ROOT, Mounter, drivers, in_terminal, kill, status, until
from tests.s3server import S3Server, pattern

SIZE = 3_000_000
OBJECTS = {f"1/a-{number:04}.tif": SIZE for number in range(1, 5)} | {"1/..": 5, "1/x/y": 5}
SLICES = [key for key in OBJECTS if key.endswith(".tif")]
FIRST = "1/a-0001.tif"

ASKED = 400
"""Times: a driver whose stacks faulthandler wrote, on a signal, died within these."""


def read(mountpoint: Path, *keys: str) -> None:
    for key in keys:
        assert (mountpoint / "train" / key).read_bytes() == pattern(key, 0, SIZE)


# -- the file -------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_server(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter("--readahead=off")
    listed = server.stats()["requests"]["list"]
    read(mountpoint, FIRST)
    told, sent = status(mountpoint), server.stats()
    assert told["fetched"] == told["waited_for"] == told["from_memory"] == SIZE
    assert told["fetched"] == sent["sent"]["get"]
    assert told["requests"] == {"get": sent["requests"]["get"], "list": listed}
    assert told["prefetched"] == told["from_disk"] == 0
    assert told["pid"] in drivers(mountpoint)
    assert told["errors"] == told["retries"] == {}
    assert told["mountpoint"] == str(mountpoint)
    listing = told["listing"]
    assert (listing["specimens"], sum(listing["left_out"].values())) == (1, 2)


def test_what_comes_ahead_of_readers_is_told_apart(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter("--no-passthrough")
    server.reset()
    read(mountpoint, *SLICES)
    told = status(mountpoint)
    assert told["fetched"] == server.stats()["sent"]["get"] == len(SLICES) * SIZE
    assert SIZE < told["prefetched"] < told["fetched"]
    assert 0 < told["waited_for"] < told["from_memory"] <= told["fetched"]
    assert told["from_memory"] + told["from_disk"] == told["fetched"]


FAULTS: list[tuple[str, dict[str, Any], int]] = [
    ("StoreBusy", {"do": "status", "value": 503}, 3),
    ("StoreUnreachable", {"do": "reset"}, 2),
    ("BadAnswer", {"do": "close", "at": 200_000}, 2),
    ("BadAnswer", {"do": "range", "value": 4}, 4),
]


@pytest.mark.parametrize(("name", "fault", "times"), FAULTS)
def test_retries_are_the_faults_of_the_server(
    server: S3Server, mounter: Mounter, name: str, fault: dict[str, Any], times: int
) -> None:
    mountpoint = mounter("--readahead=off")
    server.reset()
    server.fault(**fault, kind="get", times=times)
    read(mountpoint, FIRST)
    told, sent = status(mountpoint), server.stats()
    assert told["retries"] == {name: times}
    assert sent["faults"] == times
    assert told["requests"]["get"] == sent["requests"]["get"]
    assert told["errors"] == {}
    assert told["fetched"] == SIZE
    assert 0 <= told["now"] - told["failure"]["at"] < 60
    assert told["failure"]["reason"]


def test_a_failed_read_is_counted_by_its_errno(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter("--readahead=off")
    server.fault("status", value=412, kind="get", key=FIRST)
    with pytest.raises(OSError, match="Stale"):
        (mountpoint / "train" / FIRST).read_bytes()
    assert list(status(mountpoint)["errors"]) == ["ESTALE"]


def test_it_is_read_anew_and_has_no_size(mounter: Mounter) -> None:
    mountpoint = mounter()
    before = status(mountpoint)
    read(mountpoint, FIRST)
    after = status(mountpoint)
    assert (before["fetched"], after["now"] > before["now"]) == (0, True)
    assert after["fetched"] >= SIZE
    path = mountpoint / ".bffs/status.json"
    assert path.stat().st_size == 0 and (mountpoint / ".bffs").stat().st_size == 0
    with path.open("rb") as file:
        assert file.read(5) + file.read() and file.read() == b""


def test_nothing_waits_and_nothing_is_held_when_all_is_read(mounter: Mounter) -> None:
    mountpoint = mounter()
    read(mountpoint, *SLICES)

    def at_rest() -> bool:
        told = status(mountpoint)
        return not told["memory"]["pinned"] and not told["queue"]["connections"]

    until(at_rest)
    told = status(mountpoint)
    assert told["memory"]["unwritten"] == told["queue"]["demands"] == 0
    assert 0 < told["memory"]["used"] <= told["memory"]["limit"]
    assert told["waiting"] == told["files"] == [] and told["open"] == 0


def test_specimens_that_are_read_are_told_with_what_is_here_of_them(mounter: Mounter) -> None:
    mountpoint = mounter("--readahead=1M")
    assert status(mountpoint)["specimens"] == []
    read(mountpoint, *SLICES[:3])
    paths = [mountpoint / "train" / key for key in SLICES]

    def here() -> int:
        return sum(int(os.getxattr(path, "user.bffs.cached")) for path in paths)

    until(lambda: here() >= 3 * SIZE and not status(mountpoint)["memory"]["unwritten"])
    (told,) = status(mountpoint)["specimens"]
    assert (told["path"], told["slices"], told["latest"]) == ("train/1", 4, 2)
    assert (told["cached"], told["bytes"]) == (here(), 4 * SIZE)
    assert 0 <= told["idle"] < 60


def test_open_files_are_told_with_who_has_them_and_what_they_wait_for(
    server: S3Server, mounter: Mounter
) -> None:
    mountpoint = mounter("--readahead=1M")
    server.fault("stall", value=3600, at=0, kind="get", key=SLICES[1])
    first, second = (str(mountpoint / "train" / key) for key in SLICES[:2])
    code = "import sys; f = open(sys.argv[1], 'rb', 0); f.read(200000); open(sys.argv[2], 'rb').read(1)"
    reader = subprocess.Popen([sys.executable, "-c", code, first, second])
    try:
        told: dict[str, Any] = {}

        def waits() -> bool:
            told.update(status(mountpoint))
            return {each["key"] for each in told["waiting"]} == {SLICES[1]}

        until(waits)
    finally:
        reader.kill()
        reader.wait()
    assert told["open"] == 2
    late, early = told["files"]
    assert (early["path"], late["path"]) == (f"train/{SLICES[0]}", f"train/{SLICES[1]}")
    assert {each["pid"] for each in told["files"]} == {reader.pid}
    assert late["program"].startswith("python")
    assert early["at"] >= 200_000 and early["waiting"] is None and early["size"] == SIZE
    assert 0 <= late["waiting"] < 60


def test_the_handles_of_one_process_are_one_entry_and_many_are_cut(mounter: Mounter) -> None:
    from bffs import status as module

    mountpoint = mounter()
    path = mountpoint / "train" / FIRST
    with path.open("rb"), path.open("rb"):
        (told,) = status(mountpoint)["files"]
        assert (told["handles"], told["pid"]) == (2, os.getpid())
    names = [mountpoint / f"{number:03}" for number in range(module.MOST_FILES + 5)]
    opened = [name.open("w") for name in names]
    told = status(mountpoint)
    for file in opened:
        file.close()
    assert told["open"] == len(names)
    assert [each["path"] for each in told["files"]] == [n.name for n in names[:4:-1]]


def test_what_was_saved_is_told_by_folder_with_its_size(mounter: Mounter) -> None:
    mountpoint = mounter()
    assert status(mountpoint)["saved"]["files"] == 0
    for path, size in {"note": 3, "train/1/a.swc": 5, "train/1/b/c.swc": 7, "mine/d/e": 11}.items():
        file = mountpoint / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
    until(lambda: status(mountpoint)["saved"]["files"] == 4)
    saved = status(mountpoint)["saved"]
    assert saved["bytes"] == 26
    assert saved["places"] == {
        "train/1": {"files": 2, "bytes": 12},
        "mine/d": {"files": 1, "bytes": 11},
        "": {"files": 1, "bytes": 3},
    }
    assert (Path(saved["folder"]) / "train/1/a.swc").stat().st_size == 5
    assert status(mounter("--read-only"))["saved"] is None


def test_every_key_is_documented(mounter: Mounter) -> None:
    text = (ROOT / "docs/status.md").read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
    documented = {key for keys, _ in rows for key in re.findall(r"`(\w+)`", keys)}
    mountpoint = mounter()
    with (mountpoint / "train" / FIRST).open("rb") as file:
        file.read(1)
        (mountpoint / "note").write_text("x")
        told = status(mountpoint)
    assert set(told) == documented
    meanings = {key: meaning for keys, meaning in rows for key in re.findall(r"`(\w+)`", keys)}
    groups = ("dataset", "memory", "queue", "link", "requests", "passthrough", "listing", "cache")
    for key in (*groups, "saved"):
        for inner in told[key]:
            assert f"`{inner}`" in meanings[key], (key, inner)
    for key in ("files", "specimens"):
        for inner in told[key][0]:
            assert f"`{inner}`" in meanings[key] or inner in meanings[key].split(), (key, inner)
    assert told["schema"] == 1


# -- for people -----------------------------------------------------------------------------------


def test_status_says_what_there_is(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter("--metrics", "0", "--no-passthrough")
    server.fault("status", value=503, kind="get", times=2)
    read(mountpoint, *SLICES)
    (mountpoint / "train/1/[bold]x.swc").write_bytes(bytes(1234))
    until(lambda: not status(mountpoint)["memory"]["unwritten"])
    with (mountpoint / "train" / FIRST).open("rb"):
        done = mounter.run("status", str(mountpoint), env={"PYTHONWARNDEFAULTENCODING": ""})
    assert (done.returncode, done.stderr) == (0, "")
    said = dict(re.findall(r"(?m)^(\S+) +(.*)$", done.stdout))
    assert str(mountpoint) in said["mount"]
    assert server.endpoint_url in said["dataset"]
    assert said["store"].split()[-1] == "12M"
    assert "in time" in said["prefetch"]
    assert "2 of them again: 2 StoreBusy" in said["requests"]
    assert "ago: " in said["failure"]
    assert said["errors"] == "none"
    assert "1 file, 1.3K in ~/" in said["saved"]
    assert re.search(r"(?m)^ +1.3K  1 file, train/1$", done.stdout)
    assert said["metrics"] == f"http://127.0.0.1:{status(mountpoint)['metrics_port']}/metrics"
    assert re.search(r"(?m)^train/1 +4 +4 +12M +12M +100 % ", done.stdout)
    assert re.search(rf"(?m)^\w\S* {os.getpid()} .* 2.9M +- +train/{FIRST}$", done.stdout)
    assert "\x1b" not in done.stdout
    assert not re.search(r"(?m) $", done.stdout)


def test_it_fits_80_columns_of_a_terminal(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter()
    server.fault("status", value=503, kind="get", times=1)
    read(mountpoint, FIRST)
    deep = mountpoint / ("folder" * 20) / "x.tif"
    deep.parent.mkdir()
    with deep.open("w"):
        for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            env = mounter.environment({"COLUMNS": "80", "TERM": "xterm-256color", **extra})
            shown = in_terminal([sys.executable, "-m", "bffs", "status", str(mountpoint)], env)
            plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
            assert max(map(len, plain.splitlines())) <= 80
            assert "…" in plain and "x.tif" in plain
            assert bool(re.search(r"\x1b\[[\d;]*3\dm", shown)) == coloured


def test_json_is_the_file(mounter: Mounter) -> None:
    mountpoint = mounter()
    done = mounter.run("status", "--json", str(mountpoint))
    assert done.returncode == 0
    told, file = json.loads(done.stdout), status(mountpoint)
    assert told.keys() == file.keys()
    assert {key: told[key] for key in ("pid", "started", "mountpoint", "dataset")} == {
        key: file[key] for key in ("pid", "started", "mountpoint", "dataset")
    }


@pytest.mark.parametrize("flags", [["--json"], []])
def test_watch_goes_on_until_it_is_interrupted(mounter: Mounter, flags: list[str]) -> None:
    mountpoint = mounter()
    with subprocess.Popen(
        [sys.executable, "-m", "bffs", "status", "--watch", *flags, str(mountpoint)],
        env=mounter.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        looks = 0
        for line in process.stdout:
            looks += line.startswith("{" if flags else "mount ")
            if flags:
                assert json.loads(line)["mountpoint"] == str(mountpoint)
            if looks == 2:
                break
        process.send_signal(signal.SIGINT)
        _, complaint = process.communicate()
    assert (process.returncode, complaint) == (0, "")


def test_watch_takes_a_terminal_and_leaves_the_last_look_on_it(mounter: Mounter) -> None:
    mountpoint = mounter()
    ours, theirs = os.openpty()
    env = mounter.environment({"COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"})
    opened = [(mountpoint / "train" / key).open("rb", 0) for key in 2 * SLICES]
    for file in opened:
        assert file.read(10)
    with subprocess.Popen(
        [sys.executable, "-m", "bffs", "status", "--watch", str(mountpoint)],
        env=env, stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while shown.count(b"prefetch") < 3:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the other side is closed
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
    for file in opened:
        file.close()
    assert process.returncode == 0
    during, _, after = shown.decode().partition("\x1b[?1049l")  # back from the alternate screen
    assert "\x1b[?1049h" in during
    for look in (during, after):
        assert all(word in look for word in ("prefetch", "a-0004.tif", "listing", "saved"))


def test_watch_ends_with_the_mount(mounter: Mounter) -> None:
    mountpoint = mounter()
    with subprocess.Popen(
        [sys.executable, "-m", "bffs", "status", "--watch", str(mountpoint)],
        env=mounter.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        mounter.run("umount", str(mountpoint))
        _, complaint = process.communicate()
    assert process.returncode == 6
    assert complaint.count("\n") == 1 and "nothing is mounted" in complaint


# -- where it can't -------------------------------------------------------------------------------


def test_what_is_no_mount_of_bffs_is_named(mounter: Mounter, tmp_path: Path) -> None:
    for path, words in {
        tmp_path / "absent": "nothing is mounted at",
        tmp_path: "nothing is mounted at",
        Path("/proc"): "is a mount of proc, not of bffs",
    }.items():
        done = mounter.run("status", str(path))
        assert done.returncode == 6
        assert words in done.stderr and str(path) in done.stderr and done.stderr.count("\n") == 1


_AS_NOBODY = """
import os, sys
from pathlib import Path
from bffs import errors, outside
os.setgid(65534), os.setuid(65534)
try: outside.figures(Path(sys.argv[1]))
except errors.MountError as error: print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_mount_of_another_user_is_named(mounter: Mounter) -> None:
    mountpoint = mounter()
    for folder in mountpoint.parents:  # else it is the way there that is forbidden
        if folder.stat().st_uid == os.geteuid() and folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(mountpoint)],
        env=mounter.environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == (
        f"{mountpoint} can't be asked: Permission denied; is it another user's?\n"
    )


def test_a_dead_mount_is_named(mounter: Mounter) -> None:
    mountpoint = mounter()
    kill(mountpoint)
    for flags in ([], ["--json"], ["--watch"]):
        done = mounter.run("status", *flags, str(mountpoint))
        assert done.returncode == 6
        assert "has gone" in done.stderr and f"`bffs umount {mountpoint}`" in done.stderr


def test_a_driver_that_does_not_answer_is_not_waited_for(
    mounter: Mounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    mountpoint = mounter()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(mounter.folder))
    driver = status(mountpoint)["pid"]
    os.kill(driver, signal.SIGSTOP)
    until(lambda: "(stopped)" in Path(f"/proc/{driver}/status").read_text())
    try:
        with pytest.raises(MountError, match=f"does not answer.*kill -USR1 {driver}`"):
            outside.figures(mountpoint, patience=0.5)
    finally:
        os.kill(driver, signal.SIGCONT)
    assert outside.figures(mountpoint)["pid"] == driver


# -- Prometheus -----------------------------------------------------------------------------------


def scraped(port: int) -> dict[str, float]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def test_metrics_are_the_figures(server: S3Server, mounter: Mounter) -> None:
    mountpoint = mounter("--metrics=0")
    server.fault("status", value=503, kind="get", times=2)
    read(mountpoint, *SLICES)
    told = status(mountpoint)
    found = scraped(told["metrics_port"])
    assert found["bffs_fetched_bytes_total"] == told["fetched"] == len(SLICES) * SIZE
    assert found["bffs_memory_read_bytes_total"] == told["from_memory"]
    assert found['bffs_requests_total{kind="get"}'] == told["requests"]["get"]
    assert found['bffs_retries_total{reason="StoreBusy"}'] == 2
    assert found["bffs_memory_limit_bytes"] == told["memory"]["limit"]
    assert found["bffs_cache_limit_bytes"] == told["cache"]["limit"]
    assert found["process_open_fds"] > 0
    named = re.findall(r"`(bffs_\w+)(?:\{\w+\})?`", (ROOT / "docs/status.md").read_text())
    seen = {name.partition("{")[0] for name in found} | {"bffs_read_errors_total"}
    assert {name for name in named if name.endswith("_total")} <= seen
    assert {name for name in seen if name.endswith("_total") and name[:4] == "bffs"} <= set(named)


def test_metrics_are_for_this_machine_alone(mounter: Mounter) -> None:
    port = status(mounter("--metrics=0"))["metrics_port"]
    with socket.create_connection(("127.0.0.1", port)):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def test_a_port_in_use_is_said_in_one_line(mounter: Mounter, tmp_path: Path) -> None:
    mountpoint = tmp_path / "second"
    mountpoint.mkdir()
    port = status(mounter("--metrics=0"))["metrics_port"]
    done = mounter.run("mount", *mounter.flags, f"--metrics={port}", str(mountpoint))
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr and "in use" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not drivers(mountpoint) and not os.path.ismount(mountpoint)


def test_without_prometheus_it_says_what_to_install(mounter: Mounter, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "prometheus_client.py").write_text("raise ImportError('hidden by a test')\n")
    env = {"PYTHONPATH": f"{hidden}:{ROOT}"}
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    done = mounter.run("mount", *mounter.flags, "--metrics=0", str(mountpoint), env=env)
    assert done.returncode == 1
    assert "pip install 'bffs[metrics]'" in done.stderr and done.stderr.count("\n") == 1


# -- the log --------------------------------------------------------------------------------------


def test_a_signal_writes_stacks_and_state_to_the_log(mounter: Mounter, tmp_path: Path) -> None:
    log = tmp_path / "mine.log"
    mountpoint = mounter(f"--log-file={log}")
    read(mountpoint, FIRST)
    os.kill(status(mountpoint)["pid"], signal.SIGUSR1)
    until(lambda: "the state: {" in log.read_text())
    text = log.read_text()
    assert "most recent call last" in text and "bffs/fetching.py" in text
    assert "\nbffs-receive:\n" in text and "\nbffs-fetch-0, bffs-fetch-1, " in text
    state = json.loads(text.partition("the state: ")[2].partition("\n")[0])
    assert state["fetched"] == SIZE
    assert set(state) == set(status(mountpoint))


def test_asking_while_everybody_reads_harms_nobody(mounter: Mounter, tmp_path: Path) -> None:
    log = tmp_path / "mine.log"
    mountpoint = mounter(f"--log-file={log}")
    driver = status(mountpoint)["pid"]
    asked = threading.Event()

    def busy() -> None:
        while not asked.is_set():
            list((mountpoint / "train/1").iterdir())
            status(mountpoint)

    with ThreadPoolExecutor(4) as readers:
        reading = [readers.submit(busy) for _ in range(4)]
        try:
            for _ in range(ASKED):
                os.kill(driver, signal.SIGUSR1)
                time.sleep(0.005)
        finally:
            asked.set()
    for each in reading:
        each.result()
    assert status(mountpoint)["pid"] == driver
    assert log.read_text().count("the state: {") > 1


def test_a_listing_that_hangs_can_be_asked_too(mounter: Mounter, server: S3Server) -> None:
    server.fault("stall", value=100, kind="list", key="1/")
    mountpoint = mounter.folder / "mnt"
    with mounter.start(mountpoint) as command:
        assert command.stderr is not None
        until(lambda: server.stats()["requests"].get("list", 0) == 3)  # both roots, and 1/
        (driver,) = set(drivers(mountpoint)) - {command.pid}
        os.kill(driver, signal.SIGUSR1)
        said = "".join(takewhile(lambda line: "the state: null" not in line, command.stderr))
        assert "most recent call last" in said and "bffs/catalog.py" in said
        server.reset()
        assert command.wait(15) == 0
    assert status(mountpoint)["pid"] == driver


def test_what_it_died_of_is_in_the_log(mounter: Mounter, tmp_path: Path) -> None:
    log = tmp_path / "mine.log"
    mountpoint = mounter(f"--log-file={log}")
    os.kill(status(mountpoint)["pid"], signal.SIGABRT)
    until(lambda: not drivers(mountpoint))
    text = log.read_text()
    assert "Aborted" in text and "most recent call first" in text and "bffs/fetching.py" in text


def test_a_log_that_is_begun_anew_is_told_of_faults(tmp_path: Path) -> None:
    code = (
        "import logging, os, sys; from bffs import logs\n"
        "from pathlib import Path; logs.LARGEST = 1000\n"
        "logs.to_file(Path(sys.argv[1]), 0)\n"
        "logging.warning('x' * 900); logging.warning('y' * 900); logging.warning('z' * 900)\n"
        "os.abort()\n"
    )
    log = tmp_path / "bffs.log"
    died = subprocess.run([sys.executable, "-c", code, str(log)], check=False, cwd=ROOT)
    assert died.returncode == -signal.SIGABRT
    text = log.read_text()
    assert "zzz" in text and "yyy" not in text
    assert "most recent call first" in text


def test_in_the_foreground_they_go_to_the_terminal(mounter: Mounter, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    process = mounter.start(mountpoint, "-f")
    until((mountpoint / ".bffs").exists)
    process.send_signal(signal.SIGUSR1)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "the state: {" in line:
            break
    assert any("most recent call last" in line for line in lines)
    mounter.run("umount", str(mountpoint))
    assert process.wait(20) == 0
    process.communicate()
