"""What a forward pass writes is kept, in fit, evaluate and predict, on one device and on two.

Right is what stock `keras.Model` says on one device, or what a comment works out.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu

L = keras.layers
ops = keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.normal(size=(16, 1)).astype("float32")
SERIES = RNG.normal(size=(32, 5, 3)).astype("float32")
TARGETS = RNG.normal(size=(32, 1)).astype("float32")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

XLA = pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])


def slow(*values):
    """A case of which others are tried on each run."""
    return pytest.param(*values, marks=pytest.mark.slow)


def one_device():
    return tf.distribute.get_strategy()


@pytest.fixture(params=["x1", pytest.param("x1-xla", marks=pytest.mark.slow), "x2", "x2-xla"])
def way(request, mirrored2):
    """The strategy, and whether XLA compiles."""
    strategy = mirrored2 if request.param.startswith("x2") else one_device()
    return strategy, request.param.endswith("xla")


def build(cls, strategy, network, jit_compile=False, rate=0.05, **compiled):
    """A compiled model of what `network` gives: (inputs, outputs), or a model."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        made = network()
        model = cls(*made) if isinstance(made, tuple) else made
        model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=jit_compile, **compiled)
    return model


def through(*layers, shape=(6,), last=1):
    """A network of `layers`, which are made anew for each model, and a last `Dense`."""

    def network():
        inputs = x = keras.Input(shape)
        for layer in layers:
            x = layer()(x)
        return inputs, L.Dense(last)(x)

    return network


def fit(model, x=X, y=Y, batch_size=4, epochs=2, **settings):
    settings = {"shuffle": False, "verbose": 0} | settings
    return model.fit(x, y, batch_size=batch_size, epochs=epochs, **settings).history


def evaluate(model, x=X, y=Y, batch_size=4):
    return model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)


def copies(variable):
    """A variable's value on each replica."""
    value = getattr(variable, "value", variable)
    value = value if not callable(value) else variable
    return [v.numpy() for v in getattr(value, "values", [value])]


def assert_same_weights(expected, actual, **tolerance):
    for one, other in zip(expected.get_weights(), actual.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, **(tolerance or TOLERANCE))


def assert_same_on_replicas(model):
    for variable in [*model.variables, *model.optimizer.variables]:
        first, *others = copies(variable)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)


def assert_logs(expected, actual):
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], **TOLERANCE, err_msg=name)


# ---- recurrent layers that are stateful ------------------------------------------------------

STATEFUL = {
    "lstm": lambda: L.LSTM(4, stateful=True, name="keeps"),
    "gru": lambda: L.GRU(4, stateful=True, name="keeps"),
    "simple": lambda: L.SimpleRNN(4, stateful=True, name="keeps"),
    "bidirectional": lambda: L.Bidirectional(L.LSTM(2, stateful=True, name="keeps"), name="keeps"),
    "stacked": lambda: L.RNN([L.LSTMCell(2), L.GRUCell(2)], stateful=True, name="keeps"),
}


def recurrent(kind):
    def network():
        inputs = keras.Input(batch_shape=(8, 5, 3))
        return inputs, L.Dense(1)(STATEFUL[kind]()(inputs))

    return network


def conv_lstm():
    inputs = keras.Input(batch_shape=(8, 5, 3))
    x = L.Reshape((5, 3, 1))(inputs)
    x = L.ConvLSTM1D(2, 2, stateful=True, name="keeps")(x)
    return inputs, L.Dense(1)(L.Flatten()(x))


