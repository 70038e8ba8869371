"""What users of `keras.Model` do, done with `tfgpu.Model`."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu
from tfgpu.engine.model import Functional

RNG = np.random.RandomState(0)
X = RNG.randn(24, 6).astype("float32")
Y = RNG.randn(24, 3).astype("float32")


def functional(cls=tfgpu.Model, **arguments):
    inputs = keras.Input((6,))
    return cls(inputs, keras.layers.Dense(3)(inputs), **arguments)


def fit(model, x=X, y=Y, **arguments):
    return model.fit(x, y, batch_size=8, shuffle=False, verbose=0, **arguments).history


def with_both(make, run):
    """What `run` returns for a Keras model and a tfgpu one, made alike."""
    results = []
    for cls in (keras.Model, tfgpu.Model):
        keras.utils.set_random_seed(0)
        results.append(run(make(cls)))
    return results


def assert_close(one, other):
    assert type(one) is type(other)
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other
    )


# ---- classes -------------------------------------------------------------------------------


class Subclassed(tfgpu.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def call(self, x):
        return self.dense(x)


def make_called():
    class Called(tfgpu.Model):
        pass

    return functional(Called)


def make_own_init():
    class OwnInit(tfgpu.Model):
        def __init__(self, units):
            inputs = keras.Input((6,))
            super().__init__(inputs=inputs, outputs=keras.layers.Dense(units)(inputs))

    return OwnInit(3)


def make_mixed():
    class Mixin:
        def __init__(self, *args, tag="default", **kwargs):
            super().__init__(*args, **kwargs)
            self.tag = tag

    class Mixed(Mixin, tfgpu.Model):
        pass

    model = functional(Mixed, tag="mine")
    assert model.tag == "mine"
    return model


STYLES = {
    "functional": functional,
    "subclassed": Subclassed,
    "called": make_called,
    "own_init": make_own_init,
    "mixed": make_mixed,
    "sequential": lambda: tfgpu.Sequential([keras.layers.Dense(3)]),
}


@pytest.mark.parametrize("order", [list(STYLES), list(STYLES)[::-1]], ids=["forth", "back"])
def test_every_style_trains_in_any_order(order):
    for style in order:
        model = STYLES[style]()
        assert isinstance(model, keras.Model)
        model.compile("sgd", "mse", steps_per_execution=2)
        assert np.isfinite(fit(model)["loss"]).all()
        assert type(model).fit is not keras.Model.fit


def test_keras_own_model_is_left_alone():
    make_called()

    class Plain(keras.Model):
        def __init__(self):
            super().__init__()

    Plain()
    assert type(functional(keras.Model)).__module__.startswith("keras.")
    assert not isinstance(functional(keras.Model), tfgpu.Model)


def test_isinstance_of_what_it_stands_for():
    assert isinstance(functional(), tfgpu.Model)
    assert isinstance(functional(), keras.models.Model)
    assert isinstance(tfgpu.Sequential(), keras.Sequential)


# ---- overrides -----------------------------------------------------------------------------


class OwnStep(tfgpu.Model):
    def train_step(self, data):
        logs = super().train_step(data)
        logs["mine"] = tf.constant(3.0)
        return logs


def test_custom_train_step_keeps_its_logs(strategy):
    with strategy.scope():
        model = functional(OwnStep)
        model.compile("sgd", "mse", steps_per_execution=2)
    assert fit(model)["mine"] == [3.0]


def test_custom_train_step_under_replicas_turns_xla_off_and_says_so(mirrored2):
    with mirrored2.scope():
        model = functional(OwnStep)
        model.compile("sgd", "mse", jit_compile=True)
    with pytest.warns(UserWarning, match="OwnStep.train_step is custom.*without XLA"):
        assert fit(model)["mine"] == [3.0]


class Gan(tfgpu.Model):
    """No `call`, two optimizers, a step of its own."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(6)])
        self.discriminator = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        self.d_loss = keras.metrics.Mean(name="d_loss")
        self.seeds = keras.random.SeedGenerator(0)

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        # Under several replicas a step cannot create variables, with Keras neither.
        d_optimizer.build(self.discriminator.trainable_variables)
        g_optimizer.build(self.generator.trainable_variables)

    @property
    def metrics(self):
        return [self.d_loss]

    def train_step(self, real):
        noise = keras.random.normal((tf.shape(real)[0], 2), seed=self.seeds)
        with tf.GradientTape(persistent=True) as tape:
            fake = self.generator(noise)
            d_loss = tf.reduce_mean(self.discriminator(fake) - self.discriminator(real))
            g_loss = -tf.reduce_mean(self.discriminator(fake))
        for part, loss, optimizer in (
            (self.discriminator, d_loss, self.d_optimizer),
            (self.generator, g_loss, self.g_optimizer),
        ):
            weights = part.trainable_weights
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.d_loss.update_state(d_loss)
        return {"d_loss": self.d_loss.result()}


