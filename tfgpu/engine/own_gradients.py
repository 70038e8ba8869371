"""Gradients in steps of one's own: those of the global batch, from the moment they are taken.

Such a step is code for one device, which does with gradients as it likes: clips them, logs their
norm, perturbs the weights along them, assigns variables by them. That is right where
`tape.gradient` gives every replica the gradient of the global batch. What is minimised tells by its
graph what it is of the global batch, see `all_rows`:

- a mean over rows, and a penalty of the weights: the average by rows of the replicas' gradients;
- any other number made of rows, such as a sum of them, a ratio or a root: the gradient of what it
  is of all rows, by way of the parts that it is made of;
- a value a row: the replicas' gradients add up, as TensorFlow adds up those of its elements;
- what nobody can see through: the average by rows, with a warning.

`tf.nn.compute_average_loss` and `tf.nn.scale_regularization_loss`, which are for parts that add
up, give what they give on one device.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfgpu.engine.all_reduce import sum_over_replicas
from tfgpu.engine.all_rows import Analysis
from tfgpu.engine.current import counts_by_rows, current, note_data
from tfgpu.engine.dataflow import (
    CALLS,
    DIVISIONS,
    divided_by,
    draws,
    is_count,
    is_rows,
    reads_one_of,
    value_inputs,
)
from tfgpu.engine.local_copies import current_writes, exchange, have_met
from tfgpu.engine.parts import Unseen
from tfgpu.engine.replica_step import dense, from_exchange, to_exchange
from tfgpu.engine.row_axis import mixing
from tfgpu.engine.shards import Rows

MOST_OPERATIONS = 60
"""How many operations make a gradient by hand at most; more are a backward pass."""

# What is the same on each replica, whatever it is made of.
_OF_ALL = {"Const", "ReadVariableOp", "ResourceGather", "VarHandleOp"}


def combined(context: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The sums over the replicas of their parts of gradients, one a variable.

    Args:
        context: The replica's context.
        gradients: The parts; None entries stay None.
        variables: What they are of; where their number is another, each is a plain sum.

    Raises:
        RuntimeError: The replicas cannot meet where they are.
    """
    if len(variables) != len(gradients):
        return sum_over_replicas(context, gradients)
    with current.having(own_code=False):
        parts = to_exchange(context, gradients, variables)
        return from_exchange(sum_over_replicas(context, parts), variables)


def of_all_rows(
    context: Any, optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]
) -> list[Any]:
    """Gradients as an optimizer is given them, such that they are the same on each replica.

    Args:
        context: The replica's context.
        optimizer: That is given them, for messages.
        gradients: Made of what `tape.gradient` gave, or not.
        variables: Those that are updated.

    Raises:
        RuntimeError: The replicas cannot meet where they are.
    """
    if current.shared is None:
        return list(gradients)
    gradients, rows = dense(gradients), current.shared
    known: set[int] = set()
    origins = [_origin(gradient, known) for gradient in gradients]
    if all(origin == "whole" for origin in origins):
        return gradients
    unseen = []

    def part(gradient: Any, origin: str) -> Any:
        if gradient is None or origin == "part":
            return gradient
        if origin == "own":
            found = _by_hand(gradient, rows)
            unseen.extend([] if found is not None else [gradient])
            gradient = gradient if found is None else found
        return gradient * tf.cast(rows.share, gradient.dtype)

    shares = [part(g, origin) for g, origin in zip(gradients, origins, strict=True)]
    sums = combined(context, _of_own_rows(shares), variables)
    if unseen:
        _say_of_own(optimizer, rows.replicas)
    return sums


def _by_hand(gradient: tf.Tensor, rows: Rows) -> tf.Tensor | None:
    """A gradient that a step has made itself, as it is of all rows; None if nobody can tell."""
    if not hasattr(gradient, "op"):
        return None
    analysis = Analysis(rows, unsettled(), most=MOST_OPERATIONS)
    try:
        if not analysis.is_of_rows(gradient) or analysis.is_average:
            return gradient
        return analysis.of_all_rows([gradient], meeting)[0]
    except Unseen:
        return None


def unsettled() -> Sequence[tf.Variable]:
    """The copies of variables that the step has given a value of this replica's own."""
    writes = current_writes()
    return () if writes is None else writes.unsettled()


def _say_of_own(optimizer: Any, replicas: int) -> None:
    if current.whole or current.parts:
        said = (
            f"makes the gradients that {optimizer.name!r} gets of those of the global batch and of "
            "what each replica has of its own rows, such as the value of a loss, or random "
            "numbers: they are averaged by rows, which is right for what is added."
        )
    else:
        said = (
            f"applies gradients by {optimizer.name!r} that tape.gradient has not given. Those of "
            f"{replicas} replicas are averaged by rows, as is right for the gradients of means "
            "over rows."
        )
    warnings.warn(f"A step {said}", stacklevel=2)


