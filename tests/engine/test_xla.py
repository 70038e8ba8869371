"""XLA: what it compiles, what it cannot compile, and who is told."""

import functools
import re
import warnings

import keras
import numpy as np
import pytest
import replicas
import tensorflow as tf
from replicas import one_device
from xla_models import X, Y, build, dense, fit, is_compiled

import tfgpu

# Closer than others' weights have to be.
assert_same_weights = functools.partial(replicas.assert_same_weights, atol=1e-6)


class Strings(keras.layers.Layer):
    """Adds the length of numbers written twice, which is always more than 0."""

    def call(self, x):
        text = tf.strings.as_string(x)
        length = tf.strings.length(tf.strings.join([text, text]))
        return x + 0.5 * tf.cast(length > 0, x.dtype)


class Python(keras.layers.Layer):
    """Asks Python."""

    def call(self, x):
        y = tf.py_function(lambda x: 2.0 * x, [x], x.dtype)
        y.set_shape(x.shape)
        return y


LAYERS = {
    "strings": (Strings, "AsString|StringJoin|StringLength"),
    "python": (Python, "EagerPyFunc"),
}


def with_layer(layer):
    """A model with a layer between two dense ones."""

    def make(kind):
        inputs = keras.Input((4,))
        x = keras.layers.Dense(3, activation="tanh", name="before")(inputs)
        x = layer(name="strange")(x)
        return kind(inputs, keras.layers.Dense(2, name="after")(x))

    return make


def build_automatically(monkeypatch, strategy, make, **settings):
    """A model that is compiled without a word on XLA where there is a GPU."""
    real = tf.config.list_logical_devices
    with monkeypatch.context() as patch:
        patch.setattr(
            tf.config,
            "list_logical_devices",
            lambda kind=None: ["a GPU"] if kind == "GPU" else real(kind),
        )
        model = build(tfgpu.Model, strategy, make, **settings)
    assert model.jit_compile
    return model


RUNS = {
    "fit": fit,
    "evaluate": lambda model: model.evaluate(X, Y, batch_size=5, verbose=0),
    "predict": lambda model: model.predict(X, batch_size=5, verbose=0),
}


def xla_warnings(caught):
    return [str(warning.message) for warning in caught if "XLA" in str(warning.message)]


# ---- it compiles ---------------------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [True, False])
def test_it_compiles_where_it_is_told_to(strategy, jit_compile):
    model = build(tfgpu.Model, strategy, jit_compile=jit_compile)
    fit(model)
    model.evaluate(X, Y, batch_size=5, verbose=0)
    assert is_compiled(model.train_function) == jit_compile
    assert is_compiled(model.test_function) == jit_compile


def test_it_compiles_of_itself_where_there_is_a_gpu(strategy, monkeypatch):
    model = build_automatically(monkeypatch, strategy, dense)
    fit(model)
    assert is_compiled(model.train_function)


def test_it_does_not_compile_of_itself_on_a_cpu(strategy):
    model = build(tfgpu.Model, strategy)
    assert not model.jit_compile


def test_it_trains_as_stock(strategy):
    stock, ours = build(keras.Model, one_device()), build(tfgpu.Model, strategy, jit_compile=True)
    np.testing.assert_allclose(fit(ours)["loss"], fit(stock)["loss"], rtol=1e-4)
    assert_same_weights(stock, ours)


# ---- it was told to compile what it cannot -------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_that_it_cannot_compile_is_an_error_that_names_it(strategy, layer, run):
    kind, operation = LAYERS[layer]
    model = build(tfgpu.Model, strategy, with_layer(kind), jit_compile=True)
    with pytest.raises(ValueError, match="'strange'") as caught:
        RUNS[run](model)
    assert re.search(operation, str(caught.value))


def looked_up(kind):
    inputs = keras.Input((), dtype="string")
    numbers = keras.layers.StringLookup(vocabulary=["a", "b"], name="lookup")(inputs)
    return kind(inputs, keras.layers.Dense(2)(keras.layers.Embedding(3, 2)(numbers)))


WORDS = np.array(["a", "b", "c", "a"])


