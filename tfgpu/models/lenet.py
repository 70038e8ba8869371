"""The small CNN of the main job."""

import keras

import tfgpu


def lenet(
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    depth: int = 2,
) -> tfgpu.Model:
    """Two convolutions, two poolings, three dense layers.

    Source: LeCun et al., "Gradient-based learning applied to document recognition",
    Proc. IEEE 86(11), 1998, in the variant widely taught for CIFAR-10 (max-pooling, ReLU,
    no padding): 62,006 parameters for 32x32x3 images and 10 classes.

    Args:
        image_shape: Height, width and channels; at least 16 x 16.
        num_classes: Size of the output.
        width: Multiplies the channels of convolutions and the units of hidden dense layers,
            rounded to whole numbers of at least 1.
        depth: Convolutions. 1 leaves the second and its pooling out; those above 2 are of 3x3,
            padded, before the second pooling, with as many channels as the second.

    Returns:
        A model from pixels in 0 to 255, (batch, height, width, channels), to float32
        logits, (batch, num_classes). Normalisation to [-1, 1] is part of it.

    Raises:
        ValueError: The image is smaller than the two convolutions and poolings need, or `width`
            or `depth` is not positive.
    """
    if width <= 0 or depth < 1:
        raise ValueError(f"lenet needs a width above 0 and a depth of 1 or more: {width}, {depth}")
    if min(image_shape[:2]) < 16:
        raise ValueError(
            f"lenet needs images of at least 16x16 pixels, not {image_shape[0]}x{image_shape[1]}"
        )
    layers = keras.layers

    def wide(units: int) -> int:
        return max(1, round(units * width))

    inputs = keras.Input(image_shape, name="pixels")
    # (x / 255 - 0.5) / 0.5, as one multiplication and one addition.
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="normalise")(inputs)
    x = layers.Conv2D(wide(6), 5, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    if depth > 1:
        x = layers.Conv2D(wide(16), 5, activation="relu", name="conv2")(x)
        for number in range(3, depth + 1):
            name = f"conv{number}"
            x = layers.Conv2D(wide(16), 3, padding="same", activation="relu", name=name)(x)
        x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(wide(120), activation="relu", name="dense1")(x)
    x = layers.Dense(wide(84), activation="relu", name="dense2")(x)
    x = layers.Dense(num_classes, name="logits")(x)
    # Softmax and its gradient lose too much in 16 bits.
    outputs = layers.Activation("linear", dtype="float32", name="float32_logits")(x)
    return tfgpu.Model(inputs, outputs, name="lenet")
