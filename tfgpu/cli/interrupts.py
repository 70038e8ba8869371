"""SIGINT and SIGTERM: the same clean stop, wherever they arrive."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from tfgpu.errors import Interrupted


class _Stop(KeyboardInterrupt):
    """No `Exception`: libraries catch those, and would take it for a failure of their own."""


class Interrupts:
    """What `caught` has caught.

    Attributes:
        received: The first signal, None before it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._instead: Callable[[int], None] | None = None

    @contextlib.contextmanager
    def deferred(self, instead: Callable[[int], None]) -> Iterator[None]:
        """Has the first signal call a function in place of stopping; the second one stops.

        Args:
            instead: Takes the signal's number. It is to see to a stop at a good moment.
        """
        self._instead = instead
        try:
            yield
        finally:
            self._instead = None


@contextlib.contextmanager
def caught() -> Iterator[Interrupts]:
    """Turns both signals into `Interrupted`; inside they are a `KeyboardInterrupt`.

    May be nested. Outside the main thread, where Python allows no handlers, it does nothing.

    Raises:
        Interrupted: A signal was received.
    """
    interrupts = Interrupts()

    def stop(number: int, frame: FrameType | None) -> None:
        first = interrupts.received is None
        if first:
            interrupts.received = signal.Signals(number)
            if interrupts._instead is not None:
                interrupts._instead(number)
                return
        raise _Stop

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # A shell has its background jobs ignore SIGINT, which is to stay so; None is a
            # handler that Python did not set and cannot give back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop)
    try:
        yield interrupts
    except KeyboardInterrupt:
        raise Interrupted(interrupts.received or signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
