"""Sample weights with which the replicas' losses add up to the loss of the global batch.

Keras reduces the loss of an output over the rows a replica holds, and divides a mean by
the number of replicas. That is the global loss only while each replica holds as many real
rows (or, for `mean_with_sample_weight`, as much weight) as every other. The weights made
here give padded rows none and carry the divisor of the global batch.

Not covered: a Keras mask that reaches the loss. As in Keras, its divisor is the replica's.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from keras import tree

_MEANS = ("sum_over_batch_size", "mean")
_MEAN_BY_WEIGHT = "mean_with_sample_weight"


@dataclasses.dataclass(frozen=True)
class Padding:
    """How many rows of a replica's batch are real; the others have weight 0.

    Attributes:
        real: int32 scalar, real rows of this replica's batch. They come first.
        total: int32 scalar, real rows of the whole global batch, never 0.
        rows: int32 scalar, rows of the global batch with its padding.
    """

    real: tf.Tensor
    total: tf.Tensor
    rows: tf.Tensor

    def weights(self, rows: tf.Tensor, *, mean: bool) -> tf.Tensor:
        """Weights that make a mean over padded rows the mean over real ones.

        A loss that divides by the rows of its batch divides by `self.rows` over
        all replicas; the factor `rows / total` turns that into the real count.

        Args:
            rows: int32 scalar, rows of this replica's batch with the padding.
            mean: Whether the loss divides by the number of rows.

        Returns:
            float32 of shape (rows,): 0 for padding.
        """
        mask = tf.sequence_mask(self.real, rows, dtype=tf.float32)
        if not mean:
            return mask
        return mask * (tf.cast(self.rows, tf.float32) / tf.cast(self.total, tf.float32))


class Shares(NamedTuple):
    """How a replica computes its share of the loss.

    Attributes:
        sample_weight: For `compute_loss`: None, a tensor, or a structure of tensors.
        reduction: What losses that are a mean by weight have to use instead, or None.
    """

    sample_weight: Any
    reduction: str | None = None


def weight_sums(
    compile_loss: Any, sample_weight: Any, rows: tf.Tensor, padding: Padding | None
) -> list[tf.Tensor]:
    """This replica's sums of weights; summed over the replicas they go to `shares`.

    Args:
        compile_loss: `model._compile_loss`, or None.
        sample_weight: As the data set gives it.
        rows: int32 scalar, rows of this replica's batch with padding.
        padding: Of this batch, or None.

    Returns:
        A float32 scalar for each output of the loss; [] where no divisor depends on weights.
    """
    entries = _entries(compile_loss)
    if sample_weight is None or all(e.loss.reduction != _MEAN_BY_WEIGHT for e in entries):
        return []
    mask = _mask(rows, padding, mean=False)
    return [tf.reduce_sum(_times(_at(sample_weight, e.path), mask)) for e in entries]


def shares(
    compile_loss: Any,
    sample_weight: Any,
    rows: tf.Tensor,
    padding: Padding | None,
    totals: list[tf.Tensor],
) -> Shares:
    """The weights of this replica's rows.

    Args:
        compile_loss: `model._compile_loss`, or None.
        sample_weight: As the data set gives it.
        rows: int32 scalar, rows of this replica's batch with padding.
        padding: Of this batch, or None.
        totals: What `weight_sums` returned, summed over the replicas; [] for one replica.

    Returns:
        Shares whose losses, summed over the replicas, are the global loss.
    """
    if padding is None and not totals:
        return Shares(sample_weight)
    instead = None  # A single replica's own weights, without the padding, are the divisor.
    if totals:
        instead = "sum"  # The divisor is in the weights.
    elif sample_weight is None:
        instead = _MEANS[0]

    def weights(reduction: str, given: Any, total: tf.Tensor | None = None) -> tf.Tensor:
        by_weight = reduction == _MEAN_BY_WEIGHT
        mean = (instead if by_weight else reduction) in _MEANS
        result = _times(given, _mask(rows, padding, mean=mean))
        return tf.math.divide_no_nan(result, total) if by_weight and total is not None else result

    entries = _entries(compile_loss)
    kinds = {entry.loss.reduction for entry in entries} or {_MEANS[0]}
    if len(kinds) == 1 and not totals:
        (kind,) = kinds
        return Shares(
            tree.map_structure(lambda given: weights(kind, given), sample_weight), instead
        )
    by_output: Any = {}
    for entry, total in zip(entries, totals or [None] * len(entries), strict=True):
        result = weights(entry.loss.reduction, _at(sample_weight, entry.path), total)
        if not entry.path:
            return Shares(result, instead)
        place = by_output
        for key in entry.path[:-1]:
            place = place.setdefault(key, {})
        place[entry.path[-1]] = result
    return Shares(by_output, instead)


@contextlib.contextmanager
def reduced_as(compile_loss: Any, reduction: str | None) -> Iterator[None]:
    """While a loss is traced, those that are a mean by weight reduce by `reduction`."""
    losses = [e.loss for e in _entries(compile_loss) if e.loss.reduction == _MEAN_BY_WEIGHT]
    for loss in losses:
        loss.reduction = reduction or _MEAN_BY_WEIGHT
    try:
        yield
    finally:
        for loss in losses:
            loss.reduction = _MEAN_BY_WEIGHT


def _entries(compile_loss: Any) -> list[Any]:
    """The outputs' losses of Keras' `CompileLoss`, which building fills in."""
    return getattr(compile_loss, "_flat_losses", None) or []


def _at(structure: Any, path: tuple[Any, ...]) -> Any:
    """What Keras takes of `structure` for the output at `path`."""
    if structure is None or not tree.is_nested(structure):
        return structure
    for key in path:
        structure = structure[key]
    return structure


def _mask(rows: tf.Tensor, padding: Padding | None, *, mean: bool) -> tf.Tensor:
    return tf.ones([rows]) if padding is None else padding.weights(rows, mean=mean)


def _times(given: Any, mask: tf.Tensor) -> tf.Tensor:
    """`given` sample weights, (rows, ...), with the rows weighted by `mask`, (rows,)."""
    if given is None:
        return mask
    if not given.dtype.is_floating:
        given = tf.cast(given, tf.float32)
    shape = tf.concat([[-1], tf.ones([tf.rank(given) - 1], tf.int32)], axis=0)
    return given * tf.cast(tf.reshape(mask, shape), given.dtype)
