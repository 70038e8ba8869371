"""Losses and metrics of any shape: what two replicas say and learn is what one device does.

Right is what stock `keras.Model` says on one device of the same batches: the history of two epochs,
the weights after them, and an evaluation.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from loss_runs import (
    LAST,
    activity,
    activity_of_steps,
    assert_as_stock,
    classes,
    cross_entropy,
    distributed,
    kernel,
    layer_activity,
    mse,
    penalty,
    penalty_of_steps,
    pixels,
    plain,
    run,
    steps,
)
from replicas import one_device, slow, ways

import tfgpu

L = keras.layers
ops = keras.ops
way = ways("x1", "x2", "x2-xla")


# ---- shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "rows", "batch_size"),
    [(pixels, 12, 8), (steps, 10, 5), (activity, 21, 8), (penalty, 21, 8)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_small_cases_that_once_were_wrong(way, network, rows, batch_size):
    data = classes(network, rows)
    assert_as_stock(way, network, data, batch_size, loss=cross_entropy(), rate=0.5)


@LAST
@pytest.mark.parametrize("network", [steps, distributed], ids=lambda network: network.__name__)
def test_a_loss_for_each_step(mirrored2, network, rows, batch_size):
    data = classes(network, rows)
    settings = {"loss": cross_entropy(), "metrics": lambda: ["accuracy"]}
    assert_as_stock((mirrored2, False), network, data, batch_size, **settings)


@pytest.mark.parametrize("rows", [9, 11])
def test_a_loss_for_each_pixel(way, rows):
    settings = {"loss": cross_entropy(), "metrics": lambda: ["accuracy"]}
    assert_as_stock(way, pixels, classes(pixels, rows), 4, **settings)


def test_a_squared_error_of_rank_3(way):
    x = classes(steps, 9)[0]
    y = np.random.default_rng(3).normal(size=(9, 3, 2)).astype("float32")
    settings = {"loss": lambda: "mse", "metrics": lambda: ["mae", "mse"]}
    assert_as_stock(way, steps, (x, y), 4, **settings)


# ---- losses beside the compiled one ----------------------------------------------------------


@LAST
@pytest.mark.parametrize(
    "network",
    [activity, activity_of_steps, penalty, slow(penalty_of_steps), slow(kernel), layer_activity],
    ids=lambda network: network.__name__,
)
def test_losses_of_layers(mirrored2, network, rows, batch_size):
    data = classes(network, rows)
    assert_as_stock((mirrored2, False), network, data, batch_size, loss=cross_entropy())


@pytest.mark.parametrize(
    "network", [activity_of_steps, slow(kernel)], ids=lambda network: network.__name__
)
def test_losses_of_layers_under_xla(mirrored2, network):
    data = classes(network, 9)
    assert_as_stock((mirrored2, True), network, data, 4, loss=cross_entropy())


def only_added():
    """A model that learns from what its layers add, and is compiled without a loss."""

    class Close(L.Layer):
        def call(self, inputs):
            self.add_loss(ops.mean(ops.square(inputs - 1.0)))
            return inputs

    inputs = keras.Input((5,))
    return inputs, Close()(L.Dense(3)(inputs))


@pytest.mark.parametrize("rows", [slow(8), 9, slow(11)])
def test_added_losses_alone(way, rows):
    x, labels = classes(plain, rows)
    assert_as_stock(way, only_added, (x, labels), 4)


def test_an_added_loss_counts_once(mirrored2):
    class Constant(L.Layer):
        def call(self, values):
            self.add_loss(ops.convert_to_tensor(3.0))
            return values

    def network():
        inputs = keras.Input((5,))
        return inputs, L.Dense(2)(Constant()(inputs))

    x, labels = classes(plain, 9)
    without, *_ = run(tfgpu.Model, mirrored2, plain_alone, (x, labels), 4, loss=cross_entropy())
    with_it, *_ = run(tfgpu.Model, mirrored2, network, (x, labels), 4, loss=cross_entropy())
    np.testing.assert_allclose(np.subtract(with_it["loss"], without["loss"]), 3.0, rtol=1e-5)


def plain_alone():
    inputs = keras.Input((5,))
    return inputs, L.Dense(2)(inputs)


# ---- own compute_loss ------------------------------------------------------------------------


def own(kind):
    def network(cls):
        class Own(cls):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                if kind == "without":
                    rows = keras.losses.mean_squared_error(y, y_pred)
                    return ops.mean(rows)
                loss = super().compute_loss(x, y, y_pred, sample_weight, training)
                if kind == "constant":
                    return loss + 5.0
                if kind == "twice":
                    return 2.0 * loss
                return loss + 0.1 * ops.mean(ops.abs(y_pred))

        return Own(*plain())

    network.of_class = True
    return network


@pytest.mark.parametrize("rows", [slow(8), 9, slow(11)])
@pytest.mark.parametrize("kind", ["constant", "twice", "of_outputs", "without"])
def test_own_compute_loss(mirrored2, kind, rows):
    x = classes(plain, rows)[0]
    y = np.random.default_rng(3).normal(size=(rows, 2)).astype("float32")
    settings = {} if kind == "without" else {"loss": mse()}
    settings["metrics"] = lambda: ["mae"]
    assert_as_stock((mirrored2, False), own(kind), (x, y), 4, rate=0.1, **settings)


@pytest.mark.parametrize("kind", ["of_outputs", slow("without")])
def test_own_compute_loss_under_xla(mirrored2, kind):
    x = classes(plain, 9)[0]
    y = np.random.default_rng(3).normal(size=(9, 2)).astype("float32")
    settings = {} if kind == "without" else {"loss": mse()}
    assert_as_stock((mirrored2, True), own(kind), (x, y), 4, rate=0.1, **settings)


@pytest.mark.parametrize("rows", [1, slow(8), 9])
def test_a_constant_of_compute_loss_counts_once(way, rows):
    strategy, jit_compile = way
    x = classes(plain, rows)[0]
    y = np.zeros((rows, 2), "float32")
    said = []
    for network in (plain, own("constant")):
        settings = {"jit_compile": jit_compile, "loss": mse(), "rate": 0.1}
        history, _, evaluated = run(tfgpu.Model, strategy, network, (x, y), 4, **settings)
        said.append([*history["loss"], evaluated["loss"]])
    np.testing.assert_allclose(np.subtract(said[1], said[0]), 5.0, rtol=1e-5)


# ---- scalars ---------------------------------------------------------------------------------


def scalar_error(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred))


def scalar_distance(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred))


def numbers(rows):
    y = np.random.default_rng(3).normal(size=(rows, 2)).astype("float32")
    return classes(plain, rows)[0], y


@LAST
def test_a_loss_function_that_gives_a_scalar(mirrored2, rows, batch_size):
    data = numbers(rows)
    assert_as_stock((mirrored2, False), plain, data, batch_size, loss=lambda: scalar_error)


def test_a_loss_function_that_gives_a_scalar_under_xla(mirrored2):
    assert_as_stock((mirrored2, True), plain, numbers(9), 4, loss=lambda: scalar_error)


def test_a_metric_function_that_gives_a_scalar(way):
    settings = {"loss": mse(), "metrics": lambda: [scalar_distance], "rate": 0.1}
    assert_as_stock(way, plain, numbers(12), 4, **settings)


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (9, 4), slow(11, 4)])
def test_a_metric_function_that_gives_a_scalar_is_finite(way, rows, batch_size):
    strategy, jit_compile = way
    settings = {"loss": mse(), "metrics": lambda: [scalar_distance], "rate": 0.1}
    history, _, said = run(
        tfgpu.Model, strategy, plain, numbers(rows), batch_size, jit_compile=jit_compile, **settings
    )
    assert np.isfinite(history["scalar_distance"]).all()
    assert np.isfinite(said["scalar_distance"])


@LAST
def test_a_metric_function_that_gives_a_scalar_says_what_one_device_says(
    mirrored2, rows, batch_size
):
    settings = {"loss": mse(), "metrics": lambda: [scalar_distance], "rate": 0.1}
    assert_as_stock((mirrored2, False), plain, numbers(rows), batch_size, **settings)


def of_rows(layer, values):
    return keras.ops.mean(values**2, axis=-1)


def of_weights(layer, values):
    return 0.1 * layer.scale**2


def of_unknown_rank(layer, values):
    return tf.py_function(lambda v: tf.reduce_mean(v**2, axis=-1), [values], tf.float32)


@pytest.mark.filterwarnings("ignore:A loss of the shape .* was added")
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("penalty", [of_rows, of_weights, of_unknown_rank])
def test_losses_of_rows_that_are_added_add_up_over_the_replicas(mirrored2, penalty, static):
    class Penalised(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, values):
            self.add_loss(penalty(self, values))
            return values * self.scale

    found = []
    x = np.random.default_rng(0).normal(size=(21, 5)).astype("float32")
    for cls, place in ((keras.Model, tf.distribute.get_strategy()), (tfgpu.Model, mirrored2)):
        keras.utils.set_random_seed(1)
        with place.scope():
            inputs = keras.Input((5,))
            # As many units as a replica has rows.
            hidden = keras.layers.Dense(4)(inputs)
            model = cls(inputs, keras.layers.Dense(1)(Penalised()(hidden)))
            model.compile("sgd", "mse")
        data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8, drop_remainder=static)
        history = model.fit(data, epochs=2, shuffle=False, verbose=0).history
        found.append([*history["loss"], model.evaluate(data, verbose=0)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


# ---- sums ------------------------------------------------------------------------------------


class SumOfSums(keras.losses.Loss):
    def __init__(self):
        super().__init__(reduction="sum")
        self.inner = keras.losses.MeanSquaredError(reduction="sum")

    def call(self, y_true, y_pred):
        return self.inner(y_true, y_pred)


class OfEachColumn(keras.losses.Loss):
    """The mean over the rows, of each of three columns."""

    def __init__(self, reduction):
        super().__init__(reduction=reduction)

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), axis=0)


SUMS = {
    "of sums": SumOfSums,
    "of columns": lambda: OfEachColumn("sum"),
    "mean of columns": lambda: OfEachColumn("sum_over_batch_size"),
    "of one number": lambda: keras.losses.Dice(reduction="sum"),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_of_what_is_no_value_a_row(way, name):
    def three():
        inputs = keras.Input((4,))
        return inputs, L.Dense(3, activation="sigmoid", bias_initializer="ones")(inputs)

    rng = np.random.default_rng(0)
    # The loss of one number is no mean over rows, unless these are all the same.
    rows = 1 if name == "of one number" else 9
    x = np.repeat(rng.normal(size=(rows, 4)), 9 // rows, axis=0).astype("float32")
    y = np.repeat(rng.uniform(size=(rows, 3)), 9 // rows, axis=0).astype("float32")
    assert_as_stock(way, three, (x, y), 4, loss=SUMS[name], rate=0.05)


def test_a_number_of_a_batch_under_a_mask(way):
    """Keras leaves it as it is, and so counts it by rows."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, size=(9, 4)).astype("int32")
    y = rng.normal(size=(9, 4, 2)).astype("float32")

    def masked():
        inputs = keras.Input((4,), dtype="int32")
        return inputs, L.Dense(2)(L.Embedding(5, 3, mask_zero=True)(inputs))

    def loss():
        return lambda y_true, y_pred: ops.mean(ops.square(y_true - y_pred))

    assert_as_stock(way, masked, (x, y), 4, loss=loss)


def test_a_sum_inside_another_loss(mirrored2):
    def divided(y_true, y_pred):
        return keras.losses.MeanSquaredError(reduction="sum")(y_true, y_pred) / 4.0

    with mirrored2.scope():
        inputs = keras.Input((4,))
        model = tfgpu.Model(inputs, L.Dense(3)(inputs))
        model.compile("sgd", divided)
    found = model.evaluate(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
    right = np.mean((1 - model.predict(np.ones((4, 4)), verbose=0)) ** 2)
    np.testing.assert_allclose(found, right, rtol=1e-5)


def test_float64_is_exact_to_its_digits(mirrored2):
    def wide():
        inputs = keras.Input((4,), dtype="float64")
        return inputs, L.Dense(3, dtype="float64")(inputs)

    rng = np.random.default_rng(0)
    data = rng.normal(size=(9, 4)), rng.normal(size=(9, 3))
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        stock, ours = (
            run(cls, place, wide, data, 4, loss=mse())
            for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2))
        )
    finally:
        keras.config.set_floatx(before)
    np.testing.assert_allclose(ours[0]["loss"], stock[0]["loss"], rtol=1e-13)
    for one, other in zip(stock[1], ours[1], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-12)
