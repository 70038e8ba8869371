"""Results of metrics, whose state is in the replicas' copies.

Metrics are read outside of the replicas, with one exchange. Of what a step of one's own returns the
results of metrics are found: each replica's copy of a metric knows what that replica has seen, so
the mean of the replicas' results is not the metric's. Which of the returned values are results of
metrics is noted where they are made, and the metrics are asked again outside of the replicas.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfgpu.engine import keras_internals as private
from tfgpu.engine.all_reduce import sum_over_replicas
from tfgpu.engine.local_copies import summed_beforehand
from tfgpu.engine.temporary import in_place_of


def metrics_result(model: keras.Model) -> dict[str, Any]:
    """What `get_metrics_result` returns, after one exchange; outside of the replicas.

    Keras' metrics read their variables one by one, and each read is a sum over all replicas.
    """
    strategy = model.distribute_strategy
    values = [private.variable_value(v) for metric in model.metrics for v in metric.variables]
    values = [
        value
        for value in values
        if isinstance(value, private.SyncOnReadVariable)
        and value.aggregation == tf.VariableAggregation.SUM
    ]
    if strategy.num_replicas_in_sync == 1 or tf.executing_eagerly():
        return model.get_metrics_result()

    def sums() -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        own = [private.own_copy(value).read_value() for value in values]
        return sum_over_replicas(context, own)

    totals = [strategy.experimental_local_results(total)[0] for total in strategy.run(sums)]
    with summed_beforehand(values, totals):
        return model.get_metrics_result()


class MetricResults:
    """Notes the results that a model's metrics give to a step.

    Args:
        model: A compiled model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        # By the identity of the value, which is kept alive for that.
        self._given: dict[int, tuple[Any, Any, Any]] = {}
        self._places: dict[int, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """While replicas run, metrics note what they give."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._given.clear)
            for metric in self._model.metrics:
                result = functools.partial(self._result, metric, metric.result)
                stack.enter_context(in_place_of(metric, result=result))
            yield

    def find(self, logs: Any) -> None:
        """In a replica: notes which leaves of what a step returned are results of metrics."""
        self._places = {
            place: self._given[id(leaf)][:2]
            for place, leaf in enumerate(tree.flatten(logs))
            if id(leaf) in self._given
        }

    def asked_again(self, logs: Any) -> Any:
        """Outside of the replicas: `logs` with the metrics' own results in their places."""
        leaves = tree.flatten(logs)
        for place, (metric, key) in self._places.items():
            result = metric.result()
            leaves[place] = result if key is None else result[key]
        return tree.pack_sequence_as(logs, leaves)

    def _result(self, metric: Any, result: Callable[[], Any]) -> Any:
        value = result()
        if isinstance(value, dict):
            for key, leaf in value.items():
                self._given[id(leaf)] = (metric, key, leaf)
        else:
            self._given[id(value)] = (metric, None, value)
        return value
