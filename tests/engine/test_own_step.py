"""Classes with a `train_step`, `test_step` or `predict_step` of their own, on one device and two.

Right is what the same class, derived from stock `keras.Model`, says and learns on one device. The
last batch of 25 rows by 6 has one row: the second replica then gets a row that counts nowhere.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu

L = keras.layers
ops = keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(25, 8)).astype("float32")
LABELS = RNG.integers(0, 3, 25).astype("int32")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

# All batches divide; the last has one row; the last has five.
ROWS = pytest.mark.parametrize("rows", [24, 25, 23])


def one_device():
    return tf.distribute.get_strategy()


@pytest.fixture(params=["x1", "x2"])
def strategy(request, mirrored2):
    return mirrored2 if request.param == "x2" else one_device()


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(normalize=False):
    inputs = keras.Input((8,))
    x = L.Dense(6, activation="relu")(inputs)
    if normalize:
        x = L.BatchNormalization(momentum=0.5, name="norm")(x)
    return inputs, L.Dense(3, dtype="float32")(x)


def build(strategy, make, *, optimizer=None, normalize=False, loss=cross_entropy, **compiled):
    """A compiled model of what `make` gives; its weights do not depend on the strategy."""
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = make(*network(normalize))
        optimizer = optimizer() if optimizer else keras.optimizers.SGD(0.1)
        model.compile(optimizer, loss(), jit_compile=False, **compiled)
    return model


def fit(model, rows=25, epochs=2, batch_size=6):
    data = X[:rows], LABELS[:rows]
    settings = {"batch_size": batch_size, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(*data, **settings).history


def evaluate(model, rows=25, batch_size=6):
    data = X[:rows], LABELS[:rows]
    return model.evaluate(*data, batch_size=batch_size, verbose=0, return_dict=True)


def copies(variable):
    return [v.numpy() for v in getattr(variable.value, "values", [variable.value])]


def assert_same_on_replicas(variables):
    for variable in variables:
        first, *others = copies(variable)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)


def assert_same_weights(stock, ours):
    for one, other in zip(stock.get_weights(), ours.get_weights(), strict=True):
        np.testing.assert_allclose(other, one, **TOLERANCE)


def assert_logs(stock, ours):
    assert stock.keys() == ours.keys()
    for name in stock:
        np.testing.assert_allclose(ours[name], stock[name], **TOLERANCE, err_msg=name)


def derive(cls, kind):
    """A class of its own train_step, written in one of the ways that people write it.

    It does not call what it returns "loss": that name is the tracker's, which it leaves alone.
    """

    class Own(cls):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            weights = self.trainable_variables
            gradients = tape.gradient(loss, weights)
            if kind == "apply":
                self.optimizer.apply(gradients, weights)
            elif kind == "apply_gradients":
                self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
            else:  # The variables that it was built with.
                self.optimizer.build(weights)
                self.optimizer.apply(gradients)
            return {"own": loss}

        def test_step(self, data):
            x, y = data
            return {"own": self.compute_loss(x=x, y=y, y_pred=self(x, training=False))}

    return Own


def guide(cls):
    """The step of Keras' guide "Customizing what happens in fit()", with `compute_loss`."""

    class Guide(cls):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=y_pred)
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return self.noted(y, y_pred, loss)

        def test_step(self, data):
            x, y = data
            y_pred = self(x, training=False)
            return self.noted(y, y_pred, self.compute_loss(y=y, y_pred=y_pred))

        def noted(self, y, y_pred, loss):
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, y_pred)
            return {m.name: m.result() for m in self.metrics}

    return Guide


def tracking(cls, own_loss=False):
    """The guide's step at a lower level: its own `Mean` of the loss, and its own accuracy."""

    class Tracking(cls):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.loss_tracker = keras.metrics.Mean(name="loss")
            self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
            self.loss_fn = cross_entropy()

        @property
        def metrics(self):
            return [self.loss_tracker, self.accuracy]

        def loss_of(self, x, y, y_pred):
            return self.loss_fn(y, y_pred) if own_loss else self.compute_loss(x, y, y_pred)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.loss_of(x, y, y_pred)
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, weights), weights)
            return self.noted(y, y_pred, loss)

        def test_step(self, data):
            x, y = data
            y_pred = self(x, training=False)
            return self.noted(y, y_pred, self.loss_of(x, y, y_pred))

        def noted(self, y, y_pred, loss):
            self.loss_tracker.update_state(loss)
            self.accuracy.update_state(y, y_pred)
            return {"loss": self.loss_tracker.result(), "accuracy": self.accuracy.result()}

    return Tracking


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


