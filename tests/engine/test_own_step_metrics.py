"""Metrics that an own step updates itself say on two replicas what they say on one device."""

import keras
import numpy as np
import pytest
from own_steps import LABELS, ROWS, TOLERANCE, X, build, evaluate, fit, guide, tracking, updated
from replicas import assert_logs, assert_same_weights, one_device

import tfgpu


@ROWS
def test_the_step_of_the_guide(strategy, rows):
    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, guide(cls), metrics=["accuracy"]))
        logs.append((fit(models[-1], rows), evaluate(models[-1], rows)))
    assert_same_weights(*models)
    for stock, ours in zip(*logs, strict=True):
        assert {"loss"} < stock.keys() == ours.keys()
        for name in stock.keys() - {"loss"}:
            # Keras 3.10 keeps the results of `compile_metrics` in a dictionary.
            found, expected = (keras.tree.flatten(logs[name]) for logs in (ours, stock))
            np.testing.assert_allclose(found, expected, **TOLERANCE, err_msg=name)


@ROWS
@pytest.mark.parametrize("make", [guide, tracking])
def test_an_own_mean_of_the_loss(strategy, make, rows):
    logs = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(place, make(cls))
        logs.append((fit(model, rows)["loss"], evaluate(model, rows)["loss"]))
    for stock, ours in zip(*logs, strict=True):
        np.testing.assert_allclose(ours, stock, **TOLERANCE)


def test_a_step_with_a_loss_object_of_its_own(strategy):
    """Keras' own losses are divided by the replicas; all batches divide."""
    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, lambda *a, cls=cls: tracking(cls, own_loss=True)(*a)))
        logs.append(fit(models[-1], 24))
    assert_same_weights(*models)
    assert_logs(*logs)


def test_the_tracked_weights(strategy):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, tracking(cls)))
        fit(models[-1])
    assert_same_weights(*models)


def test_accuracy_counts_each_row_once(strategy):
    # Nothing is learned, so that it can be worked out.
    model = build(strategy, tracking(tfgpu.Model), optimizer=lambda: keras.optimizers.SGD(0.0))
    right = np.mean(model.predict(X, verbose=0).argmax(1) == LABELS)
    np.testing.assert_allclose(fit(model)["accuracy"], [right, right], rtol=1e-6)
    np.testing.assert_allclose(evaluate(model)["accuracy"], right, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 13])
def test_accuracy_counts_each_row_once_whatever_the_last_batch(mirrored2, rows):
    model = build(mirrored2, tracking(tfgpu.Model), optimizer=lambda: keras.optimizers.SGD(0.0))
    right = np.mean(model.predict(X[:rows], verbose=0).argmax(1) == LABELS[:rows])
    np.testing.assert_allclose(fit(model, rows, epochs=1)["accuracy"], [right], rtol=1e-6)
    np.testing.assert_allclose(evaluate(model, rows)["accuracy"], right, rtol=1e-6)


def test_compute_metrics_in_an_own_step(strategy):
    def make(cls):
        class Computes(cls):
            def train_step(self, data):
                y_pred, _ = updated(self, data)
                return self.compute_metrics(*data, y_pred)

        return Computes

    logs = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(place, make(cls), metrics=["accuracy"])
        logs.append(fit(model)["accuracy"])
    np.testing.assert_allclose(*logs, rtol=1e-6)
