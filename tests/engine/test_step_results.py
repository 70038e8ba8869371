"""What a step of one's own returns that is no mean of floats."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import slow

import tfgpu

X = np.random.default_rng(0).normal(size=(17, 6)).astype("float32")
Y = X[:, :1]


def history(cls, strategy, result, **compiled):
    class Own(cls):
        def train_step(self, data):
            return {**super().train_step(data), "own": result(self, *data)}

    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((6,))
        model = Own(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse", jit_compile=False, **compiled)
    return model.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0).history["own"]


@pytest.mark.parametrize(
    "result",
    [
        lambda model, x, y: tf.shape(x)[0],
        lambda model, x, y: tf.reduce_sum(tf.cast(x > 0, tf.int32)),
        lambda model, x, y: model.optimizer.iterations,
        lambda model, x, y: tf.constant(True),
        lambda model, x, y: tf.constant("said"),
    ],
    ids=["rows", "count", "updates", "bool", "text"],
)
@pytest.mark.parametrize("together", [1, 3])
def test_it_is_that_of_one_device(mirrored2, result, together):
    one = history(keras.Model, tf.distribute.get_strategy(), result)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="A step returns")
        two = history(tfgpu.Model, mirrored2, result, steps_per_execution=together)
    assert np.all(np.asarray(two) == np.asarray(one)), (two, one)


def test_what_is_made_of_rows_is_that_of_all(mirrored2):
    of = {
        "any": lambda model, x, y: tf.reduce_any(x > 2.2),
        "number": lambda model, x, y: tf.argmax(x[:, 0]),
        "largest": lambda model, x, y: tf.reduce_max(x),
        "sum": lambda model, x, y: tf.reduce_sum(x),
    }
    for result in of.values():
        expected = history(keras.Model, tf.distribute.get_strategy(), result)
        found = history(tfgpu.Model, mirrored2, result)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def row_errors(model, x, y):
    return tf.reduce_mean(tf.square(model(x) - y), axis=1)


VALUES_OF_ROWS = {
    "one": row_errors,
    "several": lambda model, x, y: tf.repeat(row_errors(model, x, y), 2),
    "after": lambda model, x, y: tf.concat([x[:, 0], x[:, 1]], axis=0),
    "matrix": lambda model, x, y: model(x),
    "numbers": lambda model, x, y: tf.argmax(x, axis=1),
    "truths": lambda model, x, y: x[:, 0] > 0.0,
    "pairs": lambda model, x, y: tf.matmul(x, x, transpose_b=True),
    "ranks": lambda model, x, y: x[:, 0] - tf.reduce_mean(x[:, 0]),
}


@pytest.mark.parametrize("name", ["several", *map(slow, VALUES_OF_ROWS.keys() - {"several"})])
def test_values_of_rows_are_those_of_all_in_order(mirrored2, name):
    expected = history(keras.Model, tf.distribute.get_strategy(), VALUES_OF_ROWS[name])
    found = history(tfgpu.Model, mirrored2, VALUES_OF_ROWS[name])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["one", slow("several")])
def test_values_of_rows_that_are_computed_eagerly(mirrored2, name):
    """The last batch has five rows: replicas have three and two."""
    result = VALUES_OF_ROWS[name]
    expected = history(keras.Model, tf.distribute.get_strategy(), result, run_eagerly=True)
    found = history(tfgpu.Model, mirrored2, result, run_eagerly=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_values_of_rows_that_nobody_can_see_through_are_put_together(mirrored2):
    @tf.function
    def errors(x, y):
        return tf.reduce_sum(tf.abs(x), axis=1) + y[:, 0]

    def result(model, x, y):
        return errors(x, y)

    expected = history(keras.Model, tf.distribute.get_strategy(), result)
    with pytest.warns(UserWarning, match="'own', .* put one after the other"):
        found = history(tfgpu.Model, mirrored2, result)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_some_rows_that_nobody_can_see_through_are_refused_by_name(mirrored2):
    @tf.function
    def some(x):
        return tf.boolean_mask(x[:, 0], tf.range(tf.shape(x)[0]) != 0)

    with (
        pytest.warns(UserWarning, match="put one after the other"),
        pytest.raises(tf.errors.InvalidArgumentError, match="A step returns .*own"),
    ):
        history(tfgpu.Model, mirrored2, lambda model, x, y: some(x))


def test_a_text_of_the_rows_is_said_to_be_the_first_replicas(mirrored2):
    with pytest.warns(UserWarning, match="'own' of dtype string"):
        history(tfgpu.Model, mirrored2, lambda model, x, y: tf.strings.as_string(x[0, 0]))


class Ever(keras.metrics.Metric):
    def __init__(self, name="ever"):
        super().__init__(name=name)
        self.so_far = self.add_weight(name="so_far", initializer="zeros", dtype="bool")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.so_far.assign(tf.logical_or(self.so_far, tf.reduce_any(y_pred > 0)))

    def result(self):
        return tf.cast(self.so_far, "float32")


def test_a_metric_whose_state_does_not_add_up_is_refused_by_name(mirrored2):
    with mirrored2.scope():
        inputs = keras.Input((6,))
        model = tfgpu.Model(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse", metrics=[Ever()])
    with pytest.raises(ValueError, match="metric 'ever' has a variable 'so_far' of dtype bool"):
        model.fit(X, Y, verbose=0)
