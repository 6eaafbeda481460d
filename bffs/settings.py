"""Options and dataset profiles: what the user chose, merged once, then only read.

Order of precedence: command-line flags, `BFFS_*` environment variables, the configuration file, the dataset
profile, the defaults. All options stand in one table, `OPTIONS`, from which the command line, the environment and
the files are derived: a new one is a line there and a field of `Settings`. An empty value, wherever it is given,
stands for the default and hides what the places after it say.

`Settings` and `Dataset` are values; nothing below the command line changes them.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import platformdirs

from bffs.errors import UsageError
from bffs.units import GIB, MIB, format_size, parse_duration, parse_size

DEFAULT_DATASET = "brightfield"
DEFAULT_REGION = "us-east-1"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOO_MUCH = 1 << 62
"""Bytes that no file or memory has."""
_SPLIT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_TAKEN = frozenset({"stacks", "specimens_manifest.json"})
"""Names at the root of a mount that no split can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Where a dataset is and how its keys become specimens.

    `splits` pairs a folder at the root of the bucket with a split name; the empty folder stands for all other
    root folders. The access key is the one that the dataset's publishers printed for everyone, or None. Without
    `endpoint_url` it is on AWS.
    """

    name: str
    endpoint_url: str | None
    region: str
    bucket: str
    splits: tuple[tuple[str, str], ...] = (("", "train"),)
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    voxel: tuple[float, float, float] | None = None
    """Micrometres from one voxel to the next along z, y, x, if they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a command needs to know besides its own arguments. Sizes in bytes, paths absolute."""

    dataset: Dataset
    aws_profile: str | None = None
    sign_requests: bool = True
    cache_dir: Path
    cache_size: int = 50 * GIB
    memory: int = 512 * MIB
    max_connections: int = 32
    offline: bool = False
    """Whether nothing may be asked of the store."""

    deadline: float = 300.0
    """Seconds that a read waits for a store that is away."""

    refresh_after: float = 24 * 3600.0
    """Seconds after which a mount lists the bucket anew."""

    shutu_overlap: int = 128
    """Rows that two neighbouring tiles for ShuTu share."""
    scratch: Path | None = None
    """Folder for what is saved in a mount; None for the dataset's own in the user's data folder."""

    readahead: int | None = None
    """Bytes to read ahead at most; 0 for none, None for as much as the link asks for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What `bffs mount` alone needs. Paths are absolute."""

    mountpoint: Path
    foreground: bool = False
    allow_other: bool = False
    refresh: bool = False
    """List the bucket before anything is shown, whatever was kept."""

    log_file: Path | None = None
    fuse_options: tuple[str, ...] = ()
    read_only: bool = False
    """Take no files to save."""

    verbosity: int = 0
    """-1 quiet, 0 warnings, 1 information, 2 debugging."""


# -- values: text in, value out, ValueError with the reason -----------------------------------------------------


def absolute_path(text: str, folder: Path | None = None) -> Path:
    """`text` as a path from the root: `~` expanded, otherwise relative to `folder` or the working directory.

    Nothing on the way is looked at, for it may be a dead mount; links stay links.
    """
    path = os.path.expanduser(text)  # pathlib's own fails for an unknown ~user
    return Path(os.path.abspath(folder / path if folder else path))


def _cache_dir(text: str) -> Path:
    return absolute_path(text or platformdirs.user_cache_dir("bffs"))


def _scratch(text: str) -> Path | None:
    return absolute_path(text) if text else None


def _endpoint_url(text: str) -> str | None:
    if not text:
        return None
    if "@" in text:  # not repeated in the message: it may hold a password
        raise ValueError(
            "an endpoint holds no user or password; credentials come from the AWS environment"
        )
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
        usable = usable and not (url.query or url.fragment or " " in text)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{text!r} is not an endpoint such as https://s3.example.org")
    return text.rstrip("/")


def _bucket(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+|arn:\S+", text):
        raise ValueError(f"{text!r} is not a bucket (its name alone, without s3:// and folders)")
    return text


def _region(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]+", text):
        raise ValueError(f"{text!r} is not a region such as {DEFAULT_REGION}")
    return text


def _text(text: str) -> str:
    return text


def _text_or_none(text: str) -> str | None:
    return text or None


def _yes(text: str) -> bool:
    """What a switch says."""
    match text.lower():
        case "true" | "yes" | "on" | "1":
            return True
        case "false" | "no" | "off" | "0":
            return False
    raise ValueError(f"{text!r} is neither true nor false")


def _not(text: str) -> bool:
    """The opposite of what a switch says."""
    return not _yes(text)


def _size(text: str) -> int:
    try:
        value = parse_size(text)
    except OverflowError:
        value = _TOO_MUCH
    if value >= _TOO_MUCH:
        raise ValueError(f"{text[:20]!r} is too much")
    return value


def _size_from(minimum: int) -> Callable[[str], int]:
    def size(text: str) -> int:
        value = _size(text)
        if value < minimum:
            raise ValueError(f"{text!r} is too little, at least {format_size(minimum)} is needed")
        return value

    return size


def _connections(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= 256:
        raise ValueError(f"{text!r} is not a number from 1 to 256")
    return int(text)


def _rows(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError(f"{text!r} is no number of rows")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 < hours < 1e6:
        raise ValueError(f"{text!r} is no number of hours")
    return hours * 3600


def _deadline(text: str) -> float:
    seconds = parse_duration(text)
    if not 1 <= seconds <= 24 * 3600:
        raise ValueError(f"{text!r} is not from 1s to 24h")
    return seconds


def _readahead(text: str) -> int | None:
    match text.lower():
        case "auto":
            return None
        case "off":
            return 0
    if not text[:1].isdecimal():
        raise ValueError(f"{text!r} is not auto, off or a size such as 64M")
    return _size(text)


# -- options ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: `cache-size` is `--cache-size`, `BFFS_CACHE_SIZE`, and `cache_size` in a file.

    Without a `metavar` it is a switch. `parse` turns text into the value or raises ValueError with the reason;
    `default` is text, too. `target` is its field of `Settings` or `Dataset`, where that isn't called like the
    option. `common` options are accepted by every command; those `in_profile` may stand in a dataset profile.
    """

    name: str
    metavar: str | None
    parse: Callable[[str], Any]
    default: str
    help: str
    target: str = ""
    common: bool = False
    in_profile: bool = False

    @property
    def key(self) -> str:
        """Its name in files."""
        return self.name.replace("-", "_")

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return f"BFFS_{self.key.upper()}"


