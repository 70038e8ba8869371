"""Runs `k` steps on all replicas in one call: what Keras calls an execution.

The host is met once an execution: the loop over its steps, the reading of batches and
the results of the metrics are one `tf.function`. Nothing in it belongs to a data set but its
arguments, so one trace serves every data set of the same kind of elements, and keeps none alive.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine import keras_internals as private
from tfgpu.engine import xla
from tfgpu.engine.batches import BatchIterator, own_shard
from tfgpu.engine.compiled_loop import CompiledLoop
from tfgpu.engine.current import current, step_notes
from tfgpu.engine.dataflow import has_seeds
from tfgpu.engine.latest import Latest
from tfgpu.engine.local_copies import SharedGenerator, as_replica
from tfgpu.engine.metric_results import MetricResults, MustMeet, metrics_result
from tfgpu.engine.overrides import has_own_results, is_own
from tfgpu.engine.own_step import OwnStep, installed
from tfgpu.engine.python_state import PythonState
from tfgpu.engine.replica_step import (
    NeedsStep,
    ReplicaStep,
    layer_scopes,
    refusal,
    rows_of,
)
from tfgpu.engine.shards import Shard, has_static_rows, without_static_rows
from tfgpu.engine.step_results import reduced, results_by_rows


class Replicas:
    """Runs one kind of step of a model on every replica.

    Args:
        model: A compiled model.
        name: `train_step`, `test_step` or `predict_step`.

    Attributes:
        own: Whether the step is one that the model's class defines.
        own_results: Whether only the step knows what to report.
        replica_step: The steps of the engine, which an own one stands before.
        varies: Whether replicas exchange what is of another shape where there are fewer rows.
    """

    def __init__(self, model: keras.Model, name: str):
        strategy = model.distribute_strategy
        self._model: Any = model
        self._strategy = strategy
        self.own = is_own(model, name)
        leave_collective_keys(strategy)
        alone = strategy.num_replicas_in_sync == 1
        if not alone:
            _refuse_stateful_layers(model)
        self._own_step = None
        if self.own or (alone and model.run_eagerly):  # To step through.
            self._own_step = OwnStep(model, name)
        self.replica_step = ReplicaStep(model)
        self._step: Callable[..., Any] = self._own_step or getattr(self.replica_step, name)
        # Results that only the step knows have to leave the loop with it.
        self.own_results = has_own_results(model, name)
        noting = not alone and self.own_results and name != "predict_step"
        self._name = name
        self.varies = False
        self._static = False
        self._hidden: Shard | None = None
        self._metrics = MetricResults(meeting=model.run_eagerly) if noting else None
        # Under no strategy Keras makes it where it is first drawn from.
        self._generator = None if private.is_default(strategy) else SharedGenerator(strategy)
        # Maps that are equal trace to the same function if they are the same object.
        self._maps: dict[Any, Any] = {}

    def map_of(self, batches: Any) -> Any:
        """The device map of `Batches`, one object for all that are equal."""
        device_map = batches.device_map
        return None if device_map is None else self._maps.setdefault(device_map, device_map)

    def run(
        self,
        element: Any,
        device_map: Any = None,
        resident: Sequence[Sequence[tf.Tensor]] = (),
        *,
        whole: bool = True,
    ) -> Any:
        """Runs a step; returns what it returned on each replica.

        Args:
            element: A batch, as an iterator gave it.
            device_map: Of the data set, or None.
            resident: The arrays it takes, by local replica.
            whole: Whether `element` is the global batch.
        """
        several = self._strategy.num_replicas_in_sync > 1
        layers = list(private.flatten_layers(self._model)) if several else []
        begin = PythonState(layers)

        def replica(element: Any, generator: Any) -> Any:
            context = tf.distribute.get_replica_context()
            number = int(tf.get_static_value(context.replica_id_in_sync_group)) if several else 0
            arrays: Sequence[tf.Tensor] = resident[number % len(resident)] if resident else ()
            begin.put_back()  # What replicas before this one have changed.
            with (
                as_replica(number, generator, layers, several=several),
                step_notes(self._static),
            ):
                with tf.name_scope("input"):
                    shard = own_shard(element, whole=whole)
                    if several and not self._static and not tf.executing_eagerly():
                        self._hidden, shard = shard, without_static_rows(shard)
                if self._metrics is None:
                    logs = self._step(shard, device_map, arrays)
                else:
                    rows = rows_of(shard, context)
                    with self._metrics.noted(context, rows) as find:
                        logs = self._step(shard, device_map, arrays)
                        find(logs)
                    logs = results_by_rows(logs, rows, context)
                self.varies = self.varies or current.varying
                return logs

        with contextlib.ExitStack() as stack:
            if self._own_step is not None:
                stack.enter_context(installed(self._model))
            generator = None
            if self._generator is not None:
                generator = stack.enter_context(self._generator.shared())
            run = functools.partial(replica, generator=generator)
            try:
                return self._strategy.run(run, args=(element,))
            except Exception:
                begin.put_back()  # It may be traced once more.
                raise

    def traced(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function that runs steps, once more where that is how they have to be traced."""
        try:
            return function(*args)
        except MustMeet:
            assert self._metrics is not None
            self._metrics.meet()
        except NeedsStep:
            self.replica_step.metrics_with_step = True
        except (AttributeError, TypeError, ValueError) as error:
            if self._static or not has_static_rows(self._hidden):
                raise
            return self._traced_with_static_rows(error, function, *args)
        return function(*args)

    def _traced_with_static_rows(
        self, error: Exception, function: Callable[..., Any], *args: Any
    ) -> Any:
        """The same for code that may have asked for the number of rows as one of Python's."""
        self._static = True
        try:
            result = self.traced(function, *args)
        except Exception:
            self._static = False
            raise error from None
        replicas = self._strategy.num_replicas_in_sync
        warnings.warn(
            f"{self._name} of {type(self._model).__name__} works only where the number of rows is "
            f"one of Python's, such as x.shape[0], and {replicas} replicas share the batch: that "
            "is how many a replica has, so that what is divided by it is too large. Use "
            "tf.shape(x)[0], or keras.ops.shape.",
            stacklevel=2,
        )
        return result

    def logs(self, last: Any) -> Any:
        """What the steps report, of what `run` returned last."""
        if not self.own_results:
            return metrics_result(self._model)
        logs = reduced(last, self._strategy)
        return logs if self._metrics is None else self._metrics.asked_again(logs)


