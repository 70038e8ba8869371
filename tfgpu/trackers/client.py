"""Starts the process that sends, and tells it what has happened."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tfgpu.cli.startup import child_environment
from tfgpu.trackers.run_record import RunRecord

_QUIET = {
    # Both libraries would report their use to their makers, though nobody asked for that.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    # By default MLflow gives up after some minutes, which is long at the end of a training.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Variables of the process that sends, where the user has set no other values."""

PATIENCE = {"finished": 300.0, "paused": 60.0}
_SHORT_PATIENCE = 10.0
"""Seconds that a training waits at its end for what is still to be sent; the shorter one is that of
a training that failed or was stopped."""

_POLL = 0.05


class Sender:
    """The process that sends a record to a tracker.

    Attributes:
        tracker: Its name.
    """

    def __init__(self, record: RunRecord, tracker: str, *, warn: Callable[[str], None]):
        """Starts it; returns at once.

        Args:
            record: Of the run, begun.
            tracker: One of `tfgpu.trackers.TRACKERS`.
            warn: Takes a warning.
        """
        self.tracker = tracker
        self._record, self._warn = record, warn
        self._heard: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        self._gone = self._warned = False
        self._last = time.monotonic()
        self._log = record.path / f"{tracker}.txt"
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tfgpu.trackers.sender"),
                    *(str(record.run_dir.resolve()), tracker),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(_QUIET | dict(os.environ)),
                start_new_session=True,  # Ctrl-C is for the training.
            )
        self._listener = threading.Thread(target=self._listen, name=tracker, daemon=True)
        self._listener.start()

    def update(self) -> None:
        """Says that the record has grown."""
        self._order("update")

    def tell(self, say: Callable[[str], None]) -> None:
        """Tells what the tracker had to say since the last time.

        Args:
            say: Takes a line for the user.
        """
        while not self._heard.empty():
            message = self._heard.get()
            if "say" in message:
                say(message["say"])
            if "warn" in message:
                self._warned = True
                self._warn(message["warn"])
        if self._gone and not self._warned and not self._listener.is_alive():
            self._warned = True
            self._warn(
                f"{self.tracker}: the process that sends has ended by itself, and {self._log} may "
                "say why; the training goes on"
            )

    def end(self, ending: str) -> None:
        """Says how the training has ended.

        Args:
            ending: One of `tfgpu.trackers.tracker.ENDINGS`.
        """
        self._order(json.dumps({"end": ending}))
        self._last = time.monotonic() + PATIENCE.get(ending, _SHORT_PATIENCE)

    def wait(self, *, say: Callable[[str], None]) -> bool:
        """Waits after `end` until all is sent, but not for ever.

        Args:
            say: Takes a line for the user.

        Returns:
            Whether all is sent.
        """
        assert self._process.stdin is not None
        try:
            while self._process.poll() is None and time.monotonic() < self._last:
                self.tell(say)
                time.sleep(_POLL)
        finally:
            late = self._process.poll() is None
            self.kill()
            self._listener.join()
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self.tell(say)
        return not late and self._process.returncode == 0

    def kill(self) -> None:
        """Ends the process that sends, whatever it has not sent."""
        if self._process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            # Its reader does nothing else, so the pipe is never full.
            os.write(self._process.stdin.fileno(), f"{line}\n".encode())
        except OSError:
            self._gone = True

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):
                    message: Any = json.loads(line)
                    if isinstance(message, Mapping):
                        self._heard.put(dict(message))
