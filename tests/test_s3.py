"""The S3 layer over real connections: bytes, resumed ranges, what each fault becomes, whose credentials are used."""

from __future__ import annotations

import http.server
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from bffs import patience, s3
from bffs.errors import (
    AccessDenied,
    BadAnswer,
    BffsError,
    NoSuchBucket,
    ObjectChanged,
    StoreBusy,
    StoreError,
    StoreUnreachable,
    UsageError,
)
from bffs.s3 import S3Store
from bffs.settings import Dataset, Settings
from bffs.store import Interrupt, ObjectInfo
from bffs.units import MIB
from tests.s3server import MTIME, S3Server, made_up, pattern

SIZE = 4 * MIB + 321
KEY = "1/a-0001.tif"
ODD = ["odd é &<+%?#=;:@$,!*'()~.txt", "ünïcode/日本.tif", "a b/c  d.tif", "tab\tand\x01control"]
PAGES = {f"pages/{n:04}.tif": n for n in range(2500)}
OBJECTS = {KEY: SIZE, "2/": 0, "2/one.tif": 1, **dict.fromkeys(ODD, 1000), **PAGES}

SECRET = "sEcReT/0123456789+abcdefghijklmnopqrstuv"
KEYS = ("PUBLISHEDKEY", "ENVIRONMENTKEY", "PROFILEKEY", "DEFAULTKEY")
PUBLISHED = ("PUBLISHEDKEY", SECRET)


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with S3Server(OBJECTS) as server:
        yield server


