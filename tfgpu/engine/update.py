"""One update of the weights by whatever optimizer the user gave.

The optimizer runs its own `apply_gradients`, on this replica's copies of the variables
(`local_copies`) and with gradients that are summed already. So it does what it does on one
device: wrapping optimizers, an `apply` or `update_step` of one's own, frozen layers. Clipping
and the check of a loss scale see the whole gradient, which under stock Keras they do not.

One thing is ours: with `gradient_accumulation_steps=m` the schedule of the learning rate and the
average of the weights go on with every m-th call, the one that updates, so that m calls equal
one call on a batch m times as large. Keras' go on with every call.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine import keras_internals as private
from tfgpu.engine.current import current
from tfgpu.engine.dataflow import draws
from tfgpu.engine.local_copies import MadeLate, is_compiling, keeping_former
from tfgpu.engine.temporary import in_place_of


def inner(optimizer: Any) -> Any:
    """The optimizer that updates the weights: `optimizer` or the one it wraps."""
    return optimizer.inner_optimizer if has_dynamic_scale(optimizer) else optimizer


def has_dynamic_scale(optimizer: Any) -> bool:
    """Whether gradients that are not finite make it skip a step and lower its loss scale."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def loss_scale(optimizer: Any) -> keras.Variable | float | None:
    """What `optimizer` multiplies the loss by before the gradient is taken.

    Returns:
        The dynamic scale's variable, a constant `loss_scale_factor`, or None.
    """
    if has_dynamic_scale(optimizer):
        return optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale
    return getattr(optimizer, "loss_scale_factor", None)


def apply(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Updates `variables`; inside `on_local_copies`.

    Args:
        optimizer: Any that Keras takes.
        gradients: Summed over the replicas, dense, one a variable; None where there is none.
        variables: The trainable ones of today, which may be fewer than the optimizer knows.
    """
    with prepared(optimizer):
        if is_compiling() and _can_take_back(optimizer):
            _apply_and_take_back(optimizer, gradients, variables)
        else:
            optimizer.apply_gradients(zip(gradients, variables, strict=True))


def _can_take_back(optimizer: Any) -> bool:
    """Whether it scales the loss, and all that it assigns is seen: Keras' optimizers and ours."""
    return (
        type(optimizer) is keras.optimizers.LossScaleOptimizer
        and optimizer.built
        and type(optimizer.inner_optimizer).__module__.startswith(("keras.", "tfgpu."))
    )


def _apply_and_take_back(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]
) -> None:
    """`LossScaleOptimizer.apply`, which updates only if all gradients are finite, without a branch.

    At a branch in what XLA compiled the host waits for the GPU, once a step. Here the update is
    made in any case, and after an overflow every value is the one from before.
    """
    finite = all_finite(gradients)  # As the step has it already, where it forgets what it saw.
    scale = tf.convert_to_tensor(optimizer.dynamic_scale)
    steps = tf.convert_to_tensor(optimizer.step_counter)
    with keeping_former() as former:
        unscaled = [
            g if g is None or is_overwritten(v) else g / scale
            for g, v in zip(gradients, variables, strict=True)
        ]
        optimizer.inner_optimizer.apply(unscaled, trainable_variables=variables)
    for variable, value in former.values:
        variable.assign(tf.where(finite, variable.read_value(), value))
    grows = steps == optimizer.dynamic_growth_steps - 1
    optimizer.step_counter.assign(tf.where(finite & ~grows, steps + 1, 0))
    factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
    optimizer.dynamic_scale.assign(scale * tf.cast(factor, scale.dtype))


def is_overwritten(variable: Any) -> bool:
    """Whether the gradient of a variable is its next value, as those of float8 layers are."""
    return getattr(variable, "overwrite_with_gradient", False)


