"""Every error bffs can name, what it means to a shell (exit code) and to a reader (errno).

The tree, with `exit_code` and errno::

    BffsError               1  EIO     anything that can be explained in one line
    |- UsageError           2  EINVAL  an option, a value or a configuration file makes no sense
    |- StoreError           1  EIO     the object store answered, but not with what was asked
    |  |- StoreUnreachable  3  EIO     no answer: name, route, TLS, time-out; never "absent"
    |  |- StoreBusy         1  EIO     too many requests for the store (503 SlowDown, 429)
    |  |- AccessDenied      4  EACCES  the store refused these credentials
    |  |- NoSuchBucket      1  EIO     the store knows no such bucket
    |  |- ObjectChanged     1  ESTALE  no longer the version that was listed, or gone
    |  `- BadAnswer         1  EIO     wrong length, range or ETag: a fault, never data
    |- BrokenPromise        1  EIO     a slice is not what its stack's files say it is
    |- NoSuchSpecimen       5  ENOENT  the dataset has no specimen of that id
    |- MountError           6  EIO     FUSE is missing or the mountpoint can't be used
    `- Closing              1  EIO     the mount is going away, nobody waits any longer

Messages are single lines that say what happened and, where something can be done, what to do. They
never contain a secret. `to_errno` is the only place where an exception becomes an errno.
"""

from __future__ import annotations

import errno


class BffsError(Exception):
    """Base of all errors that are explained to the user in one line, without a traceback."""

    exit_code = 1
    errno = errno.EIO
    is_told = False
    """Whether it is in the log already, where it belongs only once."""


class UsageError(BffsError):
    """A wrong option, value or configuration file."""

    exit_code = 2
    errno = errno.EINVAL


class StoreError(BffsError):
    """The object store could not be used as expected."""


class StoreUnreachable(StoreError):
    """The store did not answer. Says nothing about whether an object exists."""

    exit_code = 3


class StoreBusy(StoreError):
    """The store wants fewer requests, and none for `retry_after` seconds if it said so (else 0)."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AccessDenied(StoreError):
    """The store refused the request (401, 403, a bad signature) or there are no credentials to sign
    with."""

    exit_code = 4
    errno = errno.EACCES


class NoSuchBucket(StoreError):
    """The store answers, but knows no bucket of that name."""


class ObjectChanged(StoreError):
    """The object is gone or has another ETag than when it was listed."""

    errno = errno.ESTALE


class BadAnswer(StoreError):
    """The store sent something other than the bytes that were asked for."""


class BrokenPromise(BffsError):
    """A slice is not what its stack's files say it is."""

    is_told = True


class NoSuchSpecimen(BffsError):
    """No specimen of that id in the dataset."""

    exit_code = 5
    errno = errno.ENOENT


class MountError(BffsError):
    """FUSE is missing, or the mountpoint can't be used."""

    exit_code = 6


class Closing(BffsError):
    """A read was waiting when the mount was closed."""


def to_errno(error: BaseException) -> int | None:
    """The errno of an exception, or None for one that nobody foresaw (EIO and a traceback in the
    log)."""
    if isinstance(error, BffsError):
        return error.errno
    if isinstance(error, OSError) and error.errno in errno.errorcode:
        return error.errno
    return None
