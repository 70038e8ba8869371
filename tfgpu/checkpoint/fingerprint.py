"""What makes a training the same one: model, optimizer, loss, metrics and data, as plain values.

Two trainings are compared by these, so the description must not depend on what a process
happens to number or place: names that Keras gives, dtypes (another precision is the same
training), addresses.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.data.examples import data_errors
from tfgpu.engine import keras_internals as private
from tfgpu.engine.update import inner

_SAMPLE = 16  # Examples; reading them takes milliseconds.

# An optimizer as it was when it first trained: callbacks change its learning rate later on.
_optimizers: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def describe(model: keras.Model, dataset: Any) -> dict[str, Any]:
    """Describes a training.

    Args:
        model: Compiled and built.
        dataset: What it trains on, from `tfgpu.data.inputs.training_batches`.

    Returns:
        Values that JSON keeps as they are, by dotted names such as "optimizer.momentum".

    Raises:
        DataError: An example cannot be read.
    """
    optimizer = inner(model.optimizer)
    if optimizer not in _optimizers:
        _optimizers[optimizer] = dict(_flat("optimizer", optimizer))
    metrics = {id(variable) for variable in model.metrics_variables}
    compiled = private.compile_config(model).config
    parts = {
        "layer": list(private.flatten_layers(model, include_self=False)),
        "variable": [
            f"{variable.name} {'x'.join(map(str, variable.shape))}".strip()
            for variable in model.variables
            if id(variable) not in metrics
        ],
        **{key: compiled[key] for key in ("loss", "loss_weights", "metrics", "weighted_metrics")},
        "data": {
            **dataset.settings,
            "examples": dataset.num_examples,
            **_shapes(dataset.examples.element_spec),
            "content": _sample(dataset.examples),
        },
    }
    described = dict(_optimizers[optimizer])
    for name, part in parts.items():
        described.update(_flat(name, part))
    return described


def _shapes(spec: Any) -> dict[str, Any]:
    """The shapes of the data: of images with a label each as it has been since checkpoints are."""
    x, y = spec
    if isinstance(x, tf.TensorSpec) and x.shape.rank == 3 and _is_label(y):
        return {"image_shape": x.shape.as_list()}
    described = tf.nest.map_structure(lambda one: f"{one.dtype.name} {one.shape.as_list()}", spec)
    return {"x": described[0], "y": described[1]}


def _is_label(y: Any) -> bool:
    return isinstance(y, tf.TensorSpec) and y.shape.rank == 0 and y.dtype.is_integer


def _sample(examples: Any) -> str:
    """A digest of some images and labels, which tells one data set from another of its size."""
    count = min(_SAMPLE, examples.num_examples)
    positions = np.linspace(0, examples.num_examples - 1, count).astype(np.int64)
    digest = hashlib.sha256()
    with data_errors():
        chosen = examples.dataset(tf.data.Dataset.from_tensor_slices(positions))
        for example in chosen.as_numpy_iterator():
            for part in tf.nest.flatten(example):
                digest.update(part.tobytes())
    return digest.hexdigest()[:16]


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values in a structure, by where they stand in it; None and what is empty left out."""
    if isinstance(value, Mapping):
        if "class_name" in value and "config" in value:  # What Keras makes of an object.
            yield name, value["class_name"]
            value = value["config"] if isinstance(value["config"], Mapping) else {}
        for key, item in value.items():
            # Another precision is the same training, and names are numbers that Keras gave out.
            if key not in ("name", "dtype"):
                yield from _flat(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        if value and all(isinstance(item, (bool, int, float)) for item in value):
            yield name, list(value)
        else:
            for i, item in enumerate(value):
                yield from _flat(f"{name}.{i}", item)
    elif isinstance(value, np.generic | np.ndarray):
        yield from _flat(name, value.tolist())
    elif isinstance(value, (bool, int, float, str)):
        yield name, value
    elif value is not None:
        yield name, getattr(value, "__name__", type(value).__name__)
        yield from _flat(name, _config(value))


def _config(value: Any) -> Mapping[str, Any]:
    """What Keras would write of an object; {} when it would not know either."""
    # Those with layers of their own name them; these layers are described by themselves.
    if isinstance(value, keras.Model) or not hasattr(value, "get_config"):
        return {}
    try:
        config = value.get_config()
    except Exception:  # A class that was never meant to be written, which is no fault here.
        return {}
    return config if isinstance(config, Mapping) else {}
