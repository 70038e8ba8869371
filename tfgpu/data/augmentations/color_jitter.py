"""Changes brightness, contrast, saturation and hue."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data import elementary
from tfgpu.data.augment import LUMA, Transformation, grey, to_pixels

BRIGHTNESS = CONTRAST = SATURATION = 0.4
"""Factors are up to this below and above 1."""

HUE = 0.1
"""Of a turn, to either side."""

# From red, green and blue to luma and two coordinates of colour (YIQ, NTSC 1953), in which another
# hue is a rotation.
_TO_YIQ = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)], np.float32)
_FROM_YIQ = np.linalg.inv(_TO_YIQ).astype(np.float32)


def color_jitter(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Changes the colours of each image by one affine map.

    In this order, and cut to 0 to 255 at the end alone: brightness scales; contrast scales about
    the mean luma; saturation scales about the luma of each pixel; hue rotates about the grey axis.
    The factors are those that Howard, "Some Improvements on Deep Convolutional Neural Network
    Based Image Classification", arXiv:1312.5402, made common. Grey images have the first two.

    Args:
        images: uint8 (n, height, width, channels), of 1 or 3 channels.
        draws: float32 in [0, 1), (n, 4): brightness, contrast, saturation, hue.

    Returns:
        Images of the same shape and dtype.
    """
    values = tf.cast(images, tf.float32)
    factors = 1 + tf.constant([BRIGHTNESS, CONTRAST, SATURATION]) * (2 * draws[:, :3] - 1)
    bright, contrast, saturation = (factors[:, i, None, None] for i in range(3))
    values *= bright[..., None]
    mean = tf.reduce_mean(grey(values), axis=(1, 2, 3), keepdims=True)
    values = mean + contrast[..., None] * (values - mean)
    if images.shape[-1] == 3:
        angle = 2 * math.pi * HUE * (2 * draws[:, 3] - 1)
        one, zero = tf.ones_like(angle), tf.zeros_like(angle)
        cos, sin = elementary.cos(angle), elementary.sin(angle)
        turned = tf.reshape(
            tf.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], axis=-1), [-1, 3, 3]
        )
        luma = tf.constant(np.tile(np.array(LUMA, np.float32), (3, 1)))
        saturated = saturation * tf.eye(3) + (1 - saturation) * luma
        matrix = tf.constant(_FROM_YIQ) @ turned @ tf.constant(_TO_YIQ) @ saturated
        flat = tf.reshape(values, [-1, images.shape[1] * images.shape[2], 3])
        values = tf.reshape(tf.matmul(flat, matrix, transpose_b=True), tf.shape(values))
    return to_pixels(tf.ensure_shape(values, images.shape), images.dtype)


def change(x: tf.Tensor, y: Any, draws: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """See `color_jitter`."""
    return color_jitter(x, draws), y


AUGMENTATION = Transformation("color_jitter", 4, change)