@pytest.fixture
def server(running: S3Server) -> S3Server:
    running.reset()
    running.shape()
    return running


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again after a tenth of the usual pauses."""
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: 0.1 * high)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials but those that a test gives."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


def dataset_at(
    url: str | None, *, bucket: str = "bucket", keys: tuple[str | None, str | None] = (None, None)
) -> Dataset:
    return Dataset(
        name="d",
        endpoint_url=url,
        region="us-west-1",
        bucket=bucket,
        access_key_id=keys[0],
        secret_access_key=keys[1],
    )


def settings_of(dataset: Dataset, **options: Any) -> Settings:
    return Settings(dataset=dataset, cache_dir=Path("/nowhere"), **options)


@contextmanager
def opened(dataset: Dataset, **options: Any) -> Iterator[S3Store]:
    store = S3Store(settings_of(dataset, **options))
    try:
        yield store
    finally:
        store.close()


@pytest.fixture(scope="module")
def store(running: S3Server) -> Iterator[S3Store]:
    with opened(dataset_at(running.endpoint_url), sign_requests=False) as store:
        yield store


def info(key: str = KEY) -> ObjectInfo:
    stored = made_up(key, OBJECTS[key])
    return ObjectInfo(key, stored.etag, stored.size, stored.mtime)


class Reading:
    """One `read_into`, and what it reported on the way."""

    deadline = 300.0

    def __init__(
        self, store: S3Store, start: int = 0, stop: int = SIZE, obj: ObjectInfo | None = None
    ) -> None:
        self.reported: list[int] = []
        self.buffer = bytearray(stop - start)
        self.error: BaseException | None = None
        try:
            view = memoryview(self.buffer)
            store.read_into(
                obj or info(), start, view, self.reported.append, for_a_while(), Interrupt()
            )
        except BffsError as error:
            self.error = error
        assert self.reported == sorted(self.reported)
        done = max(self.reported, default=0)
        key = obj.key if obj else KEY
        assert bytes(self.buffer[:done]) == pattern(key, start, start + done)
        assert (self.error is None) == (done == stop - start)


def for_a_while() -> Callable[[StoreError], bool]:
    """Persist for that long."""
    end = time.monotonic() + Reading.deadline
    return lambda _: time.monotonic() < end


def quick(monkeypatch: pytest.MonkeyPatch, deadline: float = 1.0) -> None:
    """Give up a read soon."""
    monkeypatch.setattr(Reading, "deadline", deadline)


# -- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (0, SIZE), (SIZE - 1, SIZE), (100, 101), (7, 131_072), (131_071, 3 * MIB + 1)],
)
def test_a_range_comes_as_it_is_stored(
    server: S3Server, store: S3Store, start: int, stop: int
) -> None:
    assert Reading(store, start, stop).error is None
    assert [(get.start, get.stop) for get in server.log()] == [(start, stop)]


@pytest.mark.parametrize("key", ODD)
def test_keys_are_any_text(store: S3Store, key: str) -> None:
    assert Reading(store, 3, 1000, info(key)).error is None


def test_connections_are_used_again(server: S3Server, store: S3Store) -> None:
    def sockets() -> int:
        port = int(server.endpoint_url.rpartition(":")[2])
        found = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return sum(
            line.split()[2].endswith(f":{port:04X}") and line.split()[3] == "01" for line in found
        )

    Reading(store)
    before = sockets()
    for _ in range(20):
        assert Reading(store, 0, 1000).error is None
        assert Reading(store, 0, 300_000).error is None
    assert sockets() == before


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_body_can_be_broken_off_from_another_thread(
    server: S3Server, store: S3Store, goes_on: bool
) -> None:
    """It ends at once unless `persist` says otherwise: then the rest is asked for."""
    server.shape(per_connection=1e6)
    interrupt, came, asked = Interrupt(), threading.Event(), []
    buffer = memoryview(bytearray(SIZE))

    def persist(error: StoreError) -> bool:
        asked.append(error)
        server.shape()
        interrupt.reset()
        return goes_on

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(
            store.read_into, info(), 0, buffer, lambda _: came.set(), persist, interrupt
        )
        assert came.wait(10)
        interrupt()
        error = reading.exception(10)
    assert len(asked) == 1
    assert error is (None if goes_on else asked[0])
    if goes_on:
        assert bytes(buffer) == pattern(KEY, 0, SIZE)
        assert [get.start > 0 for get in server.log()] == [False, True]


def test_progress_is_told_while_bytes_arrive(server: S3Server, store: S3Store) -> None:
    server.shape(per_connection=4e6)
    times: list[float] = []
    begun = time.monotonic()
    buffer = memoryview(bytearray(2 * MIB))
    store.read_into(
        info(),
        0,
        buffer,
        lambda n: times.append(time.monotonic() - begun),
        for_a_while(),
        Interrupt(),
    )
    assert len(times) >= 16
    assert times[0] < times[-1] / 4


# -- reading: what passes ---------------------------------------------------------------------------------------

PASSING: dict[str, dict[str, Any]] = {
    "500": {"do": "status", "value": 500},
    "503": {"do": "status", "value": 503},
    "429": {"do": "status", "value": 429},
    "reset at once": {"do": "reset", "at": 0},
    "reset": {"do": "reset", "at": 1_000_000},
    "closed at once": {"do": "close", "at": 0},
    "closed": {"do": "close", "at": 1_000_000},
    "too long": {"do": "resize", "value": 10},
    "too short": {"do": "resize", "value": -10},
    "another range": {"do": "range", "value": 5},
    "a page of something else": {"do": "xml"},
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_not_seen(server: S3Server, store: S3Store, fault: str) -> None:
    server.fault(**PASSING[fault], kind="get", times=2)
    assert Reading(store).error is None
    assert len(server.log()) == 3


def test_one_answer_of_another_version_may_be_a_fault(server: S3Server, store: S3Store) -> None:
    server.fault("etag", kind="get", times=1)
    assert Reading(store).error is None
    assert len(server.log()) == 2


@pytest.mark.parametrize("do", ["close", "reset"])
def test_a_range_is_resumed_at_the_byte_where_it_broke(
    server: S3Server, store: S3Store, do: str
) -> None:
    server.fault(do, at=1_000_000, times=1)
    server.fault(do, at=500_000, times=1)
    reading = Reading(store, 1000, SIZE)
    assert reading.error is None
    first, second, third = server.log()
    assert [get.stop for get in (first, second, third)] == [SIZE] * 3
    if do == "close":
        assert (second.start, third.start) == (1_001_000, 1_501_000)
    else:  # what the kernel throws away with an RST never arrived
        assert 1000 <= second.start <= 1_001_000 and second.start <= third.start
    assert {second.start - 1000, third.start - 1000} <= {0, *reading.reported}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence of one second is a time-out."""
    monkeypatch.setattr(s3, "READ_TIMEOUT", 1.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("at", [0, 100, 1_000_000])
def test_a_connection_that_falls_silent_is_given_up(server: S3Server, at: int) -> None:
    server.fault("stall", value=60, at=at, times=1)
    with opened(dataset_at(server.endpoint_url), sign_requests=False) as store:
        begun = time.monotonic()
        assert Reading(store).error is None
        assert time.monotonic() - begun < 10
    assert [get.start for get in server.log()] == [0, at]


@pytest.mark.usefixtures("impatient")
def test_a_slow_connection_is_not_silent(server: S3Server) -> None:
    server.fault("drip", value=200_000, times=1)
    with opened(dataset_at(server.endpoint_url), sign_requests=False) as store:
        assert Reading(store, 0, 300_000).error is None
    assert len(server.log()) == 1


# -- reading: what does not -------------------------------------------------------------------------------------

LASTING: list[tuple[dict[str, Any], type[BffsError], bool]] = [
    ({"do": "status", "value": 403}, AccessDenied, False),
    ({"do": "status", "value": 401}, AccessDenied, False),
    ({"do": "status", "value": 404}, ObjectChanged, False),
    ({"do": "status", "value": 412}, ObjectChanged, False),
    ({"do": "status", "value": 416}, ObjectChanged, False),
    ({"do": "status", "value": 400}, StoreError, False),
    ({"do": "etag"}, ObjectChanged, True),
    ({"do": "status", "value": 500}, StoreError, True),
    ({"do": "status", "value": 503}, StoreBusy, True),
    ({"do": "status", "value": 429}, StoreBusy, True),
    ({"do": "reset"}, StoreUnreachable, True),
    ({"do": "close"}, BadAnswer, True),
    ({"do": "resize", "value": -1}, BadAnswer, True),
    ({"do": "range", "value": 1}, BadAnswer, True),
    ({"do": "xml"}, BadAnswer, True),
]


@pytest.mark.parametrize(("fault", "expected", "tried_again"), LASTING, ids=str)
def test_a_lasting_fault_is_an_error_of_its_kind(
    server: S3Server,
    store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, Any],
    expected: type[BffsError],
    tried_again: bool,
) -> None:
    quick(monkeypatch)
    server.fault(**fault, kind="get")
    begun = time.monotonic()
    reading = Reading(store)
    assert type(reading.error) is expected
    assert "\n" not in str(reading.error)
    assert (len(server.log()) > 1) is tried_again
    assert time.monotonic() - begun < 15
    server.reset()
    assert Reading(store).error is None


