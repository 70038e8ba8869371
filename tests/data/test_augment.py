"""Augmentation against plain NumPy, and that it is a function of its arguments alone."""

import numpy as np
import pytest
import tensorflow as tf

from tfgpu.config import AUGMENTATIONS
from tfgpu.data.augment import CROP_PADDING, TRANSFORMATIONS, augment, random_crop, random_flip

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
    for image, draw in zip(images, draws, strict=True):
        padded = np.pad(image, [(padding, padding)] * 2 + [(0, 0)], mode="reflect")
        top, left = (draw * np.float32(2 * padding + 1)).astype(int)
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


def changed(rows, *, names=("crop", "flip"), seed=3, batch_size=20, jit_compile=False):
    @tf.function(jit_compile=jit_compile)
    def apply(images, rows):
        return augment(images, rows, names=names, seed=seed, batch_size=batch_size)

    rows = np.asarray(rows, np.int64)
    return apply(tf.constant(IMAGES[rows % len(IMAGES)]), tf.constant(rows)).numpy()


def test_no_names_change_nothing():
    np.testing.assert_array_equal(changed(range(20), names=()), IMAGES[:20])


def test_names_apply_in_order_with_draws_of_their_own():
    draws = tf.random.stateless_uniform([20, 3], seed=[3, 2], alg="philox").numpy()
    expected = numpy_flip(numpy_crop(IMAGES[:20], draws[:, :2], CROP_PADDING), draws[:, 2:])
    np.testing.assert_array_equal(changed(range(40, 60)), expected)


def test_the_same_arguments_give_the_same_images():
    np.testing.assert_array_equal(changed(range(20)), changed(range(20)))


@pytest.mark.parametrize("other", [{"seed": 4}, {"rows": range(40, 60)}])
def test_another_seed_or_step_gives_others(other):
    assert (changed(range(20)) != changed(**{"rows": range(20), **other})).any()


def test_a_share_of_the_batch_is_changed_as_in_the_whole():
    whole = changed(range(20))
    np.testing.assert_array_equal(changed(range(0, 7)), whole[:7])
    np.testing.assert_array_equal(changed(range(7, 20)), whole[7:])


def test_xla_gives_the_same_images():
    np.testing.assert_array_equal(changed(range(20), jit_compile=True), changed(range(20)))


def test_the_names_are_those_of_the_flag():
    assert tuple(TRANSFORMATIONS) == AUGMENTATIONS
