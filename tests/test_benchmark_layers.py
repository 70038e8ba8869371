"""Operations and bytes of layers, against counts by hand."""

import keras
import pytest

import tfgpu
from tfgpu.benchmark import layers
from tfgpu.models.lenet import lenet

BATCH = 4


def counted(model):
    return {
        layer.name: layer for layer in layers.measure(model, batch=BATCH, device="CPU", seconds=0)
    }


def test_lenet_by_hand():
    found = counted(lenet(image_shape=(32, 32, 3), num_classes=10))
    flops = [layer.flops / BATCH for layer in found.values() if layer.flops]
    assert flops == [
        2 * 28 * 28 * 6 * 5 * 5 * 3,
        2 * 10 * 10 * 16 * 5 * 5 * 6,
        2 * 400 * 120,
        2 * 120 * 84,
        2 * 84 * 10,
    ]
    whole, _ = layers.step(list(found.values()), parameters=62_006)
    assert whole / BATCH == pytest.approx(3.91e6, rel=1e-3)


def test_traffic_is_input_output_and_weights_once():
    inputs = keras.Input((10,))
    model = tfgpu.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
    assert counted(model)["dense"].traffic == 4 * (BATCH * 10 + BATCH * 3 + 10 * 3 + 3)


def test_half_precision_moves_half():
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((10,))
    model = tfgpu.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
    assert counted(model)["dense"].traffic == 2 * (BATCH * 10 + BATCH * 3 + 10 * 3 + 3)


@pytest.mark.parametrize(
    ("layer", "flops"),
    [
        (keras.layers.Conv2D(8, 3, padding="same", groups=2, name="it"), 2 * 64 * 8 * 9 * 2),
        (keras.layers.DepthwiseConv2D(3, padding="same", name="it"), 2 * 64 * 4 * 9),
        (keras.layers.Conv2DTranspose(6, 2, strides=2, name="it"), 2 * 64 * 4 * 6 * 4),
        (keras.layers.BatchNormalization(name="it"), 0),
    ],
)
def test_other_layers_by_hand(layer, flops):
    inputs = keras.Input((8, 8, 4))
    assert counted(tfgpu.Model(inputs, layer(inputs)))["it"].flops == BATCH * flops


def test_layers_inside_a_model_inside_are_found():
    inner_inputs = keras.Input((6,))
    inner = tfgpu.Model(inner_inputs, keras.layers.Dense(5, name="inner")(inner_inputs))
    inputs = keras.Input((6,))
    model = tfgpu.Model(inputs, keras.layers.Dense(2, name="outer")(inner(inputs)))
    assert {"inner", "outer"} <= set(counted(model))
