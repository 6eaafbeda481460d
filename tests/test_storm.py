"""`scripts/storm` in short: many faults, every byte right, no error seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, clean


def test_no_wrong_byte_and_no_error_in_a_storm() -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse on this machine")
    storm = [sys.executable, "scripts/storm", "--size=96", "--worse=3", "--latency=0.005"]
    done = subprocess.run(
        storm,
        cwd=ROOT,
        env=clean(os.environ),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    faults = re.search(r"storm: .* ([0-9]+) faults; 0 wrong bytes, 0 errors", done.stdout)
    assert faults is not None and int(faults[1]) >= 10, done.stdout
