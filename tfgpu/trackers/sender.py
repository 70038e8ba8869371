"""The process that sends: `python -m tfgpu.trackers.sender RUN_DIR TRACKER`.

`tfgpu.trackers.client` starts it. On standard input it gets a line for each event: "update" when
the record has grown, and {"end": "finished"} at the end. When standard input ends without one, the
training was killed. On standard output it says, as JSON, what the user is to be told. It imports no
TensorFlow and has the tracker's library to itself: what that costs, prints or breaks does not reach
the training, nor another tracker.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfgpu.artifacts.lock import FLAG_BINARY, lock, unlock
from tfgpu.trackers.mirror import Mirror, in_short
from tfgpu.trackers.run_record import RunRecord

PAUSE_SECONDS = 5.0
"""Between two rounds of sending: epochs of a fraction of a second are sent several at a time."""

RETRY_SECONDS = 30.0
"""Between two attempts while a tracker fails."""

PATIENCE = 300.0
"""Seconds that this process may go on after a training that was killed."""

_POLL = 0.2
_NICE = 10  # The training has the processors first.

_CLASSES = {"mlflow": "MlflowTracker", "wandb": "WandbTracker"}


def main(argv: Sequence[str]) -> int:
    """Sends until the training ends; returns 0 when the tracker has everything."""
    record, name = RunRecord(Path(argv[0])), argv[1]
    # Ctrl-C and SIGTERM are for the training, which says when it has ended.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(_NICE)
    orders = _Orders()
    with _alone(record.path / f"{name}.lock"):
        try:
            module = importlib.import_module(f"tfgpu.trackers.{name}_tracker")
            tracker = getattr(module, _CLASSES[name])()
        except Exception as error:  # A library that is broken, or too old.
            _tell("warn", f"{name} cannot be used: {in_short(error)}; the training goes on")
            return 1
        mirror = Mirror(
            record,
            tracker,
            say=lambda text: _tell("say", text),
            warn=lambda text: _tell("warn", text),
        )
        while orders.ending is None:
            done = mirror.update()
            orders.ended.wait(PAUSE_SECONDS)
            orders.wait(None if done else RETRY_SECONDS)
        return 0 if mirror.end(orders.ending) else 1


class _Orders:
    """What standard input says.

    Attributes:
        ending: How the training has ended; None while it goes on.
        ended: Set when it has.
    """

    def __init__(self) -> None:
        self.ending: str | None = None
        self.ended = threading.Event()
        self._new = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self, seconds: float | None) -> None:
        """Waits for the next order, or that long."""
        self._new.wait(seconds)
        self._new.clear()

    def _read(self) -> None:
        for line in sys.stdin:
            if line.startswith("{"):
                self.ending = json.loads(line)["end"]
                self.ended.set()
            self._new.set()
        if self.ending is None:
            self.ending = "killed"
            self.ended.set()
        # Nobody waits any more, and the next run's process must not wait for this one for ever.
        _give_up_after(PATIENCE)
        self._new.set()


def _give_up_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits for the process of a training that was killed, which may still be sending."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | FLAG_BINARY)
    while lock(descriptor) is False:
        time.sleep(_POLL)
    try:
        yield
    finally:
        unlock(descriptor)


def _tell(kind: str, text: str) -> None:
    # The training may be gone.
    with contextlib.suppress(OSError, ValueError):
        os.write(_OUT, (json.dumps({kind: text}) + "\n").encode())


_OUT = -1


def _keep_stdout() -> Any:
    """Sends what libraries print to standard error, which is a file of the run."""
    global _OUT
    _OUT = os.dup(1)
    os.dup2(2, 1)


if __name__ == "__main__":
    _keep_stdout()
    sys.exit(main(sys.argv[1:]))
