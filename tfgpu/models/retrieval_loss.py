"""Loss and metrics of scores of all items, for targets that differ in number from user to user.

A target is int32 (batch, length): an item to be found is its number, an item that is left out,
since the user has it already, is -2 - its number, and -1 is padding. An item of the number 0 is one
that the model does not know: it is to be found as the others are, and never is.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfgpu.models.recommenders import NEVER

PADDING = -1


def left_out(items: Any) -> Any:
    """The code of items that are left out, and back."""
    return -2 - items


def without_left_out(targets: Any, scores: Any) -> tf.Tensor:
    """The scores (batch, items), with `NEVER` for item 0 and what the targets leave out."""
    # One more, so that item 0 is always among them; what is not left out points there too.
    targets = tf.pad(tf.cast(targets, tf.int32), [[0, 0], [0, 1]], constant_values=PADDING)
    columns = tf.where(targets < PADDING, left_out(targets), 0)
    rows = tf.broadcast_to(tf.range(tf.shape(targets)[0])[:, None], tf.shape(targets))
    places = tf.reshape(tf.stack([rows, columns], axis=-1), [-1, 2])
    scores = tf.cast(scores, tf.float32)
    return tf.tensor_scatter_nd_update(scores, places, tf.fill([tf.shape(places)[0]], NEVER))


@keras.saving.register_keras_serializable(package="tfgpu")
class ItemCrossentropy(keras.losses.Loss):
    """The mean over the items to be found of their cross-entropy among all items."""

    def __init__(self, name: str | None = None, **kwargs: Any):
        super().__init__(name=name or "item_crossentropy", **kwargs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Targets (n, length) and scores (n, items) to (n,); 0 where there is nothing to find."""
        targets = tf.cast(y_true, tf.int32)
        known = tf.cast(targets > 0, tf.float32)
        log = ops.log_softmax(without_left_out(targets, y_pred), axis=-1)
        each = tf.gather(log, tf.maximum(targets, 0), axis=1, batch_dims=1)
        count = tf.maximum(tf.reduce_sum(known, axis=1), 1.0)
        return -tf.reduce_sum(tf.where(known > 0, each, 0.0), axis=1) / count


class _AtK(keras.metrics.Mean):
    """The mean of a measure of the k best items over the users that have something to find."""

    def __init__(self, k: int, name: str):
        super().__init__(name=name)
        self._k = k

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Counts targets (n, length) and scores (n, items)."""
        targets = tf.cast(y_true, tf.int32)
        scores = without_left_out(targets, y_pred)
        k = min(self._k, scores.shape[1])
        values, best = tf.math.top_k(scores, k)
        found = tf.reduce_any(best[:, :, None] == targets[:, None, :], axis=-1)
        hits = tf.cast(found & (values > NEVER / 2), tf.float32)
        count = tf.reduce_sum(tf.cast(targets > PADDING, tf.float32), axis=1)
        weight = tf.cast(count > 0, tf.float32)
        if sample_weight is not None:
            weight *= tf.reshape(tf.cast(sample_weight, tf.float32), [-1])
        super().update_state(self._values(hits, count), sample_weight=weight)

    def _values(self, hits: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError


class NDCG(_AtK):
    """Normalised discounted cumulative gain of the k best items, with gains of 0 and 1.

    Source: K. Järvelin and J. Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", ACM
    TOIS 20(4), 2002, with the discount 1 / log2(rank + 1); that of `keras_rs.metrics.NDCG`.
    """

    def __init__(self, k: int = 10, name: str = "ndcg_at_10"):
        super().__init__(k, name)

    def _values(self, hits: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        ranks = tf.range(1, hits.shape[1] + 1, dtype=tf.float32)
        discounts = tf.math.log(2.0) / tf.math.log(ranks + 1.0)
        ideal = tf.where(ranks[None, :] <= count[:, None], discounts, 0.0)
        return tf.math.divide_no_nan(
            tf.reduce_sum(hits * discounts, axis=1), tf.reduce_sum(ideal, axis=1)
        )


class Recall(_AtK):
    """The share of the items to be found that are among the k best."""

    def __init__(self, k: int = 10, name: str = "recall_at_10"):
        super().__init__(k, name)

    def _values(self, hits: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        return tf.math.divide_no_nan(tf.reduce_sum(hits, axis=1), count)
