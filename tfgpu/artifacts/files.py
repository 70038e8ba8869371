"""Files that are there whole or not at all, also after a power failure; and their directories."""

import contextlib
import errno
import json
import math
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfgpu.errors import DISK_FULL, RequestError, disk_full, shown


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
        number, text = error.errno, error.strerror
        # HDF5 gives no number. No name may keep the error: with its traceback it would be a cycle,
        # and what its frames hold, such as a lock, would be let go of late.
        if number is None and (full := disk_full(error)) is not None:
            number, text = full.errno, full.strerror
        if number is None:
            raise
        raise OSError(number, text, os.fspath(path)) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Has a file written beside its place, and moved there when it is whole.

    Args:
        path: Where the file belongs; what is there stays until the new one is on the disk. Of a
            link it is the file that it leads to.

    Yields:
        The path to write to, with the same suffix. Nothing is moved after an exception.

    Raises:
        RequestError: What is there is no regular file, such as a pipe.
        OSError: It cannot be written; `filename` is `path`.
    """
    # A rename onto a link would leave the file behind it as it was.
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    _check_regular(place, path)
    beside = place.with_name(f".{place.stem}.{os.getpid()}{path.suffix}")
    with named(path):
        try:
            yield beside
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, place)
        finally:
            beside.unlink(missing_ok=True)
    sync_directory(place.parent)


def _check_regular(place: Path, path: Path) -> None:
    """Refuses to put a file where there is something else, which would be gone."""
    try:
        mode = os.lstat(place).st_mode
    except OSError:  # Nothing yet, or nothing that can be written, which writing tells.
        return
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "directory"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
        kind = next((kind for test, kind in kinds if test(mode)), None)
        kind = kind or ("link to itself" if stat.S_ISLNK(mode) else "device")
        raise RequestError(f"{shown(path)!r} is a {kind} and no regular file; name another file")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object to a file that is either the old or the new one, whatever happens.

    Args:
        path: The file.
        value: What `plain` takes.

    Raises:
        OSError: It cannot be written; `filename` is `path`.
        TypeError: The value holds what JSON does not.
    """
    text = json.dumps(plain(value), indent=2) + "\n"
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def sync_directory(path: Path) -> None:
    """Puts the names in a directory on the disk, where directories can be flushed.

    Args:
        path: The directory.

    Raises:
        OSError: The disk failed; `filename` is `path`.
    """
    if sys.platform == "win32":
        return
    with named(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network file systems flush files alone.
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)


def make_durable(path: Path) -> None:
    """Makes a directory and its parents, and puts their names on the disk."""
    missing = [place for place in [path, *path.parents] if not place.exists()]
    for place in reversed(missing):
        with named(place), contextlib.suppress(FileExistsError):
            os.mkdir(place)
        sync_directory(place.parent)


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
        if error.errno in DISK_FULL:
            raise
        raise RequestError(
            f"--{flag}={place}: cannot be written ({error.strerror}); name another directory"
        ) from error


def file_name(name: str) -> str:
    """A name made fit for a file: of `folder:/data/cats` the last part, no separators."""
    last = re.split(r"[/\\:]", name.rstrip("/\\"))[-1] if "/" in name or "\\" in name else name
    return re.sub(r"[^\w.+-]+", "-", last).strip("-.") or "run"


def plain(value: Any) -> Any:
    """The value in types that JSON keeps: no NumPy, no tuples, null for what is not finite.

    Raises:
        TypeError: It holds something else.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "numpy"):  # Metrics in the logs of Keras 3.10 may be tensors.
        value = value.numpy()
    if getattr(value, "ndim", 0):  # An array of NumPy.
        return plain(value.tolist())
    if not isinstance(value, str | int | float | None):
        if not hasattr(value, "item"):
            raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")
        value = value.item()  # A NumPy scalar.
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
