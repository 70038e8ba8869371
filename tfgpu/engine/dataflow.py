"""How a tensor of a replica's graph comes of its rows: whether at all, and by what operations.

A replica's code is written for one device, and nothing but its graph tells whether a number in it
is a mean over rows, a sum, or a count of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

if TYPE_CHECKING:
    from tfgpu.engine.shards import Rows


class Data(NamedTuple):
    """A tensor that a replica has of its rows.

    Attributes:
        tensor: The tensor.
        has_rows: Whether its first dimension is of rows, or of values of them.
        in_order: Whether there is as much of each row, in the order of the rows.
        complete: Whether there is as much of each row.
        blocks: How many times all rows stand in it, each time in their order; 0 if nobody knows.
    """

    tensor: tf.Tensor
    has_rows: bool
    in_order: bool = True
    complete: bool = True
    blocks: int = 1


DIVISIONS = {"DivNoNan", "RealDiv"}
# What adds up the rows that it is given.
SUMS = {"BatchMatMulV2", "Einsum", "L2Loss", "MatMul", "Sum"}
# Operations whose graph is another.
CALLS = {
    *("Case", "If", "PartitionedCall", "StatefulPartitionedCall", "StatelessCase"),
    *("StatelessIf", "StatelessWhile", "While"),
}
# Reductions, whose second input says over which axes.
REDUCTIONS = {"All", "Any", "EuclideanNorm", "Max", "Mean", "Min", "Prod", "Sum"}
# Operations whose first dimension is another than that of what they are given.
_REARRANGING = {"ExpandDims", "Pack", "Reshape", "Tile", "Transpose"}


def is_reduced_over_rows(values: Any, real: int) -> bool:
    """Whether nothing of the data reaches a tensor but by a reduction over the rows.

    Tells values of classes from those of rows where they happen to be as many; eagerly nobody can.
    """
    if not hasattr(values, "op"):
        return False
    waiting, seen, reduced = [values], set(), False
    while waiting:
        op = waiting.pop().op
        if op.name in seen:
            continue
        seen.add(op.name)
        over_first = op.type in REDUCTIONS and _takes_in_first(*op.inputs)
        if over_first or (op.type == "MatMul" and op.get_attr("transpose_a")):
            if _leads_with_rows(op.inputs[0], real):
                reduced = True
                continue
        elif op.type in ("Const", "ReadVariableOp", "ResourceGather", "Shape"):
            continue
        elif all(source.dtype in (tf.resource, tf.variant) for source in op.inputs):
            return False  # A placeholder, or what an iterator gives.
        waiting.extend(op.inputs)
    return reduced


def _leads_with_rows(tensor: Any, real: int) -> bool:
    """Whether the first dimension of a tensor is that of rows, and not of what was put together."""
    length = tensor.shape[0] if tensor.shape.rank else 0
    if length is not None and (not length or length % real):
        return False
    while tensor is not None:
        if tensor.op.type in _REARRANGING:
            return False
        like = (each for each in tensor.op.inputs if each.shape.rank == tensor.shape.rank)
        tensor = next((each for each in like if each.shape[0] == length), None)
    return True


def _takes_in_first(values: Any, axes: Any) -> bool:
    """Whether a reduction over these axes, where they are known, takes in the first dimension."""
    static, rank = tf.get_static_value(axes), values.shape.rank
    if static is None or not rank:
        return False
    return any(int(axis) % rank == 0 for axis in static.reshape(-1))


def value_inputs(operation: Any) -> list[Any]:
    """The inputs of an operation that are values, and no handles of variables."""
    return [each for each in operation.inputs if each.dtype not in (tf.resource, tf.variant)]


def under(tensor: Any, *kinds: str) -> Any:
    """What a tensor was before operations of these kinds, of their first input each."""
    while tensor.op.type in kinds:
        tensor = tensor.op.inputs[0]
    return tensor


def reads_one_of(tensor: tf.Tensor, copies: Sequence[tf.Variable]) -> bool:
    """Whether a tensor is the value of one of these variables, as it was read."""
    graph: Any = tensor.graph
    read = tensor.op.type == "ReadVariableOp"
    return read and any(tensor.op.inputs[0] is graph.capture(copy.handle) for copy in copies)


def made_of(tensor: Any, stops: Callable[[Any], bool]) -> Iterator[Any]:
    """A tensor and all that it is made of, each once; not what is behind a tensor that stops."""
    waiting, seen = [tensor], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if not stops(each):
            waiting.extend(each.op.inputs)


def is_made_of(tensor: tf.Tensor, variable: tf.Variable) -> bool:
    """Whether a tensor is made of the value of a variable."""
    return any(reads_one_of(each, [variable]) for each in made_of(tensor, stops=lambda _: False))


def depends_on_data(tensor: tf.Tensor, *, counting: bool = True) -> bool:
    """Whether a tensor depends on more than variables and constants: on rows, or their number.

    Args:
        tensor: Of a graph; of any other it is not known, and so it does.
        counting: Whether the number of rows counts, too.
    """
    if not hasattr(tensor, "op"):
        return True
    ends = ["Const", "ReadVariableOp", "ResourceGather", *([] if counting else ["Shape", "Size"])]

    def is_data(each: Any) -> bool:
        # A placeholder, or what an iterator gives; and no constant made outside of any graph.
        given = each.op.type not in ends and not value_inputs(each.op)
        return given and not hasattr(outside(each), "numpy")

    return any(map(is_data, made_of(tensor, stops=lambda each: each.op.type in ends)))


def divided_by(factor: Any) -> list[Any]:
    """What a factor divides by."""
    if factor.op.type in DIVISIONS:
        return [factor.op.inputs[1]]
    return list(factor.op.inputs) if factor.op.type in ("Inv", "Reciprocal") else []


def is_count(tensor: Any) -> bool:
    """Whether a tensor depends on how many rows there are, and on nothing else of them."""
    depends = depends_on_data
    return bool(tensor.shape.rank == 0 and depends(tensor) and not depends(tensor, counting=False))


def is_rows(tensor: Any, rows: Rows) -> bool:
    """Whether a constant is the number of rows at hand, where that is static."""
    real, value = tf.get_static_value(rows.real), tf.get_static_value(tensor)
    return real is not None and value is not None and value.ndim == 0 and value == real


def carries_rows(tensor: Any, rows: Rows) -> bool:
    """Whether a dimension of a tensor grows with the rows, as far as can be told."""
    if rows.are_counted_by(tensor):
        return True
    return bool(tensor.shape.rank and None in tensor.shape.as_list())


# ---- rows that are all of a replica's, and nothing else --------------------------------------

# Operations that do to each row what they do to the others, and leave rows in their order.
ELEMENTWISE = {
    *("Abs", "Acos", "Add", "AddN", "AddV2", "Asin", "Atan", "Atan2", "BiasAdd", "Bitcast"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Invert", "LeftShift", "RightShift"),
    *("CheckNumerics", "ClipByValue", "ComplexAbs", "Cos", "Cosh", "DivNoNan", "Elu"),
    *("EnsureShape", "Sinh", "Softplus", "Softsign", "SquaredDifference", "StopGradient", "Sub"),
    *("Equal", "Erf", "Erfc", "Exp", "Expm1", "Floor", "FloorDiv", "FloorMod", "Greater"),
    *("GreaterEqual", "Identity", "Inv", "IsFinite", "IsInf", "IsNan", "LeakyRelu", "Less"),
    *("LessEqual", "Lgamma", "Log", "Log1p", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum"),
    *("Minimum", "Mul", "MulNoNan", "Neg", "NotEqual", "OnesLike", "PlaceholderWithDefault", "Pow"),
    *("PreventGradient", "RealDiv", "Reciprocal", "Relu", "Relu6", "Rint", "Round", "Rsqrt"),
    *("Select", "SelectV2", "Selu", "Sigmoid", "Sign", "Sin", "Sqrt", "Square"),
    *("Tan", "Tanh", "Xdivy", "Xlogy", "ZerosLike"),
}
_ROW_BY_ROW = ELEMENTWISE | {
    *("SoftmaxCrossEntropyWithLogits", "SparseSoftmaxCrossEntropyWithLogits"),
    # Of these only where their first dimension is that of rows.
    *("AvgPool", "AvgPool3D", "BroadcastTo", "Conv2D", "Conv3D", "DepthwiseConv2dNative"),
    *("MatMul", "MaxPool", "MaxPool3D", "OneHot", "RandomShuffle", "ResourceGather", "Squeeze"),
}
# The same, of inputs that say of what shape something is, or where in it.
_SHAPED = {
    *("BroadcastTo", "ConcatV2", "ExpandDims", "Fill", "GatherV2", "OneHot", "Pad", "PadV2"),
    *("Reshape", "Slice", "Split", "SplitV", "StridedSlice", "Tile", "Transpose", "ArgMax"),
    *("ArgMin", "TopKV2", *REDUCTIONS),
}
_CHOOSING = {"DynamicPartition", "Unique", "UniqueV2", "Where"}


def draws(operation: Any) -> bool:
    """Whether an operation gives what is another thing each time: random numbers, or Python's."""
    python = operation.type in ("EagerPyFunc", "PyFunc", "PyFuncStateless", "RngReadAndSkip")
    return python or has_seeds(operation.node_def)


