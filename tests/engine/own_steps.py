"""Classes with steps of their own, written in the ways that people write them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(25, 8)).astype("float32")
LABELS = RNG.integers(0, 3, 25).astype("int32")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

# All batches divide; the last has one row; the last has five.
ROWS = pytest.mark.parametrize("rows", [24, 25, 23])


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


def updated(model, data):
    """One update of a model by its `compute_loss`, for its `train_step`; outputs and loss."""
    x, y = data
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(x=x, y=y, y_pred=y_pred)
    weights = model.trainable_variables
    model.optimizer.apply(tape.gradient(loss, weights), weights)
    return y_pred, loss


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
