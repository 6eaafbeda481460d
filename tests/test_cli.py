"""The command line: what is accepted where, what is printed, and how each failure ends - as a shell sees it."""

import csv
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from bffs import tables
from bffs.catalog import Catalog, list_catalog
from bffs.cli import Given, main
from bffs.errors import NoSuchSpecimen, StoreUnreachable
from bffs.options import OPTIONS, Option
from bffs.precedence import resolve
from bffs.profiles import config_file
from bffs.settings import Dataset, MountOptions, Settings
from bffs.tiff import SliceLayout
from tests.fakes import FakeStore
from tests.s3server import LAYOUT, S3Server

REPOSITORY = Path(__file__).parents[1]

DATASET = Dataset(
    name="d",
    endpoint_url="http://s3.test",
    region="r",
    bucket="b",
    splits=(("TEST_DATA_SET/", "test"), ("", "train")),
)
OBJECTS = {
    "90/": b"",
    **{f"90/s-{number:04}.tif": b"x" * 100 for number in range(1, 4)},
    "90/90.swc": b"# tracing",
    **{f"100/s-{number:04}.tif": b"x" * number for number in range(1, 6)},
    "TEST_DATA_SET/90/s-0001.tif": b"x" * 2048,
}

Bffs = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without configuration, and an environment without options and credentials."""
    for name in os.environ:
        if name.startswith(("BFFS_", "AWS_", "XDG_")):
            monkeypatch.delenv(name)
    # with it there is never output left that Python would write, and complain about, when it exits
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return tmp_path


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(OBJECTS, bucket="neurons", access_key="PUBLIC") as running:
        yield running
        running.reset()


@pytest.fixture
def bffs(home: Path) -> Bffs:
    """Run the real command in a process of its own."""

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bffs", *arguments]
        settings: dict[str, object] = {"capture_output": True, "text": True, "cwd": home, **options}
        return subprocess.run(command, timeout=50, check=False, **settings)  # type: ignore[call-overload, no-any-return]

    return run


@pytest.fixture
def configured(server: S3Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server as the default dataset of this home; the key in its profile is the one that it wants."""
    profile = home / ".config/bffs/profiles/neurons.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text(
        f'endpoint_url = "{server.endpoint_url}"\nbucket = "{server.bucket}"\n'
        'access_key_id = "PUBLIC"\nsecret_access_key = "hunter2hunter2"\n'
        '[splits]\n"TEST_DATA_SET/" = "test"\n"" = "train"\n'
    )
    monkeypatch.setenv("BFFS_DATASET", "neurons")
    server.reset()
    return server


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The only line on standard error, which begins with the program's name."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("bffs: ")
    assert not result.stdout
    return lines[0]


# -- options ----------------------------------------------------------------------------------------------------


@pytest.fixture
def probe() -> Iterator[Callable[..., Given]]:
    """Parse a command line with a command that only keeps what it was given."""
    seen: list[Given] = []

    @main.command("probe")
    @click.pass_obj
    def command(given: Given) -> None:
        seen.append(given)

    def run(*arguments: str) -> Given:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        return seen.pop()

    yield run
    del main.commands["probe"]


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.common], ids=str)
def test_common_options_stand_before_and_after_the_command(
    probe: Callable[..., Given], option: Option
) -> None:
    written = [option.flag, "text"] if option.metavar else [option.flag]
    flags = {option.key: "text" if option.metavar else "yes"}
    assert probe(*written, "probe").flags == flags
    assert probe("probe", *written).flags == flags
    assert probe("probe").flags == {}


def test_the_later_option_wins(probe: Callable[..., Given]) -> None:
    assert probe("--bucket", "a", "probe", "--bucket", "b").flags["bucket"] == "b"
    assert probe("--bucket", "a", "--bucket", "b", "probe").flags["bucket"] == "b"
    given = probe("--bucket", "a", "--region", "r", "probe", "--bucket", "")
    assert given.flags == {"bucket": "", "region": "r"}


@pytest.mark.parametrize(
    ("arguments", "verbosity"),
    [
        (["probe"], 0),
        (["-v", "probe"], 1),
        (["probe", "-vv"], 2),
        (["-v", "probe", "--verbose"], 2),
        (["probe", "-vvvv"], 2),
        (["-q", "probe"], -1),
        (["probe", "-qq"], -1),
        (["-v", "probe", "-q"], 0),
    ],
)
def test_verbosity_adds_up(
    probe: Callable[..., Given], arguments: list[str], verbosity: int
) -> None:
    assert probe(*arguments).verbosity == verbosity


