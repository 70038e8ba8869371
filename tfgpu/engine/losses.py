"""Makes the losses of the replicas add up to the loss of the global batch.

Each replica computes the loss of its rows as if they were all there are. Their mean, weighted by
rows, is the loss of the global batch where the loss is a mean over rows, or over anything of
which each row has as much: time steps, pixels. That is how whatever says nothing else is
counted: a scalar of `add_loss`, activity regularisers (older versions of Keras add them up over the
rows, and so do replicas then), functions that return one number, a `compute_loss` of one's own. A
Keras loss declares its reduction, and one that is no such mean is multiplied beforehand by what
makes the mean by rows right:

    sum, `add_loss` of rows   total rows / rows here: sums add, of what has a value a row
    mean_with_sample_weight   (weight here / total weight) / (rows here / total rows)
    any mean, under a mask    the same, of the entries that the mask leaves
    None                      nothing: Keras adds up the gradients of its elements

A `keras.metrics.Mean` or `Sum` that is given one number a batch, without a weight, counts it by
rows too, and so does a `Mean` of what has no value a row, such as one a class.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfgpu.engine import all_rows, layer_calls, parts
from tfgpu.engine import keras_internals as private
from tfgpu.engine.current import counts_by_rows, current
from tfgpu.engine.dataflow import depends_on_data
from tfgpu.engine.overrides import everywhere
from tfgpu.engine.row_axis import mixing
from tfgpu.engine.shards import Rows

_BY_WEIGHT = "mean_with_sample_weight"
_MEANS = ("sum_over_batch_size", "mean", _BY_WEIGHT)


def sharded(
    counted: Any, *, totals: dict[int, tf.Tensor], exchange: Callable[[tf.Tensor], tf.Tensor]
) -> contextlib.AbstractContextManager[None]:
    """Inside `counting`, around `compute_loss`: declared reductions are followed.

    Args:
        counted: Rows of this replica, by which the metrics of outputs' losses count a batch.
        totals: What `weight_sums` gave, summed over the replicas, by the weights' identity.
        exchange: Sums a float64 scalar over the replicas, for divisors that the forward pass
            makes.
    """
    return current.having(counted=counted, totals=totals, exchange=exchange, own_context=None)


def weight_sums(compile_loss: Any, sample_weight: Any) -> list[tuple[int, tf.Tensor]]:
    """The sums of weights by which losses divide, as far as the data tell them.

    Args:
        compile_loss: The model's `CompileLoss`, or None.
        sample_weight: This replica's, as the data set gives it.

    Returns:
        The identity of each tensor of weights, and its sum, a float64 scalar.
    """
    entries = (compile_loss is not None and private.flat_losses(compile_loss)) or []
    if sample_weight is None or all(
        getattr(entry.loss, "reduction", None) != _BY_WEIGHT for entry in entries
    ):
        return []
    tensors = [leaf for leaf in tree.flatten(sample_weight) if isinstance(leaf, tf.Tensor)]
    return [(id(tensor), tf.reduce_sum(tf.cast(tensor, tf.float64))) for tensor in tensors]


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


def additional(loss: Any, total: Any) -> Any:
    """What `add_loss` gave, added up by Keras, such that the mean by rows is that of one device.

    Args:
        loss: As it was given: a scalar, or a value a row.
        total: The sum of it, a scalar.
    """
    rows = current.shared
    if rows is None or current.exchange is None:
        return total
    times = tf.cast(rows.times_share, total.dtype)
    if loss.shape.rank is None:
        return total * tf.where(tf.rank(loss) > 0, times, tf.ones_like(times))
    if not rows.are_counted_by(loss) or _mixes_rows(loss):
        return of_all_rows(total, current.exchange)
    if loss.shape[0] is not None:
        here = tf.get_static_value(rows.real)
        if loss.shape[0] != here or not depends_on_data(loss):
            return total  # Of weights, say: each replica has all of them.
        warnings.warn(
            f"A loss of the shape {tuple(loss.shape)} was added, and a replica has {here} rows: it "
            "counts as a value of each row. Add up what is something else before it is added.",
            stacklevel=2,
        )
    return total * times


def of_all_rows(value: Any, exchange: parts.Exchange, *, averages: bool = False) -> Any:
    """What replicas have made of their rows, such that its mean by rows is that of all.

    Args:
        value: The replica's: a loss, say, or one number a class; or a value a row, which where it
            is made of other rows too is computed of all, and is this replica's again.
        exchange: Sums a tensor over the replicas.
        averages: Whether to compute a mean over all rows, too, which that would give in any case.
    """
    rows = current.shared
    if rows is None or not isinstance(value, tf.Tensor):
        return value
    if rows.are_counted_by(value):
        return _own_of_all_rows(value, rows, exchange) if _mixes_rows(value) else value
    try:
        whole = all_rows.of_all_rows(value, rows, exchange, averages=averages)
    except parts.Unseen as reason:
        warnings.warn(
            f"A loss or metric is made of rows {reason}, and {rows.replicas} replicas share the "
            "batch: the replicas' numbers are averaged by rows, as is right for means over rows.",
            stacklevel=2,
        )
        return value
    return value if whole is None else whole


def _mixes_rows(values: Any) -> bool:
    """Whether there is a value a row that is made of other rows too, such as pairs of them."""
    rows = current.shared
    if rows is None or not hasattr(values, "op") or not values.shape.rank:
        return False
    return rows.are_counted_by(values) and bool(mixing(values, rows, current.data))


def _each_of_all_rows(values: Sequence[Any], exchange: parts.Exchange) -> list[Any] | None:
    rows = current.shared
    assert rows is not None
    try:
        return all_rows.each_of_all_rows(values, rows, exchange)
    except parts.Unseen as reason:
        _say_of_others(reason, rows)
        return None


def _own_of_all_rows(values: tf.Tensor, rows: Rows, exchange: parts.Exchange) -> tf.Tensor:
    try:
        return all_rows.own_of_all_rows(values, rows, exchange)
    except parts.Unseen as reason:
        _say_of_others(reason, rows)
        return values


def _say_of_others(reason: parts.Unseen, rows: Rows) -> None:
    warnings.warn(
        f"A loss or metric is made for each row of others, too, and {reason}, and "
        f"{rows.replicas} replicas share the batch: each takes its own rows alone.",
        stacklevel=2,
    )


# ---- the losses of `compile` ----------------------------------------------------------------


class ShardedCompileLoss(private.CompileLoss):
    """Keras' `CompileLoss`, whose metrics count the loss of an output by rows.

    Keras does where the number of rows is static, and else counts a partial batch like a
    whole one. It takes the place of Keras' class in a model that is compiled.
    """

    def build(self, y_true: Any, y_pred: Any) -> None:
        super().build(y_true, y_pred)
        self.count_by_rows()

    def call(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        with current.having(declared=True, within=0):
            return super().call(y_true, y_pred, sample_weight)

    def count_by_rows(self) -> None:
        """Has the metrics of the outputs' losses do so, which are there once it is built."""
        for metric in private.loss_metrics(self):
            metric.update_state = functools.partial(_update_by_rows, metric.update_state)


