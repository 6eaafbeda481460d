"""What a shell offers for the words of a command line. Nothing here asks the store or touches a mount.

Each is a `shell_complete` of click: from the context, the parameter and the beginning of a word to what it may become.
Whatever goes wrong, there is nothing to offer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from bffs.precedence import resolve
from bffs.profiles import config_file, profile_names


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders, as the shell knows them."""
    return [CompletionItem(incomplete, type="dir")]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files, as the shell knows them."""
    return [CompletionItem(incomplete, type="file")]


def datasets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Dataset profiles by name; files for a word that is none."""
    return _those(profile_names(), incomplete) or files(ctx, param, incomplete)


def specimens(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of specimens, and with a slash `<split>/<id>`, of the listing that was kept."""
    from bffs import snapshot

    with suppress(Exception):
        settings = resolve(ctx.obj.flags if ctx.obj else {}, os.environ, config_file())
        catalog = snapshot.load(settings.cache_dir, settings.dataset)
        if catalog is not None:
            full = "/" in incomplete
            ids = (f"{each.split}/{each.id}" if full else each.id for each in catalog.specimens)
            return _those(ids, incomplete)
    return []


def selections(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Splits and specimens."""
    with suppress(Exception):
        settings = resolve(ctx.obj.flags if ctx.obj else {}, os.environ, config_file())
        splits = _those((split for _, split in settings.dataset.splits), incomplete)
        return splits + specimens(ctx, param, incomplete)
    return []


def mounted(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Where bffs is mounted; folders for a word that is none of them."""
    from bffs.mountpoint import FILE_SYSTEM, mounts

    with suppress(Exception):
        places = {str(each.mountpoint) for each in mounts() if each.file_system == FILE_SYSTEM}
        if found := _those(places, incomplete):
            return found
    return folders(ctx, param, incomplete)


def _those(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """The words that begin so, each once."""
    return [CompletionItem(w) for w in sorted(set(words)) if w.startswith(incomplete)]
