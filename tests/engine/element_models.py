"""Small models of which any batch is asked, and what stock Keras learns of the same data."""

import keras
import numpy as np
import tensorflow as tf
from replicas import one_device

import tfgpu

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 4)).astype("float32")  # The last batch of 8 is partial.
Y = RNG.normal(size=(22, 1)).astype("float32")


def dense(kind):
    inputs = keras.Input((4,))
    return kind(inputs, keras.layers.Dense(1)(inputs))


def build(kind, strategy, make=dense, **settings):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = make(kind)
        model.compile(keras.optimizers.SGD(0.05), settings.pop("loss", "mse"), **settings)
    return model


def assert_trains_as_stock(strategy, make, data, rtol=2e-4, loss="mse", **settings):
    """Losses of `fit` and `evaluate`, weights, and predictions."""
    stock = build(keras.Model, one_device(), make, loss=loss, jit_compile=False)
    ours = build(tfgpu.Model, strategy, make, loss=loss, **settings)
    results = []
    for model in (stock, ours):
        losses = model.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"]
        losses.append(model.evaluate(data, verbose=0))
        results.append((losses, model.get_weights(), model.predict(data, verbose=0)))
    (losses, weights, outputs), (our_losses, our_weights, our_outputs) = results
    np.testing.assert_allclose(our_losses, losses, rtol=rtol)
    for expected, actual in zip(weights, our_weights, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-5)
    np.testing.assert_allclose(our_outputs, outputs, rtol=rtol, atol=1e-5)


def dataset(*tensors, batch_size=8):
    return tf.data.Dataset.from_tensor_slices(tensors).batch(batch_size)
