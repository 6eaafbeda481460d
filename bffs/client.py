"""boto3 clients, the only import of boto3: sessions, credentials and the settings of connections; and one bare
request, whose answer nothing has mended."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

import boto3
import botocore.session
from botocore import UNSIGNED
from botocore import exceptions as boto
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.httpsession import get_cert_path

from bffs.errors import AccessDenied, UsageError
from bffs.explain import UNUSABLE_CREDENTIALS, reason
from bffs.settings import Settings

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 20.0
"""Seconds without a single byte after which an attempt is given up in any case."""


class Answer(NamedTuple):
    """An HTTP answer as it came; names of headers in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def connect(settings: Settings, *, published: bool = False) -> Any:
    """A boto3 client with the credentials that `settings` and the environment call for.

    The dataset's published key is used unless the caller names credentials explicitly (AWS
    environment variables or a profile): a default key in ~/.aws is for some other store. With
    `published` it is used in any case.
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
        raise UsageError(f"the AWS configuration can't be used: {reason(error)}") from error
    keys: dict[str, Any] = {}
    if (published or not explicit) and dataset.access_key_id and dataset.secret_access_key:
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
    except UNUSABLE_CREDENTIALS as error:
        raise AccessDenied(f"the AWS credentials can't be used: {reason(error)}") from error
    except (ValueError, boto.BotoCoreError) as error:
        raise UsageError(f"can't use endpoint {dataset.endpoint_url}: {reason(error)}") from error


def ask(client: Any, bucket: str) -> Answer:
    """The bare first answer to a listing of one key of `bucket`. Raises botocore's errors.

    A client follows where another region is named, and says nothing of it.
    """
    answers: list[Answer] = []

    def send(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        response: AWSResponse = client._endpoint.http_session.send(request)
        answers.append(Answer(response.status_code, response.headers, response.content))
        return response

    client.meta.events.register("before-send.s3.ListObjectsV2", send)
    try:
        client.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except (boto.BotoCoreError, boto.ClientError):
        if not answers:
            raise
    finally:
        client.meta.events.unregister("before-send.s3.ListObjectsV2", send)
    return answers[0]


def buckets(client: Any) -> list[str]:
    """The buckets that these credentials own, as far as the store tells."""
    try:
        return [each["Name"] for each in client.list_buckets().get("Buckets", ())]
    except (boto.BotoCoreError, boto.ClientError):
        return []


def tls_context(client: Any) -> ssl.SSLContext:
    """What `client` makes secure connections with. Raises OSError where its certificates are missing."""
    return ssl.create_default_context(cafile=get_cert_path(client._endpoint.http_session._verify))


def credentials_source(client: Any) -> str:
    """Where the credentials of `client` come from, in botocore's words; "" for none, `explicit` for
    the published key."""
    credentials = client._request_signer._credentials
    return "" if credentials is None else str(credentials.method)
