"""The benchmark: plans, figures, that it notices wrong bytes, and one short run of everything."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tifffile

from bffs import passthrough
from scripts.benchmark import figures, main, plans
from scripts.benchmark.drivers import Driver
from scripts.benchmark.measure import Bench, Measurement
from tests.s3server import FAR, S3Server, Shape

ROOT = Path(__file__).resolve().parents[1]
SMALL = plans.Data(width=300, height=400, slices=12, bases=3)
CASES = {case.name: case for case in plans.CASES}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A benchmark with tiny data and a near server."""
    (tmp_path / "bases").mkdir()
    bases = plans.write_bases(SMALL, tmp_path / "bases")
    objects = {key: bases[number] for key, number in SMALL.base_of().items()}
    with S3Server(objects) as server:
        yield Bench(server, SMALL, bases, tmp_path, Shape(), 1 << 20, 64 << 20, timeout=30)


def test_slices_are_tiffs_and_neighbours_differ(tmp_path: Path) -> None:
    for path in plans.write_bases(SMALL, tmp_path):
        assert path.stat().st_size == SMALL.slice_size
        assert tifffile.imread(path).shape == (SMALL.height, SMALL.width)
        assert tifffile.memmap(path, mode="r").dtype == "uint8"  # one strip, no compression
    base_of = SMALL.base_of()
    bases = [base_of[SMALL.key(0, z)] for z in range(SMALL.slices)]
    assert all(one != next_ for one, next_ in itertools.pairwise(bases))


@pytest.mark.parametrize("data", [SMALL, main.SHORT, main.DATA])
@pytest.mark.parametrize("case", plans.CASES, ids=lambda case: case.name)
def test_plans_stay_inside_the_data(data: plans.Data, case: plans.Case) -> None:
    base_of = data.base_of()
    for reads in case.plan(data):
        assert reads
        for read in reads:
            assert read.key in base_of
            assert 0 <= read.start < read.stop <= data.slice_size


def test_the_ceiling_fetches_what_was_asked_and_no_more(bench: Bench) -> None:
    found = bench.run(CASES["region"], None, set())["region"]
    asked = sum(stop - start for _, start, stop in plans.region(SMALL)[0])
    assert found.error is None
    assert found.fetched == found.size == asked
    assert found.requests == {"get": SMALL.slices}


def test_wrong_bytes_are_noticed(bench: Bench) -> None:
    bench.bases.reverse()  # now the sources are not what the server serves
    found = bench.run(CASES["order"], None, {"order", "page"})
    assert set(found) == {"order", "page"}
    assert all((m.error or "").startswith("WRONG BYTES") for m in found.values())


def test_a_driver_that_does_not_mount_says_why(bench: Bench) -> None:
    dead = Driver("dead", "sh", lambda _: ["sh", "-c", "echo no luck; exit 3"])
    found = bench.run(CASES["cold"], dead, set())
    assert found["cold"].error == "dead did not mount: no luck"
    assert not (bench.folder / "dead" / "mnt").exists()


def test_a_run_has_an_end(bench: Bench) -> None:
    bench.timeout = 0.2
    bench.shape = Shape(latency=5)
    assert bench.run(CASES["cold"], None, set())["cold"].error == "not done after 0 s"


def test_medians_ratios_and_targets() -> None:
    def runs(*seconds: float) -> list[Measurement]:
        return [Measurement(seconds=s, size=900_000_000, cpu=0.9, memory=1 << 29) for s in seconds]

    results = {
        "order": {
            "ceiling": runs(1.0),
            "bffs": [*runs(9.0, 1.0, 1.2), Measurement(error="not done")],
            "rclone": runs(9.0),
            "s3fs": runs(6.1),
        }
    }
    rows = {row.title: row for row in figures.rows(results, figures.Terms(FAR, 512 << 20))}
    order = rows["slices in order"]
    assert order.values["bffs"] == pytest.approx(750)
    assert order.of_ceiling == pytest.approx(1 / 1.2)
    assert order.of_best_peer == pytest.approx(6.1 / 1.2)
    assert order.met is True
    assert rows["CPU of the driver, in order"].met is True
    slower = {"order": results["order"] | {"s3fs": runs(5.9)}}
    missed = figures.rows(slower, figures.Terms(FAR, 512 << 20))[0]
    assert (missed.title, missed.met) == ("slices in order", False)


def test_targets_move_with_the_store() -> None:
    def first(shape: Shape) -> bool | None:
        results = {"cold": {"bffs": [Measurement(seconds=1, size=1, first=[0.1])]}}
        return figures.rows(results, figures.Terms(shape, 0))[0].met

    assert first(FAR) is False
    assert first(FAR._replace(latency=0.1)) is True


def test_without_anything_to_compare_with_no_target_is_met() -> None:
    results = {"reverse": {"bffs": [Measurement(seconds=1, size=1)]}}
    assert figures.rows(results, figures.Terms(FAR, 0))[0].met is None


@pytest.mark.parametrize("option", ["--cases=none", "--only=none", "--slices=2", "--total=fast"])
def test_wrong_options_end_with_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.parse([option])
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")
def test_short_run_of_everything(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    command = [sys.executable, str(ROOT / "scripts" / "bench"), "--short", "--only", "ceiling,bffs"]
    more = ["--dir", str(tmp_path), "--json", str(output)]
    done = subprocess.run(
        [*command, *more], capture_output=True, text=True, timeout=300, check=False
    )
    document = json.loads(output.read_text())
    errors = {
        (case, driver): run["error"]
        for case, by_driver in document["results"].items()
        for driver, by_run in by_driver.items()
        for run in by_run
        if run["error"] and "page cache" not in run["error"]  # dropping it needs root
    }
    assert not errors, done.stderr
    assert set(document["results"]) == {case.name for case in plans.CASES}
    assert "slices in order" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def short_figures(folder: Path, mode: str) -> tuple[dict[str, float], str]:
    """The figures by title of a short run, which leaves nothing else behind, and what it printed."""
    report = folder / "figures.json"
    command = [sys.executable, "scripts/bench", mode, "--short", f"--json={report}"]
    done = subprocess.run(
        [*command, f"--dir={folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == [report]
    return {line["title"]: line["value"] for line in json.loads(report.read_text())}, done.stdout


def test_names_are_measured_without_a_request(tmp_path: Path) -> None:
    values, said = short_figures(tmp_path, "--listing")
    assert values.pop("requests from the mount to here") == 0
    assert all(value > 0 for value in values.values())
    assert "first ls -lR" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may drop the page cache")
def test_what_is_local_is_measured(tmp_path: Path) -> None:
    values, said = short_figures(tmp_path, "--local")
    assert values["hot: no passthrough, driver read"] == 0
    assert (values["cold: passthrough, driver read"] == 0) == (passthrough.why_not() is None)
    assert "saved: written, MB/s" in said
