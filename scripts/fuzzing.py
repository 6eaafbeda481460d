#!/usr/bin/env python3
"""Lets atheris look for inputs of one target: `BFFS_TARGET=tiff scripts/fuzzing.py LIBFUZZER-ARGUMENTS...`.

Without a target it prints the names of all. libFuzzer runs this file again where it merges, with its
own arguments only; so the target is in the environment.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])


def main() -> None:
    """Import the target with its coverage watched, and fuzz it."""
    name = os.environ.get("BFFS_TARGET")
    if name is None:
        from tests.fuzz_targets import TARGETS

        print(*TARGETS)
        return
    import atheris

    logging.disable()
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["bffs", "tests.fuzz_targets"]):
        from tests.fuzz_targets import TARGETS
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
