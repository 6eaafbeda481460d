"""Options and profiles: who wins over whom, what is refused and in which words, and where an access key may go."""

import itertools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bffs.errors import UsageError
from bffs.options import OPTIONS
from bffs.precedence import resolve
from bffs.profiles import config_file, load_dataset
from bffs.settings import Dataset, Settings
from bffs.units import GIB, MIB

PROFILE = """
endpoint_url = "https://s3.lab.example/"
region = "lab-1"
bucket = "lab"
profile = "of-profile"
no_sign_request = true
access_key_id = "PUBLIC"
secret_access_key = "SECRET-OF-PROFILE"

[splits]
"held-out/" = "test"
"" = "train"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of our own, without anything in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def profile(home: Path) -> Path:
    path = home / ".config/bffs/profiles/lab.toml"
    path.parent.mkdir(parents=True)
    path.write_text(PROFILE)
    return path


def configured(text: str) -> Path:
    """The user's configuration file with this content."""
    path = config_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def resolved(**flags: str) -> Settings:
    """Flags alone."""
    return resolve(flags, {}, config_file())


# -- defaults ---------------------------------------------------------------------------------------------------


def test_without_a_word_it_is_the_built_in_dataset(home: Path) -> None:
    settings = resolved()
    assert settings.dataset == load_dataset("brightfield")
    assert settings.dataset.name == "brightfield"
    assert settings.dataset.endpoint_url == "https://s3.us-west-1.wasabisys.com"
    assert settings.dataset.bucket == "brightfield-auto-reconstruction-competition"
    assert settings.dataset.region == "us-west-1"
    assert dict(settings.dataset.splits) == {"TEST_DATA_SET/": "test", "": "train"}
    assert settings.dataset.voxel == (0.28, 0.1144, 0.1144)
    assert settings.dataset.access_key_id
    assert settings.dataset.secret_access_key
    assert settings.cache_dir == home / ".cache/bffs"
    assert (settings.cache_size, settings.memory) == (50 * GIB, 512 * MIB)


def test_the_table_and_the_dataclass_have_the_same_defaults() -> None:
    settings = resolved()
    by_hand = Settings(dataset=settings.dataset, cache_dir=settings.cache_dir)
    assert settings == by_hand


def test_every_setting_has_an_option() -> None:
    targets = {option.target or option.key for option in OPTIONS}
    assert {field.name for field in fields(Settings)} <= targets


def test_xdg_folders_are_honoured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "elsewhere"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "etc"))
    assert resolved().cache_dir == home / "elsewhere/bffs"
    assert config_file() == home / "etc/bffs/config.toml"


def test_secrets_are_not_in_the_repr() -> None:
    settings = resolved()
    assert settings.dataset.secret_access_key
    assert settings.dataset.secret_access_key not in repr(settings)


# -- precedence -------------------------------------------------------------------------------------------------

PLACES = ("flag", "variable", "file", "profile")


@pytest.mark.parametrize(
    "places", [c for n in range(1, 5) for c in itertools.combinations(PLACES, n)], ids="+".join
)
def test_the_first_place_wins(home: Path, places: tuple[str, ...]) -> None:
    """Every combination of places that give a region."""
    path = home / "p.toml"
    path.write_text('bucket = "b"\n' + ('region = "of-profile"\n' if "profile" in places else ""))
    config = configured('region = "of-file"\n' if "file" in places else "")
    environ = {"BFFS_REGION": "of-variable"} if "variable" in places else {}
    flags = {"region": "of-flag"} if "flag" in places else {}
    settings = resolve({"dataset": str(path), **flags}, environ, config)
    assert settings.dataset.region == f"of-{places[0]}"


