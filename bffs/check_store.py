"""Checks of the way to the store, and of being let in: name, connection, TLS, clock, credentials, region, bucket.

Each step stands on the one before; the first that fails ends them.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from bffs import client as clients
from bffs.errors import AccessDenied, BffsError, NoSuchBucket, StoreError
from bffs.explain import SKEW, Where, ahead, expected_region, explain, reason, refusal
from bffs.findings import Finding, as_root, green, red, yellow
from bffs.late import is_exposed
from bffs.precedence import Origin
from bffs.settings import Settings

CONNECT_WAIT = 4.0
_TRIED = 2
"""Addresses of the store that are tried, for so many seconds each."""

CLOCK_NOTED = 60.0
"""Seconds off from which a clock is mentioned; S3 refuses requests from `SKEW` on."""

_UNREACHABLE = 3
_DENIED = 4

_AWS_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"
)  # fmt: skip


def check(settings: Settings, origins: Mapping[str, Origin]) -> Iterator[Finding]:
    """What can be asked of the store without its content. `origins` say where options come from, by key."""
    if settings.offline:
        yield yellow("store", "nothing is asked of it, for this is --offline")
        return
    try:
        client = clients.connect(settings)
    except BffsError as error:
        instead = "unset AWS_PROFILE" if "AWS_PROFILE" in os.environ else "see ~/.aws/config"
        fix = origins["profile"].undone or instead
        yield red("credentials", str(error), fix, error.exit_code)
        return
    with closing(client):
        url = urlsplit(client.meta.endpoint_url)
        for finding in _way(url, client, origins):
            yield finding
            if finding.level == "red":
                return
        yield from _bucket(settings, client, origins)


# -- the way there ----------------------------------------------------------------------------------------------


def _way(url: SplitResult, client: Any, origins: Mapping[str, Origin]) -> Iterator[Finding]:
    """Name, connection, TLS."""
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    proxy = None if proxy_bypass(host) else getproxies().get(url.scheme)
    fix = origins["endpoint_url"].undone or "check the endpoint's name, and the network"
    if proxy:
        via = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host, port = via.hostname or "", via.port or 80
        fix = f"unset {url.scheme}_proxy {url.scheme.upper()}_PROXY"
    what = f"{'the proxy ' if proxy else ''}{host}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        if not _has_network():
            fix = "connect this computer to a network: it has none"
        yield red("name", f"{what} can't be looked up: {error.strerror}", fix, _UNREACHABLE)
        return
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    yield green("name", f"{what} is {', '.join(addresses[:3])}")
    try:
        begin = time.monotonic()
        connection = _connect(addresses[:_TRIED], port)
        taken = time.monotonic() - begin
    except OSError as error:
        why = "nobody answers" if isinstance(error, TimeoutError) else error.strerror
        yield red("connection", f"{what} port {port}: {why}", fix, _UNREACHABLE)
        return
    with connection:
        yield green("connection", f"{what} port {port} answers in {_ms(taken)}")
        if proxy or url.scheme != "https":
            if is_exposed(url.geturl()):
                better = "use https:// if the store offers it"
                yield yellow("TLS", "none: others may see and change what is read", better)
            return
        yield _tls(connection, host, client, fix)


def _connect(addresses: list[str], port: int) -> socket.socket:
    """A connection to the first of the addresses that answers. Raises OSError, of the last."""
    *others, last = addresses
    for address in others:
        with suppress(OSError):
            return socket.create_connection((address, port), CONNECT_WAIT)
    return socket.create_connection((last, port), CONNECT_WAIT)


def _has_network() -> bool:
    """Whether there is an address besides those of this computer itself (proc_pid_fib_trie, if_inet6)."""
    with suppress(OSError):
        if len(Path("/proc/net/route").read_text().splitlines()) > 1:
            return True
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
        return any(line.split()[3] == "00" and line.split()[5] != "lo" for line in lines)
    return True


def _tls(connection: socket.socket, host: str, client: Any, fix: str) -> Finding:
    try:
        with clients.tls_context(client).wrap_socket(connection, server_hostname=host) as secure:
            return green("TLS", f"{secure.version()}, the certificate is {host}'s")
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message
        if "date" in why or "expired" in why or "not yet valid" in why:
            fix = f"see that this computer's clock is right ({time.strftime('%F %T')}): {_set_clock(0)}"
        elif "ostname" not in why:
            fix = "export AWS_CA_BUNDLE=/path/to/the/certificate/of/your/proxy.pem"
        return red("TLS", f"{host} shows no certificate to trust: {why}", fix, _UNREACHABLE)
    except (ssl.SSLError, TimeoutError) as error:
        why = getattr(error, "reason", None) or "no answer in time"
        speaks = f"{host} speaks no TLS ({why}): http:// in place of https://?"
        return red("TLS", speaks, fix, _UNREACHABLE)
    except OSError as error:
        return red("TLS", f"{host} breaks off: {reason(error)}", fix, _UNREACHABLE)


# -- the bucket -------------------------------------------------------------------------------------------------


def _bucket(settings: Settings, client: Any, origins: Mapping[str, Origin]) -> Iterator[Finding]:
    """Clock, credentials, region and bucket, by one bare request."""
    dataset = settings.dataset
    place = dataset.endpoint_url or f"AWS S3 in {dataset.region}"
    where = Where(place, dataset.bucket)
    try:
        answer = clients.ask(client, dataset.bucket)
    except Exception as error:
        explained, _ = explain(error, where)
        if not isinstance(explained, StoreError):
            raise
        fix = _other_credentials(settings, origins, str(explained))
        if not isinstance(explained, AccessDenied):
            fix = origins["endpoint_url"].undone or "check the endpoint and the network"
        name = "credentials" if isinstance(explained, AccessDenied) else "answer"
        yield red(name, str(explained), fix, explained.exit_code)
        return
    headers = {name.lower(): value for name, value in answer.headers.items()}
    clock = _clock(headers, refused=answer.status != 200)
    yield clock
    if answer.status == 200 and b"<ListBucketResult" in answer.body:
        source = clients.credentials_source(client) if settings.sign_requests else ""
        yield green("credentials", _told(source, settings))
        yield green("bucket", f"{dataset.bucket} in {dataset.region}")
        return
    if answer.status == 200:
        seen = f"{place} does not answer like S3"
        yield red("bucket", seen, origins["endpoint_url"].undone or "check --endpoint-url")
        return
    refused = refusal(answer.status, headers, answer.body)
    explained, _ = explain(refused, where)
    if not (clock.level == "red" and isinstance(explained, AccessDenied)):
        yield _refused(explained, expected_region(refused), settings, client, origins)


def _refused(
    explained: Exception,
    region: str,
    settings: Settings,
    client: Any,
    origins: Mapping[str, Origin],
) -> Finding:
    code = explained.exit_code if isinstance(explained, BffsError) else 1
    if isinstance(explained, NoSuchBucket):
        return red("bucket", str(explained), _other_bucket(settings, client, origins), code)
    if region:
        return red("region", str(explained), origins["region"].put_right(region), code)
    if isinstance(explained, AccessDenied):
        fix = _other_credentials(settings, origins, str(explained))
        return red("credentials", str(explained), fix, code)
    return red("bucket", str(explained), "try again later; `bffs -v ls` tries longer", code)


def _clock(headers: Mapping[str, str], *, refused: bool) -> Finding:
    if "date" not in headers:
        return green("clock", "the store does not tell the time")
    off = ahead(headers)
    minutes = f"{abs(off) / 60:.0f} min {'ahead of' if off > 0 else 'behind'} the store's"
    if abs(off) > SKEW and refused:
        seen = f"this computer's clock is {minutes}: S3 refuses such requests"
        return red("clock", seen, _set_clock(off), _DENIED)
    if abs(off) > CLOCK_NOTED:
        return yellow("clock", f"this computer's clock is {minutes}", _set_clock(off))
    return green("clock", f"within {max(1, round(abs(off)))} s of the store's")


def _set_clock(off: float) -> str:
    """The command that sets the clock, `off` seconds ahead, right."""
    if os.path.isdir("/run/systemd/system"):
        return as_root("timedatectl set-ntp true")
    right = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() - off))
    return as_root(f"date -u -s '{right}'")


def _told(source: str, settings: Settings) -> str:
    """Where credentials come from, for people."""
    match source:
        case "":
            return "none: the bucket is public"
        case "explicit":
            return f"the published key of {settings.dataset.name}"
        case "env":
            return "AWS_ACCESS_KEY_ID in the environment"
    profile = settings.aws_profile or os.environ.get("AWS_PROFILE")
    return f"from {source.replace('-', ' ')}" + (f", profile {profile}" if profile else "")


def _other_credentials(settings: Settings, origins: Mapping[str, Origin], said: str) -> str:
    """How to be let in: what was tried and works, or where to look. `said` is the refusal."""
    given = [name for name in _AWS_VARIABLES if name in os.environ]
    if _is_let_in(replace(settings, sign_requests=True, aws_profile=None), published=True):
        if not settings.sign_requests:
            return origins["no_sign_request"].undone
        return origins["profile"].undone if settings.aws_profile else f"unset {' '.join(given)}"
    if settings.sign_requests and _is_let_in(replace(settings, sign_requests=False)):
        return origins["no_sign_request"].put_right("yes")
    if not settings.sign_requests and _is_let_in(replace(settings, sign_requests=True)):
        return origins["no_sign_request"].undone
    if re.search(r"expired|Expired|SSO|token", said):
        profile = settings.aws_profile or os.environ.get("AWS_PROFILE")
        return "aws sso login" + (f" --profile {profile}" if profile else "")
    return "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... of this bucket, or --profile"


def _is_let_in(settings: Settings, *, published: bool = False) -> bool:
    if published and not settings.dataset.access_key_id:
        return False
    with suppress(Exception), closing(clients.connect(settings, published=published)) as client:
        return clients.ask(client, settings.dataset.bucket).status == 200
    return False


def _other_bucket(settings: Settings, client: Any, origins: Mapping[str, Origin]) -> str:
    """How to name a bucket that there is."""
    names = clients.buckets(client)
    close = difflib.get_close_matches(settings.dataset.bucket, names, n=1)
    if close:
        return origins["bucket"].put_right(close[0])
    if fix := origins["bucket"].undone:
        return fix
    return f"--bucket with one of {', '.join(names[:5])}" if names else "check --bucket"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.001 else "less than 1 ms"
