"""The worker processes of this machine: started, watched, and started again when one dies."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfgpu import errors
from tfgpu.cli.startup import child_environment
from tfgpu.errors import Error, RequestError, WorkError
from tfgpu.machine import hardware
from tfgpu.tune import address
from tfgpu.tune.settings import TuneSettings

AGAIN = 75
"""Exit code of a worker that asks to be started anew, after something that may have left TensorFlow
in disorder (EX_TEMPFAIL of sysexits.h)."""

PATIENCE = 60.0
"""Seconds that a worker has to save its trial before it is killed."""


@dataclass(frozen=True)
class Place:
    """What one worker computes on.

    Attributes:
        gpu: Its value of CUDA_VISIBLE_DEVICES; None for what this process sees.
        cores: Processors it may run on; empty for all.
    """

    gpu: str | None = None
    cores: tuple[int, ...] = ()


def places(workers: int, *, gpus: Sequence[str], cores: Sequence[int]) -> list[Place]:
    """Divides a machine among workers.

    Args:
        workers: How many.
        gpus: As CUDA_VISIBLE_DEVICES names them.
        cores: Numbers of the processors this process may run on.

    Raises:
        RequestError: There are more workers than GPUs.
    """
    if workers == 1:
        return [Place()]
    if gpus:
        if workers > len(gpus):
            count = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}"
            raise RequestError(
                f"--workers={workers}: there are {count} here, and each worker takes one; use at "
                f"most {len(gpus)}, or --devices=CPU:0"
            )
        return [Place(gpu=gpu) for gpu in gpus[:workers]]
    share = len(cores) / workers
    return [
        Place(
            # More workers than cores have to share them.
            cores=tuple(cores[int(i * share) : int((i + 1) * share)]) or (cores[int(i * share)],)
        )
        for i in range(workers)
    ]


class Worker:
    """One worker process at a time, under one tuner id.

    Attributes:
        name: The tuner id.
        starts: How often it has been started.
    """

    def __init__(self, name: str, place: Place, *, config: TuneSettings, ip: str, port: int):
        self.name = name
        self.starts = 0
        self._place = place
        self._config = config
        self._log = Path(str(config.run_dir)) / "logs" / f"{name}.log"
        self._environment = child_environment() | address.variables(tuner_id=name, ip=ip, port=port)
        if place.gpu is not None:
            self._environment["CUDA_VISIBLE_DEVICES"] = place.gpu
        self._process: subprocess.Popen[bytes] | None = None
        self._offset = 0
        self._asked: float | None = None
        self._trials_ended = self._deaths = 0

    def start(self) -> None:
        """Starts the process; what it says goes to `logs/<name>.log` of the search."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self.starts += 1
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
                    ",".join(map(str, self._place.cores)),
                ],
                # Its end tells the worker that this process is gone.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Ctrl-C is this process's: it has each trial saved first.
                start_new_session=True,
            )

    def idle_deaths(self, trials_ended: int) -> int:
        """Notes that the process has died; how often it has without a trial ending meanwhile."""
        if trials_ended != self._trials_ended:
            self._trials_ended, self._deaths = trials_ended, 0
        self._deaths += 1
        # A trial that kills its workers is given up first.
        return self._deaths - 1

    def poll(self) -> int | None:
        """The exit code of a process that has ended, None while it runs."""
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
        """Waits for the process, for `PATIENCE` seconds since it was asked to stop."""
        if self._process is None:
            return
        left = PATIENCE - (time.monotonic() - (self._asked or time.monotonic()))
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
        """The error that the process ended with, or the last line it said."""
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
        """The error that an exit code stands for."""
        words = self.last_words() or f"it ended with exit code {code}; {self._log} has more"
        for kind in (
            errors.RequestError,
            errors.DataError,
            errors.ModelFileError,
        ):
            if code == kind.exit_code:
                return kind(words)
        return WorkError(f"{self.name} {how(code)}: {words}")


def how(code: int) -> str:
    """How a process ended: "was killed by SIGKILL", "ended with exit code 1"."""
    if code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            why = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"was killed by {name}{why}"
    return f"ended with exit code {code}"


def cores() -> tuple[int, ...]:
    """Numbers of the processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(hardware.usable_cores()))
