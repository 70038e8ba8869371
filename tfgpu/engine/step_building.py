"""Makes the variables that a step of a class's own makes when it first runs.

A class that defines `train_step` may have layers that only this step calls, and that are built by
their first call in it. Replicas cannot make variables, so the step is traced once beforehand, under
the strategy, in a graph that is never run. There an optimizer does nothing but build itself for
what it is given first, which is what it does on one device.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfgpu.engine import keras_internals as private
from tfgpu.engine import losses
from tfgpu.engine.current import current
from tfgpu.engine.overrides import is_own
from tfgpu.engine.own_step import installed, step_of
from tfgpu.engine.python_state import PythonState

# Rows of a stand-in for a batch, for code that asks for their number as one of Python's.
_SOME_ROWS = 2


def builds(model: Any, name: str, data_batch: Any) -> bool:
    """Builds a model by a step of its class's own, where some layer is not built yet.

    Args:
        model: A compiled model; for `predict_step` it need not be.
        name: `train_step`, `test_step` or `predict_step`.
        data_batch: Arrays, tensors or specs as the model takes them.

    Returns:
        Whether there is nothing left that a call of the model could build.
    """
    if not is_own(model, name):
        return False
    can_be_called = is_own(model, "call")
    missing = _unbuilt(model, can_be_called)
    if not missing:
        return not can_be_called
    if (tried := model.tfgpu_traced)[0] != (name, missing):
        done = _is_traced(model, step_of(model, name), data_batch)
        model.tfgpu_traced = tried = ((name, _unbuilt(model, can_be_called)), done)
    return tried[1] or not can_be_called


def _unbuilt(model: Any, can_be_called: bool) -> list[int]:
    """Which layers are not built yet, by identity; the model is one where it can be called."""
    layers = list(private.flatten_layers(model, include_self=False))
    layers += [model] if can_be_called else []
    return [id(layer) for layer in layers if not layer.built]


def _is_traced(model: Any, step: Callable[[Any], Any], data_batch: Any) -> bool:
    """Traces a step for what it makes; whether that could be done."""
    state = PythonState(list(private.flatten_layers(model)))
    for inline, rows in itertools.product((True, False), (None, _SOME_ROWS)):
        try:
            _trace(model, step, data_batch, rows, inline=inline)
        except Exception:  # Whatever the user's code raises; it will again when it is run.
            continue
        finally:
            state.put_back_values()
        return True
    return False


def _trace(
    model: Any, step: Callable[[Any], Any], data_batch: Any, rows: int | None, *, inline: bool
) -> None:
    """Calls a step in a graph.

    Args:
        model: Of the step.
        step: The step.
        data_batch: As the model takes it.
        rows: Of its stand-in.
        inline: Whether each `tf.function` is called as what it was made of.
    """
    graph = private.ScratchGraph("build")
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(inline)
    try:
        with (
            warnings.catch_warnings(),
            model.distribute_strategy.scope(),
            graph.as_default(),
            tf.variable_creator_scope(functools.partial(_created, None if inline else graph)),
            installed(model),
            current.having(building=True, own_code=True),
        ):
            warnings.simplefilter("ignore")  # What is said is said again when it is run.
            losses.adopt(private.compile_loss(model))
            step(tree.map_structure(lambda leaf: _stand_in(leaf, rows), data_batch))
    finally:
        tf.config.run_functions_eagerly(before)


def _created(graph: Any, create: Callable[..., Any], **given: Any) -> Any:
    """A variable, of a value that is there without the graph.

    Args:
        graph: Where it has to be made, and not in a `tf.function` in it; None is any.
        create: What makes it.
        **given: What that takes.
    """
    if graph is not None and tf.compat.v1.get_default_graph() is not graph:
        raise RuntimeError("A tf.function makes a variable, of a value of its own graph.")
    value = given.get("initial_value")
    if isinstance(value, tf.Tensor) and (constant := tf.get_static_value(value)) is not None:
        given["initial_value"] = constant
    return create(**given)


def _stand_in(leaf: Any, rows: int | None) -> Any:
    """A tensor of the graph for a part of a batch."""
    if leaf is None or isinstance(leaf, tf.OptionalSpec | private.NoneTensorSpec):
        return None
    if not isinstance(leaf, tf.TypeSpec):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            return leaf
        leaf = tf.type_spec_from_value(leaf if tf.is_tensor(leaf) else tf.convert_to_tensor(leaf))
    if isinstance(leaf, tf.TensorSpec) and leaf.shape.rank:
        leaf = tf.TensorSpec([rows, *leaf.shape[1:]], leaf.dtype)
    parts = [
        tf.compat.v1.placeholder(spec.dtype, spec.shape)
        for spec in tf.nest.flatten(leaf, expand_composites=True)
    ]
    return tf.nest.pack_sequence_as(leaf, parts, expand_composites=True)


@contextlib.contextmanager
def without_warnings(model: keras.Model) -> Iterator[None]:
    """Around a call on stand-ins for a batch, by which a class with a step of its own need not be
    built: Keras says of it what then is not true."""
    with warnings.catch_warnings():
        if is_own(model, "train_step") or is_own(model, "test_step"):
            for said in (".*looks like it has unbuilt state", ".*was called on layer"):
                warnings.filterwarnings("ignore", message=said)
        yield
