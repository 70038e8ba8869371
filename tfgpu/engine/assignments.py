"""What a step assigns, and what was there before."""

from __future__ import annotations

import contextlib
from typing import Any

import tensorflow as tf

from tfgpu.engine import keras_internals as private


class Writes:
    """The variables with a copy a replica that were assigned, in the order of their first one.

    Made in a replica, outside everything that is compiled.

    Args:
        keep: Whether to keep the values from before, of every variable; of those that are
            summed over the replicas they are kept anyway.

    Attributes:
        variables: The containers.
        copies: This replica's copy of each.
        before: Its value before the first assignment; None where it is not kept.
    """

    def __init__(self, *, keep: bool = False):
        self.variables: list[Any] = []
        self.copies: list[tf.Variable] = []
        self.before: list[tf.Tensor | None] = []
        self._keep = keep
        self._times: dict[int, int] = {}
        self._graph = _graph()

    def note(self, variable: Any) -> None:
        """Called before `variable` is assigned, by whatever graph is being made."""
        self._times[id(variable)] = self.times(variable) + 1
        if self.times(variable) > 1:
            return
        copy = private.own_copy(variable)
        before = None
        if self._keep or variable.aggregation == tf.VariableAggregation.SUM:
            # In the graph around what is compiled, so that it can be used there; the order of
            # reads and assignments is that in which they are made.
            with self._graph.as_default() if self._graph else contextlib.nullcontext():
                before = copy.read_value()
        self.variables.append(variable)
        self.copies.append(copy)
        self.before.append(before)

    def times(self, variable: Any) -> int:
        """How often `variable` has been assigned."""
        return self._times.get(id(variable), 0)

    def former(self, variable: Any) -> tf.Tensor | None:
        """The value of `variable` from before; None where it is not kept, or nothing assigned."""
        return self.before[self._place(variable)] if self.times(variable) else None

    def begin_again(self, variable: Any) -> None:
        """Has the value of `variable` from now on be the one from before."""
        if self.former(variable) is not None and self._graph in (None, _graph()):
            place = self._place(variable)
            self.before[place] = self.copies[place].read_value()

    def _place(self, variable: Any) -> int:
        return next(i for i, each in enumerate(self.variables) if each is variable)


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


class Former:
    """The values that variables had before a block assigned them.

    Made outside of the block, in the graph that is to read them.

    Attributes:
        values: Each variable that was assigned, and its value before. Under a strategy it is the
            copy of the replica that asks.
    """

    def __init__(self) -> None:
        self.values: list[tuple[tf.Variable, tf.Tensor]] = []
        self._seen: set[int] = set()
        self._graph = tf.compat.v1.get_default_graph()

    def note(self, variable: tf.Variable) -> None:
        """Called before `variable` is assigned, by whatever graph is being made."""
        if id(variable) in self._seen:
            return
        self._seen.add(id(variable))
        with self._graph.as_default():
            self.values.append((variable, variable.read_value()))
