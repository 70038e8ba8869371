"""In which dimension a tensor of a replica's graph has its rows, and what mixes several of them.

A value for each row is that of one device where it is made of that row alone. Where it is made of
other rows too, of pairs of them, of the one before, of a mean over all, each replica has made it of
its own rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from tfgpu.engine.dataflow import (
    CALLS,
    ELEMENTWISE,
    REDUCTIONS,
    Data,
    are_all_rows,
    data_of,
    has_rows,
    has_statistics,
    is_shuffle,
    made_of,
    pairs_rows,
    value_inputs,
)
from tfgpu.engine.shards import Rows

Axes: TypeAlias = Sequence[int | None]
"""In which dimension each input of an operation has rows; None where it has none, or who knows."""

PAIRS, STATISTICS, REVERSAL = "pairs", "statistics", "reversal"


def mixing(
    tensor: tf.Tensor, rows: Rows, data: Mapping[int, Data], *, counts: bool = True
) -> str | None:
    """By what something of a row is made of other rows too, as far as can be seen.

    Args:
        tensor: Of a graph, of rows.
        rows: Of the replica's shard.
        data: What it has of its batch, by identity; what that is made of does not count.
        counts: Whether the number of rows is a statistic of them.

    Returns:
        `PAIRS`, `STATISTICS`, `REVERSAL` or the type of another operation; None if there is none.
    """
    axes, waiting, seen = _RowAxes(rows, data), [tensor], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen or data_of(each, data) is not None or each.op.type in CALLS:
            continue
        seen.add(id(each))
        given = value_inputs(each.op)
        of_rows = [t for t in given if has_rows(t, rows)]
        if not of_rows:
            continue
        known = any(axes.of(t) is not None for t in of_rows)  # Not of ragged ones, say.
        if known and (pairs_rows(each, of_rows) or axes.differ(each)):
            return PAIRS
        if has_statistics(each, given, of_rows, data, counts=counts):
            return STATISTICS
        if axes.are_crossed_by(each.op):
            return REVERSAL if _reverses(each.op) else str(each.op.type)
        waiting.extend(of_rows)
    return None


class _RowAxes:
    """In which dimensions tensors have rows.

    Args:
        rows: Of the replica's shard.
        data: What it has of its batch, by identity.
    """

    def __init__(self, rows: Rows, data: Mapping[int, Data]):
        self._rows = rows
        self._data = data
        self._found: dict[int, int | None] = {}

    def of(self, tensor: tf.Tensor) -> int | None:
        """The dimension, counted from 0; None where there is none, or nobody can tell."""
        if id(tensor) not in self._found:
            self._found[id(tensor)] = None  # Of a loop.
            try:
                self._found[id(tensor)] = self._of(tensor)
            except RecursionError:
                return None
        return self._found[id(tensor)]

    def _of(self, tensor: tf.Tensor) -> int | None:
        known = data_of(tensor, self._data)
        if known is not None:
            return 0 if known.has_rows and known.complete else None
        operation, rank = tensor.op, tensor.shape.rank
        axes = self._of_inputs(operation)
        if rank is None or all(axis is None for axis in axes):
            return None
        if operation.type in ELEMENTWISE:
            aligned = set(_aligned(operation, axes, rank))
            return aligned.pop() if len(aligned) == 1 else None
        moved = _MOVED.get(operation.type)
        axis = None if moved is None else moved(operation, axes)
        return axis if axis is not None and 0 <= axis < rank else None

    def _of_inputs(self, operation: Any) -> list[int | None]:
        return [
            self.of(each)
            if each.dtype not in (tf.resource, tf.variant) and has_rows(each, self._rows)
            else None
            for each in operation.inputs
        ]

    def differ(self, tensor: tf.Tensor) -> bool:
        """Whether an operation brings each row together with each other one."""
        operation, rank = tensor.op, tensor.shape.rank
        if operation.type not in ELEMENTWISE or rank is None:
            return False
        return len(set(_aligned(operation, self._of_inputs(operation), rank))) > 1

    def are_crossed_by(self, operation: Any) -> bool:
        """Whether an operation takes several rows, or some of them."""
        crosses = _CROSSING.get(operation.type)
        if crosses is None:
            return False
        axes = self._of_inputs(operation)
        if all(axis is None for axis in axes) or not crosses(operation, axes):
            return False
        # Halves of what was put together of two for each row are whole again, say.
        return operation.type not in _TAKING_SOME or any(
            are_all_rows(each, self._rows, self._data, in_order=True, statistics=True)
            for each, axis in zip(operation.inputs, axes, strict=True)
            if axis is not None
        )


def _aligned(operation: Any, axes: Axes, rank: int) -> Iterator[int]:
    """The dimensions of what an operation gives that rows of its inputs are in."""
    for each, axis in zip(operation.inputs, axes, strict=True):
        if axis is not None and each.shape.rank is not None:
            yield axis + rank - each.shape.rank


_FOLDED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("Add", "AddV2"), np.add),
    "ConcatV2": lambda *given: np.concatenate(given[:-1], axis=int(given[-1])),
    "Pack": lambda *given: np.stack(given),
    "Range": np.arange,
    "Sub": np.subtract,
}


def _static(tensor: tf.Tensor) -> Any:
    """The value of a tensor that is made of constants, such as the order of axes; else None.

    TensorFlow tells most, but not of what `tf.nn.softmax` makes of ranks.
    """
    value = tf.get_static_value(tensor)
    if value is not None or tensor.op.type not in _FOLDED:
        return value
    given = [_static(each) for each in tensor.op.inputs]
    return None if any(each is None for each in given) else _FOLDED[tensor.op.type](*given)


def _number(tensor: tf.Tensor, rank: int) -> int | None:
    """An axis, where it is known, counted from the first."""
    static = _static(tensor)
    return None if static is None or static.size != 1 else int(static.reshape(-1)[0]) % rank


def _numbers(tensor: tf.Tensor, rank: int) -> set[int] | None:
    static = _static(tensor)
    return None if static is None else {int(axis) % max(rank, 1) for axis in static.reshape(-1)}


# ---- where an operation leaves rows ----------------------------------------------------------


def _same(operation: Any, axes: Axes) -> int | None:
    return next((axis for axis in axes if axis is not None), None)


def _if_first(operation: Any, axes: Axes) -> int | None:
    return 0 if axes[0] == 0 else None


def _transposed(operation: Any, axes: Axes) -> int | None:
    order = _static(operation.inputs[1])
    return None if order is None or axes[0] is None else list(order).index(axes[0])


def _reduced(operation: Any, axes: Axes) -> int | None:
    axis, rank = axes[0], operation.inputs[0].shape.rank
    over = None if rank is None else _numbers(operation.inputs[1], rank)
    if axis is None or over is None or axis in over:
        return None
    kept = operation.type not in ("ArgMax", "ArgMin") and operation.get_attr("keep_dims")
    return axis if kept else axis - sum(each < axis for each in over)


def _expanded(operation: Any, axes: Axes) -> int | None:
    axis, rank = axes[0], operation.inputs[0].shape.rank
    place = None if rank is None else _number(operation.inputs[1], rank + 1)
    return None if axis is None or place is None else axis + (place <= axis)


def _squeezed(operation: Any, axes: Axes) -> int | None:
    axis, rank = axes[0], operation.inputs[0].shape.rank
    gone = [each % rank for each in operation.get_attr("squeeze_dims")] if rank else []
    if axis is None or (axis and not gone):
        return None
    return axis - sum(each < axis for each in gone)


def _reshaped(operation: Any, axes: Axes) -> int | None:
    return 0 if axes[0] == 0 and operation.outputs[0].shape[0] is None else None


def _packed(operation: Any, axes: Axes) -> int | None:
    axis, rank = _same(operation, axes), operation.outputs[0].shape.rank
    if axis is None or rank is None:
        return None
    return axis + (operation.get_attr("axis") % rank <= axis)


def _unpacked(operation: Any, axes: Axes) -> int | None:
    axis, rank = axes[0], operation.inputs[0].shape.rank
    place = operation.get_attr("axis") % rank if rank else None
    return None if axis is None or place in (None, axis) else axis - (place < axis)


def _einsum_labels(operation: Any, axes: Axes) -> tuple[set[str], str]:
    """The labels that rows have in an equation, and those of what it gives."""
    operands, _, result = operation.get_attr("equation").decode().partition("->")
    found = set()
    for label, axis in zip(operands.split(","), axes, strict=True):
        if axis is not None:
            found.add("" if "." in label or axis >= len(label) else label[axis])
    return found, result


def _einsum(operation: Any, axes: Axes) -> int | None:
    labels, result = _einsum_labels(operation, axes)
    label = labels.pop() if len(labels) == 1 else ""
    return result.index(label) if label and label in result else None


def _gathered(operation: Any, axes: Axes) -> int | None:
    values, indices = operation.inputs[:2]
    batch, rank = operation.get_attr("batch_dims"), values.shape.rank
    place = None if rank is None else _number(operation.inputs[2], rank)
    if place is None or indices.shape.rank is None:
        return None
    axis = axes[0]
    if axis is None:  # By indices that rows have.
        return axes[1] if axes[1] is None or axes[1] < batch else axes[1] + place - batch
    if axis <= place or axis < batch:
        return axis
    return axis - 1 + indices.shape.rank - batch


def _taken(operation: Any, axes: Axes) -> int | None:
    """By the indices that rows have, of a variable or of anything."""
    return axes[1]


def _sliced(operation: Any, axes: Axes) -> int | None:
    found = _slices(operation, axes)
    return None if found is None else found[0]


def _slices(operation: Any, axes: Axes) -> tuple[int | None, bool] | None:
    """Where a slice leaves rows, and whether it leaves all of them in their order."""
    axis, rank = axes[0], operation.inputs[0].shape.rank
    entries = operation.inputs[1].shape[0]
    if axis is None or rank is None or entries is None:
        return None

    def marked(name: str, entry: int) -> bool:
        return bool(operation.get_attr(name) >> entry & 1)

    new = sum(marked("new_axis_mask", entry) for entry in range(entries))
    steps = _static(operation.inputs[3])
    place, left = 0, 0  # In what is given, and in what is left.
    for entry in range(entries):
        if marked("ellipsis_mask", entry):
            wide = rank - (entries - new - 1)
            if place <= axis < place + wide:
                return left + axis - place, True
            place, left = place + wide, left + wide
        elif marked("new_axis_mask", entry):
            left += 1
        else:
            shrinks = marked("shrink_axis_mask", entry)
            if place == axis:
                whole = marked("begin_mask", entry) and marked("end_mask", entry)
                whole = whole and steps is not None and int(steps[entry]) == 1
                return (None if shrinks else left), whole and not shrinks
            place, left = place + 1, left + (not shrinks)
    return left + axis - place, True


_MOVED: dict[str, Callable[[Any, Axes], int | None]] = {
    **dict.fromkeys(
        (
            *("BroadcastTo", "ConcatV2", "Cumprod", "Cumsum", "CumulativeLogsumexp", "LogSoftmax"),
            *(
                "MirrorPad",
                "OneHot",
                "Pad",
                "PadV2",
                "RandomShuffle",
                "ReverseSequence",
                "ReverseV2",
                "Roll",
            ),
            *("Slice", "Softmax", "Split", "SplitV", "Tile", "TopKV2"),
        ),
        _same,
    ),
    **dict.fromkeys(
        (
            *("AvgPool", "AvgPool3D", "BatchMatMulV2", "Conv2D", "Conv3D", "MatMul"),
            *("DepthwiseConv2dNative", "MaxPool", "MaxPool3D"),
        ),
        _if_first,
    ),
    **dict.fromkeys((*REDUCTIONS, "ArgMax", "ArgMin"), _reduced),
    "Einsum": _einsum,
    "ExpandDims": _expanded,
    "GatherNd": _taken,
    "GatherV2": _gathered,
    "Pack": _packed,
    "Reshape": _reshaped,
    "ResourceGather": _taken,
    "SoftmaxCrossEntropyWithLogits": _if_first,
    "SparseSoftmaxCrossEntropyWithLogits": _if_first,
    "Squeeze": _squeezed,
    "StridedSlice": _sliced,
    "Transpose": _transposed,
    "Unpack": _unpacked,
}


# ---- what crosses rows -----------------------------------------------------------------------


def _along(which: int) -> Callable[[Any, Axes], bool]:
    """Whether the axes that an operation gets as an input hold that of the rows."""

    def crosses(operation: Any, axes: Axes) -> bool:
        axis, rank = axes[0], operation.inputs[0].shape.rank
        over = None if rank is None else _numbers(operation.inputs[which], rank)
        return axis is not None and over is not None and axis in over

    return crosses


def _along_last(operation: Any, axes: Axes) -> bool:
    rank = operation.inputs[0].shape.rank
    return axes[0] is not None and rank is not None and axes[0] == rank - 1


def _some_are_sliced(operation: Any, axes: Axes) -> bool:
    found = _slices(operation, axes)
    return found is not None and not found[1]


def _reverses(operation: Any) -> bool:
    """Whether an operation gives all rows in the opposite order."""
    if operation.type != "StridedSlice":
        return bool(operation.type == "ReverseV2")
    steps = _static(operation.inputs[3])
    ends = operation.get_attr("begin_mask") & operation.get_attr("end_mask") & 1
    return bool(steps is not None and steps[0] == -1 and ends)


def _some_are_cut(operation: Any, axes: Axes) -> bool:
    if axes[0] is None:
        return False
    begin, size = (tf.get_static_value(each, partial=True) for each in operation.inputs[1:3])
    whole = begin is not None and begin[axes[0]] == 0 and size is not None and size[axes[0]] == -1
    return not whole


def _some_are_gathered(operation: Any, axes: Axes) -> bool:
    values = operation.inputs[0]
    if axes[0] is None or values.shape.rank is None or operation.get_attr("batch_dims"):
        return False
    place = _number(operation.inputs[2], values.shape.rank)
    return axes[0] == place and not is_shuffle(operation.inputs[1])


def _others_are_taken(operation: Any, axes: Axes) -> bool:
    """Whether indices of several numbers take other rows than the one that they stand at."""
    if axes[0] != 0:
        return False
    near = made_of(operation.inputs[1], stops=lambda each: each.op.type == "Range")
    return all(each.op.type != "Range" for each in near)


def _is_longer(operation: Any, axes: Axes) -> bool:
    """Whether something else is put beside rows."""
    *parts, axis = operation.inputs
    own = _same(operation, axes)
    if own is None or parts[0].shape.rank is None:
        return False
    return own == _number(axis, parts[0].shape.rank) and any(a is None for a in axes[: len(parts)])


def _is_split(operation: Any, axes: Axes) -> bool:
    which, of = (0, 1) if operation.type == "Split" else (2, 0)
    rank = operation.outputs[0].shape.rank
    return axes[of] is not None and rank and axes[of] == _number(operation.inputs[which], rank)


_CROSSING: dict[str, Callable[[Any, Axes], bool]] = {
    "ConcatV2": _is_longer,
    **dict.fromkeys(("Cumprod", "Cumsum", "CumulativeLogsumexp", "ReverseV2"), _along(1)),
    "DynamicPartition": lambda _, axes: axes[0] == 0,
    "Einsum": lambda op, axes: len(_einsum_labels(op, axes)[0]) > 1,
    "GatherNd": _others_are_taken,
    "GatherV2": _some_are_gathered,
    **dict.fromkeys(("LogSoftmax", "Softmax", "TopKV2"), _along_last),
    "Roll": _along(2),
    "Slice": _some_are_cut,
    **dict.fromkeys(("Split", "SplitV"), _is_split),
    "StridedSlice": _some_are_sliced,
    "Unpack": lambda op, axes: axes[0] == op.get_attr("axis"),
}
_TAKING_SOME = {"GatherV2", "Slice", "Split", "SplitV", "StridedSlice"}
