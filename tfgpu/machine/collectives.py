"""TensorFlow's collectives between processes: what starting them does, and how they fail."""

from __future__ import annotations

import collections
import contextlib
import signal
import threading
from collections.abc import Iterator

import tensorflow as tf

from tfgpu.cluster.tf_config import Cluster
from tfgpu.machine import tensorflow_internals

_OF_A_PEER = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


REGISTRATION = 10
"""Seconds in which all processes have to reach the coordination service.

TensorFlow waits for an hour, inside a call that keeps Python from handling signals. All processes
make their strategies at the same moment, so that more is not needed.
"""


def strategy_of_workers(cluster: Cluster) -> tf.distribute.MultiWorkerMirroredStrategy:
    """Makes the strategy of a cluster that TF_CONFIG describes, when all its processes do.

    Args:
        cluster: What TF_CONFIG says.

    Raises:
        tf.errors.OpError: Another process did not come.
    """
    jobs = collections.Counter(name.partition(" ")[0] for name in cluster.names)
    tensorflow_internals.set_registration_timeout(jobs, seconds=REGISTRATION)
    with _signal_handlers_kept():
        return tf.distribute.MultiWorkerMirroredStrategy()


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
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
