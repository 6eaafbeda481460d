"""The only import of boto3: sessions, credentials, retries, and S3's errors in our words.

A body is read by http.client straight into the caller's buffer, below botocore and urllib3, whose
readers copy once more. A range that breaks off is resumed at the byte where it broke; every
response is checked against what was asked (status, range, length, ETag) before a byte of it counts.
Each call ends: an attempt by its time-outs, all attempts together by a deadline.

`S3Store` may be used from any thread; it holds one boto3 client, whose connection pool keeps
connections warm. Its lock guards the presigned URLs.
"""

from __future__ import annotations

import http.client
import logging
import math
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import boto3
import botocore.session
import urllib3.exceptions
from botocore import UNSIGNED
from botocore import exceptions as boto
from botocore.awsrequest import AWSPreparedRequest, HeadersDict
from botocore.config import Config
from cachetools import TTLCache

from bffs.errors import (
    AccessDenied,
    BadAnswer,
    NoSuchBucket,
    ObjectChanged,
    StoreError,
    StoreUnreachable,
    UsageError,
)
from bffs.receiver import IS_POSSIBLE, STEP, Receiver
from bffs.settings import Settings
from bffs.store import Listing, ObjectInfo
from bffs.units import KIB

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 20.0
"""Seconds without a single byte after which an attempt is given up."""

READ_DEADLINE = 300.0
"""Seconds of trying after which a read fails for good."""

URL_LIFE = 1800
"""Seconds for which a presigned URL is used."""

_KNOWN_URLS = 4096
_LONGEST_REFUSAL = 64 * KIB

LIST_DEADLINE = 20.0
LIST_ATTEMPTS = 4
"""A listing gives up sooner: somebody sits before it, and a wrong endpoint should be named within
seconds."""

