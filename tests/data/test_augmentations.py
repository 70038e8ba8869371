"""Each augmentation against NumPy or Pillow, by the same draws, with XLA and without."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from tfgpu.data import augmentations
from tfgpu.data.augment import GREY, LUMA
from tfgpu.data.augmentations import randaugment as rand
from tfgpu.data.augmentations.cutmix import cutmix
from tfgpu.data.augmentations.cutout import cutout
from tfgpu.data.augmentations.mixup import mixup
from tfgpu.data.augmentations.resized_crop import resized_crop
from tfgpu.train.settings import AUGMENTATIONS

RANDOM = np.random.default_rng(0)
COUNT, HEIGHT, WIDTH, CLASSES = 24, 36, 24, 4
# Smooth and noisy ones, a flat one, and one with few values.
IMAGES = RANDOM.integers(0, 256, (COUNT, HEIGHT, WIDTH, 3)).astype(np.uint8)
IMAGES[::3] = IMAGES[::3] // 4 + 90
IMAGES[3] = 200
IMAGES[4] = (IMAGES[4] // 128) * 100
OTHERS = np.roll(IMAGES, 1, axis=0)
SOFT = np.eye(CLASSES, dtype=np.float32)[RANDOM.integers(0, CLASSES, COUNT)]
THEIRS = np.roll(SOFT, 1, axis=0)


def draws(width, count=COUNT):
    """With the smallest and the largest first, which uniform draws seldom give."""
    found = RANDOM.random((count, width)).astype(np.float32)
    found[0], found[1] = 0, np.float32(0.99999)
    return found


def enhanced(image, factor, other):
    mixed = np.asarray(other, float) + factor * (image.astype(float) - other)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def near(found, expected, *, by=1):
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= by, np.argwhere(difference > by)[:5]


# ---- cutout, mixup, cutmix ------------------------------------------------------------------


def test_cutout_hides_a_square_about_a_pixel():
    drawn = draws(2)
    found = cutout(tf.constant(IMAGES), tf.constant(drawn)).numpy()
    expected = IMAGES.copy()
    for image, (row, column) in zip(expected, drawn, strict=True):
        top, left = int(row * HEIGHT) - 6, int(column * WIDTH) - 6
        image[max(top, 0) : max(top + 12, 0), max(left, 0) : max(left + 12, 0)] = GREY
    np.testing.assert_array_equal(found, expected)


def test_mixup_mixes_images_and_classes_by_the_same_share():
    drawn = draws(1)
    images, classes = mixup(*map(tf.constant, (IMAGES, SOFT, drawn, OTHERS, THEIRS)))
    share = drawn[:, :, None, None].astype(float)
    near(images, np.rint(share * IMAGES + (1 - share) * OTHERS))
    np.testing.assert_allclose(classes, drawn * SOFT + (1 - drawn) * THEIRS, rtol=1e-6)
    np.testing.assert_allclose(classes.numpy().sum(axis=1), 1, rtol=1e-6)


def test_cutmix_mixes_classes_by_the_area_of_the_rectangle():
    drawn = draws(4)
    images, classes = cutmix(*map(tf.constant, (IMAGES, SOFT, drawn, OTHERS, THEIRS)))
    expected, shares = IMAGES.copy(), np.zeros(COUNT)
    for i, (whether, stays, row, column) in enumerate(drawn):
        if whether >= 0.5:
            continue
        part = np.sqrt(np.float32(1) - stays)
        half = int(HEIGHT * part) // 2, int(WIDTH * part) // 2
        middle = int(row * HEIGHT), int(column * WIDTH)
        (top, bottom), (left, right) = (
            (max(at - by, 0), min(at + by, size))
            for at, by, size in zip(middle, half, (HEIGHT, WIDTH), strict=True)
        )
        expected[i, top:bottom, left:right] = OTHERS[i, top:bottom, left:right]
        shares[i] = (bottom - top) * (right - left) / (HEIGHT * WIDTH)
    np.testing.assert_array_equal(images, expected)
    shares = shares[:, None]
    np.testing.assert_allclose(classes, (1 - shares) * SOFT + shares * THEIRS, atol=1e-6)
    assert 0.2 < (shares > 0).mean() < 0.6 and shares.max() > 0.3


# ---- resized_crop ---------------------------------------------------------------------------


def test_resized_crop_is_a_window_brought_to_size_by_pillow():
    drawn = draws(4)
    found = resized_crop(tf.constant(IMAGES), tf.constant(drawn)).numpy()
    sizes = []
    for image, result, (area, ratio, row, column) in zip(IMAGES, found, drawn, strict=True):
        area = (0.08 + 0.92 * area) * HEIGHT * WIDTH
        ratio = math.exp(math.log(4 / 3) * (2 * ratio - 1))
        tall = min(max(round(math.sqrt(area / ratio)), 1), HEIGHT)
        wide = min(max(round(math.sqrt(area * ratio)), 1), WIDTH)
        top, left = int(row * (HEIGHT - tall + 1)), int(column * (WIDTH - wide + 1))
        part = Image.fromarray(image[top : top + tall, left : left + wide])
        near(result, part.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))
        sizes.append(tall * wide / (HEIGHT * WIDTH))
    assert min(sizes) < 0.2 and max(sizes) > 0.8


# ---- color_jitter ---------------------------------------------------------------------------


def numpy_jitter(image, drawn):
    factors = 1 + 0.4 * (2 * drawn[:3].astype(float) - 1)
    values = image.astype(float) * factors[0]
    luma = np.array(LUMA)[: image.shape[-1]] if image.shape[-1] == 3 else np.array([1.0])
    mean = (values @ luma).mean()
    values = mean + factors[1] * (values - mean)
    if image.shape[-1] == 3:
        of_pixels = (values @ luma)[..., None]
        values = of_pixels + factors[2] * (values - of_pixels)
        yiq = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
        coordinates = values @ yiq.T
        angle = 2 * np.pi * 0.1 * (2 * drawn[3] - 1)
        i, q = coordinates[..., 1].copy(), coordinates[..., 2].copy()
        coordinates[..., 1] = i * np.cos(angle) - q * np.sin(angle)
        coordinates[..., 2] = i * np.sin(angle) + q * np.cos(angle)
        values = coordinates @ np.linalg.inv(yiq).T
    return np.rint(np.clip(values, 0, 255))


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter(channels):
    jitter = augmentations.of_images()["color_jitter"].function
    images, drawn = IMAGES[..., :channels], draws(4)
    found, y = jitter(tf.constant(images), "y", tf.constant(drawn))
    assert y == "y"
    for result, image, own in zip(found.numpy(), images, drawn, strict=True):
        near(result, numpy_jitter(image, own))


# ---- randaugment ----------------------------------------------------------------------------


def numpy_moved(image, name, sign):
    """By the inverse map, the nearest pixel, about the middle."""
    result = np.full_like(image, GREY)
    height, width = image.shape[:2]
    middle, centre = (height - 1) / 2, (width - 1) / 2
    for row in range(height):
        for column in range(width):
            y, x = row - middle, column - centre
            if name == "rotate":
                angle = np.float32(sign * rand.ROTATION)
                y, x = (
                    math.cos(angle) * y + math.sin(angle) * x,
                    (math.cos(angle) * x - math.sin(angle) * y),
                )
            elif name == "shear_x":
                x += sign * rand.SHEAR * y
            elif name == "shear_y":
                y += sign * rand.SHEAR * x
            elif name == "translate_x":
                x += sign * round(rand.TRANSLATION * width)
            else:
                y += sign * round(rand.TRANSLATION * height)
            at = math.floor(y + middle + 0.5), math.floor(x + centre + 0.5)
            if 0 <= at[0] < height and 0 <= at[1] < width:
                result[row, column] = image[at]
    return result


def pillow_sharpness(image, factor):
    """Pillow's, with its middle rounded: its own rounding is that of its blending."""
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor))


