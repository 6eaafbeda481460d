"""A small S3 server for tests and benchmarks: fast, shaped like a far store, faulty on request.

It runs as a process of its own (`python tests/s3server.py --root DIR`, or `S3Server` from Python),
because nothing should serve and use a mount in one process. It knows one bucket, path-style:
ListObjectsV2 (and V1), HEAD and GET with ranges and If-Match. Objects are real files, sent by
`sendfile`, or of made-up content (`pattern`), so that 2.7 TB fit on any disk.

- Shape: a latency before each first byte, a bandwidth per connection and one in all (`Pace`).
- Faults: scripted per request by `Fault`.
- Figures: `S3Server.stats` and `S3Server.log`, over `/_control/` on the same port.

Threads: one a connection; whatever they share is behind the lock of its class. A blocking
`sendfile` or `sleep` in a thread holds no lock and no GIL, so that 32 connections at 1 GB/s need a
third of a core.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import email.utils
import functools
import hashlib
import http.client
import io
import json
import os
import random
import re
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, cast
from urllib.parse import parse_qs, quote, unquote
from xml.sax.saxutils import escape

LAYOUT = Path(__file__).with_name("data") / "brightfield_layout.csv"
"""The real dataset's folders, one row a specimen; its 53,926 keys and their sizes follow."""

TOTAL_BYTES = 2_713_810_170_427
"""Bytes of all objects of the real dataset; the tracings share what the slices leave of them."""

MTIME = 1_565_816_733
"""LastModified of made-up objects: 2019-08-14T21:05:33Z."""

# ---------------------------------------------------------------------------------------- objects

_PERIOD = 16_777_259
"""Bytes after which made-up content repeats: a prime, so that no block-aligned mistake meets the
same bytes again.
"""


@functools.cache
def _noise() -> bytes:
    return random.Random(0).randbytes(_PERIOD)


def _phase(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) % _PERIOD


