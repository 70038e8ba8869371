"""The worker processes of one machine: started, watched, and restarted when they die."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tfgpu.cli.startup import child_environment
from tfgpu.errors import DataError, Error, ModelFileError, RequestError, WorkError
from tfgpu.tune import address
from tfgpu.tune.devices import WorkerDevices
from tfgpu.tune.settings import TuneSettings

POLL_SECONDS = 0.2
"""Seconds between two polls of child processes."""

RESTART = 75
"""Exit code of a worker that asks to be restarted, after an error that may have left TensorFlow in
a bad state (EX_TEMPFAIL of sysexits.h)."""

_PERMANENT = frozenset({RequestError.exit_code, DataError.exit_code})  # Not worth a restart.
_GRACE_SECONDS = 60.0  # Seconds that a worker has to save its trial before it is killed.


class Worker:
    """One worker process at a time, under one tuner id.

    Attributes:
        name: The tuner id.
    """

    def __init__(
        self, name: str, devices: WorkerDevices, *, config: TuneSettings, ip: str, port: int
    ):
        self.name = name
        self._devices = devices
        self._config = config
        self._log = Path(str(config.run_dir)) / "logs" / f"{name}.log"
        self._environment = child_environment() | address.variables(tuner_id=name, ip=ip, port=port)
        if devices.gpu is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = devices.gpu
        self._process: subprocess.Popen[bytes] | None = None
        self._offset = 0
        self._asked: float | None = None
        self._trials_ended = self._deaths = 0

    def start(self) -> None:
        """Starts the process; its output goes to `logs/<name>.log` of the search."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._asked = None
        self._close_stdin()
        with open(self._log, "ab") as log:
            self._offset = log.tell()
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tfgpu.tune.worker",
                    json.dumps(dataclasses.asdict(self._config)),
                    ",".join(map(str, self._devices.cores)),
                ],
                # When this process is gone the pipe closes, and the worker ends.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Ctrl-C goes to this process only, which has each trial saved first.
                start_new_session=True,
            )

    def check_restart(self, code: int, *, trials_ended: int = 0, attempts: int) -> None:
        """Checks that it makes sense to restart the process.

        Args:
            code: The exit code that it has ended with, not 0.
            trials_ended: Trials of the search that have ended so far.
            attempts: How often it may die without a trial ending meanwhile.

        Raises:
            tfgpu.errors.Error: It does not; the error that the process ended with.
        """
        if code == RESTART:
            return
        if code in _PERMANENT:
            raise self.failure(code)
        if trials_ended != self._trials_ended:
            self._trials_ended, self._deaths = trials_ended, 0
        # One more than `attempts`: the chief first gives up a trial that kills its workers.
        if self._deaths >= attempts:
            raise self.failure(code)
        self._deaths += 1

    def poll(self) -> int | None:
        """Returns the exit code of a process that has ended, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def stop(self) -> None:
        """Asks the process to save its trial and end."""
        if self._process is not None and self._process.poll() is None:
            self._asked = time.monotonic()
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def wait(self) -> None:
        """Waits for the process, up to `_GRACE_SECONDS` after it was asked to stop."""
        if self._process is None:
            return
        left = _GRACE_SECONDS - (time.monotonic() - (self._asked or time.monotonic()))
        try:
            self._process.wait(max(left, 0.0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close_stdin()

    def _close_stdin(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def last_words(self) -> str:
        """Returns the error that the process ended with, or the last line it printed."""
        try:
            with open(self._log, "rb") as log:
                log.seek(self._offset)
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        lines = [line.strip() for line in lines if line.strip()]
        own = [line for line in lines if line.startswith("tfgpu: ")]
        return (own or lines or [""])[-1].removeprefix("tfgpu: ")

    def failure(self, code: int) -> Error:
        """Returns the error that an exit code stands for."""
        words = self.last_words() or f"it ended with exit code {code}; {self._log} has more"
        for kind in (RequestError, DataError, ModelFileError):
            if code == kind.exit_code:
                return kind(words)
        return WorkError(f"{self.name} {describe_exit(code)}: {words}")


class WorkerPool:
    """The worker processes of one machine, started and stopped together.

    Attributes:
        workers: By tuner id.
        active: Those that may still train: the others know that the search is over.
    """

    def __init__(
        self,
        name: str,
        devices: Sequence[WorkerDevices],
        *,
        config: TuneSettings,
        ip: str,
        port: int,
    ):
        names = [f"{name}-{number}" for number in range(len(devices))]
        self.workers = {
            each: Worker(each, its, config=config, ip=ip, port=port)
            for each, its in zip(names, devices, strict=True)
        }
        self.active = set(self.workers.values())

    def start(self) -> None:
        """Starts every process."""
        for worker in self.workers.values():
            worker.start()

    def exited(self) -> list[tuple[Worker, int]]:
        """Returns the active workers whose processes have ended, with their exit codes."""
        return [(each, code) for each in self.active if (code := each.poll()) is not None]

    def stop(self) -> None:
        """Asks every process to save its trial and end, and waits until all have."""
        for worker in self.workers.values():
            worker.stop()
        for worker in self.workers.values():
            worker.wait()


def describe_exit(code: int) -> str:
    """Says how a process ended: "was killed by SIGKILL", "ended with exit code 1"."""
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            why = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"was killed by {name}{why}"
    return f"ended with exit code {code}"
