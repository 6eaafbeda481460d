"""Who wins: the command line, the environment, the configuration file, the profile, what is built in.

An empty value, wherever it is given, stands for the default and hides what the places after it say. `resolve` makes
the settings of a command, `origins` tells where each value comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bffs.errors import UsageError
from bffs.options import DATASET, OF_DATASET, OF_SETTINGS, OPTIONS, Option
from bffs.profiles import Profile, did_you_mean, read_config, read_profile
from bffs.settings import Settings

Place = Literal["flag", "environment", "file", "profile", "built-in"]


class _Layer(NamedTuple):
    """What one place says: texts by option key. `path` is that of a file."""

    place: Place
    texts: Mapping[str, str]
    path: str = ""

    def spell(self, option: Option) -> str:
        """How this place names an option, for messages."""
        match self.place:
            case "environment":
                return option.variable
            case "file" | "profile":
                return f"{self.path}: {option.key}"
        return option.flag


_BUILT_IN = _Layer("built-in", {})


class Origin(NamedTuple):
    """Where the value of an option comes from; `text` as it was written there, "" for nothing.

    `detail` is the flag, the variable or the file, "" for what is built in.
    """

    option: Option
    text: str
    value: Any
    place: Place
    detail: str

    @property
    def undone(self) -> str:
        """How to let the profile's own value count again; "" where it does."""
        match self.place:
            case "flag":
                return f"leave out {self.option.flag}, which is {self.text!r} here"
            case "environment":
                return f"unset {self.detail}"
            case "file":
                return f"delete the line {self.option.key} = {self.text!r} in {self.detail}"
        return ""

    def put_right(self, text: str) -> str:
        """How the option gets another value, in the place where it comes from."""
        option = self.option
        match self.place:
            case "environment":
                return f"export {option.variable}={text}"
            case "file":
                return f'write {option.key} = "{text}" in {self.detail}'
        return f"use {option.flag} {text}" if option.metavar else f"use {option.flag}"


def resolve(flags: Mapping[str, str], environ: Mapping[str, str], config: Path) -> Settings:
    """All that the user chose, merged; `flags` are texts by option key, and the file `config` need not exist.

    Where the endpoint or the bucket is not the profile's, the profile's access key is left out: it must never be
    sent elsewhere. Raises UsageError.
    """
    layers, profile = _layers(flags, environ, config)
    published = profile.dataset
    dataset = replace(published, **_values(OF_DATASET, layers))
    if (dataset.endpoint_url, dataset.bucket) != (published.endpoint_url, published.bucket):
        dataset = replace(dataset, access_key_id=None, secret_access_key=None)
    return Settings(dataset=dataset, **_values(OF_SETTINGS, layers))


def origins(
    flags: Mapping[str, str], environ: Mapping[str, str], config: Path
) -> tuple[list[Origin], Profile]:
    """Where each option's value comes from, and the profile; see `resolve`. Raises UsageError."""
    layers, profile = _layers(flags, environ, config)
    found = []
    for option in OPTIONS:
        value, layer = _value(option, layers)
        text = layer.texts.get(option.key, "")
        detail = layer.path or ("" if layer is _BUILT_IN else layer.spell(option))
        found.append(Origin(option, text or option.default, value, layer.place, detail))
    return found, profile


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each variable that looks like an option and is none."""
    known = sorted(option.variable for option in OPTIONS)
    return [
        f"{name} means nothing to bffs; {did_you_mean(name, known)}"
        for name in sorted(environ)
        if name.startswith("BFFS_") and name not in known
    ]


def _layers(
    flags: Mapping[str, str], environ: Mapping[str, str], config: Path
) -> tuple[list[_Layer], Profile]:
    """The places in the order in which they are asked. Raises UsageError."""
    variables = {
        option.key: environ[option.variable] for option in OPTIONS if option.variable in environ
    }
    given = [
        _Layer("flag", flags),
        _Layer("environment", variables),
        _Layer("file", read_config(config), str(config)),
    ]
    name, _ = _value(DATASET, given)
    profile = read_profile(name)
    return [*given, _Layer("profile", profile.texts, profile.path)], profile


def _values(options: Sequence[Option], layers: Sequence[_Layer]) -> dict[str, Any]:
    return {option.target or option.key: _value(option, layers)[0] for option in options}


def _value(option: Option, layers: Sequence[_Layer]) -> tuple[Any, _Layer]:
    """The value of `option`, and the first layer that gives it. Raises UsageError."""
    layer = next((layer for layer in layers if option.key in layer.texts), _BUILT_IN)
    try:
        return option.value_of(layer.texts.get(option.key, "")), layer
    except ValueError as error:
        raise UsageError(f"{layer.spell(option)}: {error}") from error
