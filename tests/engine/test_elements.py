"""Whatever a batch may consist of, in a data set or alone."""

import collections
import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from element_models import X, Y, assert_trains_as_stock, build, dataset, dense
from replicas import one_device, runs_out

import tfgpu

RNG = np.random.default_rng(1)


# ---- None ----------------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
def test_none_in_place_of_weights(strategy, jit_compile):
    data = dataset(X, Y).map(lambda x, y: (x, y, None))
    assert_trains_as_stock(strategy, dense, data, jit_compile=jit_compile)


@pytest.mark.parametrize("steps_per_execution", [2, 3])
def test_none_in_place_of_weights_with_several_steps(strategy, steps_per_execution):
    data = dataset(X, Y).map(lambda x, y: (x, y, None))
    assert_trains_as_stock(strategy, dense, data, steps_per_execution=steps_per_execution)


@runs_out
def test_none_in_data_of_unknown_size(strategy):
    data = dataset(X, Y).filter(lambda x, y: True).map(lambda x, y: (x, y, None))
    assert_trains_as_stock(strategy, dense, data)


class Penalized(keras.layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.mean(keras.ops.square(x)))
        return x


def penalized(kind):
    inputs = keras.Input((4,))
    return kind(inputs, Penalized()(keras.layers.Dense(1)(inputs)))


@pytest.mark.parametrize("none", [False, True], ids=["absent", "none"])
def test_no_labels(strategy, none):
    data = dataset(X, Y).map(lambda x, y: (x, None)) if none else dataset(X)
    assert_trains_as_stock(strategy, penalized, data, loss=None)


class Optional(keras.layers.Layer):
    """The first input, and a multiple of the second where there is one."""

    def call(self, x, other=None):
        return x if other is None else x + 2.0 * other


def with_optional(kind, *, as_dict):
    first = keras.Input((4,), name="first")
    second = keras.Input((4,), name="second", optional=True)
    outputs = keras.layers.Dense(1)(Optional()(first, second))
    return kind({"first": first, "second": second} if as_dict else [first, second], outputs)


@pytest.mark.parametrize("given", [True, False], ids=["given", "none"])
@pytest.mark.parametrize("as_dict", [True, False], ids=["dict", "list"])
def test_optional_inputs(strategy, as_dict, given):
    def element(x, y):
        second = x * x if given else None
        return ({"first": x, "second": second} if as_dict else (x, second)), y

    assert_trains_as_stock(
        strategy, lambda kind: with_optional(kind, as_dict=as_dict), dataset(X, Y).map(element)
    )


@pytest.mark.parametrize("rows", [8, 5, 1])
def test_an_optional_input_that_is_none_on_a_batch(strategy, rows):
    x, y = X[:rows], Y[:rows]
    results = []
    for kind, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(kind, place, lambda kind: with_optional(kind, as_dict=True))
        batch = {"first": x, "second": None}
        results.append(
            [
                model.train_on_batch(batch, y),
                model.test_on_batch(batch, y),
                float(model.predict_on_batch(batch).sum()),
            ]
        )
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4)


# ---- kinds of tensors ----------------------------------------------------------------------


class MeanOfRagged(keras.layers.Layer):
    def call(self, x):
        return tf.reduce_mean(x, axis=1)

    def compute_output_spec(self, x):
        return keras.KerasTensor((x.shape[0], 1), "float32")


LENGTHS = [1 + i % 5 for i in range(22)]
VALUES = RNG.normal(size=(sum(LENGTHS), 1)).astype("float32")


def of_ragged(kind):
    inputs = keras.Input((None, 1), ragged=True)
    return kind(inputs, keras.layers.Dense(1)(MeanOfRagged()(inputs)))


@pytest.mark.parametrize("batch_size", [8, 7])
def test_ragged_inputs(strategy, batch_size):
    data = dataset(tf.RaggedTensor.from_row_lengths(VALUES, LENGTHS), Y, batch_size=batch_size)
    assert_trains_as_stock(strategy, of_ragged, data, jit_compile=False)


