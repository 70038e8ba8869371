"""What one execution is: traced once, compiled once, one meeting with the host, and in time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import slow

import tfgpu

RNG = np.random.RandomState(0)
X = RNG.randn(80, 6).astype("float32")
Y = (X @ RNG.randn(6, 3)).astype("float32")


class Counter(keras.layers.Layer):
    """Counts how often Python runs it: once a trace."""

    calls = 0

    def call(self, x):
        Counter.calls += 1
        return x


def build(strategy, *, optimizer=None, **compiled):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((6,))
        x = keras.layers.Dense(8, "tanh")(inputs)
        model = tfgpu.Model(inputs, keras.layers.Dense(3)(Counter()(x)))
        model.compile(
            optimizer=optimizer() if optimizer else keras.optimizers.SGD(0.05),
            loss="mse",
            metrics=["mae"],
            **compiled,
        )
    return model


def dataset(*, batch_size=8):
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(batch_size)


def fit(model, data, **arguments):
    return model.fit(data, verbose=0, shuffle=False, **arguments).history


class AfterEpoch(keras.callbacks.Callback):
    def __init__(self, read):
        super().__init__()
        self.read = read
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.read())


# ---- traces and compilations ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps_per_execution", "batch_size"),
    [(4, 9), (1, 8), slow(1, 9), slow(4, 8), slow(100, 8), slow(100, 9)],
)
def test_nothing_is_traced_after_the_first_epoch(strategy, steps_per_execution, batch_size):
    model = build(strategy, steps_per_execution=steps_per_execution)
    after = AfterEpoch(lambda: Counter.calls)
    data = dataset(batch_size=batch_size)
    fit(model, data, epochs=3, validation_data=data, callbacks=[after])
    assert after.seen[0] == after.seen[1] == after.seen[2]
    fit(model, data, epochs=1)
    assert Counter.calls == after.seen[0]


RUN = """
import json, os, sys
from tfgpu.cli import startup
startup.prepare_environment()
tf = startup.import_tensorflow()
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_visible_devices([], "GPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import hashlib, keras, numpy as np, tfgpu

folder = sys.argv[1]
keras.utils.set_random_seed(0)
rng = np.random.RandomState(0)
x, y = rng.randn(70, 8, 8, 1).astype("float32"), rng.randn(70, 3).astype("float32")
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    inputs = keras.Input((8, 8, 1))
    h = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    h = keras.layers.BatchNormalization()(h)
    h = keras.layers.Dropout(0.3)(keras.layers.Flatten()(h))
    model = tfgpu.Model(inputs, keras.layers.Dense(3)(h))
    model.compile("adam", "mse", metrics=["mae"], jit_compile=True, steps_per_execution=4)
data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(70, seed=1).batch(16)

compiled = []
def count(epoch, logs):
    names = [n for n in os.listdir(folder) if n.endswith("before_optimizations.txt")]
    compiled.append(len(names))

history = model.fit(
    data, epochs=4, verbose=0, validation_data=data, shuffle=False,
    callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=count)],
).history
state = [v.numpy() for v in [*model.weights, *model.optimizer.variables]]
digest = hashlib.sha256(b"".join(value.tobytes() for value in state)).hexdigest()
print("RESULT", json.dumps({"digest": digest, "history": history, "compiled": compiled}))
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What the same run says in two processes: weights and state, logs, XLA compilations."""
    started = []
    for i in range(2):
        folder = tmp_path_factory.mktemp(f"xla{i}")
        flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", RUN, str(folder)],
                cwd=Path(__file__).parent.parent,
                env={**os.environ, "XLA_FLAGS": flags},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    results = []
    try:
        for process in started:
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output
            (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
            results.append(json.loads(line.removeprefix("RESULT ")))
    finally:
        for process in started:
            process.kill()
            process.wait()
    return results


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_epoch(two_processes):
    for result in two_processes:
        assert result["compiled"][0] > 0
        assert set(result["compiled"]) == {result["compiled"][0]}


@pytest.mark.slow
def test_the_same_run_in_two_processes_ends_with_the_same_bits(two_processes):
    first, second = two_processes
    assert first["history"] == second["history"]
    assert first["digest"] == second["digest"]


# ---- the host ------------------------------------------------------------------------------


def test_an_execution_is_one_call_and_reads_nothing_back(strategy, monkeypatch):
    from tensorflow.python.framework import op_callbacks, ops

    model = build(strategy, steps_per_execution=4)
    fit(model, dataset())
    run, calls, reads = model.train_function, [], []
    read = ops._EagerTensorBase.numpy

    def count(op_type, *_, **__):
        name = op_type.decode() if isinstance(op_type, bytes) else op_type
        if name.startswith(("__inference", "StatefulPartitionedCall")):
            calls[-1] += 1

    def counted(iterator):
        calls.append(0)
        reads.append(0)
        op_callbacks.add_op_callback(count)
        monkeypatch.setattr(ops._EagerTensorBase, "numpy", counted_read)
        try:
            return run(iterator)
        finally:
            monkeypatch.setattr(ops._EagerTensorBase, "numpy", read)
            op_callbacks.remove_op_callback(count)

    def counted_read(tensor):
        reads[-1] += 1
        return read(tensor)

    model.train_function = counted
    fit(model, dataset(), epochs=2)  # 10 steps are 3 executions.
    assert calls == [1] * 6
    assert reads == [0] * 6


# ---- what takes effect when ----------------------------------------------------------------


def test_a_schedule_is_followed_inside_an_execution(strategy):
    def optimizer():
        return keras.optimizers.SGD(
            keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.001])
        )

    weights = []
    for steps_per_execution in (1, 10):
        model = build(strategy, optimizer=optimizer, steps_per_execution=steps_per_execution)
        fit(model, dataset())
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


class After(keras.callbacks.Callback):
    """Does something once, after the first execution, and keeps the weights of then."""

    def __init__(self, act):
        super().__init__()
        self.act = act
        self.weights = None

    def on_train_batch_end(self, batch, logs=None):
        if self.weights is None:
            self.weights = self.model.get_weights()
            self.act(self.model)


def test_a_rate_set_by_a_callback_holds_from_the_next_execution(strategy):
    model = build(strategy, steps_per_execution=4)

    def stand_still(model):
        model.optimizer.learning_rate = 0.0

    callback = After(stand_still)
    before = model.get_weights()
    fit(model, dataset(), callbacks=[callback])
    assert np.any(before[0] != callback.weights[0])
    for one, other in zip(callback.weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(model.optimizer.iterations.numpy()) == 10


# Keras reads the rate of a mirrored variable in a way NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_reduce_on_plateau_holds_from_the_next_epoch(mirrored2):
    model = build(mirrored2, steps_per_execution=4)
    after = AfterEpoch(model.get_weights)
    reduce = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=1e-30, patience=1, min_delta=1e9
    )
    fit(model, dataset(), epochs=4, callbacks=[reduce, after])
    assert np.any(after.seen[0][0] != after.seen[1][0])
    for one, other in zip(after.seen[1], after.seen[3], strict=True):
        np.testing.assert_array_equal(one, other)


def test_stop_training_holds_from_the_next_execution(strategy):
    model = build(strategy, steps_per_execution=4)
    fit(model, dataset(), epochs=3, callbacks=[After(lambda m: setattr(m, "stop_training", True))])
    assert int(model.optimizer.iterations.numpy()) == 4


# ---- the number of steps -------------------------------------------------------------------


@pytest.mark.parametrize("steps_per_execution", [slow(3), slow(10), 100])
def test_any_number_of_steps_an_execution_trains_the_same(strategy, steps_per_execution):
    models, logs = [], []
    for steps in (1, steps_per_execution):
        model = build(strategy, steps_per_execution=steps)
        logs.append(fit(model, dataset(batch_size=9), epochs=2))
        models.append(model)
    assert logs[0] == logs[1]
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(models[1].optimizer.iterations.numpy()) == 18


@pytest.mark.parametrize("steps_per_execution", [slow(1), 4, slow(100)])
def test_endless_data_runs_steps_per_epoch_and_goes_on_where_it_was(strategy, steps_per_execution):
    model = build(strategy, steps_per_execution=steps_per_execution)
    ended = AfterEpoch(lambda: int(model.optimizer.iterations.numpy()))
    fit(model, dataset().repeat(), steps_per_epoch=6, epochs=3, callbacks=[ended])
    assert ended.seen == [6, 12, 18]
    reference = build(strategy)
    fit(reference, dataset().repeat().take(18))
    for one, other in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
