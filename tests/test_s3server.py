"""The test server itself, over real sockets: answers, exact bytes, pace, figures, each fault."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.response import StreamingBody
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import until
from tests.s3server import (
    LAYOUT,
    TOTAL_BYTES,
    Bucket,
    S3Server,
    Shape,
    Source,
    byte_range,
    layout_sizes,
    made_up,
    pattern,
)

BIG = 5_000_000_000
TEXT = b"0123456789" * 10_000


def client_of(server: S3Server, *, key: str | None = None) -> Any:
    """A plain boto3 client without retries; unsigned unless `key` is an access key id."""
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=key and "secret",
        config=Config(
            signature_version="s3v4" if key else UNSIGNED,
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            read_timeout=10,
            max_pool_connections=40,
        ),
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server with a file, some bytes and a made-up object."""
    file = tmp_path_factory.mktemp("objects") / "real.tif"
    file.write_bytes(random.Random(1).randbytes(3_000_001))
    objects: dict[str, Source] = {
        "1/real.tif": file,
        "1/text": TEXT,
        "2/big.tif": BIG,
        "1/": b"",
        "odd é &<+%": b"odd",
    }
    with S3Server(objects) as server:
        yield server


@pytest.fixture
def server(running: S3Server) -> S3Server:
    """The server, near and without faults."""
    running.reset()
    running.shape()
    return running


def body(answer: Any) -> bytes:
    """All bytes of a GetObject answer."""
    stream = answer["Body"]
    assert isinstance(stream, StreamingBody)
    return bytes(stream.read())


def connect(server: S3Server) -> http.client.HTTPConnection:
    """A connection below any client library."""
    return http.client.HTTPConnection(server.endpoint_url.removeprefix("http://"), timeout=10)


