"""Trainings with losses of any kind, by stock Keras on one device and by tfgpu."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import one_device

import tfgpu

L = keras.layers
ops = keras.ops
TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}

SLOW = pytest.mark.slow
# (rows, batch size): a last batch that is even, odd, of one row; one row in all.
LAST = pytest.mark.parametrize(
    ("rows", "batch_size"),
    [
        pytest.param(12, 8, id="even", marks=SLOW),
        pytest.param(10, 5, id="odd"),
        pytest.param(9, 4, id="one"),
        pytest.param(1, 4, id="alone", marks=SLOW),
    ],
)


def run(cls, strategy, network, data, batch_size, *, jit_compile=False, class_weight=None, **made):
    """History of two epochs, weights after them, evaluation.

    Args:
        network: Gives (inputs, outputs), or, given the class, a model.
        data: Of `fit`: x, y and perhaps weights of samples.
        batch_size: Rows of a global batch.
        jit_compile: Of `compile`.
        class_weight: Of `fit`.
        made: What `compile` gets; functions are called for it, under the strategy's scope.
    """
    keras.utils.set_random_seed(1)
    rate = made.pop("rate", 0.2)
    with strategy.scope():
        network = network(cls) if getattr(network, "of_class", False) else network()
        model = cls(*network) if isinstance(network, tuple) else network
        settings = {name: value() for name, value in made.items()}
        settings.setdefault("optimizer", keras.optimizers.SGD(rate))
        model.compile(jit_compile=jit_compile, **settings)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
    history = model.fit(
        batches, epochs=2, shuffle=False, verbose=0, class_weight=class_weight
    ).history
    said = model.evaluate(batches, verbose=0, return_dict=True)
    return history, model.get_weights(), said


def assert_as_stock(way, network, data, batch_size, but=(), **settings):
    strategy, jit_compile = way
    right, right_weights, right_said = run(
        keras.Model, one_device(), network, data, batch_size, **settings
    )
    history, weights, said = run(
        tfgpu.Model, strategy, network, data, batch_size, jit_compile=jit_compile, **settings
    )
    assert history.keys() == right.keys()
    assert said.keys() == right_said.keys()
    assert np.isfinite(right["loss"]).all()
    for name in right.keys() - but:
        np.testing.assert_allclose(history[name], right[name], **TOLERANCE, err_msg=name)
    for one, other in zip(right_weights, weights, strict=True):
        np.testing.assert_allclose(other, one, **TOLERANCE)
    for name in right_said.keys() - but:
        np.testing.assert_allclose(said[name], right_said[name], **TOLERANCE, err_msg=name)


def cross_entropy(**settings):
    return lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, **settings)


def mse(**settings):
    return lambda: keras.losses.MeanSquaredError(**settings)


class Penalty(L.Layer):
    def call(self, values):
        self.add_loss(0.5 * ops.mean(ops.square(values)))
        return values


def pixels():
    inputs = keras.Input((6, 6, 3))
    return inputs, L.Conv2D(2, 1)(inputs)


def steps():
    inputs = keras.Input((3, 4))
    return inputs, L.Dense(2)(inputs)


def distributed():
    inputs = keras.Input((3, 4))
    x = L.TimeDistributed(L.Dense(5, activation="tanh"))(inputs)
    return inputs, L.TimeDistributed(L.Dense(2))(x)


def plain():
    inputs = keras.Input((5,))
    return inputs, L.Dense(2)(L.Dense(4)(inputs))


def activity():
    inputs = keras.Input((5,))
    x = L.Dense(4, activity_regularizer=keras.regularizers.L2(0.5))(inputs)
    return inputs, L.Dense(2)(x)


def activity_of_steps():
    inputs = keras.Input((3, 4))
    x = L.Dense(4, activity_regularizer=keras.regularizers.L1(0.1))(inputs)
    return inputs, L.Dense(2)(x)


def penalty():
    inputs = keras.Input((5,))
    return inputs, L.Dense(2)(Penalty()(L.Dense(4)(inputs)))


def penalty_of_steps():
    inputs = keras.Input((3, 4))
    return inputs, L.Dense(2)(Penalty()(L.Dense(4)(inputs)))


def kernel():
    inputs = keras.Input((5,))
    x = L.Dense(
        4,
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer=keras.regularizers.L1(0.1),
    )(inputs)
    return inputs, L.Dense(2)(x)


def layer_activity():
    inputs = keras.Input((5,))
    x = L.ActivityRegularization(l1=0.1, l2=0.2)(L.Dense(4)(inputs))
    return inputs, L.Dense(2)(x)


SHAPES = {
    pixels: ((6, 6, 3), (6, 6)),
    steps: ((3, 4), (3,)),
    distributed: ((3, 4), (3,)),
    activity_of_steps: ((3, 4), (3,)),
    penalty_of_steps: ((3, 4), (3,)),
}


def classes(network, rows):
    """Features and labels of two classes, of the shapes of `network`."""
    shape, labels = SHAPES.get(network, ((5,), ()))
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows, *shape)).astype("float32")
    return x, rng.integers(0, 2, (rows, *labels)).astype("int32")


REDUCTIONS = ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", None]


def weighted_steps(rows, rank):
    rng = np.random.default_rng(4)
    # Keras wants weights of as many axes as the loss.
    weights = rng.uniform(size=(rows, 3 if rank == 2 else 1)).astype("float32")
    weights.reshape(-1)[::4] = 0
    y = rng.normal(size=(rows, 3, 2)).astype("float32")
    return (classes(steps, rows)[0], y, weights) if rank else (classes(steps, rows)[0], y)