def _origin(gradient: Any, known: set[int]) -> str:
    """Whether a gradient is "whole": the same on each replica, a "part" that adds up, or "own".

    Args:
        gradient: As an optimizer is given it.
        known: Tensors that are the same on each replica, by identity; gets those that are found.
    """
    if gradient is None:
        return "whole"
    whole, parts = current.whole, current.parts
    waiting, found = [gradient], "whole"
    seen: set[int] = set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen or id(tensor) in whole or id(tensor) in known or have_met(tensor):
            continue
        seen.add(id(tensor))
        # What a function gives that has taken the gradient is another tensor than that.
        if id(tensor) in parts or (parts and hasattr(tensor, "op") and tensor.op.type in CALLS):
            return "part"
        if not hasattr(tensor, "op"):
            return "own"  # Computed eagerly: nobody knows of what.
        if tensor.op.type in _OF_ALL:
            if reads_one_of(tensor, unsettled()):
                found = "own"
            continue
        inputs = value_inputs(tensor.op)
        if not inputs or draws(tensor.op) or id(tensor) in current.drawn:
            found = "own"  # Of the data, or random numbers.
        waiting.extend(inputs)
    if found == "whole":
        known |= seen
    return found


def _of_own_rows(gradients: Sequence[Any]) -> list[Any]:
    """Gradients that are 0 on a replica without rows of its own, whatever the loss was."""
    rows = current.rows
    if rows is None or not rows.may_be_absent:
        return list(gradients)
    return [g if g is None else tf.where(rows.present, g, tf.zeros_like(g)) for g in gradients]


# ---- how a loss counts ------------------------------------------------------------------------


class _Loss(NamedTuple):
    """Something to differentiate, and the gradient that flows back into it."""

    tensor: tf.Tensor
    up: Any


def _counted(loss: Any, up: Any, rows: Rows) -> list[_Loss]:
    """What to differentiate in the place of a loss, such that the replicas' gradients add up.

    Args:
        loss: Of this replica's rows.
        up: The gradient that a step gives for it; None is 1.
        rows: Of this replica's shard.
    """
    if not isinstance(loss, tf.Tensor) or not loss.dtype.is_floating:
        return [_Loss(loss, up)]
    ups = tf.ones_like(loss) if up is None else tf.convert_to_tensor(up)
    mixed = up is None and hasattr(loss, "op") and mixing(loss, rows, current.data)
    if loss.shape.rank != 0 and rows.are_counted_by(loss) and not mixed:
        share = rows.share if up is not None and _is_mean(ups, rows) else rows.present
        return [_Loss(loss, ups * tf.cast(share, ups.dtype))]
    by_rows = _Loss(loss, ups * tf.cast(rows.share, ups.dtype))
    if not hasattr(loss, "op"):
        if id(loss) not in current.by_rows:
            _say_of_eager()
        return [by_rows]
    analysis = Analysis(rows, unsettled(), differentiated=True)
    try:
        if not analysis.is_of_rows(loss) or analysis.is_average:
            return [by_rows]
        if current.unrecorded:
            raise Unseen("in a step that stops the recording of a tape")
        (whole,) = analysis.of_all_rows([loss], meeting)
        ups = tf.ones_like(whole) if up is None else ups
        return [_Loss(*each) for each in analysis.gradients(whole, ups)]
    except Unseen as reason:
        warnings.warn(
            f"A step minimises what is made of rows {reason}, and {rows.replicas} replicas share "
            "the batch: it counts by rows, as is right for a mean over rows, and not for a sum.",
            stacklevel=2,
        )
        return [by_rows]


def meeting(value: tf.Tensor) -> tf.Tensor:
    """Sums a tensor over the replicas, in a step of one's own; with a gradient."""
    total: tf.Tensor = exchange(current.own_context, value)
    return total


def _say_of_eager() -> None:
    warnings.warn(
        "With run_eagerly=True a step minimises what is not the result of compute_loss or of a "
        "Keras loss alone, and several replicas share the batch: it counts by rows, as is right "
        "for a mean over rows and for a penalty of the weights, and not for a sum over rows.",
        stacklevel=2,
    )


# ---- what stands in ---------------------------------------------------------------------------


