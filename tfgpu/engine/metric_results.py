"""Results of metrics, whose state is in the replicas' copies.

Metrics are read outside of the replicas, with one exchange. Of what a step of one's own returns the
results of metrics are found: each replica's copy of a metric knows what that replica has seen, so
the mean of the replicas' results is not the metric's. Which of the returned values are results of
metrics is noted where they are made, whoever holds the metric, and the metrics are asked again
outside of the replicas.

That is too late for a step that computes something of a result, or goes on to change the metric
after it has asked: its replicas meet in each result. Whether a step does is known once it has been
traced, and then it is traced once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree

from tfgpu.engine import keras_internals as private
from tfgpu.engine.all_reduce import sum_over_replicas
from tfgpu.engine.assignments import Writes
from tfgpu.engine.local_copies import (
    current_writes,
    exchange,
    once_for_all,
    summed_beforehand,
)
from tfgpu.engine.overrides import everywhere
from tfgpu.engine.shards import Rows
from tfgpu.engine.temporary import ThreadState


def metrics_result(model: keras.Model) -> dict[str, Any]:
    """What `get_metrics_result` returns, after one exchange; outside of the replicas.

    Keras' metrics read their variables one by one, and each read is a sum over all replicas.
    """
    strategy = model.distribute_strategy
    values = _summed_variables(model.metrics)
    if not values or strategy.num_replicas_in_sync == 1 or tf.executing_eagerly():
        return model.get_metrics_result()

    def sums() -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        own = [private.own_copy(value).read_value() for value in values]
        return sum_over_replicas(context, own)

    totals = [strategy.experimental_local_results(total)[0] for total in strategy.run(sums)]
    with summed_beforehand(values, totals):
        return model.get_metrics_result()


def _summed_variables(metrics: Sequence[Any]) -> list[Any]:
    """The variables of metrics that are a sum over the replicas' copies.

    Raises:
        ValueError: The values of one cannot be added.
    """
    found = []
    for metric, variable in [(each, v) for each in metrics for v in each.variables]:
        value = private.variable_value(variable)
        if not isinstance(value, private.SyncOnReadVariable):
            continue
        if value.aggregation != tf.VariableAggregation.SUM:
            continue
        replicas = value.distribute_strategy.num_replicas_in_sync
        if replicas > 1 and value.dtype in (tf.bool, tf.string):
            raise ValueError(
                f"The metric {metric.name!r} has a variable {variable.name!r} of dtype "
                f"{value.dtype.name}, and {replicas} replicas add up their values of it, which "
                "these cannot. Count in a number, such as int32, and compare it in result()."
            )
        found.append(value)
    return found


def check_variables(model: keras.Model) -> None:
    """Checks that the replicas' states of the metrics that a model was compiled with add up.

    Raises:
        ValueError: Those of one do not; names it.
    """
    config = private.compile_config(model).config
    given = tree.flatten([config["metrics"], config["weighted_metrics"]])
    _summed_variables([each for each in given if isinstance(each, keras.metrics.Metric)])


class MustMeet(Exception):
    """The replicas have to meet in the results of metrics; the step is to be traced once more."""


class _Given(NamedTuple):
    """A result as a step got it: of which metric, and how often that had been assigned by then."""

    value: Any
    metric: Any
    key: Any
    writes: Writes | None
    times: int


class _Current(ThreadState):
    """What this thread's replica notes; `asking` inside the result of a metric."""

    results: MetricResults | None = None
    given: dict[int, _Given] = {}  # noqa: RUF012
    asking = False
    context: Any = None
    rows: Any = None


_current = _Current()


class MetricResults:
    """The results that metrics give to a step of one's own.

    Args:
        meeting: Whether the replicas meet in each result from the start: eagerly there is no graph
            that would tell what the step does with it.
    """

    def __init__(self, *, meeting: bool) -> None:
        self._meeting = meeting
        # By the identity of the value, which is kept alive for that; one replica's as another's.
        self._places: dict[int, tuple[Any, Any]] = {}

    def meet(self) -> None:
        """From now on the replicas meet in each result."""
        self._meeting = True

    @contextlib.contextmanager
    def noted(self, context: Any, rows: Rows) -> Iterator[Callable[[Any], None]]:
        """In a replica, around a step: metrics note what they give.

        Gives a function for what the step has returned, which notes what of it are results.

        Raises:
            MustMeet: By that function; see there.
        """
        for name, around in _STAND_INS.items():
            everywhere(keras.metrics.Metric, name, around)
        given: dict[int, _Given] = {}
        with _current.having(results=self, context=context, rows=rows, given=given):
            yield lambda logs: self._find(logs, given)

    def result(self, metric: Any, ask: Callable[[], Any]) -> Any:
        """The result of a metric, for a step."""
        value = self._of_all(metric, ask) if self._meeting else ask()
        value = tree.map_structure(_as_tensor, value)
        if not self._meeting:
            writes = current_writes()
            entries = value.items() if isinstance(value, dict) else [(None, value)]
            for key, leaf in entries:
                times = _times(metric, writes)
                _current.given[id(leaf)] = _Given(leaf, metric, key, writes, times)
        return value

    def _of_all(self, metric: Any, ask: Callable[[], Any]) -> Any:
        context, rows, writes = _current.context, _current.rows, current_writes()
        values = _summed_variables([metric])
        if not values:
            return ask()
        copies = [private.own_copy(value) for value in values]
        own = [copy.read_value() for copy in copies]
        # A replica without rows of its own has nothing to add to what it had.
        parts = [
            part if before is None else tf.where(rows.present, part, before)
            for part, before in zip(own, [_before(v, rows, writes) for v in values], strict=True)
        ]
        for copy, total in zip(copies, exchange(context, parts), strict=True):
            copy.assign(total)
        result = tree.map_structure(_as_tensor, ask())
        for copy, part in zip(copies, own, strict=True):
            copy.assign(part)
        return result

    def _find(self, logs: Any, given: dict[int, _Given]) -> None:
        if any(_is_used(each.value) or _has_changed(each) for each in given.values()):
            raise MustMeet
        leaves = [_without_identities(leaf) for leaf in tree.flatten(logs)]
        self._places = {
            place: (given[id(leaf)].metric, given[id(leaf)].key)
            for place, leaf in enumerate(leaves)
            if id(leaf) in given
        }

    def asked_again(self, logs: Any) -> Any:
        """Outside of the replicas: `logs` with the metrics' own results in their places."""
        leaves = tree.flatten(logs)
        for place, (metric, key) in self._places.items():
            result = metric.result()
            leaves[place] = result if key is None else result[key]
        return tree.pack_sequence_as(logs, leaves)


def _asked(result: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `result` of a class of metrics."""

    def asked(self: Any, *args: Any, **kwargs: Any) -> Any:
        results = _current.results
        if results is None or _current.asking:
            return result(self, *args, **kwargs)
        with _current.having(asking=True):
            return results.result(self, lambda: result(self, *args, **kwargs))

    return asked


def _reset(reset_state: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `reset_state`, which holds for replicas without rows of their own too."""

    def reset(self: Any, *args: Any, **kwargs: Any) -> Any:
        returned = reset_state(self, *args, **kwargs)
        writes = current_writes()
        if _current.results is not None and writes is not None:
            for variable in self.variables:
                writes.begin_again(private.variable_value(variable))
        return returned

    return reset


def _built(build: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `build`, which one replica does for all."""

    def built(self: Any, *args: Any, **kwargs: Any) -> None:
        if _current.results is None or tf.executing_eagerly():
            build(self, *args, **kwargs)
        else:
            once_for_all(_current.context, lambda: build(self, *args, **kwargs))

    return built


def _added(add_variable: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `add_variable`, of metrics that make their variables when they are used."""

    def added(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _current.results is None or tf.executing_eagerly():
            return add_variable(self, *args, **kwargs)
        once_for_all(_current.context, lambda: add_variable(self, *args, **kwargs))
        # The same for each replica, of which none goes on before all have it.
        return self.variables[-1]

    return added


_STAND_INS = {
    "result": _asked,
    "reset_state": _reset,
    "build": _built,
    "add_variable": _added,
    "add_weight": _added,
}


def _as_tensor(leaf: Any) -> Any:
    """A result whose identity is its own; a variable's as it is now."""
    is_value = isinstance(leaf, keras.Variable | tf.Variable) or tf.is_tensor(leaf)
    return tf.identity(tf.convert_to_tensor(leaf)) if is_value else leaf


def _times(metric: Any, writes: Writes | None) -> int:
    if writes is None:
        return 0
    return sum(writes.times(private.variable_value(variable)) for variable in metric.variables)


def _has_changed(given: _Given) -> bool:
    return _times(given.metric, given.writes) > given.times


def _before(variable: Any, rows: Rows, writes: Writes | None) -> Any:
    return writes.former(variable) if rows.may_be_absent and writes is not None else None


def _is_used(value: Any) -> bool:
    """Whether a graph computes anything of a tensor."""
    consumers = value.consumers() if tf.is_tensor(value) else []
    return any(op.type != "Identity" or _is_used(op.outputs[0]) for op in consumers)


def _without_identities(leaf: Any) -> Any:
    """The tensor that a step has made, where it returned the identity of it."""
    while (
        id(leaf) not in _current.given
        and tf.is_tensor(leaf)
        and getattr(getattr(leaf, "op", None), "type", "") == "Identity"
    ):
        leaf = leaf.op.inputs[0]
    return leaf
