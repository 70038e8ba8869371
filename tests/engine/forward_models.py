"""Models of layers that write variables in their forward pass."""

import keras
import numpy as np
import pytest
import replicas
import tensorflow as tf

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.normal(size=(16, 1)).astype("float32")
SERIES = RNG.normal(size=(32, 5, 3)).astype("float32")
TARGETS = RNG.normal(size=(32, 1)).astype("float32")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

XLA = pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])


def build(cls, strategy, network, jit_compile=False, rate=0.05, **compiled):
    """A compiled model of what `network` gives: (inputs, outputs), or a model."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        made = network()
        model = cls(*made) if isinstance(made, tuple) else made
        model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=jit_compile, **compiled)
    return model


def through(*layers, shape=(6,), last=1):
    """A network of `layers`, which are made anew for each model, and a last `Dense`."""

    def network():
        inputs = x = keras.Input(shape)
        for layer in layers:
            x = layer()(x)
        return inputs, L.Dense(last)(x)

    return network


def fit(model, x=X, y=Y, batch_size=4, epochs=2, **settings):
    settings = {"shuffle": False, "verbose": 0} | settings
    return model.fit(x, y, batch_size=batch_size, epochs=epochs, **settings).history


def evaluate(model, x=X, y=Y, batch_size=4):
    return model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)


def raw(value, **settings):
    return tf.Variable(value, trainable=False, **settings)


def weight(value, **settings):
    return keras.Variable(value, trainable=False, **settings)


def assert_same_on_replicas(model):
    replicas.assert_same_on_replicas([*model.variables, *model.optimizer.variables])
