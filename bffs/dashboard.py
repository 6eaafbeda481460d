"""The figures of a mount for people: what `bffs status` prints, and `--watch` anew each second.

Pure: two readings of the status file (docs/status.md) in, lines out. Rates are what happened between
the two.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bffs.units import format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

Figures = Mapping[str, Any]

_FROM = (("store", "fetched"), ("memory", "from_memory"), ("disk cache", "from_disk"))

MOST_FILES = 12
_MOST_PLACES = 5
"""Rows that fit a terminal."""

_LONGEST_REASON = 300

_WAITING = 1.0
"""Seconds after which a read is said to wait: until then it just reads."""

_NO_ERRORS = "none"
_STYLES = {"errors": "red", "failure": "yellow", "waiting": "yellow"}


def lines(
    before: Figures,
    after: Figures,
    width: int | None,
    *,
    most_files: int = MOST_FILES,
    gaps: bool = True,
) -> Group:
    """All there is to see, what changes first; paths are shortened to fit `width` columns, if it is
    given. At most so many open files are shown; `gaps` parts what belongs together from the rest."""
    from rich.console import Group

    parts = [_facts(_heading(after)), _flows(before, after), _facts(_now(after))]
    if after["specimens"]:
        parts.append(_specimens(after["specimens"]))
    if after["files"]:
        parts.append(_files(after["files"][:most_files], after["open"], width))
    if waits := _waits(after["waiting"]):
        parts.append(_facts(waits))
    parts.append(_facts(_standing(after)))
    gap: list[Any] = [""] * gaps
    return Group(parts[0], *(each for part in parts[1:] for each in (*gap, part)))


def _heading(told: Figures) -> list[tuple[str, str]]:
    where = told["dataset"]
    age = format_duration(told["now"] - told["started"])
    return [
        (
            "mount",
            f"{told['mountpoint']}, for {age}, process {told['pid']}, bffs {told['version']}",
        ),
        ("dataset", f"{where['name']}, bucket {where['bucket']}, {where['endpoint_url'] or 'AWS'}"),
    ]


def _flows(before: Figures, after: Figures) -> Table:
    """How many bytes come from where, now and since it was mounted."""
    grid = _grid("from", "now/s", "in all")
    seconds = after["now"] - before["now"]
    for label, key in _FROM:
        rate = (after[key] - before[key]) / seconds if seconds > 0 else 0.0
        shown = format_size(round(rate)) if rate else "-"
        grid.add_row(label, shown, format_size(after[key]))
    return grid


def _now(told: Figures) -> list[tuple[str, str]]:
    memory, queue = told["memory"], told["queue"]
    waiting = f"{_count(queue['demands'], 'demand')}, {_count(queue['streams'], 'stream')} ahead"
    coming = f"{format_size(queue['prefetching'])} on the way"
    return [
        ("prefetch", _prefetch(told)),
        ("queue", f"{waiting}, {coming}, {_count(queue['connections'], 'connection')}"),
        ("link", _link(told["link"])),
        ("kernel", _passthrough(told["passthrough"])),
        *_requests(told),
        ("errors", _counted(told["errors"]) or _NO_ERRORS),
        ("memory", f"{format_size(memory['used'])} of {format_size(memory['limit'])}"),
    ]


def _standing(told: Figures) -> list[tuple[str, str]]:
    """What changes little."""
    cache = told["cache"]
    facts = []
    if "stored" in cache:
        cached = f"{format_size(cache['stored'])} of {format_size(cache['limit'])}"
        facts.append(("cache", f"{cached} in {_home(cache['folder'])}"))
    else:
        facts.append(("cache", f"{_home(cache['folder'])} can't be used; the log says why"))
    left_out = sum(told["listing"]["left_out"].values())
    listed = format_duration(told["now"] - told["listing"]["listed_at"])
    more = f", {left_out:,} keys left out" if left_out else ""
    facts.append(
        ("listing", f"{_count(told['listing']['specimens'], 'specimen')}, {listed} old{more}")
    )
    facts += _saved(told["saved"])
    if told["metrics_port"] is not None:
        facts.append(("metrics", f"http://127.0.0.1:{told['metrics_port']}/metrics"))
    return facts


def _prefetch(told: Figures) -> str:
    """How much came ahead of readers, and how much of what they got was there in time."""
    if not told["from_memory"] or not told["fetched"]:
        return "nothing read yet"
    ahead = 100 * told["prefetched"] // told["fetched"]
    hits = 100 - 100 * min(told["waited_for"], told["from_memory"]) // told["from_memory"]
    return f"{hits} % of what was read was there in time; {ahead} % came ahead of readers"


def _link(link: Figures) -> str:
    if not link["latency"]:
        return "not measured yet"
    speed = f", up to {format_size(round(link['bandwidth']))}/s" if link["bandwidth"] else ""
    return f"{1000 * link['latency']:.0f} ms{speed}"


def _passthrough(told: Figures) -> str:
    """What the kernel reads by itself, which is not counted."""
    if not told["on"]:
        return f"reads nothing past bffs ({told['why_not'] or 'not asked for'})"
    return f"has read {_count(told['opened'], 'opened file')} past bffs, from the cache, uncounted"


def _requests(told: Figures) -> list[tuple[str, str]]:
    text = f"{sum(told['requests'].values()):,}"
    if told["retries"]:
        text += f", {sum(told['retries'].values()):,} of them again: {_counted(told['retries'])}"
    if told["failure"] is None:
        return [("requests", text)]
    age = format_duration(told["now"] - told["failure"]["at"])
    return [
        ("requests", text),
        ("failure", f"{age} ago: {told['failure']['reason'][:_LONGEST_REASON]}"),
    ]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _saved(saved: Figures | None) -> list[tuple[str, str]]:
    if saved is None:
        return [("saved", "nothing can be: the mount is read-only")]
    if not saved["files"]:
        return [("saved", f"nothing in {_home(saved['folder'])}")]
    size = format_size(saved["bytes"])
    facts = [("saved", f"{_count(saved['files'], 'file')}, {size} in {_home(saved['folder'])}")]
    for place, what in list(saved["places"].items())[:_MOST_PLACES]:
        facts.append(
            (
                "",
                f"{format_size(what['bytes']):>6}  {_count(what['files'], 'file')}, {place or '.'}",
            )
        )
    if len(saved["places"]) > _MOST_PLACES:
        facts.append(("", f"        and {len(saved['places']) - _MOST_PLACES} more folders"))
    return facts


def _specimens(specimens: Sequence[Figures]) -> Table:
    """How far the readers of each are, and how much of it is here."""
    grid = _grid("specimen", "slice", "of", "cached", "of", "share", "idle")
    for each in specimens:
        grid.add_row(
            _text(each["path"]),
            "?" if each["latest"] is None else f"{each['latest'] + 1}",
            f"{each['slices']}",
            format_size(each["cached"]),
            format_size(each["bytes"]),
            f"{100 * each['cached'] // max(1, each['bytes'])} %",
            format_duration(each["idle"]),
        )
    return grid


def _files(shown: Sequence[Figures], count: int, width: int | None) -> Table:
    """What some of the `count` open files are doing."""
    programs = [f"{each['program'] or '?'} {each['pid']}" for each in shown]
    grid = _grid("program", "at", "of", "doing")
    grid.add_column(f"open file ({count})" if count > len(shown) else "open file")
    taken = max(map(len, programs)) + 2 + 7 + 7 + 13
    for program, each in zip(programs, shown, strict=True):
        waits = each["waiting"]
        grid.add_row(
            _text(program),
            "?" if each["at"] is None else format_size(each["at"]),
            format_size(each["size"]),
            "-" if waits is None else f"waits {waits:.0f} s" if waits >= _WAITING else "reads",
            _text(_shortened(each["path"], None if width is None else max(24, width - taken))),
        )
    return grid


def _waits(waiting: Sequence[Figures]) -> list[tuple[str, str]]:
    """For what reads wait, and why; the longest wait first."""
    longest: dict[str, Figures] = {}
    for each in sorted(waiting, key=lambda each: -each["seconds"]):
        if each["seconds"] >= _WAITING or each["reason"]:
            longest.setdefault(each["key"], each)
    facts = []
    for key, each in list(longest.items())[:MOST_FILES]:
        reason = f": {each['reason'][:_LONGEST_REASON]}" if each["reason"] else ""
        facts.append(("waiting", f"{each['seconds']:.0f} s for {key}{reason}"))
    return facts


def _facts(facts: Sequence[tuple[str, str]]) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True, min_width=8)
    grid.add_column(overflow="fold")
    for label, text in facts:
        grid.add_row(label, _text(text, "" if text == _NO_ERRORS else _STYLES.get(label, "")))
    return grid


def _grid(first: str, *others: str) -> Table:
    """A table whose first column is text and the others are numbers."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    grid.add_column(first, no_wrap=True)
    for name in others:
        grid.add_column(name, justify="right", no_wrap=True)
    return grid


def _text(text: str, style: str = "") -> Text:
    """Names are strangers': rich would take [brackets] in them for markup."""
    from rich.text import Text

    return Text(text, style)


def _home(folder: str) -> str:
    """A folder as people write it."""
    home = os.path.expanduser("~") + "/"
    return f"~/{folder.removeprefix(home)}" if folder.startswith(home) else folder


def _shortened(path: str, width: int | None) -> str:
    """A path that fits: what tells files of one folder apart is at its end."""
    if width is None or len(path) <= width:
        return path
    head = max(0, min(path.rfind("/") + 1, width - 20))
    return f"{path[:head]}…{path[len(path) - (width - head - 1) :]}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
