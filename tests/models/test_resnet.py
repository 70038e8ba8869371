"""Residual networks against the published numbers and against what they are made of."""

import keras
import numpy as np
import pytest

from tfgpu.machine import flops
from tfgpu.models.resnet import resnet50


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


# Of PyTorch's torchvision, whose ResNets are v1.5: parameters, and 10^9 products of the forward
# pass as its documentation gives them.
@pytest.mark.parametrize(
    ("depth", "parameters", "products"),
    [(50, 25_557_032, 4.09), (101, 44_549_160, 7.80), (152, 60_192_808, 11.51)],
)
def test_resnet50_has_the_published_size(depth, parameters, products):
    model = resnet50(image_shape=(224, 224, 3), num_classes=1000, depth=depth)
    assert trainable(model) == parameters
    counted = flops.count(model)
    assert counted.forward / 2e9 == pytest.approx(products, abs=0.005)
    assert counted.uncounted == ()
    assert model.output_shape == (None, 1000)


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


def test_logits_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = resnet50(image_shape=(32, 32, 3), num_classes=3, width=0.125)
    assert model(np.zeros((1, 32, 32, 3), np.uint8)).dtype == "float32"
    assert model.get_layer("stage1_block1_add").output.dtype == "float16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (31, 32, 3)}, "at least 32x32 pixels, not 31x32"),
        ({"depth": 51}, "depth of 50, 101, 152, not 51"),
        ({"width": 0.0}, "width above 0, not 0"),
    ],
)
def test_resnet50_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet50(**{"image_shape": (32, 32, 3), "num_classes": 2} | arguments)
