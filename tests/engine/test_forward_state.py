"""What a forward pass writes is kept, in fit, evaluate and predict, on one device and on two.

Right is what stock `keras.Model` says on one device, or what a comment works out.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from forward_models import (
    SERIES,
    TARGETS,
    TOLERANCE,
    X,
    Y,
    assert_same_on_replicas,
    build,
    evaluate,
    fit,
    raw,
    through,
    weight,
)
from replicas import assert_logs, assert_same_weights, copies, one_device, slow, ways

import tfgpu

L = keras.layers
ops = keras.ops
way = ways("x1", slow("x1-xla"), "x2", "x2-xla")
HELD = {}  # By this module alone.


# ---- metrics ---------------------------------------------------------------------------------


class Activity(L.Layer):
    """Averages its inputs in a metric of its own."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = keras.metrics.Mean(name="activity")

    def call(self, values):
        self.seen.update_state(ops.mean(ops.abs(values)))
        return values


def test_a_metric_that_a_layer_updates(way):
    network = through(lambda: L.Dense(4), Activity, shape=(15,))
    x = SERIES.reshape(32, 15)
    logs = []
    for cls, chosen in ((keras.Model, (one_device(), False)), (tfgpu.Model, way)):
        model = build(cls, chosen[0], network, chosen[1])
        trained = fit(model, x, TARGETS, 8, validation_data=(x[:16], TARGETS[:16]))
        logs.append((trained, evaluate(model, x, TARGETS, 8)))
        assert "val_activity" in trained
    for stock, ours in zip(*logs, strict=True):
        assert_logs(stock, ours)


def test_a_metric_of_a_layer_counts_no_replica_without_rows(mirrored2):
    model = build(tfgpu.Model, mirrored2, through(Activity), rate=0.0)
    (said,) = fit(model, X[:5], Y[:5], epochs=1)["activity"]
    size = np.abs(X[:5]).mean(1)
    # As on one device: a number for each of two batches.
    np.testing.assert_allclose(said, (size[:4].mean() + size[4]) / 2, rtol=1e-5)


def with_a_metric_in_call(cls):
    class Watching(cls):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = L.Dense(4), L.Dense(1)
            self.size = keras.metrics.Mean(name="size")

        def call(self, x):
            x = self.hidden(x)
            self.size.update_state(ops.mean(ops.abs(x)))
            return self.out(x)

    return Watching()


def test_a_metric_that_the_models_call_updates(way):
    logs = []
    for cls, (strategy, jit_compile) in ((keras.Model, (one_device(), False)), (tfgpu.Model, way)):
        model = build(cls, strategy, lambda cls=cls: with_a_metric_in_call(cls), jit_compile)
        with strategy.scope():
            model(X[:1])
        model.size.reset_state()
        logs.append((fit(model), evaluate(model)))
    for stock, ours in zip(*logs, strict=True):
        assert_logs(stock, ours)


# ---- variables that a layer writes -----------------------------------------------------------


class Counter(L.Layer):
    """Counts its calls, in an integer and a float, and keeps the mean of its inputs."""

    def build(self, shape):
        self.steps = self.add_weight(
            shape=(), initializer="zeros", dtype="int32", trainable=False, name="steps"
        )
        self.twos = self.add_weight(shape=(), initializer="zeros", trainable=False, name="twos")
        self.mean = self.add_weight(
            shape=shape[-1:], initializer="zeros", trainable=False, name="mean"
        )

    def call(self, values):
        self.steps.assign_add(1)
        self.twos.assign_add(2.0)
        self.mean.assign(ops.mean(values, axis=0))
        return values


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_layer_counts_its_steps(way, method):
    strategy, jit_compile = way
    model = build(tfgpu.Model, strategy, through(Counter), jit_compile)
    data = (X[:14],) if method == "predict" else (X[:14], Y[:14])
    getattr(model, method)(*data, batch_size=4, verbose=0, **_in_order(method))
    counter = model.layers[1]
    assert copies(counter.steps) == [4] * strategy.num_replicas_in_sync
    assert copies(counter.twos) == [8.0] * strategy.num_replicas_in_sync
    # The mean of the last batch of two rows, of one row a replica.
    for mean in copies(counter.mean):
        np.testing.assert_allclose(mean, X[12:14].mean(0), rtol=1e-5, atol=1e-6)


