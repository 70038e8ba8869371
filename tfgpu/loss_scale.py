"""Dynamic loss scaling for float16, decided after the all-reduce.

Keras' `LossScaleOptimizer` looks at one replica's gradients before they are
reduced, so an overflow elsewhere poisons the weights, and it skips a step with
a `cond` around assignments, which `tf.distribute` refuses. Its variables and its
rule are kept (they are what Keras saves and loads), its `apply` is not used.

Source of the rule: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
section 3.2; the constants are Keras': start at 2^15, halve on overflow, double
after 2,000 good steps.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tfgpu.replica_step import Tensors, all_finite, apply_optimizer


def inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that updates the weights: `optimizer` or the one it wraps."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def current(optimizer: keras.optimizers.Optimizer) -> keras.Variable | float | None:
    """What the loss is multiplied by before the gradient is taken.

    Returns:
        The dynamic scale's variable, a constant `loss_scale_factor`, or None.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.dynamic_scale
    return optimizer.loss_scale_factor


def scaled_update(
    optimizer: keras.optimizers.LossScaleOptimizer,
    values: Tensors,
    gradients: Tensors,
    trainable: Tensors,
) -> tuple[Tensors, Tensors, tf.Tensor]:
    """One update under a dynamic loss scale, as a pure function.

    A gradient that is not finite anywhere leaves weights, slots, counters and
    averages as they were, to the bit, and halves the scale.

    Args:
        optimizer: A built `LossScaleOptimizer`.
        values: Values of `optimizer.variables`: its own, then the inner optimizer's.
        gradients: Scaled gradients, summed over the replicas: the same on each of them.
        trainable: Values of the trainable variables.

    Returns:
        New trainable values, new values of `optimizer.variables`, and whether the
        step was made (bool scalar).
    """
    own = optimizer._variables
    own_values, inner_values = values[: len(own)], values[len(own) :]
    place = {id(variable): i for i, variable in enumerate(own)}
    scale_at, counter_at = place[id(optimizer.dynamic_scale)], place[id(optimizer.step_counter)]
    scale, counter = own_values[scale_at], own_values[counter_at]

    finite = all_finite(gradients)
    unscaled = [None if g is None else g / tf.cast(scale, g.dtype) for g in gradients]
    new_trainable, new_inner = apply_optimizer(
        optimizer.inner_optimizer, inner_values, unscaled, trainable
    )

    def keep(new: Tensors, old: Tensors) -> Tensors:
        # A selection and not a `cond`: both sides are computed, nothing is written.
        return [tf.where(finite, n, o) for n, o in zip(new, old, strict=True)]

    grow = counter + 1 >= optimizer.dynamic_growth_steps
    new_own = list(own_values)
    new_own[scale_at] = tf.where(finite, tf.where(grow, scale * 2.0, scale), scale * 0.5)
    new_own[counter_at] = tf.where(finite & ~grow, counter + 1, tf.zeros_like(counter))
    return keep(new_trainable, trainable), new_own + keep(new_inner, inner_values), finite
