"""Two operations an image, drawn out of fourteen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data import elementary
from tfgpu.data.augment import GREY, LUMA, Transformation, to_pixels
from tfgpu.data.gathering import gather

LAYERS = 2
MAGNITUDE = 9 / 30
"""Of the strongest."""

OPERATIONS = (
    *("identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize"),
    *("contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)

# At full magnitude, as in the paper's code and in torchvision: degrees, and parts of the image.
ROTATION = math.radians(30) * MAGNITUDE
SHEAR = 0.3 * MAGNITUDE
TRANSLATION = 150 / 331 * MAGNITUDE
ENHANCEMENT = 0.9 * MAGNITUDE
POSTERIZE_STEP = 2.0 ** round(4 * MAGNITUDE)
"""Pixels become multiples of it: the last bits are 0."""
SOLARIZE_FROM = 255 * (1 - MAGNITUDE)
TF32_EXACT = 2048
"""Whole numbers up to here have no more than the 11 bits of TF32."""


def randaugment(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Applies `LAYERS` operations in turn to each image.

    Source: Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced
    Search Space", CVPR Workshops 2020, with N = 2 and M = 9 of 30. Geometric operations take the
    nearest pixel, about the middle of the image, and fill in grey.

    Every image goes through three maps in each layer (of places, of values one by one, and towards
    another image), all of which but the drawn one leave it as it is: images then need not be
    told apart.

    Args:
        images: uint8 (n, height, width, channels), of 1 or 3 channels.
        draws: float32 in [0, 1), (n, 2 * LAYERS): of each layer the operation, and its direction.

    Returns:
        Images of the same shape and dtype.
    """
    for layer in range(LAYERS):
        drawn = tf.floor(draws[:, 2 * layer] * len(OPERATIONS))
        chosen = {name: drawn == float(i) for i, name in enumerate(OPERATIONS)}
        sign = tf.where(draws[:, 2 * layer + 1] < 0.5, -1.0, 1.0)
        images = _moved(images, chosen, sign)
        images = _mapped(images, chosen)
        images = _blended(images, chosen, sign)
    return images


def _amount(mask: tf.Tensor, amount: Any) -> tf.Tensor:
    return tf.where(mask, amount, tf.zeros_like(amount))


def _moved(images: tf.Tensor, chosen: dict[str, tf.Tensor], sign: tf.Tensor) -> tf.Tensor:
    """Rotation, shear and translation: where each pixel is taken from."""
    _, height, width, channels = images.shape
    angle = _amount(chosen["rotate"], sign * ROTATION)
    shear_x = _amount(chosen["shear_x"], sign * SHEAR)
    shear_y = _amount(chosen["shear_y"], sign * SHEAR)
    right = _amount(chosen["translate_x"], sign * tf.round(TRANSLATION * width))
    down = _amount(chosen["translate_y"], sign * tf.round(TRANSLATION * height))

    def of_images(value: tf.Tensor) -> tf.Tensor:
        return value[:, None, None]

    cos, sin = of_images(elementary.cos(angle)), of_images(elementary.sin(angle))
    row = (tf.range(height, dtype=tf.float32) - (height - 1) / 2)[None, :, None]
    column = (tf.range(width, dtype=tf.float32) - (width - 1) / 2)[None, None, :]
    # One of them at most is not the identity, so their order is of no matter.
    from_row = cos * row + (sin + of_images(shear_y)) * column + of_images(down)
    from_column = cos * column + (of_images(shear_x) - sin) * row + of_images(right)
    # Rounded half up, so that a half does not depend on the row.
    from_row = tf.floor(from_row + (height - 1) / 2 + 0.5)
    from_column = tf.floor(from_column + (width - 1) / 2 + 0.5)
    there = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
    at = tf.clip_by_value(from_row, 0.0, height - 1.0) * width
    at += tf.clip_by_value(from_column, 0.0, width - 1.0)
    # One pixel more, which is grey.
    at = tf.where(there, at, tf.fill(tf.shape(at), float(height * width)))
    flat = tf.pad(
        tf.reshape(images, [-1, height * width, channels]),
        [[0, 0], [0, 1], [0, 0]],
        constant_values=GREY,
    )
    places = tf.cast(tf.reshape(at, [-1, height * width]), tf.int32)
    moved = gather(flat, places, axis=1, batch_dims=1)
    return tf.reshape(moved, [-1, height, width, channels])


