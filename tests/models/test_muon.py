"""Muon and SGD against NumPy, in PyTorch's order of operations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu
from tfgpu.models.muon import COEFFICIENTS, Group, MuonSGD, orthogonalised

RANDOM = np.random.RandomState(0)


def newton_schulz(matrix, steps=3, epsilon=1e-7):
    """The iteration in float64, on (out, rest) with the smaller side first."""
    a, b, c = COEFFICIENTS
    x = matrix.astype(np.float64) / (np.linalg.norm(matrix) + epsilon)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def as_matrix(kernel):
    """(..., in, out) -> (out, rest), as PyTorch lies."""
    return np.reshape(kernel, (-1, kernel.shape[-1])).T


def from_matrix(matrix, shape):
    return matrix.T.reshape(shape)


SHAPES = [(3, 3, 24, 64), (3, 3, 8, 16), (3, 3, 2, 40), (30, 7)]  # The third has fewer inputs.


@pytest.mark.parametrize("jit_compile", [False, True])
def test_orthogonalised_is_the_iteration_in_float64_but_for_bfloat16(jit_compile):
    kernels = [RANDOM.normal(size=shape).astype(np.float32) for shape in SHAPES]
    function = tf.function(orthogonalised, jit_compile=jit_compile, autograph=False)
    for kernel, found in zip(kernels, function([tf.constant(k) for k in kernels]), strict=True):
        expected = newton_schulz(as_matrix(kernel))
        found = as_matrix(found.numpy())
        # bfloat16 has 8 bits, and each of three steps rounds several times: PyTorch's own ends 0.01
        # to 0.02 from float64, and with coefficients in bfloat16 it would be 0.035.
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 0.025, kernel.shape


def test_singular_values_end_near_one():
    (found,) = orthogonalised([tf.constant(RANDOM.normal(size=(3, 3, 32, 24)), tf.float32)])
    values = np.linalg.svd(as_matrix(found.numpy()), compute_uv=False)
    assert 0.3 < values.min() < values.max() < 1.6


def test_kernels_beside_a_larger_one_stay_the_same():
    small = tf.constant(RANDOM.normal(size=(3, 3, 4, 8)), tf.float32)
    large = tf.constant(RANDOM.normal(size=(3, 3, 16, 32)), tf.float32)
    (alone,), (beside, _) = orthogonalised([small]), orthogonalised([small, large])
    np.testing.assert_allclose(alone, beside, atol=0.01)


# ---- updates --------------------------------------------------------------------------------


def falling(rate, steps=10):
    return keras.optimizers.schedules.PolynomialDecay(rate, steps, end_learning_rate=0.0)


def groups():
    return [
        Group("kernel$", falling(0.24), momentum=0.6, muon=True),
        Group("bias$", falling(0.053), momentum=0.85, weight_decay=0.1),
        Group("head$", 0.67, momentum=0.85, weight_decay=0.02),
    ]


class Reference:
    """PyTorch's SGD and the record's Muon for one variable, in NumPy."""

    def __init__(self, value, group):
        self.value, self.group, self.buffer = value.astype(np.float64), group, 0.0

    def step(self, gradient, number):
        group, value = self.group, self.value
        rate = group.learning_rate
        if not isinstance(rate, float):
            rate = rate.initial_learning_rate * max(0, 1 - number / rate.decay_steps)
        gradient = gradient + group.weight_decay * value
        self.buffer = group.momentum * self.buffer + gradient
        update = gradient + group.momentum * self.buffer
        if group.muon:
            value = value * np.sqrt(value.shape[-1]) / np.linalg.norm(value)
            update = from_matrix(newton_schulz(as_matrix(update)), value.shape)
        self.value = value - rate * update


def variables():
    random = np.random.RandomState(1)
    shapes = {"a/kernel": (3, 3, 4, 8), "b/kernel": (3, 3, 8, 8), "bias": (8,), "head": (8, 10)}
    made = []
    for name, shape in shapes.items():
        value = random.normal(size=shape).astype(np.float32)
        made.append(keras.Variable(value, name=name.replace("/", "_")))
    return made


@pytest.mark.parametrize("jit_compile", [False, True])
def test_updates_are_those_of_pytorch(jit_compile):
    optimizer, made = MuonSGD(groups()), variables()
    optimizer.build(made)
    references = [
        Reference(variable.numpy(), groups()[group])
        for variable, group in zip(made, (0, 0, 1, 2), strict=True)
    ]

    @tf.function(jit_compile=jit_compile, autograph=False)
    def apply(gradients):
        optimizer.apply(gradients, made)

    # Past the end of the schedules.
    for number in range(12):
        gradients = [RANDOM.normal(size=v.shape).astype(np.float32) for v in made]
        apply([tf.constant(g) for g in gradients])
        for reference, gradient in zip(references, gradients, strict=True):
            reference.step(gradient, number)
    for variable, reference in zip(made, references, strict=True):
        # The iteration is in bfloat16; all else in float32.
        tolerance = 0.02 if reference.group.muon else 2e-5
        difference = np.linalg.norm(variable.numpy() - reference.value)
        assert difference < tolerance * np.linalg.norm(reference.value), variable.path
    assert int(optimizer.iterations.numpy()) == 12


def test_a_variable_without_gradient_and_one_left_out_stay_as_they_are():
    optimizer, made = MuonSGD(groups()), variables()
    optimizer.build(made)
    before = [v.numpy() for v in made]
    gradients = [tf.ones(v.shape) for v in made]
    optimizer.apply([gradients[0], None, gradients[3]], [made[0], made[1], made[3]])
    same = [bool((v.numpy() == b).all()) for v, b in zip(made, before, strict=True)]
    assert same == [False, True, True, False]


def test_a_variable_in_no_group_is_refused():
    with pytest.raises(ValueError, match="variable 'bias' is in none of the groups 'kernel"):
        MuonSGD(groups()[:1]).build(variables())


def test_muon_with_a_decay_is_refused():
    with pytest.raises(ValueError, match="weight_decay of 0.1 would do nothing"):
        Group("kernel", 0.1, momentum=0.5, weight_decay=0.1, muon=True)


def test_its_config_makes_the_same_optimizer():
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(MuonSGD(groups())))
    assert isinstance(optimizer, MuonSGD)
    made, others = variables(), variables()
    optimizer.build(made)
    original = MuonSGD(groups())
    original.build(others)
    gradients = [RANDOM.normal(size=v.shape).astype(np.float32) for v in made]
    optimizer.apply(gradients, made)
    original.apply(gradients, others)
    for variable, other in zip(made, others, strict=True):
        np.testing.assert_array_equal(variable.numpy(), other.numpy())


def test_two_replicas_update_as_one_device_does(mirrored2):
    random = np.random.RandomState(0)
    x, y = random.normal(size=(24, 6, 6, 2)).astype(np.float32), random.randint(0, 3, 24)
    weights = []
    for strategy in (tf.distribute.get_strategy(), mirrored2):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            inputs = keras.Input((6, 6, 2))
            h = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
            model = tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(h)))
            optimizer = MuonSGD(
                [
                    Group("conv/kernel", falling(0.02), momentum=0.6, muon=True),
                    Group("", 0.01, momentum=0.85, weight_decay=0.01),
                ]
            )
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(optimizer, loss, jit_compile=True, steps_per_execution=3)
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-3)