def has_seeds(node: Any) -> bool:
    """Whether a node of a graph draws random numbers, of which each operation has a sequence.

    Those with a state have their seeds as attributes; others take them as inputs.
    """
    return "seed" in node.attr and "seed2" in node.attr


def is_shuffle(indices: Any) -> bool:
    """Whether indices are random, and of nothing else: they put rows in another order.

    Rows that a replica shuffles stay its own: there is no order that is that of one device.
    """
    if depends_on_data(indices, counting=False):
        return False
    near = made_of(indices, stops=lambda each: each.op.type == "Shape")
    return any(draws(each.op) or "StatelessRandom" in each.op.type for each in near)


def _is_made_for_rows(tensor: Any) -> bool:
    """Whether there is the same for each row, or random numbers that are a replica's own."""
    kind = tensor.op.type
    made = draws(tensor.op) or "StatelessRandom" in kind
    made = made or (kind == "Fill" and not depends_on_data(tensor.op.inputs[1]))
    rank = tensor.shape.rank  # Of pairs of rows there are two dimensions that nobody knows.
    return bool(made and rank and tensor.shape[0] is None and None not in tensor.shape[1:])


def has_rows(tensor: Any, rows: Rows) -> bool:
    """Whether a tensor is made of data and a dimension of it grows with the rows."""
    if not carries_rows(tensor, rows):
        return False
    return tensor.shape.rank is None or None in tensor.shape or depends_on_data(tensor)


