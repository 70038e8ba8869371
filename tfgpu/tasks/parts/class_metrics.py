"""Classification metrics: accuracy, top-k accuracy, calibration error, precision and recall.

They are computed from counts, which add up over batches, replicas and splits. So the metrics do
not depend on how the examples are distributed, and take the same memory for any data set.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BINS = 15
"""Bins of the calibration error, as in Guo et al."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """The counts of a `ClassificationMetrics`, and the metrics that follow from them.

    Attributes:
        confusion: The confusion matrix, float64 (classes, classes): rows are labels, columns
            predictions.
        top_k: Examples whose label is among the k most likely classes.
        bins: float64 (3, BINS): by confidence, the number of examples, the sum of their
            confidences, and the number of correct predictions.
    """

    confusion: np.ndarray
    top_k: float
    bins: np.ndarray

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.confusion + other.confusion, self.top_k + other.top_k, self.bins + other.bins
        )

    @property
    def examples(self) -> int:
        """The number of examples."""
        return round(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Fraction of the examples whose most likely class is their label."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def top_k_accuracy(self) -> float:
        """Fraction of the examples whose label is among the k most likely classes."""
        return float(self.top_k / self.confusion.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean difference between confidence and accuracy.

        Equation 3 of Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
        Networks", ICML 2017: the examples are put into `BINS` bins of equal width by their
        confidence (the greatest probability); the differences between a bin's accuracy and its
        mean confidence are averaged, weighted by the number of examples in the bin.
        """
        count, confidence, correct = self.bins
        return float(np.abs(correct - confidence).sum() / count.sum())

    def reliability(self) -> list[dict[str, float | int | None]]:
        """Returns bounds, count, mean confidence and accuracy of the bins."""
        return [
            {
                "low": i / BINS,
                "high": (i + 1) / BINS,
                "examples": round(count),
                "confidence": confidence / count if count else None,
                "accuracy": correct / count if count else None,
            }
            for i, (count, confidence, correct) in enumerate(self.bins.T.tolist())
        ]

    def by_class(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Returns precision, recall and F1 score of each class.

        Args:
            names: Of the classes, in the order of the labels.

        Returns:
            A dict per class. What would be divided by zero is None: the precision of a class that
            was never predicted, the recall of one without examples.
        """
        # Not at the top: importing it takes seconds, and training has no use for it.
        from sklearn.metrics import precision_recall_fscore_support

        labels, predicted = np.nonzero(self.confusion)
        *ratios, support = precision_recall_fscore_support(
            labels,
            predicted,
            sample_weight=self.confusion[labels, predicted],
            labels=range(len(names)),
            zero_division=np.nan,
        )
        columns = [[None if np.isnan(x) else float(x) for x in column] for column in ratios]
        return [
            {"name": name, "precision": precision, "recall": recall, "f1": f1, "examples": round(n)}
            for name, precision, recall, f1, n in zip(names, *columns, support, strict=True)
        ]


class ClassificationMetrics(keras.metrics.Metric):
    """A Keras metric that accumulates `Counts`; its result is the top-k accuracy.

    Args:
        num_classes: The number of logits.
        k: For the top-k accuracy.
    """

    def __init__(self, *, num_classes: int, k: int, name: str = "top_k"):
        super().__init__(name=name)
        self._k = k
        self._classes = num_classes
        self._confusion = self.add_variable((num_classes, num_classes), "zeros", name="confusion")
        self._top_k = self.add_variable((), "zeros", name="top_k")
        self._bins = self.add_variable((3, BINS), "zeros", name="bins")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch: integer labels (n,), logits (n, classes). Weights are ignored."""
        labels = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
        logits = tf.cast(y_pred, tf.float32)
        predicted = tf.argmax(logits, axis=-1, output_type=tf.int32)
        self._confusion.assign_add(
            tf.math.confusion_matrix(labels, predicted, self._classes, dtype=tf.float32)
        )
        most_likely = tf.math.top_k(logits, self._k).indices
        among = tf.reduce_any(most_likely == labels[:, None], axis=-1)
        self._top_k.assign_add(tf.reduce_sum(tf.cast(among, tf.float32)))
        confidence = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
        # Bin m holds the confidences in ((m - 1) / BINS, m / BINS].
        which = tf.cast(tf.math.ceil(confidence * BINS), tf.int32) - 1
        members = tf.one_hot(tf.clip_by_value(which, 0, BINS - 1), BINS)
        values = tf.stack(
            [tf.ones_like(confidence), confidence, tf.cast(predicted == labels, tf.float32)]
        )
        self._bins.assign_add(tf.matmul(values, members))

    def result(self) -> Any:
        """Returns the top-k accuracy since the last reset."""
        return tf.math.divide_no_nan(self._top_k, tf.reduce_sum(self._confusion))

    def counts(self) -> Counts:
        """Returns the counts since the last reset, over all replicas."""
        confusion, top_k, bins = (
            np.asarray(variable.numpy(), np.float64)
            for variable in (self._confusion, self._top_k, self._bins)
        )
        return Counts(confusion, float(top_k), bins)