def expected_of(image, name, sign):
    factor = 1 + sign * 0.27
    pillow = Image.fromarray(image)
    match name:
        case "identity":
            return image, 0
        case "autocontrast":
            return np.asarray(ImageOps.autocontrast(pillow)), 1
        case "equalize":
            return np.asarray(ImageOps.equalize(pillow)), 0
        case "solarize":
            return np.asarray(ImageOps.solarize(pillow, 178.5)), 0
        case "posterize":
            return np.asarray(ImageOps.posterize(pillow, 7)), 0
        case "brightness":
            return np.asarray(ImageEnhance.Brightness(pillow).enhance(factor)), 1
        case "color":
            return np.asarray(ImageEnhance.Color(pillow).enhance(factor)), 1
        case "contrast":
            return np.asarray(ImageEnhance.Contrast(pillow).enhance(factor)), 1
        case "sharpness":
            return pillow_sharpness(image, factor), 1
    return numpy_moved(image, name, sign), 0


@pytest.mark.parametrize("name", rand.OPERATIONS)
def test_an_operation_of_randaugment_is_that_of_pillow_or_numpy(name):
    """In the first layer; the second leaves the image as it is."""
    drawn = np.zeros((COUNT, 4), np.float32)
    drawn[:, 0] = (rand.OPERATIONS.index(name) + 0.5) / len(rand.OPERATIONS)
    drawn[::2, 1] = 0.75
    found = rand.randaugment(tf.constant(IMAGES), tf.constant(drawn)).numpy()
    changed = 0
    for i, (image, result) in enumerate(zip(IMAGES, found, strict=True)):
        expected, by = expected_of(image, name, 1 if i % 2 == 0 else -1)
        if name in ("rotate", "shear_x", "shear_y"):
            # A pixel whose place is halfway between two may be either in float32.
            assert (result != expected).any(axis=-1).mean() < 0.02
        else:
            near(result, expected, by=by)
        changed += (result != image).any()
    assert changed == 0 if name == "identity" else changed > COUNT / 4


