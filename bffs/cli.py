"""The command line: `bffs` itself, where its commands are, and how each of them ends.

A command is found by its name in `_COMMANDS` and its module imported when it is needed, and those import what they
do when they run, so that `bffs --help` is quick. An error that bffs knows becomes one line on standard error and its
exit code (`errors`), in one place: `_Group.invoke`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from typing import Any

import click

from bffs.cli_options import Command, Given, common_options
from bffs.errors import BffsError
from bffs.fstab import be_at_home, is_from_mount, translated

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as a shell reports it."""

BROKEN_PIPE = 141
"""Exit code when the reader of the output has gone: 128 + SIGPIPE."""

_COMMANDS = {
    "mount": "cli_mount",
    "umount": "cli_mount",
    "demo": "cli_mount",
    "link": "cli_mount",
    "ls": "cli_dataset",
    "info": "cli_dataset",
    "manifest": "cli_dataset",
    "refresh": "cli_dataset",
    "warm": "cli_cache",
    "evict": "cli_cache",
    "pin": "cli_cache",
    "unpin": "cli_cache",
    "verify": "cli_cache",
    "cache": "cli_cache",
    "status": "cli_status",
    "plot": "cli_plot",
    "doctor": "cli_doctor",
    "config": "cli_config",
    "completion": "cli_config",
    "man": "cli_config",
}
"""The module that has the command, as a function of that name."""


class _Group(click.Group):
    """`bffs` itself: runs a command and turns the way it ends into a message and an exit code."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module = importlib.import_module(f"bffs.{_COMMANDS[cmd_name]}")
            command: click.Command = getattr(module, cmd_name)
            return command
        return super().get_command(ctx, cmd_name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if is_from_mount(args, _COMMANDS):
            be_at_home()
            args = translated(args, *self._flags_of("mount", ctx))
        return super().parse_args(ctx, args)

    def _flags_of(self, name: str, ctx: click.Context) -> tuple[set[str], set[str]]:
        """The flags of a command that stand alone, and those with a value."""
        command = self.get_command(ctx, name)
        assert command is not None
        options = [param for param in command.params if isinstance(param, click.Option)]
        alone = {flag for param in options if param.is_flag for flag in param.opts}
        return alone, {flag for param in options for flag in param.opts} - alone

    def invoke(self, ctx: click.Context) -> Any:
        try:
            code = super().invoke(ctx) or 0
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            code = INTERRUPTED
        except BrokenPipeError:
            _abandon_stdout()
            code = BROKEN_PIPE
        except Exception as error:
            if ctx.ensure_object(Given).verbosity > 0:
                traceback.print_exc()
            click.echo(f"bffs: {_explain(error)}", err=True)
            _abandon_stdout()
            code = error.exit_code if isinstance(error, BffsError) else 1
        ctx.exit(code)


def _explain(error: Exception) -> str:
    """What went wrong, on one line."""
    match error:
        case BffsError():
            text = str(error)
        case OSError(strerror=str(reason)):
            text = f"{reason}: {error.filename}" if error.filename else reason
        case _:
            text = f"internal error: {type(error).__name__}: {error} (-v shows more)"
    return " ".join(text.split())


def _abandon_stdout() -> None:
    """Let go of output that can't be written, or Python complains about it again when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from bffs.versions import versions

        for name, number in versions().items():
            click.echo(f"{name} {number}")
        ctx.exit()


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the versions of bffs and its libraries.",
)
def main() -> None:
    """Show an S3 bucket of neuron image stacks as local files, read lazily."""
