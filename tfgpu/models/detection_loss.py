"""Loss and metric of a detector: focal loss and generalised IoU, and Pascal VOC's mean AP."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfgpu.models.detections import (
    CLASS,
    CROWD,
    MOST_DETECTIONS,
    boxes_of_cells,
    detect,
    overlaps,
)
from tfgpu.models.detector import STRIDE

SPREAD = 0.54
"""The share of a box's sides in which cells count as near its middle; alpha of TTFNet."""

NEARLY = 0.9999
"""The target of cells in a crowd, whose loss then is nothing, being none of the middle either."""

BOX_WEIGHT = 2.0
BINS = 200


@keras.saving.register_keras_serializable(package="tfgpu")
class CenterLoss(keras.losses.Loss):
    """Focal loss of the classes of cells, plus the loss of boxes, a value for each example.

    The target of a class at a cell is 1 where the middle of such an object lies, and falls off
    around it as a Gaussian that is as wide and as high as the box; the loss is the focal loss of
    H. Law and J. Deng, "CornerNet", ECCV 2018, equation 1, over the number of objects. The boxes
    of the cells near a middle are compared with that of the object (the smallest, where there are
    several) by the generalised IoU of H. Rezatofighi et al., CVPR 2019; each object has the same
    weight, spread over its cells by the Gaussian. Both after Z. Liu et al.,
    "Training-Time-Friendly Network for Real-Time Object Detection", AAAI 2020, which has the width
    of the Gaussians too.

    Args:
        num_classes: Kinds of objects.
    """

    def __init__(self, num_classes: int, name: str | None = None, **kwargs: Any):
        super().__init__(name=name or "center_loss", **kwargs)
        self.num_classes = num_classes

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Boxes (n, boxes, 6) and outputs (n, rows, columns, classes + 4) to (n,)."""
        y, outputs = tf.cast(y_true, tf.float32), tf.cast(y_pred, tf.float32)
        real = (y[..., CLASS] >= 0) & (y[..., CROWD] == 0)
        near = gaussians(y, rows=outputs.shape[1], columns=outputs.shape[2])
        near = tf.where(real[:, :, None, None], near, 0.0)
        count = tf.maximum(tf.reduce_sum(tf.cast(real, tf.float32), axis=1), 1.0)
        target = self._target(y, near)
        logits = outputs[..., : self.num_classes]
        log_p, log_q = tf.math.log_sigmoid(logits), tf.math.log_sigmoid(-logits)
        middle = (1 - tf.exp(log_p)) ** 2 * log_p
        other = (1 - target) ** 4 * tf.exp(2 * log_p) * log_q
        focal = -tf.reduce_sum(tf.where(target == 1, middle, other), axis=(1, 2, 3)) / count
        box, weight = assigned(y, near)
        found = boxes_of_cells(outputs[..., self.num_classes :])
        apart = tf.reduce_sum(weight * (1 - generalised_iou(found, box)), axis=(1, 2)) / count
        return focal + BOX_WEIGHT * apart

    def _target(self, y: tf.Tensor, near: tf.Tensor) -> tf.Tensor:
        """(n, rows, columns, classes): the greatest of the objects' Gaussians, by class."""
        boxes, rows, columns = near.shape[1:]
        crowd = (y[..., CLASS] >= 0) & (y[..., CROWD] > 0)
        covered = NEARLY * tf.cast(_inside(y, rows=rows, columns=columns), tf.float32)
        near = tf.where(crowd[:, :, None, None], covered, near)
        number = tf.shape(y)[0]
        classes = tf.maximum(tf.cast(y[..., CLASS], tf.int32), 0)
        segment = tf.range(number)[:, None] * self.num_classes + classes
        most = tf.math.unsorted_segment_max(
            tf.reshape(near, [-1, rows, columns]),
            tf.reshape(segment, [-1]),
            number * self.num_classes,
        )
        # Of a class without a box the lowest number there is.
        most = tf.reshape(tf.maximum(most, 0.0), [-1, self.num_classes, rows, columns])
        return tf.transpose(most, [0, 2, 3, 1])

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return super().get_config() | {"num_classes": self.num_classes}