def test_flags_come_before_environment_and_configuration(
    probe: Callable[..., Given], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".config/bffs").mkdir(parents=True)
    (home / ".config/bffs/config.toml").write_text('bucket = "of-file"\nregion = "of-file"\n')
    monkeypatch.setenv("BFFS_BUCKET", "of-variable")
    dataset = probe("--endpoint-url", "http://h", "probe").settings().dataset
    assert (dataset.endpoint_url, dataset.bucket) == ("http://h", "of-variable")
    assert dataset.region == "of-file"
    assert probe("probe", "--bucket", "of-flag").settings().dataset.bucket == "of-flag"


def test_every_command_has_help_and_all_options_of_the_table_are_in_use() -> None:
    texts = []
    for name in main.list_commands(click.Context(main)):
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        texts.append(result.output)
    assert all(any(option.flag in text for text in texts) for option in OPTIONS)


def test_version(bffs: Bffs) -> None:
    result = bffs("--version")
    assert re.fullmatch(r"bffs \d+\.\d+\S*", result.stdout.splitlines()[0])
    assert (result.returncode, result.stderr) == (0, "")


def test_help_loads_nothing_heavy() -> None:
    """Boto3 alone would take longer than the quarter of a second that help may need."""
    script = (
        "import sys; from bffs.cli import main; main(['--help'], standalone_mode=False); "
        "heavy = {'boto3', 'botocore', 'rich', 'tifffile', 'numpy', 'mfusepy', 'fuse', 'xxhash'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage:" in result.stdout


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, MountOptions]]:
    """What `bffs mount` asks for; nothing is mounted, and the exit code is 7."""
    calls: list[tuple[Settings, MountOptions]] = []

    def mount(settings: Settings, options: MountOptions, _: object) -> int:
        calls.append((settings, options))
        return 7

    monkeypatch.setattr("bffs.mount.mount", mount)
    return calls


def test_mount_passes_its_options_on(
    mounted: list[tuple[Settings, MountOptions]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    line = "-v mount mnt -f --read-only --scratch kept --memory 64M --cache-size 2M --max-connections 3 --readahead off"
    more = "--allow-other --log-file log -o ro,fsname=x -o nodev --no-sign-request"
    result = CliRunner().invoke(main, [*line.split(), *more.split()])
    assert (result.exit_code, result.output) == (7, "")
    settings, options = mounted.pop()
    assert options == MountOptions(
        mountpoint=home / "mnt",
        foreground=True,
        read_only=True,
        allow_other=True,
        log_file=home / "log",
        fuse_options=("ro", "fsname=x", "nodev"),
        verbosity=1,
    )
    assert settings == resolve(
        {
            "scratch": str(home / "kept"),
            "memory": "64M",
            "cache_size": "2M",
            "max_connections": "3",
            "readahead": "off",
            "no_sign_request": "yes",
        },
        {},
        config_file(),
    )


def test_mount_needs_a_mountpoint_only(
    mounted: list[tuple[Settings, MountOptions]], home: Path
) -> None:
    assert CliRunner().invoke(main, ["mount", "~/mnt"]).exit_code == 7
    assert mounted.pop() == (resolve({}, {}, config_file()), MountOptions(mountpoint=home / "mnt"))


# -- what is printed --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return list_catalog(FakeStore(OBJECTS), DATASET)


def identified(table: list[tables.Row]) -> list[str]:
    return [f"{row.split}/{row.id}" for row in table]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], ["train/100", "train/90", "test/90"]),
        (["train"], ["train/100", "train/90"]),
        (["test/"], ["test/90"]),
        (["90"], ["train/90", "test/90"]),
        (["train/90"], ["train/90"]),
        (["90", "test", "100"], ["train/90", "test/90", "train/100"]),
    ],
)
def test_ls_selects_by_split_and_id(catalog: Catalog, names: list[str], chosen: list[str]) -> None:
    assert [f"{s.split}/{s.id}" for s in tables.select(catalog, names)] == chosen


@pytest.mark.parametrize("names", [["91"], ["test/100"], ["train", "nope"]])
def test_ls_of_an_unknown_id_is_an_error(catalog: Catalog, names: list[str]) -> None:
    with pytest.raises(NoSuchSpecimen):
        tables.select(catalog, names)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("size", ["train/100", "train/90", "test/90"]),
        ("id", ["test/90", "train/90", "train/100"]),
        ("slices", ["test/90", "train/90", "train/100"]),
    ],
)
def test_ls_sorts_smallest_first(catalog: Catalog, sort: str, order: list[str]) -> None:
    assert identified(tables.rows(catalog.specimens, sort)) == order


