"""The pure functions of a step: each against Keras' own, or against what it stands for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpu.engine.losses import Padding
from tfgpu.engine.replica_step import all_finite, apply_optimizer, pack, read

SHAPES = [(6, 4), (4,), (3, 3, 2, 4)]
STEPS = 4

OPTIMIZERS = {
    "sgd": lambda **kw: keras.optimizers.SGD(0.05, **kw),
    "momentum": lambda **kw: keras.optimizers.SGD(0.05, momentum=0.9, **kw),
    "nesterov": lambda **kw: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, **kw),
    "adam": lambda **kw: keras.optimizers.Adam(0.01, **kw),
    "amsgrad": lambda **kw: keras.optimizers.Adam(0.01, amsgrad=True, **kw),
    "adamw": lambda **kw: keras.optimizers.AdamW(0.01, **kw),
    "nadam": lambda **kw: keras.optimizers.Nadam(0.01, **kw),
    "rmsprop": lambda **kw: keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True, **kw),
    "lion": lambda **kw: keras.optimizers.Lion(0.01, **kw),
    "adagrad": lambda **kw: keras.optimizers.Adagrad(0.01, **kw),
    "adadelta": lambda **kw: keras.optimizers.Adadelta(0.5, **kw),
    "adamax": lambda **kw: keras.optimizers.Adamax(0.01, **kw),
    "ftrl": lambda **kw: keras.optimizers.Ftrl(0.05, l1_regularization_strength=0.01, **kw),
    "adafactor": lambda **kw: keras.optimizers.Adafactor(0.01, **kw),
    "lamb": lambda **kw: keras.optimizers.Lamb(0.01, **kw),
    "muon": lambda **kw: keras.optimizers.Muon(0.01, **kw),
}
VARIANTS = {
    "plain": {},
    "weight_decay": {"weight_decay": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "clipnorm": {"clipnorm": 0.3},
    "clipvalue": {"clipvalue": 0.2},
    "ema": {"use_ema": True, "ema_momentum": 0.8},
    "ema_overwrite": {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
}
# Every optimizer as it comes and with weight decay; every other setting with two of them.
CASES = [(name, variant) for name in OPTIMIZERS for variant in ("plain", "weight_decay")]
CASES += [(name, variant) for name in ("momentum", "adam") for variant in list(VARIANTS)[2:]]


def _gradients(step, *, seed=1):
    rng = np.random.RandomState(100 * seed + step)
    return [tf.constant(rng.randn(*shape), tf.float32) for shape in SHAPES]


def _variables():
    rng = np.random.RandomState(0)
    return [keras.Variable(rng.randn(*shape).astype("float32")) for shape in SHAPES]


def _trained_by_keras(optimizer, gradients):
    variables = _variables()
    optimizer.build(variables)
    for step in gradients:
        optimizer.apply(step)
    return read(variables), read(optimizer.variables)


def _trained_purely(optimizer, gradients, *, wrap=lambda f: f):
    """Returns the new values and checks that no variable was written."""
    variables = _variables()
    optimizer.build(variables)
    before = [v.numpy() for v in [*variables, *optimizer.variables]]
    trainable, values = read(variables), read(optimizer.variables)
    update = wrap(lambda v, g, t: apply_optimizer(optimizer, v, g, t))
    for step in gradients:
        trainable, values = update(values, step, trainable)
    for old, new in zip(before, [*variables, *optimizer.variables], strict=True):
        np.testing.assert_array_equal(old, new.numpy())
    return trainable, values


def _assert_close(expected, actual, **tolerance):
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), **tolerance)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_apply_optimizer_equals_keras_apply(name, variant):
    gradients = [_gradients(step) for step in range(STEPS)]
    expected = _trained_by_keras(OPTIMIZERS[name](**VARIANTS[variant]), gradients)
    actual = _trained_purely(OPTIMIZERS[name](**VARIANTS[variant]), gradients)
    for one, other in zip(expected, actual, strict=True):
        _assert_close(one, other, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["nesterov", "adam", "nadam"])
def test_apply_optimizer_compiles_with_xla(name):
    gradients = [_gradients(step) for step in range(STEPS)]
    settings = {"weight_decay": 0.1, "global_clipnorm": 0.5, "use_ema": True}
    expected = _trained_by_keras(OPTIMIZERS[name](**settings), gradients)
    actual = _trained_purely(
        OPTIMIZERS[name](**settings), gradients, wrap=lambda f: tf.function(f, jit_compile=True)
    )
    for one, other in zip(expected, actual, strict=True):
        _assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_apply_optimizer_follows_a_schedule():
    def make():
        schedule = keras.optimizers.schedules.PolynomialDecay(0.1, decay_steps=STEPS)
        return keras.optimizers.SGD(schedule, momentum=0.9)

    gradients = [_gradients(step) for step in range(STEPS)]
    expected = _trained_by_keras(make(), gradients)
    actual = _trained_purely(make(), gradients)
    _assert_close(expected[0], actual[0], rtol=1e-6)


def test_apply_optimizer_leaves_a_variable_without_gradient():
    optimizer = keras.optimizers.SGD(0.1)
    variables = _variables()
    optimizer.build(variables)
    gradients = _gradients(0)
    gradients[1] = None
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        trainable, _ = apply_optimizer(
            optimizer, read(optimizer.variables), gradients, read(variables)
        )
    np.testing.assert_array_equal(variables[1].numpy(), trainable[1])
    assert np.any(variables[0].numpy() != trainable[0].numpy())


def test_apply_optimizer_applies_constraints():
    optimizer = keras.optimizers.SGD(0.1)
    variable = keras.Variable(np.ones((2, 2), "float32"))
    variable.constraint = keras.constraints.NonNeg()
    optimizer.build([variable])
    (new,), _ = apply_optimizer(
        optimizer, read(optimizer.variables), [tf.fill((2, 2), 100.0)], read([variable])
    )
    np.testing.assert_array_equal(new, np.zeros((2, 2)))


@pytest.mark.parametrize("name", ["nesterov", "adam", "nadam", "adamw"])
@pytest.mark.parametrize(
    "variant", ["plain", "weight_decay", "global_clipnorm", "ema", "ema_overwrite"]
)
def test_accumulating_m_gradients_equals_one_step_with_their_mean(name, variant):
    every = 3
    calls = [_gradients(step) for step in range(STEPS * every)]
    means = [
        [tf.add_n(parts) / every for parts in zip(*calls[i : i + every], strict=True)]
        for i in range(0, len(calls), every)
    ]
    expected, _ = _trained_purely(OPTIMIZERS[name](**VARIANTS[variant]), means)
    actual, _ = _trained_purely(
        OPTIMIZERS[name](gradient_accumulation_steps=every, **VARIANTS[variant]), calls
    )
    _assert_close(expected, actual, rtol=1e-5, atol=1e-6)


def test_accumulation_changes_nothing_but_accumulators_between_updates():
    optimizer = keras.optimizers.Adam(
        0.1, gradient_accumulation_steps=3, use_ema=True, weight_decay=0.1
    )
    variables = _variables()
    optimizer.build(variables)
    accumulators = {id(v) for v in optimizer._accumulated_gradients}
    trainable, values = read(variables), read(optimizer.variables)
    new_trainable, new_values = apply_optimizer(optimizer, values, _gradients(0), trainable)
    _assert_close(trainable, new_trainable, rtol=0)
    for variable, old, new in zip(optimizer.variables, values, new_values, strict=True):
        if variable is optimizer._iterations:
            assert int(new) == int(old) + 1
        elif id(variable) not in accumulators:
            np.testing.assert_array_equal(old, new)
        else:
            assert np.any(old.numpy() != new.numpy())


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_finite(jit_compile, dtype):
    # In a graph of known shapes an optimizer could fold a product with 0.
    check = tf.function(
        lambda a, b: all_finite([None, a * 1, b]),
        jit_compile=jit_compile,
        input_signature=[tf.TensorSpec([3], dtype), tf.TensorSpec([2, 2], dtype)],
    )
    good = tf.ones((2, 2), dtype)
    largest = tf.constant([float(tf.as_dtype(dtype).max)] * 3, dtype)
    assert check(largest, good)  # The sum of these would overflow.
    assert check(-largest, good)
    for value in (np.inf, -np.inf, np.nan):
        assert not check(tf.constant([1.0, value, 2.0], dtype), good)
    # Infinities of both signs must not cancel.
    assert not check(tf.constant([np.inf, -np.inf, 0.0], dtype), good)
    assert not check(largest, tf.constant([[0, 0], [0, np.nan]], dtype))


def test_pack_is_one_vector_a_dtype_and_unpack_undoes_it():
    tensors = [
        tf.reshape(tf.range(6.0), (2, 3)),
        None,
        tf.constant([1.5, 2.5], tf.float16),
        tf.constant(7.0),
        tf.zeros((0, 4)),
        tf.constant([[3.0]], tf.float16),
    ]
    vectors, unpack = pack(tensors)
    assert [(v.dtype, v.shape.as_list()) for v in vectors] == [(tf.float32, [7]), (tf.float16, [3])]
    parts = unpack([2 * v for v in vectors])
    assert parts[1] is None
    for tensor, part in zip(tensors, parts, strict=True):
        if tensor is not None:
            assert (tensor.dtype, tensor.shape) == (part.dtype, part.shape)
            np.testing.assert_array_equal(2 * tensor, part)


def test_pack_of_nothing():
    vectors, unpack = pack([None, None])
    assert vectors == []
    assert unpack([]) == [None, None]


def test_padding_weights_turn_means_over_rows_into_the_mean_over_real_ones():
    values = [np.float32([1, 2, 3, 4]), np.float32([5, 5, 5, 5])]  # 5 real rows of 8
    shares = [
        np.mean(
            rows * Padding(tf.constant(real), tf.constant(5), tf.constant(8)).weights(4, mean=True)
        )
        for rows, real in zip(values, (4, 1), strict=True)
    ]
    # Keras divides a replica's mean by the number of replicas.
    np.testing.assert_allclose(sum(shares) / 2, np.mean([1, 2, 3, 4, 5]), rtol=1e-6)


def test_padding_weights_of_a_sum_are_a_mask():
    padding = Padding(tf.constant(2), tf.constant(5), tf.constant(8))
    np.testing.assert_array_equal(padding.weights(4, mean=False), [1, 1, 0, 0])


def test_padding_weights_of_a_replica_without_real_rows_are_0():
    padding = Padding(tf.constant(0), tf.constant(3), tf.constant(8))
    np.testing.assert_array_equal(padding.weights(4, mean=True), [0, 0, 0, 0])
