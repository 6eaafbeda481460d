"""What went wrong with the store, in our words: botocore's, urllib3's, TLS's and the system's errors
as `StoreError`s, and whether trying again may help. Pure functions.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import urllib3.exceptions
from botocore import exceptions as boto

from bffs.errors import (
    AccessDenied,
    BadAnswer,
    NoSuchBucket,
    ObjectChanged,
    StoreBusy,
    StoreError,
    StoreUnreachable,
    UsageError,
)

SKEW = 900.0
"""Seconds that a clock may be wrong by, as S3 sees it."""

_DENIED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
}
_ELSEWHERE = {
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "PermanentRedirect",
    "TemporaryRedirect",
    "IllegalLocationConstraintException",
}
"""Codes of answers that may name the region that the bucket is in."""
_EXPECTING = re.compile(r"expecting '([a-z0-9-]+)'")
_OUTDATED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}

UNUSABLE_CREDENTIALS = (
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.SSOError,
    boto.TokenRetrievalError,
)
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"}


class Where(NamedTuple):
    """What was asked: the store as messages name it, the bucket, and the key of an object or ""."""

    place: str
    bucket: str
    key: str = ""

    @property
    def of_key(self) -> str:
        """For messages."""
        return f" for {self.key}" if self.key else ""


def explain(error: Exception, where: Where) -> tuple[Exception, bool]:
    """`error` as one of ours, and whether trying again may help."""
    place, of_key = where.place, where.of_key
    match error:
        case BadAnswer() | StoreUnreachable():
            return error, True
        case StoreError():
            return error, False
        case boto.ClientError():
            return _explain_refusal(error, where)
        case boto.NoCredentialsError():
            return AccessDenied(
                f"no credentials for bucket {where.bucket}: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or use --profile, or --no-sign-request for a public bucket"
            ), False
        case _ if isinstance(error, UNUSABLE_CREDENTIALS):
            return AccessDenied(f"the AWS credentials can't be used: {reason(error)}"), False
        case boto.ProxyConnectionError():
            return StoreUnreachable(
                f"the proxy on the way to {place} does not answer: {reason(error)}"
            ), True
        case boto.SSLError() | ssl.SSLError() | urllib3.exceptions.SSLError():
            # For a reader even a wrong certificate may pass: a portal that wants a login first.
            lasts = any(_is_no_tls(cause) for cause in causes(error)) and not where.key
            return StoreUnreachable(f"no secure connection to {place}: {reason(error)}"), not lasts
        case boto.ConnectTimeoutError() | boto.ReadTimeoutError() | TimeoutError():
            return StoreUnreachable(f"{place} did not answer in time{of_key}"), True
        case (
            boto.HTTPClientError()
            | boto.ConnectionError()
            | urllib3.exceptions.HTTPError()
            | http.client.HTTPException()
            | OSError()
        ):
            if any(isinstance(cause, socket.gaierror) for cause in causes(error)):
                return StoreUnreachable(
                    f"the address of {place} can't be looked up{of_key}: {reason(error)}"
                ), True
            return StoreUnreachable(f"{place} can't be reached{of_key}: {reason(error)}"), True
        case boto.ParamValidationError():
            return UsageError(f"{where.bucket!r} or {where.key!r} is no name that S3 allows"), False
        case boto.BotoCoreError():
            return BadAnswer(f"{place} sent what S3 does not{of_key}: {reason(error)}"), True
    return error, False


def are_outdated(error: Exception) -> bool:
    """Whether credentials read anew, or a new signature, may mend it."""
    if not isinstance(error, boto.ClientError):
        return False
    said = error.response.get("Error", {})
    return said.get("Code") in _OUTDATED or "expired" in str(said.get("Message", ""))


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> boto.ClientError:
    """An answer that is no content, as botocore would raise it."""
    said = {
        name: text[1].decode(errors="replace") if (text := _element(name, body)) else ""
        for name in ("Code", "Message", "Region")
    }
    answer: Any = {
        "Error": said | {"Code": said["Code"] or str(status)},
        "ResponseMetadata": {
            "HTTPStatusCode": status,
            "HTTPHeaders": {name.lower(): value for name, value in headers.items()},
        },
    }
    return boto.ClientError(answer, "GetObject")


def expected_region(error: boto.ClientError) -> str:
    """The region that the store says the bucket is in, if it refuses another; else ""."""
    said = error.response.get("Error", {})
    if said.get("Code") not in _ELSEWHERE:
        return ""
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    expecting = _EXPECTING.search(str(said.get("Message", "")))
    return str(
        said.get("Region")
        or headers.get("x-amz-bucket-region")
        or (expecting[1] if expecting else "")
    )


def reason(error: BaseException) -> str:
    """The innermost cause of `error`, on one line."""
    *_, innermost = causes(error)
    text = " ".join(str(innermost).split())
    return text or type(innermost).__name__


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and what caused it, the innermost last."""
    while True:
        yield error
        inner = error.__cause__ or error.__context__ or getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            return
        error = inner


def _explain_refusal(error: boto.ClientError, where: Where) -> tuple[Exception, bool]:
    """What an HTTP error status means; see `explain`."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    headers: Mapping[str, str] = metadata.get("HTTPHeaders", {})
    if code == "NoSuchBucket":
        return NoSuchBucket(f"{where.place} has no bucket {where.bucket}; check --bucket"), False
    if code == "RequestTimeTooSkewed" or (status == 403 and abs(ahead(headers)) > SKEW):
        return AccessDenied(
            f"{where.place} refuses requests of this time: set this computer's clock"
        ), False
    if region := expected_region(error):
        return AccessDenied(
            f"bucket {where.bucket} is in region {region}: use --region {region}"
        ), False
    if code in _DENIED or status in (401, 403):
        return AccessDenied(
            f"{where.place} refuses access to bucket {where.bucket} ({code or status}); check the "
            "credentials, or try --no-sign-request for a public bucket"
        ), False
    if where.key and status in (404, 412, 416):
        return ObjectChanged(
            f"{where.key} is no longer the object that was listed ({code or status})"
        ), False
    if status in (429, 503) or code in _BUSY:
        return StoreBusy(
            f"{where.place} is too busy{where.of_key} ({code or status})", _retry_after(headers)
        ), True
    may_pass = status >= 500 or status == 408 or code == "RequestTimeout"
    return StoreError(f"{where.place} answers {code or status}{where.of_key}"), may_pass


def _element(name: str, body: bytes) -> re.Match[bytes] | None:
    return re.search(rb"<%b>([^<]*)</" % name.encode(), body)


def ahead(headers: Mapping[str, str]) -> float:
    """Seconds by which this computer's clock is ahead of the store's; names of headers in lower case."""
    try:
        return time.time() - email.utils.parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return 0.0


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the store asks to wait for, 0 if it doesn't."""
    text = headers.get("retry-after", "")
    try:
        if text.isdecimal():
            return float(text[:9])
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _is_no_tls(error: BaseException) -> bool:
    """Whether who answers speaks no TLS, or isn't who it should be."""
    return isinstance(error, ssl.SSLCertVerificationError) or (
        isinstance(error, ssl.SSLError) and error.reason in _NO_TLS
    )
