"""Puts a part of one image into another, and mixes their classes by the area."""

from __future__ import annotations

import tensorflow as tf

from tfgpu.data.augment import Transformation, inside

PROBABILITY = 0.5
"""That an image gets a part of another: what the paper's code has for CIFAR."""


def cutmix(
    images: tf.Tensor, classes: tf.Tensor, draws: tf.Tensor, others: tf.Tensor, theirs: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Replaces a rectangle of every second image, on average, by that of another image.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with
    Localizable Features", ICCV 2019: areas are uniform (alpha is 1), sides in the ratio of the
    image's, the middle anywhere; what lies outside is left out, also of the mixture of classes.

    Args:
        images: uint8 (n, height, width, channels).
        classes: float32 (n, classes), probabilities.
        draws: float32 in [0, 1), (n, 4): whether, the share that stays, row and column.
        others: Images to take from, of the same shape.
        theirs: Their probabilities.

    Returns:
        Images and probabilities of the same shapes and dtypes.
    """
    height, width = images.shape[1], images.shape[2]
    part = tf.sqrt(1 - draws[:, 1])
    # The paper's code cuts half the side, rounded down, to each side of the middle.
    rows, columns = tf.floor(tf.floor(height * part) / 2), tf.floor(tf.floor(width * part) / 2)
    middle, centre = tf.floor(draws[:, 2] * height), tf.floor(draws[:, 3] * width)
    here = draws[:, 0] < PROBABILITY
    top, bottom = tf.maximum(middle - rows, 0.0), tf.minimum(middle + rows, float(height))
    left, right = tf.maximum(centre - columns, 0.0), tf.minimum(centre + columns, float(width))
    taken = inside(height, width, top=top, bottom=bottom, left=left, right=right)
    area = tf.where(here, (bottom - top) * (right - left) / (height * width), 0.0)[:, None]
    mixed = tf.where(taken & here[:, None, None, None], others, images)
    return mixed, (1 - area) * classes + area * theirs


AUGMENTATION = Transformation("cutmix", 4, cutmix, mixes=True)
