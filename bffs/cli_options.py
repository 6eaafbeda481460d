"""What the commands of the command line are made of: the common options, the table's, and how a command is declared."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bffs import completing
from bffs.errors import BffsError
from bffs.options import OPTIONS, Option, absolute_path
from bffs.precedence import resolve
from bffs.profiles import config_file
from bffs.settings import Settings

if TYPE_CHECKING:
    from bffs.cache import DiskCache
    from bffs.catalog import Catalog


@dataclass
class Given:
    """The common options as far as they are read, those before the command first: the later one wins."""

    flags: dict[str, str] = field(default_factory=dict)
    verbosity: int = 0
    """-1 quiet, 0 warnings, 1 information, 2 debugging."""

    def settings(self) -> Settings:
        """The flags merged with the environment and the files. Raises UsageError."""
        return resolve(self.flags, os.environ, config_file())


def _remember(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None and param.name is not None:
        ctx.ensure_object(Given).flags[param.name] = value


def _raise_verbosity(ctx: click.Context, param: click.Parameter, value: int) -> None:
    given = ctx.ensure_object(Given)
    change = value if param.name == "verbose" else -value
    given.verbosity = max(-1, min(given.verbosity + change, 2))


_COMPLETED = {"DIR": completing.folders, "PROFILE": completing.datasets}
"""What a shell offers for the value of an option, by its metavar."""


def _attributes(option: Option) -> dict[str, Any]:
    """An option of the table as click wants it described; its text is kept for `resolve`."""
    shown = f" [{option.default}]" if option.default and not option.in_profile else ""
    kind: dict[str, Any] = {
        "metavar": option.metavar,
        "shell_complete": _COMPLETED.get(option.metavar or ""),
    }
    switch: dict[str, Any] = {"is_flag": True, "flag_value": "yes"}
    return {
        "type": str,
        "default": None,
        "help": option.help + shown,
        "expose_value": False,
        "callback": _remember,
        **(kind if option.metavar else switch),
    }


def table_option(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives a command this option of the table."""
    option = next(option for option in OPTIONS if option.name == name)
    return click.option(option.flag, **_attributes(option))


def common_options() -> list[click.Parameter]:
    """The options that may stand before and after any command."""
    of_table = [
        click.Option([option.flag], **_attributes(option)) for option in OPTIONS if option.common
    ]
    count: dict[str, Any] = {"count": True, "expose_value": False, "callback": _raise_verbosity}
    verbose = click.Option(["-v", "--verbose"], help="Say more; twice for all.", **count)
    quiet = click.Option(["-q", "--quiet"], help="Say errors only.", **count)
    return [*of_table, verbose, quiet]


class Command(click.Command):
    """A command that accepts the common options, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += common_options()


def absolute(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """The path that an argument names, from the root; a callback of click."""
    return None if value is None else absolute_path(value)


command = partial(click.command, cls=Command)
"""Declares a command of `bffs`."""


def catalog_of(settings: Settings, verbosity: int, *, anew: bool = False) -> Catalog:
    """The catalog of the dataset as it was kept, or listed now. Raises StoreError."""
    from bffs.late import LateStore
    from bffs.refresh import obtain
    from bffs.tables import listing_progress

    logging.basicConfig(format="bffs: %(message)s")
    logging.getLogger("bffs").setLevel(logging.WARNING - 10 * verbosity)
    with contextlib.closing(LateStore(settings)) as store:
        return obtain(settings, store, listing_progress, anew=anew)


@contextlib.contextmanager
def cache_of(settings: Settings, stamp: float | None = None) -> Iterator[DiskCache]:
    """The disk cache, which this command can't do without; see `DiskCache`. Raises BffsError."""
    from bffs.cache import DiskCache
    from bffs.private import own_dataset_folder

    try:
        own_dataset_folder(settings.cache_dir, settings.dataset)
    except OSError as error:
        raise BffsError(
            f"the cache can't be used: {error.filename}: {error.strerror}; choose another --cache-dir"
        ) from error
    cache = DiskCache(settings.cache_dir, settings.dataset, settings.cache_size, stamp)
    with contextlib.closing(cache):
        yield cache