def test_another_version_is_never_read(server: S3Server, store: S3Store) -> None:
    try:
        server.change({KEY: b"x" * SIZE})
        assert type(Reading(store).error) is ObjectChanged
        server.change({KEY: None})
        assert type(Reading(store).error) is ObjectChanged
    finally:
        server.change({KEY: SIZE})
    assert Reading(store).error is None


@contextmanager
def serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    """A server of something other than S3, on a thread."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class WholeObjects(http.server.BaseHTTPRequestHandler):
    """A store that ignores ranges."""

    def do_GET(self) -> None:
        body = pattern(KEY, 0, SIZE)
        self.send_response(200)
        self.send_header("ETag", f'"{info().etag}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_store_that_ignores_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    with (
        serving(WholeObjects) as url,
        opened(dataset_at(url), sign_requests=False) as store,
    ):
        assert Reading(store).error is None  # all of it was asked for
        assert type(Reading(store, 0, 1000).error) is BadAnswer
        assert type(Reading(store, 1000, SIZE).error) is BadAnswer


class Dribble(http.server.BaseHTTPRequestHandler):
    """A store whose answers come in parts, the first after another that nobody has asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        start, stop = (int(each) for each in self.headers["Range"][len("bytes=") :].split("-"))
        body = pattern(KEY, start, stop + 1)
        answer = (
            "HTTP/1.1 206 Partial Content\r\n"
            f'ETag: "{info().etag}"\r\nContent-Length: {len(body)}\r\n'
            f"Content-Range: bytes {start}-{stop}/{SIZE}\r\n\r\n"
        ).encode()
        ends = {
            1: [b"HTTP/1.1 100 Continue\r\n\r\n", answer],
            2: [answer[:30], answer[30:]],
            3: [answer[:-2], answer[-2:]],
        }.get(start, [answer])
        for part in [*ends, body[:1], body[1:]]:
            self.wfile.write(part)
            time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("start", range(5))
def test_an_answer_in_parts(start: int) -> None:
    with serving(Dribble) as url, opened(dataset_at(url), sign_requests=False) as store:
        for _ in range(2):  # the connection is used again
            assert Reading(store, start, start + 500_000).error is None


