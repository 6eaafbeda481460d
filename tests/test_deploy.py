"""docs/deploy.md: what it shows is run here, as far as it says so - mount(8), units, scripts, propagation."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bffs import fstab
from bffs.mountpoint import mount_at
from tests.conftest import ROOT, Mounter, drivers, until
from tests.s3server import S3Server, pattern
from tests.test_bindings import Ordinary, ordinary
from tests.test_doctor import namespace

__all__ = ["ordinary"]

TEXT = (ROOT / "docs" / "deploy.md").read_text()
OBJECTS = {f"1/a-{i:04}.tif": 200_000 for i in range(1, 4)}
SLICE = "train/1/a-0001.tif"
CONTENT = pattern("1/a-0001.tif", 0, 200_000)
PLACE, CACHE, PROGRAM = "/mnt/neurons", "/var/cache/bffs", "/usr/local/bin/bffs"


def block(mark: str) -> str:
    """The only code block that holds `mark`."""
    (found,) = (b for b in re.findall(r"```\w*\n(.*?)```", TEXT, re.DOTALL) if mark in b)
    return str(found)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(OBJECTS, bucket="neurons") as server:
        yield server


class Machine:
    """A machine whose default dataset is the server's, and whose paths are those of the text."""

    def __init__(self, server: S3Server, folder: Path, python: Sequence[str]) -> None:
        self.folder = folder
        self.mounter = Mounter([], folder)
        self.mountpoint = folder / "mnt"
        self.mountpoint.mkdir()
        self.env = self.mounter.environment({"BFFS_DATASET": "lab"})
        profiles = folder / ".config/bffs/profiles"
        profiles.mkdir(parents=True)
        (profiles / "lab.toml").write_text(
            f'endpoint_url = "{server.endpoint_url}"\nbucket = "neurons"\nno_sign_request = true\n'
        )
        self.program = folder / "bin" / "bffs"
        self.program.parent.mkdir()
        self.write(
            self.program,
            f"#!/bin/sh\nexport PYTHONPATH={self.env['PYTHONPATH']} XDG_RUNTIME_DIR={folder} HOME={folder}\n"
            "export BFFS_DATASET=lab\n"
            f'exec {shlex.join(python)} -m bffs "$@"\n',
        )
        self.env["PATH"] = f"{folder}/bin:{os.environ['PATH']}"

    def write(self, path: Path, text: str) -> Path:
        """A program."""
        path.write_text(text)
        path.chmod(0o755)
        return path

    def here(self, text: str) -> str:
        """What the text shows, with this machine's paths."""
        for there, here in (
            (PLACE, self.mountpoint),
            (CACHE, self.folder / "cache"),
            (PROGRAM, self.program),
            ("/var/log/bffs.log", self.folder / "log"),
            ("/run/lock/bffs", self.folder / "lock"),
            ("brightfield", "lab"),
        ):
            text = text.replace(there, str(here))
        return text

    def sh(
        self, script: str, prefix: Sequence[str] = (), **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, "sh", "-c", f'sudo() {{ "$@"; }}\n{script}'], env=self.env | env,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture
