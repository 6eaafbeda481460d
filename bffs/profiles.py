"""The files that options stand in: the user's configuration and the profiles of datasets, both TOML.

A profile says where a dataset is and how its keys become specimens. It is built in, in the user's `profiles` folder,
or any file that ends in `.toml`. A key that is unknown is an error, with the one that was probably meant.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs

from bffs.errors import UsageError
from bffs.options import OF_DATASET, OPTIONS, absolute_path
from bffs.settings import Dataset

_SPLIT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_TAKEN = frozenset({"stacks", "specimens_manifest.json"})
"""Names at the root of a mount that no split can have."""

_IN_CONFIG = frozenset(option.key for option in OPTIONS)
_IN_PROFILE = frozenset(option.key for option in OPTIONS if option.in_profile)


class Profile(NamedTuple):
    """A profile that was read: its file, what it says about options (texts by key), the dataset."""

    path: str
    texts: Mapping[str, str]
    dataset: Dataset


def config_file() -> Path:
    """Where the user's configuration file is, if there is one."""
    return Path(platformdirs.user_config_path("bffs")) / "config.toml"


def load_dataset(name_or_path: str) -> Dataset:
    """The dataset of a profile; see `read_profile`."""
    return read_profile(name_or_path).dataset


def read_config(path: Path) -> Mapping[str, str]:
    """What the configuration file says, texts by option key; without a file, nothing.

    Paths in it are relative to its folder. Raises UsageError.
    """
    texts = _texts(path, _read_toml(path, _IN_CONFIG, optional=True))
    for option in OPTIONS:
        text = texts.get(option.key, "")
        if text and (option.metavar == "DIR" or text.endswith(".toml")):
            texts[option.key] = str(absolute_path(text, path.parent))
    return texts


def read_profile(name_or_path: str) -> Profile:
    """A dataset profile: a built-in one, one of the user's, or a file that ends in `.toml`.

    Raises UsageError.
    """
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
    texts = _texts(path, content)
    if not texts.get("bucket"):
        raise UsageError(f"{path}: there is no bucket in it")
    values = {}
    for option in OF_DATASET:
        try:
            values[option.key] = option.value_of(texts.get(option.key, ""))
        except ValueError as error:
            raise UsageError(f"{path}: {option.key}: {error}") from error
    name = path.name.removesuffix(".toml")
    return Profile(
        str(path), texts, Dataset(name=name, splits=splits, voxel=voxel, **keys, **values)
    )


def profile_names() -> list[str]:
    """The profiles that are built in, and those of the user."""
    return sorted(
        path.name.removesuffix(".toml")
        for folder in _profile_folders()
        if folder.is_dir()
        for path in folder.iterdir()
        if path.name.endswith(".toml")
    )


def _profile_folders() -> list[Traversable]:
    return [resources.files("bffs") / "data", config_file().parent / "profiles"]


def _profile_path(name_or_path: str) -> Traversable:
    """The file of a profile. Raises UsageError where there is none."""
    if name_or_path.endswith(".toml"):
        return absolute_path(name_or_path)
    for folder in _profile_folders():
        path = folder / f"{name_or_path}.toml"
        if "/" not in name_or_path and path.is_file():
            return path
    hint = did_you_mean(name_or_path, profile_names())
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
            raise UsageError(f"{path}: unknown key {key!r}; {did_you_mean(key, sorted(known))}")
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


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The one of `known` that `word` was probably meant to be, or all of them."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
