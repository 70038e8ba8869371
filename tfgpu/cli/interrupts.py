"""SIGINT and SIGTERM: the same clean stop, wherever they arrive."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from tfgpu.errors import Error, Interrupted


class _Stop(KeyboardInterrupt):
    """No `Exception`: libraries catch those, and would take it for a failure of their own.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int):
        super().__init__()
        self.signum = signum


class Interrupts:
    """What `caught` has caught.

    Attributes:
        received: The first signal, None before it.
        raised: Whether an exception was raised for one, and not only `deferred` told.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.raised = False
        self._instead: Callable[[int], None] | None = None

    def check(self) -> None:
        """Raises for a signal whose exception was lost on its way.

        Python drops what is raised inside a weak reference's callback or a `__del__`, and the
        import of a library runs thousands of them.

        Raises:
            KeyboardInterrupt: A signal was received.
        """
        if self.received is not None:
            raise _Stop(self.received)

    @contextlib.contextmanager
    def deferred(self, instead: Callable[[int], None]) -> Iterator[None]:
        """Has the first signal call a function in place of stopping; the second one stops.

        Args:
            instead: Takes the signal's number. It is to see to a stop at a good moment.

        Raises:
            KeyboardInterrupt: A signal was received before.
        """
        self.check()
        self._instead = instead
        try:
            yield
        finally:
            self._instead = None


_outer: Interrupts | None = None
"""What the innermost `caught` that is running has caught."""


@contextlib.contextmanager
def caught() -> Iterator[Interrupts]:
    """Turns both signals into `Interrupted`; inside they are a `KeyboardInterrupt`.

    May be nested: a signal that the outer one received, and that was lost since, stops the inner
    one at its start. Outside the main thread, where Python allows no handlers, it does nothing.

    Raises:
        Interrupted: A signal was received.
    """
    global _outer
    outer, interrupts = _outer, Interrupts()

    def stop(number: int, frame: FrameType | None) -> None:
        first = interrupts.received is None
        if first:
            interrupts.received = signal.Signals(number)
            if interrupts._instead is not None:
                interrupts._instead(number)
                return
        interrupts.raised = True
        raise _Stop(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            # A shell has its background jobs ignore SIGINT, which is to stay so; None is a
            # handler that Python did not set and cannot give back.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop)
    try:
        if outer is not None:
            outer.check()
        _outer = interrupts
        yield interrupts
    except KeyboardInterrupt:
        received = interrupts.received or (outer and outer.received)
        raise Interrupted(received or signal.SIGINT) from None
    except Exception as error:
        # A library that catches everything has made an error of its own out of the signal.
        if interrupts.raised and not isinstance(error, Error):
            assert interrupts.received is not None
            raise Interrupted(interrupts.received) from error
        raise
    finally:
        _outer = outer
        for number, handler in before.items():
            signal.signal(number, handler)