def gaussians(y: tf.Tensor, *, rows: int, columns: int) -> tf.Tensor:
    """How near each cell is to the middle of each box: (n, boxes, rows, columns), from 0 to 1.

    exp(-d^2 / 2 s^2) along both sides, with d in cells, s = (2 r + 1) / 6 and r whole cells in
    `SPREAD` / 2 of the side; 0 beyond r.
    """

    def along(low: tf.Tensor, high: tf.Tensor, cells: int) -> tf.Tensor:
        middle = tf.clip_by_value(tf.floor((low + high) / 2 / STRIDE), 0.0, cells - 1.0)
        radius = tf.floor(SPREAD / 2 * (high - low) / STRIDE)[..., None]
        apart = tf.abs(tf.range(cells, dtype=tf.float32) - middle[..., None])
        spread = (2 * radius + 1) / 6
        return tf.where(apart <= radius, tf.exp(-(apart**2) / (2 * spread**2)), 0.0)

    vertical = along(y[..., 0], y[..., 2], rows)
    horizontal = along(y[..., 1], y[..., 3], columns)
    return vertical[..., :, None] * horizontal[..., None, :]


def _inside(y: tf.Tensor, *, rows: int, columns: int) -> tf.Tensor:
    """Which cells have their middle in each box: bool (n, boxes, rows, columns)."""

    def along(low: tf.Tensor, high: tf.Tensor, cells: int) -> tf.Tensor:
        at = STRIDE * (tf.range(cells, dtype=tf.float32) + 0.5)
        return (at >= low[..., None]) & (at <= high[..., None])

    vertical = along(y[..., 0], y[..., 2], rows)
    horizontal = along(y[..., 1], y[..., 3], columns)
    return vertical[..., :, None] & horizontal[..., None, :]


