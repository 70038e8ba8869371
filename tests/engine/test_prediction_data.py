"""`predict` goes the way of `evaluate` through any data, and gives what stock Keras gives."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from prediction_models import TOLERANCE, X, Y, assert_predicts_as_stock, build, dense, functional
from replicas import runs_out

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import evaluation_batches, make_resident

# ---- data sets of tfgpu.data ---------------------------------------------------------------


def pictures(offset, count=4):
    """Images that are filled with their number plus an offset."""

    def decode(at):
        image = tf.cast(tf.fill([4, 4, 1], tf.cast(at, tf.int32) + offset), tf.uint8)
        return image, tf.cast(at, tf.int32)

    return Examples(num_examples=count, read=lambda at: (at,), decode=decode)


def corner(strategy, **settings):
    """A model whose output is a pixel of its input."""
    with strategy.scope():
        inputs = keras.Input((4, 4, 1))
        x = keras.layers.Cropping2D(((0, 3), (0, 3)))(inputs)
        model = tfgpu.Model(inputs, keras.layers.Reshape((1,))(x))
        model.compile("sgd", "mse", **settings)
    return model


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streaming"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_second_data_set_gives_its_own_predictions(mirrored2, resident, jit_compile):
    for strategy in (tf.distribute.OneDeviceStrategy("CPU:0"), mirrored2):
        model = corner(strategy, jit_compile=jit_compile)
        for offset in (0, 100):
            examples = pictures(offset)
            arrays = make_resident(examples, strategy) if resident else ()
            batches = evaluation_batches(examples, batch_size=2, resident=arrays)
            predictions = model.predict(batches, verbose=0).ravel().tolist()
            assert predictions == [offset, offset + 1, offset + 2, offset + 3]


def test_data_sets_of_other_sizes_give_their_own_predictions(strategy):
    model = corner(strategy)
    for offset, count in ((0, 5), (50, 3), (100, 9)):
        examples = pictures(offset, count)
        batches = evaluation_batches(
            examples, batch_size=4, resident=make_resident(examples, strategy)
        )
        predictions = model.predict(batches, verbose=0).ravel().tolist()
        assert predictions == list(range(offset, offset + count))


def test_evaluating_a_data_set_between_leaves_the_predictions_alone(strategy):
    model = corner(strategy)
    sets = []
    for offset in (0, 100):
        examples = pictures(offset)
        arrays = make_resident(examples, strategy)
        sets.append(evaluation_batches(examples, batch_size=3, resident=arrays))
    first = model.predict(sets[0], verbose=0)
    model.evaluate(sets[1], verbose=0)
    np.testing.assert_array_equal(model.predict(sets[0], verbose=0), first)


# ---- data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_a_last_batch_of_one_row(strategy, steps_per_execution, jit_compile):
    assert_predicts_as_stock(
        strategy, dense, X, steps_per_execution=steps_per_execution, jit_compile=jit_compile
    )


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_few_rows(strategy, rows):
    assert_predicts_as_stock(strategy, dense, X[:rows])


@runs_out
@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_data_of_unknown_size(strategy, steps_per_execution):
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    data = tf.data.Dataset.from_tensor_slices(X).batch(4).filter(lambda x: True)
    for _ in range(2):
        np.testing.assert_allclose(model.predict(data, verbose=0), model(X).numpy(), **TOLERANCE)


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_a_generator_with_steps_is_asked_for_no_more(strategy, steps_per_execution):
    asked = []

    def batches():
        while True:
            asked.append(len(asked))
            yield (X[:4] + len(asked),)

    model = build(
        tfgpu.Model,
        strategy,
        functional(lambda x: keras.layers.Activation("linear")(x)),
        steps_per_execution=steps_per_execution,
    )
    outputs = model.predict(batches(), steps=5, verbose=0)
    np.testing.assert_allclose(
        outputs, np.concatenate([X[:4] + n for n in range(1, 6)]), **TOLERANCE
    )
    assert len(asked) == 5


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_endless_data_with_steps(strategy, steps_per_execution):
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    data = tf.data.Dataset.from_tensor_slices(X).batch(4).repeat()
    outputs = model.predict(data, steps=7, verbose=0)  # 5 batches of 17 rows, and 2 again.
    expected = model(np.concatenate([X, X[:8]])).numpy()
    np.testing.assert_allclose(outputs, expected, **TOLERANCE)


def test_labels_and_weights_are_ignored(strategy):
    model = build(tfgpu.Model, strategy)
    for element in ((X,), (X, Y), (X, Y, Y[:, 0])):
        data = tf.data.Dataset.from_tensor_slices(element).batch(8)
        np.testing.assert_allclose(model.predict(data, verbose=0), model(X).numpy(), **TOLERANCE)


@pytest.mark.parametrize("as_dict", [True, False], ids=["dict", "list"])
def test_several_inputs(strategy, as_dict):
    def make(kind):
        inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((3,), name="b")}
        joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
        return kind(
            inputs if as_dict else [inputs["a"], inputs["b"]], keras.layers.Dense(2)(joined)
        )

    assert_predicts_as_stock(strategy, make, {"a": X, "b": Y} if as_dict else [X, Y])


@runs_out
def test_an_empty_data_set_is_an_error(strategy):
    model = build(tfgpu.Model, strategy)
    data = tf.data.Dataset.from_tensor_slices(X).batch(4).take(0)
    with pytest.raises((ValueError, UnboundLocalError)):  # The latter is what stock raises.
        model.predict(data, verbose=0)


def test_batches_of_unknown_rank(strategy):
    def read(i):
        return tf.numpy_function(lambda i: X[4 * i : 4 * i + 4], [i], tf.float32)

    data = tf.data.Dataset.range(3).map(read)
    model = build(tfgpu.Model, strategy)
    expected = model.predict(X[:12], verbose=0)
    np.testing.assert_allclose(model.predict(data, verbose=0), expected, **TOLERANCE)
