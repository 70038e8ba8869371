"""What one replica computes in one step, as pure functions of tensors.

Keras' own training step reads and writes variables wherever it is. XLA then
sees the resources of other devices, a `tf.cond` around an assignment calls
`merge_call`, and both fail under `tf.distribute`. Here everything that XLA
compiles takes tensors and returns tensors:

    values of the variables, a batch
        -> forward, loss, backward                          (`loss_and_gradients`)
        -> all-reduce                                       (the caller's, between the two)
        -> clip, weight decay, optimizer, EMA, accumulation (`apply_optimizer`)
        -> new values of the variables

The formulas are Keras' own: they run under `keras.StatelessScope`, in which
reading a variable gives a tensor and assigning to it records one.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import tensorflow as tf
from keras import tree
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.optimizers.base_optimizer import BaseOptimizer

from tfgpu.loss_weights import Shares, reduced_as

Tensors = list[Any]
"""Values of a list of variables, one tensor each, in the list's order."""


class Outcome(NamedTuple):
    """What a forward pass leaves behind.

    Attributes:
        loss: float scalar, this replica's share: the shares' sum is the global loss.
        y_pred: The model's outputs.
        non_trainable: New values of those of `model.non_trainable_variables` that changed,
            by position.
        metrics: New values of `model.metrics_variables` that computing the loss changed,
            by position.
    """

    loss: tf.Tensor
    y_pred: Any
    non_trainable: dict[int, tf.Tensor]
    metrics: dict[int, tf.Tensor]


def read(variables: Sequence[keras.Variable | tf.Variable]) -> Tensors:
    """Reads this replica's values of `variables`."""
    return [tf.convert_to_tensor(variable) for variable in variables]


def first_tensor(structure: Any) -> tf.Tensor:
    """The first tensor of a nested structure that may hold None."""
    return next(leaf for leaf in tree.flatten(structure) if leaf is not None)


def forward(
    model: keras.Model,
    trainable: Tensors,
    non_trainable: Tensors,
    metrics: Tensors,
    x: Any,
    y: Any,
    shares: Shares,
    *,
    training: bool,
) -> Outcome:
    """Runs `model` and its loss without touching a variable.

    Args:
        model: A built and compiled model.
        trainable: Values of `model.trainable_variables`.
        non_trainable: Values of `model.non_trainable_variables`.
        metrics: Values of `model.metrics_variables`.
        x: Inputs, batch first.
        y: Targets.
        shares: Weights of the examples, and how losses reduce.
        training: Keras' flag of that name.

    Returns:
        The loss, the outputs and the changed state.
    """
    arguments = {"training": training} if model._call_has_training_arg else {}
    y_pred, new_non_trainable, losses = model.stateless_call(
        trainable, non_trainable, x, return_losses=True, **arguments
    )
    # `model.losses` reads this, as in Keras' own JAX trainer.
    model._losses_override.clear()
    model._losses_override.extend(losses or [])
    try:
        with reduced_as(model._compile_loss, shares.reduction):
            loss, (_, new_non_trainable, new_metrics) = model.stateless_compute_loss(
                trainable,
                new_non_trainable,
                metrics,
                x=x,
                y=y,
                y_pred=y_pred,
                sample_weight=shares.sample_weight,
                training=training,
            )
    finally:
        model._losses_override.clear()
    return Outcome(
        loss=loss,
        y_pred=y_pred,
        non_trainable=changed(non_trainable, new_non_trainable),
        metrics=changed(metrics, new_metrics),
    )


def changed(before: Tensors, after: Tensors) -> dict[int, tf.Tensor]:
    """The values that a stateless call replaced, by position."""
    return {
        position: new
        for position, (old, new) in enumerate(zip(before, after, strict=True))
        if new is not None and new is not old
    }