# ---- metrics that a step updates itself --------------------------------------------------------


@ROWS
def test_the_step_of_the_guide(strategy, rows):
    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, guide(cls), metrics=["accuracy"]))
        logs.append((fit(models[-1], rows), evaluate(models[-1], rows)))
    assert_same_weights(*models)
    for stock, ours in zip(*logs, strict=True):
        assert {"loss"} < stock.keys() == ours.keys()
        for name in stock.keys() - {"loss"}:
            np.testing.assert_allclose(ours[name], stock[name], **TOLERANCE, err_msg=name)


@ROWS
@pytest.mark.parametrize("make", [guide, tracking])
def test_an_own_mean_of_the_loss(strategy, make, rows):
    logs = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(place, make(cls))
        logs.append((fit(model, rows)["loss"], evaluate(model, rows)["loss"]))
    for stock, ours in zip(*logs, strict=True):
        np.testing.assert_allclose(ours, stock, **TOLERANCE)


def test_a_step_with_a_loss_object_of_its_own(strategy):
    """Keras' own losses are divided by the replicas; all batches divide."""
    models, logs = [], []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, lambda *a, cls=cls: tracking(cls, own_loss=True)(*a)))
        logs.append(fit(models[-1], 24))
    assert_same_weights(*models)
    assert_logs(*logs)


def test_the_tracked_weights(strategy):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        models.append(build(place, tracking(cls)))
        fit(models[-1])
    assert_same_weights(*models)


def test_accuracy_counts_each_row_once(strategy):
    # Nothing is learned, so that it can be worked out.
    model = build(strategy, tracking(tfgpu.Model), optimizer=lambda: keras.optimizers.SGD(0.0))
    right = np.mean(model.predict(X, verbose=0).argmax(1) == LABELS)
    np.testing.assert_allclose(fit(model)["accuracy"], [right, right], rtol=1e-6)
    np.testing.assert_allclose(evaluate(model)["accuracy"], right, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 13])
def test_accuracy_counts_each_row_once_whatever_the_last_batch(mirrored2, rows):
    model = build(mirrored2, tracking(tfgpu.Model), optimizer=lambda: keras.optimizers.SGD(0.0))
    right = np.mean(model.predict(X[:rows], verbose=0).argmax(1) == LABELS[:rows])
    np.testing.assert_allclose(fit(model, rows, epochs=1)["accuracy"], [right], rtol=1e-6)
    np.testing.assert_allclose(evaluate(model, rows)["accuracy"], right, rtol=1e-6)


def test_compute_metrics_in_an_own_step(strategy):
    def make(cls):
        class Computes(cls):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    y_pred = self(x, training=True)
                    loss = self.compute_loss(x=x, y=y, y_pred=y_pred)
                weights = self.trainable_variables
                self.optimizer.apply(tape.gradient(loss, weights), weights)
                return self.compute_metrics(x, y, y_pred)

        return Computes

    logs = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        model = build(place, make(cls), metrics=["accuracy"])
        logs.append(fit(model)["accuracy"])
    np.testing.assert_allclose(*logs, rtol=1e-6)


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


# ---- optimizers that look at the whole gradient ------------------------------------------------


@pytest.mark.parametrize("kind", ["apply", "apply_gradients"])
@pytest.mark.parametrize("clip", ["global_clipnorm", "clipnorm", "clipvalue"])
def test_clipping_sees_the_summed_gradient(mirrored2, clip, kind):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        models.append(
            build(
                place,
                derive(cls, kind),
                optimizer=lambda: keras.optimizers.SGD(1.0, **{clip: 0.05}),
            )
        )
        fit(models[-1])
    assert_same_weights(*models)


@pytest.mark.parametrize("kind", ["apply", "apply_gradients"])
def test_accumulation_of_gradients(mirrored2, kind):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        models.append(
            build(
                place,
                derive(cls, kind),
                optimizer=lambda: keras.optimizers.Adam(0.02, gradient_accumulation_steps=2),
            )
        )
        fit(models[-1], 24)
    assert_same_weights(*models)
    assert_same_on_replicas([*models[1].variables, *models[1].optimizer.variables])


def test_accumulation_over_a_last_batch_of_one_row(mirrored2):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        models.append(
            build(
                place,
                derive(cls, "apply"),
                optimizer=lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=5),
            )
        )
        fit(models[-1])
    assert_same_weights(*models)


