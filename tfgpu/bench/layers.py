"""Operations, bytes and time of each layer of a model: the points of the roofline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfgpu.bench.interleaved_timing import repeat
from tfgpu.machine import flops as flops_lib

MOST = 12
"""Layers that are timed, at most: those with the most operations."""

_UPDATE_BYTES = 8 * 4
"""Bytes per weight: a float32 weight is read in the forward and in the backward pass, its gradient
written and read, and the update reads and writes it and one slot of the optimizer."""


@dataclass(frozen=True)
class Layer:
    """One use of a layer: its forward pass over one batch.

    Attributes:
        name: Of the layer.
        kind: Its class.
        flops: Floating-point operations; None where that is not known.
        traffic: Bytes of its input, output and weights, each moved once; None likewise.
        seconds: Of its forward pass alone, without the call from Python; None when it was not
            timed, or takes too little time compared with the call.
    """

    name: str
    kind: str
    flops: float | None
    traffic: float | None
    seconds: float | None


def measure(model: keras.Model, *, batch: int, device: str, seconds: float) -> list[Layer]:
    """Measures every layer; only those with the most operations are timed.

    Args:
        model: Built.
        batch: Examples.
        device: Such as "GPU:0".
        seconds: To spend on all of them, about.
    """
    uses = list(flops_lib.layers(model))
    largest = sorted((use.flops for use in uses if use.flops), reverse=True)[:MOST]
    seconds_each = seconds / max(1, len(largest))
    return [
        Layer(
            name=use.layer.name,
            kind=type(use.layer).__name__,
            flops=None if use.flops is None else use.flops * batch,
            traffic=_traffic(use, batch),
            seconds=(
                _time(use.layer, batch, device, seconds_each)
                if use.flops and use.flops >= largest[-1]
                else None
            ),
        )
        for use in uses
    ]


def step_traffic(layers: Sequence[Layer], *, parameters: int) -> float:
    """Returns the bytes that a training step reads and writes at least.

    The backward pass moves twice what the forward pass does: it computes a gradient for the input
    and one for the weights of each layer.

    Args:
        layers: Of the model, over the batch.
        parameters: The number of trainable weights.
    """
    forward = sum(layer.traffic or 0.0 for layer in layers)
    return flops_lib.TRAINING * forward + _UPDATE_BYTES * parameters


def _traffic(use: flops_lib.Layer, batch: int) -> float | None:
    if use.elements is None:
        return None
    size = keras.backend.standardize_dtype(use.layer.compute_dtype or "float32")
    weights = sum(math.prod(weight.shape) for weight in use.layer.weights)
    return float((use.elements * batch + weights) * tf.as_dtype(size).size)


def _time(layer: keras.layers.Layer, batch: int, device: str, seconds: float) -> float | None:
    try:
        symbolic = layer.input
    except (AttributeError, ValueError):  # Called on inputs of different shapes.
        return None
    with tf.device(device):
        inputs = tf.nest.map_structure(
            lambda tensor: tf.ones([batch if side is None else side for side in tensor.shape]),
            symbolic,
        )

        # Both return one number, so that waiting for it copies no large tensor.
        @tf.function
        def forward(x: Any) -> Any:
            return _corner(layer(x, training=False))

        @tf.function
        def nothing(x: Any) -> Any:
            return _corner(x)

        try:
            whole = repeat(lambda: forward(inputs).numpy(), seconds=seconds * 0.7)
            call = repeat(lambda: nothing(inputs).numpy(), seconds=seconds * 0.3)
        except (tf.errors.OpError, TypeError, ValueError):  # Such as indices where ones were given.
            return None
    return whole - call if whole > 1.2 * call else None


def _corner(structure: Any) -> tf.Tensor:
    return tf.reshape(tf.nest.flatten(structure)[0], [-1])[0]
