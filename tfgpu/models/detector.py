"""A small one-stage detector without anchors: what lies at each cell, and the box around it."""

import math

import keras

import tfgpu

STRIDE = 4
"""Pixels of an image, each way, that share a cell of the output."""

CHANNELS = 32
"""Of the level at `STRIDE` at width 1; each level below has twice as many, up to four times."""

HEAD_CHANNELS = 64
PRIOR = 0.01
"""The probability of an object at each cell that training begins with, as in RetinaNet."""

FIRST_SIZE = 5.0
"""The sides of boxes that training begins with, in cells."""


def centernet(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    depth: int = 3,
) -> tfgpu.Model:
    """A convolutional backbone, its levels summed from the deepest up, and two heads.

    An object is the cell that its middle lies in, after Zhou, Wang and Krähenbühl, "Objects as
    Points", 2019 (CenterNet). The backbone is of residual blocks (He et al., CVPR 2016), joined as
    in Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, with the top level
    alone read out. Group normalisation (Wu and He, ECCV 2018) depends on no other example of the
    batch.

    Args:
        image_shape: Height, width and channels, of any size.
        num_classes: Kinds of objects.
        width: Multiplies the channels, rounded to multiples of 8.
        depth: Levels below the first, each at half the resolution: the more, the larger the
            objects that can be seen as one.

    Returns:
        A model from pixels in 0 to 255, (batch, height, width, channels), to float32 (batch,
        height / 4, width / 4, num_classes + 4), sides rounded up. Of a cell they are a logit for
        each class, then where the middle of the box lies from the cell's own middle, down and
        right, in cells, and the logarithms of its height and width, in cells. Normalisation to
        [-1, 1] is part of the model.

    Raises:
        ValueError: `width` or `depth` is not positive, or there are more levels than the image has
            pixels for.
    """
    if width <= 0 or depth < 1:
        raise ValueError(
            f"centernet needs a width above 0 and a depth of 1 or more: {width}, {depth}"
        )
    height, columns, _ = image_shape
    multiple = STRIDE * 2**depth
    if min(height, columns) < multiple:
        raise ValueError(
            f"centernet with depth {depth} needs images of at least {multiple}x{multiple} pixels, "
            f"not {height}x{columns}"
        )
    layers = keras.layers

    def scaled(channels: int) -> int:
        return max(8, round(channels * width / 8) * 8)

    def conv(
        x: keras.KerasTensor,
        channels: int,
        name: str,
        *,
        strides: int = 1,
        relu: bool = True,
    ) -> keras.KerasTensor:
        x = layers.Conv2D(
            channels, 3, strides=strides, padding="same", use_bias=False, name=f"{name}_conv"
        )(x)
        x = layers.GroupNormalization(8, name=f"{name}_norm")(x)
        return layers.Activation("relu", name=f"{name}_relu")(x) if relu else x

    def block(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        channels = x.shape[-1]
        added = conv(conv(x, channels, f"{name}_1"), channels, f"{name}_2", relu=False)
        x = layers.Add(name=f"{name}_add")([x, added])
        return layers.Activation("relu", name=f"{name}_relu")(x)

    inputs = keras.Input(image_shape, name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs)
    below, right = -height % multiple, -columns % multiple
    if below or right:
        x = layers.ZeroPadding2D(((0, below), (0, right)), name="pad")(x)
    x = conv(x, scaled(CHANNELS // 2), "stem1", strides=2)
    x = conv(x, scaled(CHANNELS), "stem2", strides=2)
    levels = [block(x, "level0")]
    for level in range(1, depth + 1):
        x = conv(levels[-1], scaled(CHANNELS * min(2**level, 4)), f"down{level}", strides=2)
        levels.append(block(x, f"level{level}"))
    channels = scaled(HEAD_CHANNELS)
    x = layers.Conv2D(channels, 1, name=f"lateral{depth}")(levels[-1])
    for level in reversed(range(depth)):
        x = layers.UpSampling2D(2, name=f"up{level}")(x)
        lateral = layers.Conv2D(channels, 1, name=f"lateral{level}")(levels[level])
        x = layers.Add(name=f"join{level}")([lateral, x])
    x = conv(x, channels, "joined")
    objects = layers.Conv2D(
        num_classes,
        1,
        bias_initializer=keras.initializers.Constant(-math.log((1 - PRIOR) / PRIOR)),
        name="objects",
    )(conv(x, channels, "objects"))
    boxes = conv(x, channels, "boxes")
    middles = layers.Conv2D(2, 1, name="middles")(boxes)
    sizes = layers.Conv2D(
        2, 1, bias_initializer=keras.initializers.Constant(math.log(FIRST_SIZE)), name="sizes"
    )(boxes)
    x = layers.Concatenate(name="cells")([objects, middles, sizes])
    rows, cells = -(-height // STRIDE), -(-columns // STRIDE)
    spare = x.shape[1] - rows, x.shape[2] - cells
    if any(spare):
        x = layers.Cropping2D(((0, spare[0]), (0, spare[1])), name="crop")(x)
    # Sigmoid, exponential and their gradients lose too much in 16 bits.
    outputs = layers.Activation("linear", dtype="float32", name="float32_cells")(x)
    return tfgpu.Model(inputs, outputs, name="centernet")