# fmt: off
_DATASET = Option("dataset", "PROFILE", _text, DEFAULT_DATASET, "Dataset profile: its name, or a .toml file.",
                  common=True)
_OF_DATASET = (
    Option("endpoint-url", "URL", _endpoint_url, "", "S3 service; empty for AWS.", common=True, in_profile=True),
    Option("bucket", "NAME", _bucket, "", "Bucket.", common=True, in_profile=True),
    Option("region", "NAME", _region, DEFAULT_REGION, "Region of the bucket.", common=True, in_profile=True),
)
_OF_SETTINGS = (
    Option("profile", "NAME", _text_or_none, "", "AWS profile that holds the credentials.",
           target="aws_profile", common=True, in_profile=True),
    Option("no-sign-request", None, _not, "no", "Use no credentials, for a public bucket.",
           target="sign_requests", common=True, in_profile=True),
    Option("cache-dir", "DIR", _cache_dir, "", "Folder of the disk cache (~/.cache/bffs).", common=True),
    Option("cache-size", "SIZE", _size_from(MIB), "50G", "Most that the disk cache holds."),
    Option("memory", "SIZE", _size_from(64 * MIB), "512M", "Memory for blocks, 64M at least."),
    Option("max-connections", "N", _connections, "32", "Connections to the store, 1 to 256."),
    Option("offline", None, _yes, "no", "Ask nothing of the store: show what was listed, read what is cached."),
    Option("deadline", "TIME", _deadline, "5m", "Longest that a read waits for a store that is away."),
    Option("readahead", "auto|off|SIZE", _readahead, "auto", "Most to read ahead."),
    Option("shutu-overlap", "ROWS", _rows, "128", "Rows that neighbouring tiles for ShuTu share."),
    Option("scratch", "DIR", _scratch, "", "Folder for what is saved in mounts (~/.local/share/bffs/...)."),
    Option("refresh-after", "HOURS", _hours, "24", "Age at which a mount lists the bucket anew."),
)
# fmt: on

