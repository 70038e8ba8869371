"""Statistics that a training step writes to variables, to be read later without a host sync."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine import keras_internals as private


class StepStatistics:
    """Statistics that a training step writes to variables, to be read later without a host sync.

    A `tfgpu.Model` does so from the call of `StepStatistics.of(model)` on.

    Attributes:
        has_norm: Whether steps fill in `gradient_norm`; those of a class's own `train_step` do not.
        times_input: Whether steps fill in `input_seconds`: not under `enable_op_determinism`, where
            TensorFlow refuses to read a clock.
        input_seconds: float64 scalar, seconds for which steps have waited for their batch.
        all_reduce_bytes: What a step sums over the replicas; 0 with one replica, and for steps of
            a class's own `train_step`.
        times_all_reduce: Whether steps fill in the two that follow.
        all_reduce_seconds: float64 scalar, seconds from when the first replica had something to
            sum until all was summed.
        all_reduce_exposed_seconds: float64 scalar, of these those after its last gradient was
            there, in which nothing else was left to compute.
    """

    def __init__(self) -> None:
        self.has_norm = False
        self.times_input = has_clock()
        self.all_reduce_bytes = 0
        self.times_all_reduce = False
        self._held: list[tf.Tensor] | None = None
        self._latest: tf.Tensor | None = None
        # Of no strategy: of several workers only the chief looks, and making a distributed
        # variable there would wait for the others for ever.
        with tf.device("CPU:0"):
            self._norm = tf.Variable(0.0, dtype=tf.float32, trainable=False)
            seconds = [tf.Variable(0.0, dtype=tf.float64, trainable=False) for _ in range(3)]
        self.input_seconds, self.all_reduce_seconds, self.all_reduce_exposed_seconds = seconds

    @classmethod
    def of(cls, model: keras.Model) -> StepStatistics:
        """The statistics of a model, which its next training function writes."""
        if model.tfgpu_statistics is None:
            model.tfgpu_statistics = cls()
            model.train_function = None  # One that was traced already writes none.
        return model.tfgpu_statistics

    @property
    def gradient_norm(self) -> tf.Tensor | tf.Variable:
        """float32 scalar, the global 2-norm of the latest step's gradient.

        Reduced over the replicas, without the loss scale, before any clipping.
        """
        return self._norm if self._latest is None else self._latest

    def latest(self, norm: tf.Tensor | None) -> None:
        """Keeps the norm of a step that was `held`; None when steps `record` theirs again.

        It is not waited for, as an assignment to a variable of the host would.
        """
        self._latest = norm

    @contextlib.contextmanager
    def held(self) -> Iterator[list[tf.Tensor]]:
        """Has `record` put what it gets into a list: XLA cannot assign variables of the host."""
        self._held = []
        try:
            yield self._held
        finally:
            self._held = None

    def record(self, norm: tf.Tensor) -> None:
        """Keeps what `norm` returned; in a replica, of which the first one writes."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        if self._held is not None:
            self._held.append(norm)
        elif tf.get_static_value(replica) == 0:
            # The variable is none of the replicas', so it is assigned past what guards those.
            tf.raw_ops.AssignVariableOp(resource=self._norm.handle, value=norm)
        self.has_norm = True

    def record_all_reduce(self, spent: tf.Tensor, exposed: tf.Tensor) -> None:
        """Adds the seconds of a step's sums; in the first replica."""
        for variable, seconds in (
            (self.all_reduce_seconds, spent),
            (self.all_reduce_exposed_seconds, exposed),
        ):
            tf.raw_ops.AssignAddVariableOp(resource=variable.handle, value=seconds)
        self.times_all_reduce = True

    def norm(self, gradients: list[Any], scale: Any) -> tf.Tensor:
        """The value of `gradient_norm`.

        Args:
            gradients: Reduced; None where there is none.
            scale: What they were multiplied by, or None.
        """
        norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients if g is not None])
        return norm if scale is None else norm / tf.cast(scale, tf.float32)

    def timed(self, read: Callable[[], Any]) -> Any:
        """Reads a batch in a graph and adds the time it took, if there is a clock."""
        if not self.times_input:
            return read()
        before = tf.timestamp()
        with tf.control_dependencies([before]):
            element = read()
        leaves = tf.nest.flatten(element, expand_composites=True)
        with tf.control_dependencies([leaf for leaf in leaves if isinstance(leaf, tf.Tensor)]):
            after = tf.timestamp()
        self.input_seconds.assign_add(after - before)
        return element


def has_clock() -> bool:
    """Whether a graph can read the time: TensorFlow refuses to under `enable_op_determinism`."""
    return not private.op_determinism_enabled()