def are_all_rows(
    tensor: Any,
    rows: Rows,
    data: Mapping[int, Data],
    *,
    in_order: bool = False,
    missing: bool = False,
    statistics: bool = False,
) -> bool:
    """Whether a tensor has in its first dimension what is made of each row, and of no other thing.

    Args:
        tensor: Of a graph; `has_rows` is true of it.
        rows: Of the replica's shard.
        data: What it has of its batch, by identity.
        in_order: Whether it has to be one for each row, in their order; else something of each may
            stand in any place.
        missing: Whether rows may be missing, as under a mask of them.
        statistics: Whether they may have been normalized, say by what is made of all of them.
    """
    waiting, seen = [tensor], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if (known := data_of(each, data)) is not None:
            fits = (known.in_order or not in_order) and (known.complete or missing)
            if not (known.has_rows and fits):
                return False
            continue
        if _is_made_for_rows(each):
            continue
        if each.shape.rank is None or each.shape[0] is not None and not rows.are_counted_by(each):
            return False
        given = value_inputs(each.op)
        given = given[:1] if each.op.type == "GatherV2" and is_shuffle(given[1]) else given
        of_rows = [t for t in given if has_rows(t, rows)]
        # Without any it is something else, such as what a slice leaves of a queue.
        if not of_rows or not _keeps_rows(each, of_rows, in_order=in_order, missing=missing):
            return False
        if not statistics and has_statistics(each, given, of_rows, data):
            return False
        waiting.extend(of_rows)
    return True


def pairs_rows(made: Any, of_rows: list[Any]) -> bool:
    """Whether an operation makes something of each pair of rows."""
    if made.op.type == "MatMul" and any(made.op.inputs[1] is each for each in of_rows):
        return True
    unknown = [tuple(t.shape or ()).count(None) for t in (made, *of_rows)]
    return len(of_rows) > 1 and unknown[0] > max(unknown[1:])


