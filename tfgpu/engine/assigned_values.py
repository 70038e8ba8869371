"""What a replica assigns to a variable: what one device assigns, which has all rows.

Code for one device assigns what it makes of a batch: a moving average, a count, the largest value
so far, a queue of the newest rows. Each replica makes that of its own rows. Where a variable
declares no `aggregation`, the graph of the assigned value tells what it is of the global batch:

- nothing of it is made of rows: replicas assign the same;
- means over rows, and sums and multiples of them, as `BatchNormalization` assigns: `state` averages
  them by rows at the end of the step;
- any other function of sums, means, counts or extremes over rows: the replicas exchange those, and
  the function is computed anew of what they are of all rows;
- a function of the rows themselves: they are gathered, and it is computed anew of all of them;
- what nobody can see through, such as a `tf.function`: averaged by rows, with a warning.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import tensorflow as tf

from tfgpu.engine import branches
from tfgpu.engine import keras_internals as private
from tfgpu.engine.all_rows import Analysis
from tfgpu.engine.assignments import Writes
from tfgpu.engine.current import current
from tfgpu.engine.dataflow import is_made_of, reads_one_of, under
from tfgpu.engine.local_copies import NotCompilable, exchange, is_compiling, is_seed
from tfgpu.engine.parts import Unseen
from tfgpu.engine.shards import Rows


def writes_of(context: Any, rows: Rows, *, keep: bool) -> Writes:
    """Where a replica's assignments are noted, and what is assigned is that of all rows.

    Args:
        context: The replica's context.
        rows: Of its shard.
        keep: Whether to keep the values from before, of every variable.
    """
    return Writes(keep=keep, of_all_rows=functools.partial(_of_all_rows, context, rows))


def _of_all_rows(
    context: Any, rows: Rows, writes: Writes, variable: Any, value: Any
) -> tuple[Any, bool]:
    """What to assign to `variable`, and whether each replica assigns the same."""
    undeclared = id(variable) in current.undeclared
    by_itself = undeclared or variable.aggregation == tf.VariableAggregation.NONE
    if isinstance(variable, private.SyncOnReadVariable):
        _mind_metrics(variable, value, rows)
        return value, False
    if not by_itself or is_seed(variable) or current.averaging:
        return value, False
    slices = value if isinstance(value, tf.IndexedSlices) else None
    tensors = [slices.values, slices.indices] if slices else [tf.convert_to_tensor(value)]
    if not all(hasattr(tensor, "op") for tensor in tensors):
        return value, False  # Computed eagerly: nobody knows of what.
    if not writes.is_in_its_graph and not is_compiling():
        branches.note_assignment(variable)
    seen = Analysis(rows, writes.unsettled())
    try:
        made_of_rows = [seen.is_of_rows(tensor) for tensor in tensors]
        if not any(made_of_rows):
            _mind_static_counts(variable, tensors[0], rows)
            return value, writes.is_in_its_graph
        # What a layer averages nobody reads before the step's end but the layer.
        averaged = seen.is_average and slices is None and variable.dtype.is_floating
        if averaged and (current.within_layers or not writes.is_in_its_graph):
            if seen.is_normalized:
                _warn(variable, rows, "by statistics of their own, such as a variance")
            return value, False
        whole = seen.of_all_rows(tensors, functools.partial(exchange, context))
        if slices is None and not whole[0].shape.is_compatible_with(tensors[0].shape):
            raise Unseen("by operations made for as many rows as a replica has")
    except Unseen as reason:
        if is_compiling():
            raise NotCompilable("A variable is assigned what is made of rows in the step") from None
        _warn(variable, rows, str(reason))
        if undeclared and writes.is_in_its_graph:
            # The update reads it before it would be brought together.
            first = tf.equal(context.replica_id_in_sync_group, 0)
            return exchange(context, tf.where(first, value, tf.zeros_like(value))), True
    else:
        if slices is None:
            return whole[0], writes.is_in_its_graph
        return tf.IndexedSlices(*whole, slices.dense_shape), writes.is_in_its_graph
    return value, False


def _warn(variable: Any, rows: Rows, how: str) -> None:
    become = (
        "averaged by rows, as is right for means over rows"
        if variable.dtype.is_floating
        else "those of the first replica"
    )
    warnings.warn(
        f"A step assigns to {variable.name!r} what is made of rows {how}, and {rows.replicas} "
        f"replicas share the batch: their values are {become}. Give the variable an `aggregation` "
        "that says what they are: 'mean', 'sum' or 'only_first_replica'.",
        stacklevel=2,
    )


def _mind_metrics(variable: Any, value: Any, rows: Rows) -> None:
    """Warns where the state of a metric, of which replicas' parts add up, gets no such part."""
    tensor = value if hasattr(value, "op") else None
    if tensor is None or variable.aggregation != tf.VariableAggregation.SUM:
        return
    state = private.own_copy(variable)
    total = under(tensor, "Cast", "Identity")
    terms = total.op.inputs if total.op.type in ("Add", "AddV2") else ()
    terms = [under(term, "Cast", "Identity", "Reshape") for term in terms]
    own = [reads_one_of(term, [state]) for term in terms]
    if any(own):
        added = (term for term, is_own in zip(terms, own, strict=True) if not is_own)
        if current.counted_by_rows or all(_adds_up(term, rows) for term in added):
            return
    elif not is_made_of(tensor, state):
        return
    warnings.warn(
        f"A metric assigns to {variable.name!r} what is not its value and a sum over rows, and "
        f"{rows.replicas} replicas, of which each has a value of its own, add these up. Compute it "
        "from a sum and a count, or give the variable aggregation='mean' or 'only_first_replica'.",
        stacklevel=2,
    )


def _adds_up(term: tf.Tensor, rows: Rows) -> bool:
    """Whether the replicas' numbers add up to that of all rows, as far as can be told."""
    seen = Analysis(rows)
    try:
        of_rows = seen.is_of_rows(term)
    except Unseen:
        return True
    # Of rows themselves, and of their number, it may be a sum that is made in another way.
    known = all(part.how not in ("rows", "shape") for part in seen.parts)
    return not of_rows or not known or seen.is_sum


def _mind_static_counts(variable: Any, value: tf.Tensor, rows: Rows) -> None:
    """Warns of a number that is added and is as large as a replica has rows: it may count them."""
    if value.op.type != "AddV2":
        return
    added = under(value.op.inputs[1], "Cast")
    number, real = tf.get_static_value(added), tf.get_static_value(rows.real)
    if number is not None and not number.ndim and real is not None and number == real > 1:
        warnings.warn(
            f"A step adds {number} to {variable.name!r}, and a replica has as many rows of the "
            "batch. If that counts them, count those of all replicas: by tf.reduce_sum of ones, "
            "or with data whose batches have no static size.",
            stacklevel=2,
        )
