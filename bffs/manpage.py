"""The manual page, made from the help of the commands: roff with the man macros (groff_man(7)). Pure."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping

import click

from bffs.options import OPTIONS

_EXIT_CODES = {
    0: "Done.",
    1: "It failed; one line on standard error says what, and what to do.",
    2: "Wrong usage.",
    3: "The store can't be reached.",
    4: "Access is denied.",
    5: "There is no such specimen.",
    6: "FUSE is missing, or the mountpoint can't be used.",
    130: "Interrupted by Ctrl-C.",
}


def page(program: click.Group, version: str, files: Mapping[str, str]) -> str:
    """The page of a program and all its commands; `files` are paths and what they are."""
    with click.Context(program, info_name="bffs") as ctx:
        shared = {param.name for param in program.params}
        lines = [
            f'.TH BFFS 1 "" "bffs {version}" "User Commands"',
            ".SH NAME",
            f"bffs \\- {_escaped(program.get_short_help_str(200).rstrip('.'))}",
            ".SH SYNOPSIS",
            *_synopsis(ctx),
            ".SH DESCRIPTION",
            *_paragraphs(program.help or ""),
            ".SH OPTIONS",
            "These may stand before and after any command.",
            *_options(ctx, program.params),
            ".SH COMMANDS",
        ]
        for name in program.list_commands(ctx):
            command = program.get_command(ctx, name)
            if command is not None and not command.hidden:
                lines += _command(command, name, ctx, shared)
    lines.append(".SH ENVIRONMENT")
    lines.append("Options that are not given are taken from here, and then from config.toml.")
    for option in OPTIONS:
        lines += [".TP", f".B {option.variable}", f"As {_bold(option.flag)}."]
    lines.append(".SH FILES")
    for path, what in files.items():
        lines += [".TP", f".I {_escaped(path)}", _escaped(what)]
    lines.append(".SH EXIT STATUS")
    for code, meaning in _EXIT_CODES.items():
        lines += [".TP", f".B {code}", _escaped(meaning)]
    return "\n".join(lines) + "\n"


def _command(
    command: click.Command, name: str, parent: click.Context, shared: Iterable[str | None]
) -> Iterator[str]:
    with click.Context(command, info_name=name, parent=parent) as ctx:
        yield f".SS {_escaped(ctx.command_path.removeprefix('bffs '))}"
        yield from _synopsis(ctx)
        yield from (".PP", *_paragraphs(command.help or ""))
        yield from _options(ctx, [param for param in command.params if param.name not in shared])
        if isinstance(command, click.Group):
            for sub in command.list_commands(ctx):
                if (found := command.get_command(ctx, sub)) is not None:
                    yield from _command(found, sub, ctx, shared)


def _synopsis(ctx: click.Context) -> list[str]:
    pieces = " ".join(ctx.command.collect_usage_pieces(ctx))
    return [f".B {_escaped(ctx.command_path)}", _escaped(pieces)]


def _options(ctx: click.Context, params: Iterable[click.Parameter]) -> Iterator[str]:
    for param in params:
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record is not None:
            names, text = record
            yield from (".TP", _bold(names), _escaped(text))


def _paragraphs(text: str) -> Iterator[str]:
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    for number, paragraph in enumerate(paragraphs):
        if number:
            yield ".PP"
        yield _escaped(" ".join(paragraph.split()))


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _escaped(text: str) -> str:
    """Text that roff takes as it is: on one line that is no request, with hyphens that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text