def has_statistics(
    made: Any,
    given: list[Any],
    of_rows: list[Any],
    data: Mapping[int, Data],
    *,
    counts: bool = True,
) -> bool:
    """Whether numbers of all rows, such as a mean, are made one with each row.

    Args:
        made: What an operation gives.
        given: What it is given, as values.
        of_rows: Those of these that have rows.
        data: Of the batch, by identity, of which a number is the same for all replicas.
        counts: Whether whole numbers, such as counts and lengths, are statistics, too.
    """
    for each in given:
        if any(each is row for row in of_rows) or not (counts or each.dtype.is_floating):
            continue
        known = data_of(each, data)
        if known is not None and not known.has_rows:
            continue
        is_shape = made.op.type in _SHAPED and each.dtype.is_integer
        if depends_on_data(each, counting=counts and not is_shape):
            return True
    return False


def blocks_of(tensor: Any, rows: Rows, data: Mapping[int, Data]) -> int:
    """How many times all rows stand in a tensor, one time after the other; 0 if nobody knows.

    Two views of each row that were put together, one below the other, are two.

    Args:
        tensor: Of a graph; `has_rows` is true of it.
        rows: Of the replica's shard.
        data: What it has of its batch, by identity.
    """
    found = _block_counts(tensor, rows, data)
    return found.pop() if len(found) == 1 else 0


def _block_counts(tensor: Any, rows: Rows, data: Mapping[int, Data]) -> set[int]:
    """The same of all that a tensor is made of; what is the same for each row has any."""
    known = data_of(tensor, data)
    if known is not None:
        return {known.blocks if known.has_rows and known.complete else 0}
    if _is_made_for_rows(tensor):
        return set()
    if not rows.are_counted_by(tensor):
        return {0}
    given = value_inputs(tensor.op)
    of_rows = [t for t in given if has_rows(t, rows)]
    counts = [_block_counts(t, rows, data) for t in of_rows]
    if tensor.op.type == "ConcatV2" and _is_first(given[-1], given[0].shape.rank or 1):
        together = len(of_rows) == len(given) - 1 and all(each <= {1} for each in counts)
        return {len(counts) if together else 0}
    kept = bool(of_rows) and _keeps_rows(tensor, of_rows, in_order=True, missing=False)
    if not kept or has_statistics(tensor, given, of_rows, data):
        return {0}
    return set().union(*counts)


def chooses_rows(made: Any, data: Mapping[int, Data]) -> bool:
    """Whether some rows have been chosen for a tensor, as by a mask of them."""
    near = itertools.islice(made_of(made, stops=lambda t: data_of(t, data) is not None), 200)
    return any(each.op.type in _CHOOSING for each in near)


def outside(tensor: Any) -> Any:
    """What a placeholder of a graph stands for in the graph around it; None for anything else."""
    captures = getattr(tensor.graph, "captures", ()) if tensor.op.type == "Placeholder" else ()
    return next((outer for outer, inner in captures if inner is tensor), None)


def data_of(tensor: Any, data: Mapping[int, Data]) -> Data | None:
    """What is known of a tensor in `data`, or of what it stands for in a graph around its own."""
    while tensor is not None and hasattr(tensor, "op"):
        if id(tensor) in data:
            return data[id(tensor)]
        around = outside(tensor)
        if around is None and tensor.op.type == "Placeholder" and tensor.shape.rank:
            return Data(tensor, has_rows=True)  # An argument of a function.
        tensor = around
    return None


def _keeps_rows(made: Any, of_rows: list[Any], *, in_order: bool, missing: bool) -> bool:
    """Whether an operation leaves rows apart that stand in the first dimension of its inputs."""
    kind, operation = made.op.type, made.op
    if pairs_rows(made, of_rows):
        return False
    if kind in _KEEPING:
        return bool(_KEEPING[kind](operation, of_rows, in_order, missing))
    if kind in REDUCTIONS or kind in ("ArgMax", "ArgMin"):
        axes = tf.get_static_value(operation.inputs[1])
        return axes is not None and not _takes_in_first(operation.inputs[0], operation.inputs[1])
    return kind in _ROW_BY_ROW


