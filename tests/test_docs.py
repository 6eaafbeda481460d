"""The documentation runs: every fenced block of README.md and docs/*.md, against servers of this machine.

- `sh` and `ipython` blocks are run command by command, with what a reader would have by then: a mount at
  /mnt/neurons (put elsewhere here), a home, saved results. `INTERRUPTED` commands get a Ctrl-C. What can't run
  here is in `NOT_RUN`, with the reason.
- `console` blocks are run, and what they print is compared.
- `python` blocks are run, `ijm` blocks by ImageJ.
- `toml`, `ini`, `yaml`, `json`, `dockerfile`, `fstab`, `autofs` are parsed.
- Any other block fails, and so does an entry below that no block needs any more.

Commands and options that are named in sentences and tables exist.
"""

from __future__ import annotations

import configparser
import importlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
import yaml

from bffs.cli import main
from tests.conftest import CREDENTIALS, ROOT, Bucket, clean, faults, in_terminal
from tests.s3server import LAYOUT, S3Server, Source
from tests.slices import tiff

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BUCKET = "brightfield-auto-reconstruction-competition"
MOUNT = "/mnt/neurons"
"""As the pages call it."""

METRICS_PORT = "9469"
"""Another one here."""

SYSTEM = "it changes the system"
MISSING = "the program is not at hand"
DEPLOYED = "tests/test_deploy.py runs it, where it changes nothing"
NOT_RUN = {
    "scripts/test": "this test is part of it",
    "sudo apt-get install fuse3": SYSTEM,
    "apt-get install -y -qq fuse3": SYSTEM,
    "pip install .": "an installation needs a network; tests/test_packaging.py builds the wheel",
    "pip install -q ./bffs": "the same",
    'sudo install -d -o "$USER" /mnt/neurons': SYSTEM,
    'pip install "napari[all]" napari-ome-zarr': "it needs a network",
    "napari --plugin napari-ome-zarr $S.ome.zarr": MISSING,
    "mpirun -n 4 ShuTuAutoTrace 651806289- ShuTu.Parameters.dat": MISSING,
    "sudo python3 -m venv /opt/bffs": SYSTEM,
    "sudo /opt/bffs/bin/pip install .": SYSTEM,
    "sudo ln -sf /opt/bffs/bin/bffs /usr/local/bin/bffs": SYSTEM,
    "sudo mkdir -p /mnt/neurons": SYSTEM,
    "sudo mount -t fuse.bffs brightfield /mnt/neurons"
    " -o ro,allow_other,cache-dir=/var/cache/bffs,cache-size=200G": DEPLOYED,
    "sudo umount /mnt/neurons": DEPLOYED,
    "sudo systemctl daemon-reload": SYSTEM,
    "sudo systemctl enable --now bffs": SYSTEM,
    "systemctl status bffs": SYSTEM,
    "systemctl --user enable --now bffs": SYSTEM,
    "exec 9>/run/lock/bffs && flock 9": DEPLOYED,
    "mountpoint -q /mnt/neurons && exit 0": DEPLOYED,
    "mkdir -p /mnt/neurons": DEPLOYED,
    "bffs mount --allow-other --read-only --cache-dir /var/cache/bffs --cache-size 200G"
    " --log-file /var/log/bffs.log /mnt/neurons 9>&-": DEPLOYED,
    "others=$(squeue --noheader --format %A --states running,configuring,suspended"
    ' --nodelist "$SLURMD_NODENAME" |\n    grep -vcx "$SLURM_JOB_ID")': DEPLOYED,
    '[ "$others" = 0 ] && bffs umount /mnt/neurons 9>&-': DEPLOYED,
    "exit 0": DEPLOYED,
    "podman build -t bffs .": MISSING,
    "podman run --rm --device /dev/fuse --cap-add SYS_ADMIN bffs doctor": MISSING,
    "sudo mkdir -p /mnt/bffs/neurons": SYSTEM,
    "sudo podman run -d --name bffs --device /dev/fuse --cap-add SYS_ADMIN -v bffs-cache:/var/cache/bffs"
    " -v /mnt/bffs:/mnt/bffs:rshared bffs": MISSING,
    "sudo podman stop bffs": MISSING,
    "npx http-server /mnt/neurons/stacks/train/651806289 --cors -p 9000": MISSING,
}
"""Commands that aren't run, and why."""

