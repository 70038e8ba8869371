"""The network of the CIFAR-10 speed record, its data-dependent start and its test-time average.

Source: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv:2404.00498, and the
recipe of its repository that trains by Muon.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfgpu

MEAN = (0.4914, 0.4822, 0.4465)
"""Of the channels of CIFAR-10's training images, in 0 to 1."""

DEVIATION = (0.2470, 0.2435, 0.2616)
"""Standard deviation of the channels of CIFAR-10's training images, in 0 to 1."""

WHITENING = 5e-4
"""What `whitening_kernel` adds to the eigenvalues."""

_PATCH = 2
_WIDTHS = (64, 256, 256)


def airbench(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    whitened: bool = False,
    sliced_pooling: bool = False,
) -> tfgpu.Model:
    """Three groups of two convolutions over a layer that whitens patches of 2x2.

    1,973,944 parameters for 32x32x3 images and 10 classes. 1,971,640 of them are trained, and 288
    fewer where the whitening kernel stays as it is.

    Args:
        image_shape: Height, width and channels (3, or 1 for grey images); at least 25 x 25.
        num_classes: Size of the output.
        width: Multiplies the channels of the groups, rounded to whole numbers; not below the
            8 times `channels` of the whitening layer, which the first group passes on.
        whitened: Whether the kernel of the first layer stays as it is, for a caller who assigns
            it what `whitening_kernel` gives. Else it trains, from PyTorch's usual initial values.
        sliced_pooling: Whether to pool by comparing slices in place of Keras' layers: the same
            numbers, from element-wise operations that XLA fuses with those around them.

    Returns:
        A model from pixels in 0 to 255, (batch, height, width, channels), to float32 logits,
        (batch, num_classes). Normalisation by the mean and deviation of CIFAR-10 is part of it.

    Raises:
        ValueError: The image is too small or has other channels, or `width` is too small.
    """
    height, columns, channels = image_shape
    if min(height, columns) < 25:
        raise ValueError(f"airbench needs images of at least 25x25 pixels, not {height}x{columns}")
    if channels not in (1, 3):
        raise ValueError(f"airbench needs images of 1 or 3 channels, not {channels}")
    whitening_width = 2 * channels * _PATCH**2
    widths = [round(units * width) for units in _WIDTHS]
    if min(widths) < whitening_width:
        raise ValueError(
            f"airbench needs a width of {whitening_width / min(_WIDTHS):g} or more, not {width:g}"
        )
    layers = keras.layers

    inputs = keras.Input(image_shape, name="pixels")
    # (x / 255 - mean) / deviation, as one multiplication and one addition.
    mean, deviation = np.array(MEAN), np.array(DEVIATION)
    if channels == 1:
        mean, deviation = mean.mean(keepdims=True), deviation.mean(keepdims=True)
    x = layers.Rescaling(
        scale=(1 / (255 * deviation)).tolist(),
        offset=(-mean / deviation).tolist(),
        dtype="float32",
        name="normalise",
    )(inputs)
    whiten = layers.Conv2D(
        whitening_width,
        _PATCH,
        kernel_initializer=_usual(),
        bias_initializer=_usual_bias(channels * _PATCH**2),
        name="whiten",
    )
    x = layers.Activation("gelu", name="whiten_gelu")(whiten(x))
    for number, units in enumerate(widths, start=1):
        name = f"group{number}"
        x = _convolution(units, f"{name}_conv1")(x)
        x = _pool(x, f"{name}_pool", sliced=sliced_pooling)
        x = _normalisation(f"{name}_norm1")(x)
        x = layers.Activation("gelu", name=f"{name}_gelu1")(x)
        x = _convolution(units, f"{name}_conv2")(x)
        x = _normalisation(f"{name}_norm2")(x)
        x = layers.Activation("gelu", name=f"{name}_gelu2")(x)
    x = layers.MaxPooling2D(3, name="pool")(x)
    x = layers.Flatten(name="flatten")(x)
    features = x.shape[-1]
    x = layers.Dense(num_classes, use_bias=False, kernel_initializer=_usual(), name="head")(x)
    # The cross-entropy is taken in float32; the division by 256 in the precision of the network.
    x = layers.Rescaling(1 / features, name="scale")(x)
    outputs = layers.Activation("linear", dtype="float32", name="float32_logits")(x)
    model = tfgpu.Model(inputs, outputs, name="airbench")
    if whitened:
        whiten.kernel.trainable = False
    _adjust(model)
    return model


