"""How global batches reach the replicas: on GPUs through TensorFlow's iterators, and on CPUs."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.data.ops import iterator_ops

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import training_batches
from tfgpu.engine import batches
from tfgpu.engine.batches import Batches, own_shard
from tfgpu.engine.datasets import untuned

X = np.arange(34, dtype="float32").reshape(17, 2)
Y = np.arange(17, dtype="int32")


@pytest.fixture(params=["on GPUs", "on CPUs"])
def way(request, monkeypatch):
    """Which of the two ways is taken; that of GPUs works on CPUs too."""
    if request.param == "on GPUs":
        monkeypatch.setattr(batches, "_is_cpu", lambda strategy: False)
    return request.param


@pytest.fixture(params=[1, 2], ids=["x1", "x2"])
def strategy(request, mirrored2):
    return tf.distribute.OneDeviceStrategy("CPU:0") if request.param == 1 else mirrored2


def dealt(data, strategy):
    """The rows of each batch, put together from those of the replicas."""
    batches = Batches(data, strategy)
    iterator = iter(batches)

    def rows(element):
        shard = own_shard(element, whole=batches.whole)
        return shard.data[1][: shard.real]

    @tf.function(autograph=False, reduce_retracing=True)
    def read(source):
        return strategy.run(rows, args=(next(source),))

    while iterator.take(1):
        yield np.concatenate(
            [part.numpy() for part in strategy.experimental_local_results(read(iterator.source))]
        ).tolist()


@pytest.mark.parametrize(("batch_size", "examples"), [(4, 16), (4, 17), (3, 7)])
def test_every_row_is_dealt_out_once_and_in_order(way, strategy, batch_size, examples):
    data = tf.data.Dataset.from_tensor_slices((X[:examples], Y[:examples])).batch(batch_size)
    expected = [Y[i : i + batch_size][: examples - i] for i in range(0, examples, batch_size)]
    assert list(dealt(data, strategy)) == [rows.tolist() for rows in expected]


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_a_second_pass_begins_anew(way, strategy, drop_remainder):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4, drop_remainder=drop_remainder)
    assert list(dealt(data, strategy)) == list(dealt(data, strategy))


def trained(strategy, known=True):
    """Losses and weights of a short training, with a last batch that does not divide."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((2,))
        model = tfgpu.Model(inputs, keras.layers.Dense(1)(keras.layers.Dense(4, "tanh")(inputs)))
        model.compile("sgd", "mse", steps_per_execution=2)
    data = tf.data.Dataset.from_tensor_slices((X / 34, Y / 17)).batch(4)
    if not known:
        data = data.filter(lambda *_: True)
    history = model.fit(data, epochs=3, shuffle=False, verbose=0, validation_data=data)
    return history.history, [weight.tobytes() for weight in model.get_weights()]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_both_ways_train_the_same_bits(strategy, known, monkeypatch):
    on_cpus = trained(strategy, known)
    monkeypatch.setattr(batches, "_is_cpu", lambda strategy: False)
    assert trained(strategy, known) == on_cpus


@pytest.mark.parametrize("rows", [4, 3])
def test_what_reads_ahead_itself_is_asked_for_no_more_than_is_trained_on(way, strategy, rows):
    read = []

    def batches():
        for i in range(9):
            read.append(i)
            yield X[:rows] + i, Y[:rows]

    spec = (tf.TensorSpec([rows, 2]), tf.TensorSpec([rows], tf.int32))
    data = untuned(tf.data.Dataset.from_generator(batches, output_signature=spec))
    next(dealt(data.apply(tf.data.experimental.assert_cardinality(9)), strategy))
    # TensorFlow's way to the devices has a batch under way for each.
    assert len(read) <= (4 if way == "on GPUs" else 1)


@pytest.mark.parametrize("num_examples", [16, 17])
def test_no_iterator_over_our_own_data_has_a_thread_that_tunes_it(
    way, strategy, num_examples, monkeypatch
):
    tuned = []
    create = iterator_ops.OwnedIterator._create_iterator

    def look(iterator, dataset):
        tuned.append(dataset.options().autotune.enabled)
        create(iterator, dataset)

    monkeypatch.setattr(iterator_ops.OwnedIterator, "_create_iterator", look)
    examples = Examples(
        num_examples=num_examples,
        read=lambda at: (at,),
        decode=lambda at: (tf.zeros((4, 4, 1), tf.uint8), tf.cast(at, tf.int32)),
    )
    next(iter(Batches(training_batches(examples, batch_size=4, seed=0), strategy)))
    assert tuned and not any(tuned)


# ---- data that draw random numbers when they are begun ------------------------------------------


def shuffled(count=30):
    x = np.random.default_rng(0).normal(size=(count, 5)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, x[:, :1])).shuffle(count, seed=3).batch(8)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("use", ["fit", "fit and validation", "evaluate", "predict"])
def test_shuffled_data_come_in_the_order_of_keras(mirrored2, use, replicas):
    found = []
    ours = mirrored2 if replicas == 2 else tf.distribute.get_strategy()
    for cls, place in ((keras.Model, tf.distribute.get_strategy()), (tfgpu.Model, ours)):
        keras.utils.set_random_seed(1)
        with place.scope():
            inputs = keras.Input((5,))
            model = cls(inputs, keras.layers.Dense(1)(inputs))
            model.compile("sgd", "mse")
        data, held = shuffled(), shuffled(24).take(2)
        if use == "evaluate":
            found.append([model.evaluate(held, verbose=0) for _ in range(4)])
        elif use == "predict":
            found.append([model.predict(data, verbose=0)[:2] for _ in range(4)])
        else:
            more = {"validation_data": held} if use == "fit and validation" else {}
            history = model.fit(data, epochs=4, shuffle=False, verbose=0, **more).history
            found.append([history[name] for name in sorted(history)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_a_data_set_that_a_strategy_has_distributed(mirrored2):
    x = np.random.default_rng(0).normal(size=(22, 5)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8)
    found = []
    for cls, place in ((keras.Model, tf.distribute.get_strategy()), (tfgpu.Model, mirrored2)):
        keras.utils.set_random_seed(1)
        with place.scope():
            inputs = keras.Input((5,))
            model = cls(inputs, keras.layers.Dense(1)(inputs))
            model.compile("sgd", "mse")
        given = data if cls is keras.Model else mirrored2.experimental_distribute_dataset(data)
        found.append(model.fit(given, epochs=2, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    made = mirrored2.distribute_datasets_from_function(lambda context: data)
    with pytest.raises(ValueError, match="Give the data set of global batches itself"):
        model.fit(made, shuffle=False, verbose=0)


@pytest.mark.parametrize("ahead", [True, False])
def test_batches_are_not_asked_for_early_where_the_data_set_says_so(strategy, ahead):
    asked = []

    def rows():
        for i in range(40):
            asked.append(i)
            yield np.float32(i)

    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = ahead
    spec = tf.TensorSpec([], tf.float32)
    data = tf.data.Dataset.from_generator(rows, output_signature=spec).batch(2)
    data = data.apply(tf.data.experimental.assert_cardinality(20)).with_options(options)
    iterator = iter(Batches(data, strategy))
    assert iterator.take(1) == 1
    next(iterator.source)
    deadline = time.monotonic() + 10
    while ahead and len(asked) == 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (len(asked) > 2) == ahead
