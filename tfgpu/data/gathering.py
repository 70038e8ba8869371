"""Gathering on the device: TensorFlow's GPU kernels know no small integers."""

from __future__ import annotations

import math

import tensorflow as tf

from tfgpu.engine.local_copies import is_compiling

_SMALL = (tf.uint8, tf.int8, tf.uint16, tf.int16)
# None of them is changed on its way: they are moved as they are.
_WORDS = {4: tf.int32, 2: tf.float16}


def gather(
    values: tf.Tensor, indices: tf.Tensor, *, axis: int = 0, batch_dims: int = 0
) -> tf.Tensor:
    """`tf.gather`, of which no part is done by the host where there is a GPU.

    TensorFlow has no kernel for 8 and 16 bit integers on GPUs (2.21), and without XLA copies the
    values to the host, and what was gathered back. Here examples of a data set are gathered as
    32 bit words, and rows or pixels of a batch as int32.

    Args:
        values: Any dtype.
        indices: As in `tf.gather`.
        axis: As in `tf.gather`.
        batch_dims: As in `tf.gather`.

    Returns:
        What `tf.gather` returns, to the bit.
    """
    by_tensorflow = tf.config.list_logical_devices("GPU") and not is_compiling()
    if values.dtype not in _SMALL or not by_tensorflow:
        return tf.gather(values, indices, axis=axis, batch_dims=batch_dims)
    if axis == 0:
        return _gather_words(values, indices)
    wide = tf.gather(tf.cast(values, tf.int32), indices, axis=axis, batch_dims=batch_dims)
    return tf.cast(wide, values.dtype)


def _gather_words(values: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Gathers examples as words of 4 bytes, or of 2; one byte at a time is left to the host."""
    shape = values.shape[1:]
    if not shape.is_fully_defined():
        return tf.gather(values, indices)
    width = math.prod(shape) * values.dtype.size
    for size, word in _WORDS.items():
        if width % size == 0 and width:
            each = size // values.dtype.size
            parts = [-1, width // size, each] if each > 1 else [-1, width // size]
            words = tf.bitcast(tf.reshape(values, parts), word)
            found = tf.bitcast(tf.gather(words, indices), values.dtype)
            return tf.reshape(found, [*tf.unstack(tf.shape(indices)), *shape])
    return tf.gather(values, indices)
