"""The steps of an execution as one program: on CPUs here, where nobody would want it for speed."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import make_resident, training_batches
from tfgpu.engine import compiled_loop
from tfgpu.engine.batches import Batches
from tfgpu.engine.step_statistics import StepStatistics

ROWS, BATCH, TOGETHER = 90, 16, 4  # Executions of 4 steps, of 1 whole and of 1 smaller batch.


@pytest.fixture
def as_on_gpu(monkeypatch):
    monkeypatch.setattr(compiled_loop, "on_gpu", lambda arrays: True)


def examples():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (ROWS, 6, 6, 3)).astype(np.uint8)
    return Examples.from_arrays(images, random.integers(0, 5, ROWS).astype(np.int32))


def network(strategy, *, policy="float32", metrics=("accuracy",), extra=(), together=TOGETHER):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    with strategy.scope():
        layers = [
            keras.Input((6, 6, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            *extra,
            keras.layers.Dense(5, dtype="float32"),
        ]
        model = tfgpu.Sequential(layers)
        model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 30)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=list(metrics),
            jit_compile=True,
            steps_per_execution=together,
        )
    keras.config.set_dtype_policy("float32")
    return model


def train(model, strategy, **options):
    data = examples()
    batches = training_batches(
        data, batch_size=BATCH, seed=0, augment=("flip",), resident=make_resident(data, strategy)
    )
    steps = batches.steps_per_epoch
    return model.fit(
        batches, steps_per_epoch=steps, epochs=2, verbose=0, shuffle=False, **options
    ).history


def loops(model):
    return len(model.train_function.traced[-1]._list_all_concrete_functions())


def one_device():
    return tf.distribute.MirroredStrategy(["CPU:0"])


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_it_trains_what_single_steps_train(monkeypatch, policy):
    strategy = one_device()
    found = []
    for looped in (False, True):
        monkeypatch.setattr(compiled_loop, "on_gpu", lambda arrays, looped=looped: looped)
        model = network(strategy, policy=policy)
        statistics = StepStatistics.of(model)
        history = train(model, strategy)
        assert loops(model) == looped
        found.append((history, model.get_weights(), float(statistics.gradient_norm)))
    (plain, weights, norm), (history, others, other_norm) = found
    tolerance = 1e-6 if policy == "float32" else 1e-3
    for name, values in plain.items():
        np.testing.assert_allclose(history[name], values, rtol=tolerance)
    for expected, value in zip(weights, others, strict=True):
        np.testing.assert_allclose(value, expected, atol=tolerance)
    assert other_norm == pytest.approx(norm, rel=10 * tolerance)


@pytest.mark.slow
def test_the_norm_is_that_of_the_last_step_of_a_loop(as_on_gpu):
    strategy = one_device()
    norms = []

    class Norms(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            norms.append(float(statistics.gradient_norm))

    model = network(strategy)
    statistics = StepStatistics.of(model)
    train(model, strategy, callbacks=[Norms()])
    single = network(strategy, together=1)
    every, norms = norms, []
    statistics = StepStatistics.of(single)
    train(single, strategy, callbacks=[Norms()])
    # The executions end after 4 and 6 steps of each epoch.
    np.testing.assert_allclose(every, [norms[at] for at in (3, 5, 9, 11)], rtol=1e-4)


def test_an_execution_is_one_program_with_the_results_of_the_metrics(as_on_gpu, monkeypatch):
    strategy = one_device()
    model = network(strategy, together=3)
    data = examples().take(np.arange(5 * BATCH))
    batches = training_batches(
        data, batch_size=BATCH, seed=0, resident=make_resident(data, strategy)
    )
    options = {"steps_per_epoch": 6, "verbose": 0, "shuffle": False}
    model.fit(batches, **options)
    (*_, program), called = model.train_function.traced, []
    kind = type(program)
    call = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda f, *a, **k: called.append(f) or call(f, *a, **k))
    history = model.fit(batches, **options).history
    assert set(history) == {"loss", "accuracy"}
    # Beside the programs batches are read.
    assert [f.name for f in called if "read" not in f.name] == [program.name] * 2


@pytest.mark.slow
def test_without_a_strategy(as_on_gpu):
    strategy = tf.distribute.get_strategy()
    model = network(strategy)
    assert np.all(np.isfinite(train(model, strategy)["loss"]))
    assert loops(model)


class Rows(keras.metrics.Metric):
    """Counts rows, by an operation that XLA cannot compile."""

    def __init__(self):
        super().__init__(name="rows")
        self.total = self.add_weight(name="total", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        count = tf.py_function(lambda each: np.float32(len(each)), [y_true], tf.float32)
        self.total.assign_add(tf.ensure_shape(count, []))

    def result(self):
        return self.total


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_what_xla_cannot_compile_as_a_whole_runs_step_by_step_and_loses_no_batch(as_on_gpu):
    strategy = one_device()
    model = network(strategy, metrics=[Rows()])
    with pytest.warns(UserWarning, match="each step is compiled for itself"):
        history = train(model, strategy)
    assert int(model.optimizer.iterations.numpy()) == 12
    assert history["rows"] == [ROWS, ROWS]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, strategy)  # It is said once.


def test_large_steps_and_deterministic_ones_are_not_looped(as_on_gpu, monkeypatch):
    strategy = one_device()
    model = network(strategy)
    for limit in ("MOST_WORK", "MOST_VALUES"):
        with monkeypatch.context() as patched:
            patched.setattr(compiled_loop, limit, 100)
            train(model, strategy)
            assert not loops(model)
    monkeypatch.setattr(compiled_loop.private, "op_determinism_enabled", lambda: True)
    train(model, strategy)
    assert not loops(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lengths",
    [
        (3, 2, 2, 2, 1),
        (4, 1, 3, 2),
        (2, 3, 4, 1),
    ],
)
def test_batches_read_ahead_are_not_lost_when_executions_change_their_length(as_on_gpu, lengths):
    strategy = one_device()
    data = examples().take(np.arange(5 * BATCH))
    found = []
    for each in (lengths, (1,) * sum(lengths)):
        model = network(strategy)
        batches = training_batches(
            data, batch_size=BATCH, seed=0, resident=make_resident(data, strategy)
        )
        model.train_on_batch(*(array[:BATCH] for array in data.load_arrays()))
        with strategy.scope():
            iterator = iter(Batches(batches, strategy))
            ahead = []
            for length in each:  # Epochs of 5 steps.
                model.steps_per_execution = length
                model.train_function(iterator)
                ahead.append(iterator.ahead is not None)
        assert any(ahead) == (each is lengths)
        assert int(model.optimizer.iterations.numpy()) == 1 + sum(lengths)
        assert bool(loops(model)) == (each is lengths)
        found.append(model.get_weights())
    for expected, value in zip(*found, strict=True):
        np.testing.assert_allclose(value, expected, atol=1e-6)


@pytest.mark.slow
def test_no_more_than_some_lengths_are_compiled(as_on_gpu):
    strategy = one_device()
    model = network(strategy)
    data = examples().take(np.arange(64))
    batches = training_batches(data, batch_size=8, seed=0, resident=make_resident(data, strategy))
    for steps in (2, 3, 4, 5, 6):
        model.steps_per_execution = steps
        model.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False)
    assert loops(model) == compiled_loop.MOST_LENGTHS
    assert int(model.optimizer.iterations.numpy()) == 2 + 3 + 4 + 5 + 6