def loss_and_gradients(
    model: keras.Model,
    trainable: Tensors,
    non_trainable: Tensors,
    metrics: Tensors,
    x: Any,
    y: Any,
    shares: Shares,
    loss_scale: tf.Tensor | None,
) -> tuple[Outcome, Tensors]:
    """Forward and backward pass of one replica.

    Args:
        model: A built and compiled model.
        trainable: Values of `model.trainable_variables`.
        non_trainable: Values of `model.non_trainable_variables`.
        metrics: Values of `model.metrics_variables`.
        x: Inputs, batch first.
        y: Targets.
        shares: Weights of the examples, and how losses reduce.
        loss_scale: float32 scalar the gradients come out multiplied by, or None.

    Returns:
        The outcome and, for each trainable value, a dense gradient or None.
    """
    with tf.name_scope("forward"), tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(trainable)
        outcome = forward(model, trainable, non_trainable, metrics, x, y, shares, training=True)
        target = outcome.loss
        if loss_scale is not None:
            target = target * tf.cast(loss_scale, target.dtype)
    gradients = tape.gradient(target, trainable)
    # The gradient of a gather from a tensor is IndexedSlices: XLA cannot return one, and
    # duplicates in it would make clipping and the finite check see parts of the gradient.
    return outcome, [g if g is None else tf.convert_to_tensor(g) for g in gradients]


def pack(tensors: Sequence[Any]) -> tuple[Tensors, Callable[[Tensors], Tensors]]:
    """Lays tensors end to end, one vector a dtype, for a single all-reduce.

    Args:
        tensors: Tensors of static shape; None entries stay None.

    Returns:
        The vectors, and the function that cuts vectors of the same layout up again.
    """
    groups: dict[tf.DType, list[int]] = {}
    for position, tensor in enumerate(tensors):
        if tensor is not None:
            groups.setdefault(tensor.dtype, []).append(position)
    vectors = [
        tf.concat([tf.reshape(tensors[i], [-1]) for i in positions], axis=0)
        for positions in groups.values()
    ]

    def unpack(reduced: Tensors) -> Tensors:
        parts: Tensors = [None] * len(tensors)
        for vector, positions in zip(reduced, groups.values(), strict=True):
            sizes = [tensors[i].shape.num_elements() for i in positions]
            for i, part in zip(positions, tf.split(vector, sizes), strict=True):
                parts[i] = tf.reshape(part, tensors[i].shape)
        return parts

    return vectors, unpack


