"""What is known of the rows of batches before they are read, and what is traced with it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import make_resident, training_batches
from tfgpu.engine.batch_sizes import BatchSizes

ROWS, BATCH = 22, 8  # Two full batches and one of six rows.


@pytest.mark.parametrize(
    ("end", "steps", "full"),
    [
        (2, 2, (2, 8)),
        (3, 3, (2, 8)),  # The smaller one is the last.
        (3, 1, (0, 8)),
        (5, 3, (3, None)),  # It is in the middle.
        (6, 6, (6, None)),  # There are two.
    ],
)
def test_which_batches_are_full(end, steps, full):
    assert BatchSizes(rows=8, every=3, smaller=True).full(end, steps) == full
    assert BatchSizes(rows=8, every=3, smaller=True, start=6).full(end, steps) == full
    assert BatchSizes(rows=8, every=3, smaller=False).full(end, steps) == (steps, 8)


def arrays():
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, 5, 3)).astype("float32")
    return x, random.integers(0, 4, ROWS).astype("int32")


def network(kind, strategy, *, recurrent=True):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((5, 3))
        x = keras.layers.GRU(4)(inputs) if recurrent else keras.layers.Flatten()(inputs)
        model = kind(inputs, keras.layers.Dense(4)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, metrics=["accuracy"], steps_per_execution=2)
    return model


def rows_traced(model):
    """The rows of the batches that the training steps were traced with."""
    found = set()
    for function in model.train_function.traced:
        for concrete in function._list_all_concrete_functions():
            nodes = concrete.graph.as_graph_def()
            every = [*nodes.node, *(n for f in nodes.library.function for n in f.node_def)]
            found |= {
                shape.dim[0].size
                for node in every
                if node.op == "EnsureShape"
                for shape in [node.attr["shape"].shape]
                if len(shape.dim) == 3 or len(shape.dim) == 1
            }
    return found


@pytest.mark.parametrize("replicas", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_recurrent_steps_know_the_rows_of_arrays_and_compute_what_keras_does(mirrored2, replicas):
    x, y = arrays()
    strategy = mirrored2 if replicas == 2 else tf.distribute.get_strategy()
    model = network(tfgpu.Model, strategy)
    stock = network(keras.Model, tf.distribute.get_strategy())
    histories = [
        one.fit(x, y, batch_size=BATCH, epochs=3, shuffle=False, verbose=0).history
        for one in (model, stock)
    ]
    assert rows_traced(model) == {BATCH}
    for name, values in histories[1].items():
        np.testing.assert_allclose(histories[0][name], values, rtol=1e-5)
    for ours, theirs in zip(model.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_others_are_traced_once_for_all_batches():
    x, y = arrays()
    model = network(tfgpu.Model, tf.distribute.get_strategy(), recurrent=False)
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0)
    assert rows_traced(model) == set()


@pytest.mark.slow
def test_a_run_that_begins_in_the_middle_of_an_epoch_knows_its_smaller_batch(mirrored2):
    data = Examples.from_arrays(*arrays())
    model = network(tfgpu.Model, mirrored2)
    batches = training_batches(
        data, batch_size=BATCH, seed=0, resident=make_resident(data, mirrored2)
    )
    history = model.fit(
        batches.from_step(1), steps_per_epoch=3, epochs=2, shuffle=False, verbose=0
    ).history
    assert np.isfinite(history["loss"]).all()
    assert int(model.optimizer.iterations.numpy()) == 6
