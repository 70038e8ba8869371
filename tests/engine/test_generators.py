"""Generators and PyDatasets: what is asked of them and when, and what is learnt of it."""

import keras
import numpy as np
import pytest
from element_models import X, Y, build
from replicas import one_device, runs_out

import tfgpu

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
