"""Reductions of losses, and weights of samples, outputs and classes, on one device and on two."""

import keras
import numpy as np
import pytest
from loss_runs import (
    LAST,
    REDUCTIONS,
    assert_as_stock,
    classes,
    cross_entropy,
    mse,
    plain,
    run,
    steps,
    weighted_steps,
)
from replicas import slow, ways

import tfgpu

L = keras.layers
way = ways("x1", "x2", "x2-xla")


# ---- reductions and sample weights -----------------------------------------------------------


@pytest.mark.parametrize("rank", [slow(0), slow(1), 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_of_a_loss_for_each_step(mirrored2, reduction, rank):
    settings = {"loss": mse(reduction=reduction), "rate": 0.01}
    assert_as_stock((mirrored2, False), steps, weighted_steps(9, rank), 4, **settings)


@pytest.mark.parametrize(
    "reduction", [slow("sum_over_batch_size"), "mean_with_sample_weight", slow("sum")]
)
def test_weights_for_each_step_under_xla(mirrored2, reduction):
    settings = {"loss": mse(reduction=reduction), "rate": 0.01}
    assert_as_stock((mirrored2, True), steps, weighted_steps(11, 2), 4, **settings)


@LAST
@pytest.mark.parametrize("rank", [slow(1), 2])
def test_weighted_metrics_of_steps(mirrored2, rank, rows, batch_size):
    settings = {
        "loss": mse(),
        "metrics": lambda: ["mae"],
        "weighted_metrics": lambda: ["mse"],
    }
    data = weighted_steps(rows, rank)
    data[2].reshape(-1)[0] = 0.5
    assert_as_stock((mirrored2, False), steps, data, batch_size, **settings)


def test_a_replica_whose_weights_are_all_zero(way):
    x, y, weights = weighted_steps(8, 2)
    weights[:2] = 0  # All rows of the first replica, in the first batch of 4.
    weights[6:] = 0  # And of the second, in the last.
    loss = mse(reduction="mean_with_sample_weight")
    assert_as_stock(way, steps, (x, y, weights), 4, loss=loss)


def two_outputs():
    inputs = keras.Input((3, 4))
    x = L.Dense(5, activation="tanh")(inputs)
    first = L.Dense(2, name="first")(x)
    second = L.Dense(1, name="second")(L.Flatten()(x))
    return inputs, {"first": first, "second": second}


@pytest.mark.parametrize("weighted", [slow(False), True], ids=["", "weighted"])
@pytest.mark.parametrize(
    "pair",
    [
        ("sum_over_batch_size", "sum"),
        ("mean_with_sample_weight", "mean"),
        ("sum", "mean_with_sample_weight"),
        (None, "mean"),
    ],
    ids=str,
)
def test_two_outputs_of_different_reductions(mirrored2, pair, weighted):
    x, y, weights = weighted_steps(9, 2)
    targets = {"first": y, "second": y[:, 0, :1]}
    data = (x, targets, {"first": weights, "second": weights[:, 1]}) if weighted else (x, targets)
    settings = {
        "loss": lambda: {
            "first": keras.losses.MeanSquaredError(reduction=pair[0]),
            "second": keras.losses.MeanAbsoluteError(reduction=pair[1]),
        },
        "loss_weights": lambda: {"first": 0.3, "second": 1.5},
        "metrics": lambda: {"first": ["mae"], "second": ["mse"]},
        "rate": 0.01,
    }
    # `first_loss` and `second_loss` have a test of their own, below.
    but = {"first_loss", "second_loss"}
    assert_as_stock((mirrored2, False), two_outputs, data, 4, but, **settings)


def test_the_loss_of_each_output(way):
    x, y, _ = weighted_steps(8, 2)
    settings = {"loss": lambda: {"first": "mse", "second": "mae"}, "rate": 0.01}
    data = (x, {"first": y, "second": y[:, 0, :1]})
    assert_as_stock(way, two_outputs, data, 4, **settings)


@pytest.mark.slow
def test_the_loss_of_each_output_counts_partial_batches_by_rows(way):
    # Stock Keras counts them like whole ones.
    x, y, _ = weighted_steps(9, 2)
    labels = {"first": y, "second": y[:, 0, :1]}
    strategy, jit_compile = way
    losses = {"first": "mse", "second": "mae"}
    settings = {"loss": lambda: losses, "rate": 0.0, "jit_compile": jit_compile}
    _, weights, said = run(tfgpu.Model, strategy, two_outputs, (x, labels), 4, **settings)
    inputs, outputs = two_outputs()
    model = keras.Model(inputs, outputs)
    model.set_weights(weights)
    predicted = model.predict(x, verbose=0)
    first = np.mean((predicted["first"] - y) ** 2)
    second = np.mean(np.abs(predicted["second"] - labels["second"]))
    np.testing.assert_allclose(said["first_loss"], first, rtol=1e-4)
    np.testing.assert_allclose(said["second_loss"], second, rtol=1e-4)


@pytest.mark.slow
def test_two_outputs_of_different_reductions_under_xla(mirrored2):
    x, y, weights = weighted_steps(11, 2)
    data = (x, {"first": y, "second": y[:, 0, :1]}, {"first": weights, "second": weights[:, 1]})
    settings = {
        "loss": lambda: {
            "first": keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
            "second": keras.losses.MeanAbsoluteError(reduction="sum"),
        },
        "loss_weights": lambda: {"first": 0.3, "second": 1.5},
        "rate": 0.01,
    }
    but = {"first_loss", "second_loss"}
    assert_as_stock((mirrored2, True), two_outputs, data, 4, but, **settings)


# ---- class_weight ----------------------------------------------------------------------------


@LAST
def test_class_weight(mirrored2, rows, batch_size):
    settings = {
        "loss": cross_entropy(),
        "metrics": lambda: ["accuracy"],
        "weighted_metrics": lambda: ["accuracy"],
        "class_weight": {0: 0.3, 1: 2.0},
    }
    assert_as_stock((mirrored2, False), plain, classes(plain, rows), batch_size, **settings)


def test_class_weight_under_xla(mirrored2):
    settings = {"loss": cross_entropy(), "class_weight": {0: 0.3, 1: 2.0}}
    assert_as_stock((mirrored2, True), plain, classes(plain, 9), 4, **settings)


def test_class_weight_of_one_hot_labels(mirrored2):
    x, labels = classes(plain, 11)
    settings = {
        "loss": lambda: keras.losses.CategoricalCrossentropy(from_logits=True),
        "class_weight": {0: 0.3, 1: 2.0},
    }
    data = x, np.eye(2, dtype="float32")[labels]
    assert_as_stock((mirrored2, False), plain, data, 4, **settings)
