"""Ctrl-C while a command is still being imported: its exit code and one line, no traceback."""

from __future__ import annotations

import os
import signal
from types import FrameType


def begin() -> None:
    """Has SIGINT end the process at once: nothing of the command has happened yet.

    Nobody can catch an exception that comes within the imports of a module.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def end() -> None:
    """Has SIGINT raise a KeyboardInterrupt again, which from now on is caught."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, b"tfgpu: stopped by SIGINT\n")
    finally:
        os._exit(130)
