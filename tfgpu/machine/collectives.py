"""TensorFlow's collectives between processes: what starting them does, and how they fail."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

import tensorflow as tf

from tfgpu.machine import tensorflow_internals

_OF_A_PEER = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


@contextlib.contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Gives SIGINT and SIGTERM back to Python, after TensorFlow has put its own handlers there.

    The strategy for several workers does so, below Python, which does not notice.
    """
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if (handler := signal.getsignal(number)) is not None:
                    signal.signal(number, handler)


def abort() -> None:
    """Ends every collective that waits, with an error, also those to come."""
    tensorflow_internals.abort_collectives("another worker was lost")


def may_be_of_a_peer(error: BaseException) -> bool:
    """Whether an error is such as a collective ends with when another process is gone."""
    return isinstance(error, _OF_A_PEER)