def mind_own_calls() -> None:
    """Has a `__call__` that a class of losses defines itself count by all rows, too."""
    everywhere(keras.losses.Loss, "__call__", _own_call)


def _own_call(call: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `__call__` of a class of losses, which Keras' own have of `Loss`."""
    known = call.__module__.startswith(("keras.", "tfgpu."))

    @functools.wraps(call)
    def own_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss, exchange = call(self, *args, **kwargs), current.exchange
        if known or current.shared is None or exchange is None or id(loss) in current.by_rows:
            return loss
        return counts_by_rows(of_all_rows(loss, exchange))

    return own_call


def adopt(compile_loss: Any) -> None:
    """Makes the losses of a compiled model count by rows; does nothing the second time."""
    mind_own_calls()
    if type(compile_loss) is private.CompileLoss:
        compile_loss.__class__ = ShardedCompileLoss
        if compile_loss.built:
            compile_loss.count_by_rows()


def _update_by_rows(update: Callable[..., Any], values: Any, sample_weight: Any = None) -> Any:
    counted = current.counted
    return update(values, sample_weight=sample_weight if counted is None else counted)


# ---- what of Keras asks where it is ---------------------------------------------------------


def _followed(
    value: tf.Tensor, values: Any, sample_weight: Any, mask: Any, reduction: Any
) -> tf.Tensor:
    """A loss of this replica's rows, made such that the mean by rows follows its reduction.

    Args:
        value: The loss, a scalar if it was reduced.
        values: What it was reduced from.
        sample_weight: As the loss was given it.
        mask: The same.
        reduction: As the loss declares it.
    """
    rows = current.shared
    if rows is None or current.exchange is None or len(value.shape):
        return value
    if not rows.are_counted_by(tf.convert_to_tensor(values)):
        return value  # One number a batch, or one a class: Keras' reductions leave it as it is.
    if reduction == "sum":
        unseen = current.static or not hasattr(value, "op")
        if unseen and (not current.declared or current.within > 1):
            warnings.warn(
                "A loss with reduction='sum' is computed inside a step, a compute_loss or another "
                f"loss, and {rows.replicas} replicas share the batch: it is taken for a part of "
                "the sum over all rows. Divide it by a number, not by the rows of the tensors at "
                "hand, which are one replica's; or use reduction='sum_over_batch_size'.",
                stacklevel=2,
            )
        return value * tf.cast(rows.times_share, value.dtype)
    if reduction not in _MEANS:
        return value
    weighted = reduction == _BY_WEIGHT and sample_weight is not None
    if mask is None and not weighted:
        return value
    total = None
    if mask is None:
        here = tf.reduce_sum(tf.cast(sample_weight, tf.float64))
        total = (current.totals or {}).get(id(sample_weight))
    else:
        here = _left_by(mask, sample_weight if weighted else None)
    # A replica without rows of its own has nothing to say here.
    here = here * tf.cast(rows.present, tf.float64)
    if total is None:
        total = current.exchange(here)
    if total is None:
        return value
    part = tf.math.divide_no_nan(here, total)
    return value * tf.cast(part * rows.times_share, value.dtype)


def _left_by(mask: Any, sample_weight: Any) -> tf.Tensor:
    """What a mean under `mask` divides by: the entries left, or their weight."""
    entries = tf.cast(mask, tf.float64)
    if sample_weight is None:
        return tf.reduce_sum(entries)
    weight = tf.cast(sample_weight, tf.float64)
    while len(weight.shape) < len(entries.shape):
        weight = weight[..., tf.newaxis]
    while len(entries.shape) < len(weight.shape):
        entries = entries[..., tf.newaxis]
    return tf.reduce_sum(entries * weight)


def _mind_loops(metric: Any, rows: Rows) -> None:
    """Warns of a number that a metric gets in a loop, of which nobody knows what it is over."""
    graph: Any = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    looped = graph is not current.graph  # And not in one of ours, over steps.
    if looped and "while" in getattr(graph, "name", "") and "body" in graph.name:
        warnings.warn(
            f"The metric {metric.name!r} gets a number inside a loop over tensors, and "
            f"{rows.replicas} replicas share the batch: it counts by rows, as is right for a "
            "number of the batch, and not for one of each row. Give it the values of all rows at "
            "once, outside of the loop.",
            stacklevel=2,
        )


def _summed(regularizer: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An activity regulariser that gives a sum over rows, such that the mean by rows adds up."""
    rows = current.shared
    if rows is None:
        return regularizer

    def total(outputs: Any) -> Any:
        value = tf.convert_to_tensor(regularizer(outputs))
        return value * tf.cast(rows.times_share, value.dtype)

    return total


def _install() -> None:
    """Makes functions of Keras mind `current`; outside of steps they stay as they are."""
    reduce, scale = private.reduce_weighted_values.function, private.scale_loss.function
    unscale, call = private.unscale_loss.function, private.call_loss.function

    @functools.wraps(reduce)
    def sharded_reduce(
        values: Any,
        sample_weight: Any = None,
        mask: Any = None,
        reduction: Any = "sum_over_batch_size",
        dtype: Any = None,
    ) -> Any:
        counted, exchange, rows = values, current.exchange, current.shared
        if rows is not None and exchange is not None:
            given = [values, sample_weight, mask]
            given = [v if v is None else tf.convert_to_tensor(v) for v in given]
            mixed = _mixes_rows(given[0])
            if mixed and reduction in (None, "none"):
                values = _own_of_all_rows(given[0], rows, exchange)
            elif mixed and (whole := _each_of_all_rows(given, exchange)) is not None:
                values, sample_weight, mask = whole
                value = reduce(values, sample_weight, mask=mask, reduction=reduction, dtype=dtype)
                return counts_by_rows(value)
            elif not rows.are_counted_by(given[0]):
                values = of_all_rows(given[0], exchange, averages=sample_weight is not None)
            if sample_weight is not None and len(tf.convert_to_tensor(values).shape) == 0:
                counted = sample_weight  # By whose rows it is multiplied.
        value = reduce(values, sample_weight, mask=mask, reduction=reduction, dtype=dtype)
        return counts_by_rows(_followed(value, counted, sample_weight, mask, reduction))

    @functools.wraps(call)
    def counted_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with current.having(within=current.within + 1):
            return call(self, *args, **kwargs)

    @functools.wraps(scale)
    def own_scale(value: Any) -> Any:
        # Keras divides by the number of replicas, which is right for shards of equal size.
        if current.own_context is not None and current.shared is not None:
            return counts_by_rows(value)
        return scale(value)

    @functools.wraps(unscale)
    def own_unscale(value: Any) -> Any:
        own = current.own_context is not None and current.shared is not None
        return value if own else unscale(value)

    def counted(update: Callable[..., Any], *, numbers_alone: bool) -> Callable[..., Any]:
        @functools.wraps(update)
        def counted_update(self: Any, values: Any, sample_weight: Any = None) -> Any:
            rows = current.shared
            if rows is not None and sample_weight is None:
                given = tf.convert_to_tensor(values)
                if current.exchange is not None and _mixes_rows(given):
                    whole = _each_of_all_rows([given], current.exchange)
                    if whole is not None:
                        values = whole[0]
                        sample_weight = tf.fill(tf.shape(values)[:1], rows.share)
                elif not (rows.are_counted_by(given) or (numbers_alone and len(given.shape))):
                    sample_weight = rows.share
                    _mind_loops(self, rows)
                    if current.exchange is not None:
                        values = of_all_rows(given, current.exchange)
            with current.having(counted_by_rows=True):
                return update(self, values, sample_weight)

        return counted_update

    layer_calls.install()
    for update, numbers_alone in ((private.mean_update, False), (private.sum_update, True)):
        update.replace(counted(update.function, numbers_alone=numbers_alone))
    private.call_loss.replace(counted_call)
    private.reduce_weighted_values.replace(sharded_reduce)
    private.scale_loss.replace(own_scale)
    private.unscale_loss.replace(own_unscale)
    if private.activity_is_summed:
        private.read_activity_regularizers(_summed)


_install()
