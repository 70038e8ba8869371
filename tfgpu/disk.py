"""What the writers of files share: which errors mean a full disk, and whose they are."""

import contextlib
import errno
import os
from collections.abc import Iterator

FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""Numbers of the errors of a full disk, or a full quota."""


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
