"""Random augmentation of batches: stateless, vectorised, on the device.

A transformation is a pure function of a batch and of one row of random numbers an example.
The numbers are drawn with the batch, on the host, from (seed, step), and travel with it: an example
is changed in the same way however many replicas share the work, and with XLA or without (whose
`stateless_uniform` draws other numbers than TensorFlow's own).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfgpu.data import elementary
from tfgpu.data.gathering import gather

CROP_PADDING = 4
"""Pixels that `random_crop` reflects at each border: the usual 4 for 32x32 images."""


@dataclasses.dataclass(frozen=True)
class Transformation:
    """One augmentation, of x and y together.

    Attributes:
        name: As in `--augment`.
        numbers: How many random numbers it takes an example.
        function: (x, y, draws) -> (x, y), batches of the same shapes and dtypes; draws are float32
            in [0, 1), (n, numbers). It runs in the training step, on the device, and must be a
            function of a module: data sets with the same one share what was traced.
        mixes: Whether it mixes each example with another: its function also gets x and y of the
            others, after draws. Classes are then probabilities, float32 (n, classes).
        alternating: Whether an example keeps its numbers for the whole run, moved by one half
            (modulo 1) in every second epoch, in place of new ones in each step. What happens to
            it below 1/2 then happens in every second epoch, exactly.
    """

    name: str
    numbers: int
    function: Callable[..., tuple[Any, Any]]
    mixes: bool = False
    alternating: bool = False


MOST_RESIZED = 1.25
"""By which factor `random_resize` enlarges or shrinks at most."""

MOST_STRETCHED = 1.2
"""By which factor `random_resize` changes the ratio of the sides at most."""


def _reflect(position: tf.Tensor, size: int) -> tf.Tensor:
    """Maps positions left and right of 0..size-1 back inside, without repeating the edge."""
    last = size - 1
    return last - tf.abs(last - tf.abs(position))


def random_crop(images: tf.Tensor, draws: tf.Tensor, *, padding: int = CROP_PADDING) -> tf.Tensor:
    """Shifts each image by up to `padding` pixels, filling in by reflection.

    The same as padding by reflection and cutting out a window of the old size.
    Source: He et al., "Deep residual learning for image recognition", CVPR 2016, section
    4.2, with reflection in place of zeros.

    Args:
        images: (n, height, width, channels), any dtype; height and width above `padding`.
        draws: float32 in [0, 1), (n, 2): for the vertical and the horizontal shift.
        padding: The largest shift, in pixels.

    Returns:
        Images of the same shape and dtype.
    """
    height, width = images.shape[1], images.shape[2]
    shift = tf.cast(draws * (2 * padding + 1), tf.int32) - padding
    rows = _reflect(tf.range(height)[None, :] + shift[:, :1], height)
    columns = _reflect(tf.range(width)[None, :] + shift[:, 1:], width)
    images = gather(images, rows, axis=1, batch_dims=1)
    return gather(images, columns, axis=2, batch_dims=1)


def random_flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Mirrors each image left to right with probability 1/2.

    Args:
        images: (n, height, width, channels), any dtype.
        draws: float32 in [0, 1), (n, 1): an image is mirrored below 0.5.

    Returns:
        Images of the same shape and dtype.
    """
    return tf.where(draws[:, :, None, None] < 0.5, tf.reverse(images, axis=[2]), images)


