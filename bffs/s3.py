"""S3 as an `ObjectStore`: pages of listings, ranges of objects, tried again where that may help.

A body is read by http.client straight into the caller's buffer, below botocore and urllib3, whose
readers copy once more. A range that breaks off or stalls is resumed at the byte where it stopped;
every response is checked against what was asked (status, range, length, ETag) before a byte of it
counts. Nothing waits for ever: an attempt ends by its time-outs, all attempts together when whoever
reads says so, or with the mount.

`S3Store` may be used from any thread; it holds one boto3 client, whose connection pool keeps
connections warm. One lock guards the presigned URLs and what is counted, another is held while credentials are read
anew.
"""

from __future__ import annotations

import copy
import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar

from botocore import exceptions as boto
from botocore.awsrequest import AWSPreparedRequest, AWSResponse, HeadersDict
from cachetools import TTLCache

from bffs.body import Body
from bffs.client import READ_TIMEOUT, connect
from bffs.errors import BadAnswer, ObjectChanged, StoreBusy, StoreError, StoreUnreachable
from bffs.explain import Where, are_outdated, expected_region, explain, refusal
from bffs.patience import Pauses, Stalls
from bffs.receiver import IS_POSSIBLE, Receiver
from bffs.settings import Settings
from bffs.store import Failure, Interrupt, Listing, ObjectInfo, Traffic
from bffs.units import KIB, MIB

T = TypeVar("T")

log = logging.getLogger(__name__)

URL_LIFE = 1800
"""Seconds for which a presigned URL is used."""

RENEWAL = 10.0
"""Seconds between two readings of credentials that the store refuses."""

LIST_DEADLINE = 20.0
LIST_ATTEMPTS = 4
"""A listing gives up sooner: somebody sits before it, and a wrong endpoint should be named within
seconds."""

LARGEST_PAGE = 16 * MIB
"""Bytes of a listing's page at most; a thousand of the longest keys take a quarter of it."""

_KNOWN_URLS = 4096
_LONGEST_REFUSAL = 64 * KIB
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Stalled(StoreUnreachable):
    """A request has taken much longer than usual and is asked anew, without a pause."""


class GaveWay(StoreUnreachable):
    """A request was broken off by ourselves, for something more urgent; no fault of the store."""


