"""What a class, or the model itself, defines in the place of Keras' methods and properties."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import assert_logs, assert_same_weights, one_device, slow, ways

import tfgpu

L = keras.layers
X = np.random.default_rng(0).normal(size=(24, 5)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
way = ways("x1", slow("x1-xla"), "x2")


def functional(cls):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    return cls(inputs, L.Dense(1)(L.Dense(4)(inputs)))


def head_alone(cls, name):
    """Says that its head alone is trained."""

    class Model(cls):
        def __init__(self):
            super().__init__()
            self.body, self.head = L.Dense(4), L.Dense(1)

        def call(self, x):
            return self.head(self.body(x))

    setattr(Model, name, property(lambda self: self.head.trainable_weights))
    keras.utils.set_random_seed(1)
    return Model()


@pytest.mark.parametrize("built", [slow(True), False])
@pytest.mark.parametrize("name", ["trainable_weights", "trainable_variables"])
def test_keras_trains_the_trainable_weights(way, name, built):
    strategy, jit_compile = way
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy)):
        with place.scope():
            model = head_alone(cls, name)
            if built:
                model(X[:1])
            model.compile("sgd", "mse", jit_compile=jit_compile)
        model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
        models.append(model)
    assert_same_weights(*models)


def own_train_step(model):
    def step(data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = 10 * model.compute_loss(x=x, y=y, y_pred=model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_weights)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
        return {"mine": loss}

    model.train_step = step


def own_test_step(model):
    model.test_step = lambda data: {"mine": 3.0 + 0 * tf.reduce_sum(data[0])}


def own_predict_step(model):
    model.predict_step = lambda data: model(data) + 100.0


def own_metrics(model):
    theirs = model.compute_metrics

    def compute_metrics(x, y, y_pred, sample_weight=None):
        return {**theirs(x, y, y_pred, sample_weight), "mine": tf.constant(3.0)}

    model.compute_metrics = compute_metrics


@pytest.mark.parametrize("define", [own_train_step, own_test_step, own_predict_step, own_metrics])
def test_a_step_that_is_set_on_the_model_is_run(mirrored2, define):
    found = []
    places = [(keras.Model, one_device()), (tfgpu.Model, one_device()), (tfgpu.Model, mirrored2)]
    for cls, place in places:
        with place.scope():
            model = functional(cls)
            define(model)
            model.compile("sgd", "mse")
        history = model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        logs = model.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)
        outputs = model.predict(tf.data.Dataset.from_tensor_slices(X).batch(8), verbose=0)
        found.append((history, logs, outputs, model))
    stock = found[0]
    for history, logs, outputs, model in found[1:]:
        assert_logs(stock[0], history)
        assert_logs(stock[1], logs)
        np.testing.assert_allclose(outputs, stock[2], rtol=1e-4, atol=1e-4)
        assert_same_weights(stock[3], model)


@pytest.mark.parametrize("own", [False, True], ids=["compute_metrics", "train_step"])
@pytest.mark.parametrize("kept", ["losses", "tensor", "list", slow("tuple"), slow("dict")])
def test_metrics_of_what_the_forward_pass_has_kept_are_of_the_replica_itself(mirrored2, kept, own):
    found = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        with place.scope():
            model = keeping(cls, kept, own)
            model.compile("sgd", "mse")
        found.append(model.fit(X, Y, batch_size=8, shuffle=False, verbose=0).history)
    assert_logs(*found)


@pytest.mark.parametrize("kept", ["losses", "tensor"])
def test_xla_compiles_such_metrics_with_the_step(kept):
    found = []
    for cls, jit_compile in ((keras.Model, False), (tfgpu.Model, True)):
        model = keeping(cls, kept)
        model.compile("sgd", "mse", jit_compile=jit_compile)
        history = model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0).history
        found.append({**history, **model.evaluate(X, Y, verbose=0, return_dict=True)})
    assert_logs(*found)


def test_under_xla_replicas_refuse_such_metrics_by_name(mirrored2):
    with mirrored2.scope():
        model = keeping(tfgpu.Model, "tensor")
        model.compile("sgd", "mse", jit_compile=True)
    with pytest.raises(ValueError, match="Keeps.compute_metrics reads a tensor that the forward"):
        model.fit(X, Y, batch_size=8, verbose=0)


WAYS_TO_KEEP = {
    "list": (lambda tensor: [tensor], lambda held: held[0]),
    "tuple": (lambda tensor: (tensor,), lambda held: held[0]),
    "dict": (lambda tensor: {"it": tensor}, lambda held: held["it"]),
}


def keeping(cls, kept, own=False):
    hold, take = WAYS_TO_KEEP.get(kept, (lambda tensor: tensor,) * 2)

    class Keeps(cls):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = L.Dense(3), L.Dense(1)

        def call(self, x):
            hidden = self.hidden(x)
            self.held = hold(hidden)
            self.add_loss(keras.ops.mean(hidden**2))
            return self.head(hidden)

        def found(self):
            return self.losses[0] if kept == "losses" else keras.ops.mean(take(self.held))

        if own:

            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
                weights = self.trainable_weights
                self.optimizer.apply(tape.gradient(loss, weights), weights)
                return {"loss": loss, "kept": self.found()}

        else:

            def compute_metrics(self, x, y, y_pred, sample_weight=None):
                theirs = super().compute_metrics(x, y, y_pred, sample_weight)
                return {**theirs, "kept": self.found()}

    keras.utils.set_random_seed(1)
    model = Keeps()
    model(X[:1])
    return model


def a_sequential():
    return tfgpu.Sequential([keras.Input((5,)), L.Dense(1)])


@pytest.mark.parametrize("again", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
@pytest.mark.parametrize("make", [lambda: functional(tfgpu.Model), a_sequential])
def test_a_copy_of_a_model_is_a_tfgpu_model(make, again):
    model = make()
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    found = again(model)
    assert type(found) is type(model)
    assert_same_weights(model, found, rtol=0, atol=0)
    np.testing.assert_allclose(found.evaluate(X, Y, verbose=0), model.evaluate(X, Y, verbose=0))


def test_a_loss_that_is_set_on_a_model_with_a_step_of_its_own_stays(mirrored2):
    models = []
    for cls, place in ((keras.Model, one_device()), (tfgpu.Model, mirrored2)):
        with place.scope():
            model = functional(cls)
            own_train_step(model)
            model.compute_loss = lambda x=None, y=None, y_pred=None, **_: keras.ops.mean(
                keras.ops.abs(y - y_pred)
            )
            model.compile("sgd")
        own = model.compute_loss
        for _ in range(2):
            model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
            model.make_train_function(force=True)
        assert model.compute_loss is own
        models.append(model)
    assert_same_weights(*models)
