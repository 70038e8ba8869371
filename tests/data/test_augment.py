"""Augmentation against plain NumPy, and that it is a function of its arguments alone."""

import numpy as np
import pytest
import tensorflow as tf

from tfgpu.data.augment import (
    CROP_PADDING,
    TRANSFORMATIONS,
    alternated,
    augment,
    cropping,
    draw,
    random_crop,
    random_flip,
)

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (40, 9, 7, 3), np.uint8)
# The corners first: the extreme shifts both ways, which uniform draws seldom give.
DRAWS = np.concatenate(
    [
        np.array([[0, 0], [0, 0.9999], [0.9999, 0], [0.9999, 0.9999]], np.float32),
        RANDOM.uniform(size=(36, 2)).astype(np.float32),
    ]
)


def numpy_crop(images, draws, padding):
    """Pads by reflection and cuts a window out, image by image."""
    height, width = images.shape[1:3]
    windows = []
    for image, shift in zip(images, draws, strict=True):
        padded = np.pad(image, [(padding, padding)] * 2 + [(0, 0)], mode="reflect")
        top, left = (shift * np.float32(2 * padding + 1)).astype(int)
        windows.append(padded[top : top + height, left : left + width])
    return np.stack(windows)


def numpy_flip(images, draws):
    return np.where(draws[:, :, None, None] < 0.5, images[:, :, ::-1], images)


@pytest.mark.parametrize("padding", [0, 1, 4, 6])
def test_crop_is_padding_by_reflection_and_a_window(padding):
    cropped = random_crop(tf.constant(IMAGES), tf.constant(DRAWS), padding=padding).numpy()
    np.testing.assert_array_equal(cropped, numpy_crop(IMAGES, DRAWS, padding))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_and_flip_keep_shape_and_dtype(dtype):
    images = tf.constant(IMAGES.astype(dtype))
    for function, width in TRANSFORMATIONS.values():
        changed = function(images, tf.constant(DRAWS[:, :width]))
        assert (changed.shape, changed.dtype) == (images.shape, images.dtype)


def test_flip_mirrors_below_one_half():
    draws = np.array([[0.0], [0.4999], [0.5], [0.9999]], np.float32)
    flipped = random_flip(tf.constant(IMAGES[:4]), tf.constant(draws)).numpy()
    np.testing.assert_array_equal(flipped, numpy_flip(IMAGES[:4], draws))
    np.testing.assert_array_equal(flipped[2:], IMAGES[2:4])


def changed(*, names=("crop", "flip"), seed=3, step=2, rows=slice(20), jit_compile=False):
    """A batch of 20 as the step gets it: draws from a pipeline, images changed in the step."""
    [draws] = tf.data.Dataset.from_tensors(np.int64(step)).map(
        lambda step: draw(20, names=names, seed=seed, step=step)
    )

    @tf.function(jit_compile=jit_compile)
    def apply(images, draws):
        return augment(images, draws, names=names)

    return apply(tf.constant(IMAGES[:20][rows]), draws[rows]).numpy()


def test_no_names_change_nothing():
    np.testing.assert_array_equal(changed(names=()), IMAGES[:20])


def test_names_apply_in_order_with_draws_of_their_own():
    draws = draw(20, names=("crop", "flip"), seed=3, step=tf.constant(2, tf.int64)).numpy()
    assert draws.shape == (20, 3) and 0 <= draws.min() <= draws.max() < 1
    expected = numpy_flip(numpy_crop(IMAGES[:20], draws[:, :2], CROP_PADDING), draws[:, 2:])
    np.testing.assert_array_equal(changed(), expected)


def test_the_same_arguments_give_the_same_images():
    np.testing.assert_array_equal(changed(), changed())


@pytest.mark.parametrize("other", [{"seed": 4}, {"step": 3}, {"names": ("flip", "crop")}])
def test_other_arguments_give_others(other):
    assert (changed() != changed(**other)).any()


def test_the_draws_never_change():
    # A run that goes on under another version must go on with the same images.
    draws = draw(2, names=("flip",), seed=3, step=tf.constant(2, tf.int64))
    np.testing.assert_allclose(draws[:, 0], [0.8747889, 0.37485957], rtol=1e-6)


def test_a_share_of_the_batch_is_changed_as_in_the_whole():
    whole = changed()
    np.testing.assert_array_equal(changed(rows=slice(0, 7)), whole[:7])
    np.testing.assert_array_equal(changed(rows=slice(7, 20)), whole[7:])


def test_xla_gives_the_same_images():
    np.testing.assert_array_equal(changed(jit_compile=True), changed())


def test_a_crop_with_another_padding_shifts_that_far():
    y = tf.range(40)
    cropped, same = cropping(2).function(tf.constant(IMAGES), y, tf.constant(DRAWS))
    np.testing.assert_array_equal(cropped, numpy_crop(IMAGES, DRAWS, 2))
    assert same is y


def test_equal_crops_share_what_is_traced():
    assert cropping(2) is cropping(2)
    assert cropping(2) != cropping(3)


def test_alternating_numbers_move_by_one_half_and_back():
    def of(epoch):
        return alternated(1000, width=2, seed=3, epoch=tf.constant(epoch, tf.int64)).numpy()

    assert ((0 <= of(0)) & (of(0) < 1) & (0 <= of(1)) & (of(1) < 1)).all()
    np.testing.assert_array_equal(of(0) < 0.5, of(1) >= 0.5)
    np.testing.assert_array_equal(of(2), of(0))
    np.testing.assert_array_equal(of(3), of(1))
    assert 0.4 < (of(0) < 0.5).mean() < 0.6
    assert len(np.unique(of(0))) > 1990