NOT_COMPARED = {
    "bffs doctor": "its lines are chosen from several machines; tests/test_doctor.py has each of them",
}
"""Commands of `console` blocks whose output isn't compared, and why."""

OPTIONAL = {"curl"}
"""Programs that not every machine has: commands that begin with one are skipped where it is missing."""

VERDICTS = {"bffs doctor": "ok    versions"}
"""Commands whose exit code says what they found on this machine, and what they say in any case."""

INTERRUPTED = {
    "scripts/demo": "Ctrl-C here",
    "bffs demo": "Ctrl-C here",
    f"bffs mount -f -v {MOUNT}": "is kept in",
}
"""Commands that go on until Ctrl-C, and what they say once all is well."""

INSTRUCTIONS = "FROM RUN COPY ADD CMD ENTRYPOINT ENV ARG USER WORKDIR VOLUME EXPOSE LABEL STOPSIGNAL HEALTHCHECK SHELL"


class Block(NamedTuple):
    """A fenced block: where it is, its language, its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in re.finditer(r"^ *```(\S*)[^\n]*\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text[: found.start()].count("\n") + 1, found[1], found[2])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of(*languages: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", [pytest.param(b, id=b.name) for b in chosen])


def commands(block: Block) -> list[str]:
    """The commands of a shell block, without comments; what spans lines, or is within braces or a loop, is one."""
    text = re.sub(r"\\\n\s*", "", block.text)
    if block.language == "ipython":
        text = re.sub(r"^!", "", text, flags=re.MULTILINE)
    found: list[str] = []
    for line in text.splitlines():
        command = re.sub(r"(^|\s+)#\s.*$", "", line).rstrip()
        if found and not is_complete(found[-1]):
            found[-1] += f"\n{line}"
        elif command.strip():
            found.append(command)
    return found


def is_complete(command: str) -> bool:
    checked = subprocess.run(["bash", "-nc", command], capture_output=True, check=False)
    return checked.returncode == 0


# -- a world to run in ------------------------------------------------------------------------------------------

SWC = b"# one\n1 1 10 20 3 1 -1\n2 2 11 21 4 1 1\n"


def objects(folder: Path) -> dict[str, Source]:
    """The specimens that the pages name, with fewer pixels: all slices of a size are one file."""
    found: dict[str, Source] = {}
    for name, depth, height, width in (
        ("651806289", 291, 1100, 900),
        ("647289876", 12, 96, 128),
        ("741428906", 9, 96, 128),
        ("TEST_DATA_SET/741428906", 9, 96, 128),
    ):
        file = folder / f"{height}.tif"
        file.write_bytes(tiff(height, width, random.Random(1).randbytes(height * width)))
        for z in range(1, depth + 1):
            found[f"{name}/reconstruction_0_0539044762_644941196-{z:04}.tif"] = file
        if "/" not in name:
            found[f"{name}/{name}.swc"] = SWC
    return found


@dataclass
class World:
    """A reader: a home, a mountpoint, a bucket, and a `bffs` on the path."""

    folder: Path
    server: S3Server
    mountpoint: Path
    env: dict[str, str]
    port: int

    def put(self, text: str) -> str:
        """What a page says, for this machine."""
        text = text.replace(MOUNT, str(self.mountpoint)).replace(METRICS_PORT, str(self.port))
        return re.sub(r"(?m)^scripts/", f"{ROOT}/scripts/", text)

    def cwd(self, page: Path) -> Path:
        """Where the reader of that page is."""
        folder = self.folder / page.stem
        if not folder.exists():
            folder.mkdir()
            for name in ("scripts", "tests", "bffs", "docs", ".venv"):
                if (ROOT / name).exists():
                    (folder / name).symlink_to(ROOT / name)
        return folder

    def shell(self, page: Path, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euc", self.put(command)],
            env=self.env,
            cwd=self.cwd(page),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    @property
    def is_mounted(self) -> bool:
        return os.path.ismount(self.mountpoint)

    def mount(self, wanted: bool = True) -> None:
        if self.is_mounted != wanted:
            command = ["mount"] if wanted else ["umount"]
            subprocess.run(
                ["bffs", *command, self.mountpoint], env=self.env, check=True, capture_output=True
            )


def home(folder: Path, endpoint_url: str) -> dict[str, str]:
    """An environment with a home of its own, in which `bffs` and `python` are those of this checkout."""
    tools = folder / "bin"
    tools.mkdir(parents=True)
    for name, module in {"bffs": "-m bffs", "python": "", "python3": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
        (tools / name).chmod(0o755)
    return {
        **clean(os.environ),
        **CREDENTIALS,
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(folder),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "BFFS_ENDPOINT_URL": endpoint_url,
        "BFFS_VENV": sys.prefix,
    }


def world(folder: Path, server: S3Server) -> World:
    mountpoint = folder / "neurons"
    env = home(folder, server.endpoint_url)
    for each in (mountpoint, folder / "results"):
        each.mkdir()
    stack = f"{mountpoint}/stacks/train/651806289/651806289"
    return World(folder, server, mountpoint, {**env, "S": stack}, free_port())


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Who has the small dataset, and has saved something beside it."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse on this machine")
    folder = tmp_path_factory.mktemp("objects")
    with S3Server(objects(folder), bucket=BUCKET) as server:
        made = world(tmp_path_factory.mktemp("reader"), server)
        made.mount()
        (made.mountpoint / "train/651806289/mine.swc").write_bytes(SWC)
        yield made
        made.mount(False)
        assert faults(made.folder) == []


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Who has the real dataset's keys and sizes, and four of its slices."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse on this machine")
    with S3Server(layout=LAYOUT, bucket=BUCKET) as server:
        made = world(tmp_path_factory.mktemp("owner"), server)
        made.mount()
        for command in (
            "warm 651806289 --slices :2",
            "warm 647244741 --slices :2",
            "pin 647244741",
        ):
            subprocess.run(
                ["bffs", *command.split()], env=made.env, check=True, capture_output=True
            )
        yield made
        made.mount(False)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# -- running ----------------------------------------------------------------------------------------------------


def test_every_block_is_of_a_kind_that_is_run_or_parsed() -> None:
    known = {"sh", "ipython", "console", "python", "ijm", *PARSED}
    assert {block.name: block.language for block in BLOCKS if block.language not in known} == {}
    assert len(BLOCKS) > 20


def test_what_is_not_run_is_still_there() -> None:
    said = [c for block in BLOCKS if block.language in ("sh", "ipython") for c in commands(block)]
    assert set(NOT_RUN) | set(INTERRUPTED) <= set(said)
    shown = [line[2:] for b in BLOCKS if b.language == "console" for line in b.text.splitlines()]
    assert set(NOT_COMPARED) <= set(shown)


def steps() -> list[Any]:
    """The commands of all shell blocks, in their order, but for those that can't run; a server and what is asked
    of it are one."""
    found = []
    for block in BLOCKS:
        if block.language in ("sh", "ipython"):
            joined = re.sub(r"&\0", "&\n", "\0".join(commands(block))).split("\0")
            for number, command in enumerate(joined, 1):
                if command not in NOT_RUN:
                    found.append(pytest.param(block.page, command, id=f"{block.name}-{number}"))
    return found


@pytest.mark.parametrize(("page", "command"), steps())
def test_commands_run(reader: World, page: Path, command: str) -> None:
    program = command.split(maxsplit=1)[0]
    if program in OPTIONAL and not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    reader.mount(re.search(r"\bbffs mount\b", command) is None)
    if command in INTERRUPTED:
        run_until_interrupted(reader, page, command, INTERRUPTED[command])
    elif "&\n" in command:
        run_beside(reader, page, command)
    else:
        done = reader.shell(page, command)
        verdict = command in VERDICTS and VERDICTS[command] in done.stdout
        assert done.returncode == 0 or verdict, f"{command}\n{done.stdout}{done.stderr}"


def run_until_interrupted(reader: World, page: Path, command: str, words: str) -> None:
    with subprocess.Popen(
        ["bash", "-c", f"exec {reader.put(command)}"], env=reader.env, cwd=reader.cwd(page),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if words in line:
                break
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert words in said and process.returncode == 0, said + rest


def run_beside(reader: World, page: Path, script: str) -> None:
    """Run commands the first of which is a server; its port is another here."""
    script = script.replace("6011", str(free_port()))
    done = reader.shell(page, f"trap 'kill $(jobs -p)' EXIT\n{script}")
    assert done.returncode == 0, done.stdout + done.stderr


@of("python")
def test_python_runs(reader: World, block: Block) -> None:
    reader.mount()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", reader.put(block.text)],
        env=reader.env, cwd=reader.cwd(block.page), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@of("ijm")
def test_macros_run(reader: World, block: Block) -> None:
    jar = Path("/usr/share/java/ij.jar")
    if not jar.exists() or not shutil.which("xvfb-run"):
        pytest.skip("ImageJ or Xvfb is not installed (Debian's imagej, xvfb)")
    reader.mount()
    macro, answer = reader.folder / "macro.ijm", reader.folder / "answer.txt"
    macro.write_text(f'{reader.put(block.text)}\nFile.saveString(nSlices, "{answer}");\n')
    java = ["java", f"-Duser.home={reader.folder}", "-jar", str(jar), "-batch", str(macro)]
    subprocess.run(["xvfb-run", "-a", *java], env=reader.env, check=True, timeout=100)
    assert float(answer.read_text()) == 291


# -- what is printed ----------------------------------------------------------------------------------------------


def sessions(block: Block) -> Iterator[tuple[str, list[str]]]:
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, *lines = part.splitlines()
        yield command, [line for line in lines if line.strip() and line != "..."]


def plain(line: str, home: Path) -> str:
    """A line of output, without what differs from one machine and day to the next."""
    line = line.replace(str(home), "/home/you")
    line = re.sub(r"\b[A-Z][a-z]{2} +\d+ +(\d\d:\d\d|\d{4})\b", "DATE", line)
    line = re.sub(r"^([dlr-][rwx-]{9} +\d+) +\S+ +\S+", r"\1 you you", line)
    return " ".join(line.split())


@of("console")
def test_what_commands_print_is_what_is_shown(owner: World, block: Block) -> None:
    owner.mount()
    for command, shown in sessions(block):
        # What is asked of the configuration is asked by somebody who uses the real store.
        bare = "unset BFFS_ENDPOINT_URL; " if "bffs config" in command else ""
        done = owner.shell(block.page, bare + command)
        if command in NOT_COMPARED:
            continue
        assert done.returncode == 0, done.stderr
        printed = [plain(line, owner.folder) for line in done.stdout.splitlines()]
        wanted = [plain(line, owner.folder) for line in shown]
        if command == "bffs cache":  # so much as is shown there takes long to fetch
            printed, wanted = (
                [re.sub(r"\b[\d.]+[KMGT]?\b", "N", x) for x in y] for y in (printed, wanted)
            )
        assert [line for line in wanted if line not in printed] == [], "\n".join(printed[:20])


def test_tables_look_right_at_80_columns_in_a_pipe_and_without_colours(owner: World) -> None:
    owner.mount()
    for command in (["ls"], ["cache"], ["status", str(owner.mountpoint)]):
        piped = subprocess.run(
            ["bffs", *command], env=owner.env, capture_output=True, text=True, check=True
        )
        assert "\x1b" not in piped.stdout
        assert not re.search(r"(?m) $", piped.stdout)
        for extra in ({}, {"NO_COLOR": "1"}):
            env = {**owner.env, "TERM": "xterm-256color", "COLUMNS": "80", **extra}
            shown = in_terminal(["bffs", *command], env)
            text = re.sub(r"\x1b\[[\d;]*m", "", shown)
            assert "\x1b[" in shown and "\x1b" not in text
            if extra:
                assert not re.search(r"\x1b\[(\d+;)*[349]\d", shown)
            path = str(owner.folder)
            assert all(len(line) <= 80 or path in line for line in text.splitlines())
            if command[0] != "status":  # whose figures move, and whose paths are shortened
                assert [line.rstrip() for line in text.splitlines()] == piped.stdout.splitlines()


# -- parsing ----------------------------------------------------------------------------------------------------


def parse_ini(text: str) -> None:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(text)
    assert parser.sections()


def parse_yaml(text: str) -> None:
    assert all(isinstance(each, dict) for each in yaml.safe_load_all(text))


def parse_dockerfile(text: str) -> None:
    lines = re.sub(r"\\\n", " ", text).splitlines()
    words = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    assert "FROM" in words and set(words) <= set(INSTRUCTIONS.split())


def parse_autofs(text: str) -> None:
    """A line of a master map, or of a direct map: mountpoint, then map or options, then the rest."""
    for line in text.splitlines():
        assert line.startswith("#") or (line.startswith("/") and len(line.split()) == 3), line


def parse_fstab(text: str) -> None:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            assert len(line.split()) in (4, 6), line


PARSED: dict[str, Callable[[str], object]] = {
    "toml": tomllib.loads,
    "json": json.loads,
    "ini": parse_ini,
    "yaml": parse_yaml,
    "dockerfile": parse_dockerfile,
    "fstab": parse_fstab,
    "autofs": parse_autofs,
}


@of(*PARSED)
def test_files_that_are_shown_can_be_read(block: Block) -> None:
    PARSED[block.language](block.text)


# -- what is named in sentences -----------------------------------------------------------------------------------


def prose() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`([^`\n]+)`", text):
            yield page.name, span


def known_commands() -> dict[str, click.Command]:
    assert isinstance(main, click.Group)
    context = click.Context(main)
    found = {name: main.get_command(context, name) for name in main.list_commands(context)}
    made = {name: command for name, command in found.items() if command is not None}
    for name, command in list(made.items()):
        if isinstance(command, click.Group):
            made |= {f"{name} {inner}": each for inner, each in command.commands.items()}
    return made


def test_commands_and_options_that_are_named_exist() -> None:
    known = known_commands()
    everywhere = {
        name
        for command in (main, *known.values())
        for param in command.params
        for name in param.opts
    } | {"--help", "--version"}
    for page, span in prose():
        words = span.split()
        if words[0] == "bffs" and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
            assert words[1] in known, f"{page}: {span}"
        if words[0] == "bffs" or re.fullmatch(r"--[a-z-]+", words[0]):
            for word in words:
                option = word.partition("=")[0]
                if re.fullmatch(r"--[a-z][a-z-]+", option) and option not in FOREIGN:
                    assert option in everywhere, f"{page}: {span}"


FOREIGN = {"--apparent-size", "--cap-add", "--device", "--listing", "--local", "--security-opt"}
"""Options of other programs."""


def test_every_page_is_named_in_the_readme() -> None:
    readme = PAGES[0].read_text()
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in readme] == []


def test_extras_that_are_named_exist() -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    extras = set(parser["options.extras_require"])
    named = {
        name for page in PAGES for name in re.findall(r"(?:bffs|\.)\[(\w+)\]", page.read_text())
    }
    assert named and named <= extras


def test_every_module_is_named_to_developers() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", (ROOT / "docs/development.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([\w*]+)`", row)}
    modules = {path.stem for path in (ROOT / "bffs").glob("*.py")} - {"__init__", "__main__"}
    assert {m for m in modules if not any(fnmatch(m, pattern) for pattern in named)} == set()


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


# -- the notebook -----------------------------------------------------------------------------------------------

NOTEBOOK = ROOT / "docs" / "neurons.ipynb"
_EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=100).execute()
nbformat.write(notebook, sys.argv[2])
"""