# ---- initial values -------------------------------------------------------------------------


def reinitialise(model: keras.Model, *, seed: int) -> None:
    """Gives a model of `airbench` new initial values in place, so that nothing is traced again.

    The kernel of the first layer gets new values too, also where it is `whitened`.

    Args:
        model: What `airbench` returned.
        seed: Decides the values.
    """
    number = 0
    for layer in model.layers:
        for variable, initializer in _initial(layer):
            config = initializer.get_config()
            if "seed" in config:
                config["seed"], number = seed * 1000 + number, number + 1
                initializer = type(initializer).from_config(config)
            variable.assign(initializer(variable.shape, dtype=variable.dtype))
    _adjust(model)


def _initial(layer: keras.layers.Layer) -> list[tuple[Any, Any]]:
    """The variables of a layer and what initialises each."""
    if isinstance(layer, keras.layers.BatchNormalization):
        return [
            (layer.beta, layer.beta_initializer),
            (layer.moving_mean, layer.moving_mean_initializer),
            (layer.moving_variance, layer.moving_variance_initializer),
        ]
    if not isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
        return []
    pairs = [(layer.kernel, layer.kernel_initializer)]
    return [*pairs, (layer.bias, layer.bias_initializer)] if layer.use_bias else pairs


def _adjust(model: keras.Model) -> None:
    """Makes filters pass channels on and gives the head a deviation of 1."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D) and layer.name != "whiten":
            layer.kernel.assign(_passing_on(layer.kernel.numpy()))
        elif isinstance(layer, keras.layers.Dense):
            kernel = layer.kernel.numpy()
            layer.kernel.assign(kernel / kernel.std(ddof=1))


def _passing_on(kernel: np.ndarray) -> np.ndarray:
    """The same kernel whose first filters are the identity ("Dirac") on the input channels.

    Args:
        kernel: (height, width, in, out), out not below in.
    """
    height, width, channels, _ = kernel.shape
    kernel = kernel.copy()
    kernel[..., :channels] = 0
    kernel[height // 2, width // 2, :, :channels] = np.eye(channels)
    return kernel


def _usual() -> keras.initializers.Initializer:
    """PyTorch's default of convolutions and dense layers: uniform within 1 / sqrt(fan_in)."""
    return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")


def _usual_bias(fan_in: int) -> keras.initializers.Initializer:
    """PyTorch's default of a bias, of a layer whose outputs sum `fan_in` products."""
    bound = 1 / math.sqrt(fan_in)
    return keras.initializers.RandomUniform(-bound, bound)


def whitening_kernel(
    images: tf.Tensor, *, count: int | None = None, epsilon: float = WHITENING
) -> np.ndarray:
    """The kernel of a convolution whose outputs over patches of images are not correlated.

    Its filters are plus and minus the eigenvectors of the covariance of all 2x2 patches, each over
    the root of its eigenvalue. As in the recipe, no mean is subtracted.

    Args:
        images: (n, height, width, channels), pixels in 0 to 255, on any device.
        count: How many of the first images are looked at; None for all.
        epsilon: Added to the eigenvalues.

    Returns:
        float32 (2, 2, channels, 8 * channels).
    """
    covariance = _patch_covariance(images, count).numpy().astype(np.float64)
    values, vectors = np.linalg.eigh(covariance)
    filters = vectors / np.sqrt(values + epsilon)  # A column each.
    filters = np.concatenate([filters, -filters], axis=1)
    return filters.reshape(_PATCH, _PATCH, -1, filters.shape[1]).astype(np.float32)


