"""Standard error without the log of TensorFlow's C++ code, where its own variable cannot help.

TF_CPP_MIN_LOG_LEVEL filters TensorFlow's macros. What is logged through Abseil passes it by:
collectives, gRPC and the coordination service, which have pages to say of a worker that is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator

_NOISE = re.compile(rb"[IWE]\d{4} |WARNING: All log messages before absl::InitializeLog")
_SOMETHING_ELSE = re.compile(rb"F\d{4} |Fatal|Traceback|terminate|\*\*\*|Segmentation")


@contextlib.contextmanager
def filtered() -> Iterator[None]:
    """Drops lines of the C++ log but for fatal ones; everything else of file descriptor 2 stays.

    A process of its own does it, so that the last words of one that crashes are not lost. Python's
    `sys.stderr` does not go through it.
    """
    if not hasattr(os, "fork"):
        yield
        return
    try:
        saved = os.dup(2)
    except OSError:  # Closed: nothing to filter.
        yield
        return
    reading, writing = os.pipe()
    sys.stderr.flush()
    if os.fork() == 0:
        _filter(reading, writing, saved)
    os.close(reading)
    os.dup2(writing, 2)
    os.close(writing)
    before = sys.stderr
    sys.stderr = os.fdopen(saved, "w", buffering=1, errors="backslashreplace", closefd=False)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = before
        os.dup2(saved, 2)
        os.close(saved)


def _filter(reading: int, writing: int, target: int) -> None:
    """Copies what is to be seen until nobody writes any more; ends the process."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.close(writing)
        # Nothing else of the parent is to stay open when it is gone.
        os.dup2(target, 0)
        os.dup2(target, 1)
        dropping = False
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                dropping = is_noise(line, after_noise=dropping)
                if not dropping:
                    os.write(target, line)
    except OSError:
        pass
    finally:
        os._exit(0)


def is_noise(line: bytes, *, after_noise: bool) -> bool:
    """Whether a line is of the C++ log, below fatal.

    Args:
        line: With its end.
        after_noise: What this function said of the line before: a message may have several.
    """
    if _NOISE.match(line):
        return True
    return after_noise and _SOMETHING_ELSE.match(line) is None
