"""What a step of one's own returns, or a `compute_metrics`: one value of those of all replicas.

Results of metrics are not found here but in `metric_results`. Of other values

- floats are averaged by rows;
- whole numbers that count rows, or anything in them, add up;
- what does not depend on the rows, such as the number of updates, is the same everywhere;
- of anything else, such as a bool or a text that is made of a replica's rows, the first replica's
  stands, with a warning.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import tensorflow as tf
from keras import tree

from tfgpu.engine import keras_internals as private
from tfgpu.engine.local_copies import exchange
from tfgpu.engine.losses import depends_on_data
from tfgpu.engine.shards import Rows

# Operations whose result counts the rows that they are given; and those that leave a count one.
_COUNTS = {"Bincount", "DenseBincount", "ScatterNd", "Size", "Sum", "UnsortedSegmentSum"}
_OF_COUNTS = {"Add", "AddN", "AddV2", "Cast", "Identity", "Reshape", "Squeeze", "Sub"}


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
        if not isinstance(leaf, tf.Tensor):
            return leaf
        if leaf.dtype.is_floating:
            part = leaf * tf.cast(rows.share * rows.replicas, leaf.dtype)
            return tf.where(rows.present, part, tf.zeros_like(leaf)) if rows.may_be_absent else part
        if not depends_on_data(leaf):
            return leaf
        if leaf.dtype.is_integer and _is_count(leaf):
            return exchange(context, leaf * tf.cast(rows.present, leaf.dtype))
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


def _is_count(tensor: Any) -> bool:
    """Whether a whole number is made of counts alone, as far as can be told."""
    waiting, seen, found = [tensor], set(), False
    while waiting:
        each = waiting.pop()
        if id(each) in seen or not hasattr(each, "op"):
            continue
        seen.add(id(each))
        kind, inputs = each.op.type, list(each.op.inputs)
        if kind in _COUNTS or (kind == "StridedSlice" and _is_number_of_rows(inputs)):
            found = True
        elif kind in _OF_COUNTS:
            waiting.extend(inputs)
        elif depends_on_data(each):
            return False
    return found


def _is_number_of_rows(sliced: list[Any]) -> bool:
    shape, begin = sliced[:2]
    place = tf.get_static_value(begin)
    return bool(shape.op.type == "Shape" and place is not None and not place.any())


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
        return private.reduce_per_replica(leaf, strategy, reduction="auto")

    return tree.map_structure(one, results)
