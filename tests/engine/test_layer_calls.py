"""What layers and models make of other rows: computed of all rows, or said."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import assert_logs, assert_same_weights, one_device, slow

import tfgpu

L = keras.layers
ops = keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 8)).astype("float32")
Y = RNG.normal(size=(22, 3)).astype("float32")


def trained(cls, strategy, make, data=(X, Y)):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = make(cls)
    logs = model.fit(*data, batch_size=6, epochs=2, shuffle=False, verbose=0).history
    return model, logs


def assert_as_one_device(strategy, make, data=(X, Y), *, predicted=True):
    stock, expected = trained(keras.Model, one_device(), make, data)
    ours, actual = trained(tfgpu.Model, strategy, make, data)
    assert_same_weights(stock, ours)
    assert_logs(expected, actual)
    if predicted:
        one, two = (model.predict(X, batch_size=6, verbose=0) for model in (stock, ours))
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


def compiled(model, loss="mse"):
    model.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False)
    return model


# ---- a model's own call ------------------------------------------------------------------------


def calling(call):
    """Makes a model of two layers and this call of them."""

    def make(cls):
        class Calling(cls):
            def __init__(self):
                super().__init__()
                self.first, self.second = L.Dense(4, activation="tanh"), L.Dense(3)

            def call(self, x):
                return call(self, x)

        return compiled(Calling())

    return make


CALLS = {
    "a sum over rows": lambda m, x: m.second(x) + ops.sum(m.first(x)) / 10,
    "a contraction over rows": lambda m, x: (
        m.second(x) + ops.tensordot(m.first(x), m.first(x), 2) / 10
    ),
    "centred": lambda m, x: m.second(m.first(x) - ops.mean(m.first(x), axis=0)),
}


@pytest.mark.parametrize("name", ["a sum over rows", slow("a contraction over rows")])
def test_what_a_model_makes_around_its_layers_is_of_all_rows(mirrored2, name):
    assert_as_one_device(mirrored2, calling(CALLS[name]))


def two_views(cls):
    """NT-Xent of two views that go through the network together."""

    class Views(cls):
        def __init__(self):
            super().__init__()
            self.together, self.network = L.Concatenate(axis=0), L.Dense(4)

        def call(self, x):
            return self.network(self.together([x, 0.5 * x[:, ::-1]]))

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            near = ops.matmul(y_pred, ops.transpose(y_pred)) - 1e9 * ops.eye(ops.shape(y_pred)[0])
            rows = ops.shape(y)[0]
            other = ops.concatenate([ops.arange(rows) + rows, ops.arange(rows)])
            return ops.mean(ops.sparse_categorical_crossentropy(other, near, from_logits=True))

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            weights = self.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return {"loss": loss}

    return compiled(Views())


def test_pairs_of_views_that_go_through_a_model_together(mirrored2):
    assert_as_one_device(mirrored2, two_views, predicted=False)


# ---- pairs -------------------------------------------------------------------------------------


class Unmasked(L.Layer):
    """Leaves those of a row's own class out of its scores, as retrieval does."""

    def call(self, scores, ids):
        same = ops.cast(ops.equal(ids, ops.transpose(ids)), "float32")
        return scores - 1e4 * (same - ops.eye(ops.shape(scores)[0]))


def retrieval(cls):
    unmasked = Unmasked()

    class Retrieval(cls):
        def __init__(self):
            super().__init__()
            self.queries = L.Dense(3)

        def call(self, x):
            return self.queries(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            scores = unmasked(ops.matmul(y_pred, ops.transpose(y)), ops.round(x[:, :1]))
            own = ops.eye(ops.shape(scores)[0])
            return ops.sum(ops.categorical_crossentropy(own, scores, from_logits=True))

    return compiled(Retrieval())


def test_a_layer_that_is_given_pairs(mirrored2):
    assert_as_one_device(mirrored2, retrieval)


def matrix(cls):
    inputs = keras.Input((8,))
    first, second = L.Dense(3)(inputs), L.Dense(3)(inputs)
    return compiled(cls(inputs, ops.matmul(first, ops.transpose(second))))


def test_a_model_that_puts_out_pairs(mirrored2):
    assert_as_one_device(mirrored2, matrix, (X, Y[:, :1]), predicted=False)


# ---- what a step gives to a model ----------------------------------------------------------------


def giving(given):
    """A step that gives its model something else than its rows, by a loss of Keras'."""

    def make(cls):
        class Giving(cls):
            def train_step(self, data):
                x, y = given(*data)
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
                weights = self.trainable_variables
                gradients = tape.gradient(loss, weights)
                self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
                return {"loss": loss}

        inputs = keras.Input((8,))
        return compiled(Giving(inputs, L.Dense(3)(inputs)))

    return make


GIVEN = {
    "standardized": lambda x, y: ((x - tf.reduce_mean(x, 0)) / tf.math.reduce_std(x, 0), y),
    "scaled": lambda x, y: (x / tf.reduce_max(tf.abs(x)), y),
    "mixed": lambda x, y: (0.7 * x + 0.3 * x[::-1], 0.7 * y + 0.3 * y[::-1]),
    "rolled": lambda x, y: (x + tf.roll(x, 1, 0), y),
}


@pytest.mark.parametrize("name", ["standardized", slow("scaled"), "mixed", slow("rolled")])
def test_what_a_step_gives_to_its_model_is_made_of_all_rows(mirrored2, name):
    assert_as_one_device(mirrored2, giving(GIVEN[name]))


def test_some_rows_that_a_step_gives_to_its_model_are_said(mirrored2):
    def some(x, y):
        return x[: tf.shape(x)[0] // 2 + 1], y[: tf.shape(x)[0] // 2 + 1]

    with mirrored2.scope():
        model = giving(some)(tfgpu.Model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model.fit(X, Y, batch_size=6, verbose=0)
    assert any("A step gives a model for a row what is made of other" in str(w) for w in said)


def test_rows_that_a_step_shuffles_are_its_replicas_own(mirrored2):
    def shuffled(x, y):
        order = tf.argsort(tf.random.uniform([tf.shape(x)[0]]))
        return 0.7 * x + 0.3 * tf.gather(x, order), 0.7 * y + 0.3 * tf.gather(y, order)

    with mirrored2.scope():
        model = giving(shuffled)(tfgpu.Model)
    model.fit(X, Y, batch_size=6, verbose=0)  # Warnings are errors.


# ---- layers ------------------------------------------------------------------------------------


class Making(L.Layer):
    def __init__(self, function):
        super().__init__(name="making")
        self.function = function

    def call(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: ops.cumsum(x, axis=0), "other rows .by Cumsum"),
        (lambda x: x - ops.mean(x, axis=0), "statistics of the rows"),
    ],
)
def test_a_layer_inside_that_makes_rows_of_others_is_said(mirrored2, function, said):
    with mirrored2.scope():
        inputs = keras.Input((8,))
        outputs = L.Dense(3)(Making(function)(L.Dense(4)(inputs)))
        model = compiled(tfgpu.Model(inputs, outputs))
    with pytest.warns(UserWarning, match=f"Layer 'making' makes .* of {said}"):
        model.fit(X, Y, batch_size=6, verbose=0)
