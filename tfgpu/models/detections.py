"""From the outputs of a detector to boxes, in TensorFlow; and boxes in y.

y of an example is float32 (boxes, 6), a row a box: top, left, bottom, right, in pixels from the
top left corner of the image; its class, or -1 for a row that only pads; and 1 where it is to count
neither for nor against (a crowd in COCO, what is difficult in Pascal VOC), else 0.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tfgpu.models.detector import STRIDE

CLASS, CROWD, COLUMNS = 4, 5, 6
"""Columns of y, and how many there are; the first four are the box."""

MOST_DETECTIONS = 100
"""For an image, as COCO counts them; more where training images have more boxes."""

OVERLAP = 0.6
"""Intersection over union from which the lesser of two detections of one class is suppressed."""

MOST_LOG = 8.0
"""Bound of the logarithm of a box's sides, in cells, which makes up to 12,000 pixels."""


class Detections(NamedTuple):
    """Detections of a batch, the surest first.

    Attributes:
        boxes: float32 (n, detections, 4): top, left, bottom, right, in pixels.
        scores: float32 (n, detections), probabilities; 0 where there is none.
        classes: int32 (n, detections).
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor


def boxes_of_cells(values: tf.Tensor) -> tf.Tensor:
    """The boxes that a detector has for its cells.

    Args:
        values: float32 (n, rows, columns, 4): the last four outputs of a cell.

    Returns:
        float32 (n, rows, columns, 4): top, left, bottom, right, in pixels, of any values.
    """
    rows, columns = values.shape[1], values.shape[2]
    row = tf.range(rows, dtype=tf.float32)[:, None] + 0.5
    column = tf.range(columns, dtype=tf.float32)[None, :] + 0.5
    down, right = row + values[..., 0], column + values[..., 1]
    half = tf.exp(tf.clip_by_value(values[..., 2:4], -MOST_LOG, MOST_LOG)) / 2
    high, wide = half[..., 0], half[..., 1]
    return STRIDE * tf.stack([down - high, right - wide, down + high, right + wide], axis=-1)


def overlaps(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Intersection over union of each box with each: (n, a, 4) and (n, b, 4) to (n, a, b)."""
    a, b = first[:, :, None, :], second[:, None, :, :]
    low, high = tf.maximum(a[..., :2], b[..., :2]), tf.minimum(a[..., 2:4], b[..., 2:4])
    both = tf.reduce_prod(tf.maximum(high - low, 0.0), axis=-1)
    area_a = tf.reduce_prod(tf.maximum(a[..., 2:4] - a[..., :2], 0.0), axis=-1)
    area_b = tf.reduce_prod(tf.maximum(b[..., 2:4] - b[..., :2], 0.0), axis=-1)
    return tf.math.divide_no_nan(both, area_a + area_b - both)


def detect(outputs: tf.Tensor, *, count: int) -> Detections:
    """Finds the surest peaks of a detector's outputs, and suppresses those that overlap.

    A cell is a peak of a class where no neighbour is surer. Of two peaks of a class that overlap by
    more than `OVERLAP` the lesser is suppressed, also by one that is suppressed itself: the "Fast
    NMS" of Bolya et al., "YOLACT: Real-Time Instance Segmentation", ICCV 2019. That has no loop, so
    every format of an exported file can hold it.

    Args:
        outputs: float32 (n, rows, columns, classes + 4), of a model of this task.
        count: Detections of an image; there are no more than cells times classes.

    Returns:
        Detections; those that are suppressed, or are no peaks, have the score 0.
    """
    outputs = tf.cast(outputs, tf.float32)
    classes = outputs.shape[-1] - 4
    rows, columns = outputs.shape[1], outputs.shape[2]
    logits = outputs[..., :classes]
    peaks = tf.nn.max_pool2d(logits, 3, 1, "SAME")
    scores = tf.where(logits >= peaks, tf.sigmoid(logits), 0.0)
    scores = tf.reshape(scores, [-1, rows * columns * classes])
    scores, places = tf.math.top_k(scores, min(count, scores.shape[1]))
    boxes = tf.reshape(boxes_of_cells(outputs[..., classes:]), [-1, rows * columns, 4])
    boxes = tf.gather(boxes, places // classes, batch_dims=1)
    found = places % classes
    same = found[:, :, None] == found[:, None, :]
    overlap = tf.where(same, overlaps(boxes, boxes), 0.0)
    # With those before it alone, which are surer.
    surer = tf.linalg.band_part(overlap, 0, -1) - tf.linalg.band_part(overlap, 0, 0)
    suppressed = tf.reduce_max(surer, axis=1) > OVERLAP
    return Detections(boxes, tf.where(suppressed, 0.0, scores), found)