@pytest.mark.parametrize("total", [1024, 2048, 50_176, 2048**2, 2048**2 + 4096])
def test_the_counts_before_a_value_are_exact_in_any_image(total):
    counts = (
        np.random.default_rng(0).multinomial(total, np.full(256, 1 / 256), 6).reshape(2, 3, 256)
    )
    counts[0, 0] = 0
    counts[0, 0, 7] = total
    found = rand._sums_before(tf.constant(counts, tf.float32), total).numpy()
    np.testing.assert_array_equal(found, counts.cumsum(-1) - counts)


def test_no_product_of_the_counts_takes_numbers_of_more_bits_than_tf32(monkeypatch):
    given = []
    product = tf.matmul
    monkeypatch.setattr(tf, "matmul", lambda a, b: given.append(a) or product(a, b))
    counts = tf.fill([1, 3, 256], 3000.0)
    rand._sums_before(counts, 768_000)
    assert len(given) == 4 and max(float(tf.reduce_max(a)) for a in given) <= 2048


def test_randaugment_applies_two_operations_in_turn():
    drawn = np.zeros((COUNT, 4), np.float32)
    for column, name in ((0, "solarize"), (2, "translate_x")):
        drawn[:, column] = (rand.OPERATIONS.index(name) + 0.5) / len(rand.OPERATIONS)
    found = rand.randaugment(tf.constant(IMAGES), tf.constant(drawn)).numpy()
    for image, result in zip(IMAGES, found, strict=True):
        first, _ = expected_of(image, "solarize", -1)
        np.testing.assert_array_equal(result, numpy_moved(first, "translate_x", -1))


def test_each_operation_of_randaugment_is_drawn_as_often():
    drawn = RANDOM.random((14_000, 4)).astype(np.float32)
    counts = np.bincount((drawn[:, 0] * 14).astype(int), minlength=14)
    assert counts.min() > 850 and counts.max() < 1150


# ---- all of them ----------------------------------------------------------------------------


# Compiling the fourteen operations of randaugment takes longer than all others together.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name == "randaugment" else ())
    for name in augmentations.of_images()
]


def arguments(name, *, images=IMAGES):
    transformation = augmentations.of_images()[name]
    drawn = np.random.default_rng(1).random((COUNT, transformation.numbers)).astype(np.float32)
    given = [images, SOFT, drawn]
    if transformation.mixes:
        given += [np.roll(images, 1, axis=0), THEIRS]
    return transformation.function, [tf.constant(each) for each in given]


@pytest.mark.parametrize("name", NAMES)
def test_xla_gives_the_same(name):
    function, given = arguments(name)
    plain = tf.function(function)(*given)
    compiled = tf.function(function, jit_compile=True)(*given)
    # It joins operations, so a value that is halfway may be rounded to the other side.
    difference = np.abs(plain[0].numpy().astype(int) - compiled[0].numpy().astype(int))
    assert difference.max() <= 1 or (difference > 1).mean() < 2e-3
    np.testing.assert_allclose(compiled[1], plain[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", augmentations.of_images())
def test_an_example_depends_on_its_own_draws_alone(name, channels):
    function, given = arguments(name, images=IMAGES[..., :channels])
    images, classes = function(*given)
    assert (images.shape, images.dtype) == (given[0].shape, given[0].dtype)
    assert (classes.shape, classes.dtype) == (given[1].shape, given[1].dtype)
    assert (images.numpy() != given[0].numpy()).any()
    some = slice(5, 12)
    part_images, part_classes = function(*(each[some] for each in given))
    np.testing.assert_array_equal(part_images, images[some])
    np.testing.assert_array_equal(part_classes, classes[some])


def test_augmentations_are_found_by_name():
    assert AUGMENTATIONS == augmentations.names()
    found = augmentations.of_images()
    assert set(found) == set(AUGMENTATIONS) - {"drop", "shift"}
    assert all(each.name == name for name, each in found.items())


# ---- shares of a batch ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_the_same_bits_whatever_share_of_the_batch_it_is_in(name):
    one = augmentations.of_images()[name]
    images, drawn = tf.constant(IMAGES), tf.constant(draws(one.numbers))
    whole = [images, tf.constant(SOFT), drawn]
    if one.mixes:
        whole += [tf.constant(OTHERS), tf.constant(THEIRS)]
    together = one.function(*whole)
    # Shares that fill registers of processors, and that do not.
    for count in (1, 3, 5, 7, 12):
        shares = [
            one.function(*(part[start : start + count] for part in whole))
            for start in range(0, COUNT, count)
        ]
        for expected, found in zip(together, zip(*shares, strict=True), strict=True):
            np.testing.assert_array_equal(tf.concat(found, 0), expected)
