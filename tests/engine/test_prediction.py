"""`predict` gives what stock Keras gives: of any model, in any structure, to any callback."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from prediction_models import TOLERANCE, X, Y, assert_predicts_as_stock, build, functional
from replicas import one_device, runs_out
from versions import KERAS

import tfgpu

# ---- models --------------------------------------------------------------------------------


def subclassed(kind):
    class Own(kind):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(4, "tanh")
            self.out = keras.layers.Dense(3)

        def call(self, x):
            return self.out(self.hidden(x))

    return Own()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_subclass_that_is_not_built_predicts(strategy, jit_compile):
    model = build(tfgpu.Model, strategy, subclassed, jit_compile=jit_compile)
    outputs = model.predict(X, batch_size=8, verbose=0)
    hidden, out = model.hidden, model.out
    expected = np.tanh(X @ hidden.kernel.numpy() + hidden.bias.numpy()) @ out.kernel.numpy()
    np.testing.assert_allclose(outputs, expected + out.bias.numpy(), **TOLERANCE)


def test_a_subclass_that_is_not_built_predicts_data_with_labels(strategy):
    model = build(tfgpu.Model, strategy, subclassed)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    np.testing.assert_allclose(model.predict(data, verbose=0), model(X).numpy(), **TOLERANCE)


def test_a_sequential_that_is_not_built_predicts(strategy):
    with strategy.scope():
        model = tfgpu.Sequential([keras.layers.Dense(3)])
        model.compile("sgd", "mse")
    np.testing.assert_allclose(
        model.predict(X, batch_size=8, verbose=0), model(X).numpy(), **TOLERANCE
    )


def test_a_model_that_is_not_compiled_predicts(strategy):
    model = build(tfgpu.Model, strategy, compiled=False)
    np.testing.assert_allclose(
        model.predict(X, batch_size=8, verbose=0), model(X).numpy(), **TOLERANCE
    )


def test_a_subclass_that_is_neither_compiled_nor_built_predicts(strategy):
    model = build(tfgpu.Model, strategy, subclassed, compiled=False)
    np.testing.assert_allclose(
        model.predict(X, batch_size=8, verbose=0), model(X).numpy(), **TOLERANCE
    )


def test_weights_trained_in_between_are_those_that_predict(strategy):
    model = build(tfgpu.Model, strategy)
    before = model.predict(X, batch_size=8, verbose=0)
    model.fit(X, Y, batch_size=8, verbose=0)
    after = model.predict(X, batch_size=8, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, model(X).numpy(), **TOLERANCE)


def test_dropout_is_off(strategy):
    model = build(tfgpu.Model, strategy, functional(lambda x: keras.layers.Dropout(0.5)(x)))
    np.testing.assert_array_equal(model.predict(X, batch_size=8, verbose=0), X)


def test_own_predict_step_is_what_predicts(strategy):
    class Own(tfgpu.Model):
        def predict_step(self, data):
            return 2.0 * self(data, training=False)

    with strategy.scope():
        inputs = keras.Input((6,))
        model = Own(inputs, keras.layers.Activation("linear")(inputs))
        model.compile("sgd", "mse")
    np.testing.assert_allclose(model.predict(X, batch_size=8, verbose=0), 2 * X, **TOLERANCE)


def test_predicts_eagerly(strategy):
    model = build(tfgpu.Model, strategy, run_eagerly=True)
    np.testing.assert_allclose(
        model.predict(X, batch_size=8, verbose=0), model(X).numpy(), **TOLERANCE
    )


# ---- outputs -------------------------------------------------------------------------------


STRUCTURES = {
    "dict": lambda x: {"b": keras.layers.Dense(2)(x), "a": keras.layers.Dense(1)(x)},
    "list": lambda x: [keras.layers.Dense(2)(x), keras.layers.Dense(1)(x)],
    "tuple": lambda x: (keras.layers.Dense(2)(x), keras.layers.Dense(1)(x)),
    "nested": lambda x: {"a": keras.layers.Dense(2)(x), "b": [x, {"c": keras.ops.abs(x)}]},
    "integers": lambda x: keras.ops.argmax(x, axis=-1),
}


@pytest.mark.parametrize("steps_per_execution", [1, 3])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_outputs_keep_their_structure(strategy, structure, steps_per_execution):
    make = functional(STRUCTURES[structure])
    assert_predicts_as_stock(strategy, make, X, steps_per_execution=steps_per_execution)


class Rows(keras.layers.Layer):
    """As many rows as `of` makes of the input's."""

    def __init__(self, of, **options):
        super().__init__(**options)
        self.of = of

    def call(self, x):
        return self.of(x)

    def compute_output_shape(self, shape):
        return (None, *shape[1:])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_more_rows_than_the_input_come_whole(strategy, jit_compile):
    layer = Rows(lambda x: keras.ops.repeat(x, 3, axis=0))
    model = build(tfgpu.Model, strategy, functional(layer), jit_compile=jit_compile)
    np.testing.assert_array_equal(
        model.predict(X, batch_size=8, verbose=0), np.repeat(X, 3, axis=0)
    )


