"""Counts of operations against counts by hand."""

import keras
import pytest

from tfgpu.machine import flops
from tfgpu.models.lenet import lenet


def of(*layers, shape):
    return flops.count(keras.Sequential([keras.Input(shape), *layers]))


def test_lenet():
    products = (
        28 * 28 * 6 * (5 * 5 * 3)  # conv1
        + 10 * 10 * 16 * (5 * 5 * 6)  # conv2
        + 400 * 120
        + 120 * 84
        + 84 * 10
    )
    counted = flops.count(lenet(image_shape=(32, 32, 3), num_classes=10))
    assert counted.forward == 2 * products
    assert counted.training == 3 * 2 * products == pytest.approx(3.91e6, rel=1e-3)
    assert counted.uncounted == ()


@pytest.mark.parametrize(
    ("layer", "shape", "products"),
    [
        (lambda: keras.layers.Dense(7), (5,), 5 * 7),
        (lambda: keras.layers.Dense(7), (3, 5), 3 * 5 * 7),
        (lambda: keras.layers.Conv1D(4, 3), (10, 2), 8 * 4 * 3 * 2),
        (lambda: keras.layers.Conv2D(4, 3, strides=2), (9, 9, 2), 4 * 4 * 4 * 9 * 2),
        (lambda: keras.layers.Conv2D(4, 3, groups=2), (9, 9, 2), 7 * 7 * 4 * 9 * 1),
        (lambda: keras.layers.Conv3D(2, 2), (3, 3, 3, 1), 8 * 2 * 8),
        (lambda: keras.layers.DepthwiseConv2D(3), (9, 9, 2), 7 * 7 * 9 * 2),
        (lambda: keras.layers.SeparableConv2D(4, 3), (9, 9, 2), 7 * 7 * (9 * 2 + 2 * 4)),
        (lambda: keras.layers.Conv2DTranspose(4, 3), (5, 5, 2), 5 * 5 * 4 * 9 * 2),
        (lambda: keras.layers.EinsumDense("abc,cd->abd", (3, 6)), (3, 5), 3 * 5 * 6),
        (lambda: keras.layers.BatchNormalization(), (9, 9, 2), 0),
    ],
)
def test_layers(layer, shape, products):
    counted = of(layer(), shape=shape)
    assert counted.forward == 2 * products
    assert counted.uncounted == ()


def test_a_model_within_a_model_counts_as_often_as_it_is_used():
    inner = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5)])
    inputs = keras.Input((5,))
    twice = keras.Model(inputs, inner(inner(inputs)))
    assert flops.count(twice).forward == 2 * 2 * 25


def test_a_layer_counts_where_it_is_used():
    shared = keras.layers.Dense(3)
    a, b = keras.Input((4, 5)), keras.Input((2, 5))
    model = keras.Model([a, b], keras.layers.Concatenate(axis=1)([shared(a), shared(b)]))
    assert flops.count(model).forward == 2 * (4 + 2) * 15


def test_what_is_not_known_is_named_and_not_zero():
    counted = of(keras.layers.LSTM(3, name="memory"), keras.layers.Dense(2), shape=(4, 5))
    assert counted.uncounted == ("memory",)
    assert counted.forward == 2 * 3 * 2


def test_of_a_model_that_is_no_graph_nothing_is_known():
    class Own(keras.Model):
        def call(self, x):
            return x

    model = Own(name="own")
    assert flops.count(model).uncounted == ("own",)
