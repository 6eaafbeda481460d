"""Faults of the way to the store, and of what it says, over real connections: named, survived, bounded."""

from __future__ import annotations

import email.utils
import http.server
import itertools
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bffs import s3
from bffs.errors import AccessDenied, BffsError, StoreError, StoreUnreachable
from bffs.s3 import S3Store
from bffs.settings import Dataset, Settings
from bffs.store import Interrupt, ObjectInfo
from bffs.units import MIB
from tests.s3server import S3Server, made_up, pattern

KEY = "1/a-0001.tif"
SIZE = 3 * MIB + 77
_STORED = made_up(KEY, SIZE)
OBJ = ObjectInfo(KEY, _STORED.etag, SIZE, _STORED.mtime)


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with S3Server({KEY: SIZE}) as server:
        yield server


@pytest.fixture
def server(running: S3Server) -> S3Server:
    running.reset()
    return running


@contextmanager
def opened(url: str, **options: Any) -> Iterator[S3Store]:
    dataset = Dataset(name="d", endpoint_url=url, region="us-west-1", bucket="bucket")
    settings = Settings(dataset=dataset, cache_dir=Path("/nowhere"), **options)
    store = S3Store(settings)
    try:
        yield store
    finally:
        store.close()


def read(store: S3Store, seconds: float = 10.0) -> bytes:
    """All of the object, tried for so long."""
    buffer = bytearray(SIZE)
    end = time.monotonic() + seconds

    def persist(error: StoreError) -> bool:
        return time.monotonic() < end

    store.read_into(OBJ, 0, memoryview(buffer), lambda _: None, persist, Interrupt())
    return bytes(buffer)


# -- a store that says what it is told ----------------------------------------------------------------------------

Say = Callable[[http.server.BaseHTTPRequestHandler], None]