OPTIONS = (_DATASET, *_OF_DATASET, *_OF_SETTINGS)
"""Every option. A new one is a line in `_OF_SETTINGS`."""

_IN_CONFIG = frozenset(option.key for option in OPTIONS)
_IN_PROFILE = frozenset(option.key for option in OPTIONS if option.in_profile)


class _Layer(NamedTuple):
    """What one place says: texts by option key, and how that place spells an option."""

    texts: Mapping[str, str]
    spell: Callable[[Option], str]


_DEFAULTS = _Layer({}, lambda option: option.flag)


def config_file() -> Path:
    """Where the user's configuration file is, if there is one."""
    return Path(platformdirs.user_config_path("bffs")) / "config.toml"


def resolve(flags: Mapping[str, str], environ: Mapping[str, str], config: Path) -> Settings:
    """All that the user chose, merged; `flags` are texts by option key, and the file `config` need not exist.

    Where the endpoint or the bucket is not the profile's, the profile's access key is left out: it must never be
    sent elsewhere. Raises UsageError.
    """
    given = [
        _Layer(flags, lambda option: option.flag),
        _Layer(
            {o.key: environ[o.variable] for o in OPTIONS if o.variable in environ},
            lambda o: o.variable,
        ),
        _config_layer(config),
    ]
    published, profile = _load(_value(_DATASET, given))
    layers = [*given, profile]
    dataset = replace(published, **_values(_OF_DATASET, layers))
    if (dataset.endpoint_url, dataset.bucket) != (published.endpoint_url, published.bucket):
        dataset = replace(dataset, access_key_id=None, secret_access_key=None)
    return Settings(dataset=dataset, **_values(_OF_SETTINGS, layers))


def load_dataset(name_or_path: str) -> Dataset:
    """The dataset of a profile: a built-in one, one of the user's, or a file that ends in `.toml`.

    Raises UsageError.
    """
    return _load(name_or_path)[0]


def _values(options: Sequence[Option], layers: Sequence[_Layer]) -> dict[str, Any]:
    return {option.target or option.key: _value(option, layers) for option in options}


def _value(option: Option, layers: Sequence[_Layer]) -> Any:
    """The value of `option` from the first layer that gives it, or its default. Raises UsageError."""
    layer = next((layer for layer in layers if option.key in layer.texts), _DEFAULTS)
    text = layer.texts.get(option.key) or option.default
    try:
        if _CONTROL.search(text):
            raise ValueError("there is a control character in it")
        return option.parse(text)
    except ValueError as error:
        raise UsageError(f"{layer.spell(option)}: {error}") from error


# -- files ------------------------------------------------------------------------------------------------------


def _config_layer(path: Path) -> _Layer:
    """What the configuration file says; paths in it are relative to its folder. Raises UsageError."""
    texts = _texts(path, _read_toml(path, _IN_CONFIG, optional=True))
    for option in OPTIONS:
        text = texts.get(option.key, "")
        if text and (option.metavar == "DIR" or text.endswith(".toml")):
            texts[option.key] = str(absolute_path(text, path.parent))
    return _Layer(texts, lambda option: f"{path}: {option.key}")


