"""What layers are given and put out, in a step of several replicas.

What a layer puts out counts as rows, one for each row that it was given: where it takes something
of other rows, such as their mean, these are those of its replica, which is said. What a model makes
around its layers, and what a step gives to it, is computed of all rows.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfgpu.engine import keras_internals as private
from tfgpu.engine.all_rows import own_of_all_rows
from tfgpu.engine.current import current, note_data
from tfgpu.engine.dataflow import (
    Data,
    are_all_rows,
    blocks_of,
    chooses_rows,
    data_of,
    has_rows,
    made_of,
)
from tfgpu.engine.local_copies import exchange_here
from tfgpu.engine.parts import Unseen
from tfgpu.engine.row_axis import PAIRS, REVERSAL, STATISTICS, mixing
from tfgpu.engine.shards import Rows

# Other rows that stand in the place of a row, as many as before.
_IN_ITS_PLACE = {STATISTICS, REVERSAL, "Cumprod", "Cumsum", "CumulativeLogsumexp", "Roll"}
# Some rows in the place of all.
_TAKING_SOME = {"Slice", "Split", "SplitV", "StridedSlice"}
_PUTS_OUT = "Layer {!r} makes what it puts out for a row"


def _noted(call: Any) -> Any:
    """Stands in for `Layer.__call__`."""

    @functools.wraps(call)
    def noted_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        rows = current.shared
        if rows is None:
            return call(self, *args, **kwargs)
        # Around the outermost one it is the code of a step, or of a model.
        outermost = not current.within_layers
        if outermost and current.own_code:
            what = "A step gives a model for a row what is made"
            args, kwargs = _each_own_rows((args, kwargs), rows, what, minding_chosen=True)
        averaging = current.averaging or isinstance(self, keras.layers.BatchNormalization)
        minded = not _is_row_by_row(self)
        with current.having(within_layers=current.within_layers + 1, averaging=averaging):
            outputs = call(self, *args, **kwargs)
        if outermost and minded:
            outputs = _each_own_rows(outputs, rows, _PUTS_OUT.format(self.name))
        _note_outputs(self, rows, (args, kwargs), outputs, minded=minded)
        return outputs

    return noted_call


def _is_row_by_row(layer: Any) -> bool:
    """Whether a layer is one of Keras' own that are known to leave rows apart, or to be minded."""
    others = (keras.Model, keras.layers.Concatenate, keras.layers.Lambda)
    return type(layer).__module__.startswith("keras.") and not isinstance(layer, others)


def _tensors(structure: Any) -> Iterator[tf.Tensor]:
    for leaf in tree.flatten(structure):
        if isinstance(leaf, tf.Tensor) and hasattr(leaf, "op"):
            yield leaf


def _note_outputs(layer: Any, rows: Rows, inputs: Any, outputs: Any, *, minded: bool) -> None:
    """Notes what a layer has put out, in any structure, as far as it has rows.

    Args:
        layer: The layer.
        rows: Of the replica's shard.
        inputs: Its arguments.
        outputs: What it gave.
        minded: Whether to say where they are made of other rows, too.
    """
    real = rows.real if isinstance(rows.real, int) and not rows.hidden else None
    data = current.data
    given = [leaf for leaf in _tensors(inputs) if has_rows(leaf, rows)]
    if not given or any(mixing(leaf, rows, data, counts=False) == PAIRS for leaf in given):
        return  # Of pairs of rows it is seen through what the layer does.
    complete = all(are_all_rows(leaf, rows, data) for leaf in given)
    in_order = complete and all(are_all_rows(leaf, rows, data, in_order=True) for leaf in given)
    most = max(tuple(leaf.shape or ()).count(None) for leaf in given)
    blocks = {blocks_of(leaf, rows, data) for leaf in given} if complete else {0}
    as_given = blocks.pop() if len(blocks) == 1 else 0
    known = {}
    for leaf in _tensors(outputs):
        # Of pairs of rows there are more dimensions that nobody knows.
        if not leaf.shape.rank or tuple(leaf.shape).count(None) > most:
            continue
        if leaf.shape[0] not in (None, real):
            continue
        mixed = mixing(leaf, rows, data, counts=False) if minded else None
        if mixed == PAIRS:
            continue
        chosen = chooses_rows(leaf, data) or mixed in _TAKING_SOME
        if mixed is not None and not chosen:
            _warn(_PUTS_OUT.format(layer.name), mixed, rows)
        together = minded and _is_put_together(leaf, rows)
        times = blocks_of(leaf, rows, data) if together else as_given
        known[id(leaf)] = Data(
            *(leaf, True, in_order and not chosen and times == 1, complete and not chosen, times)
        )
    current.data = {**known, **data}


