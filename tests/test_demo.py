"""The demo: its dataset has the real one's shape and shows the neurons it says, and it leaves nothing behind."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import boto3
import numpy as np
import pytest
import tifffile
from botocore import UNSIGNED
from botocore.config import Config

from bffs import demo, drawing
from bffs.errors import BffsError
from bffs.mountpoint import mount_at
from tests.conftest import Bucket, clean, drivers

WIDTH, HEIGHT, SLICES = 500, 400, 12


@pytest.fixture(scope="module")
def stack() -> tuple[list[drawing.Node], np.ndarray]:
    """A neuron and its slices."""
    nodes = drawing.grow(5, WIDTH, HEIGHT, SLICES)
    return nodes, np.array(list(drawing.stack(nodes, 5, WIDTH, HEIGHT, SLICES)))


# -- the dataset ------------------------------------------------------------------------------------------------


def test_keys_are_those_of_the_real_dataset(bucket: Bucket) -> None:
    slices = defaultdict(list)
    for key, content in bucket.objects.items():
        if match := re.fullmatch(r"((?:TEST_DATA_SET/)?\d{9})/(\S+)-(\d{4})\.tif", key):
            assert re.fullmatch(r"reconstruction_0_05390\d{5}_6\d{8}", match[2])
            slices[match[1]].append(int(match[3]))
        elif key.endswith("/"):
            assert content == b""
        else:
            assert re.fullmatch(r"(\d{9})/\1\.swc", key)
    first = {folder: numbers[0] for folder, numbers in slices.items()}
    assert first == {
        "900000001": 1,
        "900000002": 7,
        "900000003": 1,
        "TEST_DATA_SET/900000003": 1,
        "TEST_DATA_SET/900000004": 1,
    }
    assert all(numbers == sorted(numbers) for numbers in slices.values())
    assert len(slices["900000001"]) == 9
    markers = {f"{folder}/" for folder in (*slices, "TEST_DATA_SET")}
    assert {key for key in bucket.objects if key.endswith("/")} == markers
    tracings = {f"{folder}/{folder}.swc" for folder in slices if "/" not in folder}
    assert {key for key in bucket.objects if key.endswith(".swc")} == tracings


def test_the_same_at_every_call(bucket: Bucket) -> None:
    assert dict(demo.dataset(width=250, height=200, slices=9)) == bucket.objects


def test_slices_are_like_the_published_ones(bucket: Bucket) -> None:
    for key, content in bucket.objects.items():
        if key.endswith(".tif"):
            with tifffile.TiffFile(io.BytesIO(content)) as file:
                assert len(file.pages) == 1
                page = file.pages.first
                assert page.shape == (200, 250)
                assert page.dtype == np.uint8
                assert page.compression == tifffile.COMPRESSION.NONE
                assert len(page.dataoffsets) == 1


# -- the drawing ------------------------------------------------------------------------------------------------


def test_the_neuron_is_dark_where_its_tracing_is(
    stack: tuple[list[drawing.Node], np.ndarray],
) -> None:
    nodes, slices = stack
    darkest = slices.min(axis=0)
    x = np.array([min(round(node.x), WIDTH - 1) for node in nodes])
    y = np.array([min(round(node.y), HEIGHT - 1) for node in nodes])
    field = np.median(darkest)
    assert field > 150
    assert darkest[y[0], x[0]] < 40
    assert (darkest[y, x] < field - 5).mean() > 0.95
    assert np.median(darkest[y, x]) < field - 30
    for elsewhere in (darkest[y, -x - 1], darkest[-y - 1, x]):
        assert np.median(elsewhere) > field - 15


def test_focus_changes_with_depth(stack: tuple[list[drawing.Node], np.ndarray]) -> None:
    nodes, slices = stack
    nearer = 0
    for node in nodes:
        column = slices[:, int(node.y), int(node.x)].astype(int)
        there = round(node.z)
        nearer += column[there] < column[0 if there >= SLICES // 2 else -1]
    assert nearer > 0.9 * len(nodes)


def test_a_tracing_is_one_tree_within_the_stack(bucket: Bucket) -> None:
    text = bucket.objects["900000002/900000002.swc"].decode()
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    for number, (own, kind, *place, parent) in enumerate(lines, 1):
        x, y, z, radius = map(float, place)
        assert int(own) == number
        assert int(kind) in (drawing.SOMA, drawing.AXON, drawing.DENDRITE, drawing.APICAL_DENDRITE)
        assert int(parent) == -1 if number == 1 else 1 <= int(parent) < number
        assert 0 <= x < 250
        assert 0 <= y < 200
        assert 0 <= z <= 5
        assert radius > 0
    assert len(lines) > 300
    assert "slice" in text.partition("\n1 ")[0]


# -- the server -------------------------------------------------------------------------------------------------


def test_objects_are_read_without_credentials(bucket: Bucket) -> None:
    anonymous = boto3.client(
        "s3",
        endpoint_url=bucket.endpoint_url,
        region_name="us-east-1",
        config=Config(signature_version=UNSIGNED),
    )
    key = max(bucket.objects)
    answer = anonymous.get_object(Bucket=bucket.bucket, Key=key, Range="bytes=10-99")
    assert answer["Body"].read() == bucket.objects[key][10:100]


def test_the_server_ends_with_the_process_that_started_it() -> None:
    code = (
        "import os, bffs.demo as d\n"
        "with d.s3_server() as url:\n"
        "    print(url, flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean(os.environ),
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    url = done.stdout.strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
    host, port = url.removeprefix("http://").split(":")
    _await_refusal(host, int(port))


def test_without_moto_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moto", None)
    with pytest.raises(BffsError, match=r"pip install 'bffs\[demo\]'"), demo.s3_server():
        pass


# -- the whole --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse on this machine")
@pytest.mark.parametrize(
    ("end", "name"), [(signal.SIGINT, None), (signal.SIGTERM, "neurons of mine")]
)
def test_it_mounts_and_leaves_nothing_behind(
    tmp_path: Path, end: signal.Signals, name: str | None
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = clean(os.environ) | {"TMPDIR": str(temporary), "HOME": str(tmp_path)}
    arguments = [] if name is None else [name]
    process = subprocess.Popen(
        [sys.executable, "-m", "bffs", "demo", *arguments],
        env=env | {"BFFS_BUCKET": "not-the-demo", "AWS_PROFILE": "none-of-that-name"},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = ""
        while "Ctrl-C" not in said and (line := process.stdout.readline()):
            said += line
        match = re.search(r"^Mounted at (.*): ", said, re.MULTILINE)
        assert match, said
        mountpoint = Path(match[1])
        assert mountpoint == tmp_path / name if name else mountpoint.is_relative_to(temporary)
        shown = tifffile.imread(
            mountpoint / "train/900000002/reconstruction_0_0539000002_600000002-0007.tif"
        )
        assert shown.shape == (800, 1000)
        folder = f"{mountpoint}/train/900000001"
        stack = f"{mountpoint}/stacks/train/900000001/900000001.imagej.tif"
        slices = sorted(Path(folder).glob("*.tif"))
        assert (tifffile.imread(stack) == tifffile.imread(slices)).all()
        commands = [
            line for line in re.findall(r"(?m)^  (.*)$", said) if line not in (folder, stack)
        ]
        assert [shlex.split(command)[0] for command in commands[:2]] == ["ls", "head"]
        for command in commands:
            subprocess.run(command, env=env, shell=True, check=True, stdout=subprocess.DEVNULL)
        assert len(commands) == 7
        drawn = [shlex.split(command) for command in commands[-2:]]
        pictures = [words[words.index("-o") + 1] for words in drawn]
        assert all(Path(each).read_bytes().startswith(b"\x89PNG") for each in pictures)
    finally:
        process.send_signal(end)
        code = process.wait(60)
        process.stdout.close()
    assert code == 0
    assert mount_at(mountpoint) is None
    assert not mountpoint.exists()
    assert list(temporary.glob("bffs-demo-*")) == []
    assert drivers(mountpoint) == []


def test_a_folder_in_use_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "bffs", "demo", str(tmp_path)],
        env=clean(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 6
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert (tmp_path / "notes.txt").read_text() == "mine"


def _await_refusal(host: str, port: int) -> None:
    """Return once nothing listens there any more; fail if something still does after a while."""
    import socket
    import time

    end = time.monotonic() + 15
    while time.monotonic() < end:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    raise AssertionError(f"something listens at {host}:{port} still")
