"""Errors that end a command, each with the exit code a script can rely on.

A command prints the message of such an error as one line on standard error,
after `tfgpu: `, and exits with `exit_code`. The message names the offending
value and says what to do instead.
"""

import difflib
import errno
import os
import re
import signal
from collections.abc import Iterable

DISK_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})
"""Numbers of the errors of a disk that takes no more: full, a full quota, a limit on file sizes."""


PAGES = "docs/{}.md"
"""Where the documentation lies: the one place to change when that is a site."""

# Control characters, separators of lines, and surrogates, which stand for bytes that are no UTF-8.
_NOT_ONE_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NO_TEXT = re.compile("[\ud800-\udfff]")
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def see(page: str) -> str:
    """Where to read more, as it is added to a message: see `Error`."""
    name, _, heading = page.partition("#")
    return f"; see {PAGES.format(name)}{'#' if heading else ''}{heading}" if name else ""


class Error(Exception):
    """Base of the errors whose message is meant for the user.

    Args:
        message: One line, which names the value and the way out.
        page: Where that is explained, of the documentation: "checkpoints" or, of a heading on it,
            "checkpoints#how-a-run-ends". None: the page of the class, "" for none.

    Attributes:
        exit_code: What the process exits with.
        page: As above.
    """

    exit_code = 1
    page = ""

    def __init__(self, message: str = "", *, page: str | None = None):
        super().__init__(message)
        if page is not None:
            self.page = page

    @property
    def see(self) -> str:
        """Where to read more, as it is added to the message: "; see docs/data.md", or ""."""
        return see(self.page)


class RequestError(Error):
    """The request is wrong: a bad flag, an unknown name, an impossible combination."""

    exit_code = 2


class MeetingError(RequestError):
    """Processes of several machines cannot become workers of one training as they were started."""

    page = "several_machines"


class DataError(Error):
    """The data cannot be had: missing, unreadable, damaged, of the wrong kind."""

    exit_code = 3
    page = "data"


class ModelFileError(Error):
    """A checkpoint or a model file cannot be used."""

    exit_code = 4
    page = "checkpoints"


class WorkError(Error):
    """The work itself failed: not finite, out of memory, a full disk."""

    exit_code = 5
    page = "troubleshooting#the-work-exit-code-5"


class LostWorkerError(Error):
    """Another process of a training on several machines was lost, or never came."""

    exit_code = 6
    page = "several_machines"


class VersionError(WorkError, ImportError):
    """A library is installed in a version that lacks a private name which tfgpu uses."""

    page = ""

    def __init__(self, problem: str):
        super().__init__(f"{problem}; `pip check` names the versions that tfgpu asks for")


class VersionWarning(UserWarning):
    """A library is newer than those that tfgpu was tried with."""


class Interrupted(Error):
    """A signal asked the process to stop; what could be saved was saved.

    Attributes:
        signal: The signal that was received.
    """

    def __init__(self, signum: int, message: str | None = None):
        self.signal = signal.Signals(signum)
        super().__init__(message or f"stopped by {self.signal.name}")

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """128 plus the signal's number: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + int(self.signal)


def disk_full(error: BaseException) -> OSError | None:
    """Tells whether an error is that of a disk that takes no more.

    TensorFlow and HDF5 give the system's text and not its number.

    Args:
        error: Anything that was raised.

    Returns:
        The OSError that the system meant; None when it is none of a full disk.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error if error.errno in DISK_FULL else None
    for number in DISK_FULL:
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " (did you mean 'x'?)" for the known name nearest to `name`, or ""."""
    lowered = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.strip().lower(), lowered, n=1)
    return f" (did you mean {lowered[near[0]]!r}?)" if near else ""


def shown(path: str | os.PathLike[str], *, line: bool = True) -> str:
    """A path as text that means no other path, for messages and tables.

    Args:
        path: As Python has it: bytes that are not UTF-8 are surrogates (PEP 383).
        line: Whether it has to be a single line; else control characters may stay.

    Returns:
        The path itself where it can be written. Where it has bytes that are not UTF-8, or control
        characters, in the notation of a shell: $'caf\\xe9.png'. So a path that itself begins with
        $' is written that way too.
    """
    text = os.fspath(path)
    if not (_NOT_ONE_LINE if line else _NO_TEXT).search(text) and not text.startswith("$'"):
        return text
    return "$'" + "".join(map(_escaped, text)) + "'"


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if not _NOT_ONE_LINE.match(character):
        return character
    try:
        encoded = character.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # Half a character, of a Windows name.
        encoded = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in encoded)
