"""What is counted while a model is evaluated, and what follows from the counts.

Counts add up: over batches, over replicas, over splits. So every figure is that of all examples
at once, however they were shared out, and a data set of any size takes the same memory.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import precision_recall_fscore_support

BINS = 15
"""Of the calibration error, as in Guo et al."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a `Tally` has counted.

    Attributes:
        confusion: float64 (classes, classes); row: the label, column: what was predicted.
        top_k: Examples whose label is among the k likeliest classes.
        bins: float64 (3, BINS): by confidence, how many examples, the sum of their
            confidences, and how many of them are right.
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
        """How many were counted."""
        return round(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of the examples whose likeliest class is their label."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def top_k_accuracy(self) -> float:
        """Share of the examples whose label is among the k likeliest classes."""
        return float(self.top_k / self.confusion.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: how far confidence and accuracy lie apart, on average.

        Equation 3 of Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural
        Networks", ICML 2017: the examples are put into `BINS` bins of equal width by their
        confidence (the greatest probability); the differences between a bin's accuracy and its
        mean confidence are averaged, each weighted by the bin's share of the examples.
        """
        count, confidence, right = self.bins
        return float(np.abs(right - confidence).sum() / count.sum())

    def reliability(self) -> list[dict[str, float | int | None]]:
        """The bins of `calibration_error`: bounds, count, mean confidence and accuracy of each."""
        return [
            {
                "low": i / BINS,
                "high": (i + 1) / BINS,
                "examples": round(count),
                "confidence": confidence / count if count else None,
                "accuracy": right / count if count else None,
            }
            for i, (count, confidence, right) in enumerate(self.bins.T.tolist())
        ]

    def by_class(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Precision, recall and their harmonic mean of each class.

        Args:
            names: Of the classes, in the order of the labels.

        Returns:
            One object a class. A ratio without anything below the line is None: the precision
            of a class that was never predicted, the recall of one without examples.
        """
        labels, predicted = np.nonzero(self.confusion)
        precision, recall, f1, support = precision_recall_fscore_support(
            labels,
            predicted,
            sample_weight=self.confusion[labels, predicted],
            labels=range(len(names)),
            zero_division=np.nan,
        )
        return [
            {
                "name": name,
                "precision": None if np.isnan(precision[i]) else float(precision[i]),
                "recall": None if np.isnan(recall[i]) else float(recall[i]),
                "f1": None if np.isnan(f1[i]) else float(f1[i]),
                "examples": round(support[i]),
            }
            for i, name in enumerate(names)
        ]


class Tally(keras.metrics.Metric):
    """A metric that counts what `Counts` holds; its result is the top-k accuracy.

    Args:
        num_classes: Size of the logits.
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
        """Counts a batch: integer labels (n,), logits (n, classes). Weights do not count."""
        labels = tf.cast(tf.reshape(y_true, [-1]), tf.int32)
        logits = tf.cast(y_pred, tf.float32)
        predicted = tf.argmax(logits, axis=-1, output_type=tf.int32)
        self._confusion.assign_add(
            tf.math.confusion_matrix(labels, predicted, self._classes, dtype=tf.float32)
        )
        likeliest = tf.math.top_k(logits, self._k).indices
        among = tf.reduce_any(likeliest == labels[:, None], axis=-1)
        self._top_k.assign_add(tf.reduce_sum(tf.cast(among, tf.float32)))
        confidence = tf.reduce_max(tf.nn.softmax(logits), axis=-1)
        # Bin m holds the confidences in ((m - 1) / BINS, m / BINS].
        which = tf.cast(tf.math.ceil(confidence * BINS), tf.int32) - 1
        members = tf.one_hot(tf.clip_by_value(which, 0, BINS - 1), BINS)
        values = tf.stack(
            [
                tf.ones_like(confidence),
                confidence,
                tf.cast(predicted == labels, tf.float32),
            ]
        )
        self._bins.assign_add(tf.matmul(values, members))

    def result(self) -> Any:
        """The top-k accuracy so far."""
        return tf.math.divide_no_nan(self._top_k, tf.reduce_sum(self._confusion))

    def counts(self) -> Counts:
        """What has been counted since the last reset, over all replicas."""
        confusion, top_k, bins = (
            np.asarray(variable.numpy(), np.float64)
            for variable in (self._confusion, self._top_k, self._bins)
        )
        return Counts(confusion, float(top_k), bins)