@pytest.mark.parametrize(
    ("kind", "jit_compile"),
    [
        *((kind, False) for kind in [*STATEFUL, "conv_lstm"]),
        ("lstm", True),
        *(slow(kind, True) for kind in ["gru", "simple", "bidirectional", "stacked", "conv_lstm"]),
    ],
)
def test_a_stateful_layer_goes_on_from_batch_to_batch(kind, jit_compile):
    network = conv_lstm if kind == "conv_lstm" else recurrent(kind)
    said = []
    for cls in (keras.Model, tfgpu.Model):
        model = build(cls, one_device(), network, jit_compile and cls is tfgpu.Model, rate=0.1)
        losses = fit(model, SERIES, TARGETS, batch_size=8)["loss"]
        said.append(losses + [evaluate(model, SERIES, TARGETS, 8)["loss"]])
        said[-1].extend(model.predict(SERIES, batch_size=8, verbose=0).ravel())
    np.testing.assert_allclose(*said, **TOLERANCE)


def test_reset_states_of_a_stateful_layer_is_heard():
    model = build(tfgpu.Model, one_device(), recurrent("lstm"))
    first, going_on = (model.predict(SERIES[:8], batch_size=8, verbose=0) for _ in range(2))
    assert np.abs(first - going_on).max() > 1e-4
    model.layers[1].reset_state()
    np.testing.assert_allclose(model.predict(SERIES[:8], batch_size=8, verbose=0), first, rtol=1e-5)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("kind", ["lstm", "bidirectional", "conv_lstm"])
def test_two_replicas_refuse_a_stateful_layer_by_name(mirrored2, kind, method):
    network = conv_lstm if kind == "conv_lstm" else recurrent(kind)
    data = (SERIES,) if method == "predict" else (SERIES, TARGETS)
    with pytest.raises(ValueError, match="keeps"):
        model = build(tfgpu.Model, mirrored2, network)
        getattr(model, method)(*data, batch_size=8, verbose=0)


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


def test_a_codebook_of_moving_averages_as_one_device(way):
    models, losses = [], []
    for cls, (strategy, jit_compile) in ((keras.Model, (one_device(), False)), (tfgpu.Model, way)):
        models.append(build(cls, strategy, through(Codebook), jit_compile))
        losses.append(fit(models[-1], X[:15], Y[:15])["loss"])
        losses[-1].append(evaluate(models[-1])["loss"])
    np.testing.assert_allclose(*losses, **TOLERANCE)
    assert_same_weights(*models)
    assert_same_on_replicas(models[1])


# ---- assignments within control flow ---------------------------------------------------------


def raw(value, **settings):
    return tf.Variable(value, trainable=False, **settings)


def weight(value, **settings):
    return keras.Variable(value, trainable=False, **settings)


class Branching(L.Layer):
    """Adds within a branch, or at each turn of a loop."""

    def __init__(self, kind, make, **options):
        super().__init__(**options)
        self.kind = kind
        self.total = make(np.float32(0.0))

    def add(self, amount):
        self.total.assign_add(amount)

    def call(self, values):
        if self.kind == "cond":

            def add():
                self.add(3.0)
                return values

            return ops.cond(ops.sum(values**2) > 0, add, lambda: values)
        if self.kind == "other_branch":

            def leave():
                self.add(3.0)
                return values

            return ops.cond(ops.sum(values**2) < 0, lambda: values, leave)
        if self.kind == "while_loop":

            def body(turn, x):
                self.add(1.0)
                return turn + 1, x

            return ops.while_loop(lambda turn, x: turn < 3, body, (0, values))[1]
        if self.kind == "fori_loop":

            def turn(_, x):
                self.add(1.0)
                return x

            return ops.fori_loop(0, 3, turn, values)

        def nested(turn, x):
            def add():
                self.add(1.5)
                return turn + 1

            return ops.cond(turn > 0, add, lambda: turn + 1), x

        return ops.while_loop(lambda turn, x: turn < 3, nested, (0, values))[1]


@pytest.mark.parametrize("make", [weight, raw], ids=["keras", "tf"])
@pytest.mark.parametrize(
    "kind", ["cond", "other_branch", "while_loop", "fori_loop", "cond_in_while_loop"]
)
def test_an_assignment_within_control_flow_is_kept(way, kind, make):
    strategy, jit_compile = way
    network = through(lambda: Branching(kind, make))
    model = build(tfgpu.Model, strategy, network, jit_compile)
    evaluate(model)
    model.predict(X, batch_size=4, verbose=0)
    assert copies(model.layers[1].total) == [24.0] * strategy.num_replicas_in_sync


