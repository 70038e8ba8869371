"""What a step of one's own returns, or a `compute_metrics`: one value of those of all replicas.

Results of metrics are not found here but in `metric_results`. Of other values

- a number, or a truth, that is made of rows is what it is of all of them, see `all_rows`;
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
from tfgpu.engine.all_rows import of_all_rows
from tfgpu.engine.dataflow import depends_on_data
from tfgpu.engine.local_copies import exchange
from tfgpu.engine.parts import Unseen
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
    if leaf.dtype == tf.string or rows.are_counted_by(leaf):
        return None
    try:
        return of_all_rows(leaf, rows, functools.partial(exchange, context))
    except Unseen as reason:
        if leaf.dtype.is_floating:
            warnings.warn(
                f"A step returns {name}, which is made of rows {reason}, and {rows.replicas} "
                "replicas share the batch: it is averaged by rows.",
                stacklevel=2,
            )
        return None


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
