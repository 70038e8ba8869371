"""XLA: metrics, those that it cannot compile too, and what reaches metrics and losses under it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import one_device
from versions import KERAS
from xla_models import Distinct, X, Y, build, fit, is_compiled, outside_xla

import tfgpu

RNG = np.random.default_rng(1)


class Text(keras.metrics.Metric):
    """Counts rows by way of strings."""

    def __init__(self, name="text", **options):
        super().__init__(name=name, **options)
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        text = tf.strings.length(tf.strings.as_string(y_pred[:, 0]))
        self.count.assign_add(tf.reduce_sum(tf.cast(text > 0, tf.float32)))

    def result(self):
        return self.count.value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "right"), [(Distinct, np.sum(Y[:, 0] > 0)), (Text, len(Y))], ids=["unique", "text"]
)
def test_a_metric_that_it_cannot_compile_works(strategy, metric, right):
    with strategy.scope():
        ours = metric()
    model = build(tfgpu.Model, strategy, jit_compile=True, metrics=[ours])
    history = fit(model, epochs=1)
    logs = model.evaluate(X, Y, batch_size=5, verbose=0, return_dict=True)
    assert history[ours.name] == [right]
    assert logs[ours.name] == right
    assert is_compiled(model.train_function)


def squared(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_pred - y_true), axis=-1)


@pytest.mark.parametrize(
    ("metrics", "together"),
    [(["mse"], True), ([squared], False), ([Distinct], False)],
    ids=["of_keras", "function", "class"],
)
def test_the_metrics_of_keras_are_compiled_with_the_step_of_one_device(metrics, together):
    made = [metric() if isinstance(metric, type) else metric for metric in metrics]
    model = build(tfgpu.Model, one_device(), jit_compile=True, metrics=made)
    fit(model)
    model.evaluate(X, Y, batch_size=5, verbose=0)
    for function in (model.train_function, model.test_function):
        assert is_compiled(function)
        # What changes the variables of metrics.
        assert ("AssignVariableOp" not in outside_xla(function)) == together


def softmax(kind):
    inputs = keras.Input((4,))
    return kind(
        inputs, keras.layers.Dense(3, activation="softmax", kernel_initializer="ones")(inputs)
    )


def steep(model):
    """Logits that are 100 apart, of which the probabilities are 0 in float32."""
    kernel, bias = model.get_weights()
    model.set_weights([np.zeros_like(kernel), np.array([0.0, 100.0, 200.0], "float32")])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_logits_reach_the_metrics(strategy, jit_compile):
    labels = np.eye(3, dtype="float32")[np.arange(12) % 3]
    settings = {"loss": "categorical_crossentropy", "jit_compile": jit_compile}
    with strategy.scope():
        metric = keras.metrics.CategoricalCrossentropy(name="entropy")
    model = build(tfgpu.Model, strategy, softmax, metrics=[metric], **settings)
    steep(model)
    logs = model.evaluate(X, labels, batch_size=5, verbose=0, return_dict=True)
    # 200, 100 and 0 in turn; of the clipped probabilities no entropy is more than 16.2.
    np.testing.assert_allclose(logs["loss"], 100.0, rtol=1e-4)
    np.testing.assert_allclose(logs["entropy"], 100.0, rtol=1e-4)


def test_logits_reach_the_metrics_of_training(strategy):
    labels = np.eye(3, dtype="float32")[np.arange(12) % 3]
    histories = []
    for kind, place, jit_compile in (
        (keras.Model, one_device(), False),
        (tfgpu.Model, strategy, True),
    ):
        with place.scope():
            metric = keras.metrics.CategoricalCrossentropy(name="entropy")
        model = build(
            kind,
            place,
            softmax,
            loss="categorical_crossentropy",
            metrics=[metric],
            jit_compile=jit_compile,
        )
        steep(model)
        histories.append(fit(model, X, labels))
    np.testing.assert_allclose(histories[1]["entropy"], histories[0]["entropy"], rtol=1e-4)
    assert histories[1]["entropy"][0] > 20


def masked(kind):
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(7, 3, mask_zero=True)(inputs)
    return kind(inputs, keras.layers.Dense(2)(x))


TOKENS = np.where(np.arange(5) < 1 + np.arange(12)[:, None] % 5, RNG.integers(1, 7, (12, 5)), 0)


@pytest.mark.filterwarnings("ignore:The replicas exchange")  # The sum of the mask.
@pytest.mark.parametrize("jit_compile", [False, True])
def test_masks_reach_the_metrics(strategy, jit_compile):
    y = RNG.normal(size=(12, 5, 2)).astype("float32")
    results = []
    for kind, place, jit in (
        (keras.Model, one_device(), False),
        (tfgpu.Model, strategy, jit_compile),
    ):
        model = build(
            kind,
            place,
            masked,
            jit_compile=jit,
            metrics=["mae"],
            weighted_metrics=["mse"],
        )
        # Whole batches: the loss of stock Keras weighs those with fewer rows as it does others.
        logs = model.evaluate(TOKENS, y, batch_size=12, verbose=0, return_dict=True)
        results.append({name: logs[name] for name in ("mae", "mse")})
        results[-1]["output"] = model(TOKENS).numpy()
    stock, ours = results
    np.testing.assert_allclose(ours["mse"], stock["mse"], rtol=1e-4)
    np.testing.assert_allclose(ours["mae"], stock["mae"], rtol=1e-4)
    # Keras 3.10 heeds a mask where there are weights alone.
    kept = TOKENS > (0 if KERAS > (3, 10) else -1)
    by_hand = np.mean((ours["output"] - y) ** 2, axis=-1)[kept].mean()
    np.testing.assert_allclose(ours["mse"], by_hand, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The replicas exchange")  # The sum of the mask.
def test_masks_reach_the_loss(strategy):
    y = RNG.normal(size=(12, 5, 2)).astype("float32")
    losses = []
    for kind, place, jit_compile in (
        (keras.Model, one_device(), False),
        (tfgpu.Model, strategy, True),
    ):
        model = build(kind, place, masked, jit_compile=jit_compile)
        losses.append(fit(model, TOKENS, y, batch_size=6)["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
