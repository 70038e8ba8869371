"""N replicas compute what one device computes on the same global batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import make_resident, training_batches

RNG = np.random.RandomState(0)
X = RNG.randn(96, 6).astype("float32")
Y = (X[:, :2] @ RNG.randn(2, 3) + 0.1 * RNG.randn(96, 3)).astype("float32")
LABELS = Y.argmax(1).astype("int32")

# The sums over replicas add in another order; 20 steps carry that on.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def slow(*values):
    """A case of which others are tried on each run."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(params=[1, 2], ids=["x1", "x2"])
def strategy(request, mirrored2):
    return tf.distribute.OneDeviceStrategy("CPU:0") if request.param == 1 else mirrored2


def one_device():
    return tf.distribute.get_strategy()


def build(strategy, make, **compiled):
    """A compiled model with weights that do not depend on the strategy."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = make()
        settings = {"optimizer": keras.optimizers.SGD(0.05, momentum=0.9), "loss": "mse"}
        settings.update({k: v() if callable(v) else v for k, v in compiled.items()})
        model.compile(**settings)
    return model


def dense():
    inputs = keras.Input((6,))
    return tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(8, "tanh")(inputs)))


def classifier():
    inputs = keras.Input((6,))
    return tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(8, "relu")(inputs)))


def dataset(*tensors, batch_size, known=True):
    data = tf.data.Dataset.from_tensor_slices(tensors).batch(batch_size)
    if known:
        return data
    return data.filter(lambda *_: True)


def fit(model, data, **arguments):
    """`model.fit` without a word, and the history it gives."""
    return model.fit(data, verbose=0, shuffle=False, **arguments).history


def assert_same_weights(expected, actual, **tolerance):
    for one, other in zip(expected.get_weights(), actual.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, **(tolerance or TOLERANCE))


def copies(variable):
    """A variable's value on each replica."""
    strategy_value = variable.value
    return [v.numpy() for v in getattr(strategy_value, "values", [strategy_value])]


def assert_same_on_replicas(model):
    for variable in [*model.weights, *model.optimizer.variables]:
        first, *others = copies(variable)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)


# ---- the same training ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jit_compile", "steps_per_execution", "batch_size"),
    [
        (False, 4, 32),
        (True, 8, 33),
        slow(False, 1, 32),
        slow(False, 1, 33),
        slow(False, 4, 33),
        slow(True, 8, 32),
    ],
)
def test_two_replicas_train_as_one_device(mirrored2, jit_compile, steps_per_execution, batch_size):
    logs, models = [], []
    for strategy in (one_device(), mirrored2):
        model = build(
            strategy, dense, jit_compile=jit_compile, steps_per_execution=steps_per_execution
        )
        history = fit(
            model, dataset(X, Y, batch_size=batch_size), epochs=7
        )  # 21 steps; of 33 each, the last of an epoch has 30.
        logs.append(history["loss"])
        models.append(model)
    np.testing.assert_allclose(*logs, rtol=2e-5)
    assert logs[0][-1] < 0.5 * logs[0][0]
    assert_same_weights(*models)
    assert_same_on_replicas(models[1])