def machine(server: S3Server, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(server, tmp_path, [sys.executable])
    yield machine
    if mount_at(machine.mountpoint) is not None:
        machine.sh(f"bffs umount {machine.mountpoint}")
    assert mount_at(machine.mountpoint) is None and not drivers(machine.mountpoint)


# -- mount(8) ---------------------------------------------------------------------------------------------------

SWITCHES = {"--read-only", "--allow-other", "--offline", "--no-passthrough"}
VALUED = {"--cache-size", "--cache-dir", "--dataset"}


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        ("lab", "rw,dev,suid", ["--dataset", "lab", "-o", "fsname=lab,rw,dev,suid"]),
        ("none", "rw", ["-o", "fsname=none,rw"]),
        ("lab", "ro,nodev", ["--dataset", "lab", "--read-only", "-o", "fsname=lab,nodev"]),
        ("bffs", "rw,read_only", ["--read-only", "-o", "fsname=bffs"]),
        (
            "bffs",
            "allow_other,cache_size=2G,cache-dir=/a b,offline",
            ["--allow-other", "--cache-size", "2G", "--cache-dir", "/a b", "--offline", "-o", "fsname=bffs"],
        ),
        ("bffs", "defaults,_netdev,nofail,x-a.b=c,comment=d,user", ["-o", "fsname=bffs"]),
        ("bffs", "cache-size,offline=1", ["-o", "fsname=bffs,cache-size,offline=1"]),
    ],
)  # fmt: skip
def test_words_of_mount_are_options(source: str, options: str, expected: list[str]) -> None:
    arguments = [source, "/mnt/x", "-o", options]
    assert fstab.is_from_mount(arguments, ["mount", "ls"])
    translated = fstab.translated(arguments, SWITCHES, VALUED)
    assert translated == ["mount", *expected, "--", "/mnt/x"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["lab"], ["mount", "/m", "-o", "rw"], ["-v", "/m", "-o", "rw"], ["lab", "/m", "-f", "x"]],
)
def test_what_a_user_types_is_not_translated(arguments: list[str]) -> None:
    assert not fstab.is_from_mount(arguments, ["mount", "ls"])


@pytest.fixture
def root(machine: Machine) -> Iterator[list[str]]:
    """What runs commands where mount(8) finds this bffs, in a mount namespace of its own."""
    if not os.path.exists("/sbin/mount.fuse") or shutil.which("mount.fuse3") is None:
        pytest.skip("there is no mount.fuse3 on this machine")
    with namespace(f"mount --bind {machine.program.parent} /usr/local/sbin") as prefix:
        yield prefix
        machine.sh(f"umount {machine.mountpoint}", prefix)


def test_mount_and_umount(machine: Machine, root: list[str]) -> None:
    commands = block("sudo mount -t fuse.bffs")
    mount, umount = machine.here(commands).splitlines()
    done = machine.sh(
        f"{mount}\ncat {machine.mountpoint}/{SLICE} | sha256sum\nfindmnt -n {machine.mountpoint}",
        root,
    )
    assert done.stderr == "" and done.returncode == 0
    *_, shown, found = done.stdout.splitlines()  # behind what the mount says
    assert shown.split()[0] == hashlib.sha256(CONTENT).hexdigest()
    place, source, kind, options = found.split()
    assert (place, source, kind) == (str(machine.mountpoint), "lab", "fuse.bffs")
    assert {"ro", "allow_other"} <= set(options.split(","))
    assert len(drivers(machine.mountpoint)) == 1
    assert machine.sh(umount, root).returncode == 0
    until(lambda: not drivers(machine.mountpoint))


def test_a_line_in_fstab(machine: Machine, root: list[str]) -> None:
    line = machine.here(block("x-systemd.automount 0 0"))
    table = machine.folder / "fstab"
    table.write_text(line)
    for _ in range(2):  # the second finds it mounted already
        done = machine.sh(f"mount -a -T {table} && ls {machine.mountpoint}", root)
        assert (done.returncode, done.stderr) == (0, "")
        assert "train" in done.stdout.split()
    assert len(drivers(machine.mountpoint)) == 1
    assert machine.sh(f"umount {machine.mountpoint}", root).returncode == 0
    until(lambda: not drivers(machine.mountpoint))


def test_mount_shows_what_is_wrong(machine: Machine, root: list[str]) -> None:
    for options, code, said in (
        ("offline", 3, "no listing of this dataset was kept"),
        ("cache-size=much", 2, "--cache-size: 'much' is not a size"),
    ):
        done = machine.sh(f"mount -t fuse.bffs lab {machine.mountpoint} -o {options}", root)
        assert done.returncode == code and said in done.stderr
    done = machine.sh(f"mount -t fuse.bffs lba {machine.mountpoint}", root)
    assert done.returncode == 2 and "did you mean lab?" in done.stderr