# Its losses are means by hand, of which two replicas' gradients add up to twice as much.
@pytest.mark.filterwarnings("ignore:A step applies gradients")
def test_gan_without_call_trains(strategy):
    with strategy.scope():
        model = Gan()
        model.compile(keras.optimizers.Adam(), keras.optimizers.Adam())
    before = model.generator.get_weights()[0]
    assert np.isfinite(fit(model, y=None)["d_loss"]).all()
    assert not np.allclose(before, model.generator.get_weights()[0])


def test_custom_compute_loss_is_what_is_minimised(strategy):
    class OwnLoss(tfgpu.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return super().compute_loss(x, y, y_pred, sample_weight, training) + 5.0

    with strategy.scope():
        model = functional(OwnLoss)
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=True)
    plain = np.mean((model.predict(X, verbose=0) - Y) ** 2)
    np.testing.assert_allclose(fit(model)["loss"], [plain + 5.0], rtol=1e-5)


def test_custom_compute_metrics_may_add_to_the_logs(strategy):
    class OwnMetrics(tfgpu.Model):
        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            logs = super().compute_metrics(x, y, y_pred, sample_weight)
            logs["rows"] = tf.cast(tf.shape(x)[0], tf.float32)
            return logs

    with strategy.scope():
        model = functional(OwnMetrics)
        model.compile("sgd", "mse", metrics=["mae"], steps_per_execution=3)
    history = fit(model)
    assert history["rows"] == [8.0 / strategy.num_replicas_in_sync]
    assert {"loss", "mae"} < history.keys()


# ---- losses and metrics, against Keras -----------------------------------------------------


def two_outputs(cls):
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    x = keras.layers.Concatenate()([a, b])
    outputs = {"p": keras.layers.Dense(3, name="p")(x), "q": keras.layers.Dense(1, name="q")(x)}
    model = cls({"a": a, "b": b}, outputs)
    model.compile(
        keras.optimizers.SGD(0.05),
        loss={"p": "mse", "q": "mae"},
        loss_weights={"p": 1.0, "q": 0.3},
        metrics={"p": ["mae"]},
        weighted_metrics={"q": ["mse"]},
        steps_per_execution=2,
    )
    return model


def test_several_inputs_and_outputs_report_as_keras():
    def run(model):
        history = fit(model, {"a": X, "b": -X}, {"p": Y, "q": Y[:, :1]}, epochs=2)
        return {name: np.array(values) for name, values in sorted(history.items())}

    plain, ours = with_both(two_outputs, run)
    assert {"loss", "p_loss", "q_loss", "p_mae", "q_mse"} == ours.keys()
    assert_close(plain, ours)


def regularized(cls):
    class AddsLoss(keras.layers.Layer):
        def call(self, x):
            self.add_loss(0.1 * keras.ops.mean(x**2))
            return x

    inputs = keras.Input((6,))
    x = keras.layers.Dense(4, kernel_regularizer="l2", activity_regularizer="l1")(inputs)
    model = cls(inputs, keras.layers.Dense(3, bias_regularizer="l2")(AddsLoss()(x)))
    model.compile(keras.optimizers.SGD(0.05), "mse", weighted_metrics=["mae"])
    return model


@pytest.mark.parametrize("weights", ["none", "sample", "class"])
def test_added_losses_and_weights_as_keras(weights):
    labels = np.arange(24) % 3
    arguments = {
        "none": {},
        "sample": {"sample_weight": np.linspace(0, 2, 24).astype("float32")},
        "class": {"class_weight": {0: 1.0, 1: 0.5, 2: 3.0}},
    }[weights]

    def make(cls):
        model = regularized(cls)
        if weights == "class":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.05), loss, weighted_metrics=["accuracy"])
        return model

    def run(model):
        history = fit(model, y=labels if weights == "class" else Y, epochs=2, **arguments)
        return {**{k: np.array(v) for k, v in history.items()}, "w": model.get_weights()}

    assert_close(*with_both(make, run))


def test_on_batch_methods_as_keras():
    def run(model):
        weight = np.linspace(0, 2, 9).astype("float32")
        return [
            *model.train_on_batch(X[:9], Y[:9], sample_weight=weight),
            *model.test_on_batch(X[:5], Y[:5]),
            model.predict_on_batch(X[:3]),
        ]

    assert_close(*with_both(regularized, run))