def raw_get(server: S3Server, key: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """One GET on a connection of its own."""
    with contextlib.closing(connect(server)) as connection:
        connection.request("GET", f"/bucket/{key}", headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()


def code_of(call: Any) -> tuple[int, str]:
    """Status and code of the S3 error that `call` raises."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call()
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def test_whole_objects_and_their_etags(server: S3Server) -> None:
    s3 = client_of(server)
    answer = s3.get_object(Bucket="bucket", Key="1/text")
    assert body(answer) == TEXT
    assert answer["ETag"] == f'"{hashlib.md5(TEXT).hexdigest()}"'
    real = s3.get_object(Bucket="bucket", Key="1/real.tif")
    assert body(real) == random.Random(1).randbytes(3_000_001)
    head = s3.head_object(Bucket="bucket", Key="2/big.tif")
    assert head["ContentLength"] == BIG
    assert head["ETag"] == s3.list_objects_v2(Bucket="bucket", Prefix="2/")["Contents"][0]["ETag"]
    assert body(s3.get_object(Bucket="bucket", Key="odd é &<+%")) == b"odd"


def test_an_empty_object_comes_at_once(server: S3Server) -> None:
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        assert raw_get(server, "1/")[1] == b""
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.1  # a head held back for a body would take 200 ms


@given(start=st.integers(0, BIG - 1), size=st.integers(1, 100_000))
def test_ranges_of_made_up_objects(running: S3Server, start: int, size: int) -> None:
    stop = min(BIG, start + size)
    answer, data = raw_get(running, "2/big.tif", Range=f"bytes={start}-{stop - 1}")
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{BIG}"
    assert data == pattern("2/big.tif", start, stop)


def test_pattern_is_one_content_however_it_is_cut_and_another_for_each_key() -> None:
    whole = pattern("key", 16_700_000, 16_900_000)  # over the seam of the period
    assert whole == pattern("key", 16_700_000, 16_800_001) + pattern("key", 16_800_001, 16_900_000)
    assert len(whole) == 200_000
    assert whole != pattern("other", 16_700_000, 16_900_000)
    assert pattern("key", 0, 4096) != pattern("key", 1 << 24, (1 << 24) + 4096)
    assert len(pattern("key", 5, 40_000_005)) == 40_000_000


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=90-", (90, 100)),
        ("bytes=-5", (95, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=50-1000", (50, 100)),
        ("bytes=5-2", None),
        ("bytes=0-1,5-6", None),
        ("bytes=-", None),
        ("furlongs=1-2", None),
        (None, None),
    ],
)
def test_range_headers(header: str | None, span: tuple[int, int] | None) -> None:
    assert byte_range(header, 100) == span


def test_refusals(server: S3Server) -> None:
    s3 = client_of(server)
    get = s3.get_object
    assert code_of(lambda: get(Bucket="bucket", Key="none")) == (404, "NoSuchKey")
    assert code_of(lambda: get(Bucket="other", Key="none")) == (404, "NoSuchBucket")
    assert code_of(lambda: s3.list_objects_v2(Bucket="other")) == (404, "NoSuchBucket")
    late = {"Range": f"bytes={len(TEXT)}-"}
    assert code_of(lambda: get(Bucket="bucket", Key="1/text", **late)) == (416, "InvalidRange")
    assert code_of(lambda: get(Bucket="bucket", Key="1/text", IfMatch='"x"')) == (
        412,
        "PreconditionFailed",
    )
    put = code_of(lambda: s3.put_object(Bucket="bucket", Key="1/text", Body=b"x"))
    assert put == (405, "MethodNotAllowed")
    assert server.stats()["requests"] == {"get": 4, "list": 1, "write": 1}
    etag = s3.head_object(Bucket="bucket", Key="1/text")["ETag"]
    assert body(get(Bucket="bucket", Key="1/text", IfMatch=etag)) == TEXT


def test_access_key() -> None:
    with S3Server({"a": b"x"}, access_key="right") as server:
        keys = {None: (403, "AccessDenied"), "wrong": (403, "InvalidAccessKeyId")}
        for key, refusal in keys.items():
            s3 = client_of(server, key=key)
            assert code_of(lambda s3=s3: s3.get_object(Bucket="bucket", Key="a")) == refusal
        assert body(client_of(server, key="right").get_object(Bucket="bucket", Key="a")) == b"x"


def test_a_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "7" / "deep").mkdir(parents=True)
    (tmp_path / "7" / "deep" / "a").write_bytes(b"aa")
    (tmp_path / "7" / "b").write_bytes(b"b")
    with S3Server(root=tmp_path) as server:
        listed = client_of(server).list_objects_v2(Bucket="bucket")["Contents"]
    assert [(entry["Key"], entry["Size"]) for entry in listed] == [("7/b", 1), ("7/deep/a", 2)]


# ---------------------------------------------------------------------------------------- listing


def test_layout_is_the_real_dataset() -> None:
    sizes = layout_sizes(LAYOUT)
    slices = [key for key in sizes if key.endswith(".tif")]
    assert (len(sizes), len(slices)) == (53_926, 53_705)
    assert sum(sizes.values()) == TOTAL_BYTES
    assert sum(1 for size in sizes.values() if not size) == 116
    assert sum(1 for key in sizes if key.endswith(".swc")) == 105
    late = "TEST_DATA_SET/665856925/reconstruction_0_"
    assert min(key[-8:] for key in slices if key.startswith(late)) == "0007.tif"


def test_the_whole_layout_is_listed_in_pages() -> None:
    with S3Server(layout=LAYOUT) as server:
        keys: dict[str, int] = {}
        page, token = "", ""
        while "<IsTruncated>false" not in page:
            page = raw_get(server, f"?list-type=2&continuation-token={token}")[1].decode()
            some = re.findall("<Key>([^<]*)</Key>.*?<Size>([0-9]*)</Size>", page)
            assert f"<KeyCount>{len(some)}</KeyCount>" in page
            keys |= {key: int(size) for key, size in some}
            token = page.partition("<NextContinuationToken>")[2].partition("<")[0]
        assert keys == layout_sizes(LAYOUT)
        root = client_of(server).list_objects_v2(Bucket="bucket", Delimiter="/")
        assert len(root["CommonPrefixes"]) == 106
        assert not root["IsTruncated"]
        assert server.stats()["requests"] == {"list": 55}


_NAMES = st.lists(st.text("ab/é", min_size=1, max_size=6), unique=True, max_size=30)


@given(
    names=_NAMES,
    prefix=st.text("ab/", max_size=2),
    delimiter=st.sampled_from(["", "/"]),
    limit=st.integers(1, 5),
)
def test_pages_add_up_to_a_plain_listing(
    names: list[str], prefix: str, delimiter: str, limit: int
) -> None:
    bucket = Bucket({name: made_up(name, 1) for name in names})
    keys, folders, after = [], [], ""
    while True:
        some, more, last = bucket.page(prefix, delimiter, after, limit)
        assert 0 < len(some) + len(more) <= limit or last is None
        keys += some
        folders += more
        if last is None:
            break
        after = last
    below = [name for name in sorted(names) if name.startswith(prefix)]
    inner = [name for name in below if delimiter and delimiter in name[len(prefix) :]]
    assert keys == [name for name in below if name not in inner]
    assert folders == sorted(
        {prefix + name[len(prefix) :].partition("/")[0] + "/" for name in inner}
    )


def test_start_after_encoding_and_version_1(server: S3Server) -> None:
    s3 = client_of(server)
    after = s3.list_objects_v2(Bucket="bucket", StartAfter="1/text")
    assert [entry["Key"] for entry in after["Contents"]] == ["2/big.tif", "odd é &<+%"]
    old = s3.list_objects(Bucket="bucket", MaxKeys=2)
    assert [entry["Key"] for entry in old["Contents"]] == ["1/", "1/real.tif"]
    rest = s3.list_objects(Bucket="bucket", Marker=old["NextMarker"], Delimiter="/")
    assert [entry["Key"] for entry in rest["Contents"]] == ["odd é &<+%"]
    assert [entry["Prefix"] for entry in rest["CommonPrefixes"]] == ["1/", "2/"]
    bad = code_of(lambda: s3.list_objects_v2(Bucket="bucket", ContinuationToken="é"))
    assert bad == (400, "InvalidArgument")


def test_objects_can_change(server: S3Server) -> None:
    s3 = client_of(server)
    server.change({"3/new": b"new"})
    etag = s3.head_object(Bucket="bucket", Key="3/new")["ETag"]
    server.change({"3/new": b"newer"})
    stale = code_of(lambda: s3.get_object(Bucket="bucket", Key="3/new", IfMatch=etag))
    assert stale == (412, "PreconditionFailed")
    server.change({"3/new": None})
    assert code_of(lambda: s3.get_object(Bucket="bucket", Key="3/new")) == (404, "NoSuchKey")


# -------------------------------------------------------------------------------- pace and figures


def seconds_for(server: S3Server, size: int, connections: int) -> float:
    """Time for `connections` GETs of `size` bytes each at once."""
    span = f"bytes=0-{size - 1}"
    began = time.monotonic()
    with ThreadPoolExecutor(connections) as pool:
        for future in [
            pool.submit(raw_get, server, "2/big.tif", Range=span) for _ in range(connections)
        ]:
            assert len(future.result()[1]) == size
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("shape", "connections", "size", "expected"),
    [
        (Shape(latency=0.2), 4, 1000, 0.2),
        (Shape(per_connection=10e6), 4, 4_000_000, 0.4),
        (Shape(total=40e6), 8, 2_000_000, 0.4),
        (Shape(latency=0.1, per_connection=10e6, total=40e6), 8, 2_000_000, 0.5),
    ],
)
def test_pace(server: S3Server, shape: Shape, connections: int, size: int, expected: float) -> None:
    server.shape(*shape)
    best = min(seconds_for(server, size, connections) for _ in range(3))
    assert best >= expected * 0.95
    # A busy machine may be late, by so much only if the shape itself were wrong.
    assert best <= expected * 1.05 + 0.25


def test_connections_share_the_line_evenly(server: S3Server) -> None:
    server.shape(total=20e6)
    ends: list[float] = []

    def get() -> None:
        raw_get(server, "2/big.tif", Range="bytes=0-3999999")
        ends.append(time.monotonic())

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(get)
    assert len(ends) == 8
    assert min(ends) - began > 0.5 * (max(ends) - began)


def test_figures(server: S3Server) -> None:
    server.shape(latency=0.05)
    began = time.monotonic()
    seconds_for(server, 5000, 6)
    client_of(server).head_object(Bucket="bucket", Key="1/text")
    while (figures := server.stats())["in_flight"]:  # the last byte arrives before it is counted
        assert time.monotonic() - began < 10
    assert figures["requests"] == {"get": 6, "head": 1}
    assert figures["statuses"] == {"206": 6, "200": 1}
    assert figures["sent"] == {"get": 30_000}
    assert figures["peak"] == 6
    log = server.log()
    assert [(get.key, get.start, get.stop, get.status) for get in log] == [
        ("2/big.tif", 0, 5000, 206)
    ] * 6
    assert all(began <= get.time <= time.monotonic() for get in log)
    server.reset()
    assert server.stats()["requests"] == {}
    assert server.log() == []


# ----------------------------------------------------------------------------------------- faults


def test_status_and_how_faults_are_aimed(server: S3Server) -> None:
    server.fault("status", value=503, kind="get", key="text", nth=2, times=2)
    answers = [raw_get(server, "1/text")[0].status for _ in range(5)]
    assert answers == [200, 503, 503, 200, 200]
    assert raw_get(server, "1/real.tif")[0].status == 200
    assert client_of(server).head_object(Bucket="bucket", Key="1/text")
    assert server.stats()["faults"] == 2


def test_chance_repeats_itself_with_its_seed(server: S3Server) -> None:
    runs = []
    for _ in range(2):
        server.reset()
        server.fault("status", value=500, probability=0.5, seed=7)
        runs.append([raw_get(server, "1/text")[0].status for _ in range(20)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == {200, 500}


def test_no_such_fault(server: S3Server) -> None:
    with pytest.raises(ValueError, match="flood"):
        server.fault("flood")


@pytest.mark.parametrize("do", ["reset", "close"])
def test_broken_connections(server: S3Server, do: str) -> None:
    server.fault(do, at=1000, times=1)
    with contextlib.closing(connect(server)) as connection:
        connection.request("GET", "/bucket/1/text")
        answer = connection.getresponse()
        assert answer.length == len(TEXT)
        assert answer.read(1000) == TEXT[:1000]
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)) as caught:
            answer.read()
    assert (caught.type is ConnectionResetError) == (do == "reset")
    assert raw_get(server, "1/text")[1] == TEXT


def test_stall_and_drip(server: S3Server) -> None:
    server.fault("stall", at=100, value=0.5, times=1)
    server.fault("drip", value=300_000, times=1)
    for _ in range(2):
        began = time.monotonic()
        assert raw_get(server, "1/text")[1] == TEXT
        assert 0.29 <= time.monotonic() - began < 5
    seconds = []
    for _ in range(5):
        began = time.monotonic()
        raw_get(server, "1/text")
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 0.2


def test_a_stall_ends_with_a_reset(server: S3Server) -> None:
    server.fault("stall", value=100)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(raw_get, server, "1/text")
        until(lambda: server.stats()["in_flight"] == 1)
        with pytest.raises(TimeoutError):
            answer.result(0.3)
        server.reset()
        assert answer.result(10)[1] == TEXT


@pytest.mark.parametrize("by", [-7, 7])
def test_resized_body(server: S3Server, by: int) -> None:
    server.fault("resize", value=by)
    answer, data = raw_get(server, "1/text", Range="bytes=10-109")
    assert len(data) == 100 + by
    assert answer.headers["Content-Range"] == f"bytes 10-109/{len(TEXT)}"
    assert data[:93] == TEXT[10:103]


def test_wrong_headers(server: S3Server) -> None:
    server.fault("range", value=5, times=1)
    server.fault("etag", times=1)
    moved, _ = raw_get(server, "1/text", Range="bytes=10-109")
    assert moved.headers["Content-Range"] == f"bytes 15-114/{len(TEXT)}"
    changed, data = raw_get(server, "1/text")
    assert data == TEXT
    assert changed.headers["ETag"] != raw_get(server, "1/text")[0].headers["ETag"]


@pytest.mark.parametrize("key", ["1/text", "2/big.tif"])
def test_flipped_byte(server: S3Server, key: str) -> None:
    right = raw_get(server, key, Range="bytes=50000-50099")[1]
    server.fault("flip", at=50_010)
    wrong = raw_get(server, key, Range="bytes=50000-50099")[1]
    assert [at for at in range(100) if right[at] != wrong[at]] == [10]
    assert raw_get(server, key, Range="bytes=0-49999")[1][:10] != b""
    assert raw_get(server, key, Range="bytes=50011-50099")[1] == right[11:]


def test_broken_listings(server: S3Server) -> None:
    s3 = client_of(server)
    server.fault("cut", kind="list", times=1)
    # botocore's word for XML that it can't parse
    assert code_of(lambda: s3.list_objects_v2(Bucket="bucket"))[0] == 500
    server.fault("xml", kind="list", times=1)
    # botocore takes well-formed HTML for an empty page: the trap that this fault is for
    assert "Contents" not in s3.list_objects_v2(Bucket="bucket")
    assert "Contents" in s3.list_objects_v2(Bucket="bucket")
    server.fault("repeat", kind="list", nth=2)
    first = s3.list_objects_v2(Bucket="bucket", MaxKeys=2)
    again = first["NextContinuationToken"]
    for _ in range(2):
        page = s3.list_objects_v2(Bucket="bucket", MaxKeys=2, ContinuationToken=again)
        assert page["NextContinuationToken"] == again


def test_skewed_clock(server: S3Server) -> None:
    server.fault("skew", value=3600)
    answer, data = raw_get(server, "1/text")
    assert data == TEXT
    ahead = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()
    assert abs(ahead - 3600) < 10
    signed = client_of(server, key="any")
    refusal = code_of(lambda: signed.get_object(Bucket="bucket", Key="1/text"))
    assert refusal == (403, "RequestTimeTooSkewed")
