"""Parts of numbers that are of all rows: what each replica has, and what all have together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfgpu.engine.shards import Rows, rows_before

Exchange = Callable[[tf.Tensor], "tf.Tensor | None"]
"""Sums a tensor over the replicas; None where they cannot meet."""


class Unseen(Exception):
    """Nobody can tell what a value is of the rows; says why, to follow "made of rows"."""


class Part(NamedTuple):
    """What a replica has of something that is of all rows.

    Attributes:
        tensor: The replica's.
        how: What the replicas do with theirs: "sum", average by rows ("mean"), "max", "min", put
            one after the other ("rows"), or add up the first number ("shape").
        blocks: Of rows: how many times all stand in it, one time after the other.
    """

    tensor: tf.Tensor
    how: str
    blocks: int = 1


def together(rows: Rows, part: Part, exchange: Exchange) -> tf.Tensor:
    """What all replicas have of something, of what each has."""

    def summed(value: tf.Tensor) -> tf.Tensor:
        total = exchange(value)
        if total is None:
            raise Unseen("inside a tf.function, a branch or a loop")
        found: tf.Tensor = _of_dense_gradient(total) if total.dtype.is_floating else total
        return found

    tensor, dtype = part.tensor, part.tensor.dtype
    if part.how == "shape":
        count = summed(tf.cast(tensor[:1], tf.int64) * tf.cast(rows.present, tf.int64))
        return tf.concat([tf.cast(count, dtype), tensor[1:]], axis=0)
    tensor = _summable(tensor)
    if part.how == "rows":
        each = [_padded(rows, block) for block in _blocks(tensor, part.blocks)]
        return tf.cast(summed(tf.concat(each, axis=0)), dtype)
    if part.how == "mean":
        tensor = tensor * tf.cast(rows.share, tensor.dtype)
    if part.how in ("sum", "mean"):
        if rows.may_be_absent:
            tensor = tf.where(rows.present, tensor, tf.zeros_like(tensor))
        return tf.cast(summed(tensor), dtype)
    is_own = tf.reshape(_is_own(rows), [-1, *[1] * len(tensor.shape)])
    each = summed(tf.where(is_own, tensor[tf.newaxis], tf.zeros_like(tensor)))
    have = tf.range(rows.replicas) < rows.present_replicas  # The first ones.
    extreme: Callable[..., Any] = tf.reduce_max if part.how == "max" else tf.reduce_min
    return tf.cast(extreme(tf.boolean_mask(each, have), axis=0), dtype)


@tf.custom_gradient
def _of_dense_gradient(tensor: tf.Tensor) -> Any:
    """`tensor`, whose gradient replicas can add up: of rows that are chosen it is slices."""
    return tf.identity(tensor), tf.convert_to_tensor


def own_gradient(rows: Rows, part: Part, up: tf.Tensor) -> tf.Tensor:
    """The gradient by a replica's part of something, of that by what all replicas have.

    Args:
        rows: Of the replica's shard.
        part: No extreme, of which several replicas may have one.
        up: The gradient by what all replicas have.
    """
    if part.how == "rows":
        own = _blocks(part.tensor, part.blocks)
        ups = _blocks(up, part.blocks)
        return tf.concat([_own_part(rows, *each) for each in zip(own, ups, strict=True)], axis=0)
    if part.how == "mean":
        up = up * tf.cast(rows.share, up.dtype)
    return tf.where(rows.present, up, tf.zeros_like(up)) if rows.may_be_absent else up


def _blocks(tensor: tf.Tensor, blocks: int) -> list[tf.Tensor]:
    return [tensor] if blocks == 1 else list(tf.split(tensor, blocks, axis=0))


def _padded(rows: Rows, tensor: tf.Tensor) -> tf.Tensor:
    """A replica's rows in their place among those of all, which are 0."""
    before, after, own = _place(rows, tensor)
    return tf.pad(own, [[before, after], *([0, 0] for _ in tensor.shape[1:])])


def _own_part(rows: Rows, tensor: tf.Tensor, up: tf.Tensor) -> tf.Tensor:
    """What of the gradient by all rows is that by a replica's, and 0 for what does not count."""
    before, _, own = _place(rows, tensor)
    mine = up[before : before + tf.shape(own)[0]]
    missing = tf.shape(tensor)[0] - tf.shape(own)[0]
    return tf.pad(mine, [[0, missing], *([0, 0] for _ in up.shape[1:])])


def own_rows(rows: Rows, tensor: tf.Tensor, whole: tf.Tensor) -> tf.Tensor:
    """Those of a replica's rows out of something of all.

    Args:
        rows: Of the replica's shard.
        tensor: What the replica has of them, whose rows stay where they do not count.
        whole: What that is of all rows, in their order.
    """
    before, _, own = _place(rows, tensor)
    count = tf.shape(own)[0]
    mine = tf.concat([whole[before : before + count], tensor[count:]], axis=0)
    return tf.ensure_shape(mine, tensor.shape)


def _is_own(rows: Rows) -> tf.Tensor:
    """bool, (replicas,): true at this replica's place."""
    context: Any = tf.distribute.get_replica_context()
    return tf.equal(tf.range(rows.replicas), context.replica_id_in_sync_group)


def _place(rows: Rows, tensor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """How many entries stand before and after a replica's among those of all, and its own."""
    context: Any = tf.distribute.get_replica_context()
    replica = tf.cast(context.replica_id_in_sync_group, tf.int32)
    total = tf.cast(rows.total, tf.int32)
    real = tf.cast(rows.real, tf.int32)
    times = tf.shape(tensor)[0] // tf.maximum(real, 1)  # Time steps of a row, say.
    before = rows_before(total, replica, rows.replicas) * times
    own = tensor[: real * times]
    return before, total * times - before - real * times, own


def _summable(tensor: tf.Tensor) -> tf.Tensor:
    """A tensor in a dtype that travels between replicas, and does not overflow on the way."""
    if tensor.dtype == tf.bool or tensor.dtype.is_integer:
        # TensorFlow keeps small integers on the host, and sums none on other devices.
        return tf.cast(tensor, tf.int64)
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor
