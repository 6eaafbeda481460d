"""Commands that fill, empty, check and show the cache."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bffs import completing
from bffs.cli_options import Given, cache_of, catalog_of, command, table_option
from bffs.errors import BffsError
from bffs.settings import Settings
from bffs.units import format_size

if TYPE_CHECKING:
    from bffs.cache import DiskCache
    from bffs.catalog import Specimen
    from bffs.inventory import Holding
    from bffs.store import ObjectInfo

_SPECIMENS = click.argument(
    "names", metavar="ID...", nargs=-1, required=True, shell_complete=completing.selections
)


@command()
@_SPECIMENS
@click.option(
    "--slices",
    metavar="A:B[:K]",
    help="Only these of each stack: positions from 0, as Python slices them.",
)
@click.option("--check", is_flag=True, help="Only print what share is here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON objects, one a line.")
@table_option("cache-size")
@table_option("memory")
@table_option("max-connections")
@table_option("deadline")
@click.pass_obj
def warm(
    given: Given, names: tuple[str, ...], slices: str | None, check: bool, as_json: bool
) -> int:
    """Fetch specimens into the cache.

    ID is a specimen, `train/ID` where both sets have it, or a whole set. What is here is not
    fetched again, so after Ctrl-C the same command goes on where it stopped. Readers of mounts go
    first, and so does what they read.
    """
    from bffs import inventory

    settings = given.settings()
    positions = inventory.parse_slices(slices) if slices is not None else None
    specimens = _specimens(given, settings, names)
    with cache_of(settings, stamp=time.time()) as cache:
        holdings = inventory.take(specimens, cache, positions)
        complete = check or _warm(settings, cache, holdings, as_json)
        for holding in inventory.take(specimens, cache, positions):
            click.echo(_line_of(holding, as_json))
    return 0 if complete else 1


def _warm(
    settings: Settings,
    cache: DiskCache,
    holdings: Sequence[Holding],
    as_json: bool,
) -> bool:
    """Fetch what is missing; whether all of it was asked for. Raises BffsError."""
    from bffs.late import LateStore
    from bffs.progress import shown
    from bffs.warm import PIECE, Figures, Warmer, fitting

    objects = [obj for holding in holdings for obj in holding.objects]
    chosen = objects[: fitting(objects, cache)]
    if len(chosen) < len(objects):
        click.echo(
            f"bffs: {_total(objects)} do not fit into the cache, which `bffs cache` shows: warming the first "
            f"{len(chosen)} of {len(objects)} files, {_total(chosen)}; see --cache-size",
            err=True,
        )
    cache.keep(chosen)  # what is here must not give way to the rest
    connections = max(1, min(settings.max_connections, settings.memory // (2 * PIECE)))
    with contextlib.closing(LateStore(settings)) as store:
        warmer = Warmer(
            store,
            cache,
            chosen,
            connections=connections,
            deadline=settings.deadline,
        )
        with shown("warming", as_json) as show:

            def report(figures: Figures) -> None:
                show(figures.here, figures.wanted, figures.fetched)

            try:
                warmer.run(report)
            except KeyboardInterrupt:
                here = format_size(warmer.figures().here)
                click.echo(
                    f"bffs: stopped with {here} of {_total(chosen)} here; the same command goes on",
                    err=True,
                )
                raise
    if warmer.figures().changed:
        raise BffsError(
            f"{warmer.figures().changed} files are no longer those that were listed: "
            "`bffs refresh`, and warm again"
        )
    if any(cache.open(obj).bytes_present() < obj.size for obj in chosen):
        raise BffsError(
            "some of it has given way to what others read or warm: the cache is too small for all; "
            "see --cache-size and `bffs pin`"
        )
    return len(chosen) == len(objects)


@command()
@_SPECIMENS
@click.pass_obj
def evict(given: Given, names: tuple[str, ...]) -> None:
    """Remove specimens from the cache.

    ID is a specimen, `train/ID` where both sets have it, or a whole set. Programs that have files
    open read on.
    """
    from bffs import inventory

    settings = given.settings()
    with cache_of(settings) as cache:
        holdings = inventory.take(_specimens(given, settings, names), cache)
        pinned = [_name(holding.specimen) for holding in holdings if holding.pinned]
        if pinned:
            raise BffsError(f"nothing was evicted, for {_some(pinned)} pinned; `bffs unpin` first")
        for holding in holdings:
            cache.evict(holding.objects)
            click.echo(f"{_name(holding.specimen)}  {format_size(holding.bytes_here)} evicted")


@command()
@_SPECIMENS
@table_option("cache-size")
@click.pass_obj
def pin(given: Given, names: tuple[str, ...]) -> None:
    """Keep specimens in the cache.

    ID is a specimen, `train/ID` where both sets have it, or a whole set. What is here of it, now or
    later, stays until `bffs unpin`; `bffs warm` fetches the rest.
    """
    from bffs import inventory

    settings = given.settings()
    catalog = catalog_of(settings, given.verbosity)
    with cache_of(settings) as cache:
        for holding in inventory.take(_specimens(given, settings, names), cache):
            cache.pin(holding.specimen.prefix, holding.objects)
            click.echo(_line_of(holding._replace(pinned=True), False))
        size = sum(
            obj.size
            for specimen in catalog.specimens
            if cache.is_pinned(specimen.prefix)
            for obj in specimen.objects()
        )
        if size > cache.limit:
            click.echo(
                f"bffs: what is pinned is {format_size(size)} in all, more than the cache holds "
                f"({format_size(cache.limit)}): raise --cache-size, or nothing else can be cached",
                err=True,
            )


@command()
@_SPECIMENS
@click.pass_obj
def unpin(given: Given, names: tuple[str, ...]) -> None:
    """Let specimens be evicted again.

    ID is a specimen, `train/ID` where both sets have it, or a whole set.
    """
    settings = given.settings()
    with cache_of(settings) as cache:
        for specimen in _specimens(given, settings, names):
            was = cache.is_pinned(specimen.prefix)
            cache.unpin(specimen.prefix, specimen.objects())
            click.echo(f"{_name(specimen)}  {'no longer' if was else 'was not'} pinned")


@command()
@click.argument("names", metavar="[ID]...", nargs=-1, shell_complete=completing.selections)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.pass_obj
def verify(given: Given, names: tuple[str, ...], as_json: bool) -> int:
    """Check what is cached.

    Each block is compared with its checksum, and each complete file with the store's MD5 where it
    has one. What is damaged is removed, and fetched again when it is read; the exit code is 1 then.
    """
    from bffs.progress import shown
    from bffs.verify import verify

    settings = given.settings()
    objects = [obj for s in _specimens(given, settings, names) for obj in s.objects()]
    with cache_of(settings) as cache:
        files = cache.files()
        total = sum(files.get(cache.path(obj), 0) for obj in objects)
        with shown("verifying") as show:
            done = 0

            def report(size: int) -> None:
                nonlocal done
                done += size
                show(done, max(total, done), done)

            found = verify(objects, cache, report)
    if as_json:
        click.echo(json.dumps({**found.as_dict(), "sound": found.sound}, indent=4))
    else:
        click.echo(found.as_text(), nl=False)
    return 0 if found.sound else 1


@command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@table_option("cache-size")
@click.pass_obj
def cache(given: Given, as_json: bool) -> None:
    """Show what is cached, and the limits."""
    from bffs import inventory, tables

    settings = given.settings()
    specimens = catalog_of(settings, given.verbosity).specimens
    with cache_of(settings) as cache:
        holdings = [
            holding
            for holding in inventory.take(specimens, cache)
            if holding.bytes_here or holding.pinned
        ]
        limits = inventory.limits(holdings, cache)
    if as_json:
        records = [inventory.as_dict(holding) for holding in holdings]
        click.echo(json.dumps({**limits, "specimens": records}, indent=4))
    else:
        text = inventory.as_table(holdings, limits, tables.standard_output())
        click.echo(text, nl=False, color=True)  # colours are the console's decision


def _specimens(given: Given, settings: Settings, names: Sequence[str]) -> list[Specimen]:
    """Those that are named, or all. Raises NoSuchSpecimen, StoreError."""
    from bffs.tables import select

    return select(catalog_of(settings, given.verbosity), names)


def _line_of(holding: Holding, as_json: bool) -> str:
    from bffs import inventory

    if as_json:
        return json.dumps({"event": "specimen", **inventory.as_dict(holding)})
    return inventory.as_text(holding)


def _name(specimen: Specimen) -> str:
    return f"{specimen.split}/{specimen.id}"


def _total(objects: Sequence[ObjectInfo]) -> str:
    return format_size(sum(obj.size for obj in objects))


def _some(names: Sequence[str]) -> str:
    """A few of the names, and the verb."""
    shown = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"
