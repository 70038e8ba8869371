"""Shifts recordings in time: samples, or frames of features, padded at the end."""

from __future__ import annotations

import tensorflow as tf

MOST = 0.1
"""By which part of the padded length a recording is moved at most."""


def shift(values: tf.Tensor, length: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Begins each recording later or earlier.

    One that begins later has its first value repeated before it, and what no longer fits is cut
    off at the end; of one that begins earlier the beginning is cut off, half of it at most.

    Args:
        values: (n, time) or (n, time, features), any dtype, 0 from `length` on.
        length: int32 (n,), how many of each are real, from 1.
        draws: float32 in [0, 1), (n, 1): the shift, from -MOST to MOST of the time.

    Returns:
        Values and lengths of the same shapes and dtypes.
    """
    time = values.shape[1]
    most = int(MOST * time)
    moved = tf.cast(tf.floor(draws[:, 0] * (2 * most + 1)), tf.int32) - most
    moved = tf.maximum(moved, -(length // 2))
    last = (length - 1)[:, None]
    index = tf.clip_by_value(tf.range(time)[None, :] - moved[:, None], 0, last)
    changed = tf.gather(values, index, axis=1, batch_dims=1)
    now = tf.minimum(length + moved, time)
    real = tf.range(time)[None, :] < now[:, None]
    real = tf.reshape(real, [-1, time] + [1] * (values.shape.rank - 2))
    return tf.where(real, changed, tf.zeros([], values.dtype)), now
