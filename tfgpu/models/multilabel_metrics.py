"""Mean average precision, and the thresholds of best F1, from counts that add up."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

BINS = 1000
REACH = 10.0
"""Logits from -REACH to REACH are told apart; a probability of 0.99995 is the last bin."""


@keras.saving.register_keras_serializable(package="tfgpu")
class MeanAveragePrecision(keras.metrics.Metric):
    """The mean over labels of the average precision, for labels that have a positive.

    Average precision is the sum over thresholds of precision times the gain in recall, as
    scikit-learn has it. The thresholds are `BINS` edges, even over logits, so that the counts add
    up over batches, replicas and workers: examples of one bin count as of one score.

    Args:
        num_labels: Logits of an example.
        name: Of the metric.
        dtype: Of the counts.
    """

    def __init__(self, num_labels: int, name: str = "map", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)
        self.num_labels = num_labels
        shape = (num_labels * BINS,)
        self._positives = self.add_variable(shape, "zeros", name="positives")
        self._negatives = self.add_variable(shape, "zeros", name="negatives")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts a batch: 0 or 1 (n, labels), logits (n, labels), weights (n,)."""
        logits = ops.cast(y_pred, "float32")
        y_true = ops.cast(y_true, self.dtype)
        weight = ops.ones_like(y_true)
        if sample_weight is not None:
            weight = weight * ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
        bins = ops.cast(ops.floor((logits + REACH) * (BINS / (2 * REACH))), "int32")
        bins = ops.clip(bins, 0, BINS - 1)
        bins = bins + np.arange(self.num_labels, dtype=np.int32) * BINS
        flat = ops.reshape(bins, (-1,))
        for counts, values in (
            (self._positives, y_true * weight),
            (self._negatives, (1 - y_true) * weight),
        ):
            values = ops.reshape(values, (-1,))
            counts.assign_add(ops.segment_sum(values, flat, self.num_labels * BINS))

    def result(self) -> Any:
        """The mean over labels with a positive; 0 where no label has one."""
        hits, misses = (
            ops.cumsum(ops.flip(ops.reshape(each, (self.num_labels, BINS)), axis=1), axis=1)
            for each in (self._positives.value, self._negatives.value)
        )
        total = hits[:, -1:]
        precision = ops.divide_no_nan(hits, hits + misses)
        before = ops.pad(hits[:, :-1], ((0, 0), (1, 0)))
        areas = ops.divide_no_nan(ops.sum(precision * (hits - before), axis=1), total[:, 0])
        present = ops.cast(total[:, 0] > 0, areas.dtype)
        return ops.divide_no_nan(ops.sum(areas), ops.sum(present))

    def thresholds(self) -> list[float | None]:
        """Of each label the probability from which on F1 is best; None without a positive.

        Where many are as good, it is the middle of them.
        """
        hits, misses = (
            np.cumsum(np.asarray(each.numpy(), np.float64).reshape(-1, BINS)[:, ::-1], axis=1)
            for each in (self._positives, self._negatives)
        )
        found: list[float | None] = []
        for hit, miss in zip(hits, misses, strict=True):
            if not hit[-1]:
                found.append(None)
                continue
            # 2 tp / (2 tp + fp + fn), and hit + fn is the number of positives.
            scores = 2 * hit / (hit + miss + hit[-1])
            best = np.flatnonzero(scores >= scores.max() - 1e-12)
            # The first stretch of neighbours among the best.
            stretch = best[: np.argmax(np.append(np.diff(best), 2) > 1) + 1]
            edge = BINS - 1 - (stretch[0] + stretch[-1]) // 2
            logit = edge * (2 * REACH / BINS) - REACH
            found.append(float(1 / (1 + np.exp(-logit))))
        return found

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {**super().get_config(), "num_labels": self.num_labels}
