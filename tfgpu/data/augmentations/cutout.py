"""Hides a square of each image."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfgpu.data.augment import GREY, Transformation, inside


def cutout(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Makes a square grey whose side is half that of the image; a part of it may lie outside.

    Source: DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with
    Cutout", arXiv:1708.04552: 16 pixels for CIFAR-10, the middle anywhere in the image.

    Args:
        images: uint8 (n, height, width, channels).
        draws: float32 in [0, 1), (n, 2): for the row and the column of the middle.

    Returns:
        Images of the same shape and dtype.
    """
    height, width = images.shape[1], images.shape[2]
    side = min(height, width) // 2
    top = tf.floor(draws[:, 0] * height) - side // 2
    left = tf.floor(draws[:, 1] * width) - side // 2
    hidden = inside(height, width, top=top, bottom=top + side, left=left, right=left + side)
    return tf.where(hidden, tf.cast(GREY, images.dtype), images)


def change(x: tf.Tensor, y: Any, draws: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """See `cutout`."""
    return cutout(x, draws), y


AUGMENTATION = Transformation("cutout", 2, change)
