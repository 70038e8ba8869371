"""Classes with a `train_step`, `test_step` or `predict_step` of their own, on one device and two.

Right is what the same class, derived from stock `keras.Model`, says and learns on one device. The
last batch of 25 rows by 6 has one row: the second replica then gets a row that counts nowhere.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from own_steps import LABELS, ROWS, TOLERANCE, X, build, derive, evaluate, fit, guide, tracking
from replicas import assert_logs, assert_same_on_replicas, assert_same_weights, one_device

import tfgpu

ops = keras.ops


# ---- the numbers of one device ---------------------------------------------------------------


@ROWS
@pytest.mark.parametrize("kind", ["apply", "apply_gradients"])
def test_weights_and_loss_are_those_of_one_device(strategy, kind, rows):
    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, derive(cls, kind)))
        logs.append(fit(models[-1], rows))
    assert_same_weights(*models)
    np.testing.assert_allclose(logs[1]["own"], logs[0]["own"], **TOLERANCE)
    assert_same_on_replicas([*models[1].variables, *models[1].optimizer.variables])


def test_a_small_case_that_once_was_wrong(strategy):
    sums = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(place, derive(cls, "apply"), optimizer=lambda: keras.optimizers.SGD(0.05))
        fit(model)
        sums.append([np.abs(w).sum() for w in model.get_weights()])
    np.testing.assert_allclose(*sums, rtol=1e-4, atol=1e-5)


def test_apply_without_variables(strategy):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, derive(cls, "built")))
        with place.scope():
            models[-1].optimizer.build(models[-1].trainable_variables)
        fit(models[-1])
    assert_same_weights(*models)


@ROWS
def test_an_own_test_step_says_what_one_device_says(strategy, rows):
    said = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        said.append(evaluate(build(place, derive(cls, "apply")), rows))
    assert_logs(*said)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.02),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.AdamW(0.02, weight_decay=0.1, use_ema=True),
    ],
    ids=["adam", "momentum", "adamw_ema"],
)
def test_optimizers_with_state(mirrored2, optimizer):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        models.append(build(place, derive(cls, "apply"), optimizer=optimizer))
        fit(models[-1])
    # Adam's first steps go by the sign of a gradient.
    for one, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
    assert_same_on_replicas([*models[1].variables, *models[1].optimizer.variables])


def test_several_steps_an_execution(mirrored2):
    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        settings = {} if cls is keras.Model else {"steps_per_execution": 3}
        models.append(build(place, derive(cls, "apply"), **settings))
        logs.append(fit(models[-1])["own"])
    assert_same_weights(*models)
    np.testing.assert_allclose(*logs, **TOLERANCE)


@ROWS
def test_super_train_step(strategy, rows):
    def make(cls):
        class Calls(cls):
            def train_step(self, data):
                return super().train_step(data) | {"mine": tf.constant(3.0)}

            def test_step(self, data):
                return super().test_step(data) | {"mine": tf.constant(4.0)}

        return Calls

    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, make(cls), metrics=["accuracy"]))
        logs.append((fit(models[-1], rows), evaluate(models[-1], rows)))
    assert_same_weights(*models)
    for stock, ours in zip(*logs, strict=True):
        assert_logs(stock, ours)


def test_sample_weights(strategy):
    def make(cls):
        class Weighs(cls):
            def train_step(self, data):
                x, y, weight = data
                with tf.GradientTape() as tape:
                    y_pred = self(x, training=True)
                    loss = self.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight)
                weights = self.trainable_variables
                self.optimizer.apply(tape.gradient(loss, weights), weights)
                return {"loss": loss}

        return Weighs

    weight = np.linspace(0, 2, 25).astype("float32")
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, make(cls)))
        models[-1].fit(X, LABELS, 6, 2, 0, sample_weight=weight, shuffle=False)
    assert_same_weights(*models)


# ---- rows ------------------------------------------------------------------------------------


def counting(cls, sizes):
    """Notes, as the step runs, how many rows each replica gets."""

    def note(x):
        tf.py_function(lambda rows: sizes.append(int(rows)), [tf.shape(x)[0]], [])

    class Counts(cls):
        def train_step(self, data):
            note(data[0])
            return super().train_step(data)

        def test_step(self, data):
            note(data[0])
            return super().test_step(data)

    return Counts


@pytest.mark.parametrize("method", [fit, evaluate], ids=["fit", "evaluate"])
@pytest.mark.parametrize("rows", [25, 1])
def test_each_replica_gets_a_row(mirrored2, method, rows):
    sizes = []
    model = build(mirrored2, counting(derive(tfgpu.Model, "apply"), sizes))
    method(model, rows)
    assert len(sizes) >= 2 * (rows // 6 + 1)
    assert min(sizes) >= 1


def test_an_own_predict_step(strategy):
    class Classifies(tfgpu.Model):
        def predict_step(self, data):
            return {"label": ops.argmax(self(data), axis=-1), "logits": self(data)}

    model = build(strategy, Classifies)
    logits = np.array(model(X))
    for rows in (25, 1, 23):
        said = model.predict(X[:rows], batch_size=6, verbose=0)
        np.testing.assert_allclose(said["logits"], logits[:rows], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(said["label"], logits[:rows].argmax(-1))


# ---- state of the forward pass -----------------------------------------------------------------


@ROWS
@pytest.mark.parametrize("make", [lambda c: derive(c, "apply"), guide, tracking])
def test_batch_statistics_are_the_same_on_both_replicas(mirrored2, make, rows):
    model = build(mirrored2, make(tfgpu.Model), normalize=True)
    fit(model, rows)
    norm = model.get_layer("norm")
    assert np.abs(norm.moving_mean.numpy()).max() > 0
    assert_same_on_replicas(model.variables)


def test_batch_statistics_are_means_over_the_rows_of_both_replicas(mirrored2):
    def still():
        return keras.optimizers.SGD(0.0)

    model = build(mirrored2, derive(tfgpu.Model, "apply"), optimizer=still, normalize=True)
    hidden = model.layers[1](X[:5]).numpy()
    fit(model, 5, epochs=1)  # 3 and 2 rows.
    parts = hidden[:3], hidden[3:]
    mean = np.average([p.mean(0) for p in parts], axis=0, weights=[3, 2])
    variance = np.average([p.var(0) for p in parts], axis=0, weights=[3, 2])
    norm = model.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean.numpy(), 0.5 * mean, **TOLERANCE)
    np.testing.assert_allclose(norm.moving_variance.numpy(), 0.5 + 0.5 * variance, **TOLERANCE)


def test_batch_statistics_leave_out_a_replica_without_rows(mirrored2):
    def still():
        return keras.optimizers.SGD(0.0)

    model = build(mirrored2, derive(tfgpu.Model, "apply"), optimizer=still, normalize=True)
    hidden = model.layers[1](X[:1]).numpy()
    fit(model, 1, epochs=1)
    norm = model.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean.numpy(), 0.5 * hidden[0], **TOLERANCE)
    np.testing.assert_allclose(norm.moving_variance.numpy(), 0.5, **TOLERANCE)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_mirrored_strategy_of_one_device_runs_a_step_as_one_device_does(jit_compile):
    def trained(cls, strategy):
        class CallsSuper(cls):
            def train_step(self, data):
                return super().train_step(data)

        keras.utils.set_random_seed(1)
        with strategy.scope():
            inputs = keras.Input((6,))
            x = keras.layers.Dense(4, activation="tanh")(inputs)
            model = CallsSuper(inputs, keras.layers.Dense(1)(x))
            model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=jit_compile)
        features = np.random.RandomState(0).randn(11, 6).astype("float32")
        labels = features[:, :1]
        fitted = model.fit(features, labels, batch_size=4, epochs=2, shuffle=False, verbose=0)
        return fitted.history["loss"]

    right = trained(keras.Model, tf.distribute.get_strategy())
    came = trained(tfgpu.Model, tf.distribute.MirroredStrategy(["CPU:0"]))
    np.testing.assert_allclose(came, right, rtol=1e-5)


# ---- losses that the step computes itself ------------------------------------------------------


def weighing(cls, loss_of):
    """A step that minimises `loss_of(y, y_pred, x)`, by nothing of `compile`."""

    class Weighing(cls):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = loss_of(y, self(x, training=True), x)
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return {"own": loss}

    return Weighing


def by_weight(y, y_pred, x):
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction="mean_with_sample_weight")
    return loss(y, y_pred, sample_weight=tf.abs(x[:, 0]))


def under_a_mask(y, y_pred, x):
    loss = keras.losses.SparseCategoricalCrossentropy(True)
    y_pred._keras_mask = x[:, 0] > 0
    return loss(y, y_pred)


def summed(y, y_pred, x):
    return keras.losses.SparseCategoricalCrossentropy(True, reduction="sum")(y, y_pred) / 25.0


@pytest.mark.parametrize("loss", [by_weight, under_a_mask, summed])
def test_reductions_in_a_step_are_those_of_all_rows(mirrored2, loss):
    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        models.append(build(place, weighing(cls, loss)))
        logs.append(fit(models[-1])["own"])
    assert_same_weights(*models)
    np.testing.assert_allclose(logs[1], logs[0], **TOLERANCE)


@pytest.mark.filterwarnings("ignore:A step (minimises|assigns|returns)")
def test_a_loss_in_a_function_of_its_own_is_said_to_be_averaged_by_rows(mirrored2):
    model = build(mirrored2, weighing(tfgpu.Model, tf.function(by_weight)))
    with pytest.warns(UserWarning, match="which cannot meet there"):
        fit(model)