@pytest.mark.parametrize("kind", ["apply", "apply_gradients"])
def test_a_scaled_loss_in_mixed_float16(strategy, kind):
    keras.config.set_dtype_policy("mixed_float16")

    class Scales(tfgpu.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
                scaled = self.optimizer.scale_loss(loss)
            weights = self.trainable_variables
            gradients = tape.gradient(scaled, weights)
            if kind == "apply":
                self.optimizer.apply(gradients, weights)
            else:
                self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
            return {"own": loss}

        def test_step(self, data):
            x, y = data
            return {"own": self.compute_loss(x=x, y=y, y_pred=self(x))}

    def optimizer():
        return keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.3), initial_scale=1024.0, dynamic_growth_steps=8
        )

    model = build(strategy, Scales, optimizer=optimizer)
    before = evaluate(model, 24, 24)["own"]
    fit(model, epochs=6)
    assert evaluate(model, 24, 24)["own"] < 0.9 * before
    assert int(model.optimizer.iterations.numpy()) == 30
    # 30 good steps: three times doubled.
    assert set(map(float, copies(model.optimizer.dynamic_scale))) == {8192.0}
    assert_same_on_replicas([*model.variables, *model.optimizer.variables])


def test_an_overflow_on_one_replica_skips_the_step_on_both(mirrored2):
    keras.config.set_dtype_policy("mixed_float16")

    class Scales(tfgpu.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
                scaled = self.optimizer.scale_loss(loss)
            weights = self.trainable_variables
            self.optimizer.apply(tape.gradient(scaled, weights), weights)
            return {"own": loss}

    model = build(
        mirrored2,
        Scales,
        optimizer=lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.3)),
    )
    fit(model, 6, epochs=1)
    before, scale = model.get_weights(), float(model.optimizer.dynamic_scale.numpy())
    x = X[:6].copy()
    x[5] = 1e30  # Infinite in float16, on the second replica.
    model.fit(x, LABELS[:6], batch_size=6, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert set(map(float, copies(model.optimizer.dynamic_scale))) == {scale / 2}
    assert_same_on_replicas([*model.variables, *model.optimizer.variables])


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


# ---- two optimizers ----------------------------------------------------------------------------


class Gan(tfgpu.Model):
    """As in Keras' guide, of dense layers."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), L.Dense(8)])
        self.discriminator = keras.Sequential([keras.Input((8,)), L.Dense(4, "relu"), L.Dense(1)])
        self.d_loss = keras.metrics.Mean(name="d_loss")
        self.g_loss = keras.metrics.Mean(name="g_loss")
        self.seeds = keras.random.SeedGenerator(0)

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile(jit_compile=False)
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn
        # Under several replicas a step cannot make variables, with Keras neither.
        d_optimizer.build(self.discriminator.trainable_variables)
        g_optimizer.build(self.generator.trainable_variables)

    @property
    def metrics(self):
        return [self.d_loss, self.g_loss]

    def train_step(self, real):
        rows = tf.shape(real)[0]
        fake = self.generator(keras.random.normal((rows, 2), seed=self.seeds))
        both = ops.concatenate([fake, real], axis=0)
        labels = ops.concatenate([ops.ones((rows, 1)), ops.zeros((rows, 1))], axis=0)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        noise = keras.random.normal((rows, 2), seed=self.seeds)
        with tf.GradientTape() as tape:
            said = self.discriminator(self.generator(noise))
            g_loss = self.loss_fn(ops.zeros((rows, 1)), said)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        self.d_loss.update_state(d_loss)
        self.g_loss.update_state(g_loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}


def test_a_gan_of_two_optimizers(strategy):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = Gan()
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.02), keras.optimizers.Adam(0.02), loss)
    before = model.generator.get_weights(), model.discriminator.get_weights()
    logs = model.fit(X[:24] + 3, batch_size=6, epochs=4, verbose=0).history
    assert np.isfinite([logs["d_loss"], logs["g_loss"]]).all()
    assert logs["d_loss"][-1] < logs["d_loss"][0]
    after = model.generator.get_weights(), model.discriminator.get_weights()
    for old, new in zip(before, after, strict=True):
        assert not np.allclose(old[0], new[0])
    variables = [*model.variables, *model.d_optimizer.variables, *model.g_optimizer.variables]
    assert_same_on_replicas(variables)
    assert int(model.g_optimizer.iterations.numpy()) == 16


@pytest.mark.parametrize("jit_compile", [False, True])
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
