"""Makes the losses of the replicas add up to the loss of the global batch.

Each replica computes the loss of its rows as if they were all there are. Their mean, weighted by
rows, is the loss of the global batch where the loss is a mean over rows, or over anything of
which each row has as much: time steps, pixels. That is how whatever says nothing else is
counted: `add_loss`, activity regularisers, functions that return one number, a `compute_loss`
of one's own. A loss of `compile` declares its reduction, and one that is no such mean is
multiplied beforehand by what makes the mean by rows right:

    sum                       total rows / rows here: sums add
    mean_with_sample_weight   (weight here / total weight) / (rows here / total rows)
    any mean, under a mask    the same, of the entries that the mask leaves
    None                      nothing: Keras adds up the gradients of its elements
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from keras import tree

from tfgpu.engine.keras_internals import CompileLoss, backend
from tfgpu.engine.shards import Rows

_BY_WEIGHT = "mean_with_sample_weight"
_MEANS = ("sum_over_batch_size", "mean", _BY_WEIGHT)


class _Current(threading.local):
    rows: Rows | None = None
    totals: dict[int, tf.Tensor] | None = None
    exchange: Callable[[tf.Tensor], tf.Tensor] | None = None


_current = _Current()


@contextlib.contextmanager
def sharded(
    rows: Rows,
    *,
    totals: dict[int, tf.Tensor],
    exchange: Callable[[tf.Tensor], tf.Tensor],
) -> Iterator[None]:
    """Inside, the losses of `compile` are those of a shard.

    Args:
        rows: Of the shard.
        totals: What `weight_sums` gave, summed over the replicas.
        exchange: Sums a float32 scalar over the replicas, for divisors that the forward pass
            makes.
    """
    before = (_current.rows, _current.totals, _current.exchange)
    _current.rows, _current.totals, _current.exchange = rows, totals, exchange
    try:
        yield
    finally:
        _current.rows, _current.totals, _current.exchange = before


class _ShardedLoss:
    """A loss of one output; see the module."""

    def __init__(self, loss: Any, position: int):
        self._loss = loss
        self._position = position

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_loss"], name)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        value = self._loss(y_true, y_pred, sample_weight)
        rows = _current.rows
        if rows is None or rows.replicas == 1 or len(value.shape):
            return value
        reduction = getattr(self._loss, "reduction", "sum_over_batch_size")
        if reduction == "sum":
            return value * tf.cast(rows.times_share, value.dtype)
        if reduction not in _MEANS:
            return value
        mask = backend.get_keras_mask(y_pred)
        if mask is None and (reduction != _BY_WEIGHT or sample_weight is None):
            return value
        if mask is None:
            here = tf.reduce_sum(tf.cast(sample_weight, tf.float32))
            total = (_current.totals or {}).get(self._position)
        else:
            here, total = _left_by(mask, sample_weight if reduction == _BY_WEIGHT else None), None
        if total is None:
            assert _current.exchange is not None
            # A replica without rows of its own has nothing to say here.
            total = _current.exchange(here * tf.cast(rows.present, tf.float32))
        part = tf.math.divide_no_nan(here, total)
        return value * tf.cast(part * rows.times_share, value.dtype)


def _left_by(mask: Any, sample_weight: Any) -> tf.Tensor:
    """What a mean under `mask` divides by: the entries left, or their weight."""
    entries = tf.cast(mask, tf.float32)
    if sample_weight is None:
        return tf.reduce_sum(entries)
    weight = tf.cast(sample_weight, tf.float32)
    while len(weight.shape) < len(entries.shape):
        weight = weight[..., tf.newaxis]
    while len(entries.shape) < len(weight.shape):
        entries = entries[..., tf.newaxis]
    return tf.reduce_sum(entries * weight)


class ShardedCompileLoss(CompileLoss):
    """Keras' `CompileLoss` over losses that know of shards; it takes the place of that class."""

    def build(self, y_true: Any, y_pred: Any) -> None:
        super().build(y_true, y_pred)
        self._adopt()

    def _adopt(self) -> None:
        self._flat_losses = [
            entry._replace(loss=_ShardedLoss(entry.loss, position))
            for position, entry in enumerate(self._flat_losses)
        ]
        for metric in self._metrics:
            _weigh_by_rows(metric)


def adopt(compile_loss: Any) -> None:
    """Makes the losses of a compiled model know of shards; does nothing the second time."""
    if type(compile_loss) is CompileLoss:
        compile_loss.__class__ = ShardedCompileLoss
        if compile_loss.built:
            compile_loss._adopt()


def _weigh_by_rows(metric: Any) -> None:
    """Has the metric of an output's loss count a batch as often as it has rows.

    Keras does where the number of rows is static, and else counts a partial batch like a
    whole one.
    """
    update = metric.update_state

    def update_state(values: Any, sample_weight: Any = None) -> Any:
        rows = _current.rows
        return update(values, sample_weight=sample_weight if rows is None else rows.real)

    metric.update_state = update_state


def weight_sums(
    compile_loss: Any, sample_weight: Any, rows: Rows
) -> tuple[list[int], list[tf.Tensor]]:
    """The sums of weights by which losses divide, as far as the data tell them.

    Args:
        compile_loss: `model._compile_loss`, or None.
        sample_weight: This replica's, as the data set gives it.
        rows: Of this replica's shard.

    Returns:
        Positions of the losses that need the sum over the replicas, and float32 scalars.
    """
    entries = getattr(compile_loss, "_flat_losses", None) or []
    if sample_weight is None or rows.replicas == 1:
        return [], []
    positions, sums = [], []
    for position, entry in enumerate(entries):
        if getattr(entry.loss, "reduction", None) != _BY_WEIGHT:
            continue
        weight = sample_weight
        if tree.is_nested(weight):
            try:
                for key in entry.path:
                    weight = weight[key]
            except (KeyError, IndexError, TypeError):
                continue
        if weight is None or tree.is_nested(weight):
            continue
        positions.append(position)
        weight = tf.reduce_sum(tf.cast(weight, tf.float32))
        sums.append(weight * tf.cast(rows.present, tf.float32))
    return positions, sums


def objective(loss: Any, rows: Rows) -> tf.Tensor:
    """What a replica minimises; the replicas' add up to what one device minimises.

    Args:
        loss: What `compute_loss` returned: float, a scalar or, without a reduction, more.
        rows: Of this replica's shard.
    """
    loss = tf.convert_to_tensor(loss)
    if rows.replicas == 1:
        return loss
    if loss.shape.rank == 0:
        return loss * tf.cast(rows.share, loss.dtype)
    return loss * tf.cast(rows.present, loss.dtype) if rows.may_be_absent else loss