def saying(status: int, body: bytes, **headers: str) -> Say:
    """An answer."""

    def say(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response_only(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return say


def the_object(handler: http.server.BaseHTTPRequestHandler) -> None:
    """The right answer."""
    saying(200, pattern(KEY, 0, SIZE), ETag=f'"{OBJ.etag}"')(handler)


def refusing(status: int, code: str, message: str = "", **headers: str) -> Say:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return saying(status, body.encode(), **headers)


@contextmanager
def scripted(answers: Sequence[Say]) -> Iterator[tuple[str, list[float]]]:
    """A server that answers so, the last one for ever; its URL, and when it was asked."""
    asked: list[float] = []
    script = itertools.chain(answers, itertools.repeat(answers[-1]))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(time.monotonic())
            next(script)(self)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


def test_a_busy_store_is_left_alone_for_as_long_as_it_asks() -> None:
    with (
        scripted([refusing(503, "SlowDown", Retry_After="1"), the_object]) as (url, asked),
        opened(url, sign_requests=False) as store,
    ):
        assert read(store) == pattern(KEY, 0, SIZE)
        assert asked[1] - asked[0] >= 1.0


@pytest.mark.parametrize("word", ["soon", "-1", "", "9" * 400, "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_nonsense_in_retry_after_is_no_reason_to_wait(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bffs.patience.LONGEST_ASKED", 0.5)
    with (
        scripted([refusing(429, "Throttling", Retry_After=word), the_object]) as (url, asked),
        opened(url, sign_requests=False) as store,
    ):
        assert read(store) == pattern(KEY, 0, SIZE)
        assert len(asked) == 2


def test_a_url_that_has_expired_is_signed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a laptop has slept."""
    monkeypatch.setattr(s3, "RENEWAL", 0.0)
    expired = refusing(403, "AccessDenied", "Request has expired")
    with (
        scripted([expired, the_object]) as (url, asked),
        opened(url, sign_requests=False) as store,
    ):
        assert read(store) == pattern(KEY, 0, SIZE)
        assert len(asked) == 2


def test_a_wrong_clock_is_named_where_a_url_is_refused_for_it() -> None:
    date = email.utils.formatdate(time.time() - 7200, usegmt=True)
    with (
        scripted([refusing(403, "AccessDenied", "Request is not valid yet", Date=date)]) as (
            url,
            _,
        ),
        opened(url, sign_requests=False) as store,
        pytest.raises(AccessDenied, match="set this computer's clock"),
    ):
        read(store)


BOMB = b'<!DOCTYPE a [<!ENTITY a "%s">%s]><ListBucketResult>&j;</ListBucketResult>' % (
    b"x" * 1000,
    b"".join(b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(10)),
)


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    """A page that never ends."""
    handler.send_response_only(200)
    handler.end_headers()
    try:
        handler.wfile.write(b"<ListBucketResult>")
        while True:
            handler.wfile.write(b"<Contents><Key>k</Key></Contents>" * 10_000)
    except OSError:
        pass


def trickling(handler: http.server.BaseHTTPRequestHandler) -> None:
    """A page that comes a byte at a time."""
    handler.send_response_only(200)
    handler.end_headers()
    try:
        for byte in itertools.repeat(b" "):
            handler.wfile.write(byte)
            time.sleep(0.05)
    except OSError:
        pass


@pytest.mark.parametrize(
    "answer",
    [
        saying(200, BOMB),
        saying(200, b"<ListBucketResult>" * 100_000),
        saying(200, b"\xff\xfe\x00" * 1000),
        endless,
        trickling,
    ],
    ids=["bomb", "nested", "garbage", "endless", "trickling"],
)
def test_a_page_that_does_harm_is_an_error_soon(
    answer: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LIST_DEADLINE", 1.0)
    monkeypatch.setattr(s3, "LIST_ATTEMPTS", 2)
    with scripted([answer]) as (url, _), opened(url, sign_requests=False) as store:
        begun = time.monotonic()
        with pytest.raises(BffsError) as caught:
            list(store.list(""))
        assert isinstance(caught.value, StoreError)
        assert time.monotonic() - begun < 20 and "\n" not in str(caught.value)


# -- credentials ------------------------------------------------------------------------------------------------


def test_credentials_that_have_expired_are_read_anew_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3, "RENEWAL", 0.0)
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))

    def write(key: str) -> None:
        credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n")

    write("OLDKEY")
    with S3Server({KEY: SIZE}, access_key="NEWKEY") as server, opened(server.endpoint_url) as store:
        with pytest.raises(AccessDenied):
            read(store)
        assert server.stats()["requests"] == {"get": 2}
        write("NEWKEY")
        assert read(store) == pattern(KEY, 0, SIZE)
        assert server.stats()["requests"] == {"get": 4}


# -- the way to it ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(made[0]), "-keyout", str(made[1])),
        ],
        check=True,
        capture_output=True,
    )
    return made


@contextmanager
def tunnel(
    server: S3Server, certificate: tuple[Path, Path], limits: Sequence[int | None]
) -> Iterator[str]:
    """TLS in front of a server; each connection in turn is cut after so many bytes of answers, the
    others never."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    cuts = itertools.chain(limits, itertools.repeat(None))
    host, port = server.endpoint_url.removeprefix("http://").split(":")

    def serve(plain: socket.socket, cut: int | None) -> None:
        with ExitStack() as stack:
            try:
                near = stack.enter_context(context.wrap_socket(plain, server_side=True))
            except OSError:
                return
            far = stack.enter_context(socket.create_connection((host, int(port))))
            threading.Thread(target=forward, args=(near, far), daemon=True).start()
            forward(far, near, cut)
            for each in (near, far):
                with suppress(OSError):
                    socket.socket.shutdown(each, socket.SHUT_RDWR)

    def forward(source: socket.socket, target: socket.socket, left: int | None = None) -> None:
        try:
            while (left is None or left > 0) and (data := source.recv(65_536)):
                target.sendall(data if left is None else data[:left])
                left = None if left is None else left - len(data)
        except OSError:
            pass

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection, next(cuts)), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


def test_what_breaks_off_below_tls_is_resumed(
    server: S3Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    with (
        tunnel(server, certificate, [1_000_000, 10, 500_000]) as url,
        opened(url, sign_requests=False) as store,
    ):
        assert read(store) == pattern(KEY, 0, SIZE)
    starts = [get.start for get in server.log()]
    assert starts[0] == 0 and starts == sorted(starts) and 900_000 < starts[-1] < 1_500_000


def test_a_stall_below_tls_costs_no_time_out(
    server: S3Server, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    monkeypatch.setattr("bffs.patience.UNKNOWN", 0.5)
    server.fault("stall", value=60, at=1_000_000, times=1)
    with tunnel(server, certificate, []) as url, opened(url, sign_requests=False) as store:
        begun = time.monotonic()
        assert read(store) == pattern(KEY, 0, SIZE)
        assert time.monotonic() - begun < 15
    assert len(server.log()) == 2


def test_a_certificate_that_nobody_vouches_for_is_named(
    server: S3Server, certificate: tuple[Path, Path]
) -> None:
    with tunnel(server, certificate, []) as url, opened(url, sign_requests=False) as store:
        begun = time.monotonic()
        with pytest.raises(StoreUnreachable, match=r"no secure connection.*self.signed"):
            list(store.list(""))
        assert time.monotonic() - begun < 5  # it is not tried again
        with pytest.raises(StoreUnreachable, match="no secure connection"):
            read(store, 1.0)  # but a reader waits: it may be a portal that wants a login first


def test_a_proxy_that_is_not_there_is_named(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LIST_ATTEMPTS", 1)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with (
        opened(server.endpoint_url, sign_requests=False) as store,
        pytest.raises(StoreUnreachable, match="the proxy on the way to"),
    ):
        list(store.list(""))


def test_a_name_that_cannot_be_looked_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "LIST_ATTEMPTS", 1)
    with (
        opened("http://no-such-host.invalid", sign_requests=False) as store,
        pytest.raises(StoreUnreachable, match=r"address of .*no-such-host.* can't be looked up"),
    ):
        list(store.list(""))


@pytest.mark.parametrize(
    ("status", "code", "message", "headers"),
    [
        (400, "AuthorizationQueryParametersError", "the region 'x' is wrong; expecting 'eu-9'", {}),
        (400, "AuthorizationHeaderMalformed", "", {"x_amz_bucket_region": "eu-9"}),
        (301, "PermanentRedirect", "", {"x_amz_bucket_region": "eu-9"}),
    ],
)
def test_a_wrong_region_is_named(
    status: int, code: str, message: str, headers: dict[str, str]
) -> None:
    with (
        scripted([refusing(status, code, message, **headers)]) as (url, _),
        opened(url, sign_requests=False) as store,
        pytest.raises(AccessDenied, match=r"^bucket bucket is in region eu-9: use --region eu-9$"),
    ):
        read(store)


def test_a_signature_that_is_wrong_otherwise_is_no_matter_of_the_region() -> None:
    with (
        scripted([refusing(400, "AuthorizationHeaderMalformed")]) as (url, _),
        opened(url, sign_requests=False) as store,
        pytest.raises(AccessDenied, match="check the credentials"),
    ):
        read(store)
