"""Models that predict, and what stock Keras predicts of the same data."""

import keras
import numpy as np
from replicas import one_device

import tfgpu

RNG = np.random.default_rng(0)
X = RNG.normal(size=(17, 6)).astype("float32")  # The last batch of 8 or 4 has one row.
Y = RNG.normal(size=(17, 3)).astype("float32")

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def functional(outputs_of):
    """Makes a model of the outputs that `outputs_of` gives for the input."""

    def make(kind):
        inputs = keras.Input((6,))
        return kind(inputs, outputs_of(inputs))

    return make


def dense(kind):
    return functional(lambda x: keras.layers.Dense(3)(keras.layers.Dense(8, "tanh")(x)))(kind)


def build(kind, strategy, make=dense, *, compiled=True, **settings):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = make(kind)
        if compiled:
            model.compile(keras.optimizers.SGD(0.05), settings.pop("loss", "mse"), **settings)
    return model


def assert_predicts_as_stock(strategy, make, x, *, batch_size=8, **settings):
    stock = build(keras.Model, one_device(), make)
    ours = build(tfgpu.Model, strategy, make, **settings)
    expected = stock.predict(x, batch_size=batch_size, verbose=0)
    actual = ours.predict(x, batch_size=batch_size, verbose=0)
    assert_same_structure(expected, actual)


def assert_same_structure(expected, actual):
    keras.tree.assert_same_structure(expected, actual)
    for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(actual), strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        np.testing.assert_allclose(other, one, **TOLERANCE)
