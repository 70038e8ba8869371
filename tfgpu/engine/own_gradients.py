"""Gradients in steps of one's own: those of the global batch, from the moment they are taken.

Such a step is code for one device, which does with gradients as it likes: clips them, logs their
norm, perturbs the weights along them, assigns variables by them. That is right where
`tape.gradient` gives every replica the gradient of the global batch. A loss counts there as it
does elsewhere:

- a number: by rows, like any mean over rows, a penalty of the weights, and all that
  `compute_loss` and Keras' losses give;
- a value a row: it adds up, as TensorFlow adds up the gradients of its elements;
- a sum over rows that the step itself computes: it adds up too, with a warning.

`tf.nn.compute_average_loss` and `tf.nn.scale_regularization_loss`, which are for parts that add
up, give what they give on one device.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine import losses
from tfgpu.engine.all_reduce import sum_over_replicas
from tfgpu.engine.replica_step import dense, from_exchange, to_exchange
from tfgpu.engine.shards import Rows

_DIVISIONS = {"RealDiv", "DivNoNan"}
# What adds up the rows that it is given.
_SUMS = {"BatchMatMulV2", "Einsum", "L2Loss", "MatMul", "Sum"}
# Operations whose graph is another.
_CALLS = {
    *("Case", "If", "PartitionedCall", "StatefulPartitionedCall", "StatelessCase"),
    *("StatelessIf", "StatelessWhile", "While"),
}
# What is the same on each replica, whatever it is made of.
_OF_ALL = {"Const", "ReadVariableOp", "ResourceGather", "VarHandleOp"}


def is_nested(tape: Any) -> bool:
    """Whether another tape records what is done with a gradient that `tape` gives."""
    return any(each is not tape for each in losses.current.tapes)


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
    gradients, rows = dense(gradients), losses.current.rows
    known: set[int] = set()
    origins = [_origin(gradient, known) for gradient in gradients]
    if all(origin == "whole" for origin in origins):
        return gradients

    def part(gradient: Any, origin: str) -> Any:
        if gradient is None or origin == "part" or rows is None:
            return gradient
        return gradient * tf.cast(rows.share, gradient.dtype)

    shares = [part(g, origin) for g, origin in zip(gradients, origins, strict=True)]
    sums = combined(context, _of_own_rows(shares), variables)
    if "own" in origins:
        _say_of_own(optimizer, context.num_replicas_in_sync)
    return sums


def _say_of_own(optimizer: Any, replicas: int) -> None:
    if losses.current.whole or losses.current.parts:
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
    whole, parts = losses.current.whole, losses.current.parts
    waiting, found = [gradient], "whole"
    seen: set[int] = set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen or id(tensor) in whole or id(tensor) in known:
            continue
        seen.add(id(tensor))
        # What a function gives that has taken the gradient is another tensor than that.
        if id(tensor) in parts or (parts and hasattr(tensor, "op") and tensor.op.type in _CALLS):
            return "part"
        if not hasattr(tensor, "op"):
            return "own"  # Computed eagerly: nobody knows of what.
        if tensor.op.type in _OF_ALL:
            continue
        inputs = [each for each in tensor.op.inputs if each.dtype not in (tf.resource, tf.variant)]
        if not inputs or "Random" in tensor.op.type:
            found = "own"  # Of the data, or random numbers.
        waiting.extend(inputs)
    if found == "whole":
        known |= seen
    return found


def _of_own_rows(gradients: Sequence[Any]) -> list[Any]:
    """Gradients that are 0 on a replica without rows of its own, whatever the loss was."""
    rows = losses.current.rows
    if rows is None or not rows.may_be_absent:
        return list(gradients)
    return [g if g is None else tf.where(rows.present, g, tf.zeros_like(g)) for g in gradients]


# ---- how a loss counts ------------------------------------------------------------------------


def _weight(target: Any, rows: Rows, *, speaking: bool) -> tf.Tensor:
    """By what the gradient of a loss is multiplied, such that the replicas' add up; float64.

    Args:
        target: The loss.
        rows: Of this replica's shard.
        speaking: Whether to warn of what may be meant otherwise.
    """
    present = tf.cast(rows.present, tf.float64)
    if target.shape.rank != 0 and rows.are_counted_by(target):
        return present
    if not hasattr(target, "op"):
        if speaking and id(target) not in losses.current.by_rows:
            _say_of_eager()
        return rows.share
    kinds = set(_kinds(target, rows))
    if speaking:
        _say_of(kinds, rows)
    return present if "sum" in kinds and "mean" not in kinds else rows.share


def _say_of(kinds: Set[str], rows: Rows) -> None:
    """Warns of losses that are not what they are on one device, or may be meant otherwise."""
    several = f", and {rows.replicas} replicas share the batch"
    if {"sum", "mean"} <= kinds:
        said = (
            f"minimises a mean over the rows of its tensors and a sum over them{several}: "
            "both count by rows, and the sum is too small. Make the sum a mean."
        )
    elif "sum" in kinds:
        said = (
            f"minimises a sum over the rows of its tensors{several}: the gradients of the "
            "replicas' sums are added up, with all that is added to them, such as a penalty of the "
            "weights, once a replica. Numbers that the step returns are averaged by rows, sums "
            "too. A mean, or self.compute_loss, has none of that."
        )
    elif "unseen" in kinds:
        said = (
            f"minimises what a tf.function, a branch or a loop over tensors gives{several}: it "
            "counts by rows, as is right for a mean over rows, and not for a sum."
        )
    elif "ratio" in kinds:
        said = (
            f"divides a loss by what depends on the rows, such as the sum of a mask{several}: it "
            "counts by rows, which is right where each replica's divisor is in proportion to its "
            "rows. A Keras loss with sample_weight and reduction='mean_with_sample_weight' is "
            "exact."
        )
    else:
        return
    warnings.warn(f"A step {said}", stacklevel=2)


def _say_of_eager() -> None:
    warnings.warn(
        "With run_eagerly=True a step minimises what is not the result of compute_loss or of a "
        "Keras loss alone, and several replicas share the batch: it counts by rows, as is right "
        "for a mean over rows and for a penalty of the weights, and not for a sum over rows.",
        stacklevel=2,
    )


def _kinds(loss: Any, rows: Rows) -> Iterator[str]:
    """Of what a loss is made: "mean", "sum", "ratio", "unseen"; nothing for what has no rows.

    From the loss back to what has rows: the operation that leaves them is what counts.
    """
    waiting, seen = [loss], set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if id(tensor) in losses.current.by_rows:
            yield "mean"
            continue
        if not losses.depends_on_data(tensor):
            continue
        kind, inputs = tensor.op.type, list(tensor.op.inputs)
        divisors = inputs[1:] if kind in _DIVISIONS else []
        if kind == "Mul":
            divisors = [divisor for each in inputs for divisor in _divisors(each)]
            if not divisors and any(_is_count(each) for each in inputs):
                yield "sum"
                continue
        if any(_is_rows(each, rows) or _is_count(each) for each in divisors):
            yield "mean"
        elif any(losses.depends_on_data(each) for each in divisors):
            yield "ratio"
        elif kind in _CALLS and any(_carries_rows(each, rows) for each in inputs):
            yield "unseen"
        elif any(_carries_rows(each, rows) for each in inputs) and not _carries_rows(tensor, rows):
            # `tf.tensordot` gives its scalar by a product and a new shape for it.
            last = inputs[0].op.type if kind == "Reshape" else kind
            yield "sum" if last in _SUMS else "mean"
        else:
            waiting.extend(inputs)


def _divisors(factor: Any) -> list[Any]:
    """What a factor divides by."""
    if factor.op.type in _DIVISIONS:
        return [factor.op.inputs[1]]
    return list(factor.op.inputs) if factor.op.type in ("Inv", "Reciprocal") else []


def _is_count(tensor: Any) -> bool:
    """Whether a tensor depends on how many rows there are, and on nothing else of them."""
    depends = losses.depends_on_data
    return bool(tensor.shape.rank == 0 and depends(tensor) and not depends(tensor, counting=False))


def _is_rows(tensor: Any, rows: Rows) -> bool:
    """Whether a constant is the number of rows at hand, where that is static."""
    real, value = tf.get_static_value(rows.real), tf.get_static_value(tensor)
    return real is not None and value is not None and value.ndim == 0 and value == real


def _carries_rows(tensor: Any, rows: Rows) -> bool:
    """Whether a dimension of a tensor grows with the rows, as far as can be told."""
    if rows.are_counted_by(tensor):
        return True
    return bool(tensor.shape.rank and None in tensor.shape.as_list())


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
        current, flat = losses.current, tf.nest.flatten(sources)
        rows, context = current.rows, current.own_context
        if context is None or rows is None or current.updating or current.differentiating:
            return gradient(self, target, sources, output_gradients, unconnected_gradients)
        variables = [each for each in flat if _is_variable(each)]
        if variables and is_nested(self):
            warnings.warn(
                "A step takes the gradient of variables while another tape records: replicas "
                "cannot exchange it there, and each goes on with that of its own rows.",
                stacklevel=2,
            )
            found = gradient(self, target, sources, output_gradients, unconnected_gradients)
            known = {id(each): each for each in tf.nest.flatten(found)}
            current.by_rows = {**current.by_rows, **known}
            return found
        with current.having(differentiating=True):
            given = _weighted(target, output_gradients, rows, speaking=bool(variables))
            found = gradient(self, target, sources, given, unconnected_gradients)
        if not variables:
            return found  # Of inputs, say: those of the rows at hand.
        of_flat = tf.nest.flatten(found)
        at = [place for place, each in enumerate(flat) if _is_variable(each)]
        parts = _of_own_rows(dense([of_flat[place] for place in at]))
        try:
            whole = combined(context, parts, variables)
            current.whole = {**current.whole, **{id(each): each for each in whole}}
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
            current.parts = {**current.parts, **{id(part): part for part in parts}}
        for place, each in zip(at, whole, strict=True):
            of_flat[place] = each
        return tf.nest.pack_sequence_as(sources, of_flat)

    return of_all_rows


def _is_mean(up: Any, rows: Rows) -> bool:
    """Whether a gradient that a step has made itself is divided by the rows at hand."""
    while hasattr(up, "op") and up.op.type in ("Identity", "Mul", "Neg", *_DIVISIONS):
        divisors = [d for each in (up, *up.op.inputs) for d in _divisors(each)]
        if any(_is_rows(each, rows) or _is_count(each) for each in divisors):
            return True
        up = next((each for each in up.op.inputs if each.shape.rank == up.shape.rank), None)
    return False


def _is_variable(source: Any) -> bool:
    return isinstance(source, keras.Variable | tf.Variable)


def _weighted(target: Any, output_gradients: Any, rows: Rows, *, speaking: bool) -> list[Any]:
    """The gradients of what is minimised by the losses, such that the replicas' parts add up."""
    weigh = functools.partial(_weight, rows=rows, speaking=speaking)
    is_mean = functools.partial(_is_mean, rows=rows)
    targets = tf.nest.flatten(target)
    given = [None] * len(targets) if output_gradients is None else tf.nest.flatten(output_gradients)

    def weighted(loss: Any, up: Any) -> Any:
        if not isinstance(loss, tf.Tensor) or not loss.dtype.is_floating:
            return up
        if up is None:
            return tf.cast(weigh(loss), loss.dtype) * tf.ones_like(loss)
        up = tf.convert_to_tensor(up)
        return up * tf.cast(rows.share if is_mean(up) else weigh(loss), up.dtype)

    return [weighted(loss, up) for loss, up in zip(targets, given, strict=True)]


