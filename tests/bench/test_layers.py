"""Operations and bytes of layers, against counts by hand."""

import keras

import tfgpu
from tfgpu.bench import layers
from tfgpu.models.lenet import lenet

BATCH = 4


def counted(model):
    return {
        layer.name: layer for layer in layers.measure(model, batch=BATCH, device="CPU", seconds=0)
    }


def test_the_layers_of_lenet_for_a_batch():
    found = counted(lenet(image_shape=(32, 32, 3), num_classes=10))
    flops = [layer.flops / BATCH for layer in found.values() if layer.flops]
    assert flops == [
        2 * 28 * 28 * 6 * 5 * 5 * 3,
        2 * 10 * 10 * 16 * 5 * 5 * 6,
        2 * 400 * 120,
        2 * 120 * 84,
        2 * 84 * 10,
    ]


def test_traffic_is_input_output_and_weights_once():
    inputs = keras.Input((10,))
    model = tfgpu.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
    assert counted(model)["dense"].traffic == 4 * (BATCH * 10 + BATCH * 3 + 10 * 3 + 3)


def test_half_precision_moves_half():
    keras.config.set_dtype_policy("mixed_float16")
    inputs = keras.Input((10,))
    model = tfgpu.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
    assert counted(model)["dense"].traffic == 2 * (BATCH * 10 + BATCH * 3 + 10 * 3 + 3)


def test_a_step_moves_three_forward_passes_and_the_update():
    inputs = keras.Input((10,))
    model = tfgpu.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
    forward = 4 * (BATCH * 13 + 33)
    found = layers.step_traffic(list(counted(model).values()), parameters=33)
    assert found == 3 * forward + 8 * 4 * 33


def test_only_the_largest_layers_are_timed(monkeypatch):
    monkeypatch.setattr(layers, "MOST", 1)
    monkeypatch.setattr(layers, "_time", lambda *arguments: 1.0)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(50, name="large")(inputs)
    model = tfgpu.Model(inputs, keras.layers.Dense(2, name="small")(x))
    assert {name: layer.seconds for name, layer in counted(model).items()} == {
        "large": 1.0,
        "small": None,
    }


def test_a_layer_that_is_used_twice_is_counted_twice():
    inputs = keras.Input((6,))
    shared = keras.layers.Dense(6, name="shared")
    model = tfgpu.Model(inputs, shared(shared(inputs)))
    found = layers.measure(model, batch=BATCH, device="CPU", seconds=0)
    assert [layer.flops for layer in found] == [2 * 36 * BATCH] * 2


def test_layers_inside_a_model_inside_are_found():
    inner_inputs = keras.Input((6,))
    inner = tfgpu.Model(inner_inputs, keras.layers.Dense(5, name="inner")(inner_inputs))
    inputs = keras.Input((6,))
    model = tfgpu.Model(inputs, keras.layers.Dense(2, name="outer")(inner(inputs)))
    assert {"inner", "outer"} <= set(counted(model))