def note_predictions(y_pred: Any) -> None:
    """Notes what a model has put out, as far as it has rows, and nobody has noted it yet.

    Args:
        y_pred: In any structure; what XLA has compiled gives tensors of its own.
    """
    rows, data = current.shared, current.data
    if rows is None:
        return
    for leaf in tree.flatten(y_pred):
        if isinstance(leaf, tf.Tensor) and hasattr(leaf, "op"):
            elsewhere = rows.hidden and leaf.shape.rank and leaf.shape[0] is not None
            if elsewhere or mixing(leaf, rows, data, counts=False) == PAIRS:
                continue
        note_data(leaf)


def _each_own_rows(structure: Any, rows: Rows, what: str, *, minding_chosen: bool = False) -> Any:
    """What a model is given, or puts out, such that its rows are those of one device.

    Args:
        structure: Arguments of the model, or what it puts out.
        rows: Of the replica's shard.
        what: How a warning begins.
        minding_chosen: Whether to say so where they are some rows in the place of all; `predict`
            puts together those of all replicas.
    """
    leaves = tree.flatten(structure)
    own = [_own_rows(leaf, rows, what, minding_chosen) for leaf in leaves]
    if all(mine is leaf for mine, leaf in zip(own, leaves, strict=True)):
        return structure
    return tree.pack_sequence_as(structure, own)


def _own_rows(leaf: Any, rows: Rows, what: str, minding_chosen: bool) -> Any:
    if not isinstance(leaf, tf.Tensor) or not hasattr(leaf, "op") or not leaf.shape.rank:
        return leaf
    mixed = mixing(leaf, rows, current.data, counts=False) if has_rows(leaf, rows) else None
    if mixed is None or mixed == PAIRS:
        return leaf
    chosen = mixed in _TAKING_SOME or (mixed == "GatherV2" and chooses_rows(leaf, current.data))
    if chosen and not minding_chosen:
        return leaf
    if mixed not in _IN_ITS_PLACE or _is_put_together(leaf, rows):
        return _said(what, leaf, mixed, rows)
    try:
        return own_of_all_rows(leaf, rows, exchange_here)
    except Unseen:
        return _said(what, leaf, mixed, rows)


def _said(what: str, leaf: tf.Tensor, mixed: str, rows: Rows) -> tf.Tensor:
    _warn(what, mixed, rows)
    current.data = {**current.data, id(leaf): Data(leaf, True, in_order=False, complete=False)}
    return leaf


def _near(leaf: tf.Tensor) -> Iterator[tf.Tensor]:
    data = current.data
    return made_of(leaf, stops=lambda each: data_of(each, data) is not None)


def _is_put_together(leaf: tf.Tensor, rows: Rows) -> bool:
    """Whether rows stand one after the other in it that are several of each row."""
    joined = (t for t in _near(leaf) if t.op.type == "ConcatV2" and has_rows(t, rows))
    return any(tf.get_static_value(each.op.inputs[-1]) == 0 for each in joined)


def _warn(what: str, how: str, rows: Rows) -> None:
    of = "statistics of the rows" if how == STATISTICS else f"other rows (by {how})"
    warnings.warn(
        f"{what} of {of}, and {rows.replicas} replicas share the batch: these are those of its "
        "replica. A loss, a metric and what a step computes outside of layers is of all rows.",
        stacklevel=2,
    )


def install() -> None:
    """Has layers mind `current`; outside of steps they stay as they are."""
    private.call_layer.replace(_noted(private.call_layer.function))