@pytest.mark.parametrize("make", [weight, raw], ids=["keras", "tf"])
def test_an_assignment_within_a_branch_is_kept_in_training(way, make):
    # A `while_loop` of unknown length has no gradient under XLA, with Keras neither.
    strategy, jit_compile = way
    network = through(lambda: L.Dense(3), lambda: Branching("cond", make))
    model = build(tfgpu.Model, strategy, network, jit_compile)
    fit(model)
    assert copies(model.layers[2].total) == [24.0] * strategy.num_replicas_in_sync


@XLA
def test_replicas_may_take_different_branches(mirrored2, jit_compile):
    class Positive(L.Layer):
        def build(self, shape):
            self.met = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, values):
            def met():
                self.met.assign_add(1.0)
                return values

            return ops.cond(ops.min(values) > 0, met, lambda: values)

    model = build(tfgpu.Model, mirrored2, through(Positive), jit_compile)
    x = np.ones((7, 6), "float32")
    x[4:] = -1
    fit(model, x, Y[:7], batch_size=7, epochs=1)
    # 4 of 7 rows are with the replica that adds 1.
    np.testing.assert_allclose(copies(model.layers[1].met), [4 / 7, 4 / 7], rtol=1e-6)


# ---- variables that no layer tracks ----------------------------------------------------------

HELD = {}  # By this module alone.


class Outside(L.Layer):
    """Writes what the module holds."""

    def call(self, values):
        HELD["steps"].assign_add(1)
        HELD["mean"].assign(0.5 * HELD["mean"] + ops.mean(values))
        return values + 0 * ops.cast(HELD["mean"], "float32")


@pytest.mark.parametrize("place", ["scope", "outside"])
@pytest.mark.parametrize("kind", ["keras", "tf"])
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


# ---- random numbers --------------------------------------------------------------------------


class Noise(L.Layer):
    def call(self, values, training=False):
        return keras.random.dropout(values, 0.5) if training else values


class Uniform(L.Layer):
    """Noise in the place of its inputs, also where nothing is trained."""

    def call(self, values):
        return keras.random.uniform(ops.shape(values)) + 0 * values


def noise_alone():
    inputs = keras.Input((64,))
    return inputs, L.Dense(1, use_bias=False, kernel_initializer="ones")(Noise()(inputs))


def uniform_alone():
    inputs = keras.Input((6,))
    return inputs, Uniform()(inputs)


def test_unseeded_dropout_draws_another_mask_in_each_step(way):
    strategy, jit_compile = way
    model = build(tfgpu.Model, strategy, noise_alone, jit_compile, rate=0.0)
    losses = fit(model, np.ones((2, 64), "float32"), np.zeros((2, 1), "float32"), epochs=6)["loss"]
    assert len({round(loss, 3) for loss in losses}) > 3


def test_each_row_of_each_step_and_replica_has_noise_of_its_own(way):
    strategy, jit_compile = way
    model = build(tfgpu.Model, strategy, uniform_alone, jit_compile)
    rows = np.concatenate([model.predict(X, batch_size=4, verbose=0) for _ in range(2)])
    assert len({tuple(row) for row in rows}) == 32
    assert len(np.unique(rows)) == rows.size
    assert 0 <= rows.min() and rows.max() <= 1


class Masks(L.Layer):
    """Keeps the mask that each replica drew, in a row of its own."""

    def build(self, shape):
        self.masks = self.add_weight(shape=(2, 64), initializer="zeros", trainable=False)

    def call(self, values, training=False):
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        mine = ops.cast(ops.equal(np.arange(2)[:, None], replica), "float32")
        self.masks.assign(mine * keras.random.dropout(ops.ones((2, 64)), 0.5))
        return values


