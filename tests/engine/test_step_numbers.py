"""The numbers of the steps that callbacks see, and how many steps are taken of the data."""

import keras
import numpy as np
import pytest
from element_models import X, Y, build, dataset
from replicas import runs_out

import tfgpu


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


def test_steps_of_an_execution_that_a_callback_sets_hold_from_the_next_fit(strategy):
    class Sets(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.steps_per_execution = 2

    watch = Watch()
    model = build(tfgpu.Model, strategy)
    for _ in range(2):
        model.fit(X, Y, batch_size=5, verbose=0, shuffle=False, callbacks=[watch, Sets()])
    assert watch.begun == [NUMBERS[1][0], NUMBERS[2][0]]
    assert watch.ended == [NUMBERS[1][1], NUMBERS[2][1]]
    assert int(model.optimizer.iterations.numpy()) == 10


class Counted(keras.layers.Layer):
    """Updates a metric with a value that does not depend on the data."""

    def __init__(self, **options):
        super().__init__(**options)
        self.batches = keras.metrics.Sum(name="batches")

    def call(self, x):
        self.batches.update_state(1.0)
        return x


@runs_out
def test_a_metric_counts_the_batches_of_unknown_data_that_are_there():
    inputs = keras.Input((X.shape[1],))
    model = tfgpu.Model(inputs, keras.layers.Dense(Y.shape[1])(Counted()(inputs)))
    model.compile("sgd", "mse")
    data = dataset(X, Y, batch_size=5).filter(lambda x, y: True)
    history = model.fit(data, validation_data=data, epochs=2, shuffle=False, verbose=0).history
    logs = model.evaluate(data, verbose=0, return_dict=True)
    assert history["batches"] == history["val_batches"] == [5, 5]
    assert logs["batches"] == 5


@runs_out
def test_the_loss_of_an_output_is_over_the_batches_of_unknown_data_that_are_there():
    inputs = keras.Input((X.shape[1],))
    outputs = {name: keras.layers.Dense(Y.shape[1], name=name)(inputs) for name in ("p", "q")}
    model = tfgpu.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.0), {"p": "mse", "q": "mse"})
    x, y = X[:20], Y[:20]
    data = dataset(x, y, batch_size=5).filter(lambda x, y: True)
    data = data.map(lambda x, y: (x, {"p": y, "q": y}))
    history = model.fit(data, validation_data=data, epochs=1, shuffle=False, verbose=0).history
    for name, predicted in model.predict(x, verbose=0).items():
        right = np.mean((predicted - y) ** 2)
        for found in (history[f"{name}_loss"], history[f"val_{name}_loss"]):
            np.testing.assert_allclose(found, [right], rtol=1e-5)
