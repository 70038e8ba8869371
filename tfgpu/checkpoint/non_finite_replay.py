"""Finds where a training broke, by doing its last steps again.

Nothing has to be recorded while training goes well: from the last backup every step can be
repeated exactly, with a look at each gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfgpu.engine.batches import Batches, own_shard
from tfgpu.engine.local_copies import as_replica, on_local_copies
from tfgpu.engine.replica_step import ReplicaStep
from tfgpu.engine.update import all_finite, has_dynamic_scale


class Breakage(NamedTuple):
    """Where a training broke.

    Attributes:
        step: The first step with a gradient that is not finite, counted from 1.
        variable: Path of the variable whose gradient it is; of several, the one nearest to the
            loss, which the backward pass comes to first.
    """

    step: int
    variable: str


def first_breakage(
    model: keras.Model, batches: Batches, *, start_step: int, steps: int
) -> Breakage | None:
    """Repeats training steps until a gradient is not finite.

    The model has to be in the state it had after `start_step` steps, and is trained on.

    Args:
        model: A compiled `tfgpu.Model`.
        batches: Its training data.
        start_step: Steps done.
        steps: How many to repeat at most.

    Returns:
        Where it broke; None when all gradients were finite.
    """
    strategy = model.distribute_strategy
    dynamic = has_dynamic_scale(model.optimizer)
    step = ReplicaStep(model)
    # The states of random generators are among the former.
    state = [*model.non_trainable_variables, *model.metrics_variables]

    def look(element: Any, device_map: Any, resident: Any, whole: bool) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        replica = int(tf.get_static_value(context.replica_id_in_sync_group))
        arrays = resident[replica % len(resident)] if resident else ()
        before = [tf.identity(variable) for variable in state]
        with as_replica(replica, None, several=context.num_replicas_in_sync > 1):
            shard = own_shard(element, whole=whole)
            outcome = step.forward_backward(shard, device_map, arrays)
        with on_local_copies(context):
            # Looking is not to change what the step itself will find.
            for variable, value in zip(state, before, strict=True):
                variable.assign(value)
        broken = [tf.constant(False) if g is None else ~all_finite([g]) for g in outcome.gradients]
        if dynamic:
            # Gradients that overflow because of their scale are what it is lowered for.
            finite = all_finite([outcome.loss])
            broken = [gradient & ~finite for gradient in broken]
        return tf.cast(tf.stack(broken), tf.int32)

    @tf.function(autograph=False, reduce_retracing=True)
    def inspect(source: Any) -> tf.Tensor:
        given = (next(source), batches.device_map, batches.resident, batches.whole)
        return strategy.reduce("SUM", strategy.run(look, args=given), axis=None)

    batches.seek(start_step)
    batches.cut_every = 1
    looked_at, trained_on = iter(batches), iter(batches)
    for number in range(start_step + 1, start_step + steps + 1):
        broken = inspect(looked_at.source).numpy()
        if broken.any():
            names = [variable.path for variable in model.trainable_weights]
            return Breakage(number, [n for n, b in zip(names, broken, strict=True) if b][-1])
        model.train_function(trained_on)
    return None