def test_fewer_rows_than_the_input_come_whole(strategy):
    model = build(tfgpu.Model, strategy, functional(Rows(lambda x: x[::2])))
    # Two rows of every four, at each replica as on one device; every second of the last batch.
    outputs = model.predict(X[:16], batch_size=8, verbose=0)
    np.testing.assert_array_equal(outputs, X[:16:2])


def test_rows_that_depend_on_the_values_come_whole(strategy):
    model = build(
        tfgpu.Model, strategy, functional(Rows(lambda x: tf.boolean_mask(x, x[:, 0] > 0)))
    )
    np.testing.assert_array_equal(model.predict(X, batch_size=8, verbose=0), X[X[:, 0] > 0])


def test_more_rows_of_a_batch_with_fewer_rows_than_replicas_come_once(strategy):
    layer = Rows(lambda x: keras.ops.repeat(x, 2, axis=0))
    model = build(tfgpu.Model, strategy, functional(layer))
    np.testing.assert_array_equal(
        model.predict(X[:1], batch_size=8, verbose=0), np.repeat(X[:1], 2, axis=0)
    )


class AsRagged(keras.layers.Layer):
    """As many numbers of each row as say its whole first number."""

    def call(self, x):
        return tf.RaggedTensor.from_tensor(x, lengths=tf.cast(x[:, 0], tf.int32))

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, None), x.dtype, ragged=True)


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_ragged_outputs_of_one_device(steps_per_execution):
    x = X.copy()
    x[:, 0] = 1 + np.arange(17) % 5
    model = build(
        tfgpu.Model,
        one_device(),
        functional(AsRagged()),
        steps_per_execution=steps_per_execution,
        jit_compile=False,
    )
    outputs = model.predict(x, batch_size=8, verbose=0)
    assert isinstance(outputs, tf.RaggedTensor)
    assert outputs.row_lengths().numpy().tolist() == (1 + np.arange(17) % 5).tolist()
    np.testing.assert_array_equal(
        outputs.flat_values, np.concatenate([row[: int(row[0])] for row in x])
    )


class MeanOfAll(keras.layers.Layer):
    def call(self, x):
        return keras.ops.mean(x)

    def compute_output_shape(self, shape):
        return ()


@pytest.mark.parametrize("rows", [5, 1])
def test_a_scalar_output_is_the_mean_by_rows(mirrored2, rows):
    with mirrored2.scope():
        inputs = keras.Input((6,))
        outputs = keras.layers.Activation("linear")(inputs)
        model = tfgpu.Model(inputs, [MeanOfAll()(outputs), outputs])
        model.compile("sgd")
    for scalar, outputs in (
        model.predict_on_batch(X[:rows]),
        model.predict(X[:rows], batch_size=8, verbose=0),
    ):
        np.testing.assert_allclose(scalar, X[:rows].mean(), rtol=1e-5)
        np.testing.assert_array_equal(outputs, X[:rows])


# ---- callbacks -----------------------------------------------------------------------------