GIVEN: dict[str, tuple[str, Callable[[Settings], object], object]] = {
    "dataset": ("lab", lambda s: s.dataset.name, "lab"),
    "endpoint_url": ("http://h:9/", lambda s: s.dataset.endpoint_url, "http://h:9"),
    "bucket": ("other", lambda s: s.dataset.bucket, "other"),
    "region": ("r-2", lambda s: s.dataset.region, "r-2"),
    "profile": ("mine", lambda s: s.aws_profile, "mine"),
    "no_sign_request": ("true", lambda s: s.sign_requests, False),
    "cache_dir": ("/c/../d", lambda s: s.cache_dir, Path("/d")),
    "cache_size": ("1.5T", lambda s: s.cache_size, 1536 * GIB),
    "memory": ("64M", lambda s: s.memory, 64 * MIB),
    "max_connections": ("256", lambda s: s.max_connections, 256),
    "deadline": ("1.5m", lambda s: s.deadline, 90.0),
    "readahead": ("off", lambda s: s.readahead, 0),
    "scratch": ("/scratch", lambda s: s.scratch, Path("/scratch")),
    "shutu_overlap": ("64", lambda s: s.shutu_overlap, 64),
    "offline": ("yes", lambda s: s.offline, True),
    "refresh_after": ("1.5", lambda s: s.refresh_after, 5400.0),
}


def test_every_option_is_tried_below() -> None:
    assert GIVEN.keys() == {option.key for option in OPTIONS}


@pytest.mark.usefixtures("profile")
@pytest.mark.parametrize("key", GIVEN)
@pytest.mark.parametrize("place", ["flag", "variable", "file"])
def test_every_option_works_from_every_place(key: str, place: str) -> None:
    text, read, value = GIVEN[key]
    config = configured(f'{key} = "{text}"' if place == "file" else "")
    flags = {key: text} if place == "flag" else {}
    environ = {f"BFFS_{key.upper()}": text} if place == "variable" else {}
    assert read(resolve(flags, environ, config)) == value


def test_files_may_use_the_types_of_toml() -> None:
    config = configured("no_sign_request = true\nmemory = 134217728\nmax_connections = 8\n")
    settings = resolve({}, {}, config)
    assert (settings.sign_requests, settings.memory) == (False, 128 * MIB)
    assert settings.max_connections == 8


@pytest.mark.usefixtures("profile")
def test_a_profile_may_say_how_to_sign() -> None:
    settings = resolved(dataset="lab")
    assert (settings.aws_profile, settings.sign_requests) == ("of-profile", False)
    assert settings.dataset.region == "lab-1"
    settings = resolved(dataset="lab", profile="mine", no_sign_request="no")
    assert (settings.aws_profile, settings.sign_requests) == ("mine", True)


@pytest.mark.usefixtures("profile")
def test_an_empty_value_stands_for_the_default() -> None:
    configured('cache_size = "1T"\nprofile = "of-file"\n')
    environ = {"BFFS_CACHE_SIZE": "", "BFFS_PROFILE": "", "BFFS_ENDPOINT_URL": ""}
    settings = resolve({"dataset": "lab"}, environ, config_file())
    assert (settings.cache_size, settings.aws_profile) == (50 * GIB, None)
    assert settings.dataset.endpoint_url is None


def test_an_empty_bucket_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--bucket: '' is not a bucket"):
        resolved(bucket="")


def test_paths_are_absolute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert resolved(cache_dir="c").cache_dir == home / "c"
    assert resolved(cache_dir="~/c").cache_dir == home / "c"


def test_paths_in_a_file_start_at_its_folder(home: Path, profile: Path) -> None:
    config = configured('cache_dir = "c"\ndataset = "profiles/lab.toml"\n')
    settings = resolve({}, {}, config)
    assert settings.cache_dir == profile.parents[1] / "c"
    assert settings.dataset.bucket == "lab"
    assert resolve({}, {}, configured('cache_dir = "~/c"')).cache_dir == home / "c"


