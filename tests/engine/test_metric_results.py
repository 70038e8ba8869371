"""Results of metrics in steps of one's own: on two replicas those of one device, whatever is done.

Right is what stock `keras.Model` says on one device. Batches have 6 rows and the last one has one.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from own_steps import LABELS, TOLERANCE, X, build, evaluate, fit, updated
from replicas import one_device, slow

import tfgpu


def stepping(cls, told):
    """A class whose steps return what `told(model, metric, values)` says of a metric."""

    class Stepping(cls):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.mean = keras.metrics.Mean(name="mean")
            self.held = [Holder()]

        def train_step(self, data):
            y_pred, _ = updated(self, data)
            return {"told": told(self, self.mean, tf.reduce_max(y_pred, axis=1))}

        def test_step(self, data):
            y_pred = self(data[0], training=False)
            return {"told": told(self, self.mean, tf.reduce_max(y_pred, axis=1))}

    return Stepping


class Holder:
    """Neither layer nor list, so that Keras does not find what it holds."""

    def __init__(self):
        self.mean = keras.metrics.Mean(name="held")


def plain(model, metric, values):
    metric.update_state(values)
    return metric.result()


def identity(model, metric, values):
    return tf.identity(plain(model, metric, values))


def derived(model, metric, values):
    return keras.ops.exp(plain(model, metric, values))


def branched(model, metric, values):
    result = plain(model, metric, values)
    return tf.cond(result > 0.0, lambda: 2.0 * result, lambda: -result)


def reset_before(model, metric, values):
    metric.reset_state()
    return plain(model, metric, values)


def reset_after(model, metric, values):
    result = plain(model, metric, values)
    metric.reset_state()
    return result


def asked_before(model, metric, values):
    result = metric.result()
    metric.update_state(values)
    return result


def assigned(model, metric, values):
    """One metric that is told what another says."""
    model.held[0].mean.update_state(plain(model, metric, values))
    return model.held[0].mean.result()


def in_a_helper(model, metric, values):
    return plain(model, model.held[0].mean, values)


def in_a_helper_derived(model, metric, values):
    return 2.0 * in_a_helper(model, metric, values)


TOLD = {
    f.__name__: f
    for f in (
        *(plain, identity, derived, branched, reset_before, reset_after, asked_before),
        *(in_a_helper, in_a_helper_derived),
    )
}


def both(strategy, make, **settings):
    """What stock and we say of two epochs and an evaluation."""
    said = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(place, make(cls), **settings)
        said.append((fit(model)["told"], evaluate(model)["told"]))
    return said


@pytest.mark.parametrize("told", TOLD)
def test_results_are_those_of_all_rows(mirrored2, told):
    stock, ours = both(mirrored2, lambda cls: stepping(cls, TOLD[told]))
    for expected, found in zip(stock, ours, strict=True):
        np.testing.assert_allclose(found, expected, **TOLERANCE)


@pytest.mark.parametrize("told", ["derived", slow("plain"), "reset_after"])
@pytest.mark.parametrize("how", [{"run_eagerly": True}, slow({"steps_per_execution": 3})])
def test_results_eagerly_and_with_several_steps_an_execution(mirrored2, told, how):
    stock, ours = both(mirrored2, lambda cls: stepping(cls, TOLD[told]), **how)
    for expected, found in zip(stock, ours, strict=True):
        np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_a_metric_that_is_told_what_another_says(mirrored2):
    stock, ours = both(mirrored2, lambda cls: stepping(cls, assigned))
    np.testing.assert_allclose(ours[0], stock[0], **TOLERANCE)


def test_a_step_that_returns_results_as_they_are_is_traced_once(mirrored2):
    model = build(mirrored2, stepping(tfgpu.Model, plain))
    traced = []
    step = model.train_step
    model.train_step = lambda data: (traced.append(0), step(data))[1]
    model.fit(X[:24], LABELS[:24], batch_size=6, verbose=0)
    assert len(traced) == 2  # In each replica.


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("delegated", ["step", "metrics"])
def test_metrics_of_a_model_inside(mirrored2, delegated, built):
    def make(cls):
        class Outer(cls):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def call(self, x, training=False):
                return self.inner(x, training=training)

            def train_step(self, data):
                return self.inner.train_step(data)

            def test_step(self, data):
                if delegated == "step":
                    return self.inner.test_step(data)
                x, y = data
                return self.inner.compute_metrics(x, y, self.inner(x))

        return Outer

    said = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        with place.scope():
            top = keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top")
            measured = {"metrics": [top]}
            inner = build(place, lambda *network: keras.Model(*network), **measured)
            if built:
                inner.evaluate(X[:6], LABELS[:6], verbose=0)
            model = make(cls)(inner)
            model.compile(optimizer=inner.optimizer)
        said.append((fit(model), evaluate(model)))
    for stock, ours in zip(*said, strict=True):
        assert "top" in stock and stock.keys() == ours.keys()
        for name in stock:
            np.testing.assert_allclose(ours[name], stock[name], **TOLERANCE, err_msg=name)


def test_metrics_that_make_their_variables_in_the_step(mirrored2):
    def lazily(model, metric, values):
        model.r2.update_state(values[:, None], tf.sin(values)[:, None])
        return model.r2.result()

    def make(cls):
        class Lazy(stepping(cls, lazily)):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.r2 = keras.metrics.R2Score(name="r2")

        return Lazy

    stock, ours = both(mirrored2, make)
    for expected, found in zip(stock, ours, strict=True):
        np.testing.assert_allclose(found, expected, **TOLERANCE)


def test_numbers_computed_of_results_by_compute_metrics(mirrored2):
    def make(cls):
        class Perplexity(cls):
            def compute_metrics(self, x, y, y_pred, sample_weight=None):
                logs = super().compute_metrics(x, y, y_pred, sample_weight)
                return {**logs, "told": keras.ops.exp(logs["loss"])}

        return Perplexity

    stock, ours = both(mirrored2, make)
    for expected, found in zip(stock, ours, strict=True):
        np.testing.assert_allclose(found, expected, **TOLERANCE)


# ---- metrics of the batch ------------------------------------------------------------------------


def batch_mean(y_true, y_pred):
    return tf.reduce_mean(tf.reduce_max(y_pred, axis=1))


def of_each_class(y_true, y_pred):
    return tf.reduce_mean(y_pred, axis=0)


class SumOfBatches(keras.metrics.Sum):
    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(batch_mean(y_true, y_pred))


class MeanOfBatches(keras.metrics.Mean):
    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(batch_mean(y_true, y_pred))


def test_numbers_of_a_batch_count_by_rows(mirrored2):
    said = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        with place.scope():
            metrics = [SumOfBatches(name="sum"), of_each_class]
            exact = [MeanOfBatches(name="mean")]
        model = build(place, cls, metrics=metrics)
        mean = build(place, cls, metrics=exact)
        said.append((evaluate(model), evaluate(mean, 24)))
    for stock, ours in zip(*said, strict=True):
        for name in stock:
            np.testing.assert_allclose(ours[name], stock[name], **TOLERANCE, err_msg=name)