def plain(catalog: Catalog, names: list[str]) -> list[str]:
    console = Console(file=io.StringIO(), width=10_000)
    table = tables.rows(tables.select(catalog, names), "size")
    return tables.as_table(table, catalog.splits, console).splitlines()


def test_the_table_has_a_line_a_specimen_and_the_sums_below(catalog: Catalog) -> None:
    assert plain(catalog, []) == [
        "id   split  slices  size  swc",
        "100  train       5    15   no",
        "90   train       3   300  yes",
        "90   test        1  2.0K   no",
        "",
        "train  2 specimens, 8 slices, 315",
        "test   1 specimen, 1 slice, 2.0K",
        "total  3 specimens, 9 slices, 2.4K",
    ]


def test_the_sum_of_one_split_is_not_repeated(catalog: Catalog) -> None:
    assert plain(catalog, ["test"])[2:] == ["", "test  1 specimen, 1 slice, 2.0K"]


def test_an_empty_dataset_has_a_sum() -> None:
    empty = list_catalog(FakeStore({}), DATASET)
    assert plain(empty, [])[-1] == "total  0 specimens, 0 slices, 0"


def test_a_long_id_is_not_cut_and_not_taken_for_markup() -> None:
    name = "[red]" + "n" * 240
    text = "\n".join(plain(list_catalog(FakeStore({f"{name}/1.tif": b"x"}), DATASET), []))
    assert f"\n{name}  train" in text


def test_json_and_csv_tell_the_same(catalog: Catalog) -> None:
    table = tables.rows(catalog.specimens, "size")
    objects = json.loads(tables.as_json(table))
    assert objects[1] == {"id": "90", "split": "train", "slices": 3, "bytes": 300, "swc": True}
    lines = list(csv.DictReader(io.StringIO(tables.as_csv(table))))
    assert [list(line.values()) for line in lines] == [
        [o["id"], o["split"], str(o["slices"]), str(o["bytes"]), json.dumps(o["swc"])]
        for o in objects
    ]
    assert list(lines[0]) == list(objects[0])


def test_info_describes_what_the_listing_tells(catalog: Catalog) -> None:
    train, test = catalog.find("90")
    about = tables.describe(train, DATASET, SliceLayout(20, 30, "uint8"), 103)
    assert about == {
        "id": "90",
        "split": "train",
        "slices": 3,
        "bytes": 300,
        "swc": True,
        "endpoint_url": "http://s3.test",
        "bucket": "b",
        "prefix": "90/",
        "smallest_slice": 100,
        "largest_slice": 100,
        "first_slice": "s-0001.tif",
        "last_slice": "s-0003.tif",
        "swc_file": "90.swc",
        "swc_bytes": 9,
        "shape": [3, 20, 30],
        "dtype": "uint8",
        "voxel": None,
        "stack_files": {},
        "stack_files_absent": {},
        "cached_bytes": 103,
        "saved_files": {},
        "files": 4,
        "file_bytes": 309,
        "oldest": "2019-08-14T21:05:33Z",
        "newest": "2019-08-14T21:05:33Z",
    }
    text = tables.as_text(about)
    assert "train/90\n" in text
    assert "each      100 bytes\n" in text
    assert "swc       90.swc, 9\n" in text
    assert "shape     3 x 20 x 30 (z, y, x), uint8\n" in text
    assert "cached    103, 33 %\n" in text
    assert "swc       none\n" in tables.as_text(tables.describe(test, DATASET, None, 0))


def test_info_of_slices_of_several_sizes_and_of_none() -> None:
    listed = list_catalog(FakeStore({"1/a.tif": b"x", "1/b.tif": b"xx", "2/2.swc": b"x"}), DATASET)
    several, none = (tables.as_text(tables.describe(s, DATASET, None, 0)) for s in listed.specimens)
    assert "each      1 to 2 bytes\n" in several
    assert "slices    0, 0 (0 bytes)\n" in none
    assert "first" not in none


# -- commands against a server ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("configured")
def test_ls_in_a_pipe_is_plain(bffs: Bffs) -> None:
    result = bffs("ls")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[2] == "90   train       3   300  yes"
    assert "\x1b" not in result.stdout