def make_execution(model: keras.Model, name: str) -> Callable[[Any], Any]:
    """Returns the function that Keras calls with an iterator, once an execution.

    Args:
        model: A compiled model.
        name: `train_step` or `test_step`.
    """
    trainer: Any = model
    replicas = Replicas(model, name)
    statistics = trainer.tfgpu_statistics if name == "train_step" else None

    def read_batch(source: Any, rows: int | None) -> Any:
        with tf.name_scope("input"):
            read = functools.partial(next, source)
            return of_rows(read() if statistics is None else statistics.timed(read), rows)

    def run_steps(
        source: Any,
        device_map: Any,
        resident: Any,
        whole: bool,
        steps: tf.Tensor,
        rows: int | None = None,
    ) -> Any:
        """`steps` steps, one or more, of which each is the same part of the graph."""
        latest = Latest() if replicas.own_results else None

        def body(count: tf.Tensor, *_: tf.Tensor) -> list[tf.Tensor]:
            last = replicas.run(read_batch(source, rows), device_map, resident, whole=whole)
            if replicas.varies:
                raise Varying
            return [count + 1] if latest is None else [count + 1, latest.keep(last)]

        first = [0] if latest is None else [0, latest.nothing()]
        _, *kept = tf.nest.flatten(
            tf.while_loop(lambda count, *_: count < steps, body, first, parallel_iterations=1)
        )
        return replicas.logs(None if latest is None else latest.of(kept[0]))

    def run_one(
        element: Any, device_map: Any = None, resident: Any = (), whole: bool = True
    ) -> Any:
        return replicas.logs(replicas.run(element, device_map, resident, whole=whole))

    def run_next(
        source: Any, device_map: Any, resident: Any, whole: bool, rows: int | None = None
    ) -> Any:
        element = read_batch(source, rows)
        return replicas.logs(replicas.run(element, device_map, resident, whole=whole))

    if not model.run_eagerly:
        options = {"reduce_retracing": True, "autograph": False}
        run_steps = tf.function(run_steps, **options)
        run_one = tf.function(run_one, **options)
        run_next = tf.function(run_next, **options)

    layers = private.flatten_layers(model)
    recurrent = any(isinstance(layer, keras.layers.RNN) for layer in layers)
    loop = None
    if name == "train_step":
        loop = CompiledLoop(model, replicas, one_by_one=run_one)

    # Whether full batches may have a trace of their own, once the first is there.
    apart: bool | None = None if recurrent else False

    def run_several(source: Any, given: Any, steps: int, rows: int | None) -> Any:
        if not replicas.varies:
            try:
                return replicas.traced(run_steps, source, *given, tf.constant(steps), rows)
            except Varying:
                pass
        one = functools.partial(replicas.traced, run_next, source, *given, rows)
        return [one() for _ in range(steps)][-1]

    def execution(iterator: Any) -> Any:
        nonlocal apart
        if not isinstance(iterator, BatchIterator):
            return _run_given(trainer, iterator, functools.partial(replicas.traced, run_one))
        batches, alone = iterator.batches, iterator.alone
        if statistics is not None:
            statistics.latest(None)
        given = (replicas.map_of(batches), batches.resident, batches.whole)
        most = iterator.most_steps(trainer)
        if not iterator.sized:
            elements = iterator.take_read(most)
            if not elements:
                raise StopIteration
            if statistics is not None:
                statistics.input_seconds.assign_add(iterator.input_seconds)
                iterator.input_seconds = 0.0
            return [replicas.traced(run_one, element, *given) for element in elements][-1]
        steps = iterator.take(most)
        if steps == 0:
            raise StopIteration
        if loop and (iterator.ahead or (not alone and loop.takes(batches, steps))):
            return loop.run(iterator, given, steps)
        # Steps over time are faster where their rows are known when they are traced. Others are
        # not, and would be traced twice for nothing.
        full, rows = (steps, None) if apart is False else iterator.full_batches(steps)
        if apart is None and full and rows is not None:
            one = most == 1 or alone
            run: Any = run_next if one else run_steps
            more = (rows,) if one else (tf.constant(full), rows)
            args = (iterator.source, *given, *more)
            # A second trace has its own copies of random operations, which begin their numbers
            # again.
            try:
                traced = replicas.traced(run.get_concrete_function, *args)
                apart = model.run_eagerly or not draws_by_operations(traced)
            except Varying:
                apart = False
            if not apart:
                full, rows = steps, None
        # A profile takes the rounds of a loop for steps, and then knows the real ones no more.
        if most == 1 or alone:
            return replicas.traced(run_next, iterator.source, *given, rows if full else None)
        if full:
            results = run_several(iterator.source, given, full, rows)
        return results if full == steps else replicas.traced(run_next, iterator.source, *given)

    explained = _explaining(trainer, name, execution)
    # For those who want to see what was traced.
    looped = () if loop is None else (loop.traced,)
    explained.traced = (run_steps, run_next, run_one, *looped)  # type: ignore[attr-defined]
    return explained


