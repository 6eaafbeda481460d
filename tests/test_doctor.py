"""`bffs doctor`: what is wrong is named, with a fix that works - with real mounts, devices, disks and a real server."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bffs import advice, findings
from bffs.findings import bounded, exit_code, green, red, yellow
from bffs.mountpoint import mount_at
from bffs.settings import Settings
from bffs.units import GIB, MIB
from tests.conftest import DATASET, Mounter, drivers, kill
from tests.s3server import S3Server
from tests.test_bindings import Ordinary, ordinary
from tests.test_explain import certificate, refusing, scripted, tunnel

__all__ = ["certificate", "ordinary"]

OBJECTS = {f"{n}/a-{i:04}.tif": 3_000_000 for n in (1, 2) for i in range(1, 4)}
KEY, SECRET, REGION = "the-right-key", "a-secret-that-nobody-may-see", "eu-central-1"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """A server that knows one access key and one region."""
    with S3Server(OBJECTS, bucket="neurons", access_key=KEY, region=REGION) as server:
        yield server
        server.reset()


class Patient:
    """Somebody's computer: a profile `lab` of the server, which is right, and an own environment."""

    def __init__(self, server: S3Server, home: Path) -> None:
        self.mounter = Mounter([], home)
        self.home = home
        profile = home / ".config/bffs/profiles/lab.toml"
        profile.parent.mkdir(parents=True)
        profile.write_text(
            f'endpoint_url = "{server.endpoint_url}"\nbucket = "neurons"\nregion = "{REGION}"\n'
            f'access_key_id = "{KEY}"\nsecret_access_key = "{SECRET}"\n'
        )
        (home / "mnt").mkdir()
        self.env = self.mounter.environment({"BFFS_DATASET": "lab"})
        del self.env["AWS_ACCESS_KEY_ID"], self.env["AWS_SECRET_ACCESS_KEY"]
        self.prefix: Sequence[str] = ()

    def sh(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell in which `bffs` is bffs and `sudo` is nothing, for this user is root."""
        known = f'bffs() {{ {shlex.quote(sys.executable)} -m bffs "$@"; }}; sudo() {{ "$@"; }}\n'
        return subprocess.run(
            [*self.prefix, "sh", "-c", known + script],
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def doctor(self, *args: str, before: str = "") -> tuple[int, dict[str, Any]]:
        """The exit code, and the findings by name, after the commands `before`."""
        done = self.sh(f"{before}\nbffs doctor --json {shlex.join(args)}")
        assert done.stderr == "" and SECRET not in done.stdout
        told = json.loads(done.stdout[done.stdout.index("{") :])
        assert told["ok"] == (done.returncode == 0)
        found = [each for each in told["findings"] if not self._is_elses(each)]
        assert all(each["fix"] for each in found if each["level"] == "red")
        if len(found) == len(told["findings"]):
            return done.returncode, {each["name"]: each for each in found}
        codes = {each["exit_code"] for each in found if each["level"] == "red"}
        return codes.pop() if len(codes) == 1 else len(codes), {
            each["name"]: each for each in found
        }

    def _is_elses(self, found: Mapping[str, Any]) -> bool:
        """Whether it is a mount of another test that runs on this machine, dead or stopped."""
        return (
            found["name"] == "mounts"
            and found["level"] != "green"
            and str(self.home) not in found["seen"]
        )

    def fails(self, name: str, *args: str, code: int) -> Any:
        """The only red finding, which is this one."""
        came, found = self.doctor(*args)
        assert [n for n, each in found.items() if each["level"] == "red"] == [name]
        assert came == code
        return found[name]

    def is_well(self, *args: str, before: str = "") -> dict[str, Any]:
        """The findings, none of which is red."""
        code, found = self.doctor(*args, before=before)
        assert code == 0, found
        return found


@pytest.fixture
def patient(server: S3Server, tmp_path: Path) -> Iterator[Patient]:
    server.reset()
    patient = Patient(server, tmp_path)
    yield patient
    server.reset()
    patient.mounter.close()


@contextlib.contextmanager
def namespace(*commands: str) -> Iterator[list[str]]:
    """A mount namespace of its own, where these commands were run; yields what runs commands in it."""
    if os.geteuid() != 0:
        pytest.skip("only root can have a mount namespace")
    script = " && ".join([*commands, "echo ready", "exec sleep 1000"])
    with subprocess.Popen(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        try:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            yield ["nsenter", "-t", str(child.pid), "-m", f"--wdns={os.getcwd()}"]
        finally:
            child.kill()


NO_DEVICE = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3"


# -- ten misconfigurations --------------------------------------------------------------------------------------


def test_no_fuse(patient: Patient) -> None:
    with namespace(NO_DEVICE) as patient.prefix:
        found = patient.fails("FUSE device", "--offline", code=6)
        assert "/dev/fuse is missing" in found["seen"]
        assert patient.sh(found["fix"]).returncode == 0
        patient.is_well("--offline")
        done = patient.sh(f"cd {patient.home} && bffs mount mnt && ls mnt && bffs umount mnt")
        assert "train" in done.stdout.split(), done.stderr


def test_no_permission(ordinary: Ordinary, server: S3Server) -> None:
    device = Path("/dev/fuse")
    device.chmod(0o600)
    command = ["-m", "bffs", "doctor", "--offline", "--json"]
    done = ordinary.run(*command)
    assert done.returncode == 6, done
    reds = [f for f in json.loads(done.stdout)["findings"] if f["level"] == "red"]
    (found,) = (f for f in reds if f["name"] != "mounts")
    assert found["name"] == "FUSE device" and "may not be used by this user" in found["seen"]
    assert found["fix"] == "sudo chmod 666 /dev/fuse"
    subprocess.run(found["fix"].split()[1:], check=True)  # this is root
    assert '"name": "FUSE device",\n            "level": "green"' in ordinary.run(*command).stdout


def test_a_wrong_endpoint(patient: Patient) -> None:
    patient.env["BFFS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    found = patient.fails("connection", code=3)
    assert "127.0.0.1 port 9: Connection refused" in found["seen"]
    patient.is_well(before=found["fix"])


def test_a_wrong_key(patient: Patient) -> None:
    patient.env |= {"AWS_ACCESS_KEY_ID": "another", "AWS_SECRET_ACCESS_KEY": SECRET}
    found = patient.fails("credentials", code=4)
    assert "refuses access to bucket neurons (InvalidAccessKeyId)" in found["seen"]
    assert "published key" in patient.is_well(before=found["fix"])["credentials"]["seen"]


def test_a_wrong_bucket(patient: Patient) -> None:
    patient.env["BFFS_BUCKET"] = "nuerons"
    patient.env |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    found = patient.fails("bucket", code=1)
    assert "no bucket nuerons" in found["seen"]
    assert found["fix"] == "export BFFS_BUCKET=neurons"
    patient.is_well(before=found["fix"])


def test_a_wrong_region(patient: Patient) -> None:
    patient.env["BFFS_REGION"] = "us-east-1"
    found = patient.fails("region", code=4)
    assert "bucket neurons is in region eu-central-1" in found["seen"]
    done = patient.sh(f"bffs mount {patient.home / 'mnt'}")
    assert (done.returncode, done.stderr) == (4, f"bffs: {found['seen']}\n")
    patient.is_well(before=found["fix"])


def test_a_clock_that_is_off_by_an_hour(patient: Patient, server: S3Server) -> None:
    server.fault("skew", value=3600)
    found = patient.fails("clock", code=4)
    assert "clock is 60 min behind the store's" in found["seen"]
    if "timedatectl" not in found["fix"]:  # the clock of this machine is not the test's to set
        stamp = re.fullmatch(r"date -u -s '(.*)'", found["fix"].removeprefix("sudo "))
        assert stamp
        meant = subprocess.run(
            ["date", "-u", "-d", stamp[1], "+%s"], capture_output=True, check=True
        )
        assert abs(int(meant.stdout) - time.time() - 3600) < 60
    server.reset()  # as if it were set
    patient.is_well()


def test_no_disk_space(patient: Patient) -> None:
    cache = patient.home / "full"
    cache.mkdir()
    patient.env["BFFS_CACHE_DIR"] = str(cache)
    full = f"mount -t tmpfs -o size=64M none {cache} && head -c 60M /dev/zero >{cache}/data"
    with namespace(full) as patient.prefix:
        found = patient.fails("cache room", "--offline", code=1)
        assert "of room in" in found["seen"] and "tmpfs" in found["seen"]
        assert found["fix"].startswith("export BFFS_CACHE_DIR=/")
        there = patient.is_well("--offline", before=found["fix"])["cache room"]
        assert there["figures"]["cache_room_bytes"] >= GIB


def test_a_busy_mountpoint(patient: Patient) -> None:
    mountpoint = patient.home / "mnt"
    assert patient.sh(f"bffs mount {mountpoint}").returncode == 0
    found = patient.fails("mountpoint", str(mountpoint), "--offline", code=6)
    assert f"{mountpoint}: is mounted already" in found["seen"]
    assert patient.sh(found["fix"]).returncode == 0
    assert mount_at(mountpoint) is None
    patient.is_well(str(mountpoint), "--offline")


def test_a_dead_mount(patient: Patient) -> None:
    mountpoint = patient.home / "mnt"
    assert patient.sh(f"bffs mount {mountpoint}").returncode == 0
    kill(mountpoint)
    _, found = patient.doctor("--offline")
    others = [f for f in found.values() if f["level"] == "red" and f["name"] != "mounts"]
    assert not others
    done = patient.sh("bffs doctor --offline")
    lines = done.stdout.splitlines()
    (at,) = (n for n, line in enumerate(lines) if f"{mountpoint} is dead" in line)
    assert lines[at].startswith("FAIL  mounts") and done.returncode == 6
    fix = lines[at + 1].partition("fix: ")[2]
    assert fix == f"bffs umount {mountpoint}"
    assert patient.sh(fix).returncode == 0
    assert mount_at(mountpoint) is None
    assert f"{mountpoint} is dead" not in patient.sh("bffs doctor --offline").stdout


# -- more that can be wrong -------------------------------------------------------------------------------------


def test_a_mount_that_hangs_is_named_and_does_not_hang_the_doctor(patient: Patient) -> None:
    mountpoint = patient.home / "mnt"
    assert patient.sh(f"bffs mount {mountpoint}").returncode == 0
    (driver,) = drivers(mountpoint)
    os.kill(driver, signal.SIGSTOP)
    try:
        done = patient.sh("bffs doctor --offline")
        assert f"{mountpoint} doesn't answer" in done.stdout
    finally:
        os.kill(driver, signal.SIGCONT)
    assert patient.sh(f"bffs umount {mountpoint}").returncode == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        ("touch mnt/file", "is not empty"),
        ("rmdir mnt", "does not exist"),
        ("rmdir mnt; touch mnt", "is not a folder"),
    ],
)
def test_a_folder_that_can_not_be_mounted_on(patient: Patient, make: str, said: str) -> None:
    patient.sh(f"cd {patient.home}; {make}")
    place = str(patient.home / "mnt")
    found = patient.fails("mountpoint", place, "--offline", code=6)
    assert said in found["seen"]
    if "choose" not in found["fix"]:
        done = patient.sh(found["fix"])
        assert done.returncode == 0, done.stdout
        patient.is_well(shlex.split(found["fix"])[-1], "--offline")


def test_a_missing_library(patient: Patient) -> None:
    patient.env["FUSE_LIBRARY_PATH"] = "/nonexistent/libfuse.so"
    found = patient.fails("libfuse", "--offline", code=6)
    patient.is_well("--offline", before=found["fix"])


def test_a_missing_binding(patient: Patient) -> None:
    for name in ("mfusepy", "fuse"):
        (patient.home / f"{name}.py").write_text("raise ImportError('hidden by a test')\n")
    patient.env["PYTHONPATH"] = f"{patient.home}:{patient.env['PYTHONPATH']}"
    found = patient.fails("libfuse", "--offline", code=6)
    assert found["fix"] == "pip install mfusepy"


def test_a_helper_that_is_not_setuid(ordinary: Ordinary) -> None:
    helper = Path("/usr/bin/fusermount3")
    mode = stat.S_IMODE(helper.stat().st_mode)
    copy = ordinary.home / "fusermount3"
    copy.write_bytes(helper.read_bytes())
    copy.chmod(0o755)
    code = (
        "import os; os.environ['PATH'] = os.path.expanduser('~'); "
        "from bffs import check_fuse; print(check_fuse._helper().seen)"
    )
    assert "is not setuid root" in ordinary.run("-c", code).stdout
    assert mode & stat.S_ISUID


def test_what_sharing_needs_is_said_only_to_who_wants_it(ordinary: Ordinary) -> None:
    conf = Path("/etc/fuse.conf")
    if conf.exists() and "user_allow_other" in conf.read_text().split("\n"):
        pytest.skip("this machine allows it")
    assert "FAIL  other users" not in ordinary.run("-m", "bffs", "doctor", "--offline").stdout
    done = ordinary.run("-m", "bffs", "doctor", "--offline", "--allow-other")
    assert done.returncode == 6
    assert "fix: echo user_allow_other | sudo tee -a /etc/fuse.conf" in done.stdout
    assert "readahead" in done.stdout and "--write-udev-rule" in done.stdout


def test_a_name_that_can_not_be_looked_up(patient: Patient) -> None:
    """In a network namespace of its own, so that nobody is really asked."""
    if os.geteuid() != 0:
        pytest.skip("only root can have a network namespace")
    patient.env["BFFS_ENDPOINT_URL"] = "http://nowhere.invalid"
    patient.prefix = ["unshare", "-n"]
    found = patient.fails("name", code=3)
    assert "nowhere.invalid can't be looked up" in found["seen"]
    assert found["fix"] == "connect this computer to a network: it has none"


def test_an_address_that_nobody_answers_at(patient: Patient) -> None:
    """A queue of connections that is full: the kernel lets further ones go unanswered."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        patient.env["BFFS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        found = patient.fails("connection", code=3)
        assert f"127.0.0.1 port {port}: nobody answers" in found["seen"]


def test_a_proxy_that_is_not_there(patient: Patient) -> None:
    patient.env["http_proxy"] = "http://127.0.0.1:9"
    found = patient.fails("connection", code=3)
    assert "the proxy 127.0.0.1 port 9: Connection refused" in found["seen"]
    patient.is_well(before=found["fix"])


def test_no_tls(patient: Patient, server: S3Server) -> None:
    patient.env["BFFS_ENDPOINT_URL"] = server.endpoint_url.replace("http:", "https:")
    found = patient.fails("TLS", code=3)
    assert "speaks no TLS" in found["seen"]
    patient.is_well(before=found["fix"])


def test_a_certificate_that_nobody_vouches_for(
    patient: Patient, server: S3Server, certificate: tuple[Path, Path]
) -> None:
    """As a proxy of an institute shows one; the fix names a file of the institute's."""
    with tunnel(server, certificate, []) as url:
        patient.env |= {"BFFS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": KEY}
        patient.env["AWS_SECRET_ACCESS_KEY"] = SECRET
        found = patient.fails("TLS", code=3)
        assert "shows no certificate to trust" in found["seen"]
        fix = re.sub(r"/path/\S+", str(certificate[0]), found["fix"])
        assert fix != found["fix"]
        assert "TLSv1" in patient.is_well(before=fix)["TLS"]["seen"]


def test_what_is_no_store(patient: Patient, server: S3Server) -> None:
    server.fault("xml")
    assert "does not answer like S3" in patient.fails("bucket", code=1)["seen"]


def test_a_bucket_of_something_else(patient: Patient) -> None:
    with S3Server({"readme.txt": 10, "docs/x.txt": 10}, bucket="neurons") as other:
        patient.env["BFFS_ENDPOINT_URL"] = other.endpoint_url
        patient.env |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        found = patient.fails("listing", code=1)
        assert "no <specimen>/<slice>.tif" in found["seen"]


def test_a_public_bucket_with_a_key_that_it_does_not_want(patient: Patient) -> None:
    """The key of something else in the environment, and a bucket for which none is needed."""
    patient.env |= {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    with S3Server(OBJECTS, bucket="public") as other:
        patient.env |= {"BFFS_ENDPOINT_URL": other.endpoint_url, "BFFS_BUCKET": "public"}
        found = patient.fails("credentials", code=4)
        assert found["fix"] == "use --no-sign-request"
        patient.is_well("--no-sign-request")


def test_credentials_that_have_expired(patient: Patient) -> None:
    (patient.home / ".aws").mkdir()
    (patient.home / ".aws/credentials").write_text(
        "[mine]\naws_access_key_id = A\naws_secret_access_key = B\naws_session_token = C\n"
    )
    patient.env["AWS_PROFILE"] = "mine"
    with scripted([refusing(400, "ExpiredToken")]) as (url, _):
        patient.env |= {"BFFS_ENDPOINT_URL": url, "BFFS_BUCKET": "of-others"}
        found = patient.fails("credentials", code=4)
    assert "ExpiredToken" in found["seen"] and found["fix"] == "aws sso login --profile mine"


def test_a_store_that_is_too_busy(patient: Patient, server: S3Server) -> None:
    server.fault("status", value=503)
    assert "too busy" in patient.fails("bucket", code=1)["seen"]


def test_an_absent_aws_profile(patient: Patient) -> None:
    patient.env["AWS_PROFILE"] = "absent"
    found = patient.fails("credentials", code=2)
    patient.is_well(before=found["fix"])


def test_a_wrong_value_in_the_file(patient: Patient) -> None:
    (patient.home / ".config/bffs/config.toml").write_text('memroy = "1G"\n')
    found = patient.fails("settings", code=2)
    assert "unknown key 'memroy'; did you mean memory?" in found["seen"]


def test_a_variable_that_means_nothing(patient: Patient) -> None:
    patient.env["BFFS_CACHE_SIZ"] = "1G"
    found = patient.is_well("--offline")["environment"]
    assert found["level"] == "yellow" and "did you mean BFFS_CACHE_SIZE?" in found["seen"]


def test_several_failures_of_different_kinds_are_1(patient: Patient) -> None:
    patient.env["BFFS_REGION"] = "us-east-1"
    code, _ = patient.doctor(str(patient.home / "absent"))
    assert code == 1


# -- what is measured -------------------------------------------------------------------------------------------


def test_latency_and_bandwidth_are_those_of_the_link(patient: Patient, server: S3Server) -> None:
    server.shape(latency=0.04, per_connection=5e6, total=20e6)
    try:
        found = patient.is_well()
    finally:
        server.shape()
    assert 0.04 <= found["latency"]["figures"]["latency"] < 0.4
    assert 2e6 < found["bandwidth"]["figures"]["bandwidth"] <= 22e6
    assert server.stats()["sent"]["get"] < 150e6


def settings(**given: Any) -> Settings:
    return Settings(dataset=DATASET, cache_dir=Path("/nowhere"), **given)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({}, {}),
        ({"bandwidth": 50e6, "latency": 0.03}, {}),
        ({"bandwidth": 1e6, "latency": 0.03}, {"max_connections": "8"}),
        ({"bandwidth": 900e6, "latency": 0.1}, {"max_connections": "64"}),
        ({"cache_room_bytes": 20.5 * GIB}, {"cache_size": "20G"}),
        ({"cache_room_bytes": 2.5 * GIB}, {"cache_size": "2560M"}),
        ({"cache_room_bytes": 100.0 * GIB}, {}),
        ({"cache_room_bytes": 1000.0 * GIB}, {"cache_size": "500G"}),
        ({"memory": 800.0 * MIB}, {"memory": "200M"}),
        ({"memory": 100.0 * MIB}, {"memory": "64M"}),
        ({"memory": 8.0 * GIB}, {}),
    ],
)
def test_options_fit_what_was_measured(
    figures: Mapping[str, float], expected: Mapping[str, str]
) -> None:
    assert advice.suggest(settings(), figures) == expected


