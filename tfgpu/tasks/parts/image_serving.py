"""Exported image models: raw pixels in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfgpu.data.examples import RESIZE_RULE
from tfgpu.tasks.parts.serving import PROBABILITIES, Serving, likeliest, right, with_softmax

INPUT = "pixels"


def inference_model(model: keras.Model, *, image_shape: tuple[int, int, int]) -> keras.Model:
    """Puts a cast before the model and a softmax behind it.

    Args:
        model: From images to logits (n, ..., classes), in float32.
        image_shape: (height, width, channels).

    Returns:
        A model of Keras' own classes: uint8 (n, height, width, channels) in 0 to 255 to
        float32 probabilities (n, ..., classes).
    """
    pixels = keras.Input(image_shape, dtype="uint8", name=INPUT)
    # So that it augments nothing, whoever calls it, and without `training` too.
    logits = model(keras.ops.cast(pixels, "float32"), training=False)
    return keras.Model(pixels, keras.layers.Softmax(dtype="float32", name=PROBABILITIES)(logits))


def image_reference(model: keras.Model) -> Callable[..., Mapping[str, tf.Tensor]]:
    """The probabilities of a model of images, by another way than the exported one."""

    def logits(images: tf.Tensor, training: bool) -> tf.Tensor:
        return model(tf.cast(images, tf.float32), training=training)

    return with_softmax(logits)


def image_preprocessing(image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """What to do to an image before it goes in, as JSON holds it."""
    height, width, channels = image_shape
    return {
        "input": INPUT,
        "dtype": "uint8",
        "shape": ["batch", height, width, channels],
        "channels": "grey" if channels == 1 else "RGB",
        "range": [0, 255],
        "resize": RESIZE_RULE,
        "normalisation": "none: it is part of the model",
        "output": PROBABILITIES,
    }


def class_serving(spec: Any, kind: str) -> Serving:
    """uint8 pixels to probabilities, compared by accuracy.

    Args:
        spec: The `DataSpec`.
        kind: The format; the same for all.
    """
    return Serving(
        inputs={INPUT: spec.x},
        model=lambda model: inference_model(model, image_shape=spec.image_shape),
        reference=image_reference,
        outputs=(PROBABILITIES,),
        measure="accuracy",
        score=right,
        decide=likeliest,
        unit="a probability",
        preprocessing=image_preprocessing(spec.image_shape),
    )
