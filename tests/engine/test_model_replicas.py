"""N replicas compute what one device computes on the same global batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from dense_models import (
    X,
    Y,
    assert_same_on_replicas,
    assert_same_weights,
    build,
    dataset,
    dense,
    fit,
    normalized,
)
from replicas import one_device, slow
from xla_models import Distinct

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import make_resident, training_batches

RNG = np.random.RandomState(1)


@pytest.fixture(params=[1, 2], ids=["x1", "x2"])
def strategy(request, mirrored2):
    return tf.distribute.OneDeviceStrategy("CPU:0") if request.param == 1 else mirrored2


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
        self.mask = self.add_weight(
            shape=(4, 32), initializer="zeros", trainable=False, aggregation="mean"
        )

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


def test_a_metric_that_xla_cannot_compile_works(mirrored2):
    model = build(mirrored2, dense, metrics=lambda: [Distinct(name="positive")], jit_compile=True)
    logs = fit(model, dataset(X, Y, batch_size=32), epochs=1)
    assert logs["positive"] == [np.sum(Y[:, 0] > 0)]
