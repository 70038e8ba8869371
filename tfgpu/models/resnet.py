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

# Mean and deviation of the pixels of a training set: red, green and blue, in 0 to 255.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
CIFAR10 = ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))

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
    check_size("resnet50", image_shape, least=32)
    base = _whole_channels(64 * width)
    inputs = keras.Input(image_shape, name="pixels")
    x = standardised(inputs, *IMAGENET)
    # Padded by as much on each side, which cuDNN computes in place: with padding="same" the two
    # sides differ, and XLA copies the images for it.
    x = layers.ZeroPadding2D(3, name="stem_pad")(x)
    x = convolution(base, 7, strides=2, padding="valid", name="stem_conv")(x)
    x = normalisation("stem_bn")(x)
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
    return classifier(inputs, x, num_classes, start=start, name="resnet50")


def _bottleneck(
    x: keras.KerasTensor, channels: int, *, stride: int, name: str
) -> keras.KerasTensor:
    """1x1, 3x3 and 1x1 convolutions, the last to four times the channels, beside a shortcut."""
    shortcut = x
    if stride > 1 or x.shape[-1] != 4 * channels:
        shortcut = convolution(4 * channels, 1, strides=stride, name=f"{name}_shortcut_conv")(x)
        shortcut = normalisation(f"{name}_shortcut_bn")(shortcut)
    x = convolution(channels, 1, name=f"{name}_conv1")(x)
    x = normalisation(f"{name}_bn1")(x)
    x = layers.Activation("relu", name=f"{name}_relu1")(x)
    x = strided(x, channels, stride=stride, name=f"{name}_conv2")
    x = normalisation(f"{name}_bn2")(x)
    x = layers.Activation("relu", name=f"{name}_relu2")(x)
    x = convolution(4 * channels, 1, name=f"{name}_conv3")(x)
    # From 0: at the start each block passes on what it gets.
    x = normalisation(f"{name}_bn3", gamma="zeros")(x)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("relu", name=f"{name}_relu3")(x)


def resnet20(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    depth: int = 20,
) -> tfgpu.Model:
    """ResNet-20 for 32x32 images: three stages of 16, 32 and 64 channels.

    269,722 parameters for 10 classes, 1,376 more that are moving statistics, and 81.1 MFLOP for
    the forward pass of a 32x32 image. Where a stage begins, the shortcut takes every second pixel
    and has zeros for the new channels, without a parameter (the paper's option A).

    Source: He et al., section 4.2.

    Args:
        image_shape: Height, width and channels; at least 8 x 8.
        num_classes: Size of the output.
        width: Multiplies the channels, rounded to multiples of 8.
        depth: Layers with weights, 6 n + 2: 20, 32, 44, 56 and 110 are the paper's.

    Returns:
        A model from pixels in 0 to 255, (batch, height, width, channels), to float32
        logits, (batch, num_classes). Normalisation by CIFAR-10's mean and deviation is part of
        it; for images that are not of three channels, to [-1, 1].

    Raises:
        ValueError: The image is too small, `width` is not positive, or `depth` is not 6 n + 2.
    """
    if width <= 0:
        raise ValueError(f"resnet20 needs a width above 0, not {width:g}")
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"resnet20 has a depth of 6 n + 2, such as 20, 32 or 56, not {depth}")
    check_size("resnet20", image_shape, least=8)
    inputs = keras.Input(image_shape, name="pixels")
    x = standardised(inputs, *CIFAR10)
    x = convolution(_whole_channels(16 * width), 3, name="stem_conv")(x)
    x = normalisation("stem_bn")(x)
    x = layers.Activation("relu", name="stem_relu")(x)
    for stage in (1, 2, 3):
        for block in range(1, depth // 6 + 1):
            x = _basic(
                x,
                _whole_channels(16 * width * 2 ** (stage - 1)),
                stride=2 if stage > 1 and block == 1 else 1,
                name=f"stage{stage}_block{block}",
            )
    return classifier(inputs, x, num_classes, start="he_normal", name="resnet20")


def _basic(x: keras.KerasTensor, channels: int, *, stride: int, name: str) -> keras.KerasTensor:
    """Two 3x3 convolutions beside a shortcut without parameters."""
    shortcut = x
    if stride > 1:
        more = channels - x.shape[-1]
        shortcut = keras.ops.pad(
            x[:, ::stride, ::stride, :], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2))
        )
    x = strided(x, channels, stride=stride, name=f"{name}_conv1")
    x = normalisation(f"{name}_bn1")(x)
    x = layers.Activation("relu", name=f"{name}_relu1")(x)
    x = convolution(channels, 3, name=f"{name}_conv2")(x)
    x = normalisation(f"{name}_bn2")(x)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("relu", name=f"{name}_relu2")(x)


def standardised(
    pixels: keras.KerasTensor, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> keras.KerasTensor:
    """(pixel - mean) / deviation, as one multiplication and one addition.

    Args:
        pixels: (batch, height, width, channels) in 0 to 255.
        mean: Of each channel.
        deviation: The same. Images of another number of channels are brought to [-1, 1].
    """
    if pixels.shape[-1] != len(mean):
        return layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(pixels)
    scale = [1 / each for each in deviation]
    offset = [-of / each for of, each in zip(mean, deviation, strict=True)]
    return layers.Rescaling(scale, offset=offset, name="normalise")(pixels)


def strided(x: keras.KerasTensor, filters: int, *, stride: int, name: str) -> keras.KerasTensor:
    """A 3x3 convolution, padded by as much on each side whatever the stride."""
    if stride == 1:
        return convolution(filters, 3, name=name)(x)
    x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return convolution(filters, 3, strides=stride, padding="valid", name=name)(x)


def convolution(
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


def normalisation(
    name: str, *, gamma: str = "ones"
) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    """Batch normalisation, with its scale from `gamma`."""
    return layers.BatchNormalization(
        momentum=MOMENTUM, epsilon=EPSILON, gamma_initializer=gamma, name=name
    )


def classifier(
    inputs: keras.KerasTensor,
    x: keras.KerasTensor,
    num_classes: int,
    *,
    start: keras.Initializer | str,
    name: str,
) -> tfgpu.Model:
    """The mean over the pixels, and a linear layer that begins with `start`."""
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(num_classes, kernel_initializer=start, name="logits")(x)
    # Softmax and its gradient lose too much in 16 bits.
    outputs = layers.Activation("linear", dtype="float32", name="float32_logits")(x)
    return tfgpu.Model(inputs, outputs, name=name)


def check_size(name: str, image_shape: tuple[int, int, int], *, least: int) -> None:
    """Refuses images that are smaller than a network can take.

    Raises:
        ValueError: They are.
    """
    height, columns, _ = image_shape
    if min(height, columns) < least:
        raise ValueError(
            f"{name} needs images of at least {least}x{least} pixels, not {height}x{columns}"
        )


def _whole_channels(channels: float) -> int:
    """The nearest multiple of 8, which is what tensor cores want in 16 bits."""
    return max(8, round(channels / 8) * 8)
