"""Random numbers of layers: each step and replica draws its own, and a seed draws them again."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from forward_models import XLA, X, Y, assert_same_on_replicas, build, evaluate, fit, through
from replicas import copies, one_device, slow, ways

import tfgpu
from tfgpu.engine import keras_internals as private

L = keras.layers
ops = keras.ops
way = ways("x1", slow("x1-xla"), "x2", "x2-xla")
HELD = {}  # By this module alone.


class Noise(L.Layer):
    def call(self, values, training=False):
        return keras.random.dropout(values, 0.5) if training else values


class Uniform(L.Layer):
    """Noise in the place of its inputs, also where nothing is trained."""

    def call(self, values):
        return keras.random.uniform(ops.shape(values)) + 0 * values


def noise_alone():
    inputs = keras.Input((64,))
    return inputs, L.Dense(1, use_bias=False, kernel_initializer="ones")(Noise()(inputs))


def uniform_alone():
    inputs = keras.Input((6,))
    return inputs, Uniform()(inputs)


def test_unseeded_dropout_draws_another_mask_in_each_step(way):
    strategy, jit_compile = way
    model = build(tfgpu.Model, strategy, noise_alone, jit_compile, rate=0.0)
    losses = fit(model, np.ones((2, 64), "float32"), np.zeros((2, 1), "float32"), epochs=6)["loss"]
    assert len({round(loss, 3) for loss in losses}) > 3


@pytest.mark.parametrize(
    "strategy",
    [tf.distribute.OneDeviceStrategy, lambda device: tf.distribute.MirroredStrategy([device])],
)
def test_one_replica_of_a_strategy_makes_the_global_generator(strategy):
    private.set_global_generator(None)  # As in a new process.
    model = build(tfgpu.Model, strategy("CPU:0"), noise_alone, jit_compile=False)
    model.fit(np.ones((2, 64), "float32"), np.zeros((2, 1), "float32"), verbose=0)
    assert private.global_generator() is not None


def test_each_row_of_each_step_and_replica_has_noise_of_its_own(way):
    strategy, jit_compile = way
    model = build(tfgpu.Model, strategy, uniform_alone, jit_compile)
    rows = np.concatenate([model.predict(X, batch_size=4, verbose=0) for _ in range(2)])
    assert len({tuple(row) for row in rows}) == 32
    assert len(np.unique(rows)) == rows.size
    assert 0 <= rows.min() and rows.max() <= 1


class Masks(L.Layer):
    """Keeps the mask that each replica drew, in a row of its own."""

    def build(self, shape):
        self.masks = self.add_weight(
            shape=(2, 64), initializer="zeros", trainable=False, aggregation="mean"
        )

    def call(self, values, training=False):
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        mine = ops.cast(ops.equal(np.arange(2)[:, None], replica), "float32")
        self.masks.assign(mine * keras.random.dropout(ops.ones((2, 64)), 0.5))
        return values


@XLA
def test_replicas_draw_masks_of_their_own_in_training(mirrored2, jit_compile):
    model = build(tfgpu.Model, mirrored2, through(Masks), jit_compile)
    masks = []
    for _ in range(2):
        fit(model, X[:4], Y[:4], epochs=1)
        masks.extend(model.layers[1].masks.numpy())
    assert set(np.unique(masks)) == {0.0, 1.0}  # 2, halved.
    assert len({tuple(mask) for mask in masks}) == 4
    assert_same_on_replicas(model)


def test_the_same_seed_draws_the_same(way):
    strategy, jit_compile = way
    network = through(lambda: L.Dense(32), Noise)
    losses = []
    for _ in range(2):
        model = build(tfgpu.Model, strategy, network, jit_compile)
        keras.utils.set_random_seed(7)
        losses.append(fit(model)["loss"])
    np.testing.assert_array_equal(*losses)


@pytest.mark.slow
def test_one_model_compiled_and_trained_twice_from_one_seed_draws_the_same(way):
    strategy, jit_compile = way
    model = build(tfgpu.Model, strategy, noise_alone, jit_compile, rate=0.0)
    losses = []
    for _ in range(2):
        # A traced step keeps the generator that the seed replaces, with Keras too.
        with strategy.scope():
            model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
        keras.utils.set_random_seed(7)
        losses.append(
            fit(model, np.ones((4, 64), "float32"), np.zeros((4, 1), "float32"), epochs=3)["loss"]
        )
    np.testing.assert_array_equal(*losses)


@XLA
def test_one_device_draws_what_stock_keras_draws(jit_compile):
    said = []
    for cls in (keras.Model, tfgpu.Model):
        model = build(cls, one_device(), noise_alone, jit_compile, rate=1e-4)
        losses = fit(model, np.ones((6, 64), "float32"), np.zeros((6, 1), "float32"))["loss"]
        drawn = np.array(keras.random.uniform((3,)))  # The generator stands where it stood.
        said.append([*losses, *drawn])
    np.testing.assert_allclose(*said, rtol=1e-5)


@XLA
@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_one_device_draws_what_stock_keras_draws_without_training(jit_compile, method):
    said = []
    for cls in (keras.Model, tfgpu.Model):
        model = build(cls, one_device(), uniform_alone, jit_compile)
        if method == "predict":
            said.append(model.predict(X, batch_size=4, verbose=0))
        else:
            said.append([evaluate(model, X, X)["loss"] for _ in range(2)])
    np.testing.assert_allclose(*said, rtol=1e-5)


class Seeded(L.Layer):
    """Draws from a generator that only the module holds."""

    def call(self, values):
        return keras.random.uniform(ops.shape(values), seed=HELD["seeds"]) + 0 * values


def seeded_alone():
    inputs = keras.Input((6,))
    return inputs, Seeded()(inputs)


@pytest.mark.parametrize("place", ["scope", "outside"])
def test_a_generator_that_no_layer_tracks_goes_on(way, place):
    strategy, jit_compile = way
    if place == "scope":
        with strategy.scope():
            HELD["seeds"] = keras.random.SeedGenerator(3)
    else:
        HELD["seeds"] = keras.random.SeedGenerator(3)
    model = build(tfgpu.Model, strategy, seeded_alone, jit_compile)
    before = copies(HELD["seeds"].state)[0]
    rows = np.concatenate([model.predict(X, batch_size=4, verbose=0) for _ in range(2)])
    assert len(np.unique(rows)) == rows.size
    for state in copies(HELD["seeds"].state):
        np.testing.assert_array_equal(state, [before[0], before[1] + 8])


@XLA
def test_one_device_draws_from_it_what_stock_keras_draws(jit_compile):
    said = []
    for cls in (keras.Model, tfgpu.Model):
        HELD["seeds"] = keras.random.SeedGenerator(3)
        model = build(cls, one_device(), seeded_alone, jit_compile)
        said.append(model.predict(X, batch_size=4, verbose=0))
    np.testing.assert_allclose(*said, rtol=1e-6)


# ---- TensorFlow's own operations, each of which has a sequence of numbers -----------------------


class Drawing(L.Layer):
    """Keeps the last numbers that an operation with a seed has drawn."""

    def build(self, shape):
        self.drawn = self.add_weight(shape=(6,), trainable=False, initializer="zeros")

    def call(self, values):
        number = tf.random.uniform((), seed=5)
        self.drawn.assign(tf.concat([self.drawn[1:], [number]], axis=0))
        return values + number


def six_draws(cls, together, *, recurrent=False, own=None):
    """Of as many steps, the last of which has fewer rows."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3, 2))
    layer = Drawing()
    x = layer(inputs)
    x = L.SimpleRNN(2)(x) if recurrent else L.Flatten()(x)

    class Draws(cls):
        if own == "train_step":

            def train_step(self, data):
                return super().train_step(data)

        elif own == "compute_metrics":

            def compute_metrics(self, x, y, y_pred, sample_weight=None):
                return super().compute_metrics(x, y, y_pred, sample_weight)

    model = Draws(inputs, L.Dense(1)(x))
    model.compile("sgd", "mse", steps_per_execution=together, jit_compile=False)
    x = np.random.default_rng(0).normal(size=(44, 3, 2)).astype("float32")
    model.fit(x, x[:, 0, :1], batch_size=8, shuffle=False, verbose=0)
    return np.asarray(layer.drawn)


@pytest.mark.parametrize("together", [slow(1), slow(2), 3, slow(4)])
@pytest.mark.parametrize(
    "case", [{"own": "train_step"}, {"own": "compute_metrics"}, {"recurrent": True}, {}]
)
def test_no_step_draws_the_numbers_of_another_again(together, case):
    expected = six_draws(keras.Model, 1, **case)
    assert len(set(expected.tolist())) == 6
    np.testing.assert_array_equal(six_draws(tfgpu.Model, together, **case), expected)
