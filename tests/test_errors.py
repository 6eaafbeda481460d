"""The error tree: what each error means to a shell and to a reader of a file."""

import errno

import pytest

from bffs import errors
from bffs.errors import BffsError, to_errno

CONTRACT = {
    "BffsError": (1, errno.EIO),
    "UsageError": (2, errno.EINVAL),
    "StoreError": (1, errno.EIO),
    "StoreUnreachable": (3, errno.EIO),
    "StoreBusy": (1, errno.EIO),
    "AccessDenied": (4, errno.EACCES),
    "NoSuchBucket": (1, errno.EIO),
    "ObjectChanged": (1, errno.ESTALE),
    "BadAnswer": (1, errno.EIO),
    "BrokenPromise": (1, errno.EIO),
    "NoSuchSpecimen": (5, errno.ENOENT),
    "MountError": (6, errno.EIO),
    "Closing": (1, errno.EIO),
}


def test_every_error_has_the_codes_of_the_contract() -> None:
    defined = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    codes = {
        name: (value.exit_code, to_errno(value("x")))
        for name, value in defined.items()
        if issubclass(value, BffsError)
    }
    assert codes == CONTRACT
    assert codes.keys() == defined.keys()


def test_the_tree_in_the_documentation_is_the_tree() -> None:
    documented = {}
    for line in (errors.__doc__ or "").splitlines():
        words = [word for word in line.split() if word.strip("|`-")]
        if len(words) > 2 and words[1].isdecimal():
            documented[words[0]] = (int(words[1]), getattr(errno, words[2]))
    assert documented == CONTRACT


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOTDIR])
def test_errors_of_the_system_keep_their_errno(code: int) -> None:
    assert to_errno(OSError(code, "x")) == code


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError("without a number"), KeyboardInterrupt()]
)
def test_unforeseen_errors_have_none(error: BaseException) -> None:
    assert to_errno(error) is None
