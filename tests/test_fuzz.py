"""The fuzzed targets with the inputs that fuzzing left, and with some of chance."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz_targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_every_input_that_fuzzing_left_is_borne(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=30)
@given(data=st.data())
def test_what_chance_makes_of_them_is_borne(name: str, data: st.DataObject) -> None:
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    whole = data.draw(st.sampled_from(inputs) | st.binary(max_size=300))
    at = data.draw(st.integers(0, len(whole)))
    TARGETS[name](whole[:at] + data.draw(st.binary(max_size=20)) + whole[at + 10 :])