@pytest.mark.parametrize("resident", [False, True], ids=["streaming", "resident"])
def test_augmentation_does_not_depend_on_the_replicas(mirrored2, resident):
    images = RNG.randint(0, 256, (22, 8, 8, 1), np.uint8)
    labels = np.arange(22, dtype=np.int32) % 3

    def decode(image, label):
        return tf.ensure_shape(image, (8, 8, 1)), label

    examples = Examples(
        num_examples=22,
        read=lambda at: (tf.gather(images, at), tf.gather(labels, at)),
        decode=decode,
    )

    def make():
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.Conv2D(4, 3, activation="relu")(x)
        return tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))

    logs, models = [], []
    for strategy in (one_device(), mirrored2):
        model = build(
            strategy,
            make,
            loss=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=4,
        )
        batches = training_batches(
            examples,
            batch_size=8,
            seed=1,
            augment=("crop", "flip"),
            resident=make_resident(examples, strategy) if resident else (),
        )
        history = fit(model, batches, steps_per_epoch=3, epochs=7)
        logs.append(history["loss"])
        models.append(model)
    np.testing.assert_allclose(*logs, rtol=1e-4)
    assert_same_weights(*models, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", ["global_clipnorm", slow("clipnorm"), slow("clipvalue")])
def test_clipping_sees_the_reduced_gradient(mirrored2, clip):
    # The replicas' own gradients nearly cancel, so that clipping them would show.
    x = np.ones((8, 6), "float32")
    y = np.repeat([[50.0, 0, 0], [-49.0, 1, 0]], 4, axis=0).astype("float32")
    models = []
    for strategy in (one_device(), mirrored2):
        model = build(strategy, dense, optimizer=lambda: keras.optimizers.SGD(0.1, **{clip: 0.5}))
        fit(model, dataset(x, y, batch_size=8), epochs=2)
        models.append(model)
    assert_same_weights(*models)


def test_gradient_accumulation_equals_a_larger_batch(strategy):
    models = []
    for batch_size, every in ((32, None), (8, 4)):
        model = build(
            strategy,
            dense,
            optimizer=lambda every=every: keras.optimizers.Adam(
                0.01, gradient_accumulation_steps=every
            ),
            steps_per_execution=3,
        )
        fit(model, dataset(X, Y, batch_size=batch_size), epochs=3)
        models.append(model)
    assert_same_weights(*models)


def test_ema_is_that_of_one_device(mirrored2):
    def optimizer():
        return keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=5)

    stock = build(one_device(), lambda: keras.Model(*_ends(dense())), optimizer=optimizer)
    ours = build(mirrored2, dense, optimizer=optimizer, steps_per_execution=4)
    for model in (stock, ours):
        fit(model, dataset(X, Y, batch_size=32), epochs=4)
    assert_same_weights(stock, ours)  # `fit` ends by putting the averages in the weights.
    assert_same_on_replicas(ours)


def _ends(model):
    return model.inputs, model.outputs[0]


def test_embedding_gradients(mirrored2):
    tokens = RNG.randint(0, 11, (40, 5)).astype("int32")  # Many repeated in a batch.

    def make():
        inputs = keras.Input((5,), dtype="int32")
        x = keras.layers.Embedding(11, 4)(inputs)
        return tfgpu.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(x)))

    y = tokens.sum(1, keepdims=True).astype("float32") / 30
    models = []
    for strategy in (one_device(), mirrored2):
        model = build(
            strategy,
            make,
            optimizer=lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
            jit_compile=True,
        )
        fit(model, dataset(tokens, y, batch_size=10), epochs=5)
        models.append(model)
    assert_same_weights(*models, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [slow("mixed_bfloat16"), "mixed_float16"])
def test_mixed_precision_of_two_replicas_follows_one_device(mirrored2, dtype):
    keras.config.set_dtype_policy(dtype)
    losses = []
    for strategy in (one_device(), mirrored2):
        model = build(strategy, dense, steps_per_execution=4)
        history = fit(model, dataset(X, Y, batch_size=32), epochs=7)
        losses.append(history["loss"])
        assert all(v.dtype == "float32" for v in model.trainable_variables)
    np.testing.assert_allclose(*losses, rtol=0.02)
    assert losses[0][-1] < 0.5 * losses[0][0]


def test_regularisers_and_added_losses_count_once(mirrored2):
    def make():
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.3))(inputs)
        return tfgpu.Model(inputs, keras.layers.Dense(3)(hidden))

    models, losses = [], []
    for strategy in (one_device(), mirrored2):
        model = build(strategy, make)
        losses.append(fit(model, dataset(X, Y, batch_size=36), epochs=3)["loss"])
        models.append(model)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert_same_weights(*models)


def test_models_of_different_sizes_train_under_one_strategy_after_another(mirrored2):
    # TensorFlow's own numbering of collectives is the same for each: see _leave_collective_keys.
    for width in (5, 7, 5):
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        model = build(
            strategy,
            lambda width=width: tfgpu.Sequential(
                [keras.Input((6,)), keras.layers.Dense(width), keras.layers.Dense(3)]
            ),
        )
        (loss,) = fit(model, dataset(X, Y, batch_size=32))["loss"]
        assert np.isfinite(loss)


# ---- statistics ----------------------------------------------------------------------------


def normalized(**settings):
    def make():
        inputs = keras.Input((6,))
        x = keras.layers.Dense(5)(inputs)
        x = keras.layers.BatchNormalization(momentum=0.5, name="norm", **settings)(x)
        return tfgpu.Model(inputs, keras.layers.Dense(3)(x))

    return make


