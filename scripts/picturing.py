"""Makes docs/pictures anew: what commands of bffs show on a terminal, their pictures, and ImageJ with a stack.

`python scripts/picturing.py [NAME...]` makes those of these names, or all.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from bffs import demo
from tests.conftest import CREDENTIALS, clean
from tests.s3server import LAYOUT, S3Server, Shape

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
BUCKET = "brightfield-auto-reconstruction-competition"
COLUMNS = 96
WIRE = Shape(latency=0.03, per_connection=12e6, total=60e6)
"""A store at the end of a good line, so that there is something to see."""

WATCHED = 12.0
"""Seconds that two readers read before the picture of them is taken."""

IMAGEJ = Path("/usr/share/java/ij.jar")
SCREEN = (660, 600)
MACRO = """
run("TIFF Virtual Stack...", "open={stack}");
setSlice({slice});
setLocation(20, 90, 620, 500);
selectWindow("ImageJ"); wait(1000);
run("Capture Screen");
saveAs("PNG", "{picture}");
run("Quit");
"""


class Home:
    """A home of its own with a mount in it."""

    def __init__(self, folder: Path, where: Mapping[str, str]) -> None:
        self.folder = folder
        self.mountpoint = folder / "neurons"
        self.mountpoint.mkdir()
        own = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "TERM": "xterm-256color"}
        self.env = {**clean(os.environ), **CREDENTIALS, **own, **where, "COLUMNS": str(COLUMNS)}

    def command(self, *args: str) -> list[str]:
        """How a command of bffs is run."""
        return [sys.executable, "-m", "bffs", *args]

    def run(self, *args: str) -> None:
        """Run it to its end."""
        subprocess.run(self.command(*args), env=self.env, check=True, capture_output=True)

    def shown(self, *args: str) -> str:
        """What it shows on a terminal."""
        ours, theirs = os.openpty()
        with subprocess.Popen(
            self.command(*args), env=self.env, stdin=theirs, stdout=theirs, stderr=theirs
        ):
            os.close(theirs)
            text = b""
            with suppress(OSError):  # the other side is closed
                while piece := os.read(ours, 65536):
                    text += piece
            os.close(ours)
        plain = text.decode().replace("\r\n", "\n")
        plain = plain.replace(str(self.mountpoint), "/mnt/neurons")
        return plain.replace(str(self.folder), "/home/you")


@contextmanager
def home(where: Mapping[str, str]) -> Iterator[Home]:
    """A home with a mount, until the end."""
    with tempfile.TemporaryDirectory(prefix="bffs-pictures-") as folder:
        made = Home(Path(folder), where)
        made.run("mount", str(made.mountpoint))
        try:
            yield made
        finally:
            made.run("umount", str(made.mountpoint))


def draw(name: str, prompt: str, text: str) -> None:
    """A terminal with this command and what it shows, as SVG; fonts are the reader's own."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {prompt}", "bold"))
    console.print(Text.from_ansi(text.rstrip()))
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="bffs"), flags=re.DOTALL)
    (FOLDER / f"{name}.svg").write_text(svg.replace("Fira Code, monospace", "monospace"))


def listing(real: Home) -> None:
    """`bffs ls` of the test set."""
    draw("ls", "bffs ls test", real.shown("ls", "test"))


def watching(real: Home) -> None:
    """`bffs status` while two programs read, and after something was saved."""
    (real.mountpoint / "train/651806289/mine.swc").write_bytes(bytes(12_000))
    readers = [
        subprocess.Popen(
            f"cat {real.mountpoint}/{place}/*.tif >/dev/null", shell=True, process_group=0
        )
        for place in ("train/651806289", "test/665856925")
    ]
    time.sleep(WATCHED)
    text = real.shown("status", str(real.mountpoint))
    for reader in readers:
        os.killpg(reader.pid, 9)
        reader.wait()
    draw("status", "bffs status --watch /mnt/neurons", text)


def cached(real: Home) -> None:
    """`bffs cache`, and the picture of the cache."""
    real.run("warm", "647244741", "--slices", ":33")
    real.run("pin", "647244741")
    draw("cache", "bffs cache", real.shown("cache"))
    real.run("plot", "cache", "-o", str(FOLDER / "cached.png"))
    real.run("plot", "sizes", "-o", str(real.folder / "sizes.png"))
    smaller(real.folder / "sizes.png", FOLDER / "sizes.png", rows=900)
    smaller(FOLDER / "cached.png", FOLDER / "cached.png")


def imagej(made_up: Home) -> None:
    """ImageJ with a stack of the demo."""
    stack = made_up.mountpoint / "stacks/train/900000001/900000001.imagej.tif"
    macro, picture = made_up.folder / "look.ijm", made_up.folder / "imagej.png"
    macro.write_text(MACRO.format(stack=stack, slice=12, picture=picture))
    screen = ["xvfb-run", "-a", "-s", f"-screen 0 {SCREEN[0]}x{SCREEN[1]}x24"]
    java = ["java", f"-Duser.home={made_up.folder}", "-jar", str(IMAGEJ), "-macro", str(macro)]
    subprocess.run([*screen, *java], env=made_up.env, check=True, timeout=120)
    smaller(picture, FOLDER / "imagej.png")


def smaller(source: Path, target: Path, rows: int | None = None) -> None:
    """The picture in 64 colours, or the top `rows` of it."""
    with Image.open(source) as image:
        top = image.crop((0, 0, image.width, min(rows or image.height, image.height)))
        top.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)


REAL: dict[str, Callable[[Home], None]] = {"ls": listing, "status": watching, "cache": cached}
MADE_UP: dict[str, Callable[[Home], None]] = {"imagej": imagej}


def main() -> None:
    """Make the pictures that are asked for."""
    names = sys.argv[1:] or [*REAL, *MADE_UP]
    FOLDER.mkdir(exist_ok=True)
    if wanted := [REAL[name] for name in names if name in REAL]:
        with (
            S3Server(layout=LAYOUT, bucket=BUCKET, shape=WIRE) as server,
            home({"BFFS_ENDPOINT_URL": server.endpoint_url}) as real,
        ):
            for make in wanted:
                make(real)
    if wanted := [MADE_UP[name] for name in names if name in MADE_UP]:
        with demo.s3_server() as url:
            demo.upload(url, demo.dataset())
            where = {"BFFS_ENDPOINT_URL": url, "BFFS_BUCKET": demo.BUCKET}
            with home(where) as made_up:
                for make in wanted:
                    make(made_up)


if __name__ == "__main__":
    main()
