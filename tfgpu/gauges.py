"""What a training step writes down for somebody who looks, without a way back to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class Gauges:
    """Variables that `tfgpu.Model` fills in each training step, once `Gauges.of(model)` was called.

    Attributes:
        gradient_norm: float32 scalar, the global 2-norm of the latest step's gradient: reduced
            over the replicas, without the loss scale, before any clipping.
        has_norm: Whether steps fill in `gradient_norm`; those of a class's own `train_step` do not.
        input_seconds: float64 scalar, seconds for which steps have waited for their batch.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        with strategy.scope():
            self.gradient_norm = keras.Variable(
                0.0, dtype="float32", trainable=False, name="gradient_norm"
            )
        self.has_norm = False
        # Batches are read outside of the replicas, by the host.
        with tf.device("CPU:0"):
            self.input_seconds = tf.Variable(
                0.0,
                dtype=tf.float64,
                trainable=False,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

    @classmethod
    def of(cls, model: keras.Model) -> Gauges:
        """The gauges of a model, which from its next training function on are filled in."""
        if model._gauges is None:
            model._gauges = cls(model.distribute_strategy)
            model.train_function = None  # One that was traced already fills in nothing.
        gauges: Gauges = model._gauges
        return gauges

    def norm(self, gradients: list[Any], scale: Any) -> tf.Tensor:
        """The value of `gradient_norm`.

        Args:
            gradients: Reduced; None where there is none.
            scale: What they were multiplied by, or None.
        """
        self.has_norm = True
        norm = tf.linalg.global_norm([tf.cast(g, tf.float32) for g in gradients if g is not None])
        return norm if scale is None else norm / tf.cast(scale, tf.float32)

    def timed(self, read: Callable[[], Any]) -> Any:
        """Reads a batch in a graph and adds the time it took."""
        before = tf.timestamp()
        with tf.control_dependencies([before]):
            element = read()
        leaves = tf.nest.flatten(element, expand_composites=True)
        with tf.control_dependencies([leaf for leaf in leaves if isinstance(leaf, tf.Tensor)]):
            after = tf.timestamp()
        self.input_seconds.assign_add(after - before)
        return element