@pytest.mark.parametrize("jit_compile", [False, slow(True)])
def test_batch_statistics_are_the_weighted_mean_of_the_replicas(mirrored2, jit_compile):
    model = build(
        mirrored2,
        normalized(),
        jit_compile=jit_compile,
        optimizer=lambda: keras.optimizers.SGD(0.0),
    )
    x, y = X[:7], Y[:7]  # 4 and 3 rows.
    fit(model, dataset(x, y, batch_size=7), epochs=1)
    hidden = model.layers[1]
    values = [hidden(part).numpy() for part in (x[:4], x[4:])]
    mean = np.average([v.mean(0) for v in values], axis=0, weights=[4, 3])
    variance = np.average([v.var(0) for v in values], axis=0, weights=[4, 3])
    norm = model.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean.numpy(), 0.5 * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance.numpy(), 0.5 + 0.5 * variance, rtol=1e-5)
    assert_same_on_replicas(model)


@pytest.mark.filterwarnings("ignore:.*synchronized.*")
@pytest.mark.parametrize("jit_compile", [slow(False), True])
def test_synchronized_batch_normalization_equals_one_device(mirrored2, jit_compile):
    models = []
    for strategy in (one_device(), mirrored2):
        model = build(
            strategy, normalized(synchronized=True), jit_compile=jit_compile, steps_per_execution=3
        )
        fit(model, dataset(X, Y, batch_size=32), epochs=4)
        models.append(model)
    assert_same_weights(*models, rtol=1e-3, atol=1e-4)  # It computes E(x^2) - E(x)^2.
    assert_same_on_replicas(models[1])


