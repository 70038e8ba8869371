"""What a step assigns, and what was there before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfgpu.engine import keras_internals as private


class Writes:
    """The variables with a copy a replica that were assigned, in the order of their first one.

    Made in a replica, outside everything that is compiled.

    Args:
        keep: Whether to keep the values from before, of every variable; of those that are
            summed over the replicas they are kept anyway.
        of_all_rows: Gives what to assign, and whether that is the same on each replica, of this,
            a variable and what the replica would assign to it.

    Attributes:
        variables: The containers.
        copies: This replica's copy of each.
        before: Its value before the first assignment; None where it is not kept.
    """

    def __init__(
        self,
        *,
        keep: bool = False,
        of_all_rows: Callable[[Writes, Any, Any], tuple[Any, bool]] | None = None,
    ):
        self.variables: list[Any] = []
        self.copies: list[tf.Variable] = []
        self.before: list[tf.Tensor | None] = []
        self._keep = keep
        self._times: dict[int, int] = {}
        self._same: set[int] = set()
        self._graph = _graph()
        self._of_all_rows = of_all_rows

    @property
    def is_in_its_graph(self) -> bool:
        """Whether the graph that is being made is that in which this was made."""
        return self._graph is not None and self._graph is _graph()

    def note(self, variable: Any, value: Any) -> Any:
        """Called before `variable` is assigned, by whatever graph is being made.

        Returns:
            What to assign in the place of `value`.
        """
        same = False
        if self._of_all_rows is not None:
            value, same = self._of_all_rows(self, variable, value)
        self._note(variable)
        (self._same.add if same else self._same.discard)(id(variable))
        return value

    def is_same(self, variable: Any) -> bool:
        """Whether each replica has assigned the same to `variable`."""
        return id(variable) in self._same

    def unsettled(self) -> list[tf.Variable]:
        """The copies that have a value of this replica's own, to be brought together yet."""
        return [
            copy
            for variable, copy in zip(self.variables, self.copies, strict=True)
            if not self.is_same(variable) and not isinstance(variable, private.SyncOnReadVariable)
        ]

    def _note(self, variable: Any) -> None:
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