def _in_order(method):
    return {"shuffle": False} if method == "fit" else {}


@pytest.mark.parametrize("steps_per_execution", [2, 3])
def test_each_step_of_an_execution_goes_on_from_the_one_before(way, steps_per_execution):
    strategy, jit_compile = way
    model = build(
        tfgpu.Model,
        strategy,
        through(Counter),
        jit_compile,
        steps_per_execution=steps_per_execution,
    )
    fit(model)
    evaluate(model)
    model.predict(X, batch_size=4, verbose=0)
    assert copies(model.layers[1].steps) == [16] * strategy.num_replicas_in_sync


class Clipped(L.Layer):
    """Holds its own trainable kernel within bounds, before it uses it."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), initializer="glorot_uniform")

    def call(self, values, training=False):
        if training:
            self.kernel.assign(ops.clip(self.kernel, -0.3, 0.3))
        return values @ self.kernel


def test_a_trainable_variable_that_a_layer_assigns(way):
    models = []
    for cls, (strategy, jit_compile) in ((keras.Model, (one_device(), False)), (tfgpu.Model, way)):
        models.append(build(cls, strategy, through(Clipped), jit_compile, rate=0.2))
        fit(models[-1], X[:15], Y[:15])
    assert_same_weights(*models)
    assert_same_on_replicas(models[1])


class Twin(L.Layer):
    """A trainable target network beside the online one: it follows it, and has no gradient."""

    def __init__(self, **options):
        super().__init__(**options)
        self.online, self.target = L.Dense(3), L.Dense(3)

    def build(self, shape):
        self.online.build(shape)
        self.target.build(shape)

    def call(self, values, training=False):
        if training:
            for to, of in zip(self.target.weights, self.online.weights, strict=True):
                to.assign(0.9 * to + 0.1 * of)
        return self.online(values) - ops.stop_gradient(self.target(values))


# Keras says that the target has no gradient.
@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
def test_a_trainable_variable_that_only_a_layer_writes(way):
    models = []
    for cls, (strategy, jit_compile) in ((keras.Model, (one_device(), False)), (tfgpu.Model, way)):
        models.append(build(cls, strategy, through(Twin), jit_compile))
        fit(models[-1])
    assert_same_weights(*models)
    assert_same_on_replicas(models[1])


def test_a_variable_of_the_model_that_its_call_writes(way):
    class Counting(tfgpu.Model):
        def __init__(self):
            super().__init__()
            self.out = L.Dense(1)
            self.calls = self.add_weight(
                shape=(), initializer="zeros", dtype="int64", trainable=False
            )

        def call(self, x):
            self.calls.assign_add(1)
            return self.out(x)

    strategy, jit_compile = way
    model = build(tfgpu.Model, strategy, Counting, jit_compile)
    with strategy.scope():
        model(X[:1])
    model.calls.assign(0)
    fit(model, epochs=1)
    evaluate(model)
    model.predict(X, batch_size=4, verbose=0)
    assert copies(model.calls) == [12] * strategy.num_replicas_in_sync


def test_spectral_normalization_as_one_device(way):
    network = through(lambda: L.SpectralNormalization(L.Dense(4), power_iterations=2))
    models = []
    for cls, (strategy, jit_compile) in ((keras.Model, (one_device(), False)), (tfgpu.Model, way)):
        models.append(build(cls, strategy, network, jit_compile))
        fit(models[-1], X[:15], Y[:15])
    assert_same_weights(*models)
    assert_same_on_replicas(models[1])


class Codebook(L.Layer):
    """Vector quantisation whose codes are moving averages, means over rows, of what fell to them.

    The codes are computed from the averages of the steps before: replicas agree on them.
    """

    def build(self, shape):
        self.sizes = self.add_weight(shape=(4,), initializer="ones", trainable=False, name="sizes")
        self.sums = self.add_weight(
            shape=(4, shape[-1]),
            initializer=keras.initializers.RandomNormal(seed=5),
            trainable=False,
            name="sums",
        )
        self.codes = self.add_weight(
            shape=(4, shape[-1]), initializer="zeros", trainable=False, name="codes"
        )

    def call(self, values, training=False):
        if training:
            self.codes.assign(self.sums / self.sizes[:, None])
        distance = ops.sum((values[:, None] - self.codes[None]) ** 2, axis=-1)
        chosen = ops.one_hot(ops.argmin(distance, axis=-1), 4)
        if training:
            count = ops.mean(chosen, axis=0)
            total = ops.mean(chosen[:, :, None] * values[:, None], axis=0)
            self.sizes.assign(0.8 * self.sizes + 0.2 * count)
            self.sums.assign(0.8 * self.sums + 0.2 * total)
        return values + ops.stop_gradient(chosen @ self.codes - values)


@pytest.mark.slow
def test_a_codebook_of_moving_averages_as_one_device(way):
    models, losses = [], []
    for cls, (strategy, jit_compile) in ((keras.Model, (one_device(), False)), (tfgpu.Model, way)):
        models.append(build(cls, strategy, through(Codebook), jit_compile))
        losses.append(fit(models[-1], X[:15], Y[:15])["loss"])
        losses[-1].append(evaluate(models[-1])["loss"])
    np.testing.assert_allclose(*losses, **TOLERANCE)
    assert_same_weights(*models)
    assert_same_on_replicas(models[1])


# ---- variables that no layer tracks ----------------------------------------------------------


class Outside(L.Layer):
    """Writes what the module holds."""

    def call(self, values):
        HELD["steps"].assign_add(1)
        HELD["mean"].assign(0.5 * HELD["mean"] + ops.mean(values))
        return values + 0 * ops.cast(HELD["mean"], "float32")


@pytest.mark.parametrize("place", ["scope", "outside"])
@pytest.mark.parametrize("kind", [slow("keras"), "tf"])
def test_variables_of_the_module_are_written(way, kind, place):
    strategy, jit_compile = way
    make = raw if kind == "tf" else weight

    def hold():
        HELD["steps"] = make(np.int32(0), dtype="int32")
        HELD["mean"] = make(np.float32(0))

    if place == "scope":
        with strategy.scope():
            hold()
    else:
        hold()
    model = build(tfgpu.Model, strategy, through(Outside), jit_compile)
    if place == "outside" and strategy.num_replicas_in_sync > 1:
        # It has no copy for each replica.
        with pytest.raises(ValueError, match=r"Variable .* outside of the strategy's scope"):
            fit(model, epochs=1)
        return
    fit(model, epochs=1)
    assert set(copies(HELD["steps"])) == {4}
    evaluate(model)
    assert set(copies(HELD["steps"])) == {8}
    model.predict(X, batch_size=4, verbose=0)
    assert set(copies(HELD["steps"])) == {12}
    expected = 0.0
    for mean in [X[at : at + 4].mean() for at in (0, 4, 8, 12)] * 3:
        expected = 0.5 * expected + mean
    np.testing.assert_allclose(copies(HELD["mean"]), expected, rtol=1e-4, atol=1e-6)


class Counted(L.Layer):
    """Counts its calls inside a function of TensorFlow, and scales."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")
        self.calls = self.add_weight(
            shape=(), trainable=False, initializer="zeros", aggregation="mean"
        )

    @tf.function
    def call(self, values):
        self.calls.assign_add(1.0)
        return values * self.scale


@pytest.mark.parametrize("together", [slow(1), 3])
@pytest.mark.parametrize("whole", [True, slow(False)], ids=["model", "layer"])
def test_a_call_that_is_a_function_of_tensorflow(way, whole, together):
    strategy, jit_compile = way
    found = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):

        class Calls(cls):
            def __init__(self):
                super().__init__()
                self.body, self.counted, self.head = L.Dense(4), Counted(), L.Dense(1)

            def call(self, values):
                return self.head(self.counted(self.body(values)))

            if whole:
                call = tf.function(call)

        keras.utils.set_random_seed(3)
        with place.scope():
            model = Calls()
            model(X[:2])
            model.compile("sgd", "mse", jit_compile=jit_compile, steps_per_execution=together)
        rows = X[:21]
        history = model.fit(rows, Y[:21], batch_size=4, epochs=2, shuffle=False, verbose=0).history
        outputs = model.predict(rows, batch_size=4, verbose=0)
        found.append((history["loss"], model.evaluate(rows, Y[:21], verbose=0), outputs, model))
    for expected, actual in zip(*[each[:3] for each in found], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert_same_weights(found[0][3], found[1][3])
    assert_same_on_replicas(found[1][3])
