"""What the processes of a training know of each other while it runs.

Each worker holds one connection to the chief, made by `rendezvous`. Over it they exchange small
values, send files, agree on where to stop, and notice who is lost. Everything is in the order in
which the main threads ask for it, which is the same in every process.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tfgpu.cluster.stop_agreement import StopAgreement
from tfgpu.cluster.wire import Connection, Message
from tfgpu.errors import (
    DataError,
    Error,
    Interrupted,
    LostWorkerError,
    ModelFileError,
    RequestError,
    WorkError,
)

BEAT = 1.0
"""Seconds between two signs of life."""

LOST_AFTER = 9.0
"""Seconds of silence after which a process that trains counts as lost."""

LOST_WHILE_BUSY = 60.0
"""The same before the first step: importing TensorFlow may keep Python from doing anything."""

UNWIND = 3.0
"""Seconds that the main thread of a process has to end by itself when another is lost."""

_ERRORS: dict[int, type[Error]] = {
    error.exit_code: error for error in (RequestError, DataError, ModelFileError, WorkError)
}


class Membership:
    """The processes that train together, seen from one of them.

    Used as a context: leaving it tells the others how this process ended.

    Attributes:
        rank: Of this process; the chief's is 0.
        size: Processes in all.
        sharing_cores: Processes that compute on the same cores as this one, itself included.
        how_to_go_on: What to tell the user to do when a process is lost.
        collective: Whether a loop with collectives of TensorFlow runs, so that a process that
            ends would keep the others waiting.
        abort: Is called in another thread when a process was lost and the main thread does not
            end by itself: it is to end TensorFlow's collectives.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        names: Sequence[str] = ("worker 0",),
        peers: Mapping[int, Connection] | None = None,
        sharing_cores: int = 1,
    ):
        """Makes it of connections; without any, this process is alone.

        Args:
            rank: Of this process.
            names: How to call each process, with its address.
            peers: Connections by rank: to all others for the chief, to the chief for the others.
            sharing_cores: See the attribute.
        """
        self.rank = rank
        self.size = len(names)
        self.sharing_cores = sharing_cores
        self.how_to_go_on = "start all of them again"
        self.collective = False
        self.abort: Callable[[], None] = lambda: None
        self._log: Callable[[int, str], None] | None = None
        self._unlogged: list[tuple[int, str]] = []
        self._names = tuple(names)
        self.peers = dict(peers or {})
        self.condition = threading.Condition()
        self._inbox: dict[tuple[int, str], list[Message]] = {}
        self._sequence = 0
        self._failure: Error | None = None
        self._noticed = False
        self.left: set[int] = set()
        self._closed = False
        self._heard = dict.fromkeys(self.peers, time.monotonic())
        self._patience = dict.fromkeys(self.peers, LOST_WHILE_BUSY)
        self._stop = StopAgreement(self)
        self._wake_out, self._wake_in = os.pipe() if self.peers else (-1, -1)
        self._threads = [
            threading.Thread(target=self._listen, args=(peer,), daemon=True) for peer in self.peers
        ]
        if self.peers:
            self._threads.append(threading.Thread(target=self._beat, daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def name(self, rank: int) -> str:
        """How to call a process: "worker 1 (host1:2222)"."""
        return self._names[rank]

    # ---- exchanging values ---------------------------------------------------------------

    def gather(self, what: str, value: Any = None, body: bytes = b"") -> list[Message] | None:
        """Gives the chief a value of each process; the others do not wait for it.

        Args:
            what: Which value, the same in all processes.
            value: What JSON holds.
            body: Bytes beside it.

        Returns:
            At the chief a message from each process by rank, with the value under "value"; None
            elsewhere.

        Raises:
            Error: A process was lost, or has failed.
        """
        tag = self._tag(what)
        if not self.is_chief:
            self._send(0, "put", body, tag=tag, value=value)
            return None
        own = Message("put", {"value": json.loads(json.dumps(value))}, body)
        return [own, *(self._wait_for(peer, tag) for peer in sorted(self.peers))]

    def broadcast(self, what: str, value: Any = None, body: bytes = b"") -> Message:
        """Gives all processes the chief's value; see `gather`."""
        tag = self._tag(what)
        if not self.is_chief:
            return self._wait_for(0, tag)
        for peer in self.peers:
            self._send(peer, "put", body, tag=tag, value=value)
        return Message("put", {"value": json.loads(json.dumps(value))}, body)

    def exchange(self, what: str, value: Any) -> list[Any]:
        """Gives each process the values of all, by rank; it is a barrier too; see `gather`."""
        gathered = self.gather(what, value)
        values = None if gathered is None else [m.fields["value"] for m in gathered]
        found: list[Any] = self.broadcast(what, values).fields["value"]
        return found

    def say(self, text: str) -> None:
        """Hands lines to the chief, for the log that it keeps of this process."""
        if not self.is_chief:
            self.try_to_send(0, "say", text=text)

    def log_to(self, log: Callable[[int, str], None]) -> None:
        """At the chief, has `log` take the rank and the lines of what others said, also so far."""
        with self.condition:
            self._log = log
            for rank, text in self._unlogged:
                log(rank, text)
            self._unlogged.clear()

    # ---- stopping together ---------------------------------------------------------------

    def request_stop(self, signum: int) -> None:
        """Asks all processes to stop at the same boundary; safe in a signal handler."""
        self._stop.wanted = signum
        if self.peers:
            os.write(self._wake_in, b"x")

    def boundary(self) -> int | None:
        """Is called wherever training may stop, equally often by all processes.

        Returns:
            The signal for which all stop here; None to go on.

        Raises:
            Error: A process was lost, or has failed.
        """
        return self._stop.boundary()

    def begin(self) -> None:
        """Says that from now on this process gives a sign of life every second."""
        self.collective = True
        for peer in self.peers:
            self.try_to_send(peer, "beat", patience=LOST_AFTER)

    def finish(self, what: str, value: Any) -> list[Any]:
        """Ends what `begin` began when all processes have come here; see `exchange`."""
        if not self.is_chief:
            self.collective = False
        gathered = self.gather(what, value)
        # After a process was told, it may leave.
        self.collective = False
        values = None if gathered is None else [m.fields["value"] for m in gathered]
        found: list[Any] = self.broadcast(what, values).fields["value"]
        return found

    def check(self) -> None:
        """Raises what a loss or a failure of another process calls for.

        Raises:
            Error: A process was lost, or has failed.
        """
        with self.condition:
            self._raise()

    def wait_for_failure(self, seconds: float = LOST_AFTER + 2) -> None:
        """Waits for the reason of a collective that failed here; see `check`."""
        with self.condition:
            self.condition.wait_for(lambda: self._failure is not None, timeout=seconds)
            self._raise()

    # ---- ending --------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Error):
            self.close(error.exit_code, str(error))
        elif isinstance(error, KeyboardInterrupt):
            self.close(130, "stopped by SIGINT")
        elif error is not None:
            self.close(1, f"{type(error).__name__}: {error}")
        else:
            self.close(0)

    def close(self, code: int, line: str = "") -> None:
        """Tells the others how this process ends, and hangs up.

        Args:
            code: Its exit code.
            line: What it says of it.
        """
        with self.condition:
            if self._closed:
                return
            self._closed = True
            self.condition.notify_all()
        for peer in self.peers:
            self.try_to_send(peer, "bye", code=code, line=line)
        if self.peers:
            os.write(self._wake_in, b"x")
            with self.condition:
                if self.is_chief:  # The others may still have lines for their logs.
                    everyone = set(self.peers)
                    self.condition.wait_for(lambda: self.left >= everyone, timeout=5)
            for connection in self.peers.values():
                connection.close()
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join(2 * BEAT)
            os.close(self._wake_in)
            os.close(self._wake_out)

    # ---- between the threads -------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether there is nothing left to agree on."""
        return self._failure is not None or self._closed

    def _tag(self, what: str) -> str:
        self._sequence += 1
        return f"{self._sequence} {what}"

    def _raise(self) -> None:
        if self._failure is not None:
            self._noticed = True
            raise self._failure

    def _wait_for(self, peer: int, tag: str) -> Message:
        with self.condition:
            while not (found := self._inbox.get((peer, tag))):
                self._raise()
                # A pause now and then, in which signals are handled.
                self.condition.wait(0.5)
            message = found.pop(0)
            if not found:
                del self._inbox[peer, tag]
            return message

    def _send(self, peer: int, kind: str, body: bytes = b"", **fields: Any) -> None:
        try:
            self.peers[peer].send(kind, body, **fields)
        except OSError:
            self._lose(peer, "its connection broke")
            self.check()

    def try_to_send(self, peer: int, kind: str, **fields: Any) -> None:
        try:
            self.peers[peer].send(kind, **fields)
        except OSError:
            self._lose(peer, "its connection broke")

    def _listen(self, peer: int) -> None:
        """Reads one connection until it ends; a thread each."""
        connection = self.peers[peer]
        try:
            while peer not in self.left:
                message = connection.receive(BEAT)
                if message is not None:
                    self._heard[peer] = time.monotonic()
                    self._take(peer, message)
                elif time.monotonic() - self._heard[peer] > self._patience[peer]:
                    return self._lose(peer, f"silent for {self._patience[peer]:.0f} s")
        except (OSError, EOFError, ValueError):
            self._lose(peer, "its connection closed")

    def _take(self, peer: int, message: Message) -> None:
        kind, fields, _ = message
        if kind == "put":
            with self.condition:
                self._inbox.setdefault((peer, fields["tag"]), []).append(message)
                self.condition.notify_all()
        elif kind == "beat":
            self._patience[peer] = fields.get("patience", self._patience[peer])
        elif kind == "say":
            with self.condition:
                if self._log is None:
                    self._unlogged.append((peer, fields["text"]))
                else:
                    self._log(peer, fields["text"])
        elif kind == "failed":
            self._fail(fields["rank"], fields["code"], fields["line"], fields["lost"])
        elif kind == "bye":
            with self.condition:
                self.left.add(peer)
                self.condition.notify_all()
            expected = not fields["code"] and not self.collective
            if not expected and not self._stop.agreed:
                self._ended(peer, fields["code"], fields["line"])
        else:
            self._stop.take(peer, message)

    def _beat(self) -> None:
        """Gives signs of life, and passes on a wish to stop; one thread."""
        waker = select.poll()
        waker.register(self._wake_out, select.POLLIN)
        last = 0.0
        while True:
            if waker.poll(BEAT * 1000):
                os.read(self._wake_out, 100)
            if self.over and self._closed:
                return
            self._stop.pass_on()
            if time.monotonic() - last >= BEAT * 0.9:
                last = time.monotonic()
                for peer in set(self.peers) - self.left:
                    self.try_to_send(peer, "beat")

    def _lose(self, peer: int, why: str) -> None:
        with self.condition:
            expected = self._closed or peer in self.left
            self.left.add(peer)
            self.condition.notify_all()
        if not expected:
            self._failed(peer, LostWorkerError.exit_code, why, lost=True)

    def _ended(self, peer: int, code: int, line: str) -> None:
        if not self._closed:
            self._failed(peer, code, line, lost=False)

    def _failed(self, peer: int, code: int, line: str, *, lost: bool) -> None:
        if self.is_chief:
            for other in set(self.peers) - self.left - {peer}:
                try:
                    self.peers[other].send("failed", rank=peer, code=code, line=line, lost=lost)
                except OSError:
                    pass
        self._fail(peer, code, line, lost)

    def _fail(self, peer: int, code: int, line: str, lost: bool) -> None:
        """Keeps the first failure of another process, and sees to it that this one ends."""
        with self.condition:
            if self._failure is not None or self._closed:
                return
            self._failure = self._error(peer, code, line, lost)
            self.condition.notify_all()
        threading.Thread(target=self._see_to_the_end, daemon=True).start()

    def _error(self, peer: int, code: int, line: str, lost: bool) -> Error:
        name = self.name(peer)
        if not lost:
            if code in (130, 143):
                return Interrupted(code - 128, f"{name} was {line}")
            if code in _ERRORS and not self.collective:
                return _ERRORS[code](f"{name}: {line}")
            if code == LostWorkerError.exit_code:
                return LostWorkerError(line)
            line = f"ended with exit code {code}" + (f" ({line})" if line else "")
            return LostWorkerError(f"{name} {line}; {self.how_to_go_on}")
        return LostWorkerError(f"{name} was lost ({line}); {self.how_to_go_on}")

    def _see_to_the_end(self) -> None:
        """Ends the process when its main thread waits for what will never come."""
        if self._ends_by_itself(1.0):
            return
        self.abort()
        if self._ends_by_itself(UNWIND):
            return
        failure = self._failure
        assert failure is not None
        self.last_words(failure)
        line = " ".join(str(failure).split())
        print(f"tfgpu: {line}", file=sys.stderr, flush=True)
        os._exit(failure.exit_code)

    def last_words(self, failure: Error) -> None:
        """Is called before a process ends whose main thread cannot; for its owner to replace."""

    def _ends_by_itself(self, seconds: float) -> bool:
        with self.condition:
            return self.condition.wait_for(lambda: self._closed, timeout=seconds)


def alone() -> Membership:
    """The membership of a process that trains by itself."""
    return Membership()
