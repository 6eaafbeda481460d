"""The command that draws pictures."""

from __future__ import annotations

from pathlib import Path

import click

from bffs import completing
from bffs.cli_options import Given, absolute, cache_of, catalog_of, command


@command()
@click.argument("what", type=click.Choice(["sizes", "cache"]))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    callback=absolute,
    shell_complete=completing.files,
    help="The picture: a name that ends in .png, .svg or .pdf.",
)
@click.pass_obj
def plot(given: Given, what: str, output: Path) -> None:
    """Draw how large the stacks are, or which slices are cached.

    Needs matplotlib: pip install 'bffs[plot]'.
    """
    from bffs import inventory, plots

    plots.check_form(output)
    settings = given.settings()
    catalog = catalog_of(settings, given.verbosity)
    if what == "sizes":
        plots.sizes(catalog, output)
        return
    with cache_of(settings) as cache:
        holdings = inventory.take(catalog.specimens, cache)
    plots.cache([each for each in holdings if each.bytes_here or each.pinned], output)