class Watch(keras.callbacks.Callback):
    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after, self.events, self.rows = stop_after, [], []

    def on_predict_begin(self, logs=None):
        self.events.append("begin")

    def on_predict_end(self, logs=None):
        self.events.append("end")

    def on_predict_batch_begin(self, batch, logs=None):
        self.events.append(("batch begin", batch))

    def on_predict_batch_end(self, batch, logs=None):
        self.events.append(("batch end", batch))
        self.rows.append([leaf.shape[0] for leaf in keras.tree.flatten(logs["outputs"])])
        if self.stop_after is not None and len(self.rows) == self.stop_after:
            self.model.stop_predicting = True


THREE_STEPS = pytest.param(
    3,
    marks=pytest.mark.skipif(
        KERAS < (3, 11), reason="Keras 3.10 names the first step where an execution ends"
    ),
)


@pytest.mark.parametrize("steps_per_execution", [1, THREE_STEPS])
def test_callbacks_see_what_they_see_in_stock(strategy, steps_per_execution):
    seen = []
    for kind, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(kind, place, steps_per_execution=steps_per_execution)
        watch = Watch()
        model.predict(X, batch_size=4, verbose=0, callbacks=[watch])
        seen.append(watch.events)
    assert seen[0] == seen[1]


def test_callbacks_see_the_outputs_of_a_batch(strategy):
    model = build(tfgpu.Model, strategy)
    watch = Watch()
    model.predict(X, batch_size=4, verbose=0, callbacks=[watch])
    assert watch.rows == [[4], [4], [4], [4], [1]]


@runs_out
@pytest.mark.parametrize("steps_per_execution", [1, 2, 3])
def test_callbacks_see_the_steps_of_data_of_unknown_size(strategy, steps_per_execution):
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    watch = Watch()
    data = tf.data.Dataset.from_tensor_slices(X).batch(4).filter(lambda x: True)
    model.predict(data, verbose=0, callbacks=[watch])  # 5 batches.
    begins = [event[1] for event in watch.events if event[0] == "batch begin"]
    ends = [event[1] for event in watch.events if event[0] == "batch end"]
    assert begins == list(range(0, 5, steps_per_execution))
    # As Keras' own tests have it of training, the last execution counts as a whole one.
    assert ends == [begin + steps_per_execution - 1 for begin in begins]
    assert len(ends) == len(begins)


def test_stop_predicting_gives_what_there_is(strategy):
    model = build(tfgpu.Model, strategy)
    outputs = model.predict(X, batch_size=4, verbose=0, callbacks=[Watch(stop_after=2)])
    np.testing.assert_allclose(outputs, model(X[:8]).numpy(), **TOLERANCE)


def test_a_prediction_that_was_stopped_does_not_stop_the_next(strategy):
    model = build(tfgpu.Model, strategy)
    model.predict(X, batch_size=4, verbose=0, callbacks=[Watch(stop_after=1)])
    assert len(model.predict(X, batch_size=4, verbose=0)) == 17


def test_the_callbacks_of_fit_may_predict(strategy):
    model = build(tfgpu.Model, strategy)
    seen = []
    predict = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            (model.predict(X, batch_size=4, verbose=0), model(X).numpy())
        )
    )
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[predict])
    for outputs, expected in seen:
        np.testing.assert_allclose(outputs, expected, **TOLERANCE)


# ---- one batch -----------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rows", [8, 5, 1])
def test_predict_on_batch(strategy, rows, jit_compile):
    model = build(tfgpu.Model, strategy, jit_compile=jit_compile)
    outputs = model.predict_on_batch(X[:rows])
    np.testing.assert_allclose(outputs, model(X[:rows]).numpy(), **TOLERANCE)


def test_predict_on_batch_of_a_dict(strategy):
    def make(kind):
        inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((3,), name="b")}
        return kind(inputs, {"c": keras.layers.Concatenate()([inputs["a"], inputs["b"]])})

    model = build(tfgpu.Model, strategy, make)
    outputs = model.predict_on_batch({"a": X[:5], "b": Y[:5]})
    np.testing.assert_allclose(outputs["c"], np.concatenate([X[:5], Y[:5]], 1), **TOLERANCE)
