"""Commands about bffs itself: where its options come from, what shells complete, the manual page."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bffs.cli_options import Command, Given, command
from bffs.errors import BffsError
from bffs.options import OPTIONS, Option
from bffs.precedence import origins, unknown_variables
from bffs.profiles import config_file

if TYPE_CHECKING:
    from bffs.precedence import Origin
    from bffs.settings import Settings

_EXAMPLES = {
    "endpoint-url": "https://s3.example.org",
    "bucket": "our-stacks",
    "profile": "default",
    "cache-dir": "~/.cache/bffs",
    "scratch": "~/.local/share/bffs/scratch",
}
"""What options without a default may look like."""


class _Commands(click.Group):
    command_class = Command


@click.group(cls=_Commands)
def config() -> None:
    """Show or begin the configuration."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_obj
def show(given: Given, as_json: bool) -> None:
    """Show the value of every option, and where it comes from.

    That is a flag, the environment, the configuration file, the profile of the dataset, or what is
    built in; the first that gives a value counts. Options of a single command are shown as without.
    """
    settings = given.settings()
    found, profile = origins(given.flags, os.environ, config_file())
    rows = [(each.option.key, _text(each, settings), each) for each in found]
    beside = {
        "splits": ", ".join(
            f"{folder or 'others'} = {name}" for folder, name in settings.dataset.splits
        ),
        "voxel": " x ".join(map(str, settings.dataset.voxel or ())),
        "access_key": "published, for everyone" if settings.dataset.access_key_id else "",
    }
    if as_json:
        told = {
            key: {"value": text, "from": each.place, "where": each.detail or None}
            for key, text, each in rows
        }
        of_profile = {"from": "profile", "where": profile.path}
        told |= {key: {"value": text, **of_profile} for key, text in beside.items()}
        click.echo(json.dumps(told, indent=4))
        return
    from rich.text import Text

    from bffs import tables

    lines = [(key, _source(each), text) for key, text, each in rows]
    lines += [(key, "profile", text) for key, text in beside.items()]
    names, sources = (max(len(line[at]) for line in lines) + 2 for at in (0, 1))
    console = tables.standard_output()
    console.print(Text(f"{'option':{names}}{'from':{sources}}value", "bold"))
    for key, source, text in lines:
        console.print(Text(f"{key:{names}}{source:{sources}}{text}".rstrip()))
    there = "" if config_file().exists() else " (not there; `bffs config init` makes it)"
    console.print(Text(f"\nfile     {config_file()}{there}\nprofile  {profile.path}"))
    for line in unknown_variables(os.environ):
        click.echo(f"bffs: {line}", err=True)


@config.command()
def init() -> None:
    """Write a configuration file in which everything is a comment, for you to change.

    One that is there already stays as it is.
    """
    path = config_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise BffsError(f"{path} is there already; edit it, or move it away first") from error
    except OSError as error:
        raise BffsError(f"can't write {path}: {error.strerror}") from error
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(commented())
    click.echo(f"{path}")


def commented() -> str:
    """The configuration file with every option, each as a comment that says what is built in."""
    head = (
        "# Options of bffs, for all its commands: take away a # and change what follows it.\n"
        "# Flags and BFFS_... variables go before; `bffs config show` shows what counts.\n"
    )
    blocks = [f"# {option.help}\n# {option.key} = {_toml(option)}\n" for option in OPTIONS]
    return "\n".join([head, *blocks])


def _toml(option: Option) -> str:
    if option.metavar is None:
        return "true" if option.value_of("") is option.value_of("yes") else "false"
    text = option.default or _EXAMPLES.get(option.name, "")
    return text if text.isdecimal() else f'"{text}"'


def _text(origin: Origin, settings: Settings) -> str:
    """The value as it counts: paths in full, everything else as it was written."""
    if origin.option.name == "scratch":
        from bffs.private import scratch_folder

        return str(scratch_folder(settings))
    return str(origin.value) if isinstance(origin.value, Path) else origin.text


def _source(origin: Origin) -> str:
    match origin.place:
        case "flag" | "environment":
            return origin.detail
    return origin.place


@command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options and ids of specimens.

    For bash, add to ~/.bashrc: eval "$(bffs completion bash)"; for zsh, to ~/.zshrc: eval "$(bffs
    completion zsh)"; for fish: bffs completion fish > ~/.config/fish/completions/bffs.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "bffs", "_BFFS_COMPLETE").source())


@command()
@click.pass_context
def man(ctx: click.Context) -> None:
    """Print the manual page: bffs man > ~/.local/share/man/man1/bffs.1."""
    from bffs import __version__
    from bffs.manpage import page

    root = ctx.find_root().command
    assert isinstance(root, click.Group)
    files = {
        "~/.config/bffs/config.toml": "Options, see bffs config init.",
        "~/.config/bffs/profiles/NAME.toml": "Profiles of datasets.",
        "~/.cache/bffs": "The disk cache, and the listings that were kept.",
        "~/.local/share/bffs/scratch": "What was saved in mounts.",
        "~/.local/state/bffs/log/bffs.log": "Messages of mounts in the background.",
    }
    click.echo(page(root, __version__, files), nl=False)
