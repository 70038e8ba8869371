"""`tfgpu.Model`: Keras' model with an execution of its own.

`compile`, `fit`, `evaluate`, `predict`, callbacks, metrics and files stay Keras'.
What changes is how one execution runs: `k` steps in one `tf.function`, each a
pure replica step that XLA may compile, then one all-reduce, one update. That
makes strategies, XLA, mixed precision and `steps_per_execution` work together.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree
from keras.src import api_export
from keras.src.backend.tensorflow import trainer as keras_trainer
from keras.src.models import functional as keras_functional
from keras.src.models import model as keras_model
from keras.src.models import sequential as keras_sequential
from keras.src.trainers.data_adapters import data_adapter_utils
from keras.src.trainers.trainer import model_supports_jit

from tfgpu import loss_scale, loss_weights
from tfgpu.batches import (
    Batches,
    BatchIterator,
    PaddedBatch,
    can_deal,
    end_of_data,
    own_share,
    share_out,
)
from tfgpu.gauges import Gauges
from tfgpu.loss_weights import Padding
from tfgpu.replica_step import (
    Outcome,
    Tensors,
    apply_optimizer,
    changed,
    first_tensor,
    forward,
    loss_and_gradients,
    pack,
    read,
)


class _Batch(NamedTuple):
    """A replica's batch: (x, y, shares) for the loss, (x, y, sample_weight) for metrics."""

    for_loss: tuple[Any, Any, Any]
    for_metrics: tuple[Any, Any, Any]


def _assign(variables: list[keras.Variable], values: Tensors) -> None:
    """Gives this replica's copies of `variables` this replica's `values`."""

    def write(strategy: tf.distribute.Strategy, values: Tensors) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(
                variable._value, lambda v, new: v.assign(new), args=(value,), group=False
            )

    tf.distribute.get_replica_context().merge_call(write, args=(values,))


def _leave_collective_keys(strategy: tf.distribute.Strategy) -> None:
    """Has strategies that are made from now on number their collectives apart from this one's.

    TensorFlow numbers the collectives of every MirroredStrategy from the same start and keeps
    their shapes as long as the process lives, so a second strategy over the same devices failed
    with "Shape mismatch in the collective instance" once a model of another size trained under it.
    """
    if isinstance(strategy, tf.distribute.MirroredStrategy):
        # A group of devices takes one key; a strategy meets no more than a few groups.
        tf.distribute.MirroredStrategy._collective_key_base += 100


# The mixin has no base; to a type checker it is what it is mixed into.
_Trainer: Any = keras_trainer.TensorFlowTrainer if TYPE_CHECKING else object


