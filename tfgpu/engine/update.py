"""One update of the weights by whatever optimizer the user gave.

The optimizer runs its own `apply_gradients`, on this replica's copies of the variables
(`local_copies`) and with gradients that are summed already. So it does what it does on one
device: wrapping optimizers, an `apply` or `update_step` of one's own, frozen layers. Clipping
and the check of a loss scale see the whole gradient, which under stock Keras they do not.

One thing is ours: with `gradient_accumulation_steps=m` the average of the weights moves with
every m-th call, the one that updates them, so that m calls equal one call on a batch m times as
large. Keras moves it with every call.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf


def inner(optimizer: Any) -> Any:
    """The optimizer that updates the weights: `optimizer` or the one it wraps."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


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
    factor: float | None = getattr(optimizer, "loss_scale_factor", None)
    return factor


def apply(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Updates `variables`; inside `on_local_copies`.

    Args:
        optimizer: Any that Keras takes.
        gradients: Summed over the replicas, dense, one a variable; None where there is none.
        variables: The trainable ones of today, which may be fewer than the optimizer knows.
    """
    with accumulating(optimizer):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))


def all_finite(tensors: Sequence[tf.Tensor | None]) -> tf.Tensor:
    """Whether every element of every tensor is finite: a bool scalar.

    The sum of a tensor times 0 is 0 when all its elements are finite and NaN
    otherwise: one pass, no boolean tensor of the gradient's size.
    """
    probes = [tf.reduce_sum(t * tf.zeros((), t.dtype)) for t in tensors if t is not None]
    return tf.reduce_all([tf.math.is_finite(probe) for probe in probes])


@contextlib.contextmanager
def accumulating(optimizer: Any) -> Iterator[None]:
    """Has an optimizer with `gradient_accumulation_steps` count its average by updates."""
    accumulator = inner(optimizer)
    if not getattr(accumulator, "gradient_accumulation_steps", None):
        yield
        return
    vars(accumulator)["_backend_apply_gradients"] = functools.partial(_accumulate, accumulator)
    try:
        yield
    finally:
        del vars(accumulator)["_backend_apply_gradients"]


def _accumulate(optimizer: Any, grads: Sequence[tf.Tensor], variables: Sequence[Any]) -> None:
    """Stands in for `_backend_apply_gradients` of an optimizer that accumulates."""
    every = optimizer.gradient_accumulation_steps
    sums = [
        optimizer._accumulated_gradients[optimizer._get_variable_index(variable)]
        for variable in variables
    ]

    def flush() -> None:
        # `optimizer.iterations` counts updates, so the schedule and Adam's bias do.
        means = [(g + total) / every for g, total in zip(grads, sums, strict=True)]
        means = optimizer._clip_gradients(means)
        optimizer._apply_weight_decay(variables)
        optimizer._backend_update_step(means, variables, optimizer.learning_rate)
        if optimizer.use_ema:
            optimizer._update_model_variables_moving_average(optimizer._trainable_variables)
            if optimizer.ema_overwrite_frequency:
                overwrite = (optimizer.iterations + 1) % optimizer.ema_overwrite_frequency == 0
                tf.cond(overwrite, put_averages, lambda: None)
        for total in optimizer._accumulated_gradients:
            if total is not None:
                total.assign(tf.zeros(total.shape, total.dtype))

    def put_averages() -> None:
        optimizer._overwrite_model_variables_with_average_value(optimizer._trainable_variables)

    def hold() -> None:
        for gradient, total in zip(grads, sums, strict=True):
            total.assign(total + gradient)

    is_update = (tf.convert_to_tensor(optimizer._iterations) + 1) % every == 0
    tf.cond(is_update, flush, hold)
