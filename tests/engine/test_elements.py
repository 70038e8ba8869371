"""Whatever a batch may consist of, and what data is asked for and when."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 4)).astype("float32")  # The last batch of 8 is partial.
Y = RNG.normal(size=(22, 1)).astype("float32")

# Keras says so when the size of the data was not known, and of generators that end.
runs_out = pytest.mark.filterwarnings("ignore:.*ran out of data")


@pytest.fixture(params=[1, 2], ids=["x1", "x2"])
def strategy(request, mirrored2):
    return tf.distribute.get_strategy() if request.param == 1 else mirrored2


def one_device():
    return tf.distribute.get_strategy()


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


# ---- generators ----------------------------------------------------------------------------


class Asked:
    """An endless generator that counts the batches it is asked for."""

    def __init__(self):
        self.count = 0

    def __iter__(self):
        return self.batches()

    def batches(self):
        while True:
            self.count += 1
            yield X[:8] + self.count, Y[:8]


def losses_of(model, numbers):
    """The loss of each of the batches, one by one."""
    return [float(np.mean((model(X[:8] + n).numpy() - Y[:8]) ** 2)) for n in numbers]


@pytest.mark.parametrize("steps_per_execution", [1, 2, 3])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_generator_is_asked_for_what_is_trained_on(strategy, steps_per_execution, epochs):
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    asked = Asked()
    model.fit(asked.batches(), steps_per_epoch=5, epochs=epochs, shuffle=False, verbose=0)
    assert asked.count == 5 * epochs
    assert int(model.optimizer.iterations.numpy()) == 5 * epochs


def test_a_generator_goes_on_over_the_epochs(strategy):
    model = build(tfgpu.Model, strategy)
    model.optimizer.learning_rate = 0.0
    logs = model.fit(
        Asked().batches(), steps_per_epoch=2, epochs=3, shuffle=False, verbose=0
    ).history["loss"]
    rows = np.reshape(losses_of(model, range(1, 7)), (3, 2))
    np.testing.assert_allclose(logs, rows.mean(axis=1), rtol=1e-4)


def test_a_generator_goes_on_in_a_second_fit(strategy):
    model = build(tfgpu.Model, strategy)
    asked = Asked()
    batches = asked.batches()
    model.fit(batches, steps_per_epoch=3, epochs=1, shuffle=False, verbose=0)
    model.fit(batches, steps_per_epoch=3, epochs=1, shuffle=False, verbose=0)
    assert asked.count == 6


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_a_validation_generator_is_asked_for_what_is_evaluated(strategy, steps_per_execution):
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    asked = Asked()
    model.fit(
        X,
        Y,
        batch_size=8,
        epochs=3,
        shuffle=False,
        verbose=0,
        validation_data=asked.batches(),
        validation_steps=4,
    )
    assert asked.count == 3 * 4


def test_each_evaluation_sees_the_next_batches_of_a_generator(strategy):
    model = build(tfgpu.Model, strategy)
    model.optimizer.learning_rate = 0.0
    history = model.fit(
        X,
        Y,
        batch_size=8,
        epochs=3,
        shuffle=False,
        verbose=0,
        validation_data=Asked().batches(),
        validation_steps=2,
    ).history
    rows = np.reshape(losses_of(model, range(1, 7)), (3, 2))
    np.testing.assert_allclose(history["val_loss"], rows.mean(axis=1), rtol=1e-4)


def test_evaluate_asks_a_generator_for_its_steps(strategy):
    model = build(tfgpu.Model, strategy)
    asked = Asked()
    loss = model.evaluate(asked.batches(), steps=3, verbose=0)
    assert asked.count == 3
    np.testing.assert_allclose(loss, np.mean(losses_of(model, [1, 2, 3])), rtol=1e-4)


@runs_out
def test_a_generator_that_ends_trains_on_each_batch_once(strategy):
    model = build(tfgpu.Model, strategy)
    seen = []

    def batches():
        for start in range(0, 22, 8):
            seen.append(start)
            yield X[start : start + 8], Y[start : start + 8]

    model.fit(batches(), shuffle=False, verbose=0)
    assert seen == [0, 8, 16]
    assert int(model.optimizer.iterations.numpy()) == 3


# ---- step numbers and counts ---------------------------------------------------------------


class Watch(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.begun, self.ended = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.begun.append([])
        self.ended.append([])

    def on_train_batch_begin(self, batch, logs=None):
        self.begun[-1].append(batch)

    def on_train_batch_end(self, batch, logs=None):
        self.ended[-1].append(batch)


# Begin and end numbers of 5 batches, by the steps of an execution; none begins without data. Keras'
# own tests have it that the last execution counts as a whole one, of data of unknown size too.
NUMBERS = {
    1: ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
    2: ([0, 2, 4], [1, 3, 5]),
    3: ([0, 3], [2, 5]),
}


@runs_out
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("steps_per_execution", NUMBERS)
def test_callbacks_see_the_true_step_numbers(strategy, steps_per_execution, known):
    data = dataset(X, Y, batch_size=5)  # 5 batches, the last of two rows.
    if not known:
        data = data.filter(lambda x, y: True)
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    watch = Watch()
    model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[watch])
    begun, ended = NUMBERS[steps_per_execution]
    assert watch.begun == [begun] * 3
    assert watch.ended == [ended] * 3
    assert int(model.optimizer.iterations.numpy()) == 15


class WatchEvaluation(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.begun, self.ended = [], []

    def on_test_batch_begin(self, batch, logs=None):
        self.begun.append(batch)

    def on_test_batch_end(self, batch, logs=None):
        self.ended.append(batch)


@runs_out
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("steps_per_execution", NUMBERS)
def test_callbacks_of_evaluation_see_the_true_step_numbers(strategy, steps_per_execution, known):
    data = dataset(X, Y, batch_size=5)
    if not known:
        data = data.filter(lambda x, y: True)
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    watch = WatchEvaluation()
    model.evaluate(data, verbose=0, callbacks=[watch])
    begun, ended = NUMBERS[steps_per_execution]
    assert (watch.begun, watch.ended) == (begun, ended)


@pytest.mark.parametrize(
    ("steps_per_execution", "ended"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (3, [2, 4])]
)
def test_with_steps_per_epoch_the_last_execution_ends_with_the_epoch(
    strategy, steps_per_execution, ended
):
    data = dataset(X, Y, batch_size=2).repeat(2).filter(lambda x, y: True)
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    watch = Watch()
    model.fit(data, steps_per_epoch=5, epochs=2, shuffle=False, verbose=0, callbacks=[watch])
    assert watch.ended == [ended] * 2
    assert int(model.optimizer.iterations.numpy()) == 10


@runs_out
def test_data_that_ends_before_its_steps_stops_with_the_true_count(strategy):
    model = build(tfgpu.Model, strategy)
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(
            dataset(X, Y).filter(lambda x, y: True), steps_per_epoch=7, shuffle=False, verbose=0
        )
    assert int(model.optimizer.iterations.numpy()) == 3


@pytest.mark.parametrize("steps_per_execution", [1, 2, 3])
def test_steps_per_epoch_go_on_in_the_data(strategy, steps_per_execution):
    data = dataset(X, Y, batch_size=2).repeat()  # 11 batches, over and over.
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    model.optimizer.learning_rate = 0.0
    losses = model.fit(data, steps_per_epoch=4, epochs=3, shuffle=False, verbose=0).history["loss"]
    rows = np.mean((model(X).numpy() - Y) ** 2, axis=1)
    rows = np.concatenate([rows, rows])
    expected = [rows[start : start + 8].mean() for start in (0, 8, 16)]
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_validation_steps_begin_a_data_set_anew(strategy, steps_per_execution):
    model = build(tfgpu.Model, strategy, steps_per_execution=steps_per_execution)
    model.optimizer.learning_rate = 0.0
    data = dataset(X, Y)
    history = model.fit(
        data, epochs=3, shuffle=False, verbose=0, validation_data=data, validation_steps=2
    ).history
    expected = np.mean((model(X[:16]).numpy() - Y[:16]) ** 2)
    np.testing.assert_allclose(history["val_loss"], [expected] * 3, rtol=1e-4)


# ---- PyDataset -----------------------------------------------------------------------------


class Python(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return X[rows], Y[rows]


@pytest.mark.parametrize("steps_per_execution", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_pydataset_trains_as_arrays(strategy, workers, steps_per_execution):
    results = []
    for kind, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(kind, place)
        if kind is tfgpu.Model:
            model.steps_per_execution = steps_per_execution
            given = {"x": Python(workers=workers, max_queue_size=2)}
        else:
            given = {"x": X, "y": Y, "batch_size": 8}
        losses = model.fit(**given, epochs=3, shuffle=False, verbose=0).history["loss"]
        results.append([*losses, model.evaluate(**given, verbose=0)])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4)


def test_a_pydataset_predicts(strategy):
    model = build(tfgpu.Model, strategy)
    outputs = model.predict(Python(workers=2, max_queue_size=2), verbose=0)
    np.testing.assert_allclose(outputs, model(X).numpy(), rtol=1e-4, atol=1e-5)


def test_a_pydataset_for_validation(strategy):
    model = build(tfgpu.Model, strategy)
    model.optimizer.learning_rate = 0.0
    history = model.fit(
        X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0, validation_data=Python(workers=1)
    ).history
    np.testing.assert_allclose(history["val_loss"], history["loss"], rtol=1e-5)


@runs_out
def test_a_pydataset_of_which_an_epoch_takes_a_part(strategy):
    """`steps_per_epoch` over two epochs: the second goes on, as in stock Keras."""
    results = []
    for kind, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(kind, place)
        losses = model.fit(
            Python(workers=1), steps_per_epoch=2, epochs=2, shuffle=False, verbose=0
        ).history["loss"]
        results.append(losses)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4)


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