def all_finite(tensors: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """Whether every element of every tensor is finite: a bool scalar.

    The sum of a tensor times 0 is 0 when all its elements are finite and NaN
    otherwise: one pass, no boolean tensor of the gradient's size.
    """
    probes = [tf.reduce_sum(t * tf.zeros((), t.dtype)) for t in tensors if t is not None]
    return tf.reduce_all([tf.math.is_finite(probe) for probe in probes])


@contextlib.contextmanager
def prepared(optimizer: Any) -> Iterator[None]:
    """Around an update: accumulation counts updates, and the graph names what is updated.

    Raises:
        ValueError: The optimizer makes a variable in its update, and there are several replicas.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_built_outside(optimizer))
        for each in _updating(optimizer):
            replaced = {"update_step": functools.partial(_named_update, each, each.update_step)}
            if getattr(each, "gradient_accumulation_steps", None):
                name = private.apply_unclipped.name
                replaced[name] = functools.partial(_accumulate, each, getattr(each, name))
            stack.enter_context(in_place_of(each, **replaced))
        try:
            yield
        except (MadeLate, RuntimeError) as error:
            if not isinstance(error, MadeLate) and "strategy.scope()" not in str(error):
                raise
            raise ValueError(
                f"The optimizer {optimizer.name!r} makes a variable in its update, where several "
                "replicas cannot. Make it in `build`, by `add_variable` or "
                "`add_optimizer_variables`."
            ) from error


@contextlib.contextmanager
def alike(optimizer: Any) -> Iterator[None]:
    """Around an update by several replicas: each has to make the same of the same gradients.

    Raises:
        ValueError: It draws random numbers that are a replica's own.
    """
    graph: Any = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    before = graph.version if graph is not None and current.shared is not None else None
    yield
    if before is None:
        return
    made = itertools.islice(graph.get_operations(), before, None)
    for operation in made:
        if draws(operation):
            raise ValueError(
                f"The optimizer {optimizer.name!r}, or a schedule or constraint, draws random "
                f"numbers by {operation.type}, which are others on each replica, so "
                "that their weights would part. Draw them by keras.random with a SeedGenerator, "
                "or by tf.random.stateless_*, which are the same."
            )


def _updating(optimizer: Any) -> list[Any]:
    """The optimizers that update: `optimizer` or those that it holds, and all that they hold."""
    found: list[Any] = []
    waiting = [inner(optimizer)]
    while waiting:
        each = waiting.pop()
        if all(each is not other for other in found):
            found.append(each)
            waiting.extend(held_by(each))
    return found


def held_by(owner: Any) -> list[Any]:
    """The optimizers that an object holds, as attributes or in lists and dicts of them."""
    found: dict[int, Any] = {}
    for value in [getattr(owner, "optimizer", None), *vars(owner).values()]:
        if isinstance(value, dict):
            value = list(value.values())
        for leaf in value if isinstance(value, list | tuple) else [value]:
            if isinstance(leaf, keras.optimizers.Optimizer):
                found[id(leaf)] = leaf
    return list(found.values())


def _built_outside(optimizer: Any) -> contextlib.AbstractContextManager[None]:
    """Has an optimizer that is not built yet build itself outside of the step's graph.

    So what its `build` assigns is there once, and before the first update. In the graph it would
    come anew with each step, or never.
    """
    if getattr(optimizer, "built", True):
        return contextlib.nullcontext()
    build = optimizer.build

    def build_outside(*args: Any, **kwargs: Any) -> None:
        with tf.init_scope():
            build(*args, **kwargs)

    return in_place_of(optimizer, build=build_outside)


def _named_update(optimizer: Any, update_step: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """`update_step` under the name of the variable, so that a person finds it in the graph."""
    variable = named.get("variable", args[1] if len(args) > 1 else None)
    try:
        variables = private.updated_variables(optimizer)
        path = variables[private.variable_index(optimizer, variable)].path
    except (AttributeError, KeyError, IndexError):  # An optimizer that keeps no list.
        path = getattr(variable, "name", "variable")
    with tf.name_scope(_SCOPE.sub("_", path)):
        return update_step(*args, **named)


# What a name in a graph may not hold.
_SCOPE = re.compile(r"[^\w./>-]|^[^\w.]")


def _accumulate(
    optimizer: Any,
    apply_gradients: Callable[..., Any],
    grads: Sequence[tf.Tensor],
    variables: Sequence[Any],
) -> None:
    """Stands in for `apply_gradients`, by which an accumulating optimizer takes gradients in."""
    every = optimizer.gradient_accumulation_steps
    iterations, accumulated = private.calls(optimizer), private.accumulated_gradients(optimizer)
    sums = [accumulated[private.variable_index(optimizer, variable)] for variable in variables]

    def flush() -> None:
        count = tf.convert_to_tensor(iterations)
        means = [(g + total) / every for g, total in zip(grads, sums, strict=True)]
        # The schedule and Adam's bias correction count updates, not calls.
        iterations.assign(count // every)
        optimizer.gradient_accumulation_steps = None
        try:
            apply_gradients(means, variables)
        finally:
            optimizer.gradient_accumulation_steps = every
        iterations.assign(count)
        for total in accumulated:
            if total is not None:
                total.assign(tf.zeros(total.shape, total.dtype))

    def hold() -> None:
        for gradient, total in zip(grads, sums, strict=True):
            total.assign(total + gradient)

    is_update = (tf.convert_to_tensor(iterations) + 1) % every == 0
    tf.cond(is_update, flush, hold)
