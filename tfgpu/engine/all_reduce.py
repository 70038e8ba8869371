"""Sums over the replicas, in buckets that travel while the rest is still computed.

A replica's gradients travel in buckets of a few megabytes, the last layers' first. Without XLA a
bucket sets off as soon as the backward pass has computed what is in it. What XLA compiles gives all
gradients at once, at its end. One bucket travels at a time: TensorFlow orders the collectives of a
device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfgpu.engine.step_statistics import StepStatistics

BUCKET_BYTES = 4 << 20
"""Bytes of a bucket. See docs/scaling.md for what other sizes take."""

MOST_BUCKETS = 32
"""Of a step, about: with more bytes the buckets are larger, since each pays the latency."""


def buckets(tensors: Sequence[Any], *, bucket_bytes: int | None = None) -> list[list[int]]:
    """Which tensors travel together, in the order in which they travel.

    The last tensors go first: the gradients of the last layers are the first that the backward
    pass has, and travel while it computes the others. A bucket is of one dtype. Tensors that fill
    one by themselves go by themselves, which saves a copy of them.

    Args:
        tensors: Those to sum; None entries are in no bucket.
        bucket_bytes: How large a bucket may get; None: `BUCKET_BYTES`, or a part of all bytes.

    Returns:
        The positions of the tensors of each bucket.
    """
    sizes = [0 if t is None else (t.shape.num_elements() or 0) * t.dtype.size for t in tensors]
    limit = bucket_bytes or max(BUCKET_BYTES, sum(sizes) // MOST_BUCKETS)
    found: list[list[int]] = []
    # By dtype the bucket that is being filled, and its bytes.
    filling: dict[tf.DType, tuple[list[int], int]] = {}
    for position in reversed(range(len(tensors))):
        tensor = tensors[position]
        if tensor is None:
            continue
        size = sizes[position]
        if size >= limit or tensor.shape.num_elements() is None:
            found.append([position])
            continue
        bucket, filled = filling.get(tensor.dtype, ([], 0))
        if not bucket or filled + size > limit:
            bucket, filled = [], 0
            found.append(bucket)
        bucket.append(position)
        filling[tensor.dtype] = bucket, filled + size
    # In the order in which the last of their tensors are there.
    return sorted(found, key=lambda bucket: -bucket[-1])


def sum_over_replicas(
    context: Any, tensors: Sequence[Any], *, statistics: StepStatistics | None = None
) -> list[Any]:
    """Sums each tensor over the replicas.

    Small tensors travel end to end in one vector, see `buckets`: a collective costs 0.1 ms
    between replicas of one process and 0.7 ms between workers, however small it is.

    Args:
        context: The replica's context.
        tensors: Of the same shape on each replica; None entries stay None.
        statistics: Is told how long it takes, where that can be seen.
    """
    if context.num_replicas_in_sync == 1:
        return list(tensors)
    clock = None if statistics is None else _Clock.of(context)
    result, size = list(tensors), 0
    for bucket in buckets(tensors):
        vector = tensors[bucket[0]]
        if len(bucket) > 1:
            vector = tf.concat([tf.reshape(tensors[i], [-1]) for i in bucket], axis=0)
        size += (vector.shape.num_elements() or 0) * vector.dtype.size
        if clock is not None:
            clock.ready(vector)
        # One call each: TensorFlow lays what it is given in one call end to end.
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, vector)
        if clock is not None:
            clock.done(total)
        if len(bucket) == 1:
            result[bucket[0]] = total
            continue
        sizes = [tensors[i].shape.num_elements() for i in bucket]
        for i, part in zip(bucket, tf.split(total, sizes), strict=True):
            result[i] = tf.reshape(part, tensors[i].shape)
    if statistics is not None:
        statistics.all_reduce_bytes = size
        if clock is not None:
            statistics.record_all_reduce(clock.busy, clock.exposed)
    return result


class _Clock:
    """Times the sums of a step, of which one begins when the one before has ended.

    Attributes:
        busy: float64 scalar, seconds in which one was under way.
        exposed: float64 scalar, seconds from when all was there to be summed to the end.
    """

    def __init__(self) -> None:
        zero = tf.constant(0.0, tf.float64)
        self.busy = self._ready = self._last_ready = self._done = zero

    @classmethod
    def of(cls, context: Any) -> _Clock | None:
        """A clock for the first replica; None for others, and on GPUs.

        There an operation counts as done when the GPU has been told of it.
        """
        if tf.get_static_value(context.replica_id_in_sync_group) != 0:
            return None
        device = tf.DeviceSpec.from_string(context.strategy.extended.worker_devices[0])
        return cls() if device.device_type == "CPU" else None

    def ready(self, vector: tf.Tensor) -> None:
        """Called before `vector` is summed."""
        with tf.control_dependencies([vector]):
            self._ready = tf.timestamp()
        self._last_ready = tf.maximum(self._last_ready, self._ready)

    def done(self, total: tf.Tensor) -> None:
        """Called with the sum."""
        begun = tf.maximum(self._ready, self._done)
        with tf.control_dependencies([total]):
            self._done = tf.timestamp()
        self.busy += self._done - begun

    @property
    def exposed(self) -> tf.Tensor:
        return self._done - self._last_ready