class Chatter(socketserver.BaseRequestHandler):
    """Something that speaks another protocol."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")


# -- no store ---------------------------------------------------------------------------------------------------


def refused_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def pages(store: S3Store, prefix: str = "", *, folders: bool = False) -> list[Any]:
    return list(store.list(prefix, folders=folders))


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    url = refused_port()
    with opened(dataset_at(url), sign_requests=False) as store:
        begun = time.monotonic()
        with pytest.raises(StoreUnreachable, match=r"refused") as caught:
            pages(store)
        assert url in str(caught.value)
        reading = Reading(store)
        assert type(reading.error) is StoreUnreachable and KEY in str(reading.error)
        assert time.monotonic() - begun < 6


def test_there_is_no_such_host() -> None:
    with (
        opened(dataset_at("http://no-such-host.invalid"), sign_requests=False) as store,
        pytest.raises(StoreUnreachable, match="no-such-host"),
    ):
        pages(store)


def test_something_else_listens() -> None:
    with (
        serving(Chatter) as url,
        opened(dataset_at(url), sign_requests=False) as store,
        pytest.raises(StoreUnreachable),
    ):
        pages(store)


def test_no_tls_where_it_was_expected(server: S3Server) -> None:
    """The server hangs up, which may be a passing fault, so this is tried a few times."""
    url = server.endpoint_url.replace("http:", "https:")
    with opened(dataset_at(url), sign_requests=False) as store:
        begun = time.monotonic()
        with pytest.raises(StoreUnreachable, match="no secure connection"):
            pages(store)
        assert time.monotonic() - begun < s3.LIST_DEADLINE


# -- listing ----------------------------------------------------------------------------------------------------


def test_all_pages_of_a_listing(server: S3Server, store: S3Store) -> None:
    listed = pages(store, "pages/")
    assert [len(page.objects) for page in listed] == [1000, 1000, 500]
    objects = [obj for page in listed for obj in page.objects]
    assert objects == [info(key) for key in PAGES]
    assert objects[0].mtime == MTIME
    assert server.stats()["requests"] == {"list": 3}


def test_folders_and_odd_keys(store: S3Store) -> None:
    (page,) = pages(store, folders=True)
    assert sorted(page.folders) == sorted(["1/", "2/", "a b/", "pages/", "ünïcode/"])
    assert sorted(obj.key for obj in page.objects) == sorted(k for k in ODD if "/" not in k)
    (page,) = pages(store, "2/")
    assert [obj.key for obj in page.objects] == ["2/", "2/one.tif"]
    (page,) = pages(store, "nothing here/")
    assert page == ([], [])


@pytest.mark.parametrize(
    "fault",
    [
        {"do": "status", "value": 500},
        {"do": "status", "value": 503},
        {"do": "xml"},
        {"do": "cut"},
        {"do": "reset", "at": 1000},
        {"do": "close", "at": 1000},
    ],
    ids=str,
)
def test_a_listing_survives_what_passes(
    server: S3Server, store: S3Store, fault: dict[str, Any]
) -> None:
    server.fault(**fault, kind="list", nth=2, times=1)
    assert [obj.key for page in pages(store, "pages/") for obj in page.objects] == list(PAGES)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"do": "status", "value": 403}, AccessDenied),
        ({"do": "status", "value": 404}, StoreError),
        ({"do": "status", "value": 500}, StoreError),
        ({"do": "xml"}, BadAnswer),
        ({"do": "cut"}, StoreError),
        ({"do": "close", "at": 10}, StoreError),
        ({"do": "repeat"}, BadAnswer),
        ({"do": "repeat", "nth": 2}, BadAnswer),
    ],
    ids=str,
)
def test_a_listing_that_fails_is_never_an_empty_one(
    server: S3Server, store: S3Store, fault: dict[str, Any], expected: type[BffsError]
) -> None:
    server.fault(**fault, kind="list")
    begun = time.monotonic()
    with pytest.raises(StoreError) as caught:
        pages(store, "pages/")
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 10


def test_a_bucket_that_is_not_there(server: S3Server) -> None:
    with opened(dataset_at(server.endpoint_url, bucket="other"), sign_requests=False) as store:
        with pytest.raises(NoSuchBucket, match="no bucket other"):
            pages(store)
        assert type(Reading(store).error) is NoSuchBucket


# -- credentials ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked_servers() -> Iterator[Callable[[str], S3Server]]:
    """A function that gives a server which serves that access key id alone."""
    servers: dict[str, S3Server] = {}

    def server(key: str) -> S3Server:
        if key not in servers:
            servers[key] = S3Server({KEY: SIZE}, access_key=key).__enter__()
        servers[key].reset()
        return servers[key]

    yield server
    for each in servers.values():
        each.__exit__(None, None, None)


@pytest.fixture
def key_used(
    locked_servers: Callable[[str], S3Server],
) -> Callable[..., str]:
    """A function that opens a store, and says whose key its requests carry."""

    def used(*, published: bool = True, **options: Any) -> str:
        for key in KEYS:
            server = locked_servers(key)
            keys = PUBLISHED if published else (None, None)
            with opened(dataset_at(server.endpoint_url, keys=keys), **options) as store:
                try:
                    pages(store)
                except AccessDenied as error:
                    if "(InvalidAccessKeyId)" not in str(error):
                        return "none"
                    continue
                reading = Reading(store)
                assert reading.error is None
                return key
        return "unknown"

    return used


def environment_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVIRONMENTKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def key_files(folder: Path) -> None:
    (folder / "credentials").write_text(
        f"[default]\naws_access_key_id = DEFAULTKEY\naws_secret_access_key = {SECRET}\n"
        f"[lab]\naws_access_key_id = PROFILEKEY\naws_secret_access_key = {SECRET}\n"
    )


def test_the_published_key_needs_nothing_else(key_used: Callable[..., str]) -> None:
    assert key_used() == "PUBLISHEDKEY"


def test_the_environment_goes_before_the_published_key(
    key_used: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment_key(monkeypatch)
    assert key_used() == "ENVIRONMENTKEY"


def test_a_profile_goes_before_both(
    key_used: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_files(tmp_path)
    environment_key(monkeypatch)
    assert key_used(aws_profile="lab") == "PROFILEKEY"


def test_a_profile_of_the_environment_goes_before_the_published_key(
    key_used: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_files(tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert key_used() == "PROFILEKEY"


def test_a_default_key_is_for_stores_without_a_published_one(
    key_used: Callable[..., str], tmp_path: Path
) -> None:
    key_files(tmp_path)
    assert key_used() == "PUBLISHEDKEY"
    assert key_used(published=False) == "DEFAULTKEY"


def test_unsigned_requests_carry_no_key(
    key_used: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key_files(tmp_path)
    environment_key(monkeypatch)
    assert key_used(sign_requests=False) == "none"


def test_no_credentials_at_all(server: S3Server) -> None:
    with opened(dataset_at(server.endpoint_url)) as store:
        with pytest.raises(AccessDenied, match="--no-sign-request"):
            pages(store)
        assert type(Reading(store).error) is AccessDenied


def test_half_a_key(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVIRONMENTKEY")
    with pytest.raises(AccessDenied, match="AWS_SECRET_ACCESS_KEY"):
        S3Store(settings_of(dataset_at(server.endpoint_url)))


def test_there_is_no_such_profile(server: S3Server) -> None:
    with pytest.raises(UsageError, match="lab"):
        S3Store(settings_of(dataset_at(server.endpoint_url), aws_profile="lab"))


def test_an_aws_configuration_that_makes_no_sense(server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("no section\n")
    with pytest.raises(UsageError, match="AWS configuration"):
        S3Store(settings_of(dataset_at(server.endpoint_url)))


def test_the_keys_of_the_machine_never_leave_it(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cloud's machine, whose metadata service hands out keys to whoever asks."""
    with S3Server({}) as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint_url)
        monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{metadata.endpoint_url}/keys")
        with opened(dataset_at(server.endpoint_url)) as store, pytest.raises(AccessDenied):
            pages(store)
        with opened(dataset_at(server.endpoint_url), sign_requests=False) as store:
            pages(store)
        assert metadata.stats()["requests"] == {}
        # botocore by itself asks, so this would be seen:
        monkeypatch.delenv("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        botocore.session.Session().get_credentials()
        assert metadata.stats()["requests"] != {}


def test_a_wrong_clock_is_named(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    environment_key(monkeypatch)
    server.fault("skew", value=3600)
    with (
        opened(dataset_at(server.endpoint_url)) as store,
        pytest.raises(AccessDenied, match="clock"),
    ):
        pages(store)


@pytest.mark.parametrize(
    "fault",
    [
        {"do": "status", "value": 403},
        {"do": "status", "value": 500},
        {"do": "reset"},
        {"do": "close"},
        {"do": "xml"},
        {"do": "stall", "value": 2},
        {"do": "skew", "value": 3600},
    ],
    ids=str,
)
@pytest.mark.usefixtures("impatient")
def test_errors_and_logs_hold_no_secret(
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: dict[str, Any],
) -> None:
    quick(monkeypatch)
    monkeypatch.setattr(s3, "LIST_DEADLINE", 0.3)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "tOkEn")
    environment_key(monkeypatch)
    caplog.set_level(logging.DEBUG, logger="bffs")
    server.fault(**fault)
    with opened(dataset_at(server.endpoint_url, keys=PUBLISHED)) as store:
        with pytest.raises(BffsError) as caught:
            pages(store)
        read = Reading(store).error
    assert str(caught.value) and str(read)
    for text in (str(caught.value), str(read), caplog.text):
        for secret in (SECRET, "tOkEn", "Signature", "X-Amz", "Credential="):
            assert secret not in text


def test_settings_and_stores_show_no_secret() -> None:
    settings = settings_of(dataset_at("http://s3.test", keys=PUBLISHED))
    assert SECRET not in repr(settings) + str(settings)