def _is_first(axis: Any, rank: int) -> bool:
    """Whether an axis, where it is known, is the first; unknown, it may be."""
    static = tf.get_static_value(axis) if tf.is_tensor(axis) else axis
    return static is None or int(static) % max(rank, 1) == 0


def _concat_keeps(operation: Any, of_rows: list[Any], in_order: bool, _: bool) -> bool:
    *parts, axis = operation.inputs
    if not _is_first(axis, parts[0].shape.rank or 1):
        return True
    return not in_order and len(of_rows) == len(parts)


def _gather_keeps(operation: Any, of_rows: list[Any], in_order: bool, missing: bool) -> bool:
    values, indices, axis = operation.inputs
    chosen = any(values is each for each in of_rows)
    if not chosen or not _is_first(axis, values.shape.rank or 1) or is_shuffle(indices):
        return True
    chosen_by = under(indices, "Reshape", "Squeeze", "Identity", "Cast")
    return missing and not in_order and chosen_by.op.type == "Where"  # By a mask of rows.


def _slice_keeps(operation: Any, *_: Any) -> bool:
    def first(name: str) -> bool:
        return bool(operation.get_attr(name) & 1)

    steps = tf.get_static_value(operation.inputs[3])
    whole = first("begin_mask") and first("end_mask") and steps is not None and steps[0] == 1
    if first("ellipsis_mask"):
        places, rank = operation.inputs[1].shape[0], operation.inputs[0].shape.rank
        return places is not None and rank is not None and rank >= places
    return whole and not first("new_axis_mask")


def _transpose_keeps(operation: Any, *_: Any) -> bool:
    order = tf.get_static_value(operation.inputs[1])
    return order is not None and order[0] == 0


def _reshape_keeps(operation: Any, *_: Any) -> bool:
    shape = operation.inputs[1]
    length = shape.op.inputs[0] if shape.op.type == "Pack" else None
    if length is None or length.op.type != "Prod" or length.op.inputs[0].op.type != "GatherV2":
        return True
    axes = tf.get_static_value(length.op.inputs[0].op.inputs[1])  # As of `tf.tensordot`.
    return axes is None or 0 in axes


def _split_keeps(operation: Any, *_: Any) -> bool:
    axis = operation.inputs[0 if operation.type == "Split" else 2]
    return not _is_first(axis, operation.outputs[0].shape.rank or 1)


def einsum_of_rows(operation: Any, of_rows: list[Any]) -> str | None:
    """What becomes of rows in the first dimension of operands: "kept" first, "summed", or None."""
    operands, _, result = operation.get_attr("equation").decode().partition("->")
    labels = operands.split(",")
    first = {
        label[:1]
        for label, each in zip(labels, operation.inputs, strict=True)
        if any(each is row for row in of_rows)
    }
    if len(first) != 1 or "." in operands:
        return None
    (label,) = first
    if label not in result:
        return "summed"
    return "kept" if result.startswith(label) else None


def _of_rank(least: int) -> Any:
    def keeps(operation: Any, of_rows: list[Any], *_: Any) -> bool:
        return all((each.shape.rank or 0) >= least for each in of_rows)

    return keeps


_KEEPING: dict[str, Any] = {
    **dict.fromkeys(("LogSoftmax", "Softmax", "TopKV2"), _of_rank(2)),
    **dict.fromkeys(("BatchMatMulV2", "MatrixDiagPart", "MatrixDiagPartV3"), _of_rank(3)),
    **dict.fromkeys(("Split", "SplitV"), _split_keeps),
    "Einsum": lambda op, of_rows, *_: einsum_of_rows(op, of_rows) == "kept",
    "Reshape": _reshape_keeps,
    "Transpose": _transpose_keeps,
    "Unpack": lambda op, *_: not _is_first(op.get_attr("axis"), op.inputs[0].shape.rank or 1),
    "ConcatV2": _concat_keeps,
    "ExpandDims": lambda op, *_: not _is_first(op.inputs[1], (op.inputs[0].shape.rank or 0) + 1),
    "GatherV2": _gather_keeps,
    "Pack": lambda op, *_: not _is_first(op.get_attr("axis"), op.outputs[0].shape.rank or 1),
    "StridedSlice": _slice_keeps,
}
