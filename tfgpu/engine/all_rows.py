"""What a replica has made of its rows, as it is where one device has all rows.

Code for one device makes numbers of a batch: a loss, a metric, a moving average, the largest value
so far. A replica makes them of its own rows, and its graph tells of what: of means over rows, sums,
counts and extremes, and of the rows themselves. The replicas exchange these parts, and the number
is computed anew of what they are of all rows, so that it is the same on each replica. Where it is a
sum of means and of multiples of them nothing needs to be exchanged: there the average by rows of
the replicas' numbers is that of all rows.

What a layer puts out counts as rows, though it may have normalized them by those of its replica.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfgpu.engine.current import current, note_data
from tfgpu.engine.dataflow import (
    CALLS,
    DIVISIONS,
    SUMS,
    are_all_rows,
    blocks_of,
    data_of,
    depends_on_data,
    draws,
    einsum_of_rows,
    has_rows,
    is_rows,
    outside,
    reads_one_of,
    value_inputs,
)
from tfgpu.engine.local_copies import NotCompilable, have_met, is_compiling
from tfgpu.engine.parts import Exchange, Part, Unseen, own_gradient, own_rows, together
from tfgpu.engine.shards import Rows

MOST_OPERATIONS = 400
"""How many operations are computed anew at most; more are a network, and no loss or statistic."""

# How replicas put together what these operations make of rows.
_HOW = {
    **dict.fromkeys(SUMS - {"BatchMatMulV2"}, "sum"),
    **dict.fromkeys(("Bincount", "DenseBincount", "ScatterNd", "UnsortedSegmentSum"), "sum"),
    **{"Mean": "mean", "Max": "max", "Any": "max", "Min": "min", "All": "min"},
}
# Operations that give a sum of what they are given, or a part of it.
_LINEAR = {
    *("Add", "AddN", "AddV2", "BroadcastTo", "ConcatV2", "ExpandDims", "GatherV2", "Identity"),
    *("Mean", "Neg", "Pack", "Pad", "PadV2", "Reshape", "Squeeze", "StopGradient", "StridedSlice"),
    *("Sub", "Sum", "Tile", "Transpose"),
}
# Operations that are linear in each of their inputs.
_PRODUCTS = {"BatchMatMulV2", "Einsum", "MatMul", "Mul"}


class Analysis:
    """What is seen of some tensors of a replica's graph.

    Args:
        rows: Of the replica's shard.
        unsettled: Copies of variables that have a value of this replica's own.
        most: How many operations may be computed anew.
        differentiated: Whether gradients flow through what is computed anew.
        within: The analysis that this one is a part of.

    Attributes:
        parts: What they are made of that is of rows.
        around: What they are made of beside these, next to them.
        is_normalized: Whether one of the parts is the mean of what has been made by statistics of
            a replica's rows, in a layer: a variance, say.
        of_all: By its identity what each part is of all rows, once that was asked for.
    """

    def __init__(
        self,
        rows: Rows,
        unsettled: Sequence[tf.Variable] = (),
        *,
        most: int = MOST_OPERATIONS,
        differentiated: bool = False,
        within: Analysis | None = None,
    ):
        self.parts: list[Part] = []
        self.around: list[tf.Tensor] = []
        self.is_normalized = False
        self.of_all: dict[int, tf.Tensor] = {}
        self._rows = rows
        self._unsettled = unsettled
        self._most = most
        self._differentiated = differentiated
        # What a layer averages may have been normalized by the rows of its replica.
        self._in_layer = current.within_layers > 0
        self._of_rows: dict[int, bool] = {}
        # By tensor: whether it is a sum over rows, and whether it is their number.
        self._sums: dict[int, bool] = {} if within is None else within._sums
        self._numbers: dict[int, bool] = {} if within is None else within._numbers
        self._operations: dict[str, tf.Operation] = {}
        # So that no other gets the identity of one.
        self._kept: list[tf.Tensor] = [] if within is None else within._kept

    # ---- what is seen --------------------------------------------------------------------

    def is_of_rows(self, tensor: tf.Tensor) -> bool:
        """Whether a tensor is made of rows; then finds the parts that it is made of.

        Raises:
            Unseen: By what, nobody can tell.
        """
        found = self._of_rows.get(id(tensor))
        total = self._rows.total
        if current.static and isinstance(total, int) and total % self._rows.replicas:
            raise Unseen("of which replicas have different numbers, as ones of Python's")
        if found is None:
            try:
                found = self._is_of_rows(tensor)
            except RecursionError:
                raise Unseen("by more operations than can be followed") from None
            self._of_rows[id(tensor)] = found
            self._kept.append(tensor)
        return found

    def _is_of_rows(self, tensor: tf.Tensor) -> bool:
        operation, rows = tensor.op, self._rows
        kind, inputs = operation.type, value_inputs(operation)
        if kind in ("Const", "VarHandleOp") or have_met(tensor) or id(tensor) in current.whole:
            return False
        if kind == "ReadVariableOp" and not reads_one_of(tensor, self._unsettled):
            return False
        if kind == "ReadVariableOp" or id(tensor) in current.by_rows:
            return self._is_part(tensor, "mean")
        given = data_of(tensor, current.data)
        if given is not None and not given.has_rows and tensor.shape.rank == 0:
            return False  # All replicas have it.
        if kind in ("Shape", "Size") and has_rows(inputs[0], rows):
            if self._are_all_rows(inputs[0], missing=True):
                return self._is_part(tensor, "shape" if kind == "Shape" else "sum")
            # Of pairs of rows, say: counted anew.
            self._operations[operation.name] = operation
            return self.is_of_rows(inputs[0])
        if given is not None or (kind != "Fill" and has_rows(tensor, rows)):
            if self._are_all_rows(tensor, in_order=True):
                return self._is_part(tensor, "rows")
            if blocks := blocks_of(tensor, self._rows, current.data):
                return self._is_part(tensor, "rows", blocks)
            if given is not None:
                raise Unseen("of which some were chosen, or there are several of each")
        elif draws(operation) or id(tensor) in current.drawn:
            raise Unseen("and of random numbers")
        elif kind in _HOW and self._is_reduction(operation, inputs):
            return self._is_part(tensor, _HOW[kind])
        if kind.startswith("TensorList") and depends_on_data(tensor):
            raise Unseen("inside a loop")
        if not inputs or given is not None:
            return self._is_of_captured_rows(tensor)
        if kind in DIVISIONS and self._is_number(inputs[1]) and self._is_sum(inputs[0]):
            return self._is_part(tensor, "mean")
        # Each of them, for their parts.
        of_rows = [self.is_of_rows(each) for each in inputs]
        if not any(of_rows):
            return False
        if kind in CALLS or (operation.op_def.is_stateful and kind != "ResourceGather"):
            raise Unseen("inside a tf.function, a branch or a loop, or by Python")
        self.around += [each for each, own in zip(inputs, of_rows, strict=True) if not own]
        self._operations[operation.name] = operation
        if len(self._operations) > self._most:
            raise Unseen("by more operations than a loss or a statistic has")
        return True

    def _is_reduction(self, operation: Any, inputs: Sequence[tf.Tensor]) -> bool:
        """Whether what reduces `inputs` reduces rows, and what it gives can be put together."""
        kind = operation.type
        if self._differentiated and _HOW[kind] in ("max", "min"):
            return False  # Of what is equally large each has its part of the gradient.
        if kind == "MatMul":
            inputs = [_untransposed(each) for each in inputs]
        of_rows = [each for each in inputs if has_rows(each, self._rows)]
        if kind == "Einsum" and einsum_of_rows(operation, of_rows) != "summed":
            return False
        if any(depends_on_data(t) for t in inputs if all(t is not each for each in of_rows)):
            return False  # A statistic of this replica's rows, say.
        which = {"missing": kind != "Mean", "statistics": kind == "Mean" and self._in_layer}
        if not of_rows or not all(self._are_all_rows(t, **which) for t in of_rows):
            return False
        if which["statistics"] and not all(self._are_all_rows(t) for t in of_rows):
            self.is_normalized = True
        return True

    def _are_all_rows(self, tensor: tf.Tensor, **which: bool) -> bool:
        return are_all_rows(tensor, self._rows, current.data, **which)

    def _is_part(self, tensor: tf.Tensor, how: str, blocks: int = 1) -> bool:
        if how == "mean" and not tensor.dtype.is_floating:
            raise Unseen("and is no float")
        self.parts.append(Part(tensor, how, blocks))
        return True

    def _is_of_captured_rows(self, tensor: tf.Tensor) -> bool:
        """The same of what has no inputs: a tensor of the graph around this one, or the data."""
        outer = outside(tensor)
        if outer is not None and not hasattr(outer, "op"):
            return False  # A constant that was made outside of any graph.
        if hasattr(outer, "op") and not Analysis(self._rows).is_of_rows(outer):
            return False
        raise Unseen("in a graph around the one where that is done")

    def _is_sum(self, tensor: tf.Tensor) -> bool:
        """Whether a tensor is a sum over rows."""
        return self._is_alone(tensor, self._sums, lambda alone: alone.is_sum)

    def _is_alone(
        self, tensor: tf.Tensor, known: dict[int, bool], is_so: Callable[[Analysis], bool]
    ) -> bool:
        """What is true of a tensor that is looked at alone, once; False if nobody can tell."""
        if id(tensor) not in known:
            alone = Analysis(self._rows, self._unsettled, within=self)
            try:
                known[id(tensor)] = alone.is_of_rows(tensor) and is_so(alone)
            except Unseen:
                known[id(tensor)] = False
            self._kept.append(tensor)
        return known[id(tensor)]

    def _adds_sums(self, operation: tf.Operation) -> bool:
        """Whether an operation adds nothing to sums that is none itself."""
        if operation.type in ("Add", "AddN", "AddV2", "Sub"):
            return all(self._of_rows.get(id(each), False) for each in operation.inputs)
        return operation.type not in ("ConcatV2", "Pack", "Pad", "PadV2")

    def _is_number(self, tensor: tf.Tensor) -> bool:
        """Whether a tensor is the number of rows, or a multiple of it."""
        if current.static and is_rows(tensor, self._rows):
            return True
        return self._is_alone(tensor, self._numbers, lambda alone: alone._counts())

    def _counts(self) -> bool:
        """Whether all that has been seen is the number of rows, or a multiple of it."""
        sizes = all(
            part.tensor.op.type in ("Shape", "Size")
            and self._are_all_rows(part.tensor.op.inputs[0])
            for part in self.parts
        )
        return sizes and all(map(self._keeps_number, self._operations.values()))

    def _keeps_number(self, operation: tf.Operation) -> bool:
        if operation.type == "StridedSlice":
            begin = tf.get_static_value(operation.inputs[1])
            return begin is not None and not begin.any()
        if operation.type == "Mul":
            return sum(self._of_rows.get(id(each), False) for each in operation.inputs) == 1
        return operation.type in ("Cast", "Identity", "Prod", "Reshape", "Squeeze")

    # ---- what follows of it --------------------------------------------------------------

    @property
    def is_linear(self) -> bool:
        """Whether all that has been seen is linear in the parts, but for a constant."""
        return all(map(self._is_linear, self._operations.values()))

    def _is_linear(self, operation: tf.Operation) -> bool:
        kind, inputs = operation.type, value_inputs(operation)
        of_rows = [self._of_rows.get(id(each), False) for each in inputs]
        if kind in _PRODUCTS:
            return sum(of_rows) == 1
        if kind in DIVISIONS:
            return not of_rows[1]
        if kind == "Cast":
            return inputs[0].dtype.is_floating and operation.outputs[0].dtype.is_floating
        return kind in _LINEAR

    @property
    def is_sum(self) -> bool:
        """Whether the sum of the replicas' values is that of all rows."""
        return (
            self.is_linear
            and all(part.how == "sum" for part in self.parts)
            and all(map(self._adds_sums, self._operations.values()))
        )

    @property
    def is_average(self) -> bool:
        """Whether the average by rows of the replicas' values is that of all rows."""
        return self.is_linear and all(part.how == "mean" for part in self.parts)

    def of_all_rows(self, values: Sequence[tf.Tensor], exchange: Exchange) -> list[tf.Tensor]:
        """The values, computed anew of what their parts are of all rows; with gradients.

        Args:
            values: Of which `is_of_rows` was asked.
            exchange: Sums a tensor over the replicas.

        Raises:
            NotCompilable: XLA compiles the graph, in which replicas cannot meet.
            Unseen: They cannot meet where this is, for another reason.
        """
        if is_compiling():
            raise NotCompilable("The replicas exchange what is no mean over rows in the step")
        try:
            for part in {id(each.tensor): each for each in self.parts}.values():
                self.of_all[id(part.tensor)] = together(self._rows, part, exchange)
        except RuntimeError as error:
            if "merge_call" not in str(error):
                raise
            raise Unseen("inside a tf.function, a branch or a loop") from error
        anew: dict[str, Sequence[tf.Tensor]] = {}

        def of_all(tensor: tf.Tensor) -> tf.Tensor:
            if id(tensor) in self.of_all:
                return self.of_all[id(tensor)]
            operation = tensor.op
            if operation.name not in self._operations:
                return tensor
            if operation.name not in anew:
                inputs = [of_all(each) for each in operation.inputs]
                anew[operation.name] = _again(operation, inputs)
            return anew[operation.name][tensor.value_index]

        with tf.name_scope("of_all_rows"):
            return [of_all(value) for value in values]

    def gradients(self, whole: tf.Tensor, up: tf.Tensor) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Tensors of the replica, each with the gradient of a value of all rows by it.

        That by other tensors is the sum over the replicas of what flows back through these.

        Args:
            whole: What `of_all_rows` has given.
            up: The gradient of what is differentiated by it.
        """
        parts = [part for part in self.parts if part.tensor.dtype.is_floating]
        parts = list({id(part.tensor): part for part in parts}.values())
        around = list({id(t): t for t in self.around if t.dtype.is_floating}.values())
        totals = [self.of_all[id(part.tensor)] for part in parts]
        # Of what one of them is made of another the caller's tape knows.
        each = [*totals, *around]
        by = tf.gradients(whole, each, up, stop_gradients=each)
        by = [g if g is None else tf.convert_to_tensor(g) for g in by]  # Of slices, too.
        for part, gradient in zip(parts, by[: len(parts)], strict=True):
            if gradient is not None:
                yield part.tensor, own_gradient(self._rows, part, gradient)
        for tensor, gradient in zip(around, by[len(parts) :], strict=True):
            if gradient is not None:
                yield tensor, gradient * tf.cast(self._rows.share, gradient.dtype)


def of_all_rows(
    tensor: tf.Tensor, rows: Rows, exchange: Exchange, *, averages: bool = False
) -> tf.Tensor | None:
    """What a tensor is of all rows; None where the average by rows of the replicas' is that.

    Args:
        tensor: Of a graph, or computed eagerly: then nobody knows of what, and it is None.
        rows: Of the replica's shard.
        exchange: Sums a tensor over the replicas.
        averages: Whether to compute that average too.

    Raises:
        NotCompilable: XLA compiles the graph, in which replicas cannot meet.
        Unseen: Nobody can tell.
    """
    if not hasattr(tensor, "op"):
        return None
    analysis = Analysis(rows, differentiated=True)
    if not analysis.is_of_rows(tensor) or (analysis.is_average and not averages):
        return None
    return analysis.of_all_rows([tensor], exchange)[0]


def each_of_all_rows(
    tensors: Sequence[Any], rows: Rows, exchange: Exchange
) -> list[tf.Tensor | None]:
    """Tensors with a value a row, for all rows of the batch, in their order.

    Args:
        tensors: What is not made of rows stays as it is; None stays None.
        rows: Of the replica's shard.
        exchange: Sums a tensor over the replicas.

    Raises:
        NotCompilable: XLA compiles the graph, in which replicas cannot meet.
        Unseen: Nobody can tell what one of them is made of.
    """
    analysis, given = Analysis(rows, differentiated=True), [t for t in tensors if t is not None]
    for tensor in given:
        analysis.is_of_rows(tensor)
    found = iter(analysis.of_all_rows(given, exchange))
    return [None if tensor is None else next(found) for tensor in tensors]


def own_of_all_rows(tensor: tf.Tensor, rows: Rows, exchange: Exchange) -> tf.Tensor:
    """A value a row, computed of all rows of the batch: those of this replica; they are noted.

    Args:
        tensor: What the replica has made of its rows.
        rows: Of the replica's shard.
        exchange: Sums a tensor over the replicas.

    Raises:
        NotCompilable: XLA compiles the graph, in which replicas cannot meet.
        Unseen: Nobody can tell what it is made of.
    """
    analysis = Analysis(rows, differentiated=True)
    analysis.is_of_rows(tensor)
    if any(part.blocks > 1 for part in analysis.parts):
        raise Unseen("of which there are several of each")
    (whole,) = analysis.of_all_rows([tensor], exchange)
    own: tf.Tensor = note_data(own_rows(rows, tensor, whole))
    return own


# ---- parts -------------------------------------------------------------------------------------


def _untransposed(tensor: tf.Tensor) -> tf.Tensor:
    """What a matrix is the transpose of, if it is one."""
    if tensor.op.type != "Transpose" or tensor.shape.rank != 2:
        return tensor
    order = tf.get_static_value(tensor.op.inputs[1])
    return tensor.op.inputs[0] if order is not None and list(order) == [1, 0] else tensor


def _again(operation: Any, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """What an operation gives for other inputs."""
    if "_gradient_op_type" in operation.node_def.attr:
        raise Unseen("by a function with a gradient of its own")
    function = getattr(tf.raw_ops, operation.type, None)
    if function is None:
        raise Unseen(f"by an operation {operation.type}")
    arguments = list(operation.op_def.input_arg)
    attributes = [each.name for each in operation.op_def.attr]
    names = [name for name in inspect.signature(function).parameters if name != "name"]
    given = {name: operation.get_attr(name) for name in names if name in attributes}
    waiting = list(inputs)
    # Python calls some by other names than the definition, which has them in the same order.
    free = [name for name in names if name not in given]
    implied = {n for a in arguments for n in (a.type_attr, a.number_attr, a.type_list_attr)}
    renamed = [name for name in attributes if name not in given and name not in implied]
    for name, attribute in zip(free[len(arguments) :], renamed, strict=False):
        given[name] = operation.get_attr(attribute)
    for name, argument in zip(free, arguments, strict=False):
        if argument.number_attr or argument.type_list_attr:
            attribute = operation.get_attr(argument.number_attr or argument.type_list_attr)
            count = attribute if argument.number_attr else len(attribute)
            given[name] = [waiting.pop(0) for _ in range(count)]
        else:
            given[name] = waiting.pop(0)
    try:
        made = function(**given)
    except (TypeError, ValueError) as error:
        raise Unseen("by operations made for as many rows as a replica has") from error
    outputs: list[tf.Tensor] = tf.nest.flatten(made)
    return outputs
