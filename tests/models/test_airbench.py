"""The network of the speed record against its published numbers, and its parts against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpu.machine import flops
from tfgpu.models.airbench import (
    DEVIATION,
    MEAN,
    VIEW_WEIGHTS,
    airbench,
    reinitialise,
    view_logits,
    views_of,
    whitening_kernel,
)

IMAGES = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3), np.uint8)
SMALL = {"image_shape": (32, 32, 3), "num_classes": 10, "width": 0.375}


@pytest.fixture(scope="module")
def model():
    return airbench(image_shape=(32, 32, 3), num_classes=10, whitened=True)


@pytest.fixture(scope="module")
def small():
    return airbench(**SMALL)


def weights(model):
    return {variable.path: variable.numpy() for variable in model.variables}


def test_the_parameters_are_the_records(model):
    # As PyTorch counts them: moving statistics are none, a scale of 1 that does not train is one.
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    normalisations = 2 * (64 + 2 * 256)
    trained = 24 + convolutions + normalisations + 256 * 10
    assert trained == 1_971_352
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == trained
    # Beside them the whitening kernel and two moving statistics a channel.
    assert model.count_params() == trained + 12 * 24 + 2 * normalisations


def test_the_output_is_float32_logits_in_any_precision():
    keras.config.set_dtype_policy("mixed_float16")
    logits = airbench(**SMALL)(IMAGES[:2])
    assert (logits.shape, logits.dtype) == ((2, 10), tf.float32)


def test_the_operations_are_those_that_were_published(model):
    counted = flops.count(model)
    assert counted.uncounted == ()
    # The record's list of eight epochs of 50,000 images: 0.29 PFLOP.
    assert counted.training * 8 * 50_000 == pytest.approx(0.29e15, rel=0.03)


@pytest.mark.parametrize("shape", [(24, 32, 3), (32, 32, 4)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="airbench needs images of"):
        airbench(image_shape=shape, num_classes=10)


def test_a_width_that_cannot_pass_all_channels_on_is_refused():
    with pytest.raises(ValueError, match=r"width of 0\.375 or more, not 0\.3"):
        airbench(**SMALL | {"width": 0.3})


def test_normalisation_is_by_the_mean_and_deviation_of_the_channels(small):
    normalised = keras.Model(small.inputs[0], small.get_layer("normalise").output)(IMAGES).numpy()
    expected = (IMAGES / 255 - np.array(MEAN)) / np.array(DEVIATION)
    np.testing.assert_allclose(normalised, expected, atol=2e-6)


def test_convolutions_pass_their_input_channels_on_at_first(small):
    layer = small.get_layer("group2_conv1")
    x = np.random.RandomState(1).normal(size=(2, 7, 7, layer.kernel.shape[2])).astype(np.float32)
    np.testing.assert_allclose(layer(x)[..., : x.shape[-1]], x, atol=1e-6)


def test_other_filters_start_as_pytorchs_do(model):
    kernel = model.get_layer("group2_conv1").kernel.numpy()
    bound = 1 / np.sqrt(9 * kernel.shape[2])
    rest = kernel[..., kernel.shape[2] :]
    assert np.abs(rest).max() <= bound
    assert rest.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)


def test_the_bias_starts_as_pytorchs_does(model):
    bias = model.get_layer("whiten").bias.numpy()
    assert 0.5 / np.sqrt(12) < np.abs(bias).max() <= 1 / np.sqrt(12)


def test_the_head_starts_with_a_deviation_of_one(model):
    assert model.get_layer("head").kernel.numpy().std(ddof=1) == pytest.approx(1, abs=1e-6)


def test_logits_are_divided_by_the_features(model):
    before = keras.Model(model.inputs[0], model.get_layer("head").output)
    np.testing.assert_allclose(model(IMAGES[:2]), before(IMAGES[:2]) / 256, rtol=1e-6)


def test_only_the_bias_of_a_whitened_layer_trains(model, small):
    def trained(model):
        return [v.path for v in model.trainable_variables if v.path.startswith("whiten")]

    assert trained(model) == ["whiten/bias"]
    assert trained(small) == ["whiten/kernel", "whiten/bias"]


def test_new_initial_values_are_those_of_the_seed_in_the_same_variables(small):
    before = {variable.path: id(variable.value) for variable in small.variables}
    reinitialise(small, seed=1)
    first = weights(small)
    small.get_layer("group1_norm1").moving_mean.assign(np.ones(24))
    reinitialise(small, seed=2)
    assert any((first[path] != value).any() for path, value in weights(small).items())
    reinitialise(small, seed=1)
    for path, value in weights(small).items():
        np.testing.assert_array_equal(value, first[path])
    assert {variable.path: id(variable.value) for variable in small.variables} == before
    assert first["head/kernel"].std(ddof=1) == pytest.approx(1, abs=1e-6)


# ---- whitening ------------------------------------------------------------------------------


def patches(images):
    """Normalised 2x2 patches, image by image and pixel by pixel."""
    x = (images / 255 - np.array(MEAN)) / np.array(DEVIATION)
    return np.array(
        [
            image[row : row + 2, column : column + 2].ravel()
            for image in x
            for row in range(image.shape[0] - 1)
            for column in range(image.shape[1] - 1)
        ]
    )


def test_whitened_patches_are_not_correlated():
    # Smooth images, so that neighbours are correlated before.
    smooth = IMAGES.astype(np.float64)
    for axis in (1, 2):
        smooth = (smooth + np.roll(smooth, 1, axis) + np.roll(smooth, 2, axis)) / 3
    kernel = whitening_kernel(tf.constant(smooth, tf.float32))
    outputs = patches(smooth) @ kernel.reshape(12, 24)[:, :12]
    covariance = outputs.T @ outputs / len(outputs)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 1e-3
    values = np.linalg.eigvalsh(patches(smooth).T @ patches(smooth) / len(outputs))
    np.testing.assert_allclose(np.diag(covariance), values / (values + 5e-4), rtol=1e-3)


def test_the_kernel_holds_each_filter_and_its_negative():
    kernel = whitening_kernel(tf.constant(IMAGES))
    assert (kernel.shape, kernel.dtype) == ((2, 2, 3, 24), np.float32)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])


# ---- pooling --------------------------------------------------------------------------------


def test_sliced_pooling_is_max_pooling_with_its_gradient(small):
    sliced = airbench(**SMALL, sliced_pooling=True)
    for variable, other in zip(sliced.variables, small.variables, strict=True):
        variable.assign(other)
    results = []
    for each in (small, sliced):
        with tf.GradientTape() as tape:
            logits = each(IMAGES, training=True)
            target = tf.reduce_sum(logits * tf.range(10.0))
        results.append((logits, tape.gradient(target, each.trainable_variables)))
    (logits, gradients), (other_logits, other_gradients) = results
    np.testing.assert_allclose(logits, other_logits, atol=1e-5)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(gradient, other, atol=1e-4 * scale)


def test_of_equal_pixels_the_first_takes_the_gradient():
    from tfgpu.models.airbench import _pool

    inputs = keras.Input((4, 5, 1))
    gradients = []
    for sliced in (False, True):
        pool = keras.Model(inputs, _pool(inputs, "pool", sliced=sliced))
        x = tf.constant(np.random.RandomState(0).randint(0, 2, (50, 4, 5, 1)).astype(np.float32))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = pool(x)
        gradients.append(tape.gradient(y, x).numpy())
    np.testing.assert_array_equal(*gradients)


# ---- test-time average ----------------------------------------------------------------------


def test_views_are_the_image_two_diagonal_shifts_and_their_mirror_images():
    padded = np.pad(IMAGES, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    shifts = [IMAGES, padded[:, :32, :32], padded[:, 2:, 2:]]
    expected = np.stack([way for view in shifts for way in (view, view[:, :, ::-1])])
    np.testing.assert_array_equal(views_of(tf.constant(IMAGES)), expected)


def test_half_of_the_average_is_of_the_unshifted_image():
    assert sum(VIEW_WEIGHTS) == 1
    assert sum(VIEW_WEIGHTS[:2]) == 0.5
    assert VIEW_WEIGHTS[::2] == VIEW_WEIGHTS[1::2]


def test_the_logits_of_views_are_those_of_each_alone(small):
    logits = view_logits(small, tf.constant(IMAGES[:3]))
    for view, of_view in zip(views_of(tf.constant(IMAGES[:3])), logits, strict=True):
        np.testing.assert_allclose(small(view), of_view, atol=1e-5)
