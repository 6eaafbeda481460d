"""Checks of FUSE: the device, the library, who may mount, kernel readahead, mounts that are there,
and a folder to mount on. They look and change nothing.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from bffs import mountpoint as mountpoints
from bffs.errors import MountError
from bffs.findings import Finding, as_root, bounded, green, installing, red, yellow

DEVICE = "/dev/fuse"
RULE_FILE = "/etc/udev/rules.d/99-bffs.rules"
RULE_MARK = "# Written by `bffs doctor`"

_RULES = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")
_CAP_SYS_ADMIN = 21
_NO_FUSE = 6
_IN_CONTAINER = "start the container with --device /dev/fuse --cap-add SYS_ADMIN"
_ANSWER = 3.0
"""Seconds that a living mount has to answer."""


def check(*, allow_other: bool) -> Iterator[Finding]:
    """What mounting needs of this machine."""
    yield _device()
    library = _library()
    yield library
    yield _helper()
    if library.level != "red":
        yield _passthrough()
    if os.geteuid() != 0:
        yield _conf(allow_other)
    yield from _readahead()


def udev_rule() -> str:
    """A rule that raises the kernel readahead of every mount of bffs, also of ordinary users.

    The device of a mount comes with the mount, of whatever file system: hence the look at what is
    mounted, which is there a moment later than the device.
    """
    look = "grep -q [[:space:]]%k[[:space:]].*fuse[.]bffs[[:space:]] /proc/1/mountinfo"
    wait = f"for i in 0 1 2 3 4 5 6 7 8 9; do {look} && exit 0; sleep 0.1; done; exit 1"
    return (
        f"{RULE_MARK}: kernel readahead of mounts of bffs, {mountpoints.READ_AHEAD_KB} KiB.\n"
        'ACTION=="add", SUBSYSTEM=="bdi", KERNEL=="0:*", '
        f"PROGRAM=\"/bin/sh -c '{wait}'\", "
        f'ATTR{{read_ahead_kb}}="{mountpoints.READ_AHEAD_KB}"\n'
    )


def _device() -> Finding:
    name = "FUSE device"
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        may_mount, _, _ = _privileges()
        if _is_container() and not may_mount:
            return red(name, f"{DEVICE} is missing in this container", _IN_CONTAINER, _NO_FUSE)
        if "fuse" in Path("/proc/filesystems").read_text().split():
            node = as_root(f"mknod -m 666 {DEVICE} c 10 229")
            return red(name, f"{DEVICE} is missing, though the kernel has FUSE", node, _NO_FUSE)
        return red(name, f"{DEVICE} is missing", as_root("modprobe fuse"), _NO_FUSE)
    except OSError as error:
        if error.errno == errno.EPERM:
            return red(name, f"this container may not use {DEVICE}", _IN_CONTAINER, _NO_FUSE)
        if error.errno == errno.EACCES:
            open_to_all = as_root(f"chmod 666 {DEVICE}")
            return red(name, f"{DEVICE} may not be used by this user", open_to_all, _NO_FUSE)
        return red(name, f"{DEVICE}: {error.strerror}", as_root("modprobe fuse"), _NO_FUSE)
    return green(name, f"{DEVICE} can be used")


def _library() -> Finding:
    name = "libfuse"
    try:
        from bffs.binding import LIBFUSE, binding
    except MountError as error:
        if os.environ.get("FUSE_LIBRARY_PATH"):
            return red(name, str(error), "unset FUSE_LIBRARY_PATH", _NO_FUSE)
        fix = "pip install mfusepy" if "pip install" in str(error) else installing("fuse3")
        return red(name, str(error), fix, _NO_FUSE)
    version = ".".join(map(str, LIBFUSE))
    seen = f"{version}, with {'fusepy' if binding.__name__ == 'fuse' else binding.__name__}"
    if LIBFUSE[0] < 3:
        slower = f"{seen}: what changes in the bucket is seen late, and reading is slower"
        return yellow(name, slower, installing("fuse3"))
    return green(name, seen)


def _passthrough() -> Finding:
    """Whether the kernel may read cached files by itself. Only few mounts can: no fault."""
    from bffs.passthrough import why_not

    reason = why_not()
    seen = "cached files are read by the kernel itself" if reason is None else f"not used: {reason}"
    return green("passthrough", seen)


def _helper() -> Finding:
    """Whether this user may mount: root by itself, others through fusermount3."""
    name = "right to mount"
    may, bounding, locked = _privileges()
    if os.geteuid() == 0:
        if may:
            return green(name, "root, with CAP_SYS_ADMIN")
        return red(name, "root without CAP_SYS_ADMIN, as in a container", _IN_CONTAINER, _NO_FUSE)
    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        return red(name, "fusermount3 is missing", installing("fuse3"), _NO_FUSE)
    found = os.stat(program)
    if not (found.st_mode & stat.S_ISUID and found.st_uid == 0) and not _has_capabilities(program):
        fix = as_root(f"sh -c 'chown root {program} && chmod 4755 {program}'")
        return red(name, f"{program} is not setuid root", fix, _NO_FUSE)
    if not os.access(program, os.X_OK):
        return red(name, f"{program} may not be run", as_root(f"chmod 4755 {program}"), _NO_FUSE)
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        fix = as_root(f"mount -o remount,suid {_disk_of(program)}")
        return red(name, f"{program} is on a disk that is mounted nosuid", fix, _NO_FUSE)
    if locked:
        fix = "run it without no_new_privs (systemd: NoNewPrivileges=no)"
        return red(name, f"{program} gets no privileges here (no_new_privs)", fix, _NO_FUSE)
    if not bounding:
        return red(name, "no CAP_SYS_ADMIN in this container", _IN_CONTAINER, _NO_FUSE)
    return green(name, f"{program} is setuid root")


def _conf(allow_other: bool) -> Finding:
    name = "other users"
    if mountpoints.are_others_allowed():
        return green(name, f"--allow-other is allowed by {mountpoints.FUSE_CONF}")
    if not allow_other:
        return green(
            name, f"see nothing of mounts (no user_allow_other in {mountpoints.FUSE_CONF})"
        )
    fix = f"echo user_allow_other | {as_root('tee')} -a {mountpoints.FUSE_CONF}"
    missing = f"--allow-other needs the line user_allow_other in {mountpoints.FUSE_CONF}"
    return red(name, missing, fix, _NO_FUSE)


def _readahead() -> Iterator[Finding]:
    """What the kernel asks for at a time, of mounts that are there and of those to come."""
    name, wanted = "readahead", mountpoints.READ_AHEAD_KB
    low = False
    for mount in _ours():
        with suppress(OSError, ValueError):
            kib = int(mount.readahead.read_text())
            if kib < mountpoints.PLANE_READ_AHEAD_KB:  # which the driver itself may have chosen
                low = True
                raising = f"echo {wanted} | {as_root('tee')} {mount.readahead}"
                yield yellow(name, f"{kib} KiB at {mount.mountpoint}, {wanted} is faster", raising)
    if os.geteuid() == 0:
        if not low:
            yield green(name, f"{wanted} KiB, raised by each mount of root")
    elif rule := _rule():
        if not low:
            yield green(name, f"raised by {rule}")
    else:
        write = f"bffs doctor --write-udev-rule - | sudo tee {RULE_FILE}"
        seen = f"128 KiB in mounts of this user; {wanted} takes half the CPU time"
        yield yellow(name, seen, f"{write} && sudo udevadm control --reload")


def check_mounts() -> Iterator[Finding]:
    """Mounts of bffs whose driver is dead, or doesn't answer."""
    states: list[Finding] = []
    for mount in _ours():
        place = mount.mountpoint
        fix = f"bffs umount {shlex.quote(str(place))}"
        states += bounded(str(place), partial(_state, place, fix), fix, _ANSWER)
    for state in states:
        if state.name != "mounts":
            yield yellow("mounts", f"{state.name} doesn't answer", state.fix)
        elif state.level != "green":
            yield state
    alive = [state.seen for state in states if state.level == "green"]
    more = f" and {len(alive) - 3} more" if len(alive) > 3 else ""
    yield green("mounts", (", ".join(alive[:3]) or "none of bffs is alive") + more)


