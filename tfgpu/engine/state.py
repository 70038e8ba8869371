"""Brings together what the replicas have assigned to variables, each to its own copy.

A variable says how, by its `aggregation`, as `keras.Variable` and `tf.Variable` take it:

    none (the default)   floats are averaged by real rows, others are the first replica's
    mean                 averaged over the replicas that have rows
    sum                  old + the sum over the replicas of (new - old)
    only_first_replica   the first replica's

One with `synchronization="on_read"`, such as a metric's, stays each replica's own. A replica
without rows of its own counts nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfgpu.engine import keras_internals as private
from tfgpu.engine.assignments import Writes
from tfgpu.engine.local_copies import is_seed
from tfgpu.engine.shards import Rows


class Settlement:
    """The assigned variables of one step of a replica, on their way to one value for all.

    Args:
        context: The replica's context.
        writes: What was assigned.
        rows: Of this replica's shard.

    Attributes:
        contributions: What has to be summed over the replicas, a tensor each.
    """

    def __init__(self, context: Any, writes: Writes, rows: Rows):
        self.contributions: list[tf.Tensor] = []
        # A copy, what its sum is added to, and its value from before.
        self._finish: list[tuple[tf.Variable, tf.Tensor | None, tf.Tensor]] = []
        first = tf.get_static_value(context.replica_id_in_sync_group) == 0
        self._rows = rows
        self._context = context
        self._first_of: list[tuple[tf.Variable, tf.Tensor]] = []
        self._kept: list[tuple[tf.Variable, tf.Tensor]] = []
        self._same: list[tuple[tf.Variable, tf.Tensor | None]] = []
        for variable, copy, before in zip(
            writes.variables, writes.copies, writes.before, strict=True
        ):
            if isinstance(variable, private.SyncOnReadVariable):
                if rows.may_be_absent:
                    assert before is not None
                    self._kept.append((copy, before))
                continue
            if is_seed(variable):
                continue  # Every replica draws as often.
            if writes.is_same(variable):
                self._same.append((copy, before))
                continue
            self._settle(variable, copy, before, first)

    def _settle(
        self, variable: Any, copy: tf.Variable, before: tf.Tensor | None, first: bool
    ) -> None:
        how, dtype, rows = variable.aggregation, copy.dtype, self._rows
        if how == _NONE and not dtype.is_floating:
            how = _FIRST
        new = copy.read_value()
        number = dtype.is_floating or dtype.is_integer or dtype.is_complex
        if not number and how in (_SUM, _MEAN):
            raise ValueError(
                f"Variable {variable.name!r} is assigned in the forward pass and has dtype "
                f"{dtype.name}, which has no {how.name.lower()} over replicas; let it be "
                "aggregated as 'only_first_replica', or train on one device."
            )
        if not number:
            self._first_of.append((copy, _of_first_replica(self._context, variable, new)))
            return
        if how == _MEAN and not dtype.is_floating:
            raise ValueError(
                f"Variable {variable.name!r} has dtype {dtype.name} and aggregation 'mean', and "
                "a mean over replicas is no integer; use a float, 'sum' or 'only_first_replica'."
            )
        if how == _SUM:
            part = new - before
        elif how == _MEAN:
            one = tf.cast(rows.present, tf.float32)
            part = new * tf.cast(one / tf.cast(rows.present_replicas, tf.float32), dtype)
        elif how == _NONE:
            part = new * tf.cast(rows.share, dtype)
        else:
            part = new if first else tf.zeros_like(new)
        if how != _FIRST and rows.may_be_absent:
            # What is not finite stays so when it is multiplied by 0.
            part = tf.where(rows.present, part, tf.zeros_like(part))
        if not (dtype.is_floating or dtype.is_complex):
            # TensorFlow keeps small integers on the host, and sums none on other devices.
            part = tf.cast(part, tf.int64)
        self.contributions.append(part)
        old = before if how == _SUM else None
        self._finish.append((copy, old, new if before is None else before))

    def finish(self, sums: Sequence[tf.Tensor], finite: tf.Tensor | None = None) -> None:
        """Assigns the values.

        Args:
            sums: The `contributions`, summed over the replicas.
            finite: Where it is false, floats keep the value from before the step.
        """
        for (copy, old, before), total in zip(self._finish, sums, strict=True):
            value = tf.cast(total, copy.dtype)
            if old is not None:
                value = old + value
            if finite is not None and copy.dtype.is_floating:
                value = tf.where(finite, value, before)
            copy.assign(value)
        for copy, before in self._same:
            if finite is not None and before is not None and copy.dtype.is_floating:
                copy.assign(tf.where(finite, copy.read_value(), before))
        for copy, value in self._first_of:
            copy.assign(value)
        for copy, before in self._kept:
            copy.assign(tf.where(self._rows.present, copy.read_value(), before))


_NONE = tf.VariableAggregation.NONE
_SUM = tf.VariableAggregation.SUM
_MEAN = tf.VariableAggregation.MEAN
_FIRST = tf.VariableAggregation.ONLY_FIRST_REPLICA


def _of_first_replica(context: Any, variable: Any, value: tf.Tensor) -> tf.Tensor:
    """The first replica's value of what cannot be summed, such as strings."""
    if isinstance(context.strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise ValueError(
            f"Variable {variable.name!r} is assigned in the forward pass and has dtype "
            f"{variable.dtype.name}, which does not travel between workers; use a number."
        )

    def first(strategy: tf.distribute.Strategy, values: Any) -> tf.Tensor:
        return strategy.experimental_local_results(values)[0]

    return context.merge_call(first, args=(value,))