def test_a_layer_that_says_so_itself_is_left_alone_by_keras(strategy):
    """Keras turns XLA off, and says so, for a model with a layer of `supports_jit = False`."""
    words = tf.constant(WORDS)
    stock = build(keras.Model, one_device(), looked_up, jit_compile=False)
    with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
        ours = build(tfgpu.Model, strategy, looked_up, jit_compile=True)
    losses = [fit(model, words, Y[:4], batch_size=3)["loss"] for model in (stock, ours)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_a_lookup_that_keras_does_not_see_is_an_error_that_names_the_layer(strategy, run):
    class Lookup(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            # In a lambda, where Keras does not look for layers.
            table = keras.layers.StringLookup(vocabulary=["0", "1"])
            self.numbers = lambda text: table(text)

        def call(self, x):
            numbers = self.numbers(tf.strings.as_string(tf.cast(x > 0, tf.int32)))
            return x + tf.cast(numbers, x.dtype)

    model = build(tfgpu.Model, strategy, with_layer(Lookup), jit_compile=True)
    with pytest.raises(ValueError, match="'strange'"):
        RUNS[run](model)


def test_a_layer_in_a_layer_is_named(strategy):
    def make(kind):
        inputs = keras.Input((4,))
        block = keras.Sequential(
            [keras.layers.Dense(3), Strings(name="strange"), keras.layers.Dense(2)], name="block"
        )
        return kind(inputs, block(inputs))

    model = build(tfgpu.Model, strategy, make, jit_compile=True)
    with pytest.raises(ValueError, match="'strange'"):
        fit(model)


def test_a_layer_of_a_subclass_is_named(strategy):
    class Own(tfgpu.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)
            self.odd = Strings(name="strange")

        def call(self, x):
            return self.odd(self.dense(x))

    model = build(tfgpu.Model, strategy, lambda kind: Own(), jit_compile=True)
    with pytest.raises(ValueError, match="'strange'"):
        fit(model)


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_the_error_does_not_depend_on_the_steps_of_an_execution(strategy, steps_per_execution):
    model = build(
        tfgpu.Model,
        strategy,
        with_layer(Strings),
        jit_compile=True,
        steps_per_execution=steps_per_execution,
    )
    with pytest.raises(ValueError, match="'strange'"):
        fit(model)


def test_compiled_again_without_it_the_model_trains(strategy):
    stock = build(keras.Model, one_device(), with_layer(Strings), jit_compile=False)
    model = build(tfgpu.Model, strategy, with_layer(Strings), jit_compile=True)
    with pytest.raises(ValueError, match="'strange'"):
        fit(model)
    with strategy.scope():
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    np.testing.assert_allclose(fit(model)["loss"], fit(stock)["loss"], rtol=1e-4)


# ---- nobody told it ------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_of_itself_it_leaves_such_a_layer_alone_and_says_so_once(strategy, layer, monkeypatch):
    model = build_automatically(monkeypatch, strategy, with_layer(LAYERS[layer][0]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model)
    (message,) = xla_warnings(caught)
    assert "'strange'" in message
    assert re.search(LAYERS[layer][1], message)
    assert not is_compiled(model.train_function)


def test_of_itself_it_says_so_once_of_training_and_validation(strategy, monkeypatch):
    model = build_automatically(monkeypatch, strategy, with_layer(Strings))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, validation_data=(X, Y))
    assert len(xla_warnings(caught)) == 1


@pytest.mark.filterwarnings("ignore:.*XLA")
@pytest.mark.parametrize("layer", LAYERS)
def test_of_itself_it_trains_such_a_layer_as_stock(strategy, layer, monkeypatch):
    make = with_layer(LAYERS[layer][0])
    stock = build(keras.Model, one_device(), make, jit_compile=False)
    ours = build_automatically(monkeypatch, strategy, make)
    np.testing.assert_allclose(fit(ours)["loss"], fit(stock)["loss"], rtol=1e-4)
    assert_same_weights(stock, ours)


@pytest.mark.filterwarnings("ignore:.*XLA")
@pytest.mark.parametrize("run", ["evaluate", "predict"])
def test_of_itself_it_evaluates_and_predicts_such_a_layer_as_stock(strategy, run, monkeypatch):
    stock = build(keras.Model, one_device(), with_layer(Strings), jit_compile=False)
    ours = build_automatically(monkeypatch, strategy, with_layer(Strings))
    np.testing.assert_allclose(RUNS[run](ours), RUNS[run](stock), rtol=1e-4, atol=1e-6)


# ---- replicas that meet in the middle ------------------------------------------------------


def normalized(kind):
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5, synchronized=True, name="norm")(x)
    return kind(inputs, keras.layers.Dense(2)(x))


def test_synchronized_normalization_under_replicas_says_that_it_leaves_xla(mirrored2):
    model = build(tfgpu.Model, mirrored2, normalized, jit_compile=True)
    with pytest.warns(UserWarning, match="norm is synchronized"):
        fit(model)


@pytest.mark.filterwarnings("ignore:.*synchronized.*")
def test_synchronized_normalization_under_replicas_equals_one_device(mirrored2):
    stock = build(keras.Model, one_device(), normalized, jit_compile=False)
    ours = build(tfgpu.Model, mirrored2, normalized, jit_compile=True)
    np.testing.assert_allclose(fit(ours)["loss"], fit(stock)["loss"], rtol=1e-3)
    assert_same_weights(stock, ours, rtol=1e-3, atol=1e-4)  # It computes E(x^2) - E(x)^2.


def test_synchronized_normalization_of_one_device_says_nothing():
    model = build(tfgpu.Model, one_device(), normalized, jit_compile=True)
    fit(model)
    assert is_compiled(model.train_function)


def own_step(kind):
    class Own(kind):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    return dense(Own)


def test_an_own_step_under_replicas_says_that_it_leaves_xla(mirrored2):
    model = build(tfgpu.Model, mirrored2, own_step, jit_compile=True)
    with pytest.warns(UserWarning, match="XLA"):
        fit(model)


@pytest.mark.filterwarnings("ignore:.*XLA")
def test_an_own_step_under_replicas_trains_as_stock(mirrored2):
    stock = build(keras.Model, one_device(), own_step, jit_compile=False)
    ours = build(tfgpu.Model, mirrored2, own_step, jit_compile=True)
    for model in (stock, ours):
        fit(model)
    assert_same_weights(stock, ours)