class Varying(Exception):
    """A loop over steps has an exchange in it whose shape changes: a collective allows none."""


def draws_by_operations(traced: Any) -> bool:
    """Whether a concrete function draws random numbers of which each operation has a sequence."""
    graph = traced.graph.as_graph_def()
    nodes = [graph.node, *(function.node_def for function in graph.library.function)]
    return any(map(has_seeds, itertools.chain(*nodes)))


def of_rows(element: Any, rows: int | None) -> Any:
    """A batch whose number of rows is known when it is traced; None leaves it as it is."""
    if rows is None:
        return element

    def known(leaf: Any) -> Any:
        dense = isinstance(leaf, tf.Tensor) and leaf.shape.rank
        return tf.ensure_shape(leaf, [rows, *leaf.shape[1:]]) if dense else leaf

    return keras.tree.map_structure(known, element)


def make_prediction(model: keras.Model) -> Callable[[Any], Any]:
    """Returns the function that gives the outputs of the batches of one execution.

    It takes a `BatchIterator`, or a list of batches as Keras' `predict_function` does.
    """
    trainer: Any = model
    replicas, strategy = Replicas(model, "predict_step"), model.distribute_strategy

    def run(batch: Any, device_map: Any, resident: Any, whole: bool) -> Any:
        outputs = replicas.run(batch, device_map, resident, whole=whole)
        several = strategy.num_replicas_in_sync > 1
        return _concatenated(outputs, strategy) if several else outputs

    def joined(parts: list[Any]) -> Any:
        if len(parts) == 1:
            return parts[0]
        return keras.tree.map_structure(lambda *p: private.concat(p), *parts)

    def run_next(source: Any, device_map: Any, resident: Any, whole: bool, steps: int) -> Any:
        def read() -> Any:
            with tf.name_scope("input"):
                return next(source)

        return joined([run(read(), device_map, resident, whole) for _ in range(steps)])

    def run_given(
        batches: list[Any], device_map: Any = None, resident: Any = (), whole: bool = True
    ) -> Any:
        return joined([run(batch, device_map, resident, whole) for batch in batches])

    if not model.run_eagerly:
        options = {"reduce_retracing": True, "autograph": False}
        run_next = tf.function(run_next, **options)
        run_given = tf.function(run_given, **options)

    def prediction(iterator: Any) -> Any:
        if not isinstance(iterator, BatchIterator):
            return run_given(keras.tree.map_structure(_as_tensor, iterator))
        batches = iterator.batches
        given = (replicas.map_of(batches), batches.resident, batches.whole)
        most = iterator.most_steps(trainer)
        if not iterator.sized:
            elements = iterator.take_read(most)
            if not elements:
                raise StopIteration
            return run_given(elements, *given)
        steps = iterator.take(most)
        if steps == 0:
            raise StopIteration
        if iterator.of_any_rank:
            return run_given([next(iterator.source) for _ in range(steps)], *given)
        return run_next(iterator.source, *given, steps)

    return _explaining(trainer, "predict_step", prediction)


