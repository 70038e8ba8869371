"""What the writers of files share: which errors mean a full disk, and whose they are."""

import contextlib
import errno
import os
from collections.abc import Iterator

FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""Numbers of the errors of a disk that takes no more: full, a full quota, a limit on file sizes."""


def full(error: BaseException) -> OSError | None:
    """Tells whether an error is that of a disk that takes no more.

    TensorFlow and HDF5 give the system's text and not its number.

    Args:
        error: Anything that was raised.

    Returns:
        The OSError that the system meant; None when it is none of a full disk.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error if error.errno in FULL else None
    for number in FULL:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return None


@contextlib.contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives an OSError the path: a failing write or flush knows none of its own.

    Args:
        path: What is being written.

    Raises:
        OSError: With `path` for its filename.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
