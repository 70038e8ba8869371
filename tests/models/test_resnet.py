"""Residual networks against the published numbers and against what they are made of."""

import keras
import numpy as np
import pytest

from tfgpu.artifacts.model_file import save_for_keras
from tfgpu.machine import flops
from tfgpu.models.resnet import resnet20, resnet50
from tfgpu.models.wide_resnet import wide_resnet


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# Of PyTorch's torchvision, whose ResNets are v1.5: parameters, and 10^9 products of the forward
# pass as its documentation gives them.
@pytest.mark.parametrize(
    ("depth", "parameters", "products"),
    [
        (50, 25_557_032, 4.09),
        pytest.param(101, 44_549_160, 7.80, marks=pytest.mark.slow),
        pytest.param(152, 60_192_808, 11.51, marks=pytest.mark.slow),
    ],
)
def test_resnet50_has_the_published_size(depth, parameters, products):
    model = resnet50(image_shape=(224, 224, 3), num_classes=1000, depth=depth)
    assert trainable(model) == parameters
    counted = flops.count(model)
    assert counted.forward / 2e9 == pytest.approx(products, abs=0.005)
    assert counted.uncounted == ()
    assert model.output_shape == (None, 1000)


# Parameters: He et al., table 6, in millions; to the unit for option A, as in the widely used
# implementation for PyTorch (Y. Idelbayev, "Proper ResNet Implementation for CIFAR10/CIFAR100 in
# PyTorch"). Products: 40.6 million for ResNet-20, commonly quoted as 0.041 GMACs.
@pytest.mark.parametrize(
    ("depth", "parameters", "millions", "products"),
    [(20, 269_722, 0.27, 40.6), (56, 853_018, 0.85, 125.5), (110, 1_727_962, 1.7, 252.9)],
)
def test_resnet20_has_the_published_size(depth, parameters, millions, products):
    model = resnet20(image_shape=(32, 32, 3), num_classes=10, depth=depth)
    assert trainable(model) == parameters == pytest.approx(millions * 1e6, rel=0.02)
    counted = flops.count(model)
    assert counted.forward / 2e6 == pytest.approx(products, abs=0.05)
    assert counted.uncounted == ()
    assert model.output_shape == (None, 10)


# Zagoruyko and Komodakis, tables 4 and 5, in millions; products as in their table 6 for 28-10.
@pytest.mark.parametrize(
    ("depth", "width", "parameters", "millions", "products"),
    [
        (28, 10, 36_479_194, 36.5, 5.24),
        (16, 4, 2_748_890, 2.75, 0.39),
        (40, 4, 8_949_210, 8.9, 1.30),
        (16, 8, 10_961_370, 11.0, 1.55),
    ],
)
def test_wide_resnet_has_the_published_size(depth, width, parameters, millions, products):
    model = wide_resnet(image_shape=(32, 32, 3), num_classes=10, depth=depth, width=width)
    assert trainable(model) == parameters == pytest.approx(millions * 1e6, rel=0.01)
    counted = flops.count(model)
    assert counted.forward / 2e9 == pytest.approx(products, abs=0.005)
    assert counted.uncounted == ()
    assert model.output_shape == (None, 10)


def test_wide_resnet_is_28_10_unless_asked():
    model = wide_resnet(image_shape=(32, 32, 3), num_classes=10)
    assert trainable(model) == 36_479_194


def test_the_shortcut_of_resnet20_takes_every_second_pixel_and_adds_zeros():
    model = resnet20(image_shape=(32, 32, 3), num_classes=10)
    before = model.get_layer("stage1_block3_relu2").output
    # With a convolution whose normalisation gives 0, the shortcut alone is left.
    model.get_layer("stage2_block1_bn2").gamma.assign(np.zeros(32))
    block = keras.Model(before, model.get_layer("stage2_block1_relu2").output)
    values = np.random.default_rng(0).random((2, 32, 32, 16)).astype(np.float32)
    got = np.asarray(block(values))
    assert got.shape == (2, 16, 16, 32)
    np.testing.assert_array_equal(got[..., 8:24], values[:, ::2, ::2])
    assert not got[..., :8].any() and not got[..., 24:].any()


