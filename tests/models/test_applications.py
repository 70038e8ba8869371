"""Networks of keras.applications: the published sizes, and raw pixels in."""

import keras
import numpy as np
import pytest

from tfgpu.errors import RequestError
from tfgpu.machine import flops
from tfgpu.models import applications
from tfgpu.models.builders import find_builder

# Parameters as Keras' own table of them; 10^9 products as the papers have them.
PUBLISHED = {
    "ResNet50": (25_636_712, 3.86),
    "MobileNetV2": (3_538_984, 0.30),
    "EfficientNetB0": (5_330_571, 0.39),
}
MORE = {
    "ConvNeXtTiny": (28_589_128, 4.46),
    "DenseNet121": (8_062_504, 2.83),
    "MobileNet": (4_253_864, 0.57),
    "VGG16": (138_357_544, 15.47),
}
# A family, and how its preprocessing is called in Keras' code.
FAMILIES = [
    pytest.param("ResNet50", "caffe", marks=pytest.mark.slow),
    pytest.param("DenseNet121", "torch", marks=pytest.mark.slow),
    ("MobileNetV2", "tf"),
]


@pytest.mark.parametrize(
    ("name", "parameters", "products"),
    [
        *((name, *sizes) for name, sizes in PUBLISHED.items()),
        *(pytest.param(name, *sizes, marks=pytest.mark.slow) for name, sizes in MORE.items()),
    ],
)
def test_a_network_has_the_published_size(name, parameters, products):
    model = find_builder(name)(image_shape=(224, 224, 3), num_classes=1000)
    assert model.count_params() == parameters
    assert flops.count(model).forward / 2e9 == pytest.approx(products, abs=0.01)
    assert model.output_shape == (None, 1000)


@pytest.mark.parametrize(("name", "mode"), FAMILIES)
def test_a_network_gets_pixels_as_it_expects_them(name, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    ours = applications.application(name)(image_shape=(32, 32, 3), num_classes=4)
    stock = getattr(keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classes=4, classifier_activation=None
    )
    stock.set_weights(ours.get_weights())
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = {
        "caffe": pixels[..., ::-1] - [103.939, 116.779, 123.68],
        "torch": (pixels / 255 - mean) / deviation,
        "tf": pixels / 127.5 - 1,
    }[mode]
    np.testing.assert_allclose(ours(pixels), stock(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_network_that_brings_its_preprocessing_gets_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    ours = applications.application("EfficientNetB0")(image_shape=(32, 32, 3), num_classes=4)
    stock = keras.applications.EfficientNetB0(
        weights=None, input_shape=(32, 32, 3), classes=4, classifier_activation=None
    )
    stock.set_weights(ours.get_weights())
    np.testing.assert_array_equal(ours(pixels), stock(pixels))


def test_grey_images_become_three_equal_channels():
    model = applications.application("MobileNetV2")(image_shape=(32, 32, 1), num_classes=4)
    colour = applications.application("MobileNetV2")(image_shape=(32, 32, 3), num_classes=4)
    colour.set_weights(model.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype(np.float32)
    np.testing.assert_array_equal(model(pixels), colour(np.repeat(pixels, 3, axis=-1)))


def test_logits_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = applications.application("MobileNetV2")(image_shape=(32, 32, 3), num_classes=4)
    assert model(np.zeros((1, 32, 32, 3), np.uint8)).dtype == "float32"
    assert model.get_layer("predictions").output.dtype == "bfloat16"


def test_every_network_has_its_preprocessing():
    missing = []
    for name in applications.names():
        network = getattr(keras.applications, name)
        family = getattr(keras.applications, network.__module__.rpartition(".")[2], None)
        if not hasattr(family, "preprocess_input"):
            missing.append(name)
    assert missing == [] and len(applications.names()) >= 38


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [
        ("EficientNetB0", "classification", "did you mean 'EfficientNetB0'"),
        ("keras.applications.ResNet51", "classification", "keras.applications has no ResNet51"),
    ],
)
def test_a_network_that_is_not_there_is_refused(name, task, said):
    with pytest.raises(RequestError, match=f"--model={name}.*{said}"):
        find_builder(name, task=task)


def test_they_are_classifiers_of_images_alone():
    with pytest.raises(RequestError, match="--model=VGG16 is none of unet of --task=segmentation"):
        find_builder("VGG16", {"unet": "tfgpu.models.unet:unet"}, task="segmentation")


def test_images_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="takes images of 1 or 3 channels, not 4"):
        applications.application("VGG16")(image_shape=(32, 32, 4), num_classes=4)
