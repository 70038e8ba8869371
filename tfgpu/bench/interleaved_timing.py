"""Processes that are timed in turn, and the statistics of what they say; no TensorFlow here.

Each contestant is a process of its own that stays alive and works whenever it is told to. All are
told in turn, A B C A B C ..., so that all of them meet the same weather on a shared machine, and
ratios are those of neighbours: median, and the range of the middle half.
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

MARK = "tfgpu contest: "


class Spread(TypedDict):
    """Median and quartiles of measurements."""

    median: float
    low: float
    high: float


class Failed(Exception):
    """A contestant answered with an error, ended, or did not answer in time.

    Attributes:
        exit_code: That the error calls for, when the contestant gave one.
    """

    def __init__(self, message: str, *, exit_code: int | None = None):
        super().__init__(message)
        self.exit_code = exit_code


class Contestant:
    """A process that answers each line of its standard input with one of standard output.

    Lines are JSON; answers come from `answer`. What else it prints is passed over.
    """

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str]):
        """Starts the process.

        Args:
            command: Program and arguments.
            environment: All of its variables.
        """
        self._said = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
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

    def tell(self, request: Any) -> None:
        """Sends a request; `read` gives its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # It has ended; `read` says how.

    def read(self, *, limit: float = 600.0) -> Any:
        """Waits for the next answer.

        Args:
            limit: Seconds.

        Raises:
            Failed: There is none.
        """
        try:
            line = self._lines.get(timeout=limit)
        except queue.Empty:
            raise Failed(f"no answer within {limit:g} s") from None
        if line is None:
            raise Failed(self._last_words())
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise Failed(answer["error"], exit_code=answer.get("exit_code"))
        return answer

    def ask(self, request: Any, *, limit: float = 600.0) -> Any:
        """`tell` and `read`."""
        self.tell(request)
        return self.read(limit=limit)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        said = [line for line in self._said.read().splitlines() if line.strip()]
        how = f"exit code {code}"
        if code < 0:
            how = signal.Signals(-code).name
            if -code == signal.SIGKILL:
                how += ", which is how Linux ends what takes the last memory"
        return f"its process ended with {how}" + (f": {said[-1][:300]}" if said else "")


def answer(value: Any) -> None:
    """Answers, in a contestant's process."""
    print(MARK + json.dumps(value), flush=True)


def race(
    contestants: Sequence[Callable[[], float]],
    *,
    rounds: int,
    after: Callable[[int], None] = lambda round_: None,
) -> list[list[float]]:
    """Lets each contestant work once a round, in turn.

    Args:
        contestants: Each works once and returns a rate.
        rounds: How often.
        after: Called with the number of each round that is over.

    Returns:
        A list of rates for each contestant, a rate a round.
    """
    rates: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds):
        for place, contestant in enumerate(contestants):
            rates[place].append(contestant())
        after(number)
    return rates


def spread(values: Sequence[float]) -> Spread:
    """Median, and the quartiles, of measurements."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def compare(rates: Sequence[float], base: Sequence[float]) -> Spread:
    """Ratios of neighbouring measurements."""
    return spread([a / b for a, b in zip(rates, base, strict=True)])


def repeat(
    work: Callable[[], object],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median time of one call, after one that is not counted; at least three are.

    Args:
        work: Returns when all of it is done.
        seconds: To spend, about.
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
