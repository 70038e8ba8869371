"""Layers that only a step of the class's own calls, and that its first call of them builds.

Right is what the same class, derived from stock `keras.Model`, says and learns on one device, from
the initial weights that it makes there: none are copied.
"""

import random
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import assert_logs, assert_same_weights, one_device, slow

import tfgpu
from tfgpu.engine.current import current

L, ops = keras.layers, keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(13, 4)).astype("float32")
Y = RNG.normal(size=(13, 3)).astype("float32")


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def update(optimizer, tape, loss, weights):
    optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))


def fit(model, **more):
    settings = {"batch_size": 5, "epochs": 2, "shuffle": False, "verbose": 0}
    return model.fit(X, Y, **settings, **more).history


def paths(owner):
    return [re.sub(r"_\d+", "", variable.path) for variable in owner.variables]


def both(make, strategy, run=fit, **compiled):
    """Models of stock Keras and of tfgpu, of which is asserted that they say the same.

    Args:
        make: Takes the class to derive from, and returns the class.
        strategy: Of tfgpu's.
        run: Takes the model, and returns numbers by name.
        **compiled: For `compile`.
    """
    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        keras.utils.set_random_seed(1)
        with place.scope():
            models.append(make(cls)())
            models[-1].compile(sgd(), jit_compile=False, **compiled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if cls is keras.Model else "error")
            logs.append(run(models[-1]))
    assert_logs(*logs)
    assert_same_weights(*models)
    assert paths(models[1]) == paths(models[0])
    return models


@pytest.fixture(params=["x2", slow("x1")])
def strategy(request, mirrored2):
    return mirrored2 if request.param == "x2" else tf.distribute.OneDeviceStrategy("CPU:0")


# ---- what builds ------------------------------------------------------------------------------


def plain(cls):
    """One layer, and no `call`."""

    class Own(cls):
        def __init__(self):
            super().__init__()
            self.d = L.Dense(3)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(self.d(x) - y))
            update(self.optimizer, tape, loss, self.d.trainable_variables)
            return {"loss": loss}

    return Own


def gan(cls):
    """Two networks with an optimizer each, and a discriminator that is frozen by turns."""

    class Gan(cls):
        def __init__(self):
            super().__init__()
            self.g = keras.Sequential([L.Dense(3)])
            self.d = keras.Sequential([L.Dense(2, activation="tanh"), L.Dense(1)])
            self.of_d = sgd()
            self.rounds = []

        def train_step(self, data):
            x, y = data
            self.rounds.append(x)
            with tf.GradientTape() as tape:
                made = self.d(self.g(x))
                d_loss = ops.mean(ops.square(self.d(y) - 1.0)) + ops.mean(ops.square(made))
            update(self.of_d, tape, d_loss, self.d.trainable_variables)
            self.d.trainable = False
            with tf.GradientTape() as tape:
                g_loss = ops.mean(ops.square(self.d(self.g(x)) - 1.0))
            update(self.optimizer, tape, g_loss, self.trainable_variables)
            self.d.trainable = True
            return {"d": d_loss, "g": g_loss, "rounds": float(len(self.rounds) > 0)}

    return Gan


def half_called(cls):
    """`call` uses one of two networks; optimizer and metrics are those of `compile`."""

    class Half(cls):
        def __init__(self):
            super().__init__()
            self.g, self.d = keras.Sequential([L.Dense(3)]), keras.Sequential([L.Dense(3)])

        def call(self, x):
            return self.g(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self.d(self.g(x))
                loss = self.compute_loss(y=y, y_pred=y_pred)
            update(self.optimizer, tape, loss, self.trainable_variables)
            return self.compute_metrics(x, y, y_pred)

    return Half


def other_inputs(cls):
    """`call` takes something else than the data, which builds other weights."""

    class Other(cls):
        def __init__(self):
            super().__init__()
            self.g = keras.Sequential([L.Dense(3)])

        def call(self, z):
            return self.g(z)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(self(x[:, :2]) - y))
            update(self.optimizer, tape, loss, self.trainable_variables)
            return {"loss": loss}

    return Other


class Nested(L.Layer):
    """Makes a layer in `build`, and keeps a tensor in `call`."""

    def build(self, shape):
        self.inner = L.Dense(3, name="inner")
        self.inner.build(shape)
        self.scale = self.add_weight(shape=(3,), initializer="ones", name="scale")
        self.entries = shape[-1]
        self.built = True

    def call(self, x):
        self.latest = self.inner(x) * self.scale / self.entries
        return self.latest


