"""Small models, trained on data sets, that two replicas train as one device does."""

import functools

import keras
import numpy as np
import replicas
import tensorflow as tf

import tfgpu

RNG = np.random.RandomState(0)
X = RNG.randn(96, 6).astype("float32")
Y = (X[:, :2] @ RNG.randn(2, 3) + 0.1 * RNG.randn(96, 3)).astype("float32")

# The sums over replicas add in another order; 20 steps carry that on.
assert_same_weights = functools.partial(replicas.assert_same_weights, rtol=2e-5, atol=2e-6)


def build(strategy, make, **compiled):
    """A compiled model with weights that do not depend on the strategy."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = make()
        settings = {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9), "loss": "mse"}
        settings.update({k: v() if callable(v) else v for k, v in compiled.items()})
        model.compile(**settings)
    return model


def dense():
    inputs = keras.Input((6,))
    return tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(8, "tanh")(inputs)))


def dataset(*tensors, batch_size, known=True):
    data = tf.data.Dataset.from_tensor_slices(tensors).batch(batch_size)
    if known:
        return data
    return data.filter(lambda *_: True)


def fit(model, data, **arguments):
    """`model.fit` without a word, and the history it gives."""
    return model.fit(data, verbose=0, shuffle=False, **arguments).history


def normalized(**settings):
    def make():
        inputs = keras.Input((6,))
        x = keras.layers.Dense(5)(inputs)
        x = keras.layers.BatchNormalization(momentum=0.5, name="norm", **settings)(x)
        return tfgpu.Model(inputs, keras.layers.Dense(3)(x))

    return make


def assert_same_on_replicas(model):
    replicas.assert_same_on_replicas([*model.weights, *model.optimizer.variables])
