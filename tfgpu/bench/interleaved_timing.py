"""Interleaved timing of several processes, and its statistics; no TensorFlow here.

Each subject is a process of its own that stays alive and works on request. They take turns,
A B C A B C ..., so that all of them see the same load of a shared machine, and are compared by
the ratios of neighbouring measurements: the median, and the range of the middle half.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

MARK = "tfgpu timing: "


class Spread(TypedDict):
    """Median and quartiles of measurements."""

    median: float
    low: float
    high: float


class MeasurementFailed(Exception):
    """A measured process answered with an error, ended, or did not answer in time.

    Attributes:
        exit_code: Of a command that ends with this error; None when the process gave none.
    """

    def __init__(self, message: str, *, exit_code: int | None = None):
        super().__init__(message)
        self.exit_code = exit_code


class MeasuredProcess:
    """A process that answers each line of its standard input with one of standard output.

    Lines are JSON; the process answers by `answer`. Its other output is ignored.

    Args:
        command: Program and arguments.
        environment: Its whole environment.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str]):
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=dict(environment),
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # Closed meanwhile.
            for line in self._process.stdout:
                if line.startswith(MARK):
                    self._lines.put(line.removeprefix(MARK))
        self._lines.put(None)

    def read(self, *, limit: float = 600.0) -> Any:
        """Waits for the next answer.

        Args:
            limit: Seconds.

        Raises:
            MeasurementFailed: There is none, or it is an error.
        """
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise MeasurementFailed(f"no answer within {limit:g} s") from None
        if line is None:
            raise MeasurementFailed(self._exit_message())
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise MeasurementFailed(answer["error"], exit_code=answer.get("exit_code"))
        return answer

    def ask(self, request: Any, *, limit: float = 600.0) -> Any:
        """Sends a request and waits for the answer."""
        assert self._process.stdin is not None
        # A process that has ended takes nothing; `read` says so.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self.read(limit=limit)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _exit_message(self) -> str:
        code = self._process.wait()
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().splitlines() if line.strip()]
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
            if -code == signal.SIGKILL:
                how += ", which is how Linux ends what takes the last memory"
        return f"its process ended with {how}" + (f": {lines[-1][:300]}" if lines else "")


def answer(value: Any) -> None:
    """Answers a request; called in the measured process."""
    print(MARK + json.dumps(value), flush=True)


def interleave(subjects: Sequence[Callable[[], float]], *, rounds: int) -> list[list[float]]:
    """Measures each subject once per round, in turn.

    Args:
        subjects: Each does its work once and returns a rate.
        rounds: How often.

    Returns:
        A list of rates for each subject, one per round.
    """
    rates: list[list[float]] = [[] for _ in subjects]
    for _ in range(rounds):
        for measured, subject in zip(rates, subjects, strict=True):
            measured.append(subject())
    return rates


def spread(values: Sequence[float]) -> Spread:
    """Returns the median and the quartiles of measurements."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def compare(rates: Sequence[float], base: Sequence[float]) -> Spread:
    """Returns the median and the quartiles of the ratios of neighbouring measurements."""
    return spread([a / b for a, b in zip(rates, base, strict=True)])


def repeat(
    work: Callable[[], object],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Returns the median time of at least three calls, after one that is not counted.

    Args:
        work: Returns when all of it is done.
        seconds: To spend in total, about.
        clock: Gives seconds.
    """
    work()
    times: list[float] = []
    end = clock() + seconds
    while len(times) < 3 or clock() < end:
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)