# -- the published access key -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("profile")
@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({}, True),
        ({"region": "elsewhere-1"}, True),
        ({"bucket": "lab", "endpoint_url": "https://s3.lab.example"}, True),
        ({"bucket": "mine"}, False),
        ({"endpoint_url": "http://s3.lab.example"}, False),
        ({"endpoint_url": "https://s3.lab.example:8443"}, False),
        ({"endpoint_url": "https://s3.lab.example.org"}, False),
        ({"endpoint_url": ""}, False),
    ],
)
@pytest.mark.parametrize("place", ["flag", "variable", "file"])
def test_the_published_key_goes_nowhere_else(
    changed: dict[str, str], kept: bool, place: str
) -> None:
    lines = "\n".join(f'{key} = "{text}"' for key, text in changed.items())
    config = configured(lines if place == "file" else "")
    environ = {f"BFFS_{key.upper()}": text for key, text in changed.items()}
    settings = resolve(
        {"dataset": "lab"} | (changed if place == "flag" else {}),
        environ if place == "variable" else {},
        config,
    )
    expected = ("PUBLIC", "SECRET-OF-PROFILE") if kept else (None, None)
    assert (settings.dataset.access_key_id, settings.dataset.secret_access_key) == expected
    assert dict(settings.dataset.splits) == {"held-out/": "test", "": "train"}


# -- what is refused --------------------------------------------------------------------------------------------

REFUSED = [
    ("cache_size", "5X", "'5X' is not a size such as 512M or 50G"),
    ("cache_size", "1K", "'1K' is too little, at least 1.0M is needed"),
    ("memory", "63M", "'63M' is too little, at least 64M is needed"),
    ("memory", "9" * 400, "is too much"),
    ("memory", "-1", "is not a size"),
    ("max_connections", "0", "'0' is not a number from 1 to 256"),
    ("max_connections", "257", "is not a number from 1 to 256"),
    ("max_connections", "many", "is not a number from 1 to 256"),
    ("readahead", "on", "'on' is not auto, off or a size such as 64M"),
    ("readahead", "5X", "is not a size"),
    ("shutu_overlap", "-1", "is no number of rows"),
    ("deadline", "soon", "is not a time such as"),
    ("deadline", "0", "is not from 1s to 24h"),
    ("deadline", "25h", "is not from 1s to 24h"),
    ("refresh_after", "soon", "is no number of hours"),
    ("refresh_after", "0", "is no number of hours"),
    ("endpoint_url", "s3.example.org", "is not an endpoint such as https://"),
    ("endpoint_url", "ftp://h", "is not an endpoint"),
    ("endpoint_url", "https://", "is not an endpoint"),
    ("endpoint_url", "http://[::1", "is not an endpoint"),
    ("endpoint_url", "http://h:99999", "is not an endpoint"),
    ("endpoint_url", "http://h/?x=1", "is not an endpoint"),
    ("bucket", "s3://lab", "is not a bucket"),
    ("bucket", "lab/folder", "is not a bucket"),
    ("region", "us west", "is not a region"),
    ("no_sign_request", "maybe", "'maybe' is neither true nor false"),
    ("cache_dir", "/a\nb", "there is a control character in it"),
    ("dataset", "brightfeld", "no dataset profile 'brightfeld'; did you mean brightfield?"),
    ("dataset", "../brightfield", "no dataset profile"),
    ("dataset", "/nowhere/x.toml", "/nowhere/x.toml: No such file or directory"),
]