@pytest.fixture
def program(ordinary: Ordinary) -> Path:
    """`bffs` for an ordinary user, in a folder for programs."""
    path = ordinary.home / "bin" / "bffs"
    ordinary.run("mkdir", str(path.parent), str(ordinary.home / "mnt"), python=False)
    packages = f"{ROOT}:{sysconfig.get_path('purelib')}"
    command = f'exec {shlex.join(ordinary.python)} -m bffs "$@"'
    path.write_text(f"#!/bin/sh\nexport PYTHONPATH={packages}\n{command}\n")
    path.chmod(0o755)
    return path


def explicit(server: S3Server, folder: Path) -> str:
    """Options that take nothing from a home, which the ordinary user hasn't got."""
    return (
        f"endpoint-url={server.endpoint_url},bucket=neurons,no-sign-request,ro,"
        f"cache-dir={folder}/cache,log-file={folder}/log"
    )


def test_as_another_user(server: S3Server, ordinary: Ordinary, program: Path) -> None:
    """`setuid=`, where mount.fuse3 leaves HOME as root has it."""
    mountpoint = ordinary.home / "mnt"
    options = f"setuid=nobody,{explicit(server, ordinary.home)}"
    with namespace(f"mount --bind {program.parent} /usr/local/sbin") as prefix:
        command = [*prefix, "mount", "-t", "fuse.bffs", "none", str(mountpoint), "-o", options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        (driver,) = drivers(mountpoint)
        assert Path(f"/proc/{driver}").stat().st_uid == ordinary.uid
        assert (ordinary.home / "cache").stat().st_uid == ordinary.uid
        subprocess.run([*prefix, "umount", str(mountpoint)], check=True)
        until(lambda: not drivers(mountpoint))


def test_a_users_line_in_fstab(server: S3Server, ordinary: Ordinary, program: Path) -> None:
    """Mounted and unmounted by an ordinary user, without root."""
    mountpoint, table = ordinary.home / "mnt", ordinary.home / "fstab"
    line = block("noauto,user").replace("/home/you/neurons", str(mountpoint))
    options = f"noauto,user,{explicit(server, ordinary.home)}"
    table.write_text(line.replace("noauto,user", options).replace("brightfield", "none"))
    binds = f"mount --bind {program.parent} /usr/local/sbin && mount --bind {table} /etc/fstab"
    with namespace(binds) as root:
        user = [
            *root,
            "setpriv",
            f"--reuid={ordinary.uid}",
            f"--regid={ordinary.uid}",
            "--clear-groups",
        ]

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*user, *command], capture_output=True, text=True, check=False, timeout=60
            )

        done = run("mount", str(mountpoint))
        assert (done.returncode, done.stderr) == (0, "")
        (driver,) = drivers(mountpoint)
        assert Path(f"/proc/{driver}").stat().st_uid == ordinary.uid
        shown = run("sha256sum", f"{mountpoint}/{SLICE}").stdout
        assert shown.startswith(hashlib.sha256(CONTENT).hexdigest())
        done = run("umount", str(mountpoint))
        assert (done.returncode, done.stderr) == (0, "")
        until(lambda: not drivers(mountpoint))


def test_home_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fstab.be_at_home()
    assert os.environ["HOME"] == str(tmp_path)
    for wrong in ("/nonexistent", ""):
        monkeypatch.setenv("HOME", wrong)
        fstab.be_at_home()
        assert os.environ["HOME"] == pwd.getpwuid(os.geteuid()).pw_dir