WORDS = np.array(["red", "green", "blue", "red", "teal"])[np.arange(22) % 5]


def looked_up(kind):
    inputs = keras.Input((), dtype="string")
    numbers = keras.layers.StringLookup(vocabulary=["red", "green", "blue"])(inputs)
    x = keras.layers.Embedding(4, 3)(numbers)
    return kind(inputs, keras.layers.Dense(1)(x))


def vectorized(kind):
    inputs = keras.Input((), dtype="string")
    tokens = keras.layers.TextVectorization(
        vocabulary=["red", "green", "blue"], output_sequence_length=3
    )(inputs)
    x = keras.layers.Flatten()(keras.layers.Embedding(5, 3)(tokens))
    return kind(inputs, keras.layers.Dense(1)(x))


@pytest.mark.parametrize("make", [looked_up, vectorized])
@pytest.mark.parametrize("batch_size", [8, 7])
def test_strings(strategy, make, batch_size):
    assert_trains_as_stock(
        strategy, make, dataset(WORDS, Y, batch_size=batch_size), jit_compile=False
    )


def of_sparse(kind):
    inputs = keras.Input((4,), sparse=True)
    return kind(inputs, keras.layers.Dense(1)(inputs))


@pytest.mark.parametrize("batch_size", [8, 7])
def test_sparse_inputs(strategy, batch_size):
    dense_values = np.where(X > 0.5, X, 0.0).astype("float32")
    data = dataset(tf.sparse.from_dense(dense_values), Y, batch_size=batch_size)
    assert_trains_as_stock(strategy, of_sparse, data, jit_compile=False)


class Times(keras.layers.Layer):
    def call(self, x, scale):
        return x * scale


def scaled(kind):
    """A subclass whose second input is one number for the whole batch."""

    class Scaled(kind):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)
            self.times = Times()

        def call(self, inputs):
            x, scale = inputs
            return self.times(self.dense(x), scale)

    return Scaled()


def test_a_number_for_the_whole_batch(strategy):
    data = dataset(X, Y).map(lambda x, y: ((x, tf.constant(0.5)), y))
    assert_trains_as_stock(strategy, scaled, data)


Point = collections.namedtuple("Point", ["place", "height"])


def of_namedtuple(kind):
    class OfPoint(kind):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, point):
            return self.dense(point.place) + point.height

    return OfPoint()


def test_namedtuples(strategy):
    data = dataset(X, Y).map(lambda x, y: (Point(x, x[:, :1]), y))
    assert_trains_as_stock(strategy, of_namedtuple, data)


def test_integers_and_booleans(strategy):
    def make(kind):
        class Masked(kind):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(1)

            def call(self, inputs):
                keep = keras.ops.cast(inputs["keep"], "float32")[:, None]
                return self.dense(keras.ops.cast(inputs["x"], "float32") * keep)

        return Masked()

    x = RNG.integers(0, 3, (22, 4)).astype("uint8")
    data = dataset({"x": x, "keep": np.arange(22) % 3 > 0}, Y)
    assert_trains_as_stock(strategy, make, data)


def test_labels_in_a_dict(strategy):
    def make(kind):
        inputs = keras.Input((4,))
        return kind(
            inputs,
            {"a": keras.layers.Dense(1, name="a")(inputs), "b": keras.layers.Dense(1)(inputs)},
        )

    # Whole batches: of partial ones stock Keras takes the mean loss of an output by batches.
    data = dataset(X[:16], {"a": Y[:16], "b": -Y[:16]})
    stock = build(keras.Model, one_device(), make, loss={"a": "mse", "b": "mae"})
    ours = build(tfgpu.Model, strategy, make, loss={"a": "mse", "b": "mae"})
    histories = [
        model.fit(data, epochs=2, shuffle=False, verbose=0).history for model in (stock, ours)
    ]
    assert histories[0].keys() == histories[1].keys()
    for name, expected in histories[0].items():
        np.testing.assert_allclose(histories[1][name], expected, rtol=1e-4, err_msg=name)