def _gradient_of_all_rows(gradient: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `tf.GradientTape.gradient`; outside of such steps it is TensorFlow's."""

    @tf.autograph.experimental.do_not_convert
    @functools.wraps(gradient)
    def of_all_rows(
        self: Any,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        unconnected_gradients: Any = tf.UnconnectedGradients.NONE,
    ) -> Any:
        flat, rows, context = tf.nest.flatten(sources), current.shared, current.own_context
        if context is None or rows is None or current.updating or current.differentiating:
            return gradient(self, target, sources, output_gradients, unconnected_gradients)
        # Of inputs, say, each replica has the gradients by its own rows.
        at = [place for place, each in enumerate(flat) if not _is_of_rows(each, rows)]
        with current.having(differentiating=True, own_code=False):
            counted = _all_counted(target, output_gradients, rows)
            found = gradient(
                self,
                [each.tensor for each in counted],
                sources,
                [each.up for each in counted],
                unconnected_gradients,
            )
        if not at:
            return note_data(found)
        of_flat = tf.nest.flatten(found)
        note_data([each for place, each in enumerate(of_flat) if place not in at])
        parts = _of_own_rows(dense([of_flat[place] for place in at]))
        try:
            whole = combined(context, parts, [flat[place] for place in at])
            current.note("whole", whole)
        except RuntimeError as error:
            if "merge_call" not in str(error):
                raise
            warnings.warn(
                "A step takes a gradient inside a tf.function, or inside a branch or loop over "
                "tensors, where replicas cannot meet: each gets its part of the gradient of the "
                "global batch, which optimizers outside of that add up. Clip, log or assign by it "
                "nothing, or take it outside.",
                stacklevel=2,
            )
            whole = parts
            current.note("parts", parts)
        for place, each in zip(at, whole, strict=True):
            of_flat[place] = _as_it_was(of_flat[place], each)
        return tf.nest.pack_sequence_as(sources, of_flat)

    return of_all_rows


def _is_mean(up: Any, rows: Rows) -> bool:
    """Whether a gradient that a step has made itself is divided by the rows at hand."""
    while hasattr(up, "op") and up.op.type in ("Identity", "Mul", "Neg", *DIVISIONS):
        divisors = [d for each in (up, *up.op.inputs) for d in divided_by(each)]
        if any((current.static and is_rows(each, rows)) or is_count(each) for each in divisors):
            return True
        up = next((each for each in up.op.inputs if each.shape.rank == up.shape.rank), None)
    return False


def _as_it_was(part: Any, whole: Any) -> Any:
    """A gradient of the global batch as the slices that a step expects: here all there are."""
    if not isinstance(part, tf.IndexedSlices):
        return whole
    return tf.IndexedSlices(whole, tf.range(tf.shape(whole)[0]), tf.shape(whole))


def _is_of_rows(source: Any, rows: Rows) -> bool:
    """Whether what a gradient is taken by belongs to the rows of a replica, like its inputs.

    What is made of weights alone belongs to all, as they do.
    """
    if isinstance(source, keras.Variable | tf.Variable) or not isinstance(source, tf.Tensor):
        return False
    if not hasattr(source, "op"):
        # To a graph it is a constant.
        return bool(source.shape.rank) and tf.executing_eagerly()
    try:
        return Analysis(rows, unsettled()).is_of_rows(source)
    except Unseen:
        return True


def _all_counted(target: Any, output_gradients: Any, rows: Rows) -> list[_Loss]:
    """What to differentiate in the place of what is minimised; see `_counted`."""
    targets = tf.nest.flatten(target)
    given = [None] * len(targets) if output_gradients is None else tf.nest.flatten(output_gradients)
    counted = [_counted(loss, up, rows) for loss, up in zip(targets, given, strict=True)]
    return [each for of_loss in counted for each in of_loss]


def _of_own_rows_alone(jacobian: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `jacobian` and `batch_jacobian`, which take gradients in a loop."""

    @tf.autograph.experimental.do_not_convert
    @functools.wraps(jacobian)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        with current.having(differentiating=True):
            return jacobian(self, *args, **kwargs)

    return alone


def _unrecorded(stop: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `stop_recording`: what is computed inside is a constant to the tape alone."""

    @functools.wraps(stop)
    def unrecorded(self: Any) -> Any:
        current.unrecorded = True
        return stop(self)

    return unrecorded


def _average_loss(average: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `tf.nn.compute_average_loss`."""

    @functools.wraps(average)
    def of_own_rows(
        per_example_loss: Any, sample_weight: Any = None, global_batch_size: Any = None
    ) -> Any:
        with current.having(own_code=False):
            part = average(per_example_loss, sample_weight, global_batch_size)
        rows = current.rows
        if current.own_context is None or rows is None:
            return part
        # Without a size TensorFlow takes the rows at hand, times the replicas.
        times = rows.replicas if global_batch_size is None else rows.times_share
        return counts_by_rows(part * tf.cast(times, part.dtype))

    return of_own_rows


def _regularization_loss(scale: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `tf.nn.scale_regularization_loss`."""

    @functools.wraps(scale)
    def whole(regularization_loss: Any) -> Any:
        with current.having(own_code=False):
            part, rows = scale(regularization_loss), current.rows
        if current.own_context is None or rows is None:
            return part
        return part * tf.cast(rows.replicas, part.dtype)

    return whole


def _install() -> None:
    """Has functions of TensorFlow mind `current`; outside of steps they stay as they are."""
    tape = tf.GradientTape
    tape.gradient = _gradient_of_all_rows(tape.gradient)
    tape.jacobian = _of_own_rows_alone(tape.jacobian)
    tape.batch_jacobian = _of_own_rows_alone(tape.batch_jacobian)
    tape.stop_recording = _unrecorded(tape.stop_recording)
    tf.nn.compute_average_loss = _average_loss(tf.nn.compute_average_loss)
    tf.nn.scale_regularization_loss = _regularization_loss(tf.nn.scale_regularization_loss)


_install()
