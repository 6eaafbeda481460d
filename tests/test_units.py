"""Sizes, names and times: against plain statements of what they mean, and coreutils where it knows better."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bffs.units import (
    GIB,
    KIB,
    MIB,
    format_size,
    format_time,
    natural_key,
    parse_duration,
    parse_size,
)

POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("64K", 64 * KIB),
        ("512M", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("512mb", 512 * MIB),
        (" 50 G ", 50 * GIB),
        ("1.5T", 1536 * GIB),
        ("0.5K", 512),
    ],
)
def test_parse_size_reads_what_people_write(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", " ", "G", "-1", "1e3", "5X", "1,5G", "1.G", ".5G", "50 GG", "0x10", "1G1"]
)
def test_parse_size_refuses_the_rest(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as"):
        parse_size(text)


@given(
    st.integers(0, 2**20), st.sampled_from(sorted(POWERS)), st.sampled_from(["", "B", "iB", "b"])
)
def test_parse_size_is_number_times_power(number: int, suffix: str, unit: str) -> None:
    if unit == "iB" and not suffix:
        unit = ""
    assert parse_size(f"{number}{suffix}{unit}") == number * 1024 ** POWERS[suffix]


@given(st.integers(0, 2**59))
def test_format_size_is_short_and_rounds_up_a_little(size: int) -> None:
    text = format_size(size)
    assert len(text) <= 5
    if size < 1024:
        assert text == str(size)
    else:
        assert size <= parse_size(text) + 1 <= size * 1.12  # one step: a tenth of 1.0, or one of 10


@pytest.mark.skipif(shutil.which("numfmt") is None, reason="coreutils' numfmt is not installed")
def test_format_size_is_what_coreutils_prints() -> None:
    edges = [
        power + change
        for power in (1000, 1024, 10 * KIB, MIB, 10 * MIB, GIB)
        for change in (-1, 0, 1)
    ]
    sizes = [*edges, 1_047_962, 26_559_180_540, 2_713_810_170_427]
    command = ["numfmt", "--to=iec", "--round=up", *map(str, sizes)]
    expected = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert [format_size(size) for size in sizes] == expected


def test_natural_key_counts() -> None:
    names = ["a-10.tif", "a-9.tif", "a-0011.tif", "b-1.tif", "a.tif"]
    assert sorted(names, key=natural_key) == [
        "a-9.tif",
        "a-10.tif",
        "a-0011.tif",
        "a.tif",
        "b-1.tif",
    ]


@given(st.lists(st.text(alphabet="a1٣²-.é", max_size=8)))
def test_natural_key_compares_any_two_names(names: list[str]) -> None:
    assert sorted(sorted(names, key=natural_key)) == sorted(names)


def test_format_time_is_utc() -> None:
    assert format_time(0) == "1970-01-01T00:00:00Z"
    assert format_time(1_565_816_733) == "2019-08-14T21:05:33Z"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("30s", 30), ("5m", 300), ("5 min", 300), ("1.5h", 5400), (" 2M ", 120)],
)
def test_parse_duration_reads_what_people_write(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-1s", "1e3", "5d", "1,5m", "1.m", "inf", "nan", "5ms"])
def test_parse_duration_refuses_the_rest(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time such as"):
        parse_duration(text)