def resize_factors(draws: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """By what `random_resize` enlarges: float32 (n, 1), of both sides and of their ratio.

    Args:
        draws: float32 in [0, 1), (n, 2): for the scale and for the stretch.
    """
    scale = elementary.exp(math.log(MOST_RESIZED) * (2 * draws[:, :1] - 1))
    return scale, elementary.exp(math.log(MOST_STRETCHED) * (draws[:, 1:2] - 0.5))


def resize_positions(draws: tf.Tensor, height: int, width: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Where `random_resize` takes each row and each column from.

    Args:
        draws: float32 in [0, 1), (n, 2): for the scale and for the stretch.
        height: Of the images.
        width: Of the images.

    Returns:
        float32 (n, height) and (n, width), positions from 0 to the last row and column.
    """
    scale, stretch = resize_factors(draws)

    def taken(size: int, factor: tf.Tensor) -> tf.Tensor:
        middle = (size - 1) / 2
        position = middle + (tf.range(size, dtype=tf.float32)[None, :] - middle) / factor
        last = tf.cast(size - 1, tf.float32)
        return tf.clip_by_value(last - tf.abs(last - tf.abs(position)), 0.0, last)

    return taken(height, scale * stretch), taken(width, scale / stretch)


def random_resize(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Enlarges or shrinks each image about its middle, filling in by reflection.

    By a factor from 1 / `MOST_RESIZED` to `MOST_RESIZED`, and with the sides in another ratio, up
    to `MOST_STRETCHED`; bilinear.

    Args:
        images: (n, height, width, channels), any dtype.
        draws: float32 in [0, 1), (n, 2): for the scale and for the stretch.

    Returns:
        Images of the same shape and dtype.
    """
    return resampled(images, *resize_positions(draws, images.shape[1], images.shape[2]))


def resampled(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Takes each row and each column of an image from another place, between pixels; bilinear.

    Args:
        images: (n, height, width, channels), any dtype.
        rows: float32 (n, height), from 0 to height - 1.
        columns: float32 (n, width), the same.

    Returns:
        Images of the same shape and dtype.
    """
    values = tf.cast(images, tf.float32)
    values = _between(values, rows, axis=1)
    values = _between(values, columns, axis=2)
    if images.dtype.is_integer:
        values = tf.round(values)
    return tf.cast(values, images.dtype)


def _between(values: tf.Tensor, positions: tf.Tensor, *, axis: int) -> tf.Tensor:
    """Interpolates along an axis at the positions of each example."""
    low = tf.floor(positions)
    part = positions - low
    first = tf.cast(low, tf.int32)
    second = tf.minimum(first + 1, values.shape[axis] - 1)
    shape = [-1, 1, 1, 1]
    shape[axis] = values.shape[axis]
    part = tf.reshape(part, shape)
    below = tf.gather(values, first, axis=axis, batch_dims=1)
    above = tf.gather(values, second, axis=axis, batch_dims=1)
    return below + (above - below) * part


GREY = 127
"""What is put where an image has nothing."""

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue: the weights of ITU-R BT.601."""


def grey(values: tf.Tensor) -> tf.Tensor:
    """The luma of each pixel: float32 (n, height, width, channels) to one channel."""
    if values.shape[-1] != 3:
        return values
    return tf.reduce_sum(values * tf.constant(LUMA), axis=-1, keepdims=True)


def to_pixels(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Floats cut to 0 to 255, and rounded where pixels are integers."""
    values = tf.clip_by_value(values, 0.0, 255.0)
    return tf.cast(tf.round(values) if dtype.is_integer else values, dtype)


def inside(
    height: int,
    width: int,
    *,
    top: tf.Tensor,
    bottom: tf.Tensor,
    left: tf.Tensor,
    right: tf.Tensor,
) -> tf.Tensor:
    """Which pixels lie in a rectangle, for each image: bool (n, height, width, 1).

    Args:
        height: Of the images.
        width: Of the images.
        top: float32 (n,), the first row.
        bottom: The first row below.
        left: The first column.
        right: The first column beyond.
    """
    row = tf.range(height, dtype=tf.float32)[None, :, None, None]
    column = tf.range(width, dtype=tf.float32)[None, None, :, None]

    def of_images(value: tf.Tensor) -> tf.Tensor:
        return value[:, None, None, None]

    rows = (row >= of_images(top)) & (row < of_images(bottom))
    return rows & (column >= of_images(left)) & (column < of_images(right))


# Of images alone: the function, and how many random numbers it takes an image.
TRANSFORMATIONS: dict[str, tuple[Callable[[tf.Tensor, tf.Tensor], tf.Tensor], int]] = {
    "crop": (random_crop, 2),
    "flip": (random_flip, 1),
    "resize": (random_resize, 2),
}


@functools.cache  # Data sets with the same one share what was traced.
def cropping(padding: int) -> Transformation:
    """The transformation `crop` with another largest shift.

    Args:
        padding: In pixels.
    """

    def crop(x: Any, y: Any, draws: tf.Tensor) -> tuple[Any, Any]:
        return random_crop(x, draws, padding=padding), y

    return Transformation(f"crop:{padding}", 2, crop)


def draw(count: int, *, names: Sequence[str], seed: int, step: tf.Tensor) -> tf.Tensor:
    """Draws the random numbers of a global batch.

    Args:
        count: Images in it.
        names: Keys of `TRANSFORMATIONS`.
        seed: Of the run.
        step: int64 scalar, counted from the beginning of the run.

    Returns:
        float32 in [0, 1), (count, numbers an image): a pure function of the arguments, where no
        XLA compiles it.
    """
    return draw_numbers(
        count, width=sum(TRANSFORMATIONS[name][1] for name in names), seed=seed, step=step
    )


def draw_numbers(count: int, *, width: int, seed: int, step: tf.Tensor) -> tf.Tensor:
    """Draws `width` random numbers for each example of a global batch; see `draw`."""
    key = tf.stack([tf.cast(seed, tf.int64), step])
    return tf.random.stateless_uniform([count, width], seed=key, alg="philox")


def alternated(count: int, *, width: int, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Draws the numbers of all examples for an epoch of `alternating` transformations.

    Args:
        count: Examples in the data set.
        width: Numbers an example.
        seed: Of the run.
        epoch: int64 scalar, from 0.

    Returns:
        float32 in [0, 1), (count, width): in even epochs the same ones, in odd epochs these plus
        1/2, modulo 1.
    """
    # No step has the number -1.
    numbers = draw_numbers(count, width=width, seed=seed, step=tf.constant(-1, tf.int64))
    # Exact: the numbers are multiples of 2^-23.
    return tf.math.floormod(numbers + 0.5 * tf.cast(epoch % 2, tf.float32), 1.0)


def augment(images: tf.Tensor, draws: tf.Tensor, *, names: Sequence[str]) -> tf.Tensor:
    """Applies the named transformations in order.

    Args:
        images: (n, height, width, channels), any dtype.
        draws: Rows of what `draw` returned, one an image.
        names: Keys of `TRANSFORMATIONS`.

    Returns:
        Images of the same shape and dtype, a pure function of the arguments.
    """
    if not names:
        return images
    widths = [TRANSFORMATIONS[name][1] for name in names]
    for name, own in zip(names, tf.split(draws, widths, axis=1), strict=True):
        images = TRANSFORMATIONS[name][0](images, own)
    return images


def transform(
    x: Any,
    y: Any,
    draws: tf.Tensor,
    *,
    transformations: Sequence[Transformation],
    others: tuple[Any, Any] | None = None,
) -> tuple[Any, Any]:
    """Applies transformations of x and y in order.

    Args:
        x: A batch, a tensor or a dict of tensors.
        y: The same.
        draws: Rows of what `draw_numbers` returned for all of them, one an example; and after
            them those for `others`.
        transformations: Each takes its columns of `draws`. One of them may mix.
        others: x and y of the examples to mix with. They are changed by what comes before the
            mixture, as they are in their own place in the batch.
    """
    if not transformations:
        return x, y
    widths = [each.numbers for each in transformations]
    before = numbers_of_others(transformations)
    columns = tf.split(draws, [*widths, before], axis=1)
    for at, each in enumerate(transformations):
        if not each.mixes:
            x, y = each.function(x, y, columns[at])
            continue
        assert others is not None
        first = transformations[:at]
        their_x, their_y = transform(*others, columns[-1], transformations=first)
        x, y = each.function(x, y, columns[at], their_x, their_y)
    return x, y


def numbers_of_others(transformations: Sequence[Transformation]) -> int:
    """How many random numbers an example that is mixed with takes: those before the mixture."""
    for at, each in enumerate(transformations):
        if each.mixes:
            return sum(one.numbers for one in transformations[:at])
    return 0


def mix(transformations: Sequence[Transformation]) -> bool:
    """Whether one of them mixes examples."""
    return any(each.mixes for each in transformations)
