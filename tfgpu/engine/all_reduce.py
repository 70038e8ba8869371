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

from tfgpu.engine.current import current
from tfgpu.engine.step_statistics import StepStatistics, has_clock

BUCKET_BYTES = 4 << 20
"""Bytes of a bucket. See docs/scaling.md for what other sizes take."""

MOST_BUCKETS = 32
"""Of a step, about: with more bytes the buckets are larger, since each pays the latency."""

exchanging = True
"""Set to False before the step is traced, replicas keep their own values in the place of the sums:
what is learnt is wrong, and what the exchange costs can be measured."""


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
    with current.having(own_code=False, exchanging=True):
        return _sums(context, tensors, statistics)


def _sums(context: Any, tensors: Sequence[Any], statistics: StepStatistics | None) -> list[Any]:
    if context.num_replicas_in_sync == 1 or not exchanging:
        return list(tensors)
    together = buckets(tensors)
    vectors = [_end_to_end([tensors[i] for i in bucket]) for bucket in together]
    clock = None if statistics is None else _Clock.of(context, vectors)
    # One call each: TensorFlow lays what it is given in one call end to end.
    totals = [context.all_reduce(tf.distribute.ReduceOp.SUM, vector) for vector in vectors]
    result = list(tensors)
    for bucket, total in zip(together, totals, strict=True):
        if len(bucket) == 1:
            result[bucket[0]] = total
            continue
        sizes = [tensors[i].shape.num_elements() for i in bucket]
        for i, part in zip(bucket, tf.split(total, sizes), strict=True):
            result[i] = tf.reshape(part, tensors[i].shape)
    if statistics is not None:
        statistics.all_reduce_bytes = sum(
            (vector.shape.num_elements() or 0) * vector.dtype.size for vector in vectors
        )
        if clock is not None:
            statistics.record_all_reduce(*clock.seconds(totals))
    return result


def _end_to_end(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    if len(tensors) == 1:
        return tensors[0]
    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)


class _Clock:
    """Times the sums of a step.

    TensorFlow runs the operations that ask for the time one after the other, in the order in which
    they were made: here that in which they are due.

    Args:
        vectors: What is summed, in order.
    """

    def __init__(self, vectors: Sequence[tf.Tensor]):
        self._first, self._all = _time_of(vectors[:1]), _time_of(vectors)

    @classmethod
    def of(cls, context: Any, vectors: Sequence[tf.Tensor]) -> _Clock | None:
        """A clock for the first replica; None for others, on GPUs, and where nothing is summed.

        On a GPU an operation counts as done when the GPU has been told of it. None too where
        there is no clock.
        """
        first = tf.get_static_value(context.replica_id_in_sync_group) == 0
        if not first or not vectors or not has_clock():
            return None
        device = tf.DeviceSpec.from_string(context.strategy.extended.worker_devices[0])
        return cls(vectors) if device.device_type == "CPU" else None

    def seconds(self, totals: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """float64 scalars: from when the first vector, and from when all were there, to the end."""
        end = _time_of(totals)
        return end - self._first, end - self._all


def _time_of(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """When all of these were there."""
    with tf.control_dependencies(tensors):
        return tf.timestamp()