def nested(cls):
    class Own(cls):
        def __init__(self):
            super().__init__()
            self.n, self.norm = Nested(), L.BatchNormalization(synchronized=True)
            self.tracker = keras.metrics.Mean(name="tracked")

        def train_step(self, data):
            x, y = data
            if not hasattr(self, "shift"):
                self.shift = self.add_weight(shape=(3,), initializer="ones", name="shift")
            with tf.GradientTape() as tape:
                y_pred = self.norm(self.n(x), training=True) + self.shift
                loss = ops.mean(ops.square(y_pred - y))
            update(self.optimizer, tape, loss, self.trainable_variables)
            self.tracker.update_state(loss)
            return {"loss": self.tracker.result()}

    return Own


def by_function(cls):
    """A step that is itself a `tf.function`."""

    class Own(plain(cls)):
        @tf.function
        def train_step(self, data):
            return super().train_step(data)

    return Own


MAKES = [gan, plain, half_called, other_inputs, nested, by_function]


@pytest.mark.parametrize("make", [MAKES[0], *map(slow, MAKES[1:])])
def test_they_are_those_of_one_device(strategy, make):
    compiled = {"loss": "mse", "metrics": ["mae"]} if make is half_called else {}
    both(make, strategy, **compiled)


def test_an_optimizer_knows_what_that_of_one_device_knows(mirrored2):
    stock, ours = both(half_called, mirrored2, loss="mse")
    assert paths(ours.optimizer) == paths(stock.optimizer)


# ---- when -------------------------------------------------------------------------------------


def test_evaluate_first_builds_no_optimizer_for_fewer_weights(mirrored2):
    def run(model):
        said = model.evaluate(X, Y, batch_size=5, verbose=0, return_dict=True)
        logs = fit(model, validation_data=(X, Y), validation_batch_size=5)
        return {**{f"first_{name}": value for name, value in said.items()}, **logs}

    both(half_called, mirrored2, run, loss="mse")


def test_steps_that_build_some_each(mirrored2):
    def make(cls):
        class Own(plain(cls)):
            def __init__(self):
                super().__init__()
                self.of_test, self.of_predict = L.Dense(3), L.Dense(2)

            def test_step(self, data):
                x, y = data
                return {"loss": ops.mean(ops.square(self.of_test(self.d(x)) - y))}

            def predict_step(self, data):
                return self.of_predict(self.d(data[0] if isinstance(data, tuple) else data))

        return Own

    def run(model):
        predicted = model.predict(X, batch_size=5, verbose=0)
        said = model.evaluate(X, Y, batch_size=5, verbose=0)
        return {"predicted": predicted, "said": said, **fit(model)}

    both(make, mirrored2, run)


@pytest.mark.filterwarnings("ignore:With run_eagerly=True")
def test_eagerly(mirrored2):
    class Own(plain(tfgpu.Model)):
        def train_step(self, data):
            self.count = getattr(self, "count", 0) + 1
            return super().train_step(data)

    with mirrored2.scope():
        model = Own()
        model.compile(sgd(), run_eagerly=True)
    fit(model)
    assert model.count == 6


def test_a_model_that_is_built_is_not_traced_for_it(mirrored2):
    traced = []

    class Own(plain(tfgpu.Model)):
        def train_step(self, data):
            traced.append(current.building)
            return super().train_step(data)

    with mirrored2.scope():
        model = Own()
        model.d.build((None, 4))
        model.compile(sgd(), jit_compile=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Keras would say that it cannot be built.
        fit(model)
    assert traced
    assert not any(traced)


def test_what_is_drawn_is_what_one_device_draws():
    def make(cls):
        class Own(plain(cls)):
            def train_step(self, data):
                x, y = data
                noise = keras.random.normal(ops.shape(x))
                return super().train_step((x + noise, y)) | {"noise": ops.mean(noise)}

        return Own

    def run(model):
        return {**fit(model), "next": random.random()}

    both(make, tf.distribute.OneDeviceStrategy("CPU:0"), run)


def test_a_step_that_cannot_be_traced_without_replicas_is_refused_by_name(mirrored2):
    class Own(plain(tfgpu.Model)):
        def train_step(self, data):
            tf.distribute.get_replica_context().all_reduce("SUM", data[0][0])
            return super().train_step(data)

    with mirrored2.scope():
        model = Own()
        model.compile(sgd(), jit_compile=False)
    with pytest.raises(ValueError, match="Variable 'kernel' is made in a step of several replicas"):
        fit(model)