def _explaining(trainer: Any, name: str, execution: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Says which layer XLA's compiler could not compile, which it finds out when it is run."""

    @functools.wraps(execution)
    def explained(iterator: Any) -> Any:
        try:
            return execution(iterator)
        except tf.errors.OpError as error:
            if not trainer.jit_compile:
                raise
            complaint = xla.complaint(error, layer_scopes(trainer))
            if complaint is None:
                raise
            if not trainer.tfgpu_jit_is_automatic:
                raise ValueError(refusal(complaint)) from error
        warnings.warn(
            f"{complaint}; the model runs without XLA from here on. The batches of the execution "
            "in which that was found out are passed over.",
            stacklevel=2,
        )
        trainer.jit_compile = False
        make = {
            "train_step": trainer.make_train_function,
            "test_step": trainer.make_test_function,
            "predict_step": trainer.make_predict_function,
        }[name]
        trainer.train_function = trainer.test_function = trainer.predict_function = None
        return make()(iterator)

    return explained


def leave_collective_keys(strategy: tf.distribute.Strategy) -> None:
    """Has strategies that are made from now on number their collectives apart from this one's.

    TensorFlow numbers the collectives of every MirroredStrategy from the same start and keeps
    their shapes as long as the process lives, so a second strategy over the same devices failed
    with "Shape mismatch in the collective instance" once a model of another size trained under it.
    """
    if isinstance(strategy, tf.distribute.MirroredStrategy):
        # A group of devices takes one key; a strategy meets no more than a few groups.
        private.skip_collective_keys(100)


def _run_given(trainer: Any, iterator: Any, run_one: Callable[[Any], Any]) -> Any:
    """Runs batches that do not come from a `BatchIterator`, such as `train_on_batch`'s."""
    outputs = None
    for _ in range(trainer.steps_per_execution):
        try:
            data = next(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            break
        outputs = run_one(keras.tree.map_structure(_as_tensor, data))
    if outputs is None:
        raise StopIteration
    return outputs


def _as_tensor(leaf: Any) -> Any:
    """An array or a Python number as a tensor."""
    return leaf if leaf is None or tf.is_tensor(leaf) else tf.convert_to_tensor(leaf)


def _concatenated(outputs: Any, strategy: tf.distribute.Strategy) -> Any:
    """The outputs of all replicas, in order; of scalars the sum: see `own_outputs`."""

    def put(leaf: Any) -> Any:
        values = strategy.experimental_local_results(leaf)
        first = values[0]
        if isinstance(first, tf.Tensor) and first.shape.rank == 0:
            return strategy.reduce("SUM", leaf, axis=None) if first.dtype.is_floating else first
        return private.reduce_per_replica(leaf, strategy, reduction="concat")

    return keras.tree.map_structure(put, outputs)


def _refuse_stateful_layers(model: keras.Model) -> None:
    for layer in private.flatten_layers(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(
                f"Layer {layer.name!r} is stateful: it keeps a state for each row of the batch, "
                "and replicas share the rows. Use stateful=False, or train on one device."
            )
