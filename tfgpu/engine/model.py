"""`tfgpu.Model`: Keras' model with an execution of its own.

`compile`, `fit`, `evaluate`, callbacks, metrics and files stay Keras'. What changes is how one
execution runs (`execution`): `k` steps in one `tf.function`, each Keras' own code on a replica's
copies of the variables, which XLA may compile, with one all-reduce between. That makes
strategies, XLA, mixed precision and `steps_per_execution` work together.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfgpu.engine import building, losses, update
from tfgpu.engine import keras_internals as private
from tfgpu.engine.batch_sizes import BatchSizes
from tfgpu.engine.batches import Batches, has_several_workers
from tfgpu.engine.execution import make_execution, make_prediction
from tfgpu.engine.metric_results import check_variables
from tfgpu.engine.overrides import has_own_results, is_own
from tfgpu.engine.rematerialization import Segments
from tfgpu.engine.step_statistics import StepStatistics


class ReplicaTrainer(private.TrainerHooks):
    """Overrides of Keras' TensorFlow trainer, for any class that derives from it.

    Put it before the Keras class: `class Mine(ReplicaTrainer, keras.Model)`. A class that
    defines its own `train_step` or `test_step` keeps that step; it then runs in the same
    multi-step execution, without XLA under several replicas.
    """

    # ---- what Keras asks for ------------------------------------------------------------

    def make_train_function(self, force: bool = False) -> Callable:
        """Builds `self.train_function`, which runs one execution of training steps."""
        if self.train_function is None or force:
            losses.adopt(private.compile_loss(self))
            self.train_function = make_execution(self, "train_step")
            self.tfgpu_executions |= {"train"}
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable:
        """Builds `self.test_function`, which runs one execution of evaluation steps."""
        if self.test_function is None or force:
            losses.adopt(private.compile_loss(self))
            self.test_function = make_execution(self, "test_step")
            self.tfgpu_executions |= {"test"}
        return self.test_function

    def make_predict_function(self, force: bool = False) -> Callable:
        """Builds `self.predict_function`, which runs one execution of prediction steps."""
        if self.predict_function is None or force:
            self.predict_function = make_prediction(self)
            self.tfgpu_executions |= {"predict"}
        return self.predict_function

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Keras' `fit`; remembers the callbacks, for those that save the others' state."""
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        # Somebody may have put a function that takes anything in the place of Keras' own.
        self.tfgpu_callbacks = bound.arguments.get("callbacks", bound.kwargs.get("callbacks"))
        try:
            return super().fit(*args, **kwargs)
        finally:
            self.tfgpu_callbacks = None
            self.tfgpu_batches = None
            # Of a callback that has continued this training; the next one is another.
            private.initial_epoch.set(self, None)

    @property
    def tfgpu_given_callbacks(self) -> list[Any]:
        """The callbacks of this `fit`, in the order in which they are called."""
        given = self.tfgpu_callbacks or []
        if isinstance(given, keras.callbacks.CallbackList):
            given = given.callbacks
        return list(given) if isinstance(given, list | tuple) else [given]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Keras' `evaluate`; keeps nothing of the data."""
        batches, within = self.tfgpu_batches, self.tfgpu_kind
        self.tfgpu_kind = "test"
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.tfgpu_batches, self.tfgpu_kind = batches, within

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """Keras' `predict`, whose batches go the way of those of `evaluate`.

        Args:
            x: As in Keras, or a data set of `tfgpu.data`, whose labels are ignored.
            batch_size: As in Keras.
            verbose: As in Keras.
            steps: As in Keras.
            callbacks: As in Keras.

        Returns:
            Arrays of the outputs of all rows, in order, in the structure of the outputs.
        """
        if self._has_foreign_function("predict"):
            return super().predict(x, batch_size, verbose, steps, callbacks)
        epoch_iterator = private.TFEpochIterator(
            x=x,
            batch_size=batch_size,
            steps_per_epoch=steps,
            shuffle=False,
            distribute_strategy=self.distribute_strategy,
            steps_per_execution=self.steps_per_execution,
        )
        batches = self._take_over(epoch_iterator)
        if private.own_strategy(self) is not None and not _is_built(self):
            building.build_for_prediction(self, batches.model_spec)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.callbacks.CallbackList(
                callbacks,
                add_progbar=verbose != 0,
                verbose=verbose,
                epochs=1,
                steps=epoch_iterator.num_batches,
                model=self,
            )
        self.make_predict_function()
        self.stop_predicting = False
        callbacks.on_predict_begin()
        outputs: list[Any] = []
        with epoch_iterator.catch_stop_iteration():
            for begin_step, end_step, iterator in map(private.taken, epoch_iterator):
                callbacks.on_predict_batch_begin(begin_step)
                outputs.append(self.predict_function(iterator))
                callbacks.on_predict_batch_end(end_step, {"outputs": outputs[-1]})
                if self.stop_predicting:
                    break
        callbacks.on_predict_end()
        if not outputs:
            raise ValueError("predict() was given data without a single batch.")
        return tree.map_structure(
            lambda *parts: private.as_array(private.concat_ragged(list(parts))), *outputs
        )

    def tfgpu_logs(self, logs: Any) -> tuple[Any, bool]:
        """The logs of an epoch, of what its last step returned, and whether they are final.

        If not, Keras asks the metrics again.
        """
        # An epoch that was resumed after its last step has no logs of its own.
        if isinstance(logs, dict) and not logs:
            resumed = self.tfgpu_batches is not None and self.tfgpu_batches.exact
            return (self.get_metrics_result() if resumed else logs), True
        # To ask takes several workers a collective for each variable, 6 ms each, and
        # executions end with the results of the metrics anyway.
        return logs, has_several_workers(self.distribute_strategy) and not any(
            has_own_results(self, name) for name in ("train_step", "test_step")
        )

    def tfgpu_additional_loss(self, loss: Any, total: Any) -> Any:
        """What counts of a loss that was added, given with the sum of it."""
        return losses.additional(loss, total)

    def __reduce__(self) -> Any:
        """As Keras', for `pickle` and `copy`; what is read back is a tfgpu model again."""
        _, arguments = super().__reduce__()
        return _unpickled, arguments

    def tfgpu_resolve_jit_compile(self) -> bool:
        """What `jit_compile="auto"` means."""
        # Keras turns XLA off under every strategy; here it works there.
        self._jit_is_resolved = True
        return bool(tf.config.list_logical_devices("GPU")) and private.supports_jit(self)

    @property
    def jit_compile(self) -> bool:
        """Whether XLA compiles the steps."""
        if private.given_jit_compile(self) is None:  # Asked before anybody has set it.
            private.given_jit_compile.set(self, self.tfgpu_resolve_jit_compile())
            self.tfgpu_jit_is_automatic, self._jit_is_resolved = True, False
        return private.given_jit_compile(self)

    @jit_compile.setter
    def jit_compile(self, value: bool) -> None:
        # Not by the name `keras.Model`, in whose place tfgpu's may be put.
        super(ReplicaTrainer, type(self)).jit_compile.fset(self, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "jit_compile":
            # `compile` has just resolved "auto", or was told. Not the setter's to find out: Keras
            # does not call it for a value that is there already.
            self.tfgpu_jit_is_automatic, self._jit_is_resolved = self._jit_is_resolved, False
            if private.given_jit_compile(self) is None:
                private.given_jit_compile.set(self, False)
        super().__setattr__(name, value)

    def tfgpu_prepare(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Called by `fit` and `evaluate` with the epoch's iterator, before it is read."""
        if iterator is not None and self._has_foreign_function(self.tfgpu_kind):
            self.tfgpu_batches = None
            data_batch = iterator.data_adapter.get_tf_dataset().element_spec
        elif iterator is not None:
            self.tfgpu_batches = self._take_over(iterator)
            data_batch = self.tfgpu_batches.model_spec
        self._check_optimizer()
        alone = private.own_strategy(self) is None
        if alone and not update.has_dynamic_scale(self.optimizer):
            return  # As in Keras: the first step builds.
        check_variables(self)
        try:
            self.tfgpu_build(data_batch)
        except (RuntimeError, ValueError):
            # The model cannot be called on a stand-in for a batch.
            if not alone and not is_own(self, "train_step"):
                raise

    # ---- data ---------------------------------------------------------------------------

    def _has_foreign_function(self, kind: str) -> bool:
        """Whether Keras is to call a function of the user's, which reads TensorFlow's iterators.

        A function around tfgpu's own is none.

        Args:
            kind: `train`, `test` or `predict`.
        """
        function = "_".join((kind, "function"))
        name = f"make_{function}"
        given = vars(self).get(name, getattr(type(self), name))
        if getattr(self, function) is None:
            if given is getattr(ReplicaTrainer, name):
                return False
            self.tfgpu_executions -= {kind}
            getattr(self, name)()
            setattr(self, function, None)  # Keras calls it again in a moment.
        foreign = kind not in self.tfgpu_executions
        replicas = self.distribute_strategy.num_replicas_in_sync
        if foreign and replicas > 1:
            warnings.warn(
                f"{name} of {type(self).__name__} is custom, so {function} is called as under "
                f"stock tf.distribute: it gets the strategy's iterator, and has to run the "
                f"{replicas} replicas itself. Override {kind}_step instead, or call "
                f"super().{name}().",
                stacklevel=2,
            )
        return foreign

    def _take_over(self, iterator: Any) -> Batches:
        """Has Keras' iterator over an epoch read `Batches`."""
        batches = private.epoch_dataset(iterator)
        if isinstance(batches, Batches):
            return batches
        adapter, steps = iterator.data_adapter, iterator.steps_per_epoch
        dataset, continued = adapter.get_tf_dataset(), False
        if isinstance(dataset, tf.distribute.DistributedDataset):
            dataset = _undistributed(dataset)
        if isinstance(adapter, private.GeneratorDataAdapter) and steps:
            # Neither begun anew by each pass over the data nor asked for more than is due.
            (dataset,) = private.dataset_inputs(dataset)
            dataset = dataset.take(steps)
            generator = adapter.generator()
            adapter.generator = lambda: generator
            continued = True
        sizes = None
        if isinstance(adapter, private.ArrayDataAdapter):
            smaller = adapter.has_partial_batch
            sizes = BatchSizes(adapter.batch_size, adapter.num_batches, smaller=smaller)
        batches = Batches(
            dataset,
            self.distribute_strategy,
            num_batches=adapter.num_batches,
            steps_per_epoch=steps,
            continued=continued,
            sizes=sizes,
        )
        private.epoch_dataset.set(iterator, batches)
        vars(iterator)[private.enumerate_epoch.name] = lambda: private.for_keras(
            batches.executions(iterator)
        )
        return batches

    # ---- building -----------------------------------------------------------------------

    def _check_optimizer(self) -> None:
        optimizer = update.inner(getattr(self, "optimizer", None))
        strategy: tf.distribute.Strategy = self.distribute_strategy
        if not isinstance(optimizer, keras.optimizers.Optimizer):
            return
        made_for = private.optimizer_strategy(optimizer)
        if made_for is not strategy:
            raise ValueError(
                f"The optimizer {optimizer.name!r} was made for {type(made_for).__name__} and the "
                f"model for {type(strategy).__name__}. Make both under the same "
                "`strategy.scope()`, and call `compile` there too."
            )

    def tfgpu_build(self, data_batch: Any) -> None:
        """Creates all variables, which a replica cannot create on the way; see `building`."""
        building.build(self, data_batch)

    train_function: Any
    test_function: Any
    predict_function: Any
    _jit_is_resolved = False
    # For other modules; so named that a user's class has none of these names.
    tfgpu_executions: frozenset[str] = frozenset()
    tfgpu_kind = "train"
    tfgpu_jit_is_automatic = False
    tfgpu_said_of_xla: str | None = None
    tfgpu_traced: Any = ((), False)
    tfgpu_callbacks: Any = None
    tfgpu_statistics: StepStatistics | None = None
    tfgpu_batches: Batches | None = None
    tfgpu_segments: Segments | None = None


def _undistributed(dataset: Any) -> tf.data.Dataset:
    """The data set of global batches that a strategy has distributed.

    Raises:
        ValueError: There is none, but a function that made a part for each worker.
    """
    try:
        return private.distributed_from(dataset)
    except AttributeError:
        raise ValueError(
            "The data set was distributed by a function that makes a part of it for each worker "
            "(distribute_datasets_from_function). Give the data set of global batches itself: its "
            "rows are handed to the replicas."
        ) from None


def _is_built(model: keras.Model) -> bool:
    return all(layer.built for layer in private.flatten_layers(model))


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
        if cls is Model and private.makes_functional(args, kwargs):
            return Functional.__new__(Functional, *args, **kwargs)
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        if private.makes_functional(args, kwargs):
            # Keras would rewrite the bases of `tfgpu.Model` itself, after which no
            # subclass of it could be made without inputs and outputs.
            _make_functional(type(self))
            private.Functional.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


class Functional(Model, private.Functional):
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


for _ours, _theirs in (
    (Functional, private.Functional),
    (Model, keras.Model),
    (Sequential, keras.Sequential),
):
    private.written_as(_ours, _theirs)


def load_model(filepath: Any, **kwargs: Any) -> keras.Model:
    """Loads a `.keras` file as a tfgpu model.

    Args:
        filepath: A file that `model.save` or `keras.Model.save` wrote.
        **kwargs: `keras.models.load_model`'s: `custom_objects`, `compile`, `safe_mode`.

    Returns:
        A `tfgpu` functional or sequential model; a model of a class of your own as it is.
    """
    return _as_tfgpu(keras.models.load_model(filepath, **kwargs))


def _unpickled(file: Any) -> keras.Model:
    return _as_tfgpu(private.unpickled(keras.Model, file))


def _as_tfgpu(model: keras.Model) -> keras.Model:
    for ours, theirs in ((Functional, private.Functional), (Sequential, keras.Sequential)):
        if type(model) is theirs:
            # The classes differ in methods alone.
            model.__class__ = ours
            if model.compiled:
                model.train_function = model.test_function = model.predict_function = None
    return model
