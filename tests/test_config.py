"""What a user sets up: `bffs config`, shell completion, the manual page, `bffs --version`."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from bffs import __version__, snapshot
from bffs.catalog import list_catalog
from bffs.cli import main
from bffs.cli_config import commented
from bffs.manpage import page
from bffs.options import OPTIONS
from bffs.precedence import resolve
from bffs.profiles import config_file, load_dataset
from tests.conftest import ROOT, clean
from tests.fakes import FakeStore

Bffs = Callable[..., subprocess.CompletedProcess[str]]
SECRET = "hunter2hunter2"

PROFILE = f"""
endpoint_url = "http://127.0.0.1:9"
bucket = "neurons"
access_key_id = "PUBLIC"
secret_access_key = "{SECRET}"
[splits]
"TEST_DATA_SET/" = "test"
"" = "train"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a profile, and no store that could be asked."""
    for name in clean({}) | {name: "" for name in os.environ if name.startswith(("BFFS_", "XDG_"))}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config/bffs/profiles").mkdir(parents=True)
    (tmp_path / ".config/bffs/profiles/lab.toml").write_text(PROFILE)
    return tmp_path


@pytest.fixture
def bffs(home: Path) -> Bffs:
    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bffs", *arguments], env=clean(os.environ) | {"HOME": str(home)} | env,
            capture_output=True, text=True, timeout=50, check=False, cwd=home,
        )  # fmt: skip

    return run


# -- config -----------------------------------------------------------------------------------------------------


def test_each_value_says_where_it_comes_from(bffs: Bffs) -> None:
    config_file().write_text('memory = "1G"\ncache_dir = "c"\n')
    done = bffs(
        "config", "show", "--json", "--region", "r-1", BFFS_DATASET="lab", BFFS_MAX_CONNECTIONS="8"
    )
    assert done.returncode == 0 and SECRET not in done.stdout
    told = json.loads(done.stdout)
    file, profile = str(config_file()), str(config_file().parent / "profiles/lab.toml")
    expected = {
        "region": ("r-1", "flag", "--region"),
        "dataset": ("lab", "environment", "BFFS_DATASET"),
        "max_connections": ("8", "environment", "BFFS_MAX_CONNECTIONS"),
        "memory": ("1G", "file", file),
        "cache_dir": (str(config_file().parent / "c"), "file", file),
        "bucket": ("neurons", "profile", profile),
        "splits": ("TEST_DATA_SET/ = test, others = train", "profile", profile),
        "cache_size": ("50G", "built-in", None),
    }
    for key, (value, place, where) in expected.items():
        assert told[key] == {"value": value, "from": place, "where": where}
    assert told.keys() == {option.key for option in OPTIONS} | {"splits", "voxel", "access_key"}


def test_the_table_is_for_people(bffs: Bffs) -> None:
    done = bffs("config", "show", "--dataset", "lab", "--bucket", "mine", BFFS_MEMROY="1G")
    assert done.returncode == 0 and SECRET not in done.stdout and "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["option", "from", "value"]
    assert "bucket           --bucket   mine" in lines
    assert "access_key       profile" in lines  # it goes to no other bucket
    assert all(line == line.rstrip() for line in lines)
    assert not [line for line in lines if len(line) > 80 and "/" not in line]
    assert done.stderr == "bffs: BFFS_MEMROY means nothing to bffs; did you mean BFFS_MEMORY?\n"


def test_a_file_is_begun_once(bffs: Bffs) -> None:
    done = bffs("config", "init")
    assert (done.returncode, done.stdout) == (0, f"{config_file()}\n")
    assert stat.S_IMODE(config_file().stat().st_mode) == 0o600
    before = resolve({}, {}, Path("/nowhere"))
    assert resolve({}, {}, config_file()) == before
    config_file().write_text("# mine\n")
    done = bffs("config", "init")
    assert done.returncode == 1 and "is there already" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert config_file().read_text() == "# mine\n"


def test_what_the_comments_say_is_right() -> None:
    """Each line without its # is accepted, and those with a default mean it."""
    lines = re.findall(r"^# (\w+ = .*)$", commented(), re.MULTILINE)
    assert [line.split(" = ")[0] for line in lines] == [option.key for option in OPTIONS]
    for option, line in zip(OPTIONS, lines, strict=True):
        config_file().write_text(line)
        settings = resolve({}, {}, config_file())
        if option.default and not option.in_profile:
            assert settings == resolve({}, {}, Path("/nowhere")), line
    tomllib.loads("\n".join(lines))


def test_an_unknown_key_is_an_error_with_a_suggestion(bffs: Bffs) -> None:
    config_file().write_text("cache_siz = '1G'\n")
    done = bffs("config", "show")
    assert done.returncode == 2
    assert (
        done.stderr == f"bffs: {config_file()}: unknown key 'cache_siz'; did you mean cache_size?\n"
    )


# -- completion -------------------------------------------------------------------------------------------------


