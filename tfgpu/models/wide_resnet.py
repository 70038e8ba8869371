"""Wide residual networks."""

from __future__ import annotations

import keras

import tfgpu
from tfgpu.models.resnet import (
    CIFAR10,
    check_size,
    classifier,
    convolution,
    normalisation,
    standardised,
    strided,
)

layers = keras.layers


def wide_resnet(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 10.0,
    depth: int = 28,
) -> tfgpu.Model:
    """WRN-28-10 and its kind: three stages of 16, 32 and 64 channels times `width`.

    WRN-28-10 has 36,479,194 parameters for 10 classes and 10.5 GFLOP for the forward pass of a
    32x32 image, WRN-16-4 2,748,890 and 0.78 GFLOP.

    Source: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016: blocks of two 3x3
    convolutions, each after normalisation and ReLU, without dropout.

    Args:
        image_shape: Height, width and channels; at least 8 x 8.
        num_classes: Size of the output.
        width: The paper's k: multiplies the channels of the blocks, rounded to whole numbers.
        depth: Convolutions, 6 n + 4: 16, 22, 28 and 40 are the paper's.

    Returns:
        A model from pixels in 0 to 255, (batch, height, width, channels), to float32
        logits, (batch, num_classes). Normalisation by CIFAR-10's mean and deviation is part of
        it; for images that are not of three channels, to [-1, 1].

    Raises:
        ValueError: The image is too small, `width` is not positive, or `depth` is not 6 n + 4.
    """
    if width <= 0:
        raise ValueError(f"wide_resnet needs a width above 0, not {width:g}")
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"wide_resnet has a depth of 6 n + 4, such as 16 or 28, not {depth}")
    check_size("wide_resnet", image_shape, least=8)
    inputs = keras.Input(image_shape, name="pixels")
    x = standardised(inputs, *CIFAR10)
    x = convolution(16, 3, name="stem_conv")(x)
    for stage in (1, 2, 3):
        channels = max(1, round(16 * width)) * 2 ** (stage - 1)
        for block in range(1, (depth - 4) // 6 + 1):
            x = _block(
                x,
                channels,
                stride=2 if stage > 1 and block == 1 else 1,
                name=f"stage{stage}_block{block}",
            )
    x = normalisation("last_bn")(x)
    x = layers.Activation("relu", name="last_relu")(x)
    return classifier(inputs, x, num_classes, start="he_normal", name="wide_resnet")


def _block(x: keras.KerasTensor, channels: int, *, stride: int, name: str) -> keras.KerasTensor:
    """Normalisation, ReLU and 3x3 convolution, twice, beside a shortcut."""
    y = normalisation(f"{name}_bn1")(x)
    y = layers.Activation("relu", name=f"{name}_relu1")(y)
    shortcut = x
    if stride > 1 or x.shape[-1] != channels:
        shortcut = convolution(channels, 1, strides=stride, name=f"{name}_shortcut_conv")(y)
    y = strided(y, channels, stride=stride, name=f"{name}_conv1")
    y = normalisation(f"{name}_bn2")(y)
    y = layers.Activation("relu", name=f"{name}_relu2")(y)
    y = convolution(channels, 3, name=f"{name}_conv2")(y)
    return layers.Add(name=f"{name}_add")([y, shortcut])