def check_mountpoint(mountpoint: Path) -> Iterator[Finding]:
    """Whether `mountpoint` can be mounted on."""
    name, place = "mountpoint", mountpoints.normalize(mountpoint)
    quoted = shlex.quote(str(place))
    there = mountpoints.mount_at(place)
    if there is not None and there.file_system == mountpoints.FILE_SYSTEM:
        state = "a dead mount is there" if mountpoints.is_dead(place) else "is mounted already"
        yield red(name, f"{place}: {state}", f"bffs umount {quoted}", _NO_FUSE)
        return
    try:
        mountpoints.check_folder(place)
    except MountError as error:
        said = str(error).partition(";")[0].partition(": use")[0]
        yield red(name, said, _folder_fix(place), _NO_FUSE)
        return
    yield green(name, f"{place} is an empty folder")


def _folder_fix(place: Path) -> str:
    """How there comes to be a folder to mount on."""
    quoted = shlex.quote(str(place))
    if mountpoints.mount_at(place) is not None:
        return as_root(f"umount {quoted}")
    if place.is_dir():
        if not any(place.iterdir()):
            return as_root(f"chown {os.geteuid()} {quoted}")
        own = (place if os.access(place, os.W_OK) else Path.home()) / "neurons"
        return f"mkdir -p {shlex.quote(str(own))} && bffs doctor {shlex.quote(str(own))}"
    parent = next(parent for parent in place.parents if parent.exists())
    if not parent.is_dir() or place.exists():
        return "choose another folder"
    if os.access(parent, os.W_OK):
        return f"mkdir -p {quoted}"
    return as_root(f"install -d -o {os.geteuid()} {quoted}")


