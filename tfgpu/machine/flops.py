"""Counts the floating-point operations of a training step from the shapes of a model's layers.

Counted is what products with a layer's weights take, a multiplication and an addition being two
operations; element-wise work, normalisation and the optimizer are left out, as is usual where
utilisation is quoted. The backward pass counts twice the forward pass: one product gives the
gradient of a layer's input, one that of its weights (J. Kaplan et al., "Scaling Laws for Neural
Language Models", arXiv:2001.08361, section 2.1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from tfgpu.machine.tensorflow_internals import nodes

TRAINING = 3
"""Operations of a training step over those of its forward pass."""

# Of these each output position takes one product with the whole kernel; of the transposed ones,
# each input position. A kernel of a depthwise convolution has one entry for each output channel.
_KERNELS = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
# Layers with weights that take no product with them.
_ELEMENTWISE = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
    keras.layers.Embedding,
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One use of a layer.

    Attributes:
        layer: The layer.
        flops: Operations of its forward pass for one example; None where it has weights and it is
            not known how it uses them.
        elements: Numbers of its input and output for one example; None where a side is open.
    """

    layer: keras.layers.Layer
    flops: float | None
    elements: int | None


@dataclasses.dataclass(frozen=True)
class Count:
    """What was counted of a model.

    Attributes:
        forward: Operations of the forward pass for one example.
        training: Of forward and backward pass.
        uncounted: Names of layers with weights whose operations are not in it.
    """

    forward: float
    uncounted: tuple[str, ...]

    @property
    def training(self) -> float:
        return TRAINING * self.forward


def count(model: keras.Model) -> Count:
    """Counts a functional or sequential model; of any other nothing can be told.

    Args:
        model: Built.

    Returns:
        The operations, and which layers are not in them.
    """
    uses = list(layers(model))
    return Count(
        forward=sum(use.flops or 0.0 for use in uses),
        uncounted=tuple(dict.fromkeys(use.layer.name for use in uses if use.flops is None)),
    )


def layers(model: keras.Model) -> Iterator[Layer]:
    """Every use of every layer, those of models within the model too.

    Args:
        model: Built. One that is neither functional nor sequential is itself a layer of which
            nothing is known.
    """
    calls = nodes(model)
    if calls is None:
        yield Layer(model, flops=None, elements=None)
        return
    for node in calls:
        layer = node.operation
        if isinstance(layer, keras.Model):
            yield from layers(layer)
        elif isinstance(layer, keras.layers.Layer) and not node.is_input:
            inputs, outputs = node.arguments.keras_tensors, node.outputs
            elements = _elements([*inputs, *outputs])
            yield Layer(layer, flops=_flops(layer, inputs, outputs), elements=elements)


def _flops(
    layer: keras.layers.Layer, inputs: Sequence[Any], outputs: Sequence[Any]
) -> float | None:
    if not layer.weights or isinstance(layer, _ELEMENTWISE):
        return 0.0
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum_flops(layer, outputs[0])
    if isinstance(layer, _TRANSPOSED):
        at = inputs[0]
    elif isinstance(layer, _KERNELS):
        at = outputs[0]
    else:
        return None
    axis = -1 if getattr(layer, "data_format", "channels_last") == "channels_last" else 1
    sides = list(at.shape[1:])
    sides.pop(axis if axis < 0 else axis - 1)
    if any(side is None for side in sides):
        return None
    kernels = [w for w in layer.weights if w.path.rpartition("/")[2].endswith("kernel")]
    return 2.0 * math.prod(sides) * sum(math.prod(kernel.shape) for kernel in kernels)


def _einsum_flops(layer: keras.layers.EinsumDense, output: Any) -> float | None:
    terms, _, result = layer.equation.replace(" ", "").partition("->")
    kernel_axes = terms.partition(",")[2]
    if any(side is None for side in output.shape[1:]):
        return None
    kernel = zip(kernel_axes, layer.kernel.shape, strict=True)
    summed = [side for axis, side in kernel if axis not in result]
    return 2.0 * math.prod(output.shape[1:]) * math.prod(summed)


def _elements(tensors: Sequence[Any]) -> int | None:
    shapes = [tensor.shape[1:] for tensor in tensors]
    if any(side is None for shape in shapes for side in shape):
        return None
    return sum(math.prod(shape) for shape in shapes)
