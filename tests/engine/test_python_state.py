"""What a step keeps in Python: each replica sees its own, whatever another has set meanwhile.

Replicas change places wherever they meet, as in each gradient and each update.
"""

import types
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import assert_logs, assert_same_weights, one_device, slow

import tfgpu
from tfgpu.engine.python_state import PythonState

L, ops = keras.layers, keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(13, 4)).astype("float32")
Y = RNG.normal(size=(13, 3)).astype("float32")


def sgd():
    return keras.optimizers.SGD(0.1)


def net(*layers, rows=4):
    return keras.Sequential([keras.Input((rows,)), *layers])


def update(optimizer, tape, loss, weights):
    optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))


def assert_as_on_one_device(make, strategy, **compiled):
    """The same history and weights; no warning that stock Keras does not give."""
    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        keras.utils.set_random_seed(1)
        with place.scope():
            models.append(make(cls))
            models[-1].compile(sgd(), jit_compile=False, **compiled)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted = models[-1].fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0)
        logs.append(fitted.history)
    assert_logs(*logs)
    assert_same_weights(*models)
    return models[1]


# ---- flags ------------------------------------------------------------------------------------


def frozen_by_turns(cls, norm=()):
    """A GAN whose discriminator is frozen and thawed in each step, as in GauGAN."""

    class Gan(cls):
        def __init__(self):
            super().__init__()
            self.g = net(L.Dense(3))
            self.d = net(L.Dense(3, activation="tanh"), *(make() for make in norm), rows=3)
            self.of_d = sgd()

        def train_step(self, data):
            x, y = data
            self.d.trainable = True
            with tf.GradientTape() as tape:
                real, made = self.d(y, training=True), self.d(self.g(x), training=True)
                loss = ops.mean(ops.square(real - 1.0)) + ops.mean(ops.square(made))
            gradients = tape.gradient(loss, self.d.trainable_variables)
            self.of_d.apply_gradients(zip(gradients, self.d.trainable_variables, strict=True))
            self.d.trainable = False
            with tf.GradientTape() as tape:
                fooled = ops.mean(ops.square(self.d(self.g(x), training=True) - 1.0))
            gradients = tape.gradient(fooled, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"d": loss, "g": fooled}

    return Gan()


def test_trainable_of_a_layer(mirrored2):
    model = assert_as_on_one_device(frozen_by_turns, mirrored2)
    assert not model.d.trainable
    assert not any(v.trainable for v in model.d.variables)


def test_a_normalization_that_is_frozen_keeps_its_statistics(mirrored2):
    norm = [lambda: L.BatchNormalization(momentum=0.5, synchronized=True)]
    assert_as_on_one_device(lambda cls: frozen_by_turns(cls, norm), mirrored2)


def test_trainable_of_a_variable(mirrored2):
    def make(cls):
        class Own(cls):
            def __init__(self):
                super().__init__()
                self.g = net(L.Dense(3))

            def train_step(self, data):
                x, y = data
                kernel, bias = self.g.layers[0].kernel, self.g.layers[0].bias
                for flags in ((True, False), (False, True)):
                    kernel.trainable, bias.trainable = flags
                    with tf.GradientTape() as tape:
                        loss = ops.mean(ops.square(self.g(x) - y))
                    gradients = tape.gradient(loss, self.trainable_variables)
                    if not self.optimizer.built:
                        self.optimizer.build([kernel, bias])
                    self.optimizer.apply(gradients, self.trainable_variables)
                return {"loss": loss}

        return Own()

    assert_as_on_one_device(make, mirrored2)


# ---- attributes -------------------------------------------------------------------------------


class Holder:
    """A plain object of the user's."""


def keeping(cls, keep):
    """A class whose step keeps the number of rows, by `keep`, and uses it after an update."""

    class Own(cls):
        def __init__(self):
            super().__init__()
            self.g = net(L.Dense(3))
            self.holder, self.space = Holder(), types.SimpleNamespace()
            self.holder.inner = Holder()
            self.cache, self.list, self.steps = {}, [], 0

        def train_step(self, data):
            x, y = data
            self.steps += 1
            kept = keep(self, tf.cast(tf.shape(x)[0], tf.float32))
            losses = []
            for self.phase in ("first", "second"):
                with tf.GradientTape() as tape:
                    loss = ops.sqrt(ops.sum(ops.square(self.g(x) - y)) / kept())
                weights = self.g.trainable_variables
                gradients = tape.gradient(loss, weights)
                if self.phase == "second":
                    gradients = [each * 3.0 for each in gradients]
                self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
                losses.append(loss)
            return {"first": losses[0], "second": losses[1]}

    return Own()


def in_attribute(model, rows):
    model.rows = rows
    return lambda: model.rows


def in_layer(model, rows):
    model.g.layers[0].rows = rows
    return lambda: model.g.layers[0].rows


def in_dict(model, rows):
    model.cache["rows"] = rows
    return lambda: model.cache["rows"]


def in_new_dict(model, rows):
    model.new = {"of": {"rows": rows}}
    return lambda: model.new["of"]["rows"]


def in_list(model, rows):
    model.list.append(rows)
    return lambda: model.list[-1]


def in_object(model, rows):
    model.holder.inner.rows = rows
    return lambda: model.holder.inner.rows


def in_namespace(model, rows):
    model.space.rows = rows
    return lambda: model.space.rows


KEPT = [in_attribute, in_layer, in_dict, in_new_dict, in_list, in_object, in_namespace]


@pytest.mark.parametrize("keep", [KEPT[0], *map(slow, KEPT[1:])])
def test_what_is_kept(mirrored2, keep):
    model = assert_as_on_one_device(lambda cls: keeping(cls, keep), mirrored2)
    assert model.steps >= 1


@pytest.mark.filterwarnings("ignore:A step makes the gradients")  # Times 3; see `keeping`.
@pytest.mark.filterwarnings("ignore:With run_eagerly=True")
def test_a_counter_of_python_counts_steps_and_not_replicas(mirrored2):
    """With `run_eagerly=True`, where Python runs in each step."""
    with mirrored2.scope():
        model = keeping(tfgpu.Model, in_list)
        model.compile(sgd(), jit_compile=False, run_eagerly=True)
    model.fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0)
    assert model.steps == 6
    assert len(model.list) == 6


# ---- by itself --------------------------------------------------------------------------------


def test_it_puts_back_attributes_contents_and_flags():
    layer = L.Dense(2)
    layer.build((None, 3))
    layer.several, layer.named, layer.some = [1, 2], {"a": [1], "b": 2}, {1, 2}
    inner = layer.named["a"]
    state = PythonState([layer])
    layer.several.append(3)
    inner.append(2)
    layer.named["c"] = 3
    layer.some.add(3)
    layer.new, layer.trainable = 1, False
    state.put_back()
    assert list(layer.several) == [1, 2]
    assert dict(layer.named) == {"a": [1], "b": 2}
    assert layer.named["a"] is inner
    assert set(layer.some) == {1, 2}
    assert not hasattr(layer, "new")
    assert layer.trainable
    assert layer.kernel.trainable
    layer.several.append(3)  # Still a list of Keras', that may be changed.


def test_it_leaves_what_has_been_built():
    layer, model = L.Dense(2), keras.Sequential([L.Dense(2)])
    state = PythonState([layer, model, *model.layers])
    layer(np.ones((1, 3)))
    model(np.ones((1, 3)))
    state.put_back()
    assert len(layer.weights) == len(model.weights) == 2
    assert model.built
