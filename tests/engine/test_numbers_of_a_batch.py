"""Losses and metrics that are no mean over rows are those of all rows, as on one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import assert_logs, assert_same_weights, copies, one_device, slow

import tfgpu

L = keras.layers
ops = keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(25, 8)).astype("float32")
Y = RNG.uniform(size=(25, 3)).astype("float32")
WEIGHTS = RNG.uniform(0.2, 2.0, size=25).astype("float32")


def root(y_true, y_pred):
    return ops.sqrt(ops.mean(ops.square(y_true - y_pred)))


def summed(y_true, y_pred):
    return 0.1 * ops.sum(ops.square(y_true - y_pred))


def correlation(y_true, y_pred):
    a, b = y_true - ops.mean(y_true), y_pred - ops.mean(y_pred)
    return 1 - ops.sum(a * b) / ops.sqrt(ops.sum(a * a) * ops.sum(b * b) + 1e-6)


def covariance_penalty(y_true, y_pred):
    centred = y_pred - ops.mean(y_pred, axis=0)
    covariance = ops.transpose(centred) @ centred / ops.cast(ops.shape(y_pred)[0], "float32")
    return ops.sum(ops.square(covariance)) + ops.mean(ops.square(y_true - y_pred))


def of_chosen_rows(y_true, y_pred):
    chosen = tf.boolean_mask(ops.square(y_true - y_pred), y_true[:, 0] > 0.5)
    return ops.mean(chosen)


def of_pairs(y_true, y_pred):
    """A value a row, made of all others, as in NT-Xent."""
    near = ops.matmul(y_pred, ops.transpose(y_pred))
    same = ops.cast(ops.abs(y_true[:, :1] - ops.transpose(y_true[:, :1])) < 0.3, "float32")
    return ops.categorical_crossentropy(same / ops.sum(same, -1, keepdims=True), near, True)


def of_normalized_rows(y_true, y_pred):
    return ops.mean(ops.square(y_true - (y_pred - ops.mean(y_pred, axis=0))), axis=-1)


def time_major(y_true, y_pred):
    return ops.transpose(ops.square(y_true - y_pred))


FUNCTIONS = [
    *(root, summed, correlation, covariance_penalty, of_chosen_rows, of_pairs),
    *(of_normalized_rows, time_major),
]
LOSSES = {function.__name__: lambda function=function: function for function in FUNCTIONS} | {
    "dice": keras.losses.Dice,
    "tversky": keras.losses.Tversky,
    "circle": lambda: Circle(gamma=2.0),
    "sum of the transposed": lambda: Summed(reduction="sum"),
}
QUICK = ("root", "summed", "correlation", "of_pairs", "dice", "sum of the transposed")


class Circle(keras.losses.Circle):
    def call(self, y_true, y_pred):
        labels = ops.cast(y_true[:, 0] > 0.5, "int32")
        return super().call(labels, ops.normalize(y_pred, axis=-1))


class Summed(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return time_major(y_true, y_pred)


def build(cls, strategy, loss, **compiled):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        inputs = keras.Input((8,))
        outputs = L.Dense(3, activation="sigmoid")(L.Dense(6, activation="relu")(inputs))
        model = cls(inputs, outputs)
        settings = {"jit_compile": False} | compiled
        model.compile(keras.optimizers.SGD(0.1), loss(), **settings)
    return model


def assert_as_one_device(strategy, loss, data=(X, Y), rows=25, **compiled):
    data = [part[:rows] for part in data]
    fit = {"batch_size": 6, "epochs": 2, "shuffle": False, "verbose": 0}
    found = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(cls, place, loss, **compiled)
        found.append((model, model.fit(*data[:2], sample_weight=(data + [None])[2], **fit).history))
        evaluated = model.evaluate(*data[:2], batch_size=6, verbose=0, return_dict=True)
        found[-1][1].update({f"evaluated_{name}": value for name, value in evaluated.items()})
    (stock, expected), (ours, actual) = found
    assert_same_weights(stock, ours)
    assert_logs(expected, actual)


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in LOSSES])
@pytest.mark.parametrize("rows", [25, slow(24)])
def test_a_loss_that_is_no_mean(mirrored2, name, rows):
    assert_as_one_device(mirrored2, LOSSES[name], rows=rows)


@pytest.mark.parametrize("function", [root, slow(of_pairs)])
def test_a_metric_that_is_no_mean(mirrored2, function):
    assert_as_one_device(mirrored2, lambda: "mse", metrics=[function])


@pytest.mark.parametrize("name", ["root", slow("of_pairs"), slow("dice")])
def test_its_product_with_weights(mirrored2, name):
    assert_as_one_device(mirrored2, LOSSES[name], (X, Y, WEIGHTS))


OF_OTHER_ROWS = [
    lambda y, p: ops.sum(p * ops.roll(p, 1, axis=0), axis=-1),
    lambda y, p: ops.sum(p * p[::-1], axis=-1),
    lambda y, p: ops.sum(ops.cumsum(p, axis=0), axis=-1),
    lambda y, p: ops.sum(ops.square(p[1:] - p[:-1]), axis=-1),
    lambda y, p: ops.sum(tf.nn.softmax(p, axis=0) * y, axis=-1),
    lambda y, p: tf.boolean_mask(ops.sum(ops.abs(y - p), axis=-1), y[:, 0] > 0.5),
    lambda y, p: ops.sort(ops.sum(p, axis=-1)) * y[:, 0],
]


def test_metrics_of_values_that_are_made_of_other_rows(mirrored2):
    assert_as_one_device(mirrored2, lambda: "mse", metrics=OF_OTHER_ROWS)


@pytest.mark.parametrize("function", [slow(f) for f in OF_OTHER_ROWS[:5]] + OF_OTHER_ROWS[5:6])
def test_a_loss_of_values_that_are_made_of_other_rows(mirrored2, function):
    assert_as_one_device(mirrored2, lambda: function)


class OwnCall(keras.losses.Loss):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return root(y_true, y_pred) + ops.mean(of_pairs(y_true, y_pred))


class Each(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return of_pairs(y_true, y_pred)


@pytest.mark.parametrize("loss", [OwnCall, lambda: Each(reduction=None)])
def test_a_loss_with_a_call_of_its_own_and_one_that_is_not_reduced(mirrored2, loss):
    assert_as_one_device(mirrored2, loss)


def test_steps_of_which_the_last_has_fewer_rows_in_one_execution(mirrored2):
    assert_as_one_device(mirrored2, lambda: of_pairs, rows=22, steps_per_execution=3)


def trained_as_both(strategy, own):
    """Models of a class that `own` derives, trained by stock Keras and by us."""
    models = [
        build(own(cls), place, lambda: "mse")
        for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy))
    ]
    for model in models:
        model.fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    return models


def test_a_compute_loss_that_gives_a_value_a_row(mirrored2):
    def own(cls):
        class Own(cls):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                return of_pairs(y, y_pred)

        return Own

    assert_same_weights(*trained_as_both(mirrored2, own))


def test_a_compute_loss_of_ones_own(mirrored2):
    def own(cls):
        class Own(cls):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
                loss = super().compute_loss(x, y, y_pred, sample_weight, training)
                return ops.sqrt(loss + ops.sum(y_pred) ** 2)

        return Own

    assert_same_weights(*trained_as_both(mirrored2, own))


def test_sums_and_vectors_that_a_layer_adds(mirrored2):
    class Adding(L.Layer):
        def call(self, values):
            self.add_loss(0.01 * ops.sum(ops.abs(values)))
            self.add_loss(0.1 * ops.square(ops.mean(values, axis=0)))
            self.add_loss(0.1 * ops.sum(ops.matmul(values, ops.transpose(values)) ** 2, axis=-1))
            return values

    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        keras.utils.set_random_seed(1)
        with place.scope():
            inputs = keras.Input((8,))
            models.append(cls(inputs, Adding()(L.Dense(3)(inputs))))
            models[-1].compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        models[-1].fit(X, Y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    assert_same_weights(*models)


def test_with_xla_a_mean_by_hand_needs_no_exchange(mirrored2):
    def mean(y_true, y_pred):
        count = ops.cast(ops.shape(y_pred)[0], "float32")
        return ops.sum(ops.square(y_true - y_pred)) / count

    assert_as_one_device(mirrored2, lambda: mean, jit_compile=True)


def test_what_nobody_sees_through_is_said(mirrored2):
    model = build(tfgpu.Model, mirrored2, lambda: tf.function(root))
    with pytest.warns(UserWarning, match="inside a tf.function.*averaged by rows"):
        model.fit(X, Y, batch_size=6, verbose=0)


def count(x):
    return tf.cast(tf.shape(x)[0], tf.float32)


def sinkhorn(scores, rounds=5):
    for _ in range(rounds):
        scores = scores / tf.reduce_sum(scores, axis=0, keepdims=True) / 8.0
        scores = scores / tf.reduce_sum(scores, axis=1, keepdims=True) / count(scores)
    return scores


def gathered_weights(x, y):
    classes = tf.cast(y[:, 0] > 0.5, tf.int32)
    counts = tf.math.bincount(classes, minlength=2, maxlength=2)
    return tf.reduce_mean(x[:, 0] / tf.cast(tf.gather(counts, classes) + 1, tf.float32))


# What is easily taken for a mean, a sum or a value a row, and is none.
NUMBERS = {
    "affine over rows": lambda x, y: (tf.reduce_sum(x) + 10.0) / count(x),
    "sum over chosen": lambda x, y: (
        tf.reduce_sum(x[:, 0]) / (count(tf.boolean_mask(x, x[:, 0] > 0)) + 1.0)
    ),
    "number chosen": lambda x, y: (
        tf.reduce_sum(x) / tf.cast(tf.shape(tf.where(y[:, 0] > 0.2))[0] + 1, tf.float32)
    ),
    "equal to the largest": lambda x, y: tf.reduce_sum(
        tf.cast(x[:, 0] == tf.reduce_max(x[:, 0]), tf.float32)
    ),
    "if any": lambda x, y: tf.reduce_sum(tf.where(tf.reduce_any(x > 2.0), x[:, 0], 0.0)),
    "weights of classes": gathered_weights,
    "rolled": lambda x, y: tf.reduce_mean((x - tf.roll(x, 1, 0)) ** 2),
    "reversed": lambda x, y: tf.reduce_sum(x * tf.reverse(x, [0])),
    "mean of gathered": lambda x, y: tf.reduce_mean(tf.gather_nd(x, tf.where(x[:, 0] > 0))),
    "most frequent": lambda x, y: tf.reduce_max(tf.math.bincount(tf.cast(y[:, 0] * 3, tf.int32))),
    "last of the chosen": lambda x, y: tf.reduce_max(tf.where(x[:, 0] > 0)),
    "softmax over rows": lambda x, y: tf.reduce_sum(tf.nn.softmax(x[:, 0]) * y[:, 0]),
    "softmax of columns": lambda x, y: tf.reduce_sum(tf.nn.softmax(x, axis=0) * x),
    "einsum of two": lambda x, y: tf.einsum("bi,ci->", x, x) / 10.0,
    "einsum of columns": lambda x, y: tf.reduce_max(tf.einsum("bt,bt->t", x, x)),
    "ellipsis": lambda x, y: tf.reduce_sum(x[:, 0][..., 1:]),
    "ones of pairs": lambda x, y: tf.reduce_sum(tf.ones([tf.shape(x)[0], tf.shape(x)[0]])),
    "without the diagonal": lambda x, y: tf.reduce_mean(
        tf.matmul(x, x, transpose_b=True) * (1.0 - tf.eye(tf.shape(x)[0]))
    ),
    "grid": lambda x, y: tf.reduce_mean(tf.multiply(*tf.meshgrid(x[:, 0], x[:, 1]))),
    "singular values": lambda x, y: tf.reduce_sum(tf.linalg.svd(x, compute_uv=False)),
    "cumulated": lambda x, y: tf.reduce_mean(tf.cumsum(x, axis=0)),
    "numbered": lambda x, y: tf.reduce_sum(tf.range(count(x)) * x[:, 0]),
    "deviation": lambda x, y: tf.math.reduce_std(x),
    "largest two": lambda x, y: tf.reduce_sum(tf.math.top_k(x[:, 0], 1).values),
    "equation with a statistic": lambda x, y: tf.einsum("bi,i->", x, tf.reduce_mean(x, 0)),
    "Sinkhorn": lambda x, y: tf.reduce_sum(sinkhorn(tf.exp(x)) * x),
    "times the same for each": lambda x, y: tf.norm(x * (0.9 * tf.ones((tf.shape(x)[0], 1)))),
    "contracted over rows": lambda x, y: tf.tensordot(x, x, 2),
    "sorted features": lambda x, y: tf.norm(tf.sort(x, axis=-1)[:, :2]),
    "views put together": lambda x, y: tf.reduce_sum(
        tf.nn.softmax(tf.matmul(*[tf.concat([x, 2 * x], 0)] * 2, transpose_b=True))[:, 0]
    ),
    "integers": lambda x, y: tf.reduce_sum(tf.cast(x * 10, tf.int32)),
}


def test_numbers_that_a_step_makes(mirrored2):
    def telling(cls):
        class Telling(cls):
            def train_step(self, data):
                return {name: make(*data) for name, make in NUMBERS.items()}

        return Telling

    logs = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        model = build(telling(cls), place, lambda: "mse")
        logs.append(model.fit(X, Y, batch_size=12, shuffle=False, verbose=0).history)
        logs.append(model.fit(X[:19], Y[:19], batch_size=12, shuffle=False, verbose=0).history)
    for expected, actual in zip(logs[:2], logs[2:], strict=True):
        assert_logs(expected, actual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("draw", [slow("truncated_normal"), "categorical"])
def test_random_numbers_that_are_assigned_are_the_same_on_each_replica(mirrored2, draw):
    def drawn():
        if draw == "categorical":
            return tf.cast(tf.random.categorical(tf.zeros((1, 9)), 3)[0], tf.float32)
        return tf.random.truncated_normal([3])

    class Drawing(tfgpu.Model):
        def train_step(self, data):
            self.kept.assign(drawn())
            return super().train_step(data)

    with mirrored2.scope():
        model = build(Drawing, mirrored2, lambda: "mse")
        model.kept = keras.Variable(np.zeros(3, "float32"), trainable=False)
    with pytest.warns(UserWarning, match="random numbers"):
        model.fit(X, Y, batch_size=5, verbose=0)
    first, second = copies(model.kept)
    np.testing.assert_array_equal(first, second)


def test_random_numbers_of_tensorflow_in_a_constraint_are_refused(mirrored2):
    def shaken(kernel):
        return kernel + tf.random.truncated_normal(kernel.shape)

    with mirrored2.scope():
        inputs = keras.Input((8,))
        model = tfgpu.Model(inputs, L.Dense(3, kernel_constraint=shaken)(inputs))
        model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match="draws random numbers by TruncatedNormal"):
        model.fit(X, Y, batch_size=6, verbose=0)


def test_a_loss_with_a_gradient_of_its_own_is_said(mirrored2):
    @tf.custom_gradient
    def halved(value):
        return value, lambda up: 0.5 * up

    model = build(tfgpu.Model, mirrored2, lambda: lambda y, p: halved(root(y, p)))
    with pytest.warns(UserWarning, match="a gradient of its own"):
        model.fit(X, Y, batch_size=6, verbose=0)