class ReplicaTrainer(_Trainer):
    """Overrides of Keras' TensorFlow trainer, for any class that derives from it.

    Put it before the Keras class: `class Mine(ReplicaTrainer, keras.Model)`. A class that
    defines its own `train_step` or `test_step` keeps that step; it then runs in the same
    multi-step execution, without XLA under several replicas.
    """

    # ---- what Keras asks for ------------------------------------------------------------

    def make_train_function(self, force: bool = False) -> Callable:
        """Builds `self.train_function`, which runs one execution of training steps."""
        if self.train_function is not None and not force:
            return self.train_function
        self.train_function = self._make_execution("train_step", self._train_replica)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable:
        """Builds `self.test_function`, which runs one execution of evaluation steps."""
        if self.test_function is not None and not force:
            return self.test_function
        self.test_function = self._make_execution("test_step", self._test_replica)
        return self.test_function

    def make_predict_function(self, force: bool = False) -> Callable:
        """Builds `self.predict_function`, which runs one execution of prediction steps."""
        if self.predict_function is not None and not force:
            return self.predict_function
        strategy = self.distribute_strategy
        step = None
        if self._runs_keras_step("predict_step"):
            step = self._keras_step("predict_step")

        def replica(data: Any) -> Any:
            return self._predict_replica(_none_for_optional(data), step)

        def predict(batches: list[Any]) -> Any:
            outputs = [
                keras_trainer.reduce_per_replica(
                    strategy.run(replica, args=(batch,)), strategy, reduction="concat"
                )
                for batch in batches
            ]
            return tree.map_structure(lambda *parts: keras_trainer.concat(parts), *outputs)

        if not self.run_eagerly:
            predict = tf.function(predict, reduce_retracing=True, autograph=False)
        self.predict_function = predict
        return self.predict_function

    def predict_on_batch(self, x: Any) -> Any:
        """Keras' `predict_on_batch`, with the batch shared out to the replicas."""
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return super().predict_on_batch(x)
        self.make_predict_function()
        outputs = self.predict_function([share_out((x,), self.distribute_strategy)])
        return tree.map_structure(keras_trainer.convert_to_np_if_not_ragged, outputs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Keras' `predict`, which also takes the inputs of `tfgpu.data`."""
        self._predict_map = getattr(x, "device_map", None)
        try:
            return super().predict(x, *args, **kwargs)
        finally:
            self._predict_map = None

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Keras' `fit`; remembers the callbacks, for those that save the others' state."""
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        self._fit_callbacks = bound.arguments.get("callbacks")
        try:
            return super().fit(*args, **kwargs)
        finally:
            self._fit_callbacks = None

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        # An epoch that was resumed after its last step has no logs of its own.
        missing = isinstance(logs, dict) and not logs
        return super()._get_metrics_result_or_logs(self.get_metrics_result() if missing else logs)

    def _resolve_auto_jit_compile(self) -> bool:
        # Keras turns XLA off under every strategy; here it works there.
        return bool(tf.config.list_logical_devices("GPU")) and model_supports_jit(self)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Called by `fit` and `evaluate` with the epoch's iterator, before it is read.
        strategy = self.distribute_strategy
        if iterator is not None:
            batches = iterator._distributed_dataset
            if not isinstance(batches, Batches):
                dataset = iterator.data_adapter.get_tf_dataset()
                if not isinstance(dataset, tf.data.Dataset) or not can_deal(dataset, strategy):
                    super()._maybe_symbolic_build(iterator=iterator)
                    return
                batches = Batches(
                    dataset,
                    strategy,
                    num_batches=iterator.data_adapter.num_batches,
                    steps_per_epoch=iterator.steps_per_epoch,
                )
                iterator._distributed_dataset = batches
                iterator._enumerate_iterator = functools.partial(batches.executions, iterator)
            self._latest_batches = batches
            data_batch = batches.element_spec
            if batches.device_map is not None:
                data_batch = batches.device_map.element_spec
        self._check_optimizer()
        keras_step = self._has_own_step("train_step")
        if self._distribute_strategy is None and (keras_step or self.run_eagerly):
            return  # As in Keras: the first step builds.
        try:
            self._build_from(data_batch)
        except (RuntimeError, ValueError) as error:
            # The model cannot be called on `data_batch`, or not on a stand-in for it.
            unbuildable = self._distribute_strategy is None and isinstance(error, RuntimeError)
            if not keras_step and not unbuildable:
                raise

    # ---- building -----------------------------------------------------------------------

    def _check_optimizer(self) -> None:
        optimizer = loss_scale.inner(getattr(self, "optimizer", None))
        strategy: tf.distribute.Strategy = self.distribute_strategy
        made_for = getattr(optimizer, "_distribution_strategy", strategy)
        if made_for is not strategy:
            raise ValueError(
                f"The optimizer {optimizer.name!r} was made for {type(made_for).__name__} and the "
                f"model for {type(strategy).__name__}. Make both under the same "
                "`strategy.scope()`, and call `compile` there too."
            )

    def _build_from(self, data_batch: Any) -> None:
        """Creates all variables, which a pure step cannot create on the way."""
        spec = tree.map_structure(_symbolic, data_batch)
        with self.distribute_strategy.scope():
            self._symbolic_build(data_batch=spec)

    # ---- Keras' steps -------------------------------------------------------------------

    def _has_own_step(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(keras_trainer.TensorFlowTrainer, name)

    def _runs_keras_step(self, name: str) -> bool:
        """Whether every step is `self.train_step` (or such): its own, or to step through it."""
        alone = self.distribute_strategy.num_replicas_in_sync == 1
        return self._has_own_step(name) or (alone and self.run_eagerly)

    def _keras_step(self, name: str) -> Callable:
        """`self.train_step`, or such, as Keras runs it."""
        step: Callable = getattr(self, name)
        if self.run_eagerly:
            return step
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas == 1:
            return tf.function(
                step, jit_compile=self.jit_compile, reduce_retracing=True, autograph=False
            )
        if self.jit_compile and self._has_own_step(name):
            warnings.warn(
                f"{type(self).__name__}.{name} is custom: it may touch variables, which XLA "
                f"cannot compile for {replicas} replicas, so it runs without XLA. Override "
                "compute_loss or compute_metrics instead to keep XLA.",
                stacklevel=2,
            )
        return step

    def _can_be_pure(self, element: Any) -> bool:
        """Whether a pure step can take `element`: dense tensors, and a model that is built."""
        parts = (self, self._compile_loss, self._compile_metrics)
        return all(part is None or part.built for part in parts) and all(
            leaf is None or (isinstance(leaf, tf.Tensor) and bool(leaf.shape.rank))
            for leaf in tree.flatten(element)
        )

    # ---- one execution ------------------------------------------------------------------

    def _make_execution(self, name: str, pure_step: Callable) -> Callable:
        """Returns the function that Keras calls with an iterator, once an execution."""
        strategy = self.distribute_strategy
        _leave_collective_keys(strategy)
        own = self._has_own_step(name)
        keras_step, always_keras = self._keras_step(name), self._runs_keras_step(name)
        # Results that only the step knows have to leave the loop with it.
        own_results = own or (
            type(self).compute_metrics is not keras_trainer.TensorFlowTrainer.compute_metrics
        )

        # The device map is an argument of what is traced and not a variable around it: another
        # data set of the same kind of elements has another map, over other resident data.
        def step(element: Any, device_map: Any) -> Any:
            padding = None
            if isinstance(element, PaddedBatch):
                element, padding = element.data, element.padding
            element = _none_for_optional(element)
            if always_keras or not self._can_be_pure(element):
                if device_map is not None:
                    element = device_map(element, read(device_map.variables))
                return keras_step(_without_padding(element, padding))
            return pure_step(element, padding, device_map)

        gauges = self._gauges if name == "train_step" else None

        def read_batch(source: Any) -> Any:
            with tf.name_scope("input"):
                return next(source) if gauges is None else gauges.timed(lambda: next(source))

        def run_step(element: Any, device_map: Any, may_end: bool = False) -> Any:
            def run(share: Any) -> Any:
                # Data that has ended must not be found out beside an assignment.
                with tf.control_dependencies(_tensors(share) if may_end else []):
                    return step(own_share(share), device_map)

            return strategy.run(run, args=(element,))

        def results(last: Any) -> Any:
            if own_results:
                return keras_trainer.reduce_per_replica(last, strategy, reduction="auto")
            return self.get_metrics_result()

        def run_steps(
            source: Any, device_map: Any, steps: tf.Tensor, done: tf.Variable | None
        ) -> Any:
            """`steps` steps; the last apart when only it knows the results."""
            looped = steps - 1 if own_results else steps

            def body(count: tf.Tensor) -> list[tf.Tensor]:
                element = read_batch(source)
                run_step(element, device_map, may_end=done is not None)
                if done is not None:
                    with tf.control_dependencies(_tensors(element)):
                        done.assign(count + 1)
                return [count + 1]

            # One step at a time: when the data ends inside an execution, no step may
            # have been begun.
            tf.while_loop(lambda count: count < looped, body, [0], parallel_iterations=1)
            return results(run_step(read_batch(source), device_map) if own_results else None)

        def run_one(element: Any) -> Any:
            return results(run_step(element, None))

        def run_next(source: Any, device_map: Any, may_end: bool) -> Any:
            return results(run_step(read_batch(source), device_map, may_end))

        if not self.run_eagerly:
            options = {"reduce_retracing": True, "autograph": False}
            run_steps = tf.function(run_steps, **options)
            run_one = tf.function(run_one, **options)
            run_next = tf.function(run_next, **options)

        def run_unsized(iterator: BatchIterator, steps: int) -> Any:
            """Up to `steps` steps of data that may end among them."""
            done = tf.Variable(
                0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
            )
            device_map, logs = iterator.batches.device_map, None
            try:
                if own_results or steps == 1:
                    for _ in range(steps):
                        logs = run_next(iterator.source, device_map, True)
                    return logs
                return run_steps(iterator.source, device_map, tf.constant(steps), done)
            except (StopIteration, tf.errors.OpError) as error:
                if not isinstance(error, StopIteration) and not end_of_data(error):
                    raise
                iterator.exhausted = True
                if logs is None and int(done.numpy()) == 0:
                    raise StopIteration from None
                return self.get_metrics_result() if logs is None else logs

        def execution(iterator: Any) -> Any:
            if not isinstance(iterator, BatchIterator):
                return self._run_given(iterator, run_one)
            device_map, alone = iterator.batches.device_map, iterator.alone
            steps = iterator.take(self.steps_per_execution)
            if steps == 0:
                raise StopIteration
            if not iterator.sized:
                return run_unsized(iterator, steps)
            # A profile takes the rounds of a loop for steps, and then knows the real ones no more.
            if self.steps_per_execution == 1 or alone:
                return run_next(iterator.source, device_map, False)
            return run_steps(iterator.source, device_map, tf.constant(steps), None)

        # For those who want to see what was traced.
        execution.traced = (run_steps, run_next, run_one)  # type: ignore[attr-defined]
        return execution

    def _run_given(self, iterator: Any, run_one: Callable) -> Any:
        """Runs batches that do not come from a `BatchIterator`."""
        strategy, outputs = self.distribute_strategy, None
        # `train_on_batch` gives what it was given.
        whole = not isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator))
        for _ in range(self.steps_per_execution):
            try:
                data = next(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                break
            if whole and strategy.num_replicas_in_sync > 1:
                data = share_out(data, strategy)
            outputs = run_one(data)
        if outputs is None:
            raise StopIteration
        return outputs

    # ---- the steps of a replica ---------------------------------------------------------

    def _jit(self, function: Callable) -> Callable:
        if self.jit_compile and not self.run_eagerly:
            return tf.function(function, jit_compile=True, autograph=False)
        return function

    def _tensors_of_step(
        self, context: Any, element: Any, padding: Padding | None, device_map: Any
    ) -> tuple[Any, Tensors, Tensors, Tensors, Tensors, Tensors]:
        """Reads all that the pure part of a step takes, in the order of its arguments."""
        with tf.name_scope("variables"):
            return (
                element,
                read(device_map.variables if device_map else ()),
                read(self.trainable_variables),
                read(self.non_trainable_variables),
                read(self.metrics_variables),
                [] if device_map else self._weight_totals(context, element, padding),
            )

    def _forward_backward(
        self, context: Any, element: Any, padding: Padding | None, device_map: Any
    ) -> tuple[Outcome, Tensors, tuple[Any, Any, Any]]:
        """This replica's outcome, its gradients (scaled, not reduced), and what metrics take."""
        scale = loss_scale.current(self.optimizer)
        seeds = self._replica_seeds(context)

        def compute(
            element: Any,
            resident: Tensors,
            trainable: Tensors,
            non_trainable: Tensors,
            metrics: Tensors,
            totals: Tensors,
            scale: tf.Tensor | None,
        ) -> tuple[Outcome, Tensors, tuple[Any, Any, Any]]:
            batch = self._batch(element, resident, padding, totals, device_map)
            before = _vary(non_trainable, seeds)
            outcome, gradients = loss_and_gradients(
                self, trainable, before, metrics, *batch.for_loss, scale
            )
            outcome = outcome._replace(non_trainable=_unvary(outcome.non_trainable, seeds))
            return outcome, gradients, batch.for_metrics

        synchronized = context.num_replicas_in_sync > 1 and self._has_synchronized_layers()
        return (compute if synchronized else self._jit(compute))(
            *self._tensors_of_step(context, element, padding, device_map),
            None if scale is None else tf.convert_to_tensor(scale, tf.float32),
        )

    def _train_replica(self, element: Any, padding: Padding | None, device_map: Any) -> Any:
        context = tf.distribute.get_replica_context()
        optimizer = self.optimizer
        dynamic = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        outcome, gradients, batch = self._forward_backward(context, element, padding, device_map)
        if context.num_replicas_in_sync > 1:
            with tf.name_scope("all_reduce"):
                gradients = self._reduce(context, gradients, outcome.non_trainable, padding)
        if self.trainable_variables:
            update = loss_scale.scaled_update if dynamic else apply_optimizer

            def step(values: Tensors, gradients: Tensors, trainable: Tensors) -> Any:
                return update(optimizer, values, gradients, trainable)

            if self._gauges is not None:
                # Before the update, which may change the scale.
                scale = loss_scale.current(optimizer)
                scale = None if scale is None else tf.convert_to_tensor(scale, tf.float32)
                with tf.name_scope("gauges"):
                    self._gauges.record(self._jit(self._gauges.norm)(gradients, scale))
            with tf.name_scope("update"):
                new_trainable, new_values, *finite = self._jit(step)(
                    read(optimizer.variables), gradients, read(self.trainable_variables)
                )
                _assign(
                    [*self.trainable_variables, *optimizer.variables], [*new_trainable, *new_values]
                )
            if finite:
                self._keep_unless(finite[0], outcome.non_trainable)
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        self._assign_non_trainable(outcome.non_trainable)
        with tf.name_scope("metrics"):
            return self._update_metrics(outcome, batch, padding)

    def _test_replica(self, element: Any, padding: Padding | None, device_map: Any) -> Any:
        context = tf.distribute.get_replica_context()
        seeds = self._replica_seeds(context)

        def compute(
            element: Any,
            resident: Tensors,
            trainable: Tensors,
            non_trainable: Tensors,
            metrics: Tensors,
            totals: Tensors,
        ) -> tuple[Outcome, tuple[Any, Any, Any]]:
            batch = self._batch(element, resident, padding, totals, device_map)
            before = _vary(non_trainable, seeds)
            outcome = forward(self, trainable, before, metrics, *batch.for_loss, training=False)
            outcome = outcome._replace(non_trainable=_unvary(outcome.non_trainable, seeds))
            return outcome, batch.for_metrics

        outcome, batch = self._jit(compute)(
            *self._tensors_of_step(context, element, padding, device_map),
        )
        if context.num_replicas_in_sync > 1:
            self._reduce(context, [], outcome.non_trainable, padding)
        self._assign_non_trainable(outcome.non_trainable)
        return self._update_metrics(outcome, batch, padding)

    def _predict_replica(self, data: Any, keras_step: Callable | None) -> Any:
        context, padding = tf.distribute.get_replica_context(), None
        if isinstance(data, PaddedBatch):
            data, padding = data.data, data.padding
        if self._predict_map is not None:
            data = self._predict_map(data, read(self._predict_map.variables))
        if context.num_replicas_in_sync > 1 and padding is None:
            # Keras deals these batches out, and the last one may leave this replica nothing.
            data, padding = _one_row_at_least(data)
        if keras_step is not None or not all(layer.built for layer in self._flatten_layers()):
            # Keras builds a model on its first batch, outside any pure function.
            outputs = (keras_step or self.predict_step)(data)
        else:
            x, _, _ = data_adapter_utils.unpack_x_y_sample_weight(data)
            arguments = {"training": False} if self._call_has_training_arg else {}
            seeds = self._replica_seeds(context)

            def compute(trainable: Tensors, non_trainable: Tensors, x: Any) -> Any:
                before = _vary(non_trainable, seeds)
                outputs, after = self.stateless_call(trainable, before, x, **arguments)
                return outputs, _unvary(changed(before, after), seeds)

            outputs, state = self._jit(compute)(
                read(self.trainable_variables), read(self.non_trainable_variables), x
            )
            if context.num_replicas_in_sync > 1:
                self._reduce(context, [], state, None)
            self._assign_non_trainable(state)
        return _without_padding(outputs, padding)

    # ---- details of a step --------------------------------------------------------------

    def _replica_seeds(self, context: Any) -> dict[int, tf.Tensor]:
        """What to add to each seed generator's state so that replicas draw differently."""
        if context.num_replicas_in_sync == 1:
            return {}
        # An odd constant (2^32 / golden ratio) spreads neighbours over the key space.
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64) * 2654435769
        generators = {id(g.state) for g in _seed_generators(self)}
        return {
            i: tf.cast(tf.stack([replica, 0]), variable.dtype)
            for i, variable in enumerate(self.non_trainable_variables)
            if id(variable) in generators
        }

    def _weight_totals(self, context: Any, element: Any, padding: Padding | None) -> Tensors:
        """Sums of weights over all replicas, for losses that divide by them."""
        if context.num_replicas_in_sync == 1:
            return []
        x, _, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(element)
        rows = tf.shape(first_tensor(x))[0]
        sums = loss_weights.weight_sums(self._compile_loss, sample_weight, rows, padding)
        return context.all_reduce(tf.distribute.ReduceOp.SUM, sums) if sums else []

    def _batch(
        self,
        element: Any,
        resident: Tensors,
        padding: Padding | None,
        totals: Tensors,
        device_map: Any,
    ) -> _Batch:
        """Turns what travelled to the device into what the loss and the metrics take."""
        if device_map is not None:
            with tf.name_scope("device_map"):
                element = device_map(element, resident)
        x, y, sample_weight = data_adapter_utils.unpack_x_y_sample_weight(element)
        rows = tf.shape(first_tensor(x))[0]
        shares = loss_weights.shares(self._compile_loss, sample_weight, rows, padding, totals)
        # The default `compute_metrics` ignores `x`; returning it would copy it.
        keep_x = type(self).compute_metrics is not keras_trainer.TensorFlowTrainer.compute_metrics
        return _Batch(
            for_loss=(x, y, shares),
            for_metrics=(x if keep_x else None, y, sample_weight),
        )

    def _reduce(
        self,
        context: Any,
        gradients: Tensors,
        non_trainable: dict[int, tf.Tensor],
        padding: Padding | None,
    ) -> Tensors:
        """Sums gradients over the replicas and averages `non_trainable`'s floats in place."""
        share = tf.constant(1.0 / context.num_replicas_in_sync)
        if padding is not None:
            share = tf.cast(padding.real, tf.float32) / tf.cast(padding.total, tf.float32)
        # Seeds and counters are the same everywhere already and must not be averaged.
        floats = [i for i, value in non_trainable.items() if value.dtype.is_floating]
        weighted = [non_trainable[i] * tf.cast(share, non_trainable[i].dtype) for i in floats]
        vectors, unpack = pack([*gradients, *weighted])
        if not vectors:
            return gradients
        reduced = unpack(context.all_reduce(tf.distribute.ReduceOp.SUM, vectors))
        for i, value in zip(floats, reduced[len(gradients) :], strict=True):
            non_trainable[i] = value
        return reduced[: len(gradients)]

    def _keep_unless(self, finite: tf.Tensor, non_trainable: dict[int, tf.Tensor]) -> None:
        """Keeps the old statistics, in place, in a step whose gradients overflowed."""
        for i, new in non_trainable.items():
            if new.dtype.is_floating:
                (old,) = read([self.non_trainable_variables[i]])
                non_trainable[i] = tf.where(finite, new, old)

    def _assign_non_trainable(self, values: dict[int, tf.Tensor]) -> None:
        variables = self.non_trainable_variables
        _assign([variables[i] for i in values], list(values.values()))

    def _has_synchronized_layers(self) -> bool:
        """Whether layers exchange statistics in the forward pass; says that XLA cannot."""
        names = [layer.name for layer in self._flatten_layers() if _is_synchronized(layer)]
        if names and self.jit_compile:
            warnings.warn(
                f"{names[0]} is synchronized: replicas meet in the middle of the forward pass, "
                "which XLA cannot compile, so the forward and backward pass run without XLA. "
                "Use synchronized=False to keep XLA.",
                stacklevel=2,
            )
        return bool(names)

    def _update_metrics(
        self, outcome: Outcome, batch: tuple[Any, Any, Any], padding: Padding | None
    ) -> Any:
        """Updates the metrics with this replica's real rows; returns `compute_metrics`' dict."""
        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        x, y, sample_weight = batch
        predicted = first_tensor(outcome.y_pred)
        if padding is None:
            count = tf.cast(tf.shape(predicted)[0] * replicas, tf.float32)
        else:
            count = tf.cast(padding.total, tf.float32)
        if self._loss_tracker is not None:
            loss, weight = outcome.loss * replicas, count / replicas
            if loss.shape.rank:
                # reduction=None: a loss an example, of which Keras shows the mean.
                losses = _without_padding(outcome.loss, padding)
                loss = tf.math.divide_no_nan(
                    tf.reduce_sum(losses), tf.cast(tf.size(losses), losses.dtype)
                )
                weight = tf.cast(tf.shape(losses)[0], tf.float32)
            # Over the replicas the shares add up to the global loss and the weights to
            # the number of examples.
            self._loss_tracker.update_state(loss, sample_weight=weight)
        own = {id(v) for m in getattr(self._compile_loss, "metrics", []) for v in m.variables}
        for position, new in outcome.metrics.items():
            variable = self.metrics_variables[position]
            delta = new - variable.value
            if id(variable) in own and (padding is not None or predicted.shape[0] is None):
                # Keras weighs an output's loss by the rows where it knows them, else by 1;
                # ours by the real ones.
                rows = predicted.shape[0] or 1
                delta *= tf.cast(count / replicas / rows, delta.dtype)
            variable.assign(variable.value + delta)
        x, y, y_pred, sample_weight = _without_padding(
            (x, y, outcome.y_pred, sample_weight), padding
        )
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    train_function: Any
    test_function: Any
    predict_function: Any
    _distribute_strategy: Any
    _predict_map: Any = None
    _fit_callbacks: Any = None
    _gauges: Gauges | None = None
    _latest_batches: Batches | None = None