def _of_own_rows_alone(jacobian: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `jacobian` and `batch_jacobian`, which take gradients in a loop."""

    @tf.autograph.experimental.do_not_convert
    @functools.wraps(jacobian)
    def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        with losses.current.having(differentiating=True):
            return jacobian(self, *args, **kwargs)

    return alone


def _entered(enter: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(enter)
    def entered(self: Any) -> Any:
        losses.current.tapes = (*losses.current.tapes, self)
        return enter(self)

    return entered


def _left(leave: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(leave)
    def left(self: Any, *error: Any) -> Any:
        losses.current.tapes = tuple(each for each in losses.current.tapes if each is not self)
        return leave(self, *error)

    return left


def _average_loss(average: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `tf.nn.compute_average_loss`."""

    @functools.wraps(average)
    def of_own_rows(
        per_example_loss: Any, sample_weight: Any = None, global_batch_size: Any = None
    ) -> Any:
        part = average(per_example_loss, sample_weight, global_batch_size)
        rows = losses.current.rows
        if losses.current.own_context is None or rows is None:
            return part
        # Without a size TensorFlow takes the rows at hand, times the replicas.
        times = rows.replicas if global_batch_size is None else rows.times_share
        return losses.counts_by_rows(part * tf.cast(times, part.dtype))

    return of_own_rows


def _regularization_loss(scale: Callable[..., Any]) -> Callable[..., Any]:
    """Stands in for `tf.nn.scale_regularization_loss`."""

    @functools.wraps(scale)
    def whole(regularization_loss: Any) -> Any:
        part, rows = scale(regularization_loss), losses.current.rows
        if losses.current.own_context is None or rows is None:
            return part
        return part * tf.cast(rows.replicas, part.dtype)

    return whole


def _install() -> None:
    """Has functions of TensorFlow mind `losses.current`; outside of steps they stay as they are."""
    tape = tf.GradientTape
    tape.gradient = _gradient_of_all_rows(tape.gradient)
    tape.jacobian = _of_own_rows_alone(tape.jacobian)
    tape.batch_jacobian = _of_own_rows_alone(tape.batch_jacobian)
    tape.__enter__, tape.__exit__ = _entered(tape.__enter__), _left(tape.__exit__)
    tf.nn.compute_average_loss = _average_loss(tf.nn.compute_average_loss)
    tf.nn.scale_regularization_loss = _regularization_loss(tf.nn.scale_regularization_loss)


_install()