@XLA
def test_replicas_draw_masks_of_their_own_in_training(mirrored2, jit_compile):
    model = build(tfgpu.Model, mirrored2, through(Masks), jit_compile)
    masks = []
    for _ in range(2):
        fit(model, X[:4], Y[:4], epochs=1)
        masks.extend(model.layers[1].masks.numpy())
    assert set(np.unique(masks)) == {0.0, 1.0}  # 2, halved.
    assert len({tuple(mask) for mask in masks}) == 4
    assert_same_on_replicas(model)


def test_the_same_seed_draws_the_same(way):
    strategy, jit_compile = way
    network = through(lambda: L.Dense(32), Noise)
    losses = []
    for _ in range(2):
        model = build(tfgpu.Model, strategy, network, jit_compile)
        keras.utils.set_random_seed(7)
        losses.append(fit(model)["loss"])
    np.testing.assert_array_equal(*losses)


def test_one_model_compiled_and_trained_twice_from_one_seed_draws_the_same(way):
    strategy, jit_compile = way
    model = build(tfgpu.Model, strategy, noise_alone, jit_compile, rate=0.0)
    losses = []
    for _ in range(2):
        # A traced step keeps the generator that the seed replaces, with Keras too.
        with strategy.scope():
            model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
        keras.utils.set_random_seed(7)
        losses.append(
            fit(model, np.ones((4, 64), "float32"), np.zeros((4, 1), "float32"), epochs=3)["loss"]
        )
    np.testing.assert_array_equal(*losses)


@XLA
def test_one_device_draws_what_stock_keras_draws(jit_compile):
    said = []
    for cls in (keras.Model, tfgpu.Model):
        model = build(cls, one_device(), noise_alone, jit_compile, rate=1e-4)
        losses = fit(model, np.ones((6, 64), "float32"), np.zeros((6, 1), "float32"))["loss"]
        drawn = np.array(keras.random.uniform((3,)))  # The generator stands where it stood.
        said.append([*losses, *drawn])
    np.testing.assert_allclose(*said, rtol=1e-5)


@XLA
@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_one_device_draws_what_stock_keras_draws_without_training(jit_compile, method):
    said = []
    for cls in (keras.Model, tfgpu.Model):
        model = build(cls, one_device(), uniform_alone, jit_compile)
        if method == "predict":
            said.append(model.predict(X, batch_size=4, verbose=0))
        else:
            said.append([evaluate(model, X, X)["loss"] for _ in range(2)])
    np.testing.assert_allclose(*said, rtol=1e-5)


class Seeded(L.Layer):
    """Draws from a generator that only the module holds."""

    def call(self, values):
        return keras.random.uniform(ops.shape(values), seed=HELD["seeds"]) + 0 * values


def seeded_alone():
    inputs = keras.Input((6,))
    return inputs, Seeded()(inputs)


@pytest.mark.parametrize("place", ["scope", "outside"])
def test_a_generator_that_no_layer_tracks_goes_on(way, place):
    strategy, jit_compile = way
    if place == "scope":
        with strategy.scope():
            HELD["seeds"] = keras.random.SeedGenerator(3)
    else:
        HELD["seeds"] = keras.random.SeedGenerator(3)
    model = build(tfgpu.Model, strategy, seeded_alone, jit_compile)
    before = copies(HELD["seeds"].state)[0]
    rows = np.concatenate([model.predict(X, batch_size=4, verbose=0) for _ in range(2)])
    assert len(np.unique(rows)) == rows.size
    for state in copies(HELD["seeds"].state):
        np.testing.assert_array_equal(state, [before[0], before[1] + 8])


@XLA
def test_one_device_draws_from_it_what_stock_keras_draws(jit_compile):
    said = []
    for cls in (keras.Model, tfgpu.Model):
        HELD["seeds"] = keras.random.SeedGenerator(3)
        model = build(cls, one_device(), seeded_alone, jit_compile)
        said.append(model.predict(X, batch_size=4, verbose=0))
    np.testing.assert_allclose(*said, rtol=1e-6)