@pytest.mark.usefixtures("configured")
def test_ls_for_programs(bffs: Bffs) -> None:
    objects = json.loads(bffs("ls", "--json", "--sort", "id", "train").stdout)
    assert [(row["id"], row["bytes"]) for row in objects] == [("90", 300), ("100", 15)]
    assert bffs("ls", "--csv", "test").stdout == "id,split,slices,bytes,swc\n90,test,1,2048,false\n"


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_colours_unless_it_asks_for_none(
    home: Path, no_color: str, coloured: bool
) -> None:
    environ = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": no_color, "COLUMNS": "20"}
    master, slave = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "bffs", "ls"], stdin=slave, stdout=slave, stderr=slave,
        env=environ, cwd=home,
    ) as process:  # fmt: skip
        os.close(slave)
        seen = b""
        try:
            while piece := os.read(master, 65536):
                seen += piece
        except OSError:  # EIO: the other end is closed
            pass
        os.close(master)
    assert process.returncode == 0
    text = seen.decode()
    assert "listing" in text
    assert re.search(r"^90   train       3   300  yes\r$", text, re.MULTILINE)
    assert bool(re.search(r"\x1b\[(3|9)\d", text)) == coloured


@pytest.mark.usefixtures("configured")
def test_info_of_an_id_in_both_sets_is_the_test_one(bffs: Bffs) -> None:
    assert json.loads(bffs("info", "90", "--json").stdout)["split"] == "test"
    assert json.loads(bffs("info", "train/90", "--json").stdout)["bytes"] == 300
    assert bffs("info", "90").stdout.startswith("specimen  test/90\n")


@pytest.mark.usefixtures("configured")
def test_manifest_goes_to_standard_output_or_a_file(bffs: Bffs, home: Path) -> None:
    whole = bffs("manifest").stdout
    assert [entry["bucket_prefix"] for entry in json.loads(whole).values()] == [
        "100/",
        "TEST_DATA_SET/90/",
    ]
    assert json.loads(bffs("manifest", "train/90").stdout)["directory"] == "train/90"
    target = home / "m.json"
    target.write_text("old")
    result = bffs("manifest", "-o", "m.json")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert target.read_text() == whole
    assert sorted(path.name for path in home.iterdir()) == [".cache", ".config", "m.json"]


@pytest.mark.usefixtures("configured")
def test_manifest_follows_links_and_never_replaces_a_device(bffs: Bffs, home: Path) -> None:
    (home / "real.json").write_text("old")
    (home / "link.json").symlink_to("real.json")
    assert bffs("manifest", "-o", "link.json").returncode == 0
    assert (home / "link.json").is_symlink()
    assert json.loads((home / "real.json").read_text())
    os.mkfifo(home / "fifo")
    with subprocess.Popen(["cat", home / "fifo"], stdout=subprocess.PIPE) as reader:
        try:
            assert bffs("manifest", "-o", "fifo").returncode == 0
            assert json.loads(reader.communicate(timeout=20)[0])
        finally:
            reader.kill()
    assert (home / "fifo").is_fifo()


@pytest.mark.usefixtures("configured")
def test_a_manifest_that_cannot_be_written_is_said_so(bffs: Bffs, home: Path) -> None:
    assert "No such file or directory" in one_line(bffs("manifest", "-o", "absent/m.json"))
    (home / "folder").mkdir()
    result = bffs("manifest", "-o", "folder")
    assert (result.returncode, "directory" in one_line(result)) == (1, True)


def test_ls_of_the_whole_published_layout(bffs: Bffs) -> None:
    with S3Server(layout=LAYOUT) as server:
        place = ["--endpoint-url", server.endpoint_url, "--bucket", server.bucket]
        result = bffs(*place, "ls", "--no-sign-request")
    lines = result.stdout.splitlines()
    assert result.returncode == 0
    assert lines[1].split() == ["651806289", "train", "291", "6.1G", "yes"]
    assert [re.sub(" +", " ", line) for line in lines[-4:]] == [
        "",
        "train 105 specimens, 49,158 slices, 2.3T",
        "test 10 specimens, 4,547 slices, 262G",
        "total 115 specimens, 53,705 slices, 2.5T",
    ]


