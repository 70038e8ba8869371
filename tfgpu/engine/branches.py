"""Updates and assignments inside branches: right where each replica takes the same branch."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfgpu.engine.all_rows import Analysis
from tfgpu.engine.current import current
from tfgpu.engine.parts import Unseen
from tfgpu.engine.shards import Rows

_BRANCHES = {"If": ("then_branch", "else_branch"), "While": ("cond", "body")}


def note_update(optimizer: Any) -> None:
    """Notes the graphs around an update, up to that of the step."""
    if tf.executing_eagerly():
        # One replica alone never comes here: TensorFlow tells, where the others went on.
        current.own_context.merge_call(lambda _: None)
        return
    for name in _around():
        current.updated_in[name] = optimizer.name


def note_assignment(variable: Any) -> None:
    """The same of an assignment."""
    for name in _around():
        current.assigned_in[name] = variable.name


def _around() -> Iterator[str]:
    graph: Any = tf.compat.v1.get_default_graph()
    while graph is not None and hasattr(graph, "name"):
        yield graph.name
        graph = getattr(graph, "outer_graph", None)


@contextlib.contextmanager
def checked(rows: Rows) -> Iterator[None]:
    """Around a step of one's own: minds branches that replicas take by what is of their rows.

    Raises:
        ValueError: An optimizer updates in one.
    """
    with current.having(updated_in={}, assigned_in={}):
        yield
        if tf.executing_eagerly() or not (current.updated_in or current.assigned_in):
            return
        graph: Any = tf.compat.v1.get_default_graph()
        for operation in graph.get_operations():
            names = [operation.get_attr(n).name for n in _BRANCHES.get(operation.type, ())]
            optimizer = next(filter(None, map(current.updated_in.get, names)), None)
            variable = next(filter(None, map(current.assigned_in.get, names)), None)
            if (optimizer or variable) and _is_of_rows(operation.inputs[0], rows):
                _say(optimizer, variable, rows)


def _say(optimizer: str | None, variable: str | None, rows: Rows) -> None:
    by_rows = (
        "inside a branch that a replica enters by what it has of its own rows, such as the value "
        f"of a loss, and {rows.replicas} replicas share the batch"
    )
    way_out = (
        "Decide by what is the same on each: a gradient, which is that of the global batch, a "
        "counter, or the result of a metric."
    )
    if optimizer is not None:
        raise ValueError(
            f"The optimizer {optimizer!r} updates {by_rows}: their weights would part. {way_out}"
        )
    warnings.warn(
        f"A step assigns to {variable!r} {by_rows}: their values are averaged by rows. {way_out}",
        stacklevel=2,
    )


def _is_of_rows(predicate: Any, rows: Rows) -> bool:
    try:
        return Analysis(rows).is_of_rows(predicate)
    except Unseen:
        return True
