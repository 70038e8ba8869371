"""Watches workers until all have ended: signals, losses, and what it all comes to."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from tfgpu.cli import interrupts
from tfgpu.errors import Error, Interrupted, LostWorkerError

LOST = LostWorkerError.exit_code

_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a worker that was asked to stop, and saved."""
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 20.0
"""Seconds until workers that outlive a failed one are asked to stop: longer than the 15 within
which they find out themselves, and say so."""
_SAVE_SECONDS = 60.0
"""Seconds for the same when a worker was asked to stop: the others save with it."""
_END_SECONDS = 5.0
"""Seconds for the same when all are about to start again."""
_KILL_SECONDS = 20.0
"""Seconds from being asked to being killed."""


@dataclasses.dataclass(frozen=True)
class Ended:
    """A worker that has ended.

    Attributes:
        index: Which.
        code: Its exit code; negative for the signal that killed it.
        why: Of a worker that was lost without an exit code.
    """

    index: int
    code: int
    why: str = ""

    @property
    def killed(self) -> bool:
        """Whether something killed it."""
        return self.code < 0

    def describe(self) -> str:
        """Says how it ended: "worker 1 was killed by SIGKILL"."""
        if self.why:
            return f"worker {self.index} {self.why}"
        if not self.killed:
            return f"worker {self.index} ended with exit code {self.code}"
        name = str(-self.code)
        with contextlib.suppress(ValueError):
            name = signal.Signals(-self.code).name
        memory = " (out of memory?)" if -self.code == signal.SIGKILL else ""
        return f"worker {self.index} was killed by {name}{memory}"


class Workers(Protocol):
    """The workers of one training, started and ended together."""

    @property
    def count(self) -> int:
        """How many there are."""

    def start(self, *, again: bool, asked: Sequence[int]) -> None:
        """Starts all, on fresh ports.

        Args:
            again: Whether this continues a run that was begun.
            asked: Gets the signals that are received meanwhile, which end a long start.
        """

    def poll(self, seconds: float) -> Sequence[Ended]:
        """Passes on what they say, and returns those that have ended since, in their order."""

    def send(self, number: int) -> None:
        """Sends a signal to all that still run."""

    def kill(self) -> None:
        """Ends all that still run, and waits until they are gone."""


class Failure(Error):
    """The workers failed; `exit_code` is that of the worker at fault."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.exit_code = code


def say(text: str) -> None:
    """Prints a line of the launch's own."""
    print(f"launch: {text}", flush=True)


def run(
    workers: Workers,
    *,
    max_restarts: int,
    resume: str,
    start_again: Callable[[], bool] = lambda: False,
) -> None:
    """Starts workers and waits for them, as often as losses ask for it.

    Args:
        workers: Not started yet.
        max_restarts: How often all are started again after one was lost.
        resume: The command that goes on after a stop, for the messages; "" when none does.
        start_again: Asked after a failure; whether the start failed by bad luck alone, and is to
            be repeated.

    Raises:
        Failure: A worker failed, or was lost once too often.
        Interrupted: SIGINT or SIGTERM was received, and passed on.
    """
    restarts = 0
    asked: list[int] = []
    try:
        with interrupts.caught() as signals, signals.deferred(asked.append):
            while True:
                workers.start(again=restarts > 0, asked=asked)
                ended = _wait(workers, asked, hurry=restarts < max_restarts)
                fault = at_fault(ended)
                if fault is None:
                    return
                if asked:
                    stopped = f"stopped by {signal.Signals(asked[0]).name}"
                    raise Interrupted(asked[0], stopped + _continue(resume))
                lost = fault.killed or fault.code == LOST
                if lost and restarts < max_restarts:
                    restarts += 1
                    count = f"{restarts} of at most {max_restarts}"
                    say(f"{fault.describe()}: all workers start again, restart {count}")
                elif not start_again():
                    raise _failure(fault, lost=lost, restarts=restarts, resume=resume)
    finally:
        workers.kill()


def at_fault(ended: Sequence[Ended]) -> Ended | None:
    """Finds the worker that failed first for a reason of its own.

    Args:
        ended: All workers, in the order in which they ended by themselves.

    Returns:
        None when all have exit code 0.
    """
    failed = [each for each in ended if each.code != 0]
    if not failed or failed[0].code != LOST:
        return failed[0] if failed else None
    # It noticed that another was gone before that one's process had ended.
    return next((each for each in failed if each.code != LOST), failed[0])


def _wait(workers: Workers, asked: Sequence[int], *, hurry: bool) -> list[Ended]:
    """Waits until all have ended; returns those that did so by themselves.

    Args:
        workers: Started.
        asked: Signals that were received, to be passed on.
        hurry: Whether to end the others at once after one was killed.
    """
    ended: list[Ended] = []
    passed, left = 0, workers.count
    deadline: float | None = None
    stopping = False
    while left:
        new = workers.poll(_POLL_SECONDS)
        left -= len(new)
        ended += new
        if len(asked) > passed:
            passed = len(asked)
            say(f"{signal.Signals(asked[0]).name}: asked all workers to stop; once more kills them")
            workers.send(asked[0])
        failed = [each for each in ended if each.code != 0]
        if failed and deadline is None:
            if hurry and failed[0].killed and not asked:
                break
            stopped = asked or failed[0].code in _STOPPED
            patience = _SAVE_SECONDS if stopped else _GRACE_SECONDS
            if hurry and failed[0].code == LOST and not asked:
                # The lost one may only stand still. What fails for a reason of its own ends soon.
                patience, stopping = _END_SECONDS, True
            deadline = time.monotonic() + patience
        if deadline is not None and time.monotonic() > deadline:
            if stopping:
                break
            workers.send(signal.SIGTERM)
            stopping, deadline = True, time.monotonic() + _KILL_SECONDS
    workers.kill()
    return ended


def _failure(fault: Ended, *, lost: bool, restarts: int, resume: str) -> Error:
    if fault.code in _STOPPED:
        signum = fault.code - 128
        what = f"{fault.describe()}, since it got {signal.Signals(signum).name}"
        return Interrupted(signum, what + _continue(resume))
    what = fault.describe()
    if lost and restarts:
        what += f", after {restarts} restart{'s' if restarts > 1 else ''}"
    return Failure(what + _continue(resume if lost else ""), LOST if lost else fault.code)


def _continue(resume: str) -> str:
    return f"; continue with: {resume}" if resume else ""
