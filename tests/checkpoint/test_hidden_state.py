"""State that Keras does not count among a model's variables is continued too, or spoken of."""

import keras
import pytest
import tensorflow as tf
from backed_up import resumed, same, train

import tfgpu
from tfgpu.engine import keras_internals as private


class Noise(keras.layers.Layer):
    """Keeps a counter and a generator of TensorFlow."""

    def build(self, shape):
        self.count = tf.Variable(0.0, trainable=False)
        self.generator = tf.random.Generator.from_seed(3)

    def call(self, x, training=False):
        if not training:
            return x
        self.count.assign_add(1.0)
        return x + 0.01 * self.count * self.generator.normal(tf.shape(x))


class Drawing(keras.layers.Layer):
    """Draws from Keras' global generator."""

    def call(self, x, training=False):
        return x + keras.random.normal(tf.shape(x), stddev=0.1) if training else x


def drawing():
    # As in a new process.
    private.set_global_generator(None)
    return Drawing()


class Growing(keras.losses.SparseCategoricalCrossentropy):
    """Counts its calls."""

    def __init__(self, **given):
        super().__init__(**given)
        self.calls = keras.Variable(0.0, trainable=False)

    def call(self, y_true, y_pred):
        self.calls.assign(self.calls + 1.0)
        return (1.0 + 0.1 * self.calls) * super().call(y_true, y_pred)


class TwoOptimizers(tfgpu.Model):
    """The bias of the last layer has an optimizer of its own, which its first update builds."""

    def compile(self, *args, **given):
        super().compile(*args, **given)
        self.other = keras.optimizers.Adam(0.1)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        gradients = tape.gradient(loss, variables)
        self.optimizer.apply(gradients[:-1], variables[:-1])
        self.other.apply(gradients[-1:], variables[-1:])
        return {"loss": loss}


@pytest.mark.parametrize(
    "given",
    [
        {"extra": Noise},
        pytest.param({"extra": drawing}, marks=pytest.mark.slow),
        pytest.param({"loss": Growing}, marks=pytest.mark.slow),
    ],
    ids=["TensorFlow's variables", "the global generator", "a loss"],
)
def test_it_resumes_to_the_bit(tmp_path, given):
    default = tf.distribute.get_strategy()
    whole, logs, _ = train(tmp_path / "whole", default, **given)
    cut, cut_logs, backup = resumed(tmp_path / "cut", default, 5, **given)
    assert backup.resumed_from and backup.exact and not backup.warnings
    assert same(whole, cut) and logs == cut_logs


@pytest.mark.slow
def test_on_two_replicas_it_does_too(tmp_path, mirrored2):
    given = {"extra": Noise, "kind": TwoOptimizers, "metrics": None}
    whole, _, fresh = train(tmp_path / "whole", mirrored2, **given)
    cut, _, backup = resumed(tmp_path / "cut", mirrored2, 5, **given)
    assert backup.exact and not fresh.warnings and not backup.warnings
    assert same(whole, cut)


def test_the_second_optimizer_of_a_step_of_ones_own_resumes_to_the_bit(tmp_path):
    default = tf.distribute.get_strategy()
    given = {"kind": TwoOptimizers, "metrics": None}
    whole, _, _ = train(tmp_path / "whole", default, **given)
    cut, _, backup = resumed(tmp_path / "cut", default, 5, **given)
    assert backup.resumed_from and backup.exact
    assert same(whole, cut)
    for ours, theirs in zip(whole.other.variables, cut.other.variables, strict=True):
        assert (ours.numpy() == theirs.numpy()).all()


@pytest.mark.slow
def test_random_operations_of_tensorflow_are_spoken_of(tmp_path, one):
    class Draws(keras.layers.Layer):
        def call(self, x, training=False):
            return x + tf.random.normal(tf.shape(x), stddev=0.1) if training else x

    _, _, fresh = train(tmp_path / "fresh", one, extra=Draws)
    assert [text for text in fresh.warnings if "random operations of TensorFlow" in text]
    assert fresh.exact
    _, _, backup = resumed(tmp_path / "cut", one, 5, extra=Draws)
    assert not backup.exact


def test_a_variable_that_the_model_does_not_lead_to_is_named_once(tmp_path, one):
    counter = tf.Variable(0.0, trainable=False, name="of_the_module")

    class Counts(keras.layers.Layer):
        def call(self, x, training=False):
            if training:
                counter.assign_add(1.0)
            return x * (1.0 + 0.01 * counter)

    _, _, backup = train(tmp_path, one, extra=Counts)
    [said] = backup.warnings
    assert "of_the_module" in said and "attribute of the model" in said


@pytest.mark.slow
def test_a_variable_that_the_first_step_makes_is_spoken_of(tmp_path):
    class Late(keras.layers.Layer):
        count = None

        def call(self, x, training=False):
            if training and self.count is None:
                with tf.init_scope():
                    self.count = tf.Variable(0.0, trainable=False)
            if training:
                self.count.assign_add(1.0)
            return x

    _, _, backup = resumed(tmp_path, tf.distribute.get_strategy(), 5, extra=Late)
    assert not backup.exact
    assert [text for text in backup.warnings if "count" in text and "begins anew" in text]