# ---- one batch -----------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("rows", [8, 5, 1])
def test_methods_on_one_batch_of_arrays(strategy, rows, jit_compile):
    weights = np.linspace(0.5, 2.0, rows).astype("float32")
    results = []
    for kind, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(kind, place, jit_compile=jit_compile and kind is tfgpu.Model, metrics=["mae"])
        logs = [
            model.train_on_batch(X[:rows], Y[:rows], return_dict=True),
            model.train_on_batch(X[:rows], Y[:rows], sample_weight=weights, return_dict=True),
            model.test_on_batch(X[:rows], Y[:rows], return_dict=True),
        ]
        results.append(([list(log.values()) for log in logs], model.get_weights()))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-4)
    for expected, actual in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_train_on_batches_of_changing_sizes(strategy):
    results = []
    for kind, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(kind, place)
        for rows in (8, 5, 1, 2, 8):
            model.train_on_batch(X[:rows], Y[:rows])
        results.append(model.get_weights())
        assert int(model.optimizer.iterations.numpy()) == 5
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_lists_of_numbers_on_one_batch(strategy):
    model = build(tfgpu.Model, strategy)
    expected = float(np.mean((model(X[:3]).numpy() - Y[:3]) ** 2))
    loss = model.test_on_batch(tf.constant(X[:3]), tf.constant(Y[:3]))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_class_weights_on_one_batch(strategy):
    labels = np.arange(5) % 2
    results = []

    def classifier(kind):
        inputs = keras.Input((4,))
        return kind(inputs, keras.layers.Dense(2)(inputs))

    for kind, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model = build(kind, place, classifier, loss=loss)
        results.append(
            [
                model.train_on_batch(X[:5], labels, class_weight={0: 0.5, 1: 2.0}),
                model.test_on_batch(X[:5], labels),
            ]
        )
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4)


# ---- what is no batch ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:(.|\n)*statistics of the rows:UserWarning")  # Of the anchors.
@pytest.mark.parametrize("first", [False, True])
def test_components_of_other_rows_are_refused(mirrored2, first):
    """A component that is the same for every batch, such as anchors, has rows of its own."""

    def with_anchors(rows, y):
        x = {"x": rows, "anchors": tf.ones([6, 2])}
        return (dict(sorted(x.items(), reverse=not first)), y)

    def make(kind):
        inputs = {n: keras.Input((size,), name=n) for n, size in (("x", 4), ("anchors", 2))}
        total = keras.layers.Lambda(lambda both: both[0] + keras.ops.sum(both[1]))
        return kind(inputs, keras.layers.Dense(1)(total([inputs["x"], inputs["anchors"]])))

    data = dataset(X[:12], Y[:12]).map(with_anchors)
    build(keras.Model, one_device(), make).predict(data, verbose=0)
    model = build(tfgpu.Model, mirrored2, make)
    for use in (functools.partial(model.fit, shuffle=False), model.predict):
        with pytest.raises(tf.errors.InvalidArgumentError, match="a row for each example"):
            use(data, verbose=0)


def nothing():
    return dataset(X[:3], Y[:3], batch_size=4).map(lambda *batch: batch).skip(1)


@pytest.mark.parametrize("validation", ["known size", "unknown size"])
def test_validation_without_a_batch_says_nothing(strategy, validation):
    data = nothing()
    if validation == "unknown size":
        data = data.filter(lambda *_: True)
    model = build(tfgpu.Model, strategy, metrics=["mae"])
    stopping = keras.callbacks.EarlyStopping("loss", patience=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = model.fit(
            X, Y, validation_data=data, epochs=2, verbose=0, callbacks=[stopping]
        ).history
    assert history.keys() == {"loss", "mae"}


def test_evaluation_of_nothing_says_nothing(strategy):
    model = build(tfgpu.Model, strategy, metrics=["mae"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert model.evaluate(nothing(), verbose=0, return_dict=True) == {}
