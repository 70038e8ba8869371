"""exp, sin and cos that give an example the same bits whatever its place in a batch.

TensorFlow's own compute most of a vector with one formula and its last elements, which fill no
register, with another: they may differ in the last bit, and with them a pixel that is rounded, or a
box that is assigned to a cell. Then replicas, whose parts of the batch end elsewhere, would not
train what one device trains. Sums and products of floats are the same in both ways.
"""

from __future__ import annotations

import math

import tensorflow as tf

LARGEST = 1.0
"""Of the argument's size, up to which the error is that of float32."""

_TERMS = 13


def exp(x: tf.Tensor) -> tf.Tensor:
    """The exponential of float32 values of `LARGEST` at most, by its series at 0."""
    return _polynomial(x, [1 / math.factorial(k) for k in range(_TERMS)])


def sin(x: tf.Tensor) -> tf.Tensor:
    """The sine of float32 angles of `LARGEST` at most, by its series at 0."""
    terms = [(-1) ** k / math.factorial(2 * k + 1) for k in range(_TERMS // 2)]
    return x * _polynomial(x * x, terms)


def cos(x: tf.Tensor) -> tf.Tensor:
    """The cosine of float32 angles of `LARGEST` at most, by its series at 0."""
    return _polynomial(x * x, [(-1) ** k / math.factorial(2 * k) for k in range(_TERMS // 2)])


def _polynomial(x: tf.Tensor, coefficients: list[float]) -> tf.Tensor:
    """Horner's scheme; the first coefficient is the constant."""
    value = tf.fill(tf.shape(x), tf.constant(coefficients[-1], x.dtype))
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value
