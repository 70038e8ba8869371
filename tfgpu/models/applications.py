"""Networks of `keras.applications` by name, for raw pixels."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import keras

import tfgpu

PREFIX = "keras.applications."
"""Of their names in `--model`, which may leave it out."""


def names() -> tuple[str, ...]:
    """The networks that this version of Keras has, such as "EfficientNetB0"."""
    found = vars(keras.applications).items()
    return tuple(sorted(name for name, value in found if inspect.isfunction(value)))


def application(name: str) -> Callable[..., tfgpu.Model]:
    """The builder of one of them.

    Args:
        name: Out of `names`, without the prefix.
    """
    return functools.partial(_build, name)


def _build(name: str, *, image_shape: tuple[int, int, int], num_classes: int) -> tfgpu.Model:
    """A network with random weights, its own preprocessing before it, and float32 logits.

    The layers are Keras' own, with their names, so that a file of its weights fits by them; only
    the classifier's size differs where the number of classes does.

    Args:
        name: Out of `names`.
        image_shape: Height, width and channels; grey images become three equal channels.
        num_classes: Size of the output.

    Returns:
        A model from pixels in 0 to 255, (batch, height, width, channels), to float32
        logits, (batch, num_classes).

    Raises:
        ValueError: The network cannot take such images.
    """
    height, columns, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(f"{PREFIX}{name} takes images of 1 or 3 channels, not {channels}")
    network = getattr(keras.applications, name)
    inputs = keras.Input(image_shape, name="pixels")
    x = inputs
    if channels == 1:
        x = keras.layers.Concatenate(name="grey_to_rgb")([x, x, x])
    x = _preprocessed(x, network)
    body = network(
        weights=None,
        input_tensor=x,
        input_shape=(height, columns, 3),
        classes=num_classes,
        classifier_activation=None,
    )
    # Softmax and its gradient lose too much in 16 bits.
    outputs = keras.layers.Activation("linear", dtype="float32", name="float32_logits")
    return tfgpu.Model(inputs, outputs(body.output), name=body.name)


def _preprocessed(pixels: keras.KerasTensor, network: Callable) -> keras.KerasTensor:
    """What the network expects, made from pixels in 0 to 255, (batch, height, width, 3).

    Networks that bring their preprocessing get the pixels themselves. The others stand each in a
    module with the function that they were trained with.
    """
    family = getattr(keras.applications, network.__module__.rpartition(".")[2])
    result: keras.KerasTensor = family.preprocess_input(pixels, data_format="channels_last")
    return result
