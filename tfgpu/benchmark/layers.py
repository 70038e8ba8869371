"""What each layer of a model computes, moves and takes: the points of the roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfgpu.benchmark import contest

MOST = 12
"""Layers that are timed: those with the most operations."""

_BACKWARD = 3
"""A training step computes and moves about three times what its forward pass does: the backward
pass makes a gradient for the input and one for the weights of each layer."""

_UPDATE_BYTES = 8 * 4
"""A float32 weight is read in the forward and in the backward pass, its gradient written and read,
and the update reads and writes it and one slot of the optimizer."""


@dataclass(frozen=True)
class Layer:
    """A layer's forward pass over one batch.

    Attributes:
        name: Of the layer.
        kind: Its class.
        flops: Floating-point operations.
        traffic: Bytes of its input, output and weights, each moved once.
        seconds: Its forward pass takes, run alone, without the call from Python; None when it
            was not timed, or takes too little beside the call to tell.
    """

    name: str
    kind: str
    flops: float
    traffic: float
    seconds: float | None


def measure(model: keras.Model, *, batch: int, device: str, seconds: float) -> list[Layer]:
    """Counts every layer with weights or a shape change, and times those with most operations.

    Args:
        model: Built, with layers of fixed shapes.
        batch: Examples.
        device: Such as "GPU:0".
        seconds: To spend on all of them, about.
    """
    leaves = [layer for layer in _leaves(model) if not isinstance(layer, keras.layers.InputLayer)]
    counted = [(layer, *_count(layer, batch)) for layer in leaves]
    with_flops = [layer for layer, flops, traffic in counted if flops]
    order = {id(layer): flops for layer, flops, _ in counted}
    timed = sorted(with_flops, key=lambda layer: -order[id(layer)])[:MOST]
    share = seconds / max(1, len(timed))
    chosen = {id(layer) for layer in timed}
    return [
        Layer(
            name=layer.name,
            kind=type(layer).__name__,
            flops=flops,
            traffic=traffic,
            seconds=_time(layer, batch, device, share) if id(layer) in chosen else None,
        )
        for layer, flops, traffic in counted
    ]


def step(layers: Sequence[Layer], *, parameters: int) -> tuple[float, float]:
    """Operations and bytes of a training step.

    Args:
        layers: Of the model, over the batch.
        parameters: Trainable weights.
    """
    flops = _BACKWARD * sum(layer.flops for layer in layers)
    traffic = _BACKWARD * sum(layer.traffic for layer in layers) + _UPDATE_BYTES * parameters
    return flops, traffic


def _leaves(model: keras.Model) -> list[keras.layers.Layer]:
    """Layers that are not models themselves, in order."""
    found: list[keras.layers.Layer] = []
    for layer in model.layers:
        found += _leaves(layer) if isinstance(layer, keras.Model) else [layer]
    return found


def _tensors(structure: Any) -> list[Any]:
    return [tensor for tensor in tf.nest.flatten(structure) if hasattr(tensor, "shape")]


def _elements(tensors: Sequence[Any], batch: int) -> int:
    return sum(
        math.prod(batch if side is None else side for side in tensor.shape) for tensor in tensors
    )


def _count(layer: keras.layers.Layer, batch: int) -> tuple[float, float]:
    try:
        inputs, outputs = _tensors(layer.input), _tensors(layer.output)
    except (AttributeError, ValueError):  # Used at several places of the graph, or at none.
        return 0.0, 0.0
    size = keras.backend.standardize_dtype(layer.compute_dtype or "float32")
    width = tf.as_dtype(size).size
    moved = (_elements(inputs, batch) + _elements(outputs, batch)) * width
    weights = sum(math.prod(weight.shape) for weight in layer.weights) * width
    return _operations(layer, inputs, outputs, batch), float(moved + weights)


def _operations(
    layer: keras.layers.Layer, inputs: Sequence[Any], outputs: Sequence[Any], batch: int
) -> float:
    """Operations of a layer whose work is products with its kernel; other work is small."""
    kernels = [weight for weight in layer.trainable_weights if weight.path.endswith("kernel")]
    transposed = "Transpose" in type(layer).__name__
    tensors = inputs if transposed else outputs
    if not kernels or len(tensors) != 1:
        return 0.0
    positions = _elements(tensors, batch) / tensors[0].shape[-1]
    return 2.0 * positions * sum(math.prod(kernel.shape) for kernel in kernels)


def _time(layer: keras.layers.Layer, batch: int, device: str, seconds: float) -> float | None:
    with tf.device(device):
        inputs = tf.nest.map_structure(
            lambda tensor: tf.ones([batch if side is None else side for side in tensor.shape]),
            layer.input,
        )

        # Both give a number, so that waiting for it copies no picture.
        @tf.function
        def forward(x: Any) -> Any:
            return _corner(layer(x, training=False))

        @tf.function
        def nothing(x: Any) -> Any:
            return _corner(x)

        try:
            whole = contest.repeat(lambda: forward(inputs).numpy(), seconds=seconds * 0.7)
            call = contest.repeat(lambda: nothing(inputs).numpy(), seconds=seconds * 0.3)
        except (tf.errors.OpError, TypeError, ValueError):  # Such as indices where ones were given.
            return None
    return whole - call if whole > 1.2 * call else None


def _corner(structure: Any) -> tf.Tensor:
    return tf.reshape(tf.nest.flatten(structure)[0], [-1])[0]
