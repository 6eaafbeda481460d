"""The package: what is declared is what is there and what is used, and the wheel works without the checkout."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import bffs

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "bffs").glob("*.py"))
SCRIPTS = [
    "scripts/_install.sh", "scripts/check", "scripts/coverage", "scripts/demo", "scripts/fuzz",
    "scripts/pictures", "scripts/soak", "scripts/test", ".ci/run",
]  # fmt: skip
BINDINGS = {"mfusepy", "fusepy"}
"""Imported by name, at run time."""


def declared() -> dict[str, set[str]]:
    """Distributions that setup.cfg names, by extra; those always needed are under ``."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    texts = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {
        extra: {re.split(r"[<>=\[]", line)[0] for line in text.split()}
        for extra, text in texts.items()
    }


def imported(source: Path) -> set[str]:
    """Top-level packages that a module imports at run time, the standard library's and its own left out."""
    tree = ast.parse(source.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body.clear()
        elif isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names - sys.stdlib_module_names - {"bffs"}


def test_the_map_names_every_module() -> None:
    assert bffs.__doc__ is not None
    rows = re.findall(r"^    (\S.*?)(?:  |$)", bffs.__doc__, re.MULTILINE)
    named = [name for row in rows for name in row.split(" | ")]
    assert sorted(named) == sorted({source.stem for source in SOURCES} - {"__init__"})


def test_dependencies_are_what_is_imported() -> None:
    requires = declared()
    for_demo, for_pictures, for_metrics = {"demo.py", "drawing.py"}, {"plots.py"}, {"metrics.py"}
    optional = for_demo | for_pictures | for_metrics | {"dataset.py"}
    needed = set().union(*(imported(file) for file in SOURCES if file.name not in optional))
    with_parts = {"botocore": "boto3", "urllib3": "boto3"}
    assert {with_parts.get(name, name) for name in needed} == requires[""] - BINDINGS
    needed_by_demo = set().union(*(imported(ROOT / "bffs" / name) for name in for_demo))
    assert needed_by_demo - {"botocore"} - requires[""] == requires["demo"]
    assert imported(ROOT / "bffs" / "plots.py") == requires["plot"]
    assert imported(ROOT / "bffs" / "dataset.py") == requires["array"]
    assert imported(ROOT / "bffs" / "metrics.py") == requires["metrics"]
    assert requires["fusepy"] == {"fusepy"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash(script: str) -> None:
    path = ROOT / script
    assert os.access(path, os.X_OK) == (not script.endswith(".sh"))
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "bffs", folder / "bffs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "pyproject.toml", "setup.cfg", *(p.name for p in ROOT.glob("*.md"))):
        shutil.copy(ROOT / name, folder)
    command = "pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir dist ."
    subprocess.run([sys.executable, "-m", *command.split()], cwd=folder, check=True)
    (built,) = (folder / "dist").iterdir()
    return built


def test_the_wheel_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if name.startswith("bffs/")}
        (about,) = (name for name in content.namelist() if name.endswith("/METADATA"))
        metadata = Parser().parsestr(content.read(about).decode())
    code = {f"bffs/{source.name}" for source in SOURCES}
    data = {f"bffs/data/{file.name}" for file in (ROOT / "bffs/data").iterdir()}
    assert names == code | data | {"bffs/py.typed"}
    assert metadata["Version"] == bffs.__version__
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "array",
        "bench",
        "demo",
        "fusepy",
        "fuzz",
        "metrics",
        "plot",
        "test",
    }


def test_the_wheel_works_on_its_own(wheel: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.metadata import entry_points\n"
        "from bffs.profiles import load_dataset\n"
        "print(load_dataset('brightfield').bucket)\n"
        "(script,) = entry_points(group='console_scripts', name='bffs')\n"
        "script.load()(['--version'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(wheel), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[:2] == [
        "brightfield-auto-reconstruction-competition",
        f"bffs {bffs.__version__}",
    ]
