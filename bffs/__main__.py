"""`python -m bffs` is `bffs`."""

from bffs.cli import main

if __name__ == "__main__":
    main(prog_name="bffs")
