"""Cuts out a part of each image and brings it to the size of the whole."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfgpu.data import elementary
from tfgpu.data.augment import Transformation, resampled

LEAST_AREA = 0.08
MOST_RATIO = 4 / 3


def window(draws: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, ...]:
    """Top, left, height and width of what is cut out, whole pixels: float32 (n,) each."""
    area = (LEAST_AREA + (1 - LEAST_AREA) * draws[:, 0]) * height * width
    ratio = elementary.exp(math.log(MOST_RATIO) * (2 * draws[:, 1] - 1))
    tall = tf.clip_by_value(tf.round(tf.sqrt(area / ratio)), 1.0, float(height))
    wide = tf.clip_by_value(tf.round(tf.sqrt(area * ratio)), 1.0, float(width))
    top = tf.floor(draws[:, 2] * (height - tall + 1))
    left = tf.floor(draws[:, 3] * (width - wide + 1))
    return top, left, tall, wide


def resized_crop(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Enlarges a window of 8 to 100 % of the area, with sides in a ratio of 3:4 to 4:3; bilinear.

    Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6. A side that
    comes out longer than the image's is cut to it, where others draw again.

    Args:
        images: uint8 (n, height, width, channels).
        draws: float32 in [0, 1), (n, 4): area, ratio, row and column.

    Returns:
        Images of the same shape and dtype.
    """
    height, width = images.shape[1], images.shape[2]
    top, left, tall, wide = window(draws, height, width)

    def positions(size: int, first: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        # Pixels have their middles at halves; beyond those of the window's edge is the edge.
        steps = (tf.range(size, dtype=tf.float32)[None, :] + 0.5) / size
        at = steps * length[:, None] - 0.5
        return first[:, None] + tf.clip_by_value(at, 0.0, length[:, None] - 1)

    return resampled(images, positions(height, top, tall), positions(width, left, wide))


def change(x: tf.Tensor, y: Any, draws: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """See `resized_crop`."""
    return resized_crop(x, draws), y


AUGMENTATION = Transformation("resized_crop", 4, change)