def pattern(key: str, start: int, stop: int) -> bytes:
    """The bytes from `start` to `stop` of the made-up object `key`, however large it is."""
    noise, at, size = _noise(), (_phase(key) + start) % _PERIOD, stop - start
    return (noise[at : at + size] + noise * (size // _PERIOD + 1))[:size]


class Headed(NamedTuple):
    """So many bytes of an object's `pattern`, but for these at its front: a slice of any size."""

    head: bytes
    size: int


Source = bytes | int | Path | Headed
"""What an object is made of: these bytes, so many bytes of its `pattern`, or this file."""


class Stored(NamedTuple):
    """One object: `file` is None for made-up content, which begins with `head`; `etag` without
    quotes, `mtime` in seconds since 1970 UTC.
    """

    size: int
    etag: str
    mtime: int
    file: str | None = None
    head: bytes = b""


class Piece(NamedTuple):
    """Bytes to send: `size` of them from `offset` of the open file `fd`, or `data`."""

    size: int
    fd: int = -1
    offset: int = 0
    data: bytes = b""


def made_up(key: str, size: int, head: bytes = b"") -> Stored:
    """An object of `pattern` content; its ETag depends on key, size and head alone."""
    etag = hashlib.md5(f"{key}:{size}".encode() + head).hexdigest()
    return Stored(size, etag, MTIME, head=head)


_DIGESTS: dict[tuple[int, int, int, int], str] = {}


def of_file(path: Path) -> Stored:
    """An object with the content of a file; its ETag is the MD5, computed once for all its keys."""
    status = path.stat()
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if identity not in _DIGESTS:
        with path.open("rb") as file:
            _DIGESTS[identity] = hashlib.file_digest(file, "md5").hexdigest()
    return Stored(status.st_size, _DIGESTS[identity], int(status.st_mtime), str(path.resolve()))


def of_folder(root: Path) -> dict[str, Stored]:
    """All files below `root` as objects, their relative paths as keys."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): of_file(path) for path in paths}


def layout_sizes(path: Path = LAYOUT) -> dict[str, int]:
    """Key and size of every object that the rows of a layout file stand for.

    Bytes that don't divide evenly among the slices go one each to the first ones.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = {"TEST_DATA_SET/": 0}
    tracings = [f"{row['prefix']}{row['id']}.swc" for row in rows if row["has_swc"] == "1"]
    for row in rows:
        sizes[row["prefix"]] = 0
        first, count, total = (
            int(row[name]) for name in ("first_slice", "slices", "total_slice_bytes")
        )
        for number, size in enumerate(_spread(total, count), first):
            sizes[f"{row['prefix']}{row['slice_stem']}-{number:04}.tif"] = size
    left = max(0, TOTAL_BYTES - sum(sizes.values()))
    return sizes | dict(zip(tracings, _spread(left, len(tracings)), strict=True))


def _spread(total: int, count: int) -> list[int]:
    return [total // count + (number < total % count) for number in range(count)] if count else []


class Bucket:
    """The objects, sorted by key. Replaced whole when they change, so that readers need no lock."""

    def __init__(self, objects: Mapping[str, Stored]) -> None:
        self.objects = dict(objects)
        self.keys = sorted(objects)

    def page(
        self, prefix: str, delimiter: str, after: str, limit: int
    ) -> tuple[list[str], list[str], str | None]:
        """Keys and common prefixes of one page, and the last name on it if more follow."""
        keys: list[str] = []
        prefixes: list[str] = []
        at = bisect_left(self.keys, prefix)
        if after:
            folder = bool(delimiter) and delimiter in after[len(prefix) :]
            folder = folder and after.startswith(prefix) and after.endswith(delimiter)
            at = max(at, self._end(after, 0) if folder else bisect_right(self.keys, after))
        end = self._end(prefix, min(at, len(self.keys)))
        last = None
        while at < end:
            if len(keys) + len(prefixes) == limit:
                return keys, prefixes, last
            key = self.keys[at]
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut >= 0:
                last = key[: cut + len(delimiter)]
                prefixes.append(last)
                at = self._end(last, at)
            else:
                last = key
                keys.append(key)
                at += 1
        return keys, prefixes, None

    def _end(self, prefix: str, lo: int) -> int:
        """Where the keys that start with `prefix` end."""
        lo = max(lo, bisect_left(self.keys, prefix))
        return bisect_left(self.keys, True, lo, key=lambda key: not key.startswith(prefix))


# ------------------------------------------------------------------------------------------ shape


class Shape(NamedTuple):
    """How far the store is: seconds before each first byte, bytes a second (0: no limit)."""

    latency: float = 0.0
    per_connection: float = 0.0
    total: float = 0.0


NEAR = Shape()
FAR = Shape(latency=0.030, per_connection=50e6, total=1e9)
"""The store that the project's figures are measured with: far, but on a good line."""


class Pace:
    """A line of so many bytes a second: who asks first goes first, which is fair to all."""

    CATCH_UP = 0.010
    """Seconds by which this process may wake too late and make it good; more would be a burst."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free = time.monotonic()

    def until(self, size: int) -> float:
        """The monotonic time at which `size` more bytes will have passed. Thread-safe."""
        with self._lock:
            self._free = max(self._free, time.monotonic() - self.CATCH_UP) + size / self._rate
            return self._free


# ----------------------------------------------------------------------------------------- faults


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, and in which requests.

    `do` is one of: `status` (answer with HTTP status `value`), `reset` (RST after `at` bytes of the
    body), `close` (end of the connection after `at` bytes), `stall` (pause of `value` seconds after
    `at` bytes, or until the next reset), `drip` (`value` bytes a second), `resize` (a body `value`
    bytes longer, or shorter, than asked for), `range` (Content-Range moved by `value`), `etag`
    (another ETag), `flip` (the byte at offset `at` of the object inverted), `xml` (a page of
    something else), `cut` (half a listing page), `repeat` (a listing page whose token leads to
    itself), `skew` (a clock `value` seconds off, so that signed requests are refused).

    It hits requests of `kind` (`get`, `head`, `list`; any if empty) whose key (for a list: whose
    prefix) contains `key`, from the `nth` on, `times` times (None: for ever), with `probability`
    drawn from `seed`.
    """

    do: str
    value: float = 0
    at: int = 0
    kind: str = ""
    key: str = ""
    nth: int = 1
    times: int | None = None
    probability: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.do not in _FAULTS:
            raise ValueError(f"no fault {self.do!r}; there are {', '.join(sorted(_FAULTS))}")


_FAULTS = frozenset(
    {"status", "reset", "close", "stall", "drip", "resize", "range", "etag", "flip", "xml"}
    | {"cut", "repeat", "skew"}
)


_CODES = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}


class Script:
    """The faults to come. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[tuple[Fault, Counter[str], random.Random]] = []
        self.cleared = threading.Event()
        """Set, and replaced, when faults are forgotten."""

    def add(self, fault: Fault) -> None:
        """Append a fault; for each request the first that fits happens."""
        with self._lock:
            self._rules.append((fault, Counter(), random.Random(fault.seed)))

    def clear(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._rules.clear()
            self.cleared.set()
            self.cleared = threading.Event()

    def draw(self, kind: str, key: str) -> Fault | None:
        """The fault that this request meets, if any."""
        with self._lock:
            for fault, count, chance in self._rules:
                if fault.kind not in ("", kind) or fault.key not in key:
                    continue
                count["seen"] += 1
                if count["seen"] < fault.nth or count["done"] == fault.times:
                    continue
                if chance.random() < fault.probability:
                    count["done"] += 1
                    return fault
        return None


# ---------------------------------------------------------------------------------------- figures


class Get(NamedTuple):
    """One GET of an object: what was asked for, when on the monotonic clock, and how the answer
    began.
    """

    key: str
    start: int
    stop: int
    time: float
    status: int


class Figures:
    """What has been served since the last reset. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Start anew; answers under way stay counted."""
        with self._lock:
            self._requests: Counter[str] = Counter()
            self._statuses: Counter[int] = Counter()
            self._sent: Counter[str] = Counter()
            self._now = getattr(self, "_now", 0)
            self._peak = self._now
            self._faults = 0
            self._gets: deque[Get] = deque(maxlen=200_000)

    def begin(self, kind: str) -> None:
        """A request has come in."""
        with self._lock:
            self._requests[kind] += 1
            self._now += 1
            self._peak = max(self._peak, self._now)

    def end(self) -> None:
        """Its answer is out, or lost."""
        with self._lock:
            self._now -= 1

    def answered(self, status: int, faulty: bool, get: Get | None) -> None:
        """It is going to be answered like this."""
        with self._lock:
            self._statuses[status] += 1
            self._faults += faulty
            if get is not None:
                self._gets.append(get)

    def sent(self, kind: str, size: int) -> None:
        """So many bytes of a body have gone out."""
        with self._lock:
            self._sent[kind] += size

    def gets(self) -> list[Get]:
        """The last GETs, oldest first."""
        with self._lock:
            return list(self._gets)

    def as_json(self) -> dict[str, Any]:
        """The figures, as `S3Server.stats` describes them."""
        with self._lock:
            return {
                "requests": dict(self._requests),
                "statuses": dict(self._statuses),
                "sent": dict(self._sent),
                "in_flight": self._now,
                "peak": self._peak,
                "faults": self._faults,
                "cpu_seconds": time.process_time(),
            }


# ---------------------------------------------------------------------------------------- answers


_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Refusal(Exception):
    """An S3 error: HTTP status, the code for the XML body, and the right region where that is it."""

    def __init__(self, status: int, code: str, region: str = "") -> None:
        self.status, self.code, self.region = status, code, region


@dataclass
class Answer:
    """A response about to be sent. `headers` lacks Content-Length; `length` is what it will say."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    length: int = 0
    fd: int = -1
    start: int = 0
    stop: int = 0


def _document(status: int, text: str, content_type: str = "application/xml") -> Answer:
    data = text.encode()
    return Answer(status, {"Content-Type": content_type}, [Piece(len(data), data=data)], len(data))


def _error(refusal: Refusal, resource: str) -> Answer:
    code, region = refusal.code, f"<Region>{refusal.region}</Region>" if refusal.region else ""
    return _document(
        refusal.status,
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
        f"<Message>{code}</Message>{region}<Resource>{escape(resource)}</Resource><RequestId>0</RequestId></Error>",
    )


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Half-open range that a Range header asks of an object of `size` bytes; None if it asks for
    all.

    Raises Refusal (416) for a range outside the object. A header that makes no sense is ignored, as
    S3 does.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", (header or "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise Refusal(416, "InvalidRange")
    return start, stop


def _object_answer(key: str, obj: Stored, headers: Mapping[str, str], noise_fd: int) -> Answer:
    """The answer to GET (or HEAD) of an object. Raises Refusal."""
    tag = f'"{obj.etag}"'
    wanted = headers.get("if-match")
    if wanted is not None and wanted != "*" and tag not in re.findall(r'"[^"]*"', wanted):
        raise Refusal(412, "PreconditionFailed")
    span = byte_range(headers.get("range"), obj.size)
    start, stop = span or (0, obj.size)
    answer = Answer(206 if span else 200, length=stop - start, start=start, stop=stop)
    answer.headers = {
        "Content-Type": "image/tiff" if key.endswith(".tif") else "binary/octet-stream",
        "ETag": tag,
        "Last-Modified": email.utils.formatdate(obj.mtime, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    if span:
        answer.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{obj.size}"
    if obj.file is not None:
        answer.fd = os.open(obj.file, os.O_RDONLY)
        answer.pieces = [Piece(stop - start, answer.fd, start)]
    else:
        head = obj.head[start:stop]
        if head:
            answer.pieces = [Piece(len(head), data=head)]
        start += len(head)
        at, left = (_phase(key) + start) % _PERIOD, stop - start
        while left:
            size = min(left, _PERIOD - at)
            answer.pieces.append(Piece(size, noise_fd, at))
            at, left = 0, left - size
    return answer


def _buckets(name: str) -> str:
    return (
        f'<ListAllMyBucketsResult xmlns="{_NAMESPACE}"><Buckets><Bucket><Name>{name}</Name>'
        "<CreationDate>2019-08-14T21:05:33.000Z</CreationDate></Bucket></Buckets>"
        "</ListAllMyBucketsResult>"
    )


def _listing_answer(
    bucket: Bucket, name: str, query: Mapping[str, str], fault: Fault | None
) -> Answer:
    """The answer to ListObjectsV2, or to V1 when `list-type` is missing. Raises Refusal."""
    second = query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    try:
        limit = min(1000, int(query.get("max-keys") or 1000))
        token = base64.urlsafe_b64decode(query.get("continuation-token", "")).decode()
    except ValueError:
        raise Refusal(400, "InvalidArgument") from None
    if limit < 0:
        raise Refusal(400, "InvalidArgument")
    after = (token or query.get("start-after", "")) if second else query.get("marker", "")
    keys, prefixes, last = bucket.page(prefix, delimiter, after, limit)
    if fault is not None and fault.do == "repeat":
        last = after

    def text(value: str) -> str:
        return quote(value, safe="/") if query.get("encoding-type") == "url" else escape(value)

    parts = [
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult xmlns="{_NAMESPACE}">',
        f"<Name>{name}</Name><Prefix>{text(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys>",
        f"<IsTruncated>{'false' if last is None else 'true'}</IsTruncated>",
    ]
    if delimiter:
        parts.append(f"<Delimiter>{text(delimiter)}</Delimiter>")
    if "encoding-type" in query:
        parts.append(f"<EncodingType>{escape(query['encoding-type'])}</EncodingType>")
    if second:
        parts.append(f"<KeyCount>{len(keys) + len(prefixes)}</KeyCount>")
    if last is not None:
        again = base64.urlsafe_b64encode(last.encode()).decode()
        parts.append(
            f"<NextContinuationToken>{again}</NextContinuationToken>"
            if second
            else f"<NextMarker>{text(last)}</NextMarker>"
        )
    for key in keys:
        obj = bucket.objects[key]
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(obj.mtime))
        parts.append(
            f"<Contents><Key>{text(key)}</Key><LastModified>{when}</LastModified><ETag>&quot;{obj.etag}&quot;</ETag>"
            f"<Size>{obj.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    parts += [
        f"<CommonPrefixes><Prefix>{text(each)}</Prefix></CommonPrefixes>" for each in prefixes
    ]
    return _document(200, "".join([*parts, "</ListBucketResult>"]))


def _spoil(answer: Answer, fault: Fault, stored: Stored | None) -> Answer:
    """`answer` with the faults in it that can be written down beforehand."""
    value = int(fault.value)
    match fault.do:
        case "xml":
            return replace(
                _document(200, "<html><body>It works!</body></html>", "text/html"), fd=answer.fd
            )
        case "cut":
            half = answer.length // 2
            answer.pieces = [Piece(half, data=piece.data[:half]) for piece in answer.pieces]
            answer.length = half
        case "etag":
            answer.headers["ETag"] = (
                f'"{hashlib.md5(answer.headers.get("ETag", "").encode()).hexdigest()}"'
            )
        case "range" if stored is not None and "Content-Range" in answer.headers:
            first, last = answer.start + value, answer.stop - 1 + value
            answer.headers["Content-Range"] = f"bytes {first}-{last}/{stored.size}"
        case "resize":
            answer.length = max(0, answer.length + value)
            if value > 0:
                answer.pieces.append(Piece(value, data=b"\xaa" * value))
            else:
                answer.pieces = _cut(answer.pieces, 0, answer.length)
        case "flip" if answer.start <= fault.at < answer.stop:
            at = fault.at - answer.start
            (hit,) = _cut(answer.pieces, at, at + 1)
            byte = hit.data or os.pread(hit.fd, 1, hit.offset)
            flipped = Piece(1, data=bytes([byte[0] ^ 0xFF]))
            size = answer.stop - answer.start
            answer.pieces = [
                *_cut(answer.pieces, 0, at),
                flipped,
                *_cut(answer.pieces, at + 1, size),
            ]
    return answer


def _cut(pieces: Iterable[Piece], start: int, stop: int) -> list[Piece]:
    """The pieces that hold bytes `start` to `stop` of what `pieces` hold."""
    cut, at = [], 0
    for piece in pieces:
        lo, hi = max(0, start - at), min(piece.size, stop - at)
        if lo < hi:
            data = piece.data[lo:hi]
            cut.append(Piece(hi - lo, piece.fd, piece.offset + lo, data))
        at += piece.size
    return cut


# ----------------------------------------------------------------------------------------- server


class Server(socketserver.ThreadingTCPServer):
    """The listening socket, and what all connections share: values that are replaced whole."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 512

    def __init__(
        self,
        port: int,
        name: str,
        bucket: Bucket,
        shape: Shape,
        access_key: str | None,
        region: str | None,
    ) -> None:
        super().__init__(("127.0.0.1", port), Connection)
        self.name, self.bucket, self.access_key, self.region = name, bucket, access_key, region
        self.script, self.figures = Script(), Figures()
        self.noise_fd = os.memfd_create("noise")
        os.write(self.noise_fd, _noise())
        self.set_shape(shape)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def set_shape(self, shape: Shape) -> None:
        """Use `shape` for answers from now on."""
        self.line = Pace(shape.total) if shape.total else None
        self.shape = shape

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away all the time; anything else is this server's fault and must be seen."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Connection(socketserver.StreamRequestHandler):
    """One client's connection: requests in, answers out, until it is closed."""

    server: Server
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer requests until the client, or a fault, ends the connection."""
        while (request := self._read_request()) is not None:
            method, target, headers = request
            if target.startswith("/_control/"):
                self._control(target.removeprefix("/_control/"), self._read_body(headers))
                continue
            self._read_body(headers)
            path, _, query_text = target.partition("?")
            name, _, key = unquote(path.lstrip("/")).partition("/")
            query = {k: v[0] for k, v in parse_qs(query_text, keep_blank_values=True).items()}
            kind = {"GET": "get" if key else "list", "HEAD": "head"}.get(method, "write")
            self.server.figures.begin(kind)
            try:
                if not self._answer(kind, name, key, query, headers):
                    return
            finally:
                self.server.figures.end()

    def _read_request(self) -> tuple[str, str, dict[str, str]] | None:
        begun = cast(io.BufferedReader, self.rfile).peek(1)[:1]
        if not begun.isalpha():  # nothing, or a TLS handshake, in which there may be no end of line
            return None
        line = self.rfile.readline(65_537)
        words = line.decode("latin-1").split()
        if len(words) != 3:
            return None
        headers = {}
        while (line := self.rfile.readline(65_537)) not in (b"\r\n", b"\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return words[0], words[1], headers

    def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("expect", "").lower() == "100-continue":
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self.rfile.read(int(headers.get("content-length") or 0))

    def _answer(
        self, kind: str, name: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> bool:
        """Answer one request; False if the connection ends with it."""
        server, came = self.server, time.monotonic()
        shape, bucket = server.shape, server.bucket
        self._cleared = server.script.cleared
        fault = server.script.draw(kind, query.get("prefix", "") if kind == "list" else key)
        skew = fault.value if fault is not None and fault.do == "skew" else 0.0
        stored = bucket.objects.get(key)
        try:
            if fault is not None and fault.do == "status":
                raise Refusal(int(fault.value), _CODES.get(int(fault.value), "Fault"))
            _check_clock(headers, skew)
            self._check_access(headers, query)
            if kind == "write":
                raise Refusal(405, "MethodNotAllowed")
            if name != server.name and name:
                raise Refusal(404, "NoSuchBucket")
            if key:
                if stored is None:
                    raise Refusal(404, "NoSuchKey")
                answer = _object_answer(key, stored, headers, server.noise_fd)
            elif not name:
                answer = _document(200, _buckets(server.name))
            elif kind == "head":
                answer = Answer(200)
            elif "location" in query:
                answer = _document(200, f'<LocationConstraint xmlns="{_NAMESPACE}"/>')
            else:
                answer = _listing_answer(bucket, name, query, fault)
        except Refusal as refusal:
            answer = _error(refusal, f"/{name}/{key}")
        try:
            if fault is not None:
                answer = _spoil(answer, fault, stored)
            get = Get(key, answer.start, answer.stop, came, answer.status)
            logged = get if kind == "get" else None
            server.figures.answered(answer.status, fault is not None, logged)
            time.sleep(max(0.0, came + shape.latency - time.monotonic()))
            return self._send(answer, kind, shape, fault, skew)
        finally:
            if answer.fd >= 0:
                os.close(answer.fd)

    def _check_access(self, headers: Mapping[str, str], query: Mapping[str, str]) -> None:
        """Raise Refusal unless the request names the access key, and the region where it is signed;
        its signature is not checked."""
        signed, presigned = headers.get("authorization", ""), query.get("X-Amz-Credential", "")
        words = f"{signed} Credential={presigned}"
        scope = re.search(r"Credential=[^/\s,]+/\d+/([^/]+)/s3", words)
        if self.server.region and scope is not None and scope[1] != self.server.region:
            what = "QueryParametersError" if presigned else "HeaderMalformed"
            raise Refusal(400, f"Authorization{what}", self.server.region)
        if self.server.access_key is None:
            return
        match = re.search(r"Credential=([^/\s,]+)|AWS ([^:\s]+):", words)
        if match is None:
            raise Refusal(403, "AccessDenied")
        if self.server.access_key not in match.groups():
            raise Refusal(403, "InvalidAccessKeyId")

    def _send(
        self, answer: Answer, kind: str, shape: Shape, fault: Fault | None, skew: float
    ) -> bool:
        """Send head and body at the pace of `shape`; False if the connection ends with it."""
        head = [f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, 'Fault')}"]
        head += [f"{name}: {value}" for name, value in answer.headers.items()]
        head += [
            f"Content-Length: {answer.length}",
            f"Date: {email.utils.formatdate(time.time() + skew, usegmt=True)}",
            "x-amz-request-id: 0",
        ]
        rate, stop, pause = shape.per_connection, answer.length, 0.0
        match fault:
            case Fault(do="drip"):
                rate = fault.value
            case Fault(do="reset" | "close"):
                stop = fault.at
            case Fault(do="stall"):
                stop, pause = fault.at, fault.value
        first = [] if kind == "head" else _cut(answer.pieces, 0, stop)
        # With a body to come, the head leaves in one packet with its first bytes.
        more = socket.MSG_MORE if first else 0
        self.connection.sendall("\r\n".join([*head, "", ""]).encode(), more)
        if kind == "head":
            return True
        paces = [pace for pace in (Pace(rate) if rate else None, self.server.line) if pace]
        quantum = _quantum([each for each in (rate, shape.total) if each])
        self._send_pieces(first, kind, paces, quantum)
        match fault:
            case Fault(do="close"):
                return False
            case Fault(do="reset"):
                self._reset()
                return False
        if pause:
            self._cleared.wait(pause)
        self._send_pieces(_cut(answer.pieces, stop, answer.length), kind, paces, quantum)
        return True

    def _reset(self) -> None:
        """Close the connection with an RST in place of a FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for each in (self.rfile, self.wfile, self.connection):
            each.close()

    def _send_pieces(
        self, pieces: Iterable[Piece], kind: str, paces: list[Pace], quantum: int
    ) -> None:
        """Send `pieces`, at most `quantum` bytes at a time, each when all `paces` let it pass.

        The first steps are smaller, so that the first byte isn't late by a quantum. There is one sleep for
        all paces: waking up is most of what this server costs, and a real store would not take the time of
        the client's processors at all.
        """
        fd, step = self.connection.fileno(), min(quantum, 16 << 10) if paces else quantum
        for piece in pieces:
            done = 0
            while done < piece.size:
                size, step = min(step, piece.size - done), min(quantum, step * 2)
                if paces:
                    due = max(pace.until(size) for pace in paces)
                    time.sleep(max(0.0, due - time.monotonic()))
                if piece.fd < 0:
                    self.connection.sendall(piece.data[done : done + size])
                else:
                    size = os.sendfile(fd, piece.fd, piece.offset + done, size)
                    if not size:
                        raise ConnectionAbortedError("the file behind the object got shorter")
                if kind != "control":
                    self.server.figures.sent(kind, size)
                done += size

    def _control(self, action: str, body: bytes) -> None:
        """Serve `/_control/`: the other end of the methods of `S3Server`."""
        server = self.server
        result: Any = None
        match action:
            case "stats":
                result = server.figures.as_json()
            case "log":
                result = server.figures.gets()
            case "reset":
                server.script.clear()
                server.figures.clear()
            case "shape":
                server.set_shape(Shape(**json.loads(body)))
            case "fault":
                server.script.add(Fault(**json.loads(body)))
            case "change":
                changes = json.loads(body)
                kept = {
                    key: obj for key, obj in server.bucket.objects.items() if key not in changes
                }
                server.bucket = Bucket(kept | objects_of(changes))
        answer = _document(200, json.dumps(result), "application/json")
        self._send(answer, "control", Shape(), None, 0.0)


def _check_clock(headers: Mapping[str, str], skew: float) -> None:
    """Raise Refusal if a signed request's time is more than a quarter of an hour off this server's
    (skewed) clock.
    """
    stamp = headers.get("x-amz-date")
    if stamp and skew:
        asked = email.utils.mktime_tz((*time.strptime(stamp, "%Y%m%dT%H%M%SZ")[:9], 0))
        if abs(asked - time.time() - skew) > 900:
            raise Refusal(403, "RequestTimeTooSkewed")


def _quantum(rates: list[float]) -> int:
    """Bytes to send at once: about 6 ms of the slowest line, so that it runs smoothly."""
    return max(1, min(256 << 10, int(min(rates) * 0.006))) if rates else 1 << 20


def objects_of(sources: Mapping[str, Any]) -> dict[str, Stored]:
    """Objects from what JSON can say: key -> path of a file, size of made-up content, that and its
    first bytes in hexadecimal, or null for no object.
    """

    def stored(key: str, source: Any) -> Stored:
        match source:
            case str():
                return of_file(Path(source))
            case [int(size), str(head)]:
                return made_up(key, size, bytes.fromhex(head))
        return made_up(key, source)

    return {key: stored(key, source) for key, source in sources.items() if source is not None}


# ----------------------------------------------------------------------------------------- client


class S3Server:
    """The server as a context manager: a child process, and its controls.

    `objects` maps keys to what they are made of; `root`, `layout` serve a folder of files and a
    layout file's keys. All may be given at once. `shape` is a far store's, see `Shape`. The child
    ends with this process, whatever happens to it.
    """

    def __init__(
        self,
        objects: Mapping[str, Source] | None = None,
        *,
        root: Path | None = None,
        layout: Path | None = None,
        bucket: str = "bucket",
        access_key: str | None = None,
        region: str | None = None,
        port: int = 0,
        shape: Shape = NEAR,
    ) -> None:
        self.bucket, self.endpoint_url = bucket, ""
        self._objects = objects or {}
        self._options = ["--bucket", bucket, "--port", str(port), "--until-eof"]
        for name, value in (
            ("--root", root),
            ("--layout", layout),
            ("--access-key", access_key),
            ("--region", region),
        ):
            if value is not None:
                self._options += [name, str(value)]
        self._options += [f"--{n.replace('_', '-')}={v:f}" for n, v in shape._asdict().items()]

    def __enter__(self) -> Self:
        """Start the child; it serves when this returns. Raises RuntimeError if it doesn't."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="s3server-"))
            self._folder = Path(folder)
            sources = self._folder / "objects.json"
            sources.write_text(json.dumps(self._as_json(self._objects)))
            command = [
                sys.executable,
                str(Path(__file__).resolve()),
                f"--objects={sources}",
                *self._options,
            ]
            child = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(child.kill)
            assert child.stdout is not None
            self.endpoint_url = child.stdout.readline().strip()
            if not self.endpoint_url:
                raise RuntimeError(f"the S3 server did not start: {' '.join(command)}")
            self.pid = child.pid
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the child and delete its temporary files."""
        self._stack.close()

    def stats(self) -> dict[str, Any]:
        """Figures since the last reset.

        `requests` and body bytes `sent` by kind (get, head, list, write), `statuses`, `in_flight`
        answers and their `peak`, `faults` met; `cpu_seconds` of the server since its start.
        """
        figures = self._control("stats")
        assert isinstance(figures, dict)
        return figures

    def log(self) -> list[Get]:
        """The GETs of objects since the last reset, in the order of their arrival."""
        return [Get(*entry) for entry in self._control("log")]

    def reset(self) -> None:
        """Set the figures to zero and forget all faults."""
        self._control("reset")

    def shape(self, latency: float = 0.0, per_connection: float = 0.0, total: float = 0.0) -> None:
        """Move the store: see `Shape`."""
        self._control("shape", Shape(latency, per_connection, total)._asdict())

    def fault(self, do: str, **how: Any) -> None:
        """Add a `Fault`. Raises ValueError for one that there is not."""
        self._control("fault", asdict(Fault(do=do, **how)))

    def change(self, objects: Mapping[str, Source | None]) -> None:
        """Add and replace objects; None removes one."""
        self._control("change", self._as_json(objects))

    def _as_json(self, objects: Mapping[str, Source | None]) -> dict[str, Any]:
        return {key: self._source_as_json(source) for key, source in objects.items()}

    def _source_as_json(self, source: Source | None) -> Any:
        match source:
            case Headed(head, size):
                return [size, head.hex()]
            case bytes():
                handle, path = tempfile.mkstemp(dir=self._folder)
                with os.fdopen(handle, "wb") as file:
                    file.write(source)
                return path
            case Path():
                return str(source)
        return source

    def _control(self, action: str, body: Any = None) -> Any:
        host = self.endpoint_url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", f"/_control/{action}", json.dumps(body))
            return json.loads(connection.getresponse().read())


# ------------------------------------------------------------------------------------------- main


def rate(text: str) -> float:
    """Bytes a second meant by `50M` or `1G`; suffixes are powers of 1000, as of network links."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([KMG]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate such as 50M or 1G")
    return float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[match[2]]


def main() -> None:
    """Serve until killed; the first line on stdout is the URL."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder whose files are the objects")
    parser.add_argument(
        "--layout", type=Path, help="layout file whose keys are the objects, of made-up content"
    )
    parser.add_argument(
        "--objects", type=Path, help="JSON file: key -> path of a file, or size of made-up content"
    )
    parser.add_argument("--bucket", default="bucket", help="name of the bucket (default: bucket)")
    parser.add_argument("--access-key", help="access key id that requests must name")
    parser.add_argument("--region", help="region that requests must be signed for")
    parser.add_argument(
        "--port", type=int, default=0, help="port on 127.0.0.1 (default: any free one)"
    )
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each first byte")
    parser.add_argument(
        "--per-connection", type=rate, default=0.0, help="bytes a second, such as 50M"
    )
    parser.add_argument(
        "--total", type=rate, default=0.0, help="bytes a second of all connections, such as 1G"
    )
    parser.add_argument("--until-eof", action="store_true", help="end when stdin does")
    options = parser.parse_args()
    stored: dict[str, Stored] = {}
    if options.layout is not None:
        stored |= {key: made_up(key, size) for key, size in layout_sizes(options.layout).items()}
    if options.root is not None:
        stored |= of_folder(options.root)
    if options.objects is not None:
        stored |= objects_of(json.loads(options.objects.read_text()))
    shape = Shape(options.latency, options.per_connection, options.total)
    sys.setswitchinterval(0.0005)  # so that a listing being built doesn't hold up 32 paced bodies
    server = Server(
        options.port, options.bucket, Bucket(stored), shape, options.access_key, options.region
    )
    print(server.url, flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        if options.until_eof:
            sys.stdin.read()
        else:
            threading.Event().wait()


if __name__ == "__main__":
    main()