def test_what_fits_is_not_suggested_again() -> None:
    figures = {"bandwidth": 1e6, "latency": 0.03, "cache_room_bytes": 20.0 * GIB, "memory": GIB}
    assert not advice.suggest(
        settings(max_connections=4, cache_size=10 * GIB, memory=256 * MIB), figures
    )


def test_it_changes_nothing(patient: Patient) -> None:
    def everything() -> dict[Path, tuple[int, float]]:
        stats = {path: path.lstat() for path in patient.home.rglob("*")}
        return {
            path: (each.st_size, each.st_ctime) for path, each in stats.items() if path.is_file()
        }

    before = everything()
    patient.is_well(str(patient.home / "mnt"))
    assert everything() == before
    assert patient.sh("bffs ls").returncode == 0  # now there is a cache folder
    before = everything()
    patient.is_well()
    assert {path for path in everything() if "index" not in path.name} == {
        path for path in before if "index" not in path.name
    }


# -- how it is told ---------------------------------------------------------------------------------------------


def test_in_a_pipe_there_are_no_colours_and_a_line_a_finding(patient: Patient) -> None:
    done = patient.sh("bffs doctor")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert all(re.match(r"(ok|warn|FAIL) +\w|  +fix: |$|suggested: ", line) for line in lines)
    assert lines[-1].startswith("suggested: ")


