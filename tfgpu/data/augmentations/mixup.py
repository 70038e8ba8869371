"""Mixes two images, and their classes in the same proportion."""

from __future__ import annotations

import tensorflow as tf

from tfgpu.data.augment import Transformation, to_pixels


def mixup(
    images: tf.Tensor, classes: tf.Tensor, draws: tf.Tensor, others: tf.Tensor, theirs: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes a share of each image and the rest of another.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, with the alpha of
    1 that it has for CIFAR-10: shares are uniform in [0, 1].

    Args:
        images: uint8 (n, height, width, channels).
        classes: float32 (n, classes), probabilities.
        draws: float32 in [0, 1), (n, 1): the shares.
        others: Images to mix with, of the same shape.
        theirs: Their probabilities.

    Returns:
        Images and probabilities of the same shapes and dtypes.
    """
    share = draws[:, :, None, None]
    mixed = share * tf.cast(images, tf.float32) + (1 - share) * tf.cast(others, tf.float32)
    return to_pixels(mixed, images.dtype), draws * classes + (1 - draws) * theirs


AUGMENTATION = Transformation("mixup", 1, mixup, mixes=True)