# -- how it ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nope"],
        ["ls", "--nope"],
        ["ls", "--sort", "colour"],
        ["info"],
        ["mount"],
        ["ls", "--memory", "1G"],
        ["--secret-access-key", "x", "ls"],
    ],
)
def test_wrong_usage_is_2(bffs: Bffs, arguments: list[str]) -> None:
    result = bffs(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Usage: bffs" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "--endpoint-url", "s3.example.org"], "--endpoint-url: 's3.example.org' is not"),
        (["--dataset", "nope", "ls"], "no dataset profile 'nope'"),
        (["mount", "--memory", "1M", "m"], "--memory: '1M' is too little"),
    ],
)
def test_a_wrong_value_is_2_in_one_line(bffs: Bffs, arguments: list[str], message: str) -> None:
    result = bffs(*arguments)
    assert result.returncode == 2
    assert message in one_line(result)


def test_an_unreachable_store_is_3(bffs: Bffs) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = bffs("ls", "--endpoint-url", endpoint, "--no-sign-request")
    assert result.returncode == 3
    assert endpoint in one_line(result)


def test_refused_access_is_4(bffs: Bffs, configured: S3Server) -> None:
    anonymous = bffs("ls", "--no-sign-request")
    assert anonymous.returncode == 4
    assert "neurons" in one_line(anonymous)
    # another address of the same server: the profile's key is not sent there
    other = configured.endpoint_url.replace("127.0.0.1", "localhost")
    keyless = bffs("ls", "--endpoint-url", other)
    assert keyless.returncode == 4
    assert "no credentials" in one_line(keyless)


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("command", ["ls", "info", "manifest"])
def test_an_unknown_specimen_is_5(bffs: Bffs, command: str) -> None:
    result = bffs(command, "400")
    assert result.returncode == 5
    assert "no specimen 400" in one_line(result)


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("command", ["mount", "umount"])
def test_an_unusable_mountpoint_is_6(bffs: Bffs, command: str) -> None:
    result = bffs(command, "/nowhere/mnt")
    assert result.returncode == 6
    one_line(result)


@pytest.mark.usefixtures("configured")
def test_a_secret_is_never_printed(bffs: Bffs) -> None:
    for arguments in (["-vv", "ls"], ["-vv", "info", "400"], ["-vv", "manifest"]):
        result = bffs(*arguments)
        assert "hunter2" not in result.stdout + result.stderr


def test_ctrl_c_is_130_and_quiet(configured: S3Server, home: Path) -> None:
    configured.fault("stall", value=20.0, kind="list")
    with subprocess.Popen(
        [sys.executable, "-m", "bffs", "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=home,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 20
        while not configured.stats()["requests"] and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=15)
    configured.reset()
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"], ["info", "90"], ["manifest"]])
def test_a_reader_that_went_away_is_no_error_message(bffs: Bffs, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = bffs(*arguments, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.usefixtures("configured")
def test_a_full_disk_is_said_so(bffs: Bffs) -> None:
    with Path("/dev/full").open("w") as full:
        result = bffs("ls", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (1, "bffs: No space left on device\n")


@pytest.fixture
def failing() -> Iterator[Callable[..., object]]:
    """Run a command that raises this exception."""

    def run(error: BaseException, *arguments: str) -> object:
        @main.command("failing")
        def command() -> None:
            raise error

        return CliRunner().invoke(main, [*arguments, "failing"])

    yield run
    main.commands.pop("failing", None)


def test_what_nobody_foresaw_is_one_line_and_1(
    failing: Callable[..., click.testing.Result],
) -> None:
    result = failing(ValueError("two\nlines"))
    assert result.exit_code == 1
    assert result.stderr == "bffs: internal error: ValueError: two lines (-v shows more)\n"


@pytest.mark.parametrize("error", [ValueError("odd"), StoreUnreachable("no answer")])
def test_only_v_shows_a_traceback(
    failing: Callable[..., click.testing.Result], error: Exception
) -> None:
    assert "Traceback" not in failing(error).stderr
    assert "Traceback" not in failing(error, "-q").stderr
    result = failing(error, "-v")
    assert "Traceback" in result.stderr
    assert result.exit_code == getattr(error, "exit_code", 1)


def test_an_error_of_the_system_names_the_file(
    failing: Callable[..., click.testing.Result],
) -> None:
    result = failing(PermissionError(13, "Permission denied", "/x"))
    assert (result.exit_code, result.stderr) == (1, "bffs: Permission denied: /x\n")


def test_an_interrupted_command_is_130(failing: Callable[..., click.testing.Result]) -> None:
    result = failing(KeyboardInterrupt())
    assert (result.exit_code, result.output) == (130, "")
