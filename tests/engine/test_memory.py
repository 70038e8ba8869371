"""No data set stays alive behind an evaluation, and training takes the memory of stock Keras."""

import gc
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import evaluation_batches, make_resident

MANY = 20


@pytest.fixture(params=[1, 2], ids=["x1", "x2"])
def strategy(request, mirrored2):
    return tf.distribute.OneDeviceStrategy("CPU:0") if request.param == 1 else mirrored2


def dense(strategy, **settings):
    with strategy.scope():
        inputs = keras.Input((4,))
        model = tfgpu.Model(inputs, keras.layers.Dense(1)(inputs))
        model.compile("sgd", "mse", **settings)
    return model


def pixels(strategy):
    with strategy.scope():
        inputs = keras.Input((4, 4, 1))
        model = tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss)
    return model


def plain(rows, seen):
    """A data set over a tensor; notes weak references to both."""
    x = tf.random.stateless_normal((rows, 4), [rows, 0])
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(4)
    seen.extend([weakref.ref(x), weakref.ref(data)])
    return data


def resident(rows, strategy, seen):
    """A resident data set; notes weak references to it, its examples and its arrays."""
    images = np.full((rows, 4, 4, 1), rows, np.uint8)

    def decode(image):
        return tf.ensure_shape(image, (4, 4, 1)), tf.zeros((), tf.int32)

    examples = Examples(num_examples=rows, read=lambda at: (tf.gather(images, at),), decode=decode)
    arrays = make_resident(examples, strategy)
    data = evaluation_batches(examples, batch_size=4, resident=arrays)
    seen.extend(weakref.ref(array) for copy in arrays for array in copy)
    seen.extend([weakref.ref(data), weakref.ref(examples)])
    return data


def alive(seen):
    gc.collect()
    return sum(reference() is not None for reference in seen)


def traces(function):
    return sum(
        one.experimental_get_tracing_count()
        for one in function.traced
        if hasattr(one, "experimental_get_tracing_count")
    )


# ---- data sets -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps_per_execution", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_evaluating_many_data_sets_keeps_none_alive(strategy, steps_per_execution):
    model, seen = dense(strategy, steps_per_execution=steps_per_execution), []
    for rows in range(5, 5 + MANY):
        model.evaluate(plain(rows, seen), verbose=0)
    assert len(seen) == 2 * MANY
    assert alive(seen) == 0


@pytest.mark.slow
def test_evaluating_many_resident_data_sets_keeps_none_alive(strategy):
    model, seen = pixels(strategy), []
    for rows in range(5, 5 + MANY):
        model.evaluate(resident(rows, strategy, seen), verbose=0)
    assert len(seen) >= 4 * MANY
    assert alive(seen) == 0


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_evaluating_many_data_sets_traces_once(strategy, steps_per_execution):
    model = dense(strategy, steps_per_execution=steps_per_execution)
    for rows in range(5, 5 + MANY):
        model.evaluate(plain(rows, []), verbose=0)
    assert traces(model.test_function) == 1


@pytest.mark.slow
def test_evaluating_many_resident_data_sets_traces_as_often_as_two(strategy):
    """The first of another size may trace anew; those after it do not."""
    model, counts = pixels(strategy), []
    # By 4: whole batches alone have a static number of rows, which is another kind of element.
    for rows in [n for n in range(5, 5 + MANY) if n % 4]:
        model.evaluate(resident(rows, strategy, []), verbose=0)
        counts.append(traces(model.test_function))
    assert counts[1] <= 2
    assert counts[-1] == counts[1]


def test_resident_data_sets_of_one_size_trace_once(strategy):
    model = pixels(strategy)
    for _ in range(3):
        model.evaluate(resident(9, strategy, []), verbose=0)
    assert traces(model.test_function) == 1


@pytest.mark.slow
def test_predicting_many_data_sets_keeps_none_alive(strategy):
    model, seen = dense(strategy), []
    for rows in range(5, 5 + MANY // 2):
        model.predict(plain(rows, seen), verbose=0)
    assert alive(seen) == 0


@pytest.mark.slow
def test_predicting_many_resident_data_sets_keeps_none_alive(strategy):
    model, seen = pixels(strategy), []
    for rows in range(5, 5 + MANY // 2):
        model.predict(resident(rows, strategy, seen), verbose=0)
    assert alive(seen) == 0


@pytest.mark.slow
def test_predicting_after_evaluating_keeps_none_alive(strategy):
    model, seen = pixels(strategy), []
    for rows in (5, 6, 7):
        data = resident(rows, strategy, seen)
        model.evaluate(data, verbose=0)
        model.predict(data, verbose=0)
    del data
    assert alive(seen) == 0


@pytest.mark.parametrize("resident_input", [False, True], ids=["plain", "resident"])
def test_training_on_several_data_sets_keeps_none_alive(strategy, resident_input):
    model, seen = (pixels if resident_input else dense)(strategy), []
    for rows in (5, 6, 7):
        data = resident(rows, strategy, seen) if resident_input else plain(rows, seen)
        model.fit(data, shuffle=False, verbose=0)
    del data
    assert alive(seen) == 0


def test_validation_data_are_not_kept_alive(strategy):
    model, seen = dense(strategy), []
    model.fit(plain(9, seen), validation_data=plain(6, seen), shuffle=False, verbose=0)
    assert alive(seen) == 0


@pytest.mark.slow
def test_arrays_are_not_kept_alive(strategy):
    model, seen = dense(strategy), []
    for rows in (5, 6, 7):
        x = np.ones((rows, 4), "float32")
        seen.append(weakref.ref(x))
        model.evaluate(x, x[:, :1], verbose=0)
        model.predict(x, verbose=0)
    del x
    assert alive(seen) == 0


@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_data_sets_of_unknown_size_are_not_kept_alive(strategy):
    model, seen = dense(strategy), []
    for rows in (5, 6, 7):
        data = plain(rows, seen).filter(lambda x, y: True)
        seen.append(weakref.ref(data))
        model.evaluate(data, verbose=0)
        model.predict(data, verbose=0)
    del data
    assert alive(seen) == 0


# ---- weights and slots ---------------------------------------------------------------------

TRAINING = """
import os, resource, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
if sys.argv[1] == "tfgpu": import tfgpu
import tensorflow as tf, keras, numpy as np
Model = tfgpu.Model if sys.argv[1] == "tfgpu" else keras.Model
x = inputs = keras.Input((4096,))
for _ in range(6): x = keras.layers.Dense(4096, activation="relu")(x)
model = Model(inputs, keras.layers.Dense(10)(x))
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, jit_compile=sys.argv[2] == "xla")
x, y = np.random.rand(32, 4096).astype("float32"), np.random.randint(0, 10, 32)
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
model.fit(data, epochs=2, verbose=0)
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("way", "factor"), [("graph", 1.1), ("xla", 1.15)])
def test_peak_memory_of_a_training_is_that_of_stock(way, factor):
    """100 million parameters with Adam."""
    peak = {}  # MiB
    for kind in ("keras", "tfgpu"):
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, kind, way], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        peak[kind] = int(done.stdout.split("PEAK")[-1])
    assert peak["tfgpu"] <= factor * peak["keras"], peak
