"""Steps that a class defines itself: `train_step`, `test_step`, `predict_step`.

Such a step is run as Keras runs it, in the replica context of the strategy, which it may have
been written for. Around it, three things are made right under several replicas:

- `compute_loss` and Keras' losses give the loss of this replica's rows, and such gradients that
  the replicas' add up to that of the global batch;
- `apply` and `apply_gradients` of the model's optimizers sum the gradients first, and then are
  those of one device;
- what the forward pass and the metrics assign is brought together, and a replica without rows
  of its own leaves no trace.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine import keras_internals as private
from tfgpu.engine import losses, update
from tfgpu.engine.all_reduce import sum_over_replicas
from tfgpu.engine.local_copies import Writes, current_writes, noting, on_local_copies
from tfgpu.engine.replica_step import begun, dense, own_outputs, settled, sharded_loss
from tfgpu.engine.shards import Shard
from tfgpu.engine.temporary import in_place_of


def is_own(model: keras.Model, name: str) -> bool:
    """Whether the class of `model` defines `name`, one of the three steps, itself."""
    return getattr(type(model), name) is not getattr(keras.Model, name)


class OwnStep:
    """One of the steps of a class, in replica context.

    Args:
        model: A compiled model.
        name: `train_step`, `test_step` or `predict_step`.
    """

    def __init__(self, model: keras.Model, name: str):
        self._model: Any = model
        self._name = name
        self._step: Callable[[Any], Any] = getattr(model, name)
        self._alone: Callable[[Any], Any] = self._step_alone
        if model.run_eagerly:
            return
        replicas = model.distribute_strategy.num_replicas_in_sync
        if replicas == 1:
            self._alone = tf.function(
                self._alone, jit_compile=model.jit_compile, reduce_retracing=True, autograph=False
            )
        elif model.jit_compile and is_own(model, name):
            warnings.warn(
                f"{type(model).__name__}.{name} is custom: it may touch variables, which XLA "
                f"cannot compile for {replicas} replicas, so it runs without XLA. Override "
                "compute_loss or compute_metrics instead to keep XLA.",
                stacklevel=2,
            )

    def _step_alone(self, data: Any) -> Any:
        with on_local_copies(tf.distribute.get_replica_context()):
            return self._step(data)

    def __call__(self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]) -> Any:
        """Runs the step on a replica's rows."""
        context, rows, read = begun(shard, device_map, resident)
        data = read()
        # A strategy's optimizer that has to make its variables first needs the strategy for it.
        ready = not tf.distribute.has_strategy() or all(o.built for o in _optimizers(self._model))
        if rows.replicas == 1 and ready:
            return self._alone(data)

        def step(writes: Writes | None) -> Any:
            with noting(writes), losses.counting(rows, own_context=context):
                return self._step(data)

        results = settled(context, rows, step)
        return own_outputs(results, rows) if self._name == "predict_step" else results

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While the step is traced or run: the model's loss and optimizers know of replicas."""
        model = self._model
        if private.own_strategy(model) is None:
            yield
            return
        with contextlib.ExitStack() as stack:
            loss = functools.partial(_loss, model.compute_loss)
            stack.enter_context(in_place_of(model, compute_loss=loss))
            for optimizer in _optimizers(model):
                build = not optimizer.built
                apply = functools.partial(_apply, optimizer, optimizer.apply, build=build)
                stack.enter_context(in_place_of(optimizer, apply=apply))
            yield


def _loss(compute_loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stands in for a model's `compute_loss`."""
    context, rows = losses.current.own_context, losses.current.rows
    if context is None or rows is None:
        return compute_loss(*args, **kwargs)
    with on_local_copies(context, current_writes(), exchanging=True):
        loss = sharded_loss(compute_loss, context, {}, rows.real, *args, **kwargs)
    # A step reports the value, of which the mean by rows is taken, and minimises its part.
    return losses.reported(loss, rows)


def _apply(
    optimizer: Any,
    apply: Callable[..., Any],
    grads: Sequence[Any],
    trainable_variables: Any = None,
    *,
    build: bool,
) -> Any:
    """Stands in for `apply` of an optimizer, which has to be built if `build`."""
    context = losses.current.own_context
    if context is None or losses.current.updating:
        return apply(grads, trainable_variables)
    if trainable_variables is not None:
        trainable_variables = list(trainable_variables)
        if build:  # Once, and not in each replica; of which all have to come here.
            context.merge_call(lambda _: _build(optimizer, trainable_variables))
    sums = sum_over_replicas(context, dense(grads))
    updating = losses.current.having(updating=True)
    with updating, on_local_copies(context), update.prepared(optimizer):
        return apply(sums, trainable_variables)


def _build(optimizer: Any, variables: list[Any]) -> None:
    if not optimizer.built:
        with tf.init_scope():
            optimizer.build(variables)
            optimizer.built = True


def _optimizers(model: Any) -> list[Any]:
    """The optimizers that a model holds, as attributes or in lists and dicts of them."""
    found: dict[int, Any] = {}
    for value in [model.optimizer, *vars(model).values()]:
        if isinstance(value, dict):
            value = list(value.values())
        for leaf in value if isinstance(value, list | tuple) else [value]:
            if isinstance(leaf, keras.optimizers.Optimizer):
                found[id(leaf)] = leaf
    return list(found.values())