def _state(mountpoint: Path, fix: str) -> Iterator[Finding]:
    if mountpoints.is_dead(mountpoint):
        yield red("mounts", f"{mountpoint} is dead: its driver was killed", fix, _NO_FUSE)
    else:
        yield green("mounts", str(mountpoint))


def _ours() -> Iterable[mountpoints.Mount]:
    """The mounts of bffs, each mountpoint once."""
    found = {each.mountpoint: each for each in mountpoints.mounts()}
    return [each for each in found.values() if each.file_system == mountpoints.FILE_SYSTEM]


def _privileges() -> tuple[bool, bool, bool]:
    """Whether this process has CAP_SYS_ADMIN, may get it, and is kept from getting anything
    (proc_pid_status(5))."""
    fields = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = value.strip()
    bit = 1 << _CAP_SYS_ADMIN
    effective, bounding = (int(fields.get(name, "0"), 16) & bit for name in ("CapEff", "CapBnd"))
    return bool(effective), bool(bounding), fields.get("NoNewPrivs") == "1"


def _has_capabilities(program: str) -> bool:
    """Whether the file brings capabilities with it, as some distributions have it in place of setuid."""
    with suppress(OSError):
        return bool(os.getxattr(program, "security.capability"))
    return False


def _is_container() -> bool:
    marks = ("/.dockerenv", "/run/.containerenv")
    return any(map(os.path.exists, marks)) or "KUBERNETES_SERVICE_HOST" in os.environ


def _disk_of(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def _rule() -> Path | None:
    """A udev rule that raises readahead of mounts."""
    for folder in _RULES:
        for path in Path(folder).glob("*.rules"):
            with suppress(OSError):
                text = path.read_text(errors="replace")
                if "fuse" in text and "read_ahead_kb" in text:
                    return path
    return None
