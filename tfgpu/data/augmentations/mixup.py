"""Mixes two examples, images or recordings, and their classes in the same proportion."""

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


def mixup_recordings(
    values: tf.Tensor,
    length: tf.Tensor,
    draws: tf.Tensor,
    others: tf.Tensor,
    their_length: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Takes a share of each recording and the rest of another, which begin together.

    The source and the shares are those of `mixup`. Samples, which are integers, are added up. Of
    features, of which 0 is no silence, the one that lasts longer goes on alone.

    Args:
        values: (n, time) integers or (n, time, features) floats, 0 from `length` on.
        length: int32 (n,), how many of each are real.
        draws: float32 in [0, 1), (n, 1): the shares.
        others: Values to mix with, of the same shape.
        their_length: Of those.

    Returns:
        Values and lengths of the same shapes and dtypes.
    """
    time, rank = values.shape[1], values.shape.rank

    def shares(of_each: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        real = tf.cast(tf.range(time)[None, :] < length[:, None], tf.float32)
        return tf.reshape(of_each * real, [-1, time] + [1] * (rank - 2))

    own, theirs = shares(draws, length), shares(1 - draws, their_length)
    mixed = own * tf.cast(values, tf.float32) + theirs * tf.cast(others, tf.float32)
    longer = tf.maximum(length, their_length)
    if values.dtype.is_integer:
        return tf.cast(tf.round(mixed), values.dtype), longer
    # A share of 0 alone: nothing but that recording is there, and it is silent.
    return tf.math.divide_no_nan(mixed, own + theirs), longer


AUGMENTATION = Transformation("mixup", 1, mixup, mixes=True)