def _seed_generators(model: keras.Model) -> list[keras.random.SeedGenerator]:
    found: list[keras.random.SeedGenerator] = []
    for layer in model._flatten_layers():
        found.extend(getattr(layer, "_seed_generators", []))
    return found


def _vary(values: Tensors, seeds: dict[int, tf.Tensor]) -> Tensors:
    return [v + seeds[i] if i in seeds else v for i, v in enumerate(values)]


def _unvary(values: dict[int, tf.Tensor], seeds: dict[int, tf.Tensor]) -> dict[int, tf.Tensor]:
    return {i: v - seeds[i] if i in seeds else v for i, v in values.items()}


def _is_synchronized(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized


def _without_padding(structure: Any, padding: Padding | None) -> Any:
    if padding is None:
        return structure
    return tree.map_structure(
        lambda leaf: leaf[: padding.real] if isinstance(leaf, tf.Tensor) else leaf, structure
    )


def _one_row_at_least(data: Any) -> tuple[Any, Padding | None]:
    """Gives a batch without rows one, to be cut off again."""
    if first_tensor(data).shape[0] is not None:
        return data, None
    rows = tf.shape(first_tensor(data))[0]

    def pad(tensor: Any) -> Any:
        if not isinstance(tensor, tf.Tensor) or tensor.shape.rank == 0:
            return tensor
        missing = tf.maximum(1 - rows, 0)
        padding = tf.concat([[[0, missing]], tf.zeros([tf.rank(tensor) - 1, 2], tf.int32)], 0)
        padded = tf.pad(tensor, padding)
        padded.set_shape([None, *tensor.shape[1:]])
        return padded

    return tree.map_structure(pad, data), Padding(real=rows, total=rows, rows=rows)


def _tensors(structure: Any) -> list[tf.Tensor]:
    leaves = tf.nest.flatten(structure, expand_composites=True)
    return [leaf for leaf in leaves if isinstance(leaf, tf.Tensor)]


def _none_for_optional(data: Any) -> Any:
    # Keras stands a tf Optional in for a None in the inputs.
    return tree.map_structure(
        lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, data
    )


def _symbolic(leaf: Any) -> Any:
    """A stand-in with a shape and a dtype, which is all that building looks at."""
    if isinstance(leaf, tf.OptionalSpec):
        return None
    if isinstance(leaf, tf.TensorSpec):
        return keras.KerasTensor(
            [None, *leaf.shape[1:]], keras.backend.standardize_dtype(leaf.dtype)
        )
    return leaf


class Model(ReplicaTrainer, keras.Model):
    """A drop-in for `keras.Model`; see `keras.Model` for its arguments and methods.

    Strategies, XLA (`jit_compile`), mixed precision and `steps_per_execution` of `compile`
    work together. Losses and metrics over a last partial batch are exact for any number
    of replicas. Create and compile it under the strategy's scope, as with Keras.

    Example:

    ```python
    with strategy.scope():
        inputs = keras.Input((32, 32, 3))
        outputs = keras.layers.Dense(10)(keras.layers.Flatten()(inputs))
        model = tfgpu.Model(inputs, outputs)
        model.compile("sgd", "mse", jit_compile=True, steps_per_execution=16)
    model.fit(dataset)
    ```
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is Model and keras_model.functional_init_arguments(args, kwargs):
            return Functional.__new__(Functional, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        if keras_model.functional_init_arguments(args, kwargs):
            # Keras would rewrite the bases of `tfgpu.Model` itself, after which no
            # subclass of it could be made without inputs and outputs.
            _make_functional(type(self))
            keras_functional.Functional.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


class Functional(Model, keras_functional.Functional):
    """A functional model; what `tfgpu.Model(inputs, outputs)` makes."""


class Sequential(ReplicaTrainer, keras.Sequential):
    """A drop-in for `keras.Sequential`; see `Model`."""


def _make_functional(cls: type) -> None:
    """Puts `Functional` in the place of `Model` among the ancestors of a subclass."""
    if cls is Functional or issubclass(cls, Functional):
        return
    cls.__bases__ = tuple(Functional if base is Model else base for base in cls.__bases__)
    for base in cls.__bases__:
        if issubclass(base, Model):
            _make_functional(base)


# Files name Keras' own classes, so that they load where tfgpu is not installed.
for _ours, _theirs in (
    (Functional, keras_functional.Functional),
    (Model, keras_model.Model),
    (Sequential, keras_sequential.Sequential),
):
    _name = api_export.get_name_from_symbol(_theirs)
    if _name is not None:
        api_export.REGISTERED_OBJS_TO_NAMES[_ours] = _name
    else:  # Not a public one: Keras writes where the class is defined.
        _ours.__module__ = _theirs.__module__


def load_model(filepath: Any, **kwargs: Any) -> keras.Model:
    """Loads a `.keras` file as a tfgpu model.

    Args:
        filepath: A file that `model.save` or `keras.Model.save` wrote.
        **kwargs: `keras.models.load_model`'s: `custom_objects`, `compile`, `safe_mode`.

    Returns:
        A `tfgpu` functional or sequential model; a model of a class of your own as it is.
    """
    model = keras.models.load_model(filepath, **kwargs)
    for ours, theirs in (
        (Functional, keras_functional.Functional),
        (Sequential, keras_sequential.Sequential),
    ):
        if type(model) is theirs:
            # The classes differ in methods alone.
            model.__class__ = ours
            if model.compiled:
                model.train_function = model.test_function = model.predict_function = None
    return model
