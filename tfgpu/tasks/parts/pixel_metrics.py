"""Metrics of a class for each pixel: intersection over union, and Dice."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.models.segmentation_loss import VOID


class PixelConfusion(keras.metrics.Metric):
    """Counts pixels by class and predicted class; pixels of the class `VOID` are left out.

    Args:
        num_classes: The number of logits.
    """

    def __init__(self, *, num_classes: int, name: str = "pixel_accuracy"):
        super().__init__(name=name)
        self._classes = num_classes
        # float32 counts whole numbers to 16.7 million, which is 64 images of 512x512.
        self._confusion = self.add_variable(
            (num_classes, num_classes), "zeros", dtype="float64", name="confusion"
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts masks (n, height, width) and logits (n, height, width, classes)."""
        labels = tf.reshape(tf.cast(y_true, tf.int32), [-1])
        predicted = tf.reshape(tf.argmax(y_pred, axis=-1, output_type=tf.int32), [-1])
        valid = tf.cast(labels != VOID, tf.float64)
        cell = tf.where(labels == VOID, 0, labels) * self._classes + predicted
        counts = tf.math.unsorted_segment_sum(valid, cell, self._classes**2)
        self._confusion.assign_add(tf.reshape(counts, [self._classes, self._classes]))

    def confusion(self) -> np.ndarray:
        """float64 (classes, classes) counts since the last reset: true class first."""
        return np.asarray(self._confusion.numpy(), np.float64)

    def result(self) -> Any:
        """Returns the share of the pixels whose class is found."""
        found = tf.linalg.trace(tf.convert_to_tensor(self._confusion))
        return tf.math.divide_no_nan(found, tf.reduce_sum(self._confusion))

    def _by_class(self) -> tuple[Any, Any, Any]:
        """Pixels of each class, predicted as each class, and right."""
        confusion = tf.convert_to_tensor(self._confusion)
        return (
            tf.reduce_sum(confusion, axis=1),
            tf.reduce_sum(confusion, axis=0),
            tf.linalg.diag_part(confusion),
        )


def _mean_of_present(values: Any, present: Any) -> Any:
    weight = tf.cast(present, values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values * weight), tf.reduce_sum(weight))


class MeanIoU(PixelConfusion):
    """The mean over the classes of intersection over union, of those that are there or predicted.

    `keras.metrics.MeanIoU` with `sparse_y_pred=False`, without the pixels of the class `VOID`.
    """

    def __init__(self, *, num_classes: int, name: str = "mean_iou"):
        super().__init__(num_classes=num_classes, name=name)

    def result(self) -> Any:
        """Returns the mean."""
        true, predicted, right = self._by_class()
        union = true + predicted - right
        return _mean_of_present(tf.math.divide_no_nan(right, union), union > 0)


class MeanDice(PixelConfusion):
    """The mean over the classes of Dice's coefficient, of those that are there or predicted.

    Args:
        num_classes: The number of logits.
        background: Whether class 0 is the background, which the mean then leaves out.
    """

    def __init__(self, *, num_classes: int, background: bool, name: str = "dice"):
        super().__init__(num_classes=num_classes, name=name)
        self._first = int(background)

    def result(self) -> Any:
        """Returns the mean."""
        true, predicted, right = (each[self._first :] for each in self._by_class())
        both = true + predicted
        return _mean_of_present(tf.math.divide_no_nan(2 * right, both), both > 0)
