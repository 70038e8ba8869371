"""What the writers of files share: which errors mean a full disk, and whose they are."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfgpu.errors import RequestError

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Has a file written beside its place, and moved there when it is whole.

    Args:
        path: Where the file belongs; what is there stays until the new one is on the disk.

    Yields:
        The path to write to, with the same suffix. Nothing is moved after an exception.

    Raises:
        OSError: It cannot be written; `filename` is `path`.
    """
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with named(path):
        try:
            yield beside
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def make_directory(place: Path, *, flag: str) -> None:
    """Makes a directory that a command is to write to, or sees that it can be written to.

    Args:
        place: The directory.
        flag: The one that named it, for the message.

    Raises:
        RequestError: It cannot be made or written to.
        OSError: The disk is full.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        # Asking for permission is not enough: a file system may be mounted read-only.
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if error.errno in FULL:
            raise
        raise RequestError(
            f"--{flag}={place}: cannot be written ({error.strerror}); name another directory"
        ) from error


def file_name(name: str) -> str:
    """A name made fit for a file: of `folder:/data/cats` the last part, no separators."""
    last = re.split(r"[/\\:]", name.rstrip("/\\"))[-1] if "/" in name or "\\" in name else name
    return re.sub(r"[^\w.+-]+", "-", last).strip("-.") or "run"