@tf.function(jit_compile=True, reduce_retracing=True, autograph=False)
def _patch_covariance(images: tf.Tensor, count: int | None) -> tf.Tensor:
    """Of normalised images: float32 (4 * channels, 4 * channels), rows first, then columns."""
    height, width, channels = images.shape[1:]
    mean, deviation = tf.constant(MEAN), tf.constant(DEVIATION)
    if channels == 1:
        mean, deviation = tf.reduce_mean(mean), tf.reduce_mean(deviation)
    x = (tf.cast(images[:count], tf.float32) / 255 - mean) / deviation
    patches = tf.concat(
        [
            x[:, row : height - _PATCH + 1 + row, column : width - _PATCH + 1 + column]
            for row in range(_PATCH)
            for column in range(_PATCH)
        ],
        axis=-1,
    )
    patches = tf.reshape(patches, [-1, (height - 1) * (width - 1), _PATCH**2 * channels])
    # A product for each image: one over all patches would be a sum of five million terms, which a
    # device with many processors takes badly.
    products = tf.matmul(patches, patches, transpose_a=True)
    return tf.reduce_mean(products, axis=0) / ((height - 1) * (width - 1))


# ---- layers ---------------------------------------------------------------------------------


def _convolution(units: int, name: str) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        units, 3, padding="same", use_bias=False, kernel_initializer=_usual(), name=name
    )


def _normalisation(name: str) -> keras.layers.BatchNormalization:
    # Keras computes it in float32 in any precision.
    return keras.layers.BatchNormalization(momentum=0.6, epsilon=1e-12, scale=False, name=name)


def _pool(x: Any, name: str, *, sliced: bool) -> Any:
    """Takes the largest of each 2x2 window; a last odd row or column is left out."""
    if not sliced:
        return keras.layers.MaxPooling2D(2, name=name)(x)
    rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    # The gradient of the larger of two goes to the first where they are equal, which is the one
    # in the window that pooling takes.
    upper, lower = (
        keras.ops.maximum(x[:, row:rows:2, 0:columns:2], x[:, row:rows:2, 1:columns:2])
        for row in (0, 1)
    )
    return keras.ops.maximum(upper, lower)


# ---- test-time average ----------------------------------------------------------------------


VIEW_WEIGHTS = (0.25, 0.25, 0.125, 0.125, 0.125, 0.125)
"""What each of `views_of` counts in the average."""


def views_of(images: tf.Tensor) -> tf.Tensor:
    """An image and two shifts of it by one pixel, each followed by its mirror image.

    The shifts are up and left, and down and right, padded by reflection.

    Args:
        images: (n, height, width, channels).

    Returns:
        (6, n, height, width, channels), the images themselves first.
    """
    height, width = images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="REFLECT")
    shifted = [padded[:, at : at + height, at : at + width] for at in (0, 2)]
    views = [images, *shifted]
    return tf.stack([way for view in views for way in (view, tf.reverse(view, axis=[2]))])


def view_logits(model: keras.Model, images: tf.Tensor) -> tf.Tensor:
    """A model's logits of all views of images, of one call.

    Their sum over the views with `VIEW_WEIGHTS` is the test-time average: half of it the mean over
    the image and its mirror image, half the mean over the shifts and theirs.

    Args:
        model: From pixels to logits.
        images: (n, height, width, channels), pixels in 0 to 255.

    Returns:
        float32 (6, n, classes), the first those of the images themselves.
    """
    views = views_of(images)
    logits = model(tf.reshape(views, [-1, *images.shape[1:]]), training=False)
    return tf.reshape(logits, [len(VIEW_WEIGHTS), -1, logits.shape[-1]])
