"""Losses and metrics of any shape: what two replicas say and learn is what one device does.

Right is what stock `keras.Model` says on one device of the same batches: the history of two epochs,
the weights after them, and an evaluation.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu

L = keras.layers
ops = keras.ops
TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}

SLOW = pytest.mark.slow
# (rows, batch size): a last batch that is even, odd, of one row; one row in all.
LAST = pytest.mark.parametrize(
    ("rows", "batch_size"),
    [
        pytest.param(12, 8, id="even", marks=SLOW),
        pytest.param(10, 5, id="odd"),
        pytest.param(9, 4, id="one"),
        pytest.param(1, 4, id="alone", marks=SLOW),
    ],
)


def one_device():
    return tf.distribute.get_strategy()


@pytest.fixture(params=["x1", "x2", "x2-xla"])
def way(request, mirrored2):
    """The strategy, and whether XLA compiles."""
    strategy = mirrored2 if request.param.startswith("x2") else one_device()
    return strategy, request.param.endswith("xla")


def run(cls, strategy, network, data, batch_size, *, jit_compile=False, class_weight=None, **made):
    """History of two epochs, weights after them, evaluation.

    Args:
        network: Gives (inputs, outputs), or, given the class, a model.
        data: Of `fit`: x, y and perhaps weights of samples.
        batch_size: Rows of a global batch.
        jit_compile: Of `compile`.
        class_weight: Of `fit`.
        made: What `compile` gets; functions are called for it, under the strategy's scope.
    """
    keras.utils.set_random_seed(1)
    rate = made.pop("rate", 0.2)
    with strategy.scope():
        network = network(cls) if getattr(network, "of_class", False) else network()
        model = cls(*network) if isinstance(network, tuple) else network
        settings = {name: value() for name, value in made.items()}
        settings.setdefault("optimizer", keras.optimizers.SGD(rate))
        model.compile(jit_compile=jit_compile, **settings)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
    history = model.fit(
        batches, epochs=2, shuffle=False, verbose=0, class_weight=class_weight
    ).history
    said = model.evaluate(batches, verbose=0, return_dict=True)
    return history, model.get_weights(), said


def assert_as_stock(way, network, data, batch_size, but=(), **settings):
    strategy, jit_compile = way
    right, right_weights, right_said = run(
        keras.Model, one_device(), network, data, batch_size, **settings
    )
    history, weights, said = run(
        tfgpu.Model, strategy, network, data, batch_size, jit_compile=jit_compile, **settings
    )
    assert history.keys() == right.keys()
    assert said.keys() == right_said.keys()
    assert np.isfinite(right["loss"]).all()
    for name in right.keys() - but:
        np.testing.assert_allclose(history[name], right[name], **TOLERANCE, err_msg=name)
    for one, other in zip(right_weights, weights, strict=True):
        np.testing.assert_allclose(other, one, **TOLERANCE)
    for name in right_said.keys() - but:
        np.testing.assert_allclose(said[name], right_said[name], **TOLERANCE, err_msg=name)


def cross_entropy(**settings):
    return lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True, **settings)


def mse(**settings):
    return lambda: keras.losses.MeanSquaredError(**settings)


class Penalty(L.Layer):
    def call(self, values):
        self.add_loss(0.5 * ops.mean(ops.square(values)))
        return values


def pixels():
    inputs = keras.Input((6, 6, 3))
    return inputs, L.Conv2D(2, 1)(inputs)


def steps():
    inputs = keras.Input((3, 4))
    return inputs, L.Dense(2)(inputs)


def distributed():
    inputs = keras.Input((3, 4))
    x = L.TimeDistributed(L.Dense(5, activation="tanh"))(inputs)
    return inputs, L.TimeDistributed(L.Dense(2))(x)


def plain():
    inputs = keras.Input((5,))
    return inputs, L.Dense(2)(L.Dense(4)(inputs))


def activity():
    inputs = keras.Input((5,))
    x = L.Dense(4, activity_regularizer=keras.regularizers.L2(0.5))(inputs)
    return inputs, L.Dense(2)(x)


def activity_of_steps():
    inputs = keras.Input((3, 4))
    x = L.Dense(4, activity_regularizer=keras.regularizers.L1(0.1))(inputs)
    return inputs, L.Dense(2)(x)


def penalty():
    inputs = keras.Input((5,))
    return inputs, L.Dense(2)(Penalty()(L.Dense(4)(inputs)))


def penalty_of_steps():
    inputs = keras.Input((3, 4))
    return inputs, L.Dense(2)(Penalty()(L.Dense(4)(inputs)))


def kernel():
    inputs = keras.Input((5,))
    x = L.Dense(
        4,
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer=keras.regularizers.L1(0.1),
    )(inputs)
    return inputs, L.Dense(2)(x)


def layer_activity():
    inputs = keras.Input((5,))
    x = L.ActivityRegularization(l1=0.1, l2=0.2)(L.Dense(4)(inputs))
    return inputs, L.Dense(2)(x)


SHAPES = {
    pixels: ((6, 6, 3), (6, 6)),
    steps: ((3, 4), (3,)),
    distributed: ((3, 4), (3,)),
    activity_of_steps: ((3, 4), (3,)),
    penalty_of_steps: ((3, 4), (3,)),
}


def classes(network, rows):
    """Features and labels of two classes, of the shapes of `network`."""
    shape, labels = SHAPES.get(network, ((5,), ()))
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows, *shape)).astype("float32")
    return x, rng.integers(0, 2, (rows, *labels)).astype("int32")


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
    [activity, activity_of_steps, penalty, penalty_of_steps, kernel, layer_activity],
    ids=lambda network: network.__name__,
)
def test_losses_of_layers(mirrored2, network, rows, batch_size):
    data = classes(network, rows)
    assert_as_stock((mirrored2, False), network, data, batch_size, loss=cross_entropy())


@pytest.mark.parametrize(
    "network", [activity_of_steps, kernel], ids=lambda network: network.__name__
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


@pytest.mark.parametrize("rows", [8, 9, 11])
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


@pytest.mark.parametrize("rows", [8, 9, 11])
@pytest.mark.parametrize("kind", ["constant", "twice", "of_outputs", "without"])
def test_own_compute_loss(mirrored2, kind, rows):
    x = classes(plain, rows)[0]
    y = np.random.default_rng(3).normal(size=(rows, 2)).astype("float32")
    settings = {} if kind == "without" else {"loss": mse()}
    settings["metrics"] = lambda: ["mae"]
    assert_as_stock((mirrored2, False), own(kind), (x, y), 4, rate=0.1, **settings)


@pytest.mark.parametrize("kind", ["of_outputs", "without"])
def test_own_compute_loss_under_xla(mirrored2, kind):
    x = classes(plain, 9)[0]
    y = np.random.default_rng(3).normal(size=(9, 2)).astype("float32")
    settings = {} if kind == "without" else {"loss": mse()}
    assert_as_stock((mirrored2, True), own(kind), (x, y), 4, rate=0.1, **settings)


@pytest.mark.parametrize("rows", [1, 8, 9])
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


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 4), (9, 4), (11, 4)])
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


# ---- reductions and sample weights -----------------------------------------------------------

REDUCTIONS = ["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", None]


def weighted_steps(rows, rank):
    rng = np.random.default_rng(4)
    # Keras wants weights of as many axes as the loss.
    weights = rng.uniform(size=(rows, 3 if rank == 2 else 1)).astype("float32")
    weights.reshape(-1)[::4] = 0
    y = rng.normal(size=(rows, 3, 2)).astype("float32")
    return (classes(steps, rows)[0], y, weights) if rank else (classes(steps, rows)[0], y)


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=SLOW), 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_of_a_loss_for_each_step(mirrored2, reduction, rank):
    settings = {"loss": mse(reduction=reduction), "rate": 0.01}
    assert_as_stock((mirrored2, False), steps, weighted_steps(9, rank), 4, **settings)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum"])
def test_weights_for_each_step_under_xla(mirrored2, reduction):
    settings = {"loss": mse(reduction=reduction), "rate": 0.01}
    assert_as_stock((mirrored2, True), steps, weighted_steps(11, 2), 4, **settings)


@LAST
@pytest.mark.parametrize("rank", [1, 2])
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


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
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


# ---- Keras' masks ----------------------------------------------------------------------------


def tagger(penalised=False):
    def network():
        inputs = keras.Input((5,), dtype="int32")
        x = L.Embedding(9, 3, mask_zero=True)(inputs)
        x = L.LSTM(4, return_sequences=True)(x)
        return inputs, L.Dense(3)(Masked()(x) if penalised else x)

    return network


class Masked(Penalty):
    """Adds a loss, and hands the mask on."""

    def __init__(self, **options):
        super().__init__(**options)
        self.supports_masking = True


def sentences(rows, weights=0):
    """Tokens of which the first rows of each batch of 4 are short: replicas differ in length."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(1, 9, (rows, 5)).astype("int32")
    lengths = np.resize([1, 2, 5, 4], rows)
    tokens[np.arange(5)[None] >= lengths[:, None]] = 0
    tags = rng.integers(0, 3, (rows, 5)).astype("int32")
    extra = rng.uniform(0.1, 1, (rows, 5 if weights == 2 else 1)).astype("float32")
    return (tokens, tags, extra) if weights else (tokens, tags)


