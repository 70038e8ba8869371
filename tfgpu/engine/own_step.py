"""Steps that a class, or the model itself, defines: `train_step`, `test_step`, `predict_step`.

Such a step is run as Keras runs it, in the replica context of the strategy, which it may have
been written for. Around it, three things are made right under several replicas:

- `compute_loss` and Keras' losses give the loss of this replica's rows, and `tape.gradient` the
  gradients of the global batch, see `own_gradients`;
- `apply` and `apply_gradients` of optimizers are those of one device, and first bring together
  gradients that are not the same on each replica yet;
- what the forward pass and the metrics assign is brought together, and a replica without rows
  of its own leaves no trace.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine import branches, losses, own_gradients, update
from tfgpu.engine import keras_internals as private
from tfgpu.engine.assignments import Writes
from tfgpu.engine.current import counting, counts_by_rows, current
from tfgpu.engine.local_copies import (
    current_writes,
    exchange,
    noting,
    on_local_copies,
    once_for_all,
)
from tfgpu.engine.overrides import everywhere, is_own
from tfgpu.engine.replica_step import (
    begun,
    own_outputs,
    settled,
    sharded_loss,
)
from tfgpu.engine.shards import Shard
from tfgpu.engine.temporary import in_place_of


class OwnStep:
    """One of the steps of a class, in replica context.

    Args:
        model: A compiled model.
        name: `train_step`, `test_step` or `predict_step`.
    """

    def __init__(self, model: keras.Model, name: str):
        self._model: Any = model
        self._name = name
        several = model.distribute_strategy.num_replicas_in_sync > 1
        self._step: Callable[[Any], Any] = step_of(model, name) if several else getattr(model, name)
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
        context = tf.distribute.get_replica_context()
        own = context if tf.distribute.has_strategy() else None
        with on_local_copies(context), current.having(alone=True, own_context=own):
            return self._step(data)

    def __call__(self, shard: Shard, device_map: Any, resident: Sequence[tf.Tensor]) -> Any:
        """Runs the step on a replica's rows."""
        context, rows, read = begun(shard, device_map, resident)
        if rows.replicas == 1 and (found := self._run_alone(batch := read())) is not None:
            return found[0]

        def step(writes: Writes | None) -> Any:
            meet = functools.partial(_exchange, context)
            with (
                noting(writes),
                counting(rows, own_context=context, exchange=meet),
                branches.checked(rows),
                current.having(own_code=True, undeclared=self._of_optimizers()),
            ):
                return self._step(read() if rows.replicas > 1 else batch)

        results = settled(context, rows, step)
        return own_outputs(results, rows) if self._name == "predict_step" else results

    def _run_alone(self, batch: Any) -> list[Any] | None:
        """What the step gives on one device, in a list; None where it needs the strategy.

        An optimizer of a strategy that has to make its variables first needs the strategy for it.
        """
        if not tf.distribute.has_strategy():
            return [self._alone(batch)]
        if self._model.run_eagerly or not all(o.built for o in update.held_by(self._model)):
            return None
        try:
            return [self._alone(batch)]
        except _NotBuilt:  # It lies where nobody looks before; nothing has been run yet.
            return None

    def _of_optimizers(self) -> frozenset[int]:
        optimizers = update.held_by(self._model)
        return frozenset(
            id(private.variable_value(each)) for o in optimizers if o.built for each in o.variables
        )


@contextlib.contextmanager
def installed(model: Any) -> Iterator[None]:
    """While a step of its own is traced or run: a model's loss and optimizers know of that."""
    everywhere(private.class_with_apply, "apply", _minding)
    losses.mind_own_calls()
    with contextlib.ExitStack() as stack:
        for optimizer in update.held_by(model):
            if "apply" in vars(optimizer):
                apply = functools.partial(_apply, optimizer, optimizer.apply)
                stack.enter_context(in_place_of(optimizer, apply=apply))
        if private.own_strategy(model) is None:
            yield
            return
        loss = functools.partial(_loss, model.compute_loss)
        stack.enter_context(in_place_of(model, compute_loss=loss))
        yield


class _NotBuilt(Exception):
    """An optimizer has to make its variables, which it can in the strategy's context alone."""