def test_autofs(machine: Machine, root: list[str]) -> None:
    """Mounted at the first look, unmounted when nobody has looked for the given time."""
    if shutil.which("automount") is None or "autofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("there is no autofs on this machine")
    table = machine.folder / "auto.bffs"
    table.write_text(machine.here(block("# /etc/auto.bffs")))
    master = machine.here(block("/etc/auto.master.d/bffs.autofs"))
    (machine.folder / "auto.master").write_text(
        master.replace("/etc/auto.bffs", str(table)).replace("--timeout=3600", "--timeout=2")
    )
    with subprocess.Popen(
        [*root, "setsid", "sh", "-c",
         f"mount -t tmpfs none /run && mkdir /run/autofs && exec automount -f {machine.folder}/auto.master"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as automount:  # fmt: skip
        try:
            trigger = f"until findmnt -n -t autofs {machine.mountpoint}; do sleep 0.1; done"
            assert machine.sh(f"timeout 20 sh -c {shlex.quote(trigger)}", root).returncode == 0
            done = machine.sh(f"timeout 30 sha256sum {machine.mountpoint}/{SLICE}", root)
            assert done.stdout.split()[:1] == [hashlib.sha256(CONTENT).hexdigest()], done.stderr
            until(lambda: not drivers(machine.mountpoint), seconds=30)
        finally:
            for driver in drivers(machine.mountpoint):
                os.kill(driver, signal.SIGKILL)
            automount.terminate()
            automount.wait(20)


# -- systemd ----------------------------------------------------------------------------------------------------


class Manager:
    """What systemd is to a service: a socket that is told how far it is."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        self.socket.settimeout(30)

    def told(self) -> list[str]:
        """The lines of the next message."""
        return self.socket.recv(4096).decode().splitlines()


def started(machine: Machine, unit: str) -> list[str]:
    """The command of a unit."""
    (command,) = re.findall(r"^ExecStart=(.*)$", machine.here(unit), re.MULTILINE)
    return shlex.split(command.replace("%h/neurons", str(machine.mountpoint)))


@pytest.mark.parametrize(
    "mark", ["/etc/systemd/system/bffs.service", "~/.config/systemd/user/bffs.service"]
)
@pytest.mark.parametrize("address", ["{}/socket", "@{}"])
def test_a_unit_is_ready_when_the_files_are_there(
    machine: Machine, mark: str, address: str
) -> None:
    unit = block(mark)
    assert "Type=notify" in unit
    name = address.format(machine.folder)
    manager = Manager(name)
    with subprocess.Popen(
        started(machine, unit), env=machine.env | {"NOTIFY_SOCKET": name},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as service:  # fmt: skip
        try:
            assert manager.told() == [f"STATUS=mounting at {machine.mountpoint}"]
            assert manager.told() == ["READY=1", f"STATUS=mounted at {machine.mountpoint}"]
            assert (machine.mountpoint / SLICE).read_bytes() == CONTENT
            service.send_signal(signal.SIGHUP)  # ExecReload
            service.terminate()
            assert manager.told()[0] == "STOPPING=1"
            assert service.wait(30) == 0
        finally:
            service.kill()
    manager.socket.close()
    assert mount_at(machine.mountpoint) is None


def test_a_manager_that_is_gone_is_no_error(machine: Machine) -> None:
    for address in (str(machine.folder / "nobody"), "nonsense", "@nobody-at-all"):
        with subprocess.Popen(
            [machine.program, "mount", "-f", machine.mountpoint], env=machine.env | {"NOTIFY_SOCKET": address},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as service:  # fmt: skip
            until((machine.mountpoint / SLICE).exists)
            service.terminate()
            assert service.communicate(timeout=30)[1] == ""
            assert service.returncode == 0


def test_a_service_that_was_killed_starts_again(machine: Machine) -> None:
    command = started(machine, block("/etc/systemd/system/bffs.service"))
    for _ in range(2):
        with subprocess.Popen(command, env=machine.env, stdout=subprocess.DEVNULL) as service:
            until(
                lambda: (
                    os.path.ismount(machine.mountpoint) and (machine.mountpoint / SLICE).exists()
                )
            )
            service.kill()


@pytest.mark.parametrize(
    "mark", ["/etc/systemd/system/bffs.service", "~/.config/systemd/user/bffs.service"]
)
def test_systemd_has_nothing_against_the_units(machine: Machine, mark: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze on this machine")
    path = machine.folder / "bffs.service"
    path.write_text(machine.here(block(mark)).replace("Documentation=man:bffs(1)\n", ""))
    how = ["--user"] if "user" in mark else []
    done = machine.sh(
        f"systemd-analyze verify --man=no --recursive-errors=no {shlex.join(how)} {path}"
    )
    assert (done.returncode, done.stderr) == (0, "")


SYSTEMD = "/lib/systemd/systemd"


@pytest.fixture
def manager(machine: Machine) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """A real systemd, of a user, which takes the machine to be booted with it; runs `systemctl --user`."""
    if not os.path.exists(SYSTEMD):
        pytest.skip("there is no systemd on this machine")
    group = f"/sys/fs/cgroup/bffs-test-{os.getpid()}"
    runtime = machine.folder / "run"
    runtime.mkdir(mode=0o700)
    env = f"XDG_RUNTIME_DIR={runtime} HOME={machine.folder}"
    prepare = (
        "mount -t tmpfs none /run && mkdir -p /run/systemd/system && umount -R /sys/fs/cgroup"
        f" && mount -t cgroup2 none /sys/fs/cgroup && mkdir {group}"
    )
    with namespace(prepare) as prefix:
        begin = f"echo $$ >{group}/cgroup.procs; exec env {env} {SYSTEMD} --user"
        with subprocess.Popen(
            [*prefix, "setsid", "sh", "-c", begin], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as systemd:  # fmt: skip

            def control(words: str) -> subprocess.CompletedProcess[str]:
                return machine.sh(f"{env} systemctl --user {words}", prefix)

            try:
                for _ in range(50):
                    if control("is-system-running").stdout in ("running\n", "degraded\n"):
                        break
                    time.sleep(0.2)
                else:
                    pytest.skip("systemd can't run here")
                yield control
            finally:
                control("stop bffs")
                systemd.terminate()
                systemd.wait(30)
                remove = (
                    f"find {group} -depth -type d -exec rmdir {{}} + 2>/dev/null; ! test -d {group}"
                )
                until(lambda: machine.sh(remove, prefix).returncode == 0, seconds=30)


@pytest.mark.parametrize(
    "mark", ["/etc/systemd/system/bffs.service", "~/.config/systemd/user/bffs.service"]
)
def test_systemd_runs_the_units(
    machine: Machine, manager: Callable[[str], subprocess.CompletedProcess[str]], mark: str
) -> None:
    unit = machine.here(block(mark)).replace("%h/neurons", str(machine.mountpoint))
    folder = machine.folder / ".config/systemd/user"
    folder.mkdir(parents=True)
    (folder / "bffs.service").write_text(unit.replace("RestartSec=10", "RestartSec=2"))

    def look(script: str) -> str:
        return manager(f"show -p ActiveState >/dev/null; {script}").stdout

    def told(name: str) -> str:
        return manager(f"show --value -p {name} bffs").stdout.strip()

    here = f"sha256sum <{machine.mountpoint}/{SLICE}"
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert manager("daemon-reload").returncode == 0
    done = manager("start bffs")
    assert (done.returncode, done.stderr) == (0, "")
    assert look(here).startswith(digest)  # at once
    assert (told("ActiveState"), told("StatusText")) == (
        "active",
        f"mounted at {machine.mountpoint}",
    )
    assert manager("reload bffs").returncode == 0
    first = told("MainPID")
    os.kill(int(first), signal.SIGKILL)
    for _ in range(100):
        if told("MainPID") not in (first, "0") and told("ActiveState") == "active":
            break
        time.sleep(0.3)
    assert look(here).startswith(digest), manager("status bffs").stdout
    assert told("NRestarts") == "1"
    done = manager("stop bffs")
    assert (done.returncode, told("ActiveState"), told("Result")) == (0, "inactive", "success")
    assert look(f"mountpoint -q {machine.mountpoint} || echo gone") == "gone\n"


# -- Slurm, containers ------------------------------------------------------------------------------------------


def test_slurms_scripts(machine: Machine) -> None:
    prolog = machine.write(machine.folder / "prolog", machine.here(block("# prolog")))
    epilog = machine.write(machine.folder / "epilog", machine.here(block("# epilog")))
    jobs = machine.folder / "jobs"
    machine.write(machine.folder / "bin/squeue", f"#!/bin/sh\ncat {jobs}\n")
    job = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node1"}
    for _ in range(2):  # a second job on the same node
        done = machine.sh(str(prolog), **job)
        assert (done.returncode, done.stderr) == (0, "")
        assert (machine.mountpoint / SLICE).read_bytes() == CONTENT
    assert len(drivers(machine.mountpoint)) == 1
    jobs.write_text("")
    machine.sh(str(epilog), **job)
    with ThreadPoolExecutor() as pool:  # two jobs at the same moment
        begun = list(pool.map(lambda _: machine.sh(str(prolog), **job), range(2)))
    assert [(done.returncode, done.stderr) for done in begun] == [(0, "")] * 2
    for running, stays in (("7\n77\n", True), ("7\n", False), ("", False)):
        jobs.write_text(running)
        assert machine.sh(str(epilog), **job).returncode == 0
        assert (mount_at(machine.mountpoint) is not None) == stays


def run_inside(machine: Machine, command: Sequence[str], folder: Path) -> None:
    """Run a container's command where mounts in `folder` propagate; see it from outside, end it."""
    if os.geteuid() != 0:
        pytest.skip("only root can have a mount namespace")
    folder.mkdir(exist_ok=True)
    mountpoint = folder / "neurons"
    mountpoint.mkdir(exist_ok=True)
    shared = f"mount --bind {folder} {folder} && mount --make-shared {folder}"
    with namespace(shared) as node:
        with subprocess.Popen(
            [*node, "unshare", "-m", "--propagation", "unchanged", *command],
            env=machine.env, stdout=subprocess.DEVNULL,
        ) as container:  # fmt: skip
            try:
                look = f"until mountpoint -q {mountpoint}; do sleep 0.1; done; sha256sum <{mountpoint}/{SLICE}"
                done = machine.sh(look, node)
                assert done.stdout.split()[0] == hashlib.sha256(CONTENT).hexdigest()
            finally:
                for driver in drivers(mountpoint):
                    os.kill(driver, signal.SIGTERM)
                container.wait(30)
        assert machine.sh(f"mountpoint -q {mountpoint}", node).returncode != 0


def test_the_containers_command(machine: Machine) -> None:
    recipe = block("# Containerfile")
    command = json.loads(re.findall(r"^CMD (.*)$", recipe, re.MULTILINE)[0])
    assert 'ENTRYPOINT ["bffs"]' in recipe
    folder = machine.folder / "shared"
    words = [machine.here(word).replace("/mnt/bffs", str(folder)) for word in command]
    run_inside(machine, [str(machine.program), *words], folder)


def test_kubernetes_pods(machine: Machine) -> None:
    yaml = pytest.importorskip("yaml")
    daemons, reader = yaml.safe_load_all(block("kind: DaemonSet"))
    pod = daemons["spec"]["template"]
    assert pod["metadata"]["labels"] == daemons["spec"]["selector"]["matchLabels"]
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"] == {"privileged": True}
    ways = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert ways["mounts"]["mountPropagation"] == "Bidirectional"
    (seen,) = reader["spec"]["containers"][0]["volumeMounts"]
    assert (seen["mountPath"], seen["mountPropagation"]) == (
        ways["mounts"]["mountPath"],
        "HostToContainer",
    )
    names = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert names == ways.keys()
    folder = machine.folder / "shared"

    def here(words: Sequence[str]) -> list[str]:
        return [machine.here(word).replace("/mnt/bffs", str(folder)) for word in words]

    run_inside(machine, [*here(container["command"]), *here(container["args"])], folder)
    probe = here(container["readinessProbe"]["exec"]["command"])
    assert probe == ["test", "-f", f"{folder}/neurons/specimens_manifest.json"]


# -- the text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
def test_scripts_are_sh(script: str) -> None:
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0