_DENIED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
}
_UNUSABLE_CREDENTIALS = (
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.SSOError,
    boto.TokenRetrievalError,
)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class S3Store:
    """One bucket, read only; an `ObjectStore`."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = settings.dataset.bucket
        self._place = settings.dataset.endpoint_url or f"AWS S3 in {settings.dataset.region}"
        self._client = _client(settings)
        self._urls: TTLCache[str, str] = TTLCache(_KNOWN_URLS, URL_LIFE)
        self._lock = threading.Lock()
        self._receiver = Receiver() if IS_POSSIBLE else None

    def close(self) -> None:
        """Close all connections, and end what is being received."""
        if self._receiver is not None:
            self._receiver.close()
        self._client.close()

    def list(self, prefix: str, *, folders: bool = False) -> Iterator[Listing]:
        """Pages below `prefix`; see `ObjectStore.list`."""
        request: dict[str, Any] = {"Bucket": self._bucket, "Prefix": prefix}
        if folders:
            request["Delimiter"] = "/"
        seen: set[str] = set()

        def ask() -> Any:
            page = self._client.list_objects_v2(**request)
            if "IsTruncated" not in page:  # boto3 takes any XML for a page without entries
                raise BadAnswer(f"{self._place} does not answer like S3; check --endpoint-url")
            return page

        while True:
            page = self._retry(ask, "", LIST_DEADLINE, LIST_ATTEMPTS)
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

    def read_into(
        self, obj: ObjectInfo, start: int, buffer: memoryview, advance: Callable[[int], None]
    ) -> None:
        """Fill `buffer` from `start` on; see `ObjectStore.read_into`."""
        filled = 0

        def resume() -> None:
            begun = filled

            def on(n: int) -> None:
                nonlocal filled
                filled = begun + n
                advance(filled)

            self._read_once(obj, start + begun, buffer[begun:], on)

        self._retry(resume, obj.key, READ_DEADLINE)

    def _read_once(
        self, obj: ObjectInfo, start: int, buffer: memoryview, advance: Callable[[int], None]
    ) -> None:
        """One GET; `advance(n)` is called each time that more of the buffer, now `n` bytes, is
        valid."""
        stop = start + len(buffer)
        headers: Any = HeadersDict(
            {"Range": f"bytes={start}-{stop - 1}", "If-Match": f'"{obj.etag}"'}
        )
        request = AWSPreparedRequest("GET", self._url(obj.key), headers, None, True)
        response = self._client._endpoint.http_session.send(request)
        raw = response.raw
        try:
            if response.status_code not in (200, 206):
                raise self._refusal(obj.key, response.status_code, raw.read(_LONGEST_REFUSAL))
            _check_answer(response.headers, obj, start, stop)
            filled = self._receive(raw, buffer, advance)
            if filled < len(buffer):
                raise BadAnswer(f"{obj.key} broke off at byte {start + filled}")
        except BaseException:
            raw.close()
            raise
        raw.release_conn()

    def _receive(self, raw: Any, buffer: memoryview, advance: Callable[[int], None]) -> int:
        """Fill `buffer` with the body of urllib3's response `raw`; how many bytes there were.

        http.client's reader is used below urllib3's and botocore's, which copy once more. Without
        TLS even that is left out, and the rest is left to the `Receiver`.
        """
        stream = getattr(raw, "_fp", None)
        if not isinstance(stream, http.client.HTTPResponse):
            stream = raw
        sock = getattr(getattr(raw, "connection", None), "sock", None)
        filled = 0
        receiver = self._receiver
        if (
            receiver is not None
            and type(sock) is socket.socket
            and stream is not raw
            and not stream.chunked
        ):
            n = min(len(stream.fp.peek(1)), len(buffer))  # what came along with the headers
            while filled < n:
                filled += stream.readinto(buffer[filled:n])
            advance(filled)
            if filled < len(buffer):
                filled = receiver.receive(sock, buffer, filled, advance, READ_TIMEOUT)
                sock.settimeout(READ_TIMEOUT)
            if filled == len(buffer):
                stream.length = 0
                stream.close()
            return filled
        while filled < len(buffer):
            n = stream.readinto(buffer[filled : filled + STEP])
            if not n:
                break
            filled += n
            advance(filled)
        return filled

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

    def _refusal(self, key: str, status: int, body: bytes) -> boto.ClientError:
        """An answer that is no content, as the client would raise it."""
        with self._lock:
            self._urls.pop(key, None)
        code = re.search(rb"<Code>([^<]*)</Code>", body)
        answer: Any = {
            "Error": {"Code": code[1].decode(errors="replace") if code else str(status)},
            "ResponseMetadata": {"HTTPStatusCode": status},
        }
        return boto.ClientError(answer, "GetObject")

    def _retry(
        self, call: Callable[[], Any], key: str, deadline: float, attempts: float = math.inf
    ) -> Any:
        """The result of `call`, tried again with growing pauses while its errors may pass.

        Gives up after `deadline` seconds or `attempts` tries, whichever comes first.
        """
        end = time.monotonic() + deadline
        attempt = 1
        while True:
            try:
                return call()
            except Exception as error:
                explained, may_pass = self._explain(error, key)
                pause = min(0.1 * 2**attempt, 10.0) * random.uniform(0.6, 1.0)
                if not may_pass or attempt >= attempts or time.monotonic() + pause > end:
                    if explained is error:
                        raise
                    raise explained from error
                log.info("%s; trying again in %.1f s", explained, pause)
            time.sleep(pause)
            attempt += 1

    def _explain(self, error: Exception, key: str) -> tuple[Exception, bool]:
        """`error` as one of ours, and whether trying again may help."""
        of_key = f" for {key}" if key else ""
        match error:
            case BadAnswer():
                return error, True
            case StoreError():
                return error, False
            case boto.ClientError():
                return self._explain_refusal(error, key)
            case boto.NoCredentialsError():
                return AccessDenied(
                    f"no credentials for bucket {self._bucket}: set AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, or use --profile, or --no-sign-request for a public bucket"
                ), False
            case _ if isinstance(error, _UNUSABLE_CREDENTIALS):
                return AccessDenied(f"the AWS credentials can't be used: {_reason(error)}"), False
            case boto.SSLError() | ssl.SSLError() | urllib3.exceptions.SSLError():
                return StoreUnreachable(
                    f"no secure connection to {self._place}: {_reason(error)}"
                ), False
            case boto.ProxyConnectionError():
                return StoreUnreachable(
                    f"the proxy on the way to {self._place} does not answer"
                ), True
            case boto.ConnectTimeoutError() | boto.ReadTimeoutError() | TimeoutError():
                return StoreUnreachable(f"{self._place} did not answer in time{of_key}"), True
            case (
                boto.HTTPClientError()
                | boto.ConnectionError()
                | urllib3.exceptions.HTTPError()
                | http.client.HTTPException()
                | OSError()
            ):
                return StoreUnreachable(
                    f"{self._place} can't be reached{of_key}: {_reason(error)}"
                ), True
            case boto.ParamValidationError():
                return UsageError(f"{self._bucket!r} or {key!r} is no name that S3 allows"), False
            case boto.BotoCoreError():
                return BadAnswer(
                    f"{self._place} sent what S3 does not{of_key}: {_reason(error)}"
                ), True
        return error, False

    def _explain_refusal(self, error: boto.ClientError, key: str) -> tuple[Exception, bool]:
        """What an HTTP error status means; see `_explain`."""
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code == "NoSuchBucket":
            return NoSuchBucket(
                f"{self._place} has no bucket {self._bucket}; check --bucket"
            ), False
        if code == "RequestTimeTooSkewed":
            return AccessDenied(
                f"{self._place} refuses requests of this time: set this computer's clock"
            ), False
        if code in _DENIED or status in (401, 403):
            return AccessDenied(
                f"{self._place} refuses access to bucket {self._bucket} ({code or status}); check the "
                "credentials, or try --no-sign-request for a public bucket"
            ), False
        if key and status in (404, 412, 416):
            return ObjectChanged(
                f"{key} is no longer the object that was listed ({code or status})"
            ), False
        may_pass = status >= 500 or status in (408, 429) or code in ("SlowDown", "RequestTimeout")
        what = f" for {key}" if key else ""
        return StoreError(f"{self._place} answers {code or status}{what}"), may_pass


def _client(settings: Settings) -> Any:
    """A boto3 client with the credentials that `settings` and the environment call for.

    The dataset's published key is used unless the caller names credentials explicitly (AWS
    environment variables or a profile): a default key in ~/.aws is for some other store.
    """
    dataset = settings.dataset
    core = botocore.session.Session(profile=settings.aws_profile)
    factory = core.get_component("response_parser_factory")
    factory.set_parser_defaults(
        timestamp_parser=str
    )  # dates of 53,926 keys: dateutil needs 4 s for them
    try:
        profile = core.get_config_variable("profile")
        explicit = profile or "AWS_ACCESS_KEY_ID" in os.environ
        session = boto3.Session(botocore_session=core, region_name=dataset.region)
        if dataset.endpoint_url is not None:
            # An endpoint outside AWS never takes the keys of the machine that we happen to run on.
            for provider in ("container-role", "iam-role"):
                core.get_component("credential_provider").remove(provider)
    except boto.ProfileNotFound as error:
        raise UsageError(f"{error}; see ~/.aws/config") from error
    except boto.BotoCoreError as error:
        raise UsageError(f"the AWS configuration can't be used: {_reason(error)}") from error
    keys: dict[str, Any] = {}
    if not explicit and dataset.access_key_id and dataset.secret_access_key:
        keys = {
            "aws_access_key_id": dataset.access_key_id,
            "aws_secret_access_key": dataset.secret_access_key,
        }
    try:
        return session.client(
            "s3",
            endpoint_url=dataset.endpoint_url,
            config=Config(
                signature_version="s3v4" if settings.sign_requests else UNSIGNED,
                s3={"addressing_style": "path" if dataset.endpoint_url else "auto"},
                max_pool_connections=settings.max_connections + 16,
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                tcp_keepalive=True,
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
            **keys,
        )
    except _UNUSABLE_CREDENTIALS as error:
        raise AccessDenied(f"the AWS credentials can't be used: {_reason(error)}") from error
    except (ValueError, boto.BotoCoreError) as error:
        raise UsageError(f"can't use endpoint {dataset.endpoint_url}: {_reason(error)}") from error


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


def _reason(error: BaseException) -> str:
    """The innermost cause of `error`, on one line."""
    while (
        inner := error.__cause__ or error.__context__ or getattr(error, "reason", None)
    ) and isinstance(inner, BaseException):
        error = inner
    text = " ".join(str(error).split())
    return text or type(error).__name__
