"""What layers and steps assign of a batch is what one device assigns, whatever it is made of.

Right is what stock `keras.Model` says on one device.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from forward_models import X, Y, assert_same_on_replicas, build, evaluate, fit, through
from replicas import assert_same_weights, copies, one_device, slow

import tfgpu

L = keras.layers
ops = keras.ops


def assigning(value, shape=(), dtype="float32", *, used=True, **declared):
    """A layer whose variable gets `value(variable, inputs)`, of which its output is made."""

    class Assigning(L.Layer):
        def build(self, _):
            self.kept = self.add_weight(
                shape=shape, dtype=dtype, initializer="zeros", trainable=False, **declared
            )

        def call(self, inputs):
            self.kept.assign(value(self.kept, inputs))
            if not used:
                return inputs
            return inputs + 0.01 * ops.mean(ops.cast(self.kept, "float32"))

    return Assigning


def stock_and_ours(layer, strategy, x=X[:15], **settings):
    """Models that were trained and have evaluated, and their last losses."""
    found = []
    for cls, where in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(cls, where, through(layer), **settings)
        loss = fit(model, x, Y[: len(x)])["loss"][-1]
        found.append((model, [loss, evaluate(model, x, Y[: len(x)])["loss"]]))
    (stock, expected), (ours, actual) = found
    np.testing.assert_allclose(actual, expected, rtol=1e-4)
    assert_same_weights(stock, ours)
    assert_same_on_replicas(ours)
    return stock, ours


def rows_of(inputs):
    return ops.cast(ops.shape(inputs)[0], "float32")


VALUES = {
    "rows": lambda old, new: old + rows_of(new),
    "sum": lambda old, new: old + ops.sum(new**2),
    "moving sum": lambda old, new: 0.9 * old + 0.1 * ops.sum(new),
    "largest": lambda old, new: ops.maximum(old, ops.max(ops.abs(new))),
    "smallest": lambda old, new: ops.minimum(old, ops.min(new)),
    "any": lambda old, new: old + ops.cast(ops.any(new > 2.0), "float32"),
    "all": lambda old, new: old + ops.cast(ops.all(new > -1.5), "float32"),
    "root": lambda old, new: 0.5 * old + ops.sqrt(ops.mean(new**2)),
    "mean by hand": lambda old, new: 0.5 * old + ops.sum(new) / rows_of(new),
    "product of means": lambda old, new: old + ops.mean(new) * ops.mean(ops.abs(new)),
    "mean under a mask": lambda old, new: (
        0.5 * old + ops.sum(ops.where(new > 0, new, 0.0)) / ops.sum(ops.cast(new > 0, "float32"))
    ),
    "first row": lambda old, new: old + new[0, 0],
    "product": lambda old, new: ops.prod(new),
    "median": lambda old, new: ops.median(new[:, 0]),
    "norm": lambda old, new: 0.5 * old + ops.norm(new[:, 0]),
}
QUICK = ("rows", "moving sum", "largest", "root", "mean under a mask", "median")


@pytest.mark.parametrize("made", [v if v in QUICK else slow(v) for v in VALUES])
def test_numbers(mirrored2, made):
    stock_and_ours(assigning(VALUES[made]), mirrored2)


def test_whole_numbers(mirrored2):
    def count(old, new):
        return old + ops.cast(ops.count_nonzero(new > 0), "int32")

    stock, ours = stock_and_ours(assigning(count, dtype="int32"), mirrored2)
    assert int(copies(stock.layers[1].kept)[0]) == copies(ours.layers[1].kept)[0] > 20


def test_truths(mirrored2):
    def seen(old, new):
        return ops.logical_or(old, ops.any(new[:, 0] > 1.2))

    stock_and_ours(assigning(seen, dtype="bool"), mirrored2)


def test_a_histogram(mirrored2):
    def counts(old, new):
        fell = ops.cast(ops.clip(new[:, 0] + 2, 0, 3), "int32")
        return old + tf.math.unsorted_segment_sum(ops.ones_like(new[:, 0]), fell, 4)

    stock_and_ours(assigning(counts, shape=(4,)), mirrored2)


def test_a_sum_of_products_over_rows(mirrored2):
    def covariance(old, new):
        return 0.9 * old + 0.1 * ops.matmul(ops.transpose(new), new)

    stock_and_ours(assigning(covariance, shape=(6, 6)), mirrored2)


def test_a_queue_of_rows(mirrored2):
    def queue(old, new):
        return ops.concatenate([new, old], axis=0)[:8]

    stock, ours = stock_and_ours(assigning(queue, shape=(8, 6)), mirrored2)
    assert np.abs(copies(stock.layers[1].kept)[0]).min() > 0


def test_a_replica_without_rows_has_no_say(mirrored2):
    stock_and_ours(assigning(VALUES["largest"]), mirrored2, x=X[:5])
    stock_and_ours(assigning(VALUES["first row"]), mirrored2, x=X[:5])
    stock_and_ours(assigning(VALUES["rows"]), mirrored2, x=X[:5])


class Codebook(L.Layer):
    """Vector quantisation with sums in moving averages, and sizes that are smoothed.

    van den Oord et al., "Neural Discrete Representation Learning", appendix A.1.
    """

    def build(self, shape):
        def hold(name, shape, initializer):
            return self.add_weight(name=name, shape=shape, initializer=initializer, trainable=False)

        codes = keras.initializers.RandomNormal(seed=5)
        self.sizes = hold("sizes", (4,), "zeros")
        self.sums = hold("sums", (4, shape[-1]), codes)
        self.codes = hold("codes", (4, shape[-1]), codes)

    def call(self, values, training=False):
        distance = ops.sum((values[:, None] - self.codes[None]) ** 2, axis=-1)
        chosen = ops.one_hot(ops.argmin(distance, axis=-1), 4)
        quantised = chosen @ self.codes
        if training:
            self.sizes.assign(0.8 * self.sizes + 0.2 * ops.sum(chosen, axis=0))
            self.sums.assign(0.8 * self.sums + 0.2 * ops.transpose(chosen) @ values)
            total = ops.sum(self.sizes)
            sizes = (self.sizes + 1e-3) / (total + 4e-3) * total
            self.codes.assign(self.sums / sizes[:, None])
        return values + ops.stop_gradient(quantised - values)


@pytest.mark.parametrize("steps_per_execution", [1, slow(3)])
def test_a_codebook(mirrored2, steps_per_execution):
    stock_and_ours(Codebook, mirrored2, steps_per_execution=steps_per_execution)


def test_with_xla_the_step_says_that_it_runs_without(mirrored2):
    with pytest.warns(UserWarning, match="the step runs without XLA"):
        stock_and_ours(assigning(VALUES["moving sum"]), mirrored2, jit_compile=True)


def test_with_xla_a_mean_needs_no_exchange(mirrored2):
    def mean(old, new):
        return 0.5 * old + 0.5 * ops.mean(new, axis=0)

    stock_and_ours(assigning(mean, shape=(6,), used=False), mirrored2, jit_compile=True)


def test_what_is_declared_holds(mirrored2):
    layer = assigning(lambda old, new: ops.sum(new * 0 + 1), aggregation="mean")
    model = build(tfgpu.Model, mirrored2, through(layer))
    fit(model, X[:4], Y[:4], epochs=1)
    # Of two rows of 6 a replica.
    assert copies(model.layers[1].kept) == [12.0, 12.0]


def test_what_nobody_sees_through_is_said(mirrored2):
    inside = tf.function(lambda new: tf.reduce_sum(new))
    model = build(tfgpu.Model, mirrored2, through(assigning(lambda _, new: inside(new))))
    with pytest.warns(UserWarning, match="inside a tf.function.*averaged by rows"):
        fit(model, epochs=1)


def test_random_numbers_are_said(mirrored2):
    noisy = assigning(lambda old, _: old + keras.random.normal(()))
    model = build(tfgpu.Model, mirrored2, through(noisy))
    with pytest.warns(UserWarning, match="random numbers.*averaged by rows"):
        fit(model, epochs=1)


# The step works only where the number of rows is one of Python's, which is said as well.
@pytest.mark.filterwarnings("ignore:train_step of Counting works only where")
def test_a_constant_that_is_as_large_as_the_rows_is_said(mirrored2):
    class Counting(tfgpu.Model):
        def train_step(self, data):
            self.seen.assign_add(float(data[0].shape[0]))
            return super().train_step(data)

    with mirrored2.scope():
        inputs = keras.Input((6,))
        model = Counting(inputs, L.Dense(1)(inputs))
        model.seen = keras.Variable(0.0, trainable=False)
        model.compile("sgd", "mse", jit_compile=False)
    with pytest.warns(UserWarning, match="count those of all replicas"):
        fit(model, epochs=1)


def polyak(cls):
    """A step whose rate is (loss - 0.1) / |gradient|^2, and which assigns the weights itself."""

    class Polyak(cls):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = ops.mean((y - self(x, training=True)) ** 2)
            gradients = tape.gradient(loss, self.trainable_variables)
            rate = (loss - 0.1) / sum(tf.reduce_sum(g**2) for g in gradients)
            for variable, gradient in zip(self.trainable_variables, gradients, strict=True):
                variable.assign_sub(0.1 * rate * gradient)
            return {"loss": loss}

    return Polyak


def test_a_step_that_assigns_by_the_value_of_its_loss(mirrored2):
    models = []
    for cls, strategy in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        models.append(build(polyak(cls), strategy, through(lambda: L.Dense(4))))
        fit(models[-1], X[:15], Y[:15])
    assert_same_weights(*models)
    assert_same_on_replicas(models[1])


def test_a_variable_of_tensorflow_that_adds_rows(mirrored2):
    """A memory bank, whose entries of the rows' numbers a step writes."""

    def bank(cls):
        class Bank(cls):
            def train_step(self, data):
                x, y = data
                number = ops.cast(y[:, 0], "int32")
                self.bank.scatter_update(tf.IndexedSlices(x, number))
                self.seen.assign_add(ops.sum(x, axis=0))
                return {"loss": ops.mean(self.bank)}

        return Bank

    banks = []
    for cls, strategy in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        model = build(bank(cls), strategy, through())
        with strategy.scope():
            model.bank = tf.Variable(tf.zeros((16, 6)), trainable=False)
            model.seen = tf.Variable(tf.zeros((6,)), trainable=False)
        fit(model, X[:15], np.arange(15.0)[:, None], epochs=1)
        banks.append((copies(model.bank), copies(model.seen)))
    for expected, actual in zip(*banks, strict=True):
        for copy in actual:
            np.testing.assert_allclose(copy, expected[0], rtol=1e-5)
