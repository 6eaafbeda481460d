"""The kernel's own readahead: less for files of which planes are looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bffs.content import BytesContent
from bffs.kernelahead import KernelReadahead
from bffs.mountpoint import mount_at
from tests.conftest import Mounter
from tests.slices import tiff

OBJECTS = {f"7/s-{z:04}.tif": tiff(200, 250, bytes(50_000)) for z in range(1, 4)}


def test_each_open_gets_what_suits_it(mounter: Mounter) -> None:
    mountpoint = mounter()
    mounted = mount_at(mountpoint)
    assert mounted is not None
    if not os.access(mounted.readahead, os.W_OK):
        pytest.skip("this user may not change the kernel's readahead")
    stack = mountpoint / "stacks/train/7"
    for name, kib in (
        ("7.imagej.tif", 384),
        ("7.v3draw", 1024),
        ("7.ome.btf", 384),
        ("../../../train/7/s-0001.tif", 1024),
    ):
        (stack / name).open("rb").close()
        assert int(mounted.readahead.read_text()) == kib, name


def test_who_may_not_change_it_goes_without(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KernelReadahead(tmp_path / "no" / "knob")
    (tmp_path / "knob").write_text("128")
    readahead = KernelReadahead(tmp_path / "knob")
    assert (tmp_path / "knob").read_text() == "1024"
    (tmp_path / "knob").unlink()
    tmp_path.rmdir()
    readahead.suit(BytesContent(b""))  # the mount has gone meanwhile
