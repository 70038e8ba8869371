"""Augmentations that move boxes with their image, on the device.

What comes in at an edge is grey: a reflection would be objects without boxes.
"""

from __future__ import annotations

import tensorflow as tf

from tfgpu.data.augment import (
    GREY,
    Transformation,
    random_flip,
    resampled,
    resize_factors,
)
from tfgpu.data.augmentations.color_jitter import AUGMENTATION as COLOR_JITTER
from tfgpu.data.gathering import gather
from tfgpu.models.detections import CLASS, CROWD

VISIBLE = 0.3
"""The share of a box's area below which what an edge leaves of it counts nowhere."""


def crop(x: tf.Tensor, y: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Shifts each image by up to an eighth of its sides.

    Args:
        x: uint8 (n, height, width, channels).
        y: Boxes (n, boxes, 6).
        draws: float32 in [0, 1), (n, 2): down and right.
    """
    height, width = x.shape[1], x.shape[2]
    most = tf.constant([height // 8, width // 8], tf.float32)
    shift = tf.floor(draws * (2 * most + 1)) - most
    rows = tf.range(height)[None, :] - tf.cast(shift[:, :1], tf.int32)
    columns = tf.range(width)[None, :] - tf.cast(shift[:, 1:], tf.int32)
    moved = gather(x, tf.clip_by_value(rows, 0, height - 1), axis=1, batch_dims=1)
    moved = gather(moved, tf.clip_by_value(columns, 0, width - 1), axis=2, batch_dims=1)
    there = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    one = tf.ones_like(shift)
    return _grey(moved, *there), _placed(y, scale=one, offset=shift, size=(height, width))


def flip(x: tf.Tensor, y: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors each image left to right with probability 1/2; `draws` are (n, 1)."""
    width = float(x.shape[2])
    padding = y[..., CLASS] < 0
    mirrored = tf.stack(
        [
            y[..., 0],
            width - y[..., 3],
            y[..., 2],
            width - y[..., 1],
            *tf.unstack(y[..., 4:], axis=2),
        ],
        axis=-1,
    )
    kept = (draws[:, :1] >= 0.5) | padding
    return random_flip(x, draws), tf.where(kept[..., None], y, mirrored)


def resize(x: tf.Tensor, y: tf.Tensor, draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Enlarges or shrinks each image about its middle, by the factors of `random_resize`.

    Args:
        x: uint8 (n, height, width, channels).
        y: Boxes (n, boxes, 6).
        draws: float32 in [0, 1), (n, 2): for the scale and for the stretch.
    """
    size = height, width = x.shape[1], x.shape[2]
    scale, stretch = resize_factors(draws)
    factors = tf.concat([scale * stretch, scale / stretch], axis=1)

    def taken(side: int, factor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        middle = (side - 1) / 2
        position = middle + (tf.range(side, dtype=tf.float32)[None, :] - middle) / factor
        # A pixel reaches half of its side beyond its middle.
        there = (position >= -0.5) & (position <= side - 0.5)
        return tf.clip_by_value(position, 0.0, side - 1.0), there

    rows, row_there = taken(height, factors[:, :1])
    columns, column_there = taken(width, factors[:, 1:])
    half = tf.constant([height / 2, width / 2], tf.float32)
    moved = _grey(resampled(x, rows, columns), row_there, column_there)
    return moved, _placed(y, scale=factors, offset=half * (1 - factors), size=size)


def _grey(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Images with grey where a row or a column is not there: bool (n, height), (n, width)."""
    there = rows[:, :, None, None] & columns[:, None, :, None]
    return tf.where(there, images, tf.cast(GREY, images.dtype))


def _placed(
    y: tf.Tensor, *, scale: tf.Tensor, offset: tf.Tensor, size: tuple[int, int]
) -> tf.Tensor:
    """Boxes where an image was scaled, then shifted, and cut to its size.

    Of what is cut to less than `VISIBLE` of its area, the rest counts neither for nor against; what
    is cut away is padding.

    Args:
        y: Boxes (n, boxes, 6).
        scale: (n, 2), down and right.
        offset: (n, 2), in pixels.
        size: (height, width).
    """
    corner = tf.concat([scale, scale], axis=1)[:, None]
    whole = y[..., :4] * corner + tf.concat([offset, offset], axis=1)[:, None]
    limit = tf.constant([*size, *size], tf.float32)
    box = tf.clip_by_value(whole, 0.0, limit)

    def area(box: tf.Tensor) -> tf.Tensor:
        return (box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1])

    real = (y[..., CLASS] >= 0) & (area(box) > 0)
    hidden = area(box) < VISIBLE * area(whole)
    crowd = tf.where(hidden, 1.0, y[..., CROWD])
    placed = tf.concat([box, y[..., CLASS:CROWD], crowd[..., None]], axis=-1)
    nothing = tf.constant([0.0, 0.0, 0.0, 0.0, -1.0, 0.0])
    return tf.where(real[..., None], placed, nothing)


AUGMENT = {
    "crop": Transformation("crop", 2, crop),
    "flip": Transformation("flip", 1, flip),
    "resize": Transformation("resize", 2, resize),
    "color_jitter": COLOR_JITTER,
}