@pytest.mark.parametrize("rows", [pytest.param(8, marks=SLOW), 9, pytest.param(11, marks=SLOW)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_mask_that_reaches_the_loss(mirrored2, reduction, rows):
    settings = {
        "loss": cross_entropy(reduction=reduction),
        "rate": 0.02 if reduction in ("sum", None) else 0.5,
    }
    assert_as_stock((mirrored2, False), tagger(), sentences(rows), 4, **settings)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_mask_and_sample_weights(mirrored2, reduction, rank):
    settings = {"loss": cross_entropy(reduction=reduction), "rate": 0.5}
    data = sentences(9, rank)
    assert_as_stock((mirrored2, False), tagger(), data, 4, **settings)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight"])
@pytest.mark.parametrize("rows", [8, 9])
def test_a_mask_and_an_added_loss(mirrored2, reduction, rows):
    settings = {"loss": cross_entropy(reduction=reduction), "rate": 0.5}
    assert_as_stock((mirrored2, False), tagger(True), sentences(rows), 4, **settings)


def test_metrics_heed_a_mask(mirrored2):
    settings = {
        "loss": cross_entropy(),
        "metrics": lambda: ["accuracy"],
        "weighted_metrics": lambda: ["accuracy"],
        "rate": 0.5,
    }
    assert_as_stock((mirrored2, False), tagger(), sentences(9, 2), 4, **settings)


def test_a_mask_on_one_device_under_xla():
    assert_as_stock((one_device(), True), tagger(), sentences(9), 4, loss=cross_entropy())


def test_a_row_that_is_masked_throughout(mirrored2):
    tokens, tags = sentences(8)
    tokens[:2] = 0  # All rows of the first replica.
    settings = {"loss": cross_entropy(), "rate": 0.5}
    assert_as_stock((mirrored2, False), tagger(), (tokens, tags), 4, **settings)


def test_a_masking_layer_of_series(mirrored2):
    def network():
        inputs = keras.Input((3, 4))
        x = L.Masking()(inputs)
        return inputs, L.Dense(2)(L.GRU(3, return_sequences=True)(x))

    x, y = weighted_steps(9, 0)
    x[::2, 1:] = 0
    assert_as_stock((mirrored2, False), network, (x, y), 4, loss=mse())


def test_a_mask_under_xla_warns_and_is_exact(mirrored2):
    with pytest.warns(UserWarning, match="without XLA"):
        assert_as_stock((mirrored2, True), tagger(), sentences(9), 4, loss=cross_entropy())


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