def _mapped(images: tf.Tensor, chosen: dict[str, tf.Tensor]) -> tf.Tensor:
    """Solarize, posterize, autocontrast and equalize: a table of 256 values a channel."""
    _, height, width, channels = images.shape
    values = tf.range(256, dtype=tf.float32)[None, None, :]
    # Of image i and channel c the counts are those from 256 (i C + c) on.
    first = tf.range(tf.cast(tf.shape(images)[0], tf.float32))[:, None] * (channels * 256)
    first = first + tf.tile(tf.range(channels, dtype=tf.float32) * 256, [height * width])
    pixels = tf.reshape(tf.cast(images, tf.float32), [-1, height * width * channels])
    slots = tf.reshape(tf.cast(first + pixels, tf.int32), [-1])
    counts = tf.math.unsorted_segment_sum(
        tf.ones_like(slots, tf.float32), slots, tf.shape(images)[0] * channels * 256
    )
    counts = tf.reshape(counts, [-1, channels, 256])

    there = tf.cast(counts > 0, tf.float32)
    most = tf.reduce_max(there * values, axis=-1, keepdims=True)
    least = 255 - tf.reduce_max(there * (255 - values), axis=-1, keepdims=True)
    spread = most - least
    # A whole number may come out a little below itself.
    scaled = tf.floor((values - least) * (255 / tf.maximum(spread, 1.0)) + 1e-3)
    stretched = tf.clip_by_value(scaled, 0.0, 255.0)
    autocontrast = _either(spread > 0, stretched, values)

    of_most = tf.reduce_sum(tf.cast(tf.equal(values, most), tf.float32) * counts, -1, keepdims=True)
    step = tf.floor((height * width - of_most) / 255)
    before = _sums_before(counts, height * width)
    filled = tf.floor((tf.floor(step / 2) + before) / tf.maximum(step, 1.0))
    equalized = _either(step > 0, tf.minimum(filled, 255.0), values)

    table = values
    for name, map_ in (
        ("autocontrast", autocontrast),
        ("equalize", equalized),
        ("solarize", tf.where(values < SOLARIZE_FROM, values, 255 - values)),
        ("posterize", tf.floor(values / POSTERIZE_STEP) * POSTERIZE_STEP),
    ):
        table = _either(chosen[name][:, None, None], map_, table)
    found = tf.cast(tf.gather(tf.reshape(table, [-1]), slots), images.dtype)
    return tf.reshape(found, [-1, height, width, channels])


def _sums_before(counts: tf.Tensor, total: int) -> tf.Tensor:
    """The sum of all before each of 256 values that add up to `total`, in two levels of 16.

    A third of the time of `tf.cumsum` on a CPU. XLA fuses sums of shifted values with what takes
    them, and computes them once more for each pixel; it does not so with products.
    """
    groups = tf.reshape(counts, [-1, 16])
    within = _sums(groups, total)
    of_groups = tf.reshape(within[:, -1], [-1, 16])
    before = tf.reshape(_sums(of_groups, total) - of_groups, [-1, 1])
    return tf.reshape(within - groups + before, tf.shape(counts))


def _sums(values: tf.Tensor, total: int) -> tf.Tensor:
    """The sum of all up to each of 16 whole numbers, exactly."""
    if total > TF32_EXACT:  # GPUs multiply in TF32.
        high = tf.floor(values / TF32_EXACT)
        low = values - TF32_EXACT * high
        return TF32_EXACT * _sums(high, total // TF32_EXACT) + _sums(low, TF32_EXACT)
    return tf.matmul(values, tf.constant(np.triu(np.ones([16, 16], np.float32))))


def _either(mask: tf.Tensor, one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """`tf.where`, which is slow on CPUs where it broadcasts; exact for whole numbers."""
    return other + tf.cast(mask, tf.float32) * (one - other)


def _blended(images: tf.Tensor, chosen: dict[str, tf.Tensor], sign: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast, colour and sharpness: away from or towards another image.

    That is black, the mean luma, the luma of each pixel, or the smoothed image. All but the last
    are an affine map of the three channels.
    """
    _, height, width, channels = images.shape
    values = tf.cast(images, tf.float32)
    masks = {
        name: tf.cast(chosen[name], tf.float32)
        for name in ("brightness", "contrast", "color", "sharpness")
    }
    factor = 1 + tf.add_n(list(masks.values())) * sign * ENHANCEMENT
    means = tf.reduce_mean(values, axis=(1, 2))  # Of channels.
    weights = tf.constant(np.array(LUMA if channels == 3 else (1.0,), np.float32))
    mean = tf.floor(tf.linalg.matvec(means, weights) + 0.5)
    added = masks["contrast"] * (1 - factor) * mean
    luma = tf.tile(weights[:, None], [1, channels])
    matrix = factor[:, None, None] * tf.eye(channels)
    matrix += (masks["color"] * (1 - factor))[:, None, None] * luma
    flat = tf.matmul(tf.reshape(values, [-1, height * width, channels]), matrix)
    flat = tf.reshape(flat, [-1, height * width * channels]) + added[:, None]
    smooth = tf.reshape(_smooth(values), [-1, height * width * channels])
    flat += (masks["sharpness"] * (1 - factor))[:, None] * smooth
    return to_pixels(tf.reshape(flat, [-1, height, width, channels]), images.dtype)


def _smooth(values: tf.Tensor) -> tf.Tensor:
    """The mean of 3x3 pixels, the middle one five times; the border stays."""
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    middle = tf.round((total + 4 * values[:, 1:-1, 1:-1]) * np.float32(1 / 13))
    middle = tf.concat([values[:, 1:-1, :1], middle, values[:, 1:-1, -1:]], axis=2)
    return tf.concat([values[:, :1], middle, values[:, -1:]], axis=1)


def change(x: tf.Tensor, y: Any, draws: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """See `randaugment`."""
    return randaugment(x, draws), y


AUGMENTATION = Transformation("randaugment", 2 * LAYERS, change)