def _exchange(context: Any, value: tf.Tensor) -> tf.Tensor | None:
    """A sum over the replicas, for a loss; None, with a warning, where they cannot meet."""
    try:
        return exchange(context, value)
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
    warnings.warn(
        "A loss under a mask, or with reduction='mean_with_sample_weight', is computed inside a "
        "tf.function, or inside a branch or loop over tensors, in a step of several replicas, "
        "which cannot meet there: it is averaged by rows. Compute it outside of that.",
        stacklevel=2,
    )
    return None


def step_of(model: Any, name: str) -> Callable[[Any], Any]:
    """A step; of a `tf.function` what it was made of, where replicas have to meet in it."""
    step: Callable[[Any], Any] = getattr(model, name)
    if not hasattr(step, "python_function"):
        return step
    if name in vars(model):
        function = vars(model)[name].python_function
        if not inspect.ismethod(function):
            return _converted(function)
        return functools.partial(_converted(function.__func__), function.__self__)
    owner = next(each for each in type(model).__mro__ if name in vars(each))
    return functools.partial(_converted(vars(owner)[name].python_function), model)


def _converted(function: Callable[..., Any]) -> Callable[..., Any]:
    """With Python's `if` and loops over tensors turned into a graph's, as `tf.function` does."""
    try:
        converted: Callable[..., Any] = tf.autograph.to_graph(function)
    except Exception:  # Without its source, say; TensorFlow's own error for that is private.
        return function
    return converted


def _loss(compute_loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stands in for a model's `compute_loss`."""
    context, rows = current.own_context, current.rows
    if context is None or rows is None:
        return compute_loss(*args, **kwargs)
    with on_local_copies(context, current_writes(), exchanging=True):
        loss = sharded_loss(compute_loss, context, {}, rows.real, *args, **kwargs)
    return counts_by_rows(losses.of_all_rows(loss, functools.partial(exchange, context)))


def _minding(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `apply` of a class of optimizers, in steps of one's own.

    An optimizer may lie in a helper object, a module or a closure of the step.
    """

    @functools.wraps(apply)
    def minding(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _apply(self, functools.partial(apply, self), *args, **kwargs)

    return minding


def _apply(optimizer: Any, apply: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stands in for `apply` of an optimizer, whatever else one of the user's takes."""
    context, updating = current.own_context, current.having(updating=True, own_code=False)
    if current.building:
        given = list(inspect.signature(apply).bind(*args, **kwargs).arguments.values())
        if len(given) > 1 and isinstance(given[1], list | tuple) and not optimizer.built:
            with tf.init_scope():
                _build(optimizer, list(given[1]))
        return None
    if current.alone and not current.updating:
        if context is not None and not getattr(optimizer, "built", True):
            raise _NotBuilt
        with updating, update.prepared(optimizer):
            return apply(*args, **kwargs)
    if context is None or current.updating:
        return apply(*args, **kwargs)
    # By whatever names: the first are the gradients, the second the variables.
    named = inspect.signature(apply).bind(*args, **kwargs)
    first, *others = named.arguments
    gradients, second = list(named.arguments[first]), next(iter(others), None)
    variables = None if second is None else named.arguments[second]
    if second is not None and isinstance(variables, list | tuple):
        named.arguments[second] = variables = list(variables)
    else:
        variables = None
    try:
        # Once, and not in each replica; of which all come here before one is built.
        if variables is not None and not optimizer.built:
            once_for_all(context, functools.partial(_build, optimizer, variables))
        updated = variables
        if updated is None:
            updated = private.updated_variables(optimizer) if optimizer.built else []
        whole = own_gradients.of_all_rows(context, optimizer, gradients, updated)
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise ValueError(
            f"apply of the optimizer {optimizer.name!r} is called inside a tf.function, or inside "
            "a branch or loop over tensors, in a step of several replicas, where these cannot "
            "meet. Call it outside of that; the step itself needs no tf.function."
        ) from error
    named.arguments[first] = whole
    branches.note_update(optimizer)
    with updating, on_local_copies(context), update.prepared(optimizer), update.alike(optimizer):
        return apply(*named.args, **named.kwargs)


def _build(optimizer: Any, variables: list[Any]) -> None:
    optimizer.build(variables)
    optimizer.built = True