def on_terminal(patient: Patient, **env: str) -> str:
    """What is shown on a terminal of 80 columns."""
    command = [sys.executable, "-m", "bffs", "doctor", "--offline", "/" + "x" * 60]
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, command, {**patient.env, "TERM": "xterm", "COLUMNS": "80", **env})
    shown = b""
    while select.select([terminal], [], [], 60)[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:
            break
    os.waitpid(child, 0)
    os.close(terminal)
    return shown.decode()


def test_a_terminal_shows_colours_and_80_columns(patient: Patient) -> None:
    shown = on_terminal(patient)
    assert "\x1b[32mok" in shown and "\x1b[1;31mFAIL" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    long = [line for line in plain.splitlines() if len(line) > 80 and "fix: " not in line]
    assert all(len(line.split()) <= 2 for line in long), long  # one word that is longer


def test_no_color_is_heeded(patient: Patient) -> None:
    shown = on_terminal(patient, NO_COLOR="1")
    assert "FAIL" in shown and not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [([], 0), ([0], 0), ([6], 6), ([6, 6], 6), ([6, 3], 1), ([0, 4], 4), ([1], 1)],
)
def test_the_exit_code_is_that_of_the_failures(levels: list[int], expected: int) -> None:
    found = [red("a", "", "", code) if code else yellow("b", "") for code in levels]
    assert exit_code(found) == expected


