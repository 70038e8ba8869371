"""A model that computes its activations again trains as one that keeps them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import assert_same_on_replicas, one_device, slow, ways

import tfgpu
from tfgpu.models.segments import best_cuts, segments

way = ways("x1", slow("x1-xla"), "x2", slow("x2-xla"))
# Of Keras' own, when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 256, (48, 8, 8, 3)).astype(np.uint8)
Y = RANDOM.integers(0, 3, 48)


def residual(*, policy="float32"):
    """With everything that must not happen twice: moving statistics and random numbers."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(layers.Rescaling(1 / 255)(inputs))
    for number in range(4):
        y = layers.BatchNormalization(momentum=0.5, name=f"norm{number}")(x)
        y = layers.Conv2D(8, 3, padding="same", activation="relu")(y)
        x = layers.Add(name=f"add{number}")([x, layers.Dropout(0.3, name=f"drop{number}")(y)])
    x = layers.GlobalAveragePooling2D()(x)
    return tfgpu.Model(inputs, layers.Dense(3, dtype="float32")(x))


def trained(strategy, *, remat, xla, policy="float32", build=residual):
    with strategy.scope():
        model = build(policy=policy)
        if remat:
            model.tfgpu_segments = segments(model)
            assert len(model.tfgpu_segments) > 2
        model.compile(
            keras.optimizers.SGD(0.05, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=xla,
        )
    # The last batch is partial: one of the two replicas has one row less.
    model.fit(X[:45], Y[:45], batch_size=16, epochs=2, shuffle=False, verbose=0)
    return model


def assert_same(kept, again, *, xla=False):
    for one, other in zip(kept.variables, again.variables, strict=True):
        if xla:  # It fuses the two in other ways.
            np.testing.assert_allclose(other.numpy(), one.numpy(), 1e-5, 2e-6, err_msg=one.path)
        else:
            np.testing.assert_array_equal(other.numpy(), one.numpy(), err_msg=one.path)


@pytest.mark.slow
def test_the_weights_are_the_same(way):
    strategy, xla = way
    kept = trained(strategy, remat=False, xla=xla)
    again = trained(strategy, remat=True, xla=xla)
    assert np.abs(kept.get_layer("norm1").moving_mean.numpy()).max() > 0.01
    assert_same(kept, again, xla=xla)
    assert_same_on_replicas(again.variables)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_the_weights_are_the_same_in_mixed_precision(policy):
    kept = trained(one_device(), remat=False, xla=False, policy=policy)
    assert_same(kept, trained(one_device(), remat=True, xla=False, policy=policy))


def test_the_forward_pass_is_computed_again_and_not_kept():
    """Each convolution but those of the last segment stands twice in the gradient's graph."""
    model = residual()
    model.tfgpu_segments = segments(model)

    def convolutions(call):
        @tf.function
        def gradients(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(call(x))
            return tape.gradient(loss, [v.value for v in model.trainable_variables])

        graph = gradients.get_concrete_function(tf.TensorSpec((4, 8, 8, 3), tf.uint8)).graph
        return sum(operation.type == "Conv2D" for operation in graph.get_operations())

    last = sum(
        isinstance(layer, keras.layers.Conv2D) for layer in model.tfgpu_segments._models[-1].layers
    )
    assert convolutions(lambda x: model(x, training=True)) == 5
    assert convolutions(model.tfgpu_segments) == 5 + (5 - last) and last < 5


@pytest.mark.slow
def test_frozen_layers_stay_and_the_others_train():
    def build(*, policy):
        model = residual(policy=policy)
        for layer in model.layers[:6]:
            layer.trainable = False
        return model

    kept = trained(one_device(), remat=False, xla=False, build=build)
    again = trained(one_device(), remat=True, xla=False, build=build)
    assert_same(kept, again)
    start = residual()
    np.testing.assert_array_equal(again.layers[2].kernel.numpy(), start.layers[2].kernel.numpy())
    assert np.abs(again.layers[-1].kernel.numpy() - start.layers[-1].kernel.numpy()).max() > 1e-3


@pytest.mark.slow
def test_evaluation_and_files_are_those_of_the_model_itself(tmp_path):
    model = trained(one_device(), remat=True, xla=False)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = residual()
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(model.predict(X, verbose=0), fresh.predict(X, verbose=0))
    assert len(model.layers) == len(fresh.layers)


def test_a_layer_that_adds_a_loss_is_refused():
    class Adds(keras.layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.sum(x))
            return x

    inputs = keras.Input((4,))
    x = Adds()(keras.layers.Dense(4)(inputs))
    for _ in range(3):
        x = keras.layers.Dense(4)(x)
    model = tfgpu.Model(inputs, x)
    model.tfgpu_segments = segments(model)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="a layer adds a loss .* without rematerialization"):
        model.fit(np.zeros((4, 4)), np.zeros((4, 4)), verbose=0)


def test_cuts_are_where_the_least_is_kept():
    # Cutting in the middle keeps 1 and computes 4 again; the places beside it keep 10.
    assert best_cuts([10, 1, 10], [2, 2, 2, 2]) == [1]
    # With equal tensors of size 1, 16 of them: about the square root of 16 segments.
    assert len(best_cuts([1] * 15, [1] * 16)) in (2, 3, 4)


def test_models_that_cannot_be_cut_are_refused():
    two = keras.Input((4,)), keras.Input((4,))
    with pytest.raises(ValueError, match="one input and one output"):
        segments(tfgpu.Model(two, keras.layers.Add()(two)))
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="all that later layers take"):
        segments(tfgpu.Model(inputs, keras.layers.Dense(4)(inputs)))
    x = keras.layers.Dense(4, activity_regularizer="l2", name="regular")(inputs)
    with pytest.raises(ValueError, match="regular has an activity_regularizer"):
        segments(tfgpu.Model(inputs, keras.layers.Dense(4)(x)))