def keep_listing(home: Path) -> None:
    """As a mount or an `ls` does."""
    keys = ["90/s-1.tif", "100/s-1.tif", "TEST_DATA_SET/90/s-1.tif", "TEST_DATA_SET/207/s-1.tif"]
    dataset = load_dataset("lab")
    catalog = list_catalog(FakeStore(dict.fromkeys(keys, b"x")), dataset)
    snapshot.save(catalog, home / ".cache/bffs", dataset)


def completed(bffs: Bffs, *words: str) -> list[str]:
    """What bash would offer for the last word, the store being away."""
    done = bffs(
        _BFFS_COMPLETE="bash_complete",
        COMP_WORDS="bffs " + " ".join(words),
        COMP_CWORD=str(len(words)),
        BFFS_DATASET="lab",
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_ids_are_completed_from_the_listing_that_was_kept(bffs: Bffs, home: Path) -> None:
    assert completed(bffs, "info", "9") == []
    keep_listing(home)
    assert completed(bffs, "info", "9") == ["90"]
    assert completed(bffs, "warm", "test/") == ["test/207", "test/90"]
    assert completed(bffs, "ls", "t") == ["test", "train"]
    assert completed(bffs, "pin", "90", "1") == ["100"]
    assert completed(bffs, "info", "--dataset", "brightfield", "9") == []


def test_words_of_other_kinds_are_completed(bffs: Bffs) -> None:
    assert {"mount", "manifest", "man"} <= set(completed(bffs, "m"))
    assert "--cache-size" in completed(bffs, "mount", "--cache-s")
    assert completed(bffs, "ls", "--dataset", "l") == ["lab"]
    assert completed(bffs, "config", "") == ["init", "show"]


COMPLETE = {
    "bash": 'eval "$(bffs completion bash)"; COMP_WORDS=(bffs info 9); COMP_CWORD=2; '
    '_bffs_completion bffs; echo "${COMPREPLY[@]}"',
    "zsh": 'autoload -U compinit; compinit -u; eval "$(bffs completion zsh)"; whence -w _bffs_completion',
    "fish": 'bffs completion fish | source; complete -C "bffs info 9"',
}


@pytest.mark.parametrize("shell", COMPLETE)
def test_shells_take_the_script(bffs: Bffs, home: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} on this machine")
    keep_listing(home)
    (home / "bin").mkdir()
    program = home / "bin/bffs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m bffs "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [shell, "-c", COMPLETE[shell]],
        env=clean(os.environ) | {"HOME": str(home), "BFFS_DATASET": "lab", "PATH": f"{home}/bin:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.split() == (["_bffs_completion:", "function"] if shell == "zsh" else ["90"])


# -- the manual page, the versions ------------------------------------------------------------------------------


def test_the_page_has_every_command_and_option(bffs: Bffs) -> None:
    done = bffs("man")
    assert done.returncode == 0
    plain = done.stdout.replace("\\-", "-")
    with click.Context(main) as ctx:
        for name in main.list_commands(ctx):
            assert f".SS {name}\n" in plain
            command = main.get_command(ctx, name)
            assert command is not None
            for param in command.params:
                for flag in param.opts if isinstance(param, click.Option) else ():
                    assert flag in plain
    for option in OPTIONS:
        assert f".B {option.variable}\n" in plain


@pytest.mark.parametrize("command", ["groff -man -ww -Tutf8 -z", "man -l --warnings"])
def test_nothing_in_the_page_is_warned_of(bffs: Bffs, home: Path, command: str) -> None:
    if shutil.which(command.split(maxsplit=1)[0]) is None:
        pytest.skip(f"there is no {command.split(maxsplit=1)[0]} on this machine")
    path = home / "bffs.1"
    path.write_text(bffs("man").stdout)
    done = subprocess.run(
        [*command.split(), str(path)], env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_text_stays_text_in_roff() -> None:
    @click.group(help=".TH dots\n\n'quotes' and back\\slashes - and hyphens")
    def program() -> None:
        pass

    lines = page(program, "1", {}).splitlines()
    assert "\\&.TH dots" in lines
    assert "\\&'quotes' and back\\eslashes \\- and hyphens" in lines


def test_the_version_names_the_libraries(bffs: Bffs) -> None:
    done = bffs("--version")
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told["bffs"] == __version__
    assert {"Python", "libfuse", "boto3", "tifffile", os.uname().sysname} <= told.keys()
    assert (
        bffs("--version", FUSE_LIBRARY_PATH="/absent").stdout.splitlines()[2] == "libfuse missing"
    )


def test_help_imports_no_library_of_weight(bffs: Bffs) -> None:
    code = (
        "import sys; from bffs.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'boto3', 'rich', 'numpy', 'tifffile', 'mfusepy'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean(os.environ), capture_output=True, text=True, check=False, cwd=ROOT
    )  # fmt: skip
    assert done.stderr == "[]\n"