@pytest.mark.parametrize("rows", [8, 9, 1])
def test_on_batch_methods_share_the_batch_out(mirrored2, rows):
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored2):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = functional()
            model.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
        x, y = X[:rows], Y[:rows]
        results.append(
            [
                *model.train_on_batch(x, y),
                *model.test_on_batch(x, y),
                model.predict_on_batch(x),
                model.get_weights(),
            ]
        )
    assert_close(*results)


# ---- data ----------------------------------------------------------------------------------


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]


def generator():
    for i in range(3):
        yield X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8]


@pytest.mark.filterwarnings("ignore:.*ran out of data")  # As Keras' generators do.
@pytest.mark.parametrize("make", [Sequence, generator])
def test_python_data_trains_as_arrays(strategy, make):
    losses = []
    for data in (None, make()):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = functional()
            model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=2)
        if data is None:
            losses.append(fit(model)["loss"])
        else:
            losses.append(model.fit(data, verbose=0, shuffle=False).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_the_end_of_data_of_unknown_size_begins_no_step(strategy):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True)
    for steps in (1, 2):
        with strategy.scope():
            model = functional()
            model.compile("sgd", "mse", steps_per_execution=steps)
        model.fit(data, epochs=5, verbose=0, shuffle=False)
        assert int(model.optimizer.iterations.numpy()) == 15


def test_run_eagerly_trains_the_same(strategy):
    losses = []
    for eagerly in (False, True):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = functional()
            model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=eagerly)
        losses.append(fit(model)["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_model_that_needs_values_trains_eagerly():
    class Looks(tfgpu.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            assert x.numpy().shape[1] == 6
            return self.dense(x)

    model = Looks()
    model.compile("sgd", "mse", run_eagerly=True)
    assert np.isfinite(fit(model)["loss"]).all()


# ---- files ---------------------------------------------------------------------------------


# Of TensorFlow's variables, under NumPy 2.
saves = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@saves
@pytest.mark.parametrize("make", [functional, lambda: tfgpu.Sequential([keras.layers.Dense(3)])])
def test_a_loaded_model_goes_on_as_the_saved_one(tmp_path, make):
    model = make()
    model.compile("adam", "mse", metrics=["mae"])
    fit(model)
    model.save(tmp_path / "m.keras")
    loaded = tfgpu.load_model(tmp_path / "m.keras")
    assert isinstance(loaded, tfgpu.Sequential | Functional)
    assert_close(fit(model), fit(loaded))


@saves
def test_a_file_loads_where_tfgpu_is_not_installed(tmp_path):
    functional().save(tmp_path / "functional.keras")
    tfgpu.Sequential([keras.Input((6,)), keras.layers.Dense(3)]).save(tmp_path / "seq.keras")
    code = (
        "import sys; sys.modules['tfgpu'] = None\n"
        "import keras\n"
        "for name in ('functional', 'seq'):\n"
        "    print(type(keras.models.load_model(name + '.keras')).__module__)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert output.split() == ["keras.src.models.functional", "keras.src.models.sequential"]


@pytest.mark.parametrize("cls", [tfgpu.Model, OwnStep])
def test_a_clone_is_of_the_same_class(cls):
    model = functional(cls)
    clone = keras.models.clone_model(model)
    assert type(clone) is type(model)
    clone.compile("sgd", "mse")
    fit(clone)


@saves
def test_exports_to_saved_model(tmp_path):
    model = functional()
    model.compile("sgd", "mse", jit_compile=True)
    fit(model)
    model.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(saved.serve(X), model.predict(X, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras Tuner's.
def test_keras_tuner_searches(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")

    def build(hp):
        inputs = keras.Input((6,))
        x = keras.layers.Dense(hp.Int("units", 2, 4))(inputs)
        model = tfgpu.Model(inputs, keras.layers.Dense(3)(x))
        model.compile("sgd", "mse", steps_per_execution=2)
        return model

    tuner = keras_tuner.RandomSearch(
        build, objective="val_loss", max_trials=2, directory=tmp_path, seed=0
    )
    tuner.search(X, Y, validation_data=(X, Y), epochs=1, verbose=0)
    assert tuner.get_best_models(1)[0].evaluate(X, Y, verbose=0) > 0


def test_a_model_in_the_place_of_keras_own(monkeypatch):
    """As programs do that say `keras.Model` in many places."""
    monkeypatch.setattr(keras, "Model", tfgpu.Model)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    model.compile("sgd", "mse", jit_compile=True)
    assert model.jit_compile
    assert np.isfinite(fit(model)["loss"]).all()