class S3Store:
    """One bucket, read only; an `ObjectStore`. Once `stopped` is set nothing is tried again."""

    def __init__(self, settings: Settings, stopped: threading.Event | None = None) -> None:
        self._settings = settings
        self._bucket = settings.dataset.bucket
        self._place = settings.dataset.endpoint_url or f"AWS S3 in {settings.dataset.region}"
        self._stopped = stopped or threading.Event()
        self._stalls = Stalls(READ_TIMEOUT)
        self._urls: TTLCache[str, str] = TTLCache(_KNOWN_URLS, URL_LIFE, time.time)
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self._renewed = time.monotonic()
        self._traffic = Traffic()
        self._receiver = Receiver() if IS_POSSIBLE else None
        self._client = self._connect()

    def traffic(self) -> Traffic:
        """What has been asked so far."""
        with self._lock:
            return copy.deepcopy(self._traffic)

    def stop(self) -> None:
        """End what is being received and all pauses, and try nothing again."""
        self._stopped.set()
        if self._receiver is not None:
            self._receiver.close()

    def close(self) -> None:
        """Stop, and close all connections."""
        self.stop()
        self._client.close()

    # -- listing -----------------------------------------------------------------------------------------------

    def list(self, prefix: str, *, folders: bool = False) -> Iterator[Listing]:
        """Pages below `prefix`; see `ObjectStore.list`."""
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": prefix}
        if folders:
            request["Delimiter"] = "/"
        seen: set[str] = set()

        def ask() -> Any:
            with self._lock:
                self._traffic.requests["list"] += 1
            page = self._client.list_objects_v2(**request)
            if "IsTruncated" not in page:  # boto3 takes any XML for a page without entries
                raise BadAnswer(f"{self._place} does not answer like S3; check --endpoint-url")
            return page

        while True:
            page = self._try(ask, "", _within(LIST_DEADLINE, LIST_ATTEMPTS))
            yield Listing(
                [_object_info(entry) for entry in page.get("Contents", ())],
                [entry["Prefix"] for entry in page.get("CommonPrefixes", ())],
            )
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken")
            if not token or token in seen:
                raise BadAnswer(f"{self._place} repeats a page of its listing of {prefix!r}")
            seen.add(token)
            request["ContinuationToken"] = token

    def _send_listing(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """Send a request for a page in botocore's place, which reads answers of any size, however
        slowly they come."""
        end = time.monotonic() + LIST_DEADLINE
        request.stream_output = True
        response: AWSResponse = self._client._endpoint.http_session.send(request)
        content = bytearray()
        while piece := response.raw.read1(64 * KIB, decode_content=True):
            content += piece
            if len(content) > LARGEST_PAGE or time.monotonic() > end:
                response.raw.close()
                if len(content) > LARGEST_PAGE:
                    raise BadAnswer(f"{self._place} sends a page of more than {LARGEST_PAGE} bytes")
                raise TimeoutError
        response._content = bytes(content)  # type: ignore[attr-defined]  # as its `content` does
        refused = refusal(response.status_code, response.headers, response.content)
        if expected_region(refused):
            raise refused  # botocore would follow, but reads of objects can't
        return response

    # -- reading -----------------------------------------------------------------------------------------------

    def read_into(
        self,
        obj: ObjectInfo,
        start: int,
        buffer: memoryview,
        advance: Callable[[int], None],
        persist: Callable[[StoreError], bool],
        interrupt: Interrupt,
    ) -> None:
        """Fill `buffer` from `start` on; see `ObjectStore.read_into`."""
        filled = 0
        pauses = Pauses(self._settings.deadline)
        doubted = False

        def resume() -> None:
            nonlocal doubted
            begun = filled

            def progress(n: int) -> None:
                nonlocal filled
                filled = begun + n
                advance(filled)

            try:
                self._read_once(obj, start + begun, buffer[begun:], progress, interrupt)
            except ObjectChanged as error:
                if doubted:
                    raise
                doubted = True  # one answer of another version may be a fault, two are not
                raise BadAnswer(str(error)) from error
            finally:
                if filled > begun:
                    pauses.progressed()

        self._try(resume, obj.key, persist, pauses)

    def _read_once(
        self,
        obj: ObjectInfo,
        start: int,
        buffer: memoryview,
        advance: Callable[[int], None],
        interrupt: Interrupt,
    ) -> None:
        """One GET; `advance(n)` is called each time that more of the buffer, now `n` bytes, is
        valid. Raises Stalled when it takes much longer than usual."""
        stop = start + len(buffer)
        headers: Any = HeadersDict(
            {"Range": f"bytes={start}-{stop - 1}", "If-Match": f'"{obj.etag}"'}
        )
        request: Any = AWSPreparedRequest("GET", self._url(obj.key), headers, None, True)
        history = self._stalls.first_byte
        patience = self._stalls.limit(history)
        request.context = {"read_timeout": patience}
        with self._lock:
            self._traffic.requests["get"] += 1
        begun = time.monotonic()
        raw = None
        try:
            response = self._client._endpoint.http_session.send(request)
            raw = response.raw
            if response.status_code not in (200, 206):
                raise self._refusal(obj.key, response)
            _check_answer(response.headers, obj, start, stop)
            body = Body(raw, buffer, advance)
            interrupt.arm(body.break_off)
            body.begin()
            first_byte = time.monotonic() - begun
            history = self._stalls.step
            patience = self._stalls.limit(history)
            body.finish(self._receiver, patience, hurry=patience < READ_TIMEOUT)
            if body.filled < len(buffer):
                raise BadAnswer(f"{obj.key} broke off at byte {start + body.filled}")
        except BaseException as error:
            if raw is not None:
                raw.close()
            if interrupt.was_called:
                raise GaveWay(f"the request for {obj.key} has given way") from error
            if isinstance(error, TimeoutError | boto.ReadTimeoutError):
                self._stalls.stalled(history, patience)
                raise Stalled(f"{self._place} did not answer in time for {obj.key}") from error
            raise
        finally:
            interrupt.arm(None)
        raw.release_conn()
        self._stalls.went_well(first_byte, body.longest)

    def _url(self, key: str) -> str:
        """A presigned URL of an object, kept for half of its life.

        The client's `get_object` takes 1.4 ms of CPU a request, most of it to build and sign; one
        that is signed already, sent through the same client's connections, takes 0.45 ms.
        """
        with self._lock:
            url: str | None = self._urls.get(key)
        if url is None:
            url = str(
                self._client.generate_presigned_url(
                    "get_object", {"Bucket": self._bucket, "Key": key}, ExpiresIn=2 * URL_LIFE
                )
            )
            with self._lock:
                self._urls[key] = url
        return url

    def _refusal(self, key: str, response: AWSResponse) -> boto.ClientError:
        """An answer that is no content, as the client would raise it."""
        with self._lock:
            self._urls.pop(key, None)
        body = response.raw.read(_LONGEST_REFUSAL)
        return refusal(response.status_code, response.headers, body)

    # -- trying again ------------------------------------------------------------------------------------------

    def _try(
        self,
        call: Callable[[], T],
        key: str,
        persist: Callable[[StoreError], bool],
        pauses: Pauses | None = None,
    ) -> T:
        """The result of `call`, tried again with growing pauses while its errors may pass and
        `persist` says so; and once with credentials read anew."""
        pauses = pauses or Pauses()
        where = Where(self._place, self._bucket, key)
        renewed = False
        while True:
            client = self._client
            try:
                return call()
            except Exception as error:
                if not renewed and are_outdated(error) and self._renew(client):
                    renewed = True
                    continue
                explained, may_pass = explain(error, where)
                if not isinstance(explained, StoreError) or not (may_pass and persist(explained)):
                    if explained is error:
                        raise
                    raise explained from error
                asked = explained.retry_after if isinstance(explained, StoreBusy) else 0.0
                pause = 0.0 if isinstance(explained, Stalled | GaveWay) else pauses.after(asked)
                log.info("%s; trying again in %.1f s", explained, pause)
                with self._lock:
                    self._traffic.retries[type(explained).__name__] += 1
                    if not isinstance(explained, GaveWay):
                        self._traffic.failure = Failure(time.time(), str(explained))
                if self._stopped.wait(pause):
                    raise explained from error

    def _renew(self, client: Any) -> bool:
        """Replace `client`, whose credentials were refused, by one that has read them anew; False
        if that was done a moment ago."""
        with self._renewing:
            if self._client is client:
                if time.monotonic() < self._renewed + RENEWAL:
                    return False
                log.info("reading the credentials anew")
                self._client = self._connect()
                self._renewed = time.monotonic()
        with self._lock:
            self._urls.clear()
        return True

    def _connect(self) -> Any:
        client = connect(self._settings)
        client.meta.events.register("before-send.s3.ListObjectsV2", self._send_listing)
        return client


def _within(seconds: float, attempts: int) -> Callable[[StoreError], bool]:
    """A `persist` for that many attempts within that time from now."""
    end = time.monotonic() + seconds
    failed = itertools.count(1)
    return lambda _: next(failed) < attempts and time.monotonic() < end


def _object_info(entry: Any) -> ObjectInfo:
    """One entry of a listing. Raises BadAnswer for one without the four fields."""
    try:
        mtime = int(datetime.fromisoformat(entry["LastModified"]).timestamp())
        return ObjectInfo(entry["Key"], entry["ETag"].strip('"'), int(entry["Size"]), mtime)
    except (KeyError, ValueError) as error:
        raise BadAnswer(f"the store lists an object without {error}") from error


def _check_answer(headers: Mapping[str, str], obj: ObjectInfo, start: int, stop: int) -> None:
    """Raise unless the answer's headers promise exactly bytes `start` to `stop` of this version.

    A 200 instead of a 206 is accepted for a range that covers the whole object (`rclone serve s3`
    does so).
    """
    if "ETag" not in headers:
        raise BadAnswer(f"{obj.key}: an answer came that is not S3's")
    if headers["ETag"].strip('"') != obj.etag:
        raise ObjectChanged(f"{obj.key} has changed since it was listed")
    if headers.get("Content-Length") != str(stop - start):
        raise BadAnswer(
            f"{obj.key}: {headers.get('Content-Length')} bytes came, {stop - start} were asked for"
        )
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None:
        if start or stop != obj.size:
            raise BadAnswer(f"{obj.key}: the store ignores ranges")
    elif (int(match[1]), int(match[2])) != (start, stop - 1):
        raise BadAnswer(
            f"{obj.key}: bytes {match[1]}-{match[2]} came, {start}-{stop - 1} were asked for"
        )
