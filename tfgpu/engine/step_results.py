"""What a step of one's own returns, or a `compute_metrics`: one value of those of all replicas.

Results of metrics are not found here but in `metric_results`. Of other values

- a number, or a truth, that is made of rows is what it is of all of them, see `all_rows`;
- values of rows are those of all rows, one after the other;
- what does not depend on the rows, such as the number of updates, is the same everywhere;
- of what nobody can see through, floats are averaged by rows;
- of anything else, such as a text that is made of a replica's rows, the first replica's stands,
  with a warning.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from keras import tree

from tfgpu.engine import keras_internals as private
from tfgpu.engine.all_rows import each_of_all_rows, of_all_rows
from tfgpu.engine.dataflow import depends_on_data
from tfgpu.engine.local_copies import exchange
from tfgpu.engine.parts import Exchange, Part, Unseen, together
from tfgpu.engine.shards import Rows


def results_by_rows(results: Any, rows: Rows, context: Any) -> Any:
    """Results in a replica, such that `reduced` gives those of the global batch.

    Args:
        results: In any structure.
        rows: Of this replica's shard.
        context: The replica's context.
    """
    if rows.replicas == 1:
        return results

    def of_all(leaf: Any, name: str = "a result") -> Any:
        if isinstance(leaf, float | np.floating | np.ndarray) and tf.executing_eagerly():
            leaf = tf.convert_to_tensor(leaf)
        if not isinstance(leaf, tf.Tensor):
            return leaf
        whole = _of_all_rows(leaf, name, rows, context)
        if leaf.dtype.is_floating:
            leaf = leaf if whole is None else whole
            part = leaf * tf.cast(rows.share * rows.replicas, leaf.dtype)
            return tf.where(rows.present, part, tf.zeros_like(leaf)) if rows.may_be_absent else part
        if whole is not None or not depends_on_data(leaf):
            return leaf if whole is None else whole
        warnings.warn(
            f"A step returns {name} of dtype {leaf.dtype.name}, and {rows.replicas} replicas "
            "share the batch: it is that of the first replica's rows. Return a float, which is "
            "averaged by rows, a count of rows, or the result of a metric.",
            stacklevel=2,
        )
        if not leaf.dtype.is_integer:
            return leaf
        first = tf.cast(tf.equal(context.replica_id_in_sync_group, 0), leaf.dtype)
        return exchange(context, leaf * first)

    if not isinstance(results, dict):
        return tree.map_structure(of_all, results)
    return {
        key: tree.map_structure(functools.partial(of_all, name=repr(key)), value)
        for key, value in results.items()
    }


def _of_all_rows(leaf: tf.Tensor, name: str, rows: Rows, context: Any) -> tf.Tensor | None:
    """What a result is of all rows; None where that is its average, or nobody can tell."""
    if leaf.dtype == tf.string:
        return None
    meet = functools.partial(exchange, context)
    if not hasattr(leaf, "op"):
        return together(rows, Part(leaf, "rows"), meet) if _has_rows(leaf, rows, context) else None
    of_rows = bool(leaf.shape.rank) and rows.are_counted_by(leaf)
    try:
        if of_rows:
            return each_of_all_rows([leaf], rows, meet)[0]
        return of_all_rows(leaf, rows, meet)
    except Unseen as reason:
        if of_rows or leaf.dtype.is_floating:
            what = "the replicas' rows are put one after the other" if of_rows else "it is averaged"
            warnings.warn(
                f"A step returns {name}, which is made of rows {reason}, and {rows.replicas} "
                f"replicas share the batch: {what}{'' if of_rows else ' by rows'}.",
                stacklevel=2,
            )
        return _put_together(leaf, name, rows, meet) if of_rows else None


def _put_together(leaf: tf.Tensor, name: str, rows: Rows, meet: Exchange) -> tf.Tensor:
    """The replicas' values one after the other, of which each has as many for a row."""
    left = tf.shape(leaf)[0] % tf.maximum(tf.cast(rows.real, tf.int32), 1)
    said = (
        f"A step returns {name}, whose first dimension is neither a constant nor a multiple of the "
        "rows of a replica, so that nobody can tell what it is of all rows. Return a number."
    )
    with tf.control_dependencies([tf.debugging.assert_equal(left, 0, message=said)]):
        return together(rows, Part(tf.identity(leaf), "rows"), meet)


def _has_rows(leaf: tf.Tensor, rows: Rows, context: Any) -> bool:
    """Whether what was computed eagerly has a value a row, as far as its length tells.

    Of replicas with different numbers of rows, it may be several values a row.
    """
    length, real = leaf.shape[0] if leaf.shape.rank else 0, int(rows.real)
    own = tf.one_hot(context.replica_id_in_sync_group, rows.replicas, dtype=tf.int64)
    each = exchange(context, own * length), exchange(context, own * real)
    found = [(int(one), int(other)) for one, other in zip(*each, strict=True) if other]
    times = {one / other for one, other in found}
    if len(times) > 1 or not all(one and one % other == 0 for one, other in found):
        return False
    return times == {1.0} or len({other for _, other in found}) > 1


def reduced(results: Any, strategy: tf.distribute.Strategy) -> Any:
    """One value of each of the replicas' results, as `results_by_rows` gave them.

    Args:
        results: What `strategy.run` returned.
        strategy: Whose replicas they are.
    """

    def one(leaf: Any) -> Any:
        first = strategy.experimental_local_results(leaf)[0]
        if isinstance(first, tf.Tensor) and first.dtype in (tf.bool, tf.string):
            return first
        if isinstance(first, tf.Tensor) and first.shape.rank == 0 and leaf is first:
            # Keras takes the mean of several workers' over a dimension that a number has not.
            return strategy.reduce("MEAN", leaf, axis=None)
        return private.reduce_per_replica(leaf, strategy, reduction="auto")

    return tree.map_structure(one, results)
