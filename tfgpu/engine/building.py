"""Makes a model's variables before its first step, in which replicas could make none."""

from __future__ import annotations

import contextlib
import functools
import re
from typing import Any

import keras
import tensorflow as tf
from keras import tree
from keras.utils import unpack_x_y_sample_weight

from tfgpu.engine import keras_internals as private
from tfgpu.engine import losses, step_building
from tfgpu.engine.overrides import is_own
from tfgpu.engine.temporary import in_place_of

# What is said where code asks for values that are not there yet.
_IN_BOLD = re.compile(r"\x1b\[1m(.*?)\x1b\[0m", re.DOTALL)  # What Keras frames.
_ASKS_FOR_VALUES = re.compile("numpy|[Ss]ymbolic|KerasTensor")


def build(model: Any, data_batch: Any) -> None:
    """Creates the variables of a model, its losses, metrics and optimizer.

    Args:
        model: A compiled model.
        data_batch: Arrays, tensors or specs as the model takes them.

    Raises:
        ValueError: With `run_eagerly=True` and several replicas, code asks for values.
    """
    if step_building.builds(model, "_".join((model.tfgpu_kind, "step")), data_batch):
        return
    several = model.distribute_strategy.num_replicas_in_sync > 1
    if not (several and model.run_eagerly):
        _build(model, data_batch)
        return
    try:
        _build(model, data_batch)
    except Exception as error:  # Whatever code of the user's raises where there are no values.
        if not _ASKS_FOR_VALUES.search(str(error)):
            raise
        said = _IN_BOLD.search(str(error))
        raise ValueError(
            "Several replicas need the variables of a model before its first step, so that it is "
            "built without values, with run_eagerly=True too, and here they are asked for: "
            f"{said[1] if said else error}. Wrap what asks in tf.numpy_function, or run it on one "
            "device."
        ) from error


def _build(model: Any, data_batch: Any) -> None:
    loss, metrics = private.compile_loss(model), private.compile_metrics(model)
    spec = tree.map_structure(_symbolic, data_batch)
    with model.distribute_strategy.scope():
        losses.adopt(loss)
        try:
            with _built_for_weights(model), step_building.without_warnings(model):
                private.symbolic_build(model, data_batch=spec)
        except (RuntimeError, ValueError):
            # In Keras' stateless scope, a layer that assigns in a `cond` cannot be called.
            x, y, sample_weight = unpack_x_y_sample_weight(spec)
            try:
                y_pred = _traced_outputs(model, data_batch)
            except Exception:
                y_pred = None
            if y_pred is None:
                raise
            given = (x, y, y_pred, sample_weight)
            if metrics is not None and not metrics.built:
                private.compute_output_spec(model.compute_metrics, *given)
            if loss is not None and not loss.built:
                compute_loss = functools.partial(private.compute_loss, model)
                private.compute_output_spec(compute_loss, *given, training=False)
            if model.optimizer is not None and not model.optimizer.built:
                with _built_for_weights(model):
                    model.optimizer.build(model.trainable_weights)


def _built_for_weights(model: Any) -> contextlib.AbstractContextManager[None]:
    """Has Keras build the optimizer for `trainable_weights`, which are what is updated."""
    optimizer = model.optimizer
    if optimizer is None or optimizer.built:
        return contextlib.nullcontext()
    if model.tfgpu_kind == "test" and is_own(model, "train_step"):
        # For what it is given first, which may be of layers that evaluation does not use.
        return in_place_of(optimizer, build=lambda variables: None)
    build_optimizer = optimizer.build
    return in_place_of(optimizer, build=lambda variables: build_optimizer(model.trainable_weights))


def build_for_prediction(model: Any, spec: Any) -> None:
    """Creates the variables of a model that may have been compiled or not.

    Args:
        model: The model.
        spec: Of a batch as the model takes it.
    """
    if step_building.builds(model, "predict_step", spec):
        return
    with model.distribute_strategy.scope():
        x, _, _ = unpack_x_y_sample_weight(tree.map_structure(_symbolic, spec))
        try:
            private.compute_output_spec(model, x)
        except (RuntimeError, ValueError):
            _traced_outputs(model, spec)


def _traced_outputs(model: Any, data_batch: Any) -> Any:
    """The outputs for a batch of specs, of a call that is traced and never run."""
    x, _, _ = unpack_x_y_sample_weight(data_batch)
    outputs: Any = None

    def call(x: Any) -> None:
        nonlocal outputs
        outputs = tree.map_structure(_symbolic, model(x))

    tf.function(call, autograph=False).get_concrete_function(x)
    return outputs


def _symbolic(leaf: Any) -> Any:
    """A stand-in with a shape and a dtype, which is all that building looks at."""
    if isinstance(leaf, tf.OptionalSpec | private.NoneTensorSpec) or leaf is None:
        return None
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return leaf
    shape = tuple(leaf.shape)
    return keras.KerasTensor(
        (None, *shape[1:]) if shape else shape,
        keras.backend.standardize_dtype(leaf.dtype),
        sparse=isinstance(leaf, tf.SparseTensorSpec),
        ragged=isinstance(leaf, tf.RaggedTensorSpec),
    )