def test_a_check_that_hangs_is_left_behind() -> None:
    def hangs() -> Iterator[findings.Finding]:
        yield green("first", "")
        time.sleep(30)

    first, late = bounded("disk", hangs, "mend it", 0.2)
    assert first.name == "first" and (late.level, late.name, late.fix) == ("red", "disk", "mend it")


def test_a_check_that_breaks_is_told() -> None:
    def breaks() -> Iterator[findings.Finding]:
        yield green("first", "")
        raise ValueError("unforeseen")

    _, broken = bounded("disk", breaks, "mend it")
    assert broken.level == "red" and "unforeseen" in broken.seen and broken.fix == "mend it"


# -- the rule ---------------------------------------------------------------------------------------------------


def test_the_rule_is_written_only_when_asked_and_over_nobody_elses(patient: Patient) -> None:
    rule = patient.home / "99-bffs.rules"
    assert patient.sh(f"bffs doctor --write-udev-rule {rule}").returncode == 0
    text = rule.read_text()
    assert patient.sh("bffs doctor --write-udev-rule -").stdout == text
    assert patient.sh(f"bffs doctor --write-udev-rule {rule}").returncode == 0
    rule.write_text("# mine\n")
    done = patient.sh(f"bffs doctor --write-udev-rule {rule}")
    assert done.returncode == 1 and "another's rule" in done.stderr
    assert rule.read_text() == "# mine\n"
    done = patient.sh(f"bffs doctor --write-udev-rule {patient.home}/absent/x.rules")
    assert done.returncode == 1 and "sudo tee" in done.stderr


def test_the_rules_program_finds_mounts_of_bffs_only(patient: Patient) -> None:
    """As udev runs it, with the device's name in place of %k."""
    text = patient.sh("bffs doctor --write-udev-rule -").stdout
    program = re.search(r'PROGRAM="(.*?)"', text)
    assert program and 'ATTR{read_ahead_kb}="1024"' in text

    def matches(device: str) -> bool:
        command = program[1].replace("%k", device).replace("/proc/1/", "/proc/self/")
        return subprocess.run(shlex.split(command), check=False).returncode == 0

    mountpoint = patient.home / "mnt"
    assert patient.sh(f"bffs mount {mountpoint}").returncode == 0
    mount = mount_at(mountpoint)
    assert mount is not None
    assert matches(mount.device)
    root = mount_at(Path("/proc"))
    assert root is not None and not matches(root.device)
    assert patient.sh(f"bffs umount {mountpoint}").returncode == 0