def all_finite(tensors: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """Whether every element of every tensor is finite: a bool scalar.

    The sum of a tensor times 0 is 0 when all its elements are finite and NaN
    otherwise: one pass, no boolean tensor of the gradient's size.
    """
    probes = [tf.reduce_sum(t * tf.zeros((), t.dtype)) for t in tensors if t is not None]
    return tf.reduce_all([tf.math.is_finite(probe) for probe in probes])


# The mixin has no base; to a type checker it is what it is mixed into.
_Optimizer: Any = TFOptimizer if TYPE_CHECKING else object


# What a name in a graph may not hold.
_SCOPE = re.compile(r"[^\w./>-]|^[^\w.]")


class _PureFormulas(_Optimizer):
    """Gives a Keras optimizer the backend-neutral half of its own code back.

    Keras' TensorFlow optimizers write to `tf.Variable`s, which is why Keras
    refuses `stateless_apply` for them. `keras.optimizers.Optimizer` has the same
    formulas over `keras.Variable`s, which a `StatelessScope` can stand in for.
    """

    assign = BaseOptimizer.assign
    assign_add = BaseOptimizer.assign_add
    assign_sub = BaseOptimizer.assign_sub
    _clip_by_norm = BaseOptimizer._clip_by_norm

    def _var_key(self, variable: Any) -> Any:
        # In a stateless scope `variable.value` is a tensor, which has no identity.
        return super()._var_key(getattr(variable, "_value", variable))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> Any:
        # Under the name of the variable, so that a person finds it in the graph.
        with tf.name_scope(_SCOPE.sub("_", variable.path)):
            return super().update_step(gradient, variable, learning_rate)

    def _backend_apply_gradients(self, grads: Tensors, trainable_variables: list[Any]) -> None:
        # Keras' own, without its `ops.cond` around assignments: accumulation is
        # `apply_optimizer`'s, and overwriting by the average is a selection.
        grads = self._clip_gradients(grads)
        self._apply_weight_decay(trainable_variables)
        self._backend_update_step(grads, trainable_variables, self.learning_rate)
        if self.use_ema:
            self._update_model_variables_moving_average(self._trainable_variables)
            if self.ema_overwrite_frequency:
                overwrite = (self.iterations + 1) % self.ema_overwrite_frequency == 0
                for variable, average in zip(
                    self._trainable_variables, self._model_variables_moving_average, strict=True
                ):
                    if average is not None:
                        variable.assign(tf.where(overwrite, average.value, variable.value))


_patch_lock = threading.RLock()


@contextlib.contextmanager
def _base_formulas() -> Iterator[None]:
    """Makes `super()` of an optimizer's own methods the backend-neutral ones.

    Some optimizers extend these methods (Nadam, Muon), so they cannot be replaced
    in a subclass of theirs. Held while one replica is traced, never while a step runs.
    """
    names = ("_backend_update_step", "_apply_weight_decay")
    with _patch_lock:
        own = {name: getattr(TFOptimizer, name) for name in names}
        for name in names:
            setattr(TFOptimizer, name, getattr(BaseOptimizer, name))
        try:
            yield
        finally:
            for name in names:
                setattr(TFOptimizer, name, own[name])


def _pure(optimizer: BaseOptimizer) -> Any:
    """A view of `optimizer` that shares its variables and writes through Keras' scopes."""
    kind = type(optimizer)
    view: Any = object.__new__(type(kind.__name__, (_PureFormulas, kind), {}))
    view.__dict__.update(optimizer.__dict__)
    view.__dict__["gradient_accumulation_steps"] = None
    return view


def apply_optimizer(
    optimizer: BaseOptimizer, values: Tensors, gradients: Tensors, trainable: Tensors
) -> tuple[Tensors, Tensors]:
    """One update of `optimizer`, with reduced gradients, as a pure function.

    Does what `optimizer.apply` does under JAX: clipping, weight decay, the
    update, constraints and EMA. With `gradient_accumulation_steps=m` every m-th
    call updates, by the mean of the last m gradients, and the others leave
    everything but the accumulators as it was, the average included: m calls equal
    one call on a batch m times as large.

    Args:
        optimizer: A built Keras optimizer; not a `LossScaleOptimizer`.
        values: Values of `optimizer.variables`.
        gradients: Summed over the replicas, one a trainable value, None where there is none.
        trainable: Values of the variables the optimizer was built with.

    Returns:
        New values of the trainable variables and of `optimizer.variables`.
    """
    variables = optimizer.variables
    view = _pure(optimizer)

    def update(gradients: Tensors, values: Tensors) -> tuple[Tensors, Tensors]:
        mapping = [
            *zip(optimizer._trainable_variables, trainable, strict=True),
            *zip(variables, values, strict=True),
        ]
        with keras.StatelessScope(state_mapping=mapping) as scope, _base_formulas():
            view.apply(gradients)
        new_trainable = [scope.get_current_value(v) for v in optimizer._trainable_variables]
        return new_trainable, [scope.get_current_value(v) for v in variables]

    every = optimizer.gradient_accumulation_steps
    if not every:
        return update(gradients, values)

    position = {id(variable): i for i, variable in enumerate(variables)}
    counter = position[id(optimizer._iterations)]
    slots = [position[id(variable)] for variable in optimizer._accumulated_gradients]
    sums: Tensors = [
        None if g is None else values[slot] + g for g, slot in zip(gradients, slots, strict=True)
    ]
    count = values[counter]

    def flush() -> tuple[Tensors, Tensors]:
        # The schedule and Adam's bias correction count updates, not calls.
        counted = list(values)
        counted[counter] = count // every
        means = [None if s is None else s / every for s in sums]
        new_trainable, new_values = update(means, counted)
        new_values[counter] = count + 1
        for slot in slots:
            new_values[slot] = tf.zeros_like(values[slot])
        return new_trainable, new_values

    def hold() -> tuple[Tensors, Tensors]:
        new_values = [tf.identity(value) for value in values]
        new_values[counter] = count + 1
        for slot, total in zip(slots, sums, strict=True):
            if total is not None:
                new_values[slot] = total
        return [tf.identity(value) for value in trainable], new_values

    return tf.cond((count + 1) % every == 0, flush, hold)