def test_frozen_variables_are_not_touched(mirrored2):
    def make():
        inputs = keras.Input((6,))
        frozen = keras.layers.Dense(5, trainable=False)
        return tfgpu.Model(inputs, keras.layers.Dense(3)(frozen(inputs)))

    model = build(mirrored2, make)
    before = [v.numpy() for v in model.non_trainable_variables]
    # Shares such as 17/33 and 16/33 do not add up to 1 in float32.
    fit(model, dataset(X, Y, batch_size=33), epochs=10)
    for old, variable in zip(before, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


# ---- random numbers ------------------------------------------------------------------------


class Recorder(keras.layers.Layer):
    """Dropout of ones whose result the output shows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = keras.layers.Dropout(0.5, seed=3)
        self.mask = self.add_weight(shape=(4, 32), initializer="zeros", trainable=False)

    def call(self, x, training=False):
        mask = self.dropout(keras.ops.ones((4, 32)), training=training)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0  # None while building.
        # A row for each replica: averaging over two halves them.
        self.mask.assign(mask * keras.ops.cast(keras.ops.equal(ROW, replica), "float32"))
        return x


ROW = np.arange(4)[:, None]


@pytest.mark.parametrize("jit_compile", [slow(False), True])
def test_replicas_draw_different_dropout_masks_and_the_same_again(mirrored2, jit_compile):
    def make():
        inputs = keras.Input((6,))
        recorder = Recorder(name="recorder")
        return tfgpu.Model(inputs, keras.layers.Dense(3)(recorder(inputs)))

    runs = []
    for _ in range(2):
        model = build(mirrored2, make, jit_compile=jit_compile)
        masks = []
        for _ in range(2):
            fit(model, dataset(X[:8], Y[:8], batch_size=8), epochs=1)
            masks.append(model.get_layer("recorder").mask.numpy())
        runs.append(masks)
        assert_same_on_replicas(model)
        state = model.get_layer("recorder").dropout.seed_generator.state
        np.testing.assert_array_equal(state.numpy(), [3, 2])
    first, second = runs[0]
    assert set(np.unique(first[:2])) == {0.0, 1.0}  # 2, halved.
    assert np.any(first[0] != first[1])  # of two replicas
    assert np.any(first[0] != second[0])  # of two steps
    assert np.any(first[1] != second[0])
    np.testing.assert_array_equal(runs[0], runs[1])


def test_one_replica_draws_as_stock_keras():
    def make(kind):
        def network():
            inputs = keras.Input((6,))
            x = keras.layers.Dropout(0.5, seed=1)(keras.layers.Dense(16)(inputs))
            return kind(inputs, keras.layers.Dense(3)(x))

        return network

    models = []
    for kind in (keras.Model, tfgpu.Model):
        model = build(one_device(), make(kind))
        fit(model, dataset(X, Y, batch_size=32), epochs=2)
        models.append(model)
    assert_same_weights(*models)


# ---- partial batches: the truth is computed with numpy ---------------------------------------


def squared_error(model, x, y):
    return np.mean((model.predict(x, verbose=0) - y) ** 2, axis=-1)


@pytest.mark.parametrize(
    ("examples", "jit_compile"),
    [(1, False), (17, False), (9, True), slow(9, False), slow(1, True), slow(17, True)],
)
def test_evaluate_is_exact_over_partial_batches(strategy, examples, jit_compile):
    x, y = X[:examples], Y[:examples]
    model = build(
        strategy,
        dense,
        metrics=lambda: [keras.metrics.MeanAbsoluteError(name="mae")],
        jit_compile=jit_compile,
        steps_per_execution=2,
    )
    logs = model.evaluate(dataset(x, y, batch_size=8), verbose=0, return_dict=True)
    outputs = model.predict(x, verbose=0)
    np.testing.assert_allclose(logs["loss"], np.mean((outputs - y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(logs["mae"], np.mean(np.abs(outputs - y)), rtol=1e-5)


def test_evaluate_of_batch_statistics_is_exact_over_partial_batches(strategy):
    model = build(strategy, normalized())
    logs = model.evaluate(dataset(X[:9], Y[:9], batch_size=8), verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], squared_error(model, X[:9], Y[:9]).mean(), rtol=1e-5)


# Keras says so when the size of the data was not known.
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("examples", [1, 17], ids=["fewer", "odd"])
def test_fit_is_exact_over_partial_batches(strategy, examples, known):
    """Against a loop of plain TensorFlow over every example."""
    x, y = X[:examples], Y[:examples]
    model = build(
        strategy,
        dense,
        optimizer=lambda: keras.optimizers.SGD(0.05),
        metrics=lambda: ["mae"],
        steps_per_execution=4,
    )
    reference = build(one_device(), dense)
    history = fit(model, dataset(x, y, batch_size=4, known=known), epochs=3)
    expected = []
    for _ in range(3):
        losses, errors = [], []
        for start in range(0, examples, 4):
            with tf.GradientTape() as tape:
                outputs = reference(x[start : start + 4], training=True)
                rows = tf.reduce_mean((outputs - y[start : start + 4]) ** 2, axis=-1)
                loss = tf.reduce_mean(rows)
            for variable, gradient in zip(
                reference.trainable_variables,
                tape.gradient(loss, [v.value for v in reference.trainable_variables]),
                strict=True,
            ):
                variable.assign(variable - 0.05 * gradient)
            losses.extend(rows.numpy())
            errors.extend(np.abs(outputs - y[start : start + 4]).mean(-1))
        expected.append((np.mean(losses), np.mean(errors)))
    np.testing.assert_allclose(history["loss"], [e[0] for e in expected], rtol=1e-5)
    np.testing.assert_allclose(history["mae"], [e[1] for e in expected], rtol=1e-5)
    assert_same_weights(reference, model)


WEIGHTS = RNG.rand(96).astype("float32")
WEIGHTS[::5] = 0


def stock_logs_over_whole(make, *tensors, **compiled):
    """What stock Keras says of all examples in a single batch on one device."""
    model = build(one_device(), lambda: keras.Model(*_all_ends(make())), **compiled)
    return model.evaluate(tf.data.Dataset.from_tensors(tensors), verbose=0, return_dict=True)


def _all_ends(model):
    outputs = model.outputs
    return model.inputs, outputs[0] if len(outputs) == 1 else outputs


@pytest.mark.parametrize("batch_size", [4, 7])
def test_sample_weights_and_weighted_metrics_are_exact(strategy, batch_size):
    settings = {
        "loss": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": lambda: ["accuracy"],
        "weighted_metrics": lambda: ["accuracy"],
    }
    data = X[:17], LABELS[:17], WEIGHTS[:17]
    expected = stock_logs_over_whole(classifier, *data, **settings)
    model = build(strategy, classifier, steps_per_execution=2, **settings)
    logs = model.evaluate(dataset(*data, batch_size=batch_size), verbose=0, return_dict=True)
    assert logs.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(logs[name], expected[name], rtol=1e-5, err_msg=name)


def two_outputs():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4, "tanh")(inputs)
    first = keras.layers.Dense(3, name="first")(hidden)
    return tfgpu.Model(inputs, [first, keras.layers.Dense(1, name="second")(hidden)])


def test_multiple_outputs_are_exact(strategy):
    settings = {
        "loss": lambda: ["mse", "mae"],
        "loss_weights": lambda: [1.0, 0.3],
        "metrics": lambda: [["mae"], ["mse"]],
    }
    targets = (Y[:17], Y[:17, :1])
    expected = stock_logs_over_whole(two_outputs, X[:17], targets, **settings)
    model = build(strategy, two_outputs, **settings)
    data = tf.data.Dataset.from_tensor_slices((X[:17], targets)).batch(8)
    logs = model.evaluate(data, verbose=0, return_dict=True)
    assert logs.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(logs[name], expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("reduction", "weighted"),
    [
        ("sum", True),
        ("mean_with_sample_weight", False),
        ("mean_with_sample_weight", True),
        (None, True),
        slow(None, False),
        slow("sum", False),
        slow("sum_over_batch_size", False),
        slow("sum_over_batch_size", True),
        slow("mean", False),
        slow("mean", True),
    ],
)
def test_every_reduction_trains_as_one_device(mirrored2, reduction, weighted):
    tensors = (X[:11], Y[:11], WEIGHTS[:11]) if weighted else (X[:11], Y[:11])
    settings = {
        "loss": lambda: keras.losses.MeanSquaredError(reduction=reduction),
        "optimizer": lambda: keras.optimizers.SGD(0.01),
    }
    stock = build(one_device(), lambda: keras.Model(*_all_ends(dense())), **settings)
    ours = build(mirrored2, dense, **settings)
    losses = [
        fit(model, dataset(*tensors, batch_size=8), epochs=3)["loss"] for model in (stock, ours)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert_same_weights(stock, ours)


def test_outputs_of_different_reductions_train_as_one_device(mirrored2):
    settings = {
        "loss": lambda: [
            keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
            keras.losses.MeanSquaredError(reduction="sum"),
        ],
        "loss_weights": lambda: [1.0, 0.1],
        "optimizer": lambda: keras.optimizers.SGD(0.01),
    }
    data = tf.data.Dataset.from_tensor_slices(
        (X[:12], (Y[:12], Y[:12, :1]), (WEIGHTS[:12], WEIGHTS[12:24]))
    )
    stock = build(one_device(), lambda: keras.Model(*_all_ends(two_outputs())), **settings)
    ours = build(mirrored2, two_outputs, jit_compile=True, **settings)
    losses = [fit(model, data.batch(5), epochs=3)["loss"] for model in (stock, ours)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert_same_weights(stock, ours)


def test_predict_gives_every_example_once_and_in_order(strategy):
    model = build(strategy, dense, steps_per_execution=2)
    for examples in (1, 17):
        x = X[:examples]
        outputs = model.predict(tf.data.Dataset.from_tensor_slices(x).batch(4), verbose=0)
        np.testing.assert_allclose(outputs, model(x).numpy(), rtol=1e-5, atol=1e-6)


# ---- bad input -----------------------------------------------------------------------------


def test_an_optimizer_made_outside_the_scope_trains_rightly_or_says_what_to_change(mirrored2):
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    with mirrored2.scope():
        keras.utils.set_random_seed(0)
        model = dense()
    try:
        model.compile(optimizer=optimizer, loss="mse")
        fit(model, dataset(X, Y, batch_size=32), epochs=2)
    except ValueError as error:
        assert "scope" in str(error)
        return
    reference = build(one_device(), dense)
    fit(reference, dataset(X, Y, batch_size=32), epochs=2)
    assert_same_weights(reference, model)
    assert_same_on_replicas(model)


class Positive(keras.metrics.Metric):
    """Uses an operation that XLA cannot compile: `tf.unique`'s shape depends on the data."""

    def __init__(self, name="positive", **kwargs):
        super().__init__(name=name, **kwargs)
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        labels, _ = tf.unique(tf.boolean_mask(y_true[:, 0], y_true[:, 0] > 0))
        self.count.assign_add(tf.cast(tf.size(labels), tf.float32))

    def result(self):
        return self.count.value


def test_a_metric_that_xla_cannot_compile_works(mirrored2):
    model = build(mirrored2, dense, metrics=lambda: [Positive()], jit_compile=True)
    logs = fit(model, dataset(X, Y, batch_size=32), epochs=1)
    assert logs["positive"] == [np.sum(Y[:, 0] > 0)]