def assigned(y: tf.Tensor, near: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The box that each cell is to have, and how much it counts.

    Args:
        y: Boxes (n, boxes, 6).
        near: What `gaussians` gives, 0 for what is no object.

    Returns:
        (n, rows, columns, 4) boxes, and (n, rows, columns) weights, which add up to 1 for each
        object that has a cell.
    """
    area = tf.maximum(y[..., 2] - y[..., 0], 1e-3) * tf.maximum(y[..., 3] - y[..., 1], 1e-3)
    small = tf.where(near > 0, 1 / area[:, :, None, None], 0.0)
    chosen = tf.argmax(small, axis=1, output_type=tf.int32)
    own = tf.range(near.shape[1])[None, :, None, None] == chosen[:, None]
    part = tf.where(own, near, 0.0)
    part = tf.math.divide_no_nan(part, tf.reduce_sum(part, axis=(2, 3), keepdims=True))
    box = tf.gather(y[..., :4], chosen, batch_dims=1)
    return box, tf.reduce_sum(part, axis=1)


def generalised_iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Of boxes (..., 4) with boxes (..., 4): from -1 to 1, 1 where they are the same."""

    def area(low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
        sides = tf.maximum(high - low, 0.0)
        return sides[..., 0] * sides[..., 1]

    low_a, high_a, low_b, high_b = (
        first[..., :2],
        first[..., 2:4],
        second[..., :2],
        second[..., 2:4],
    )
    both = area(tf.maximum(low_a, low_b), tf.minimum(high_a, high_b))
    union = area(low_a, high_a) + area(low_b, high_b) - both
    around = area(tf.minimum(low_a, low_b), tf.maximum(high_a, high_b))
    shared = tf.math.divide_no_nan(both, union)
    return shared - tf.math.divide_no_nan(around - union, around)


class VOCMeanAP(keras.metrics.Metric):
    """Mean average precision at an IoU of 0.5, as Pascal VOC counts, of scores in `BINS` bins.

    The rules are those of the development kit of VOC 2012: a detection is that of the box of its
    class that it overlaps most; it is right where that is by half or more and no surer detection
    has the box already; the precision at a recall is the greatest at that recall or above. It is
    made of counts, which add up over batches and replicas. To be that, scores are counted in bins
    of 1 / `BINS`, and detections of one bin are taken together.

    Args:
        num_classes: Kinds of objects.
        count: Detections of an image.
    """

    def __init__(self, *, num_classes: int, count: int = MOST_DETECTIONS, name: str = "voc_map"):
        super().__init__(name=name)
        self._classes, self._count = num_classes, count
        self._right = self.add_variable((num_classes, BINS), "zeros", name="right")
        self._wrong = self.add_variable((num_classes, BINS), "zeros", name="wrong")
        self._boxes = self.add_variable((num_classes,), "zeros", name="boxes")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts boxes (n, boxes, 6) and outputs (n, rows, columns, classes + 4)."""
        y = tf.cast(y_true, tf.float32)
        labels = tf.cast(y[..., CLASS], tf.int32)
        crowd = y[..., CROWD] > 0
        boxes, scores, classes = detect(y_pred, count=self._count)
        same = classes[:, :, None] == labels[:, None, :]
        overlap = tf.where(same, overlaps(boxes, y[..., :4]), -1.0)
        best = tf.argmax(overlap, axis=-1, output_type=tf.int32)
        hit = (tf.reduce_max(overlap, axis=-1) >= 0.5) & (scores > 0)
        ignored = hit & tf.gather(crowd, best, batch_dims=1)
        taken = tf.one_hot(best, y.shape[1]) * tf.cast(hit, tf.float32)[..., None]
        before = tf.reduce_sum(tf.cumsum(taken, axis=1, exclusive=True) * taken, axis=-1)
        right = hit & (before == 0) & ~ignored
        wrong = (scores > 0) & ~right & ~ignored
        bins = tf.minimum(tf.cast(scores * BINS, tf.int32), BINS - 1)
        cell = tf.reshape(classes * BINS + bins, [-1])
        for variable, counted in ((self._right, right), (self._wrong, wrong)):
            values = tf.reshape(tf.cast(counted, tf.float32), [-1])
            sums = tf.math.unsorted_segment_sum(values, cell, self._classes * BINS)
            variable.assign_add(tf.reshape(sums, [self._classes, BINS]))
        real = tf.cast((labels >= 0) & ~crowd, tf.float32)
        self._boxes.assign_add(
            tf.reduce_sum(tf.one_hot(labels, self._classes) * real[..., None], axis=(0, 1))
        )

    def result(self) -> Any:
        """Returns the mean over the classes that have a box."""
        right = tf.cumsum(tf.convert_to_tensor(self._right), axis=1, reverse=True)
        wrong = tf.cumsum(tf.convert_to_tensor(self._wrong), axis=1, reverse=True)
        boxes = tf.convert_to_tensor(self._boxes)
        # From the surest bin on: recall grows.
        right, wrong = tf.reverse(right, [1]), tf.reverse(wrong, [1])
        precision = tf.math.divide_no_nan(right, right + wrong)
        step = 1
        while step < BINS:  # The greatest from here on, by doubling.
            later = tf.pad(precision[:, step:], [[0, 0], [0, step]])
            precision = tf.maximum(precision, later)
            step *= 2
        recall = tf.math.divide_no_nan(right, boxes[:, None])
        gained = recall - tf.pad(recall[:, :-1], [[0, 0], [1, 0]])
        each = tf.reduce_sum(gained * precision, axis=1)
        present = tf.cast(boxes > 0, tf.float32)
        return tf.math.divide_no_nan(tf.reduce_sum(each * present), tf.reduce_sum(present))
