"""A small U-Net: a class for each pixel."""

import keras

import tfgpu

CHANNELS = 16
"""Of the first level at width 1; each level below has twice as many."""


def unet(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    depth: int = 3,
) -> tfgpu.Model:
    """An encoder and a decoder of convolutions, joined level by level.

    Source: Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image
    Segmentation", MICCAI 2015, with padded convolutions, and with group normalisation (Wu and He,
    "Group Normalization", ECCV 2018), which depends on no other example of the batch.

    Args:
        image_shape: Height, width and channels, of any size.
        num_classes: Classes of a pixel.
        width: Multiplies the channels, rounded to multiples of 8.
        depth: Poolings, each with its level of the encoder and of the decoder.

    Returns:
        A model from pixels in 0 to 255, (batch, height, width, channels), to float32 logits,
        (batch, height, width, num_classes). Normalisation to [-1, 1] is part of it.

    Raises:
        ValueError: `width` or `depth` is not positive, or there are more poolings than the image
            has pixels for.
    """
    if width <= 0 or depth < 1:
        raise ValueError(f"unet needs a width above 0 and a depth of 1 or more: {width}, {depth}")
    height, columns, _ = image_shape
    multiple = 2**depth
    if min(height, columns) < multiple:
        raise ValueError(
            f"unet with depth {depth} needs images of at least {multiple}x{multiple} pixels, not "
            f"{height}x{columns}"
        )
    layers = keras.layers

    def channels(level: int) -> int:
        return max(8, round(CHANNELS * 2**level * width / 8) * 8)

    def block(x: keras.KerasTensor, level: int, name: str) -> keras.KerasTensor:
        for number in (1, 2):
            x = layers.Conv2D(
                channels(level), 3, padding="same", use_bias=False, name=f"{name}_conv{number}"
            )(x)
            x = layers.GroupNormalization(8, name=f"{name}_norm{number}")(x)
            x = layers.Activation("relu", name=f"{name}_relu{number}")(x)
        return x

    inputs = keras.Input(image_shape, name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs)
    below, right = -height % multiple, -columns % multiple
    if below or right:
        x = layers.ZeroPadding2D(((0, below), (0, right)), name="pad")(x)
    skipped = []
    for level in range(depth):
        x = block(x, level, f"down{level}")
        skipped.append(x)
        x = layers.MaxPooling2D(2, name=f"pool{level}")(x)
    x = block(x, depth, "bottom")
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(channels(level), 2, strides=2, name=f"up{level}_conv")(x)
        x = layers.Concatenate(name=f"up{level}_join")([skipped[level], x])
        x = block(x, level, f"up{level}")
    x = layers.Conv2D(num_classes, 1, name="logits")(x)
    if below or right:
        x = layers.Cropping2D(((0, below), (0, right)), name="crop")(x)
    # Softmax and its gradient lose too much in 16 bits.
    outputs = layers.Activation("linear", dtype="float32", name="float32_logits")(x)
    return tfgpu.Model(inputs, outputs, name="unet")