def test_the_notebook_runs_against_the_demo_store(bucket: Bucket, tmp_path: Path) -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse on this machine")
    notebook = json.loads(NOTEBOOK.read_text())
    assert all(not cell.get("outputs") for cell in notebook["cells"]), "it is kept without outputs"
    made = home(tmp_path, bucket.endpoint_url)
    done = tmp_path / "done.ipynb"
    command = [sys.executable, "-c", _EXECUTE, str(NOTEBOOK), str(done)]
    try:
        ran = subprocess.run(
            command, env={**made, "BFFS_BUCKET": bucket.bucket}, cwd=tmp_path,
            capture_output=True, text=True, check=False, timeout=110,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    finally:
        if os.path.ismount(tmp_path / "neurons"):
            subprocess.run(["umount", "-l", tmp_path / "neurons"], check=False)
    outputs = [
        out for cell in json.loads(done.read_text())["cells"] for out in cell.get("outputs", [])
    ]
    text = "".join("".join(out.get("text", "")) for out in outputs)
    pictures = [out["data"]["image/png"] for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2 and all(len(picture) > 10_000 for picture in pictures)
    assert "5 specimens" in text and "specimens_manifest.json" in text and "prefetch" in text
    assert "Traceback" not in text and "bffs: " not in text


# -- the pictures -----------------------------------------------------------------------------------------------


def test_every_picture_is_shown_and_small() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text())
    }
    pictures = set((ROOT / "docs" / "pictures").iterdir())
    assert shown == pictures and len(pictures) >= 6
    assert all(picture.stat().st_size < 150_000 for picture in pictures)


def test_pictures_can_be_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse on this machine")
    monkeypatch.syspath_prepend(ROOT / "scripts")
    picturing = importlib.import_module("picturing")
    monkeypatch.setattr(picturing, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["picturing", "ls"])
    picturing.main()
    text = (tmp_path / "ls.svg").read_text()
    assert text.startswith("<svg") and "665856925" in text and "http://cdn" not in text