@pytest.mark.parametrize(("key", "text", "reason"), REFUSED)
def test_values_out_of_bounds_are_refused_in_one_line(key: str, text: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolved(**{key: text})
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    if key != "dataset":
        assert message.startswith(f"--{key.replace('_', '-')}: ")


def test_a_message_names_the_place() -> None:
    with pytest.raises(UsageError, match=r"^BFFS_MEMORY: "):
        resolve({}, {"BFFS_MEMORY": "x"}, config_file())
    config = configured('memory = "x"')
    with pytest.raises(UsageError) as caught:
        resolve({}, {}, config)
    assert str(caught.value).startswith(f"{config}: memory: ")


def test_a_wrong_value_that_is_overridden_does_no_harm() -> None:
    assert resolve({"memory": "1G"}, {"BFFS_MEMORY": "x"}, config_file()).memory == GIB


def test_a_password_in_an_endpoint_is_refused_and_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        resolved(endpoint_url="https://me:hunter2@s3.example.org")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("cache-size = 5", "unknown key 'cache-size'; did you mean cache_size?"),
        ("memroy = '1G'", "unknown key 'memroy'; did you mean memory?"),
        ("zzz = 1", "unknown key 'zzz'; known: bucket, cache_dir, "),
        ("access_key_id = 'x'", "unknown key 'access_key_id'"),
        ("memory = 1.5", "memory must be text, a whole number, true or false"),
        ("[memory]\nx = 1", "memory must be text, a whole number, true or false"),
        ("memory =", "is not valid TOML: "),
        ("memory = '\\xff'", "is not valid TOML: "),
    ],
)
def test_mistakes_in_the_configuration_file_are_named(content: str, reason: str) -> None:
    config = configured("")
    config.write_bytes(content.encode().replace(b"\\xff", b"\xff"))
    with pytest.raises(UsageError) as caught:
        resolve({}, {}, config)
    assert str(caught.value).startswith(str(config))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ('bucket = "lab"', "", "there is no bucket in it"),
        ('bucket = "lab"', 'bucket = ""', "there is no bucket in it"),
        ('bucket = "lab"', 'bucket = "s3://lab"', "bucket: 's3://lab' is not a bucket"),
        ("https", "ftp", "endpoint_url: 'ftp://s3.lab.example/' is not an endpoint"),
        ("region", "regoin", "unknown key 'regoin'; did you mean region?"),
        ("region", "memory", "unknown key 'memory'"),
        ('access_key_id = "PUBLIC"', "", "access_key_id and secret_access_key must both"),
        ('"PUBLIC"', "1", "access_key_id and secret_access_key must both"),
        ('"held-out/"', '"held-out"', "the folder 'held-out' must end in a slash"),
        ('= "test"', '= "../test"', "'../test' can't be the name of a split"),
        ('= "test"', '= "stacks"', "'stacks' can't be the name of a split"),
        ('= "test"', '= ".bffs"', "'.bffs' can't be the name of a split"),
        ('= "test"', "= 1", "1 can't be the name of a split"),
        ('= "test"', '= "train"', "two folders can't be the same split"),
    ],
)
def test_mistakes_in_a_profile_are_named(
    profile: Path, before: str, after: str, reason: str
) -> None:
    text = PROFILE.replace(before, after, 1)
    assert text != PROFILE
    profile.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_dataset("lab")
    assert str(caught.value).startswith(str(profile))
    assert reason in str(caught.value)
    assert "SECRET" not in str(caught.value)


# -- profiles ---------------------------------------------------------------------------------------------------


def test_a_profile_of_the_user(profile: Path) -> None:
    expected = Dataset(
        name="lab",
        endpoint_url="https://s3.lab.example",
        region="lab-1",
        bucket="lab",
        splits=(("held-out/", "test"), ("", "train")),
        access_key_id="PUBLIC",
        secret_access_key="SECRET-OF-PROFILE",
    )
    assert load_dataset("lab") == expected
    assert load_dataset(str(profile)) == expected


def test_the_least_profile_is_a_bucket_on_aws(home: Path) -> None:
    (home / "mine.toml").write_text('bucket = "mine"')
    dataset = load_dataset(str(home / "mine.toml"))
    assert dataset == Dataset(name="mine", endpoint_url=None, region="us-east-1", bucket="mine")
    assert dataset.splits == (("", "train"),)


def test_a_built_in_profile_comes_before_one_of_the_user(profile: Path) -> None:
    profile.with_name("brightfield.toml").write_text('bucket = "another"')
    assert load_dataset("brightfield").bucket != "another"


# -- sizes ------------------------------------------------------------------------------------------------------


@given(st.integers(64, 2**30), st.sampled_from(["M", "MiB", "m", " MB"]))
def test_sizes_reach_the_settings_as_bytes(number: int, unit: str) -> None:
    settings = resolved(
        memory=f"{number}{unit}", cache_size=f"{number}{unit}", readahead=f"{number}{unit}"
    )
    assert settings.memory == settings.cache_size == settings.readahead == number * MIB


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_refused_in_one_line(text: str) -> None:
    try:
        memory = resolved(memory=text, readahead=text).memory
        message = ""
    except UsageError as error:
        memory = 64 * MIB
        message = str(error)
    assert memory >= 64 * MIB
    assert len(message.splitlines()) <= 1
