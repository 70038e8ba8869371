"""Runs a command of tfgpu that ends when its parent process does: `python -m tfgpu.tune.child`.

The first argument is the command's name, the others are its own.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading

from tfgpu.cli import entry


def end_with_parent() -> None:
    """Sends this process SIGTERM when its standard input ends.

    The parent keeps the other end of the pipe open as long as it lives, however it ends.
    """
    threading.Thread(target=_watch_stdin, daemon=True).start()


def _watch_stdin() -> None:
    # Not through sys.stdin, whose lock the interpreter takes at exit.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent()
    entry.run(importlib.import_module(f"tfgpu.{sys.argv[1]}.__main__").main, sys.argv[2:])