def _load(name_or_path: str) -> tuple[Dataset, _Layer]:
    """The dataset of a profile, and all that the profile says about options. Raises UsageError."""
    path = _profile_path(name_or_path)
    own = {"splits", "voxel", "access_key_id", "secret_access_key"}
    content = _read_toml(path, _IN_PROFILE | own)
    voxel = _voxel(path, content.pop("voxel", None))
    splits = _splits(path, content.pop("splits", {"": "train"}))
    keys = {key: content.pop(key, None) for key in ("access_key_id", "secret_access_key")}
    if not all(isinstance(key, str) for key in keys.values()) and any(
        key is not None for key in keys.values()
    ):
        raise UsageError(f"{path}: access_key_id and secret_access_key must both be there, as text")
    layer = _Layer(_texts(path, content), lambda option: f"{path}: {option.key}")
    if not layer.texts.get("bucket"):
        raise UsageError(f"{path}: there is no bucket in it")
    name = path.name.removesuffix(".toml")
    values = _values(_OF_DATASET, [layer])
    return Dataset(name=name, splits=splits, voxel=voxel, **keys, **values), layer


def _profile_path(name_or_path: str) -> Traversable:
    """The file of a profile. Raises UsageError where there is none."""
    if name_or_path.endswith(".toml"):
        return absolute_path(name_or_path)
    folders: list[Traversable] = [
        resources.files("bffs") / "data",
        config_file().parent / "profiles",
    ]
    for folder in folders:
        path = folder / f"{name_or_path}.toml"
        if "/" not in name_or_path and path.is_file():
            return path
    known = sorted(
        path.name.removesuffix(".toml")
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if path.name.endswith(".toml")
    )
    hint = _did_you_mean(name_or_path, known)
    raise UsageError(
        f"no dataset profile {name_or_path!r}; {hint} (a file's name must end in .toml)"
    )


def _read_toml(
    path: Traversable, known: Collection[str], *, optional: bool = False
) -> dict[str, Any]:
    """The content of a TOML file with no other than the `known` keys. Raises UsageError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if optional and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    for key in content:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key!r}; {_did_you_mean(key, sorted(known))}")
    return content


def _texts(path: Traversable, content: Mapping[str, Any]) -> dict[str, str]:
    """Option values of a file as the texts that stand for them elsewhere. Raises UsageError."""
    texts = {}
    for key, value in content.items():
        if not isinstance(value, str | int):
            raise UsageError(f"{path}: {key} must be text, a whole number, true or false")
        texts[key] = str(value)
    return texts


def _splits(path: Traversable, content: Any) -> tuple[tuple[str, str], ...]:
    """The `splits` table of a profile, checked. Raises UsageError."""
    if not isinstance(content, dict) or not content:
        raise UsageError(
            f'{path}: splits must be a table such as {{"TEST/" = "test", "" = "train"}}'
        )
    for folder, split in content.items():
        if folder and not folder.endswith("/"):
            raise UsageError(f"{path}: splits: the folder {folder!r} must end in a slash")
        if not isinstance(split, str) or not _SPLIT.fullmatch(split) or split in _TAKEN:
            raise UsageError(f"{path}: splits: {split!r} can't be the name of a split")
    if len(set(content.values())) < len(content):
        raise UsageError(f"{path}: splits: two folders can't be the same split")
    return tuple(content.items())


def _voxel(path: Traversable, content: Any) -> tuple[float, float, float] | None:
    """The `voxel` of a profile, checked. Raises UsageError."""
    match content:
        case None:
            return None
        case [int() | float() as z, int() | float() as y, int() | float() as x]:
            if all(0 < side < 1e6 for side in (z, y, x)):
                return float(z), float(y), float(x)
    raise UsageError(f"{path}: voxel must be three sizes in micrometres, such as [0.3, 0.1, 0.1]")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
