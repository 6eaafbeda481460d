"""Lets atheris look for inputs of one target: `python -m scripts.fuzzing TARGET LIBFUZZER-ARGUMENTS...`.

Without arguments it prints the names of all targets.
"""

import logging
import sys
import warnings


def main() -> None:
    """Import the target with its coverage watched, and fuzz it."""
    if len(sys.argv) < 2:
        from tests.fuzz_targets import TARGETS

        print(*TARGETS)
        return
    import atheris

    logging.disable()
    warnings.simplefilter("ignore")
    with atheris.instrument_imports(include=["bffs", "tests.fuzz_targets"]):
        from tests.fuzz_targets import TARGETS
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
