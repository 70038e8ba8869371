"""Own steps with optimizers that look at the whole gradient, and with two optimizers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from own_steps import LABELS, X, build, derive, evaluate, fit
from replicas import assert_same_on_replicas, assert_same_weights, copies, one_device, slow

import tfgpu

L = keras.layers
ops = keras.ops


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


def scaling(kind):
    """Scales its loss itself, and updates by `apply` or `apply_gradients`."""

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

    return Scales


@pytest.mark.parametrize("kind", ["apply", "apply_gradients"])
def test_a_scaled_loss_in_mixed_float16(strategy, kind):
    keras.config.set_dtype_policy("mixed_float16")

    def optimizer():
        return keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.3), initial_scale=1024.0, dynamic_growth_steps=8
        )

    model = build(strategy, scaling(kind), optimizer=optimizer)
    before = evaluate(model, 24, 24)["own"]
    fit(model, epochs=6)
    assert evaluate(model, 24, 24)["own"] < 0.9 * before
    assert int(model.optimizer.iterations.numpy()) == 30
    # 30 good steps: three times doubled.
    assert set(map(float, copies(model.optimizer.dynamic_scale))) == {8192.0}
    assert_same_on_replicas([*model.variables, *model.optimizer.variables])


def test_an_overflow_on_one_replica_skips_the_step_on_both(mirrored2):
    keras.config.set_dtype_policy("mixed_float16")

    model = build(
        mirrored2,
        scaling("apply"),
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


# ---- where the optimizer comes from ------------------------------------------------------------


class Holder:
    """No layer, so that Keras does not look into it."""


def clipped(place, cls, where, built, kind="clipnorm"):
    """Updates with a clipping optimizer that lies deeper than in an attribute."""
    with place.scope():
        optimizer = MAKE[kind]()

    class Steps(cls):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            weights = self.trainable_variables
            found = {"closure": lambda: optimizer, "object": lambda: self.held.optimizer}
            found["dict of lists"] = lambda: self.held["each"][0]
            found[where]().apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return {"loss": loss}

    model = build(place, Steps)
    with place.scope():
        if where == "object":
            model.held = Holder()
            model.held.optimizer = optimizer
        elif where == "dict of lists":
            model.held = {"each": [optimizer]}
        if built:
            optimizer.build(model.trainable_variables)
    return model


class Clips(keras.optimizers.SGD):
    """Clips in an `apply` of its own."""

    def apply(self, grads, trainable_variables=None):
        grads = [tf.clip_by_norm(grad, 0.05) for grad in grads]
        return super().apply(grads, trainable_variables)


MAKE = {
    "clipnorm": lambda: keras.optimizers.SGD(0.5, clipnorm=0.05),
    "apply": lambda: Clips(0.5),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.5, clipnorm=0.05), initial_scale=1.0
    ),
}


@pytest.mark.parametrize("kind", ["apply", "loss scale"])
def test_so_does_one_with_an_apply_of_its_own(mirrored2, kind):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        models.append(clipped(place, cls, "object", True, kind))
        fit(models[-1])
    assert_same_weights(*models)


@pytest.mark.parametrize("built", [slow(True), False])
@pytest.mark.parametrize("where", ["closure", "object", "dict of lists"])
def test_an_optimizer_that_the_model_does_not_hold_sees_the_summed_gradient(
    mirrored2, where, built
):
    # Stock Keras makes no variables in the middle of a step either.
    stock = clipped(one_device(), keras.Model, where, True)
    model = clipped(mirrored2, tfgpu.Model, where, built)
    for each in (stock, model):
        fit(each)
    assert_same_weights(stock, model)


@pytest.mark.parametrize("eager", [False, True])
def test_on_a_mirrored_strategy_of_one_device_it_makes_its_variables(eager):
    stock = clipped(one_device(), keras.Model, "dict of lists", True)
    place = tf.distribute.MirroredStrategy(["CPU:0"])
    model = clipped(place, tfgpu.Model, "dict of lists", False)
    model.run_eagerly = eager
    for each in (stock, model):
        fit(each)
    assert_same_weights(stock, model)


# What a branch gives, nobody sees through.
@pytest.mark.filterwarnings("ignore:A step (minimises|returns) .*made of rows inside a tf.function")
@pytest.mark.parametrize("where", ["class", "object"])
def test_a_step_that_is_a_function_of_tensorflow(mirrored2, where):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):

        class Steps(cls):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
                    if loss > 0.1:  # Converted, as `tf.function` does it.
                        loss *= 2
                weights = self.trainable_variables
                self.optimizer.apply(tape.gradient(loss, weights), weights)
                return {"loss": loss}

            if where == "class":
                train_step = tf.function(train_step)

        models.append(build(place, Steps))
        if where == "object":
            models[-1].train_step = tf.function(models[-1].train_step)
        fit(models[-1])
    assert_same_weights(*models)


def test_an_optimizer_inside_a_function_of_tensorflow_is_refused_by_name(mirrored2):
    class Steps(tfgpu.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            self.update(tape.gradient(loss, self.trainable_variables))
            return {"loss": loss}

        @tf.function
        def update(self, gradients):
            self.optimizer.apply(gradients, self.trainable_variables)

    with pytest.raises(ValueError, match="is called inside a tf.function, or inside a branch"):
        fit(build(mirrored2, Steps))