@pytest.mark.parametrize("build", [resnet20, wide_resnet])
def test_networks_for_cifar_standardise_pixels_as_cifar10_is(build):
    model = build(image_shape=(8, 8, 3), num_classes=2, width=1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.float32)
    got = np.asarray(model.get_layer("normalise")(pixels))
    expected = (pixels / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_resnet50_standardises_pixels_as_imagenet_is():
    model = resnet50(image_shape=(32, 32, 3), num_classes=2)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.float32)
    got = np.asarray(model.get_layer("normalise")(pixels))
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_block_of_resnet50_passes_on_what_it_gets_at_the_start():
    model = resnet50(image_shape=(32, 32, 3), num_classes=2)
    block = keras.Model(
        model.get_layer("stage3_block1_relu3").output, model.get_layer("stage3_block2_relu3").output
    )
    values = np.random.default_rng(0).random((2, 2, 2, 1024)).astype(np.float32)
    np.testing.assert_array_equal(block(values, training=True), values)


def test_resnet50_has_its_strides_where_version_15_has_them():
    model = resnet50(image_shape=(64, 64, 3), num_classes=2)
    strided = [
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.strides == (2, 2)
    ]
    blocks = [f"stage{stage}_block1_{conv}" for stage in (2, 3, 4) for conv in ("conv2", "sc")]
    assert sorted(name.replace("shortcut_conv", "sc") for name in strided) == sorted(
        ["stem_conv", *blocks]
    )
    # As padded on each side alike: the middle of the first window is the first pixel.
    assert model.get_layer("stem_conv").output.shape[1:] == (32, 32, 64)
    assert model.get_layer("stem_pool").output.shape[1:] == (16, 16, 64)


@pytest.mark.parametrize(
    ("build", "added"),
    [
        (resnet50, "stage1_block1_add"),
        (resnet20, "stage1_block1_add"),
        (wide_resnet, "stage1_block1_add"),
    ],
)
def test_logits_are_float32_under_mixed_precision(build, added):
    keras.config.set_dtype_policy("mixed_float16")
    model = build(image_shape=(32, 32, 3), num_classes=3, width=0.5)
    assert model(np.zeros((1, 32, 32, 3), np.uint8)).dtype == "float32"
    assert model.get_layer(added).output.dtype == "float16"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Of Keras.
@pytest.mark.parametrize(
    "build", [pytest.param(resnet50, marks=pytest.mark.slow), resnet20, wide_resnet]
)
def test_plain_keras_reads_them(build, tmp_path):
    model = build(image_shape=(32, 32, 1), num_classes=3, width=0.25)
    path = tmp_path / "model.keras"
    save_for_keras(model, path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
    read = keras.models.load_model(path)
    assert type(read).__module__.startswith("keras.")
    np.testing.assert_array_equal(read(pixels), model(pixels))


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (resnet50, {"image_shape": (31, 32, 3)}, "at least 32x32 pixels, not 31x32"),
        (resnet50, {"depth": 51}, "depth of 50, 101, 152, not 51"),
        (resnet50, {"width": 0.0}, "width above 0, not 0"),
        (resnet20, {"image_shape": (32, 7, 3)}, "at least 8x8 pixels, not 32x7"),
        (resnet20, {"depth": 18}, "depth of 6 n . 2, such as 20, 32 or 56, not 18"),
        (wide_resnet, {"image_shape": (7, 32, 3)}, "at least 8x8 pixels, not 7x32"),
        (wide_resnet, {"depth": 20}, "depth of 6 n . 4, such as 16 or 28, not 20"),
    ],
)
def test_what_a_network_cannot_be_is_refused(build, arguments, message):
    with pytest.raises(ValueError, match=f"{build.__name__}.*{message}"):
        build(**{"image_shape": (32, 32, 3), "num_classes": 2} | arguments)
