"""Residual networks: those for photographs and those for 32x32 images.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016: sections 3.3 and 4.2.
"""

from __future__ import annotations

from collections.abc import Callable

import keras

import tfgpu

layers = keras.layers

# For each depth, the blocks of the four stages. Source: He et al., table 1.
BOTTLENECKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

# Of the pixels of ImageNet's training set, red, green and blue, in 0 to 255.
MEAN = (123.675, 116.28, 103.53)
DEVIATION = (58.395, 57.12, 57.375)

MOMENTUM, EPSILON = 0.9, 1e-5
"""Of batch normalisation, as in the paper's own code and in PyTorch (where it is called 0.1)."""


def resnet50(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    depth: int = 50,
) -> tfgpu.Model:
    """ResNet-50 v1.5: of bottleneck blocks, whose 3x3 convolution has the stride.

    25,557,032 parameters for 1,000 classes, 53,120 more that are moving statistics, and 8.18 GFLOP
    for the forward pass of a 224x224 image. The paper's own (v1) has the stride in the first 1x1
    convolution, which reads a quarter of its input.

    Source: He et al., and Goyal et al., "Accurate, Large Minibatch SGD", arXiv:1706.02677,
    section 5.1: stride in the 3x3 convolution, the last scale of each block 0 at the start, and
    the classifier's weights from a normal distribution of 0.01.

    Args:
        image_shape: Height, width and channels; at least 32 x 32.
        num_classes: Size of the output.
        width: Multiplies the channels, rounded to multiples of 8.
        depth: Layers with weights: 50, 101 or 152.

    Returns:
        A model from pixels in 0 to 255, (batch, height, width, channels), to float32
        logits, (batch, num_classes). Normalisation by ImageNet's mean and deviation is part of
        it; for images that are not of three channels, to [-1, 1].

    Raises:
        ValueError: The image is too small, `width` is not positive, or there is no such depth.
    """
    if width <= 0:
        raise ValueError(f"resnet50 needs a width above 0, not {width:g}")
    if depth not in BOTTLENECKS:
        raise ValueError(f"resnet50 has a depth of {', '.join(map(str, BOTTLENECKS))}, not {depth}")
    _check_size("resnet50", image_shape, least=32)
    base = _whole_channels(64 * width)
    inputs = keras.Input(image_shape, name="pixels")
    x = _standardised(inputs)
    # Padded by as much on each side, which cuDNN computes in place: with padding="same" the two
    # sides differ, and XLA copies the images for it.
    x = layers.ZeroPadding2D(3, name="stem_pad")(x)
    x = _convolution(base, 7, strides=2, padding="valid", name="stem_conv")(x)
    x = _normalisation("stem_bn")(x)
    x = layers.Activation("relu", name="stem_relu")(x)
    # Zeros are never above what ReLU returns.
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    for stage, blocks in enumerate(BOTTLENECKS[depth], start=1):
        for block in range(1, blocks + 1):
            x = _bottleneck(
                x,
                _whole_channels(64 * width * 2 ** (stage - 1)),
                stride=2 if stage > 1 and block == 1 else 1,
                name=f"stage{stage}_block{block}",
            )
    start = keras.initializers.RandomNormal(stddev=0.01)
    return _classifier(inputs, x, num_classes, start=start, name="resnet50")


def _bottleneck(
    x: keras.KerasTensor, channels: int, *, stride: int, name: str
) -> keras.KerasTensor:
    """1x1, 3x3 and 1x1 convolutions, the last to four times the channels, beside a shortcut."""
    shortcut = x
    if stride > 1 or x.shape[-1] != 4 * channels:
        shortcut = _convolution(4 * channels, 1, strides=stride, name=f"{name}_shortcut_conv")(x)
        shortcut = _normalisation(f"{name}_shortcut_bn")(shortcut)
    x = _convolution(channels, 1, name=f"{name}_conv1")(x)
    x = _normalisation(f"{name}_bn1")(x)
    x = layers.Activation("relu", name=f"{name}_relu1")(x)
    padding = "same"
    if stride > 1:
        x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
        padding = "valid"
    x = _convolution(channels, 3, strides=stride, padding=padding, name=f"{name}_conv2")(x)
    x = _normalisation(f"{name}_bn2")(x)
    x = layers.Activation("relu", name=f"{name}_relu2")(x)
    x = _convolution(4 * channels, 1, name=f"{name}_conv3")(x)
    # From 0: at the start each block passes on what it gets.
    x = _normalisation(f"{name}_bn3", gamma="zeros")(x)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("relu", name=f"{name}_relu3")(x)


def _standardised(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """(pixel - mean) / deviation, as one multiplication and one addition."""
    if pixels.shape[-1] != 3:
        return layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(pixels)
    scale = [1 / deviation for deviation in DEVIATION]
    offset = [-mean / deviation for mean, deviation in zip(MEAN, DEVIATION, strict=True)]
    return layers.Rescaling(scale, offset=offset, name="normalise")(pixels)


def _convolution(
    filters: int, size: int, *, name: str, strides: int = 1, padding: str = "same"
) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    """Without bias, since batch normalisation follows; He's initial values by the outputs."""
    start = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=start,
        name=name,
    )


def _normalisation(
    name: str, *, gamma: str = "ones"
) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    return layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=EPSILON, gamma_initializer=gamma, name=name
    )


def _classifier(
    inputs: keras.KerasTensor,
    x: keras.KerasTensor,
    num_classes: int,
    *,
    start: keras.Initializer | str,
    name: str,
) -> tfgpu.Model:
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(num_classes, kernel_initializer=start, name="logits")(x)
    # Softmax and its gradient lose too much in 16 bits.
    outputs = layers.Activation("linear", dtype="float32", name="float32_logits")(x)
    return tfgpu.Model(inputs, outputs, name=name)


def _check_size(name: str, image_shape: tuple[int, int, int], *, least: int) -> None:
    height, columns, _ = image_shape
    if min(height, columns) < least:
        raise ValueError(
            f"{name} needs images of at least {least}x{least} pixels, not {height}x{columns}"
        )


def _whole_channels(channels: float) -> int:
    """The nearest multiple of 8, which is what tensor cores want in 16 bits."""
    return max(8, round(channels / 8) * 8)
