"""A command of tfgpu's that ends with the process that started it: `python -m tfgpu.tune.child`.

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
    """Has this process stop, as by SIGTERM, when its standard input ends.

    The parent holds the other end open as long as it lives, however it ends.
    """
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    # Not through sys.stdin, whose lock the interpreter wants at its end.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent()
    entry.run(importlib.import_module(f"tfgpu.{sys.argv[1]}.__main__").main, sys.argv[2:])
