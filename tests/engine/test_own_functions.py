"""`make_train_function` and its like that a class defines; what they make reads tf.data itself."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu

X = np.random.default_rng(0).normal(size=(23, 6)).astype("float32")
Y = X[:, :1]


def trained_by_hand(cls):
    class Own(cls):
        def make_train_function(self, force=False):
            if self.train_function is None or force:

                @tf.function
                def function(iterator):
                    x, y = next(iterator)
                    with tf.GradientTape() as tape:
                        loss = tf.reduce_mean((y - self(x, training=True)) ** 2)
                    weights = self.trainable_weights
                    pairs = zip(tape.gradient(loss, weights), weights, strict=True)
                    self.optimizer.apply_gradients(pairs)
                    return {"first": x[0, 0]}

                self.train_function = function
            return self.train_function

    return Own


def evaluated_by_hand(cls):
    class Own(cls):
        def make_test_function(self, force=False):
            if self.test_function is None or force:

                @tf.function
                def function(iterator):
                    x, y = next(iterator)
                    self.seen.update_state(tf.abs(y - self(x, training=False)))
                    return {"seen": self.seen.result()}

                self.test_function = function
            return self.test_function

        @property
        def metrics(self):
            return [self.seen]

    return Own


def predicting_twice(cls):
    class Own(cls):
        def make_predict_function(self, force=False):
            if self.predict_function is None or force:
                self.predict_function = tf.function(lambda data: 2 * self(data[0], training=False))
            return self.predict_function

    return Own


def model_of(cls, strategy=None):
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        inputs = keras.Input((6,))
        model = cls(inputs, keras.layers.Dense(1)(inputs))
        model.seen = keras.metrics.Mean("seen")
        model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    return model


class Firsts(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(float(logs["first"]))


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("sized", [True, False])
def test_each_call_trains_on_another_batch_also_in_a_second_fit(sized):
    seen = {}
    for cls in (keras.Model, tfgpu.Model):
        model, firsts = model_of(trained_by_hand(cls)), Firsts()
        for _ in range(2):
            data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(5)
            if not sized:
                data = data.filter(lambda x, y: True)
            model.fit(data, epochs=2, verbose=0, callbacks=[firsts], shuffle=False)
        seen[cls] = firsts.seen, model.get_weights()
    assert len(set(seen[tfgpu.Model][0])) == 5
    assert seen[tfgpu.Model][0] == seen[keras.Model][0]
    for ours, theirs in zip(seen[tfgpu.Model][1], seen[keras.Model][1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_an_own_test_function_reads_all_batches():
    options = {"batch_size": 5, "verbose": 0, "return_dict": True}
    found = [model_of(evaluated_by_hand(c)).evaluate(X, Y, **options) for c in MODELS]
    assert found[1]["seen"] == pytest.approx(found[0]["seen"], rel=1e-6)


def test_an_own_predict_function_gets_batches():
    found = [model_of(predicting_twice(c)).predict(X, batch_size=5, verbose=0) for c in MODELS]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


MODELS = (keras.Model, tfgpu.Model)


def test_a_function_around_tfgpus_keeps_its_execution(mirrored2):
    class Counting(tfgpu.Model):
        calls = 0

        def make_train_function(self, force=False):
            function = super().make_train_function(force)

            def counting(iterator):
                self.calls += 1
                return function(iterator)

            self.train_function = counting
            return counting

    plain, model = model_of(keras.Model), model_of(Counting, mirrored2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is custom")
        for each in (plain, model):
            each.fit(X, Y, batch_size=5, epochs=2, verbose=0, shuffle=False)
    assert model.calls == 10
    np.testing.assert_allclose(model.get_weights()[0], plain.get_weights()[0], rtol=1e-4, atol=1e-6)


def test_under_several_replicas_it_is_said_to_be_stocks(mirrored2):
    class Own(tfgpu.Model):
        def make_test_function(self, force=False):
            def function(iterator):
                batch = self.distribute_strategy.experimental_local_results(next(iterator))
                return {"replicas": float(len(batch))}

            self.test_function = function
            return function

    with pytest.warns(UserWarning, match="make_test_function of Own is custom"):
        logs = model_of(Own, mirrored2).evaluate(X, Y, batch_size=5, verbose=0, return_dict=True)
    assert logs
