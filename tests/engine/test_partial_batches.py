"""What is said and learnt of partial batches counts each example once, whatever the weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dense_models import X, Y, assert_same_weights, build, dataset, dense, fit, normalized
from replicas import one_device, slow

import tfgpu

RNG = np.random.RandomState(1)


@pytest.fixture(params=[1, 2], ids=["x1", "x2"])
def strategy(request, mirrored2):
    return tf.distribute.OneDeviceStrategy("CPU:0") if request.param == 1 else mirrored2


LABELS = Y.argmax(1).astype("int32")


def classifier():
    inputs = keras.Input((6,))
    return tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(8, "relu")(inputs)))


def squared_error(model, x, y):
    return np.mean((model.predict(x, verbose=0) - y) ** 2, axis=-1)


@pytest.mark.parametrize(
    ("examples", "jit_compile"),
    [(1, False), (17, False), (9, True), slow(9, False), slow(1, True), slow(17, True)],
)
def test_evaluate_is_exact_over_partial_batches(strategy, examples, jit_compile):
    x, y = X[:examples], Y[:examples]
    model = build(
        strategy,
        dense,
        metrics=lambda: [keras.metrics.MeanAbsoluteError(name="mae")],
        jit_compile=jit_compile,
        steps_per_execution=2,
    )
    logs = model.evaluate(dataset(x, y, batch_size=8), verbose=0, return_dict=True)
    outputs = model.predict(x, verbose=0)
    np.testing.assert_allclose(logs["loss"], np.mean((outputs - y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(logs["mae"], np.mean(np.abs(outputs - y)), rtol=1e-5)


def test_evaluate_of_batch_statistics_is_exact_over_partial_batches(strategy):
    model = build(strategy, normalized())
    logs = model.evaluate(dataset(X[:9], Y[:9], batch_size=8), verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], squared_error(model, X[:9], Y[:9]).mean(), rtol=1e-5)


# Keras says so when the size of the data was not known.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("examples", [1, 17], ids=["fewer", "odd"])
def test_fit_is_exact_over_partial_batches(strategy, examples, known):
    """Against a loop of plain TensorFlow over every example."""
    x, y = X[:examples], Y[:examples]
    model = build(
        strategy,
        dense,
        optimizer=lambda: keras.optimizers.SGD(0.05),
        metrics=lambda: ["mae"],
        steps_per_execution=4,
    )
    reference = build(one_device(), dense)
    history = fit(model, dataset(x, y, batch_size=4, known=known), epochs=3)
    expected = []
    for _ in range(3):
        losses, errors = [], []
        for start in range(0, examples, 4):
            with tf.GradientTape() as tape:
                outputs = reference(x[start : start + 4], training=True)
                rows = tf.reduce_mean((outputs - y[start : start + 4]) ** 2, axis=-1)
                loss = tf.reduce_mean(rows)
            for variable, gradient in zip(
                reference.trainable_variables,
                tape.gradient(loss, [v.value for v in reference.trainable_variables]),
                strict=True,
            ):
                variable.assign(variable - 0.05 * gradient)
            losses.extend(rows.numpy())
            errors.extend(np.abs(outputs - y[start : start + 4]).mean(-1))
        expected.append((np.mean(losses), np.mean(errors)))
    np.testing.assert_allclose(history["loss"], [e[0] for e in expected], rtol=1e-5)
    np.testing.assert_allclose(history["mae"], [e[1] for e in expected], rtol=1e-5)
    assert_same_weights(reference, model)


WEIGHTS = RNG.rand(96).astype("float32")
WEIGHTS[::5] = 0


def stock_logs_over_whole(make, *tensors, **compiled):
    """What stock Keras says of all examples in a single batch on one device."""
    model = build(one_device(), lambda: keras.Model(*_all_ends(make())), **compiled)
    return model.evaluate(tf.data.Dataset.from_tensors(tensors), verbose=0, return_dict=True)


def _all_ends(model):
    outputs = model.outputs
    return model.inputs, outputs[0] if len(outputs) == 1 else outputs


@pytest.mark.parametrize("batch_size", [4, 7])
def test_sample_weights_and_weighted_metrics_are_exact(strategy, batch_size):
    settings = {
        "loss": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": lambda: ["accuracy"],
        "weighted_metrics": lambda: ["accuracy"],
    }
    data = X[:17], LABELS[:17], WEIGHTS[:17]
    expected = stock_logs_over_whole(classifier, *data, **settings)
    model = build(strategy, classifier, steps_per_execution=2, **settings)
    logs = model.evaluate(dataset(*data, batch_size=batch_size), verbose=0, return_dict=True)
    assert logs.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(logs[name], expected[name], rtol=1e-5, err_msg=name)


def two_outputs():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4, "tanh")(inputs)
    first = keras.layers.Dense(3, name="first")(hidden)
    return tfgpu.Model(inputs, [first, keras.layers.Dense(1, name="second")(hidden)])


def test_multiple_outputs_are_exact(strategy):
    settings = {
        "loss": lambda: ["mse", "mae"],
        "loss_weights": lambda: [1.0, 0.3],
        "metrics": lambda: [["mae"], ["mse"]],
    }
    targets = (Y[:17], Y[:17, :1])
    expected = stock_logs_over_whole(two_outputs, X[:17], targets, **settings)
    model = build(strategy, two_outputs, **settings)
    data = tf.data.Dataset.from_tensor_slices((X[:17], targets)).batch(8)
    logs = model.evaluate(data, verbose=0, return_dict=True)
    assert logs.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(logs[name], expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("reduction", "weighted"),
    [
        ("sum", True),
        ("mean_with_sample_weight", False),
        ("mean_with_sample_weight", True),
        (None, True),
        slow(None, False),
        slow("sum", False),
        slow("sum_over_batch_size", False),
        slow("sum_over_batch_size", True),
        slow("mean", False),
        slow("mean", True),
    ],
)
def test_every_reduction_trains_as_one_device(mirrored2, reduction, weighted):
    tensors = (X[:11], Y[:11], WEIGHTS[:11]) if weighted else (X[:11], Y[:11])
    settings = {
        "loss": lambda: keras.losses.MeanSquaredError(reduction=reduction),
        "optimizer": lambda: keras.optimizers.SGD(0.01),
    }
    stock = build(one_device(), lambda: keras.Model(*_all_ends(dense())), **settings)
    ours = build(mirrored2, dense, **settings)
    losses = [
        fit(model, dataset(*tensors, batch_size=8), epochs=3)["loss"] for model in (stock, ours)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert_same_weights(stock, ours)


def test_outputs_of_different_reductions_train_as_one_device(mirrored2):
    settings = {
        "loss": lambda: [
            keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
            keras.losses.MeanSquaredError(reduction="sum"),
        ],
        "loss_weights": lambda: [1.0, 0.1],
        "optimizer": lambda: keras.optimizers.SGD(0.01),
    }
    data = tf.data.Dataset.from_tensor_slices(
        (X[:12], (Y[:12], Y[:12, :1]), (WEIGHTS[:12], WEIGHTS[12:24]))
    )
    stock = build(one_device(), lambda: keras.Model(*_all_ends(two_outputs())), **settings)
    ours = build(mirrored2, two_outputs, jit_compile=True, **settings)
    losses = [fit(model, data.batch(5), epochs=3)["loss"] for model in (stock, ours)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert_same_weights(stock, ours)


def test_predict_gives_every_example_once_and_in_order(strategy):
    model = build(strategy, dense, steps_per_execution=2)
    for examples in (1, 17):
        x = X[:examples]
        outputs = model.predict(tf.data.Dataset.from_tensor_slices(x).batch(4), verbose=0)
        np.testing.assert_allclose(outputs, model(x).numpy(), rtol=1e-5, atol=1e-6)
