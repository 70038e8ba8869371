"""The update: every optimizer on the replicas' copies does what it does on one device."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from own_steps import updated
from versions import KERAS

import tfgpu
from tfgpu.engine.local_copies import on_local_copies
from tfgpu.engine.update import all_finite, apply

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
if KERAS < (3, 11):
    del OPTIMIZERS["muon"]  # That of 3.10 fails under any strategy, with stock Keras too.
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


def _values(variables):
    return [variable.numpy() for variable in variables]


def _trained_by_keras(optimizer, gradients):
    variables = _variables()
    optimizer.build(variables)
    for step in gradients:
        optimizer.apply(step)
    return _values(variables), _values(optimizer.variables)


def _trained(make, gradients, *, strategy=None, jit_compile=False, variables=_variables):
    """The values after the updates, of the first replica; the others' are the same."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        variables, optimizer = variables(), make()
        optimizer.build(variables)

    def replica(gradients):
        context = tf.distribute.get_replica_context()

        def update():
            with on_local_copies(context):
                apply(optimizer, gradients, variables)

        tf.function(update, jit_compile=jit_compile, autograph=False)()

    @tf.function(autograph=False)
    def step(gradients):
        strategy.run(replica, args=(gradients,))

    for given in gradients:
        step(given)
    for variable in [*variables, *optimizer.variables]:
        first, *others = strategy.experimental_local_results(variable._value)
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)
    return _values(variables), _values(optimizer.variables)


def _assert_close(expected, actual, **tolerance):
    for one, other in zip(expected, actual, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), **tolerance)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_two_replicas_update_as_keras_does_on_one_device(mirrored2, name, variant):
    gradients = [_gradients(step) for step in range(STEPS)]
    expected = _trained_by_keras(OPTIMIZERS[name](**VARIANTS[variant]), gradients)
    actual = _trained(lambda: OPTIMIZERS[name](**VARIANTS[variant]), gradients, strategy=mirrored2)
    rtol = 5e-5 if name == "ftrl" else 2e-6  # It divides small differences of large numbers.
    for one, other in zip(expected, actual, strict=True):
        _assert_close(one, other, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("name", ["nesterov", "adam", "nadam"])
def test_xla_compiles_an_update(mirrored2, name):
    gradients = [_gradients(step) for step in range(STEPS)]
    settings = {"weight_decay": 0.1, "global_clipnorm": 0.5, "use_ema": True}
    expected = _trained_by_keras(OPTIMIZERS[name](**settings), gradients)
    actual = _trained(
        lambda: OPTIMIZERS[name](**settings), gradients, strategy=mirrored2, jit_compile=True
    )
    for one, other in zip(expected, actual, strict=True):
        _assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_schedule_is_followed(mirrored2):
    def make():
        schedule = keras.optimizers.schedules.PolynomialDecay(0.1, decay_steps=STEPS)
        return keras.optimizers.SGD(schedule, momentum=0.9)

    gradients = [_gradients(step) for step in range(STEPS)]
    expected = _trained_by_keras(make(), gradients)
    actual = _trained(make, gradients, strategy=mirrored2)
    _assert_close(expected[0], actual[0], rtol=1e-6)


def test_a_variable_without_gradient_stays_as_it_is(mirrored2):
    gradients = _gradients(0)
    gradients[1] = None
    before = _values(_variables())
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        after, _ = _trained(lambda: keras.optimizers.SGD(0.1), [gradients], strategy=mirrored2)
    np.testing.assert_array_equal(before[1], after[1])
    assert np.any(before[0] != after[0])


def test_constraints_are_applied(mirrored2):
    def variables():
        variable = keras.Variable(np.ones((2, 2), "float32"))
        variable.constraint = keras.constraints.NonNeg()
        return [variable]

    gradients = [[tf.fill((2, 2), 100.0)]]
    (new,), _ = _trained(
        lambda: keras.optimizers.SGD(0.1), gradients, strategy=mirrored2, variables=variables
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
    expected, _ = _trained(lambda: OPTIMIZERS[name](**VARIANTS[variant]), means)
    actual, _ = _trained(
        lambda: OPTIMIZERS[name](gradient_accumulation_steps=every, **VARIANTS[variant]), calls
    )
    _assert_close(expected, actual, rtol=1e-5, atol=1e-6)


def test_accumulation_changes_nothing_but_accumulators_between_updates(mirrored2):
    def make():
        return keras.optimizers.Adam(
            0.1, gradient_accumulation_steps=3, use_ema=True, weight_decay=0.1
        )

    reference, variables = make(), _variables()
    reference.build(variables)
    after, state = _trained(make, [_gradients(0)], strategy=mirrored2)
    _assert_close(_values(variables), after, rtol=0)
    accumulators = {id(v) for v in reference._accumulated_gradients}
    for variable, new in zip(reference.variables, state, strict=True):
        if variable is reference._iterations:
            assert int(new) == 1
        elif id(variable) not in accumulators:
            np.testing.assert_array_equal(variable.numpy(), new)
        else:
            assert np.any(new != 0)


# ---- the loss scale ------------------------------------------------------------------------


def _scaled_sgd(**settings):
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.1, momentum=0.9, **settings), initial_scale=4.0
    )


def _ones():
    return [keras.Variable(np.ones((2, 2), "float32"))]


def _state(make, gradients, strategy):
    """The weights, and the optimizer's values by the names of its variables."""
    (weights,), values = _trained(make, gradients, strategy=strategy, variables=_ones)
    optimizer = make()
    optimizer.build(_ones())
    names = [variable.name for variable in optimizer.variables]
    return weights, dict(zip(names, values, strict=True))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_skipped_and_halves_the_scale(mirrored2, bad):
    weights, state = _state(_scaled_sgd, [[tf.constant([[1.0, 2.0], [bad, 0.0]])]], mirrored2)
    np.testing.assert_array_equal(weights, np.ones((2, 2)))
    assert float(state.pop("dynamic_scale")) == 2.0
    assert float(state.pop("learning_rate")) == np.float32(0.1)
    assert all(not np.any(value) for value in state.values())


def test_the_gradient_is_divided_by_the_scale(mirrored2):
    weights, state = _state(_scaled_sgd, [[tf.fill((2, 2), 4.0)]], mirrored2)
    np.testing.assert_allclose(weights, np.full((2, 2), 0.9))
    assert int(state["step_counter"]) == 1
    assert int(state["iteration"]) == 1


def test_a_skipped_step_does_not_count_for_accumulation(mirrored2):
    def make():
        return _scaled_sgd(gradient_accumulation_steps=2)

    # The second is skipped, and the scale is 2 from then on.
    gradients = [[tf.fill((2, 2), np.float32(g))] for g in (1.0 * 4, np.inf, 3.0 * 2)]
    weights, state = _state(make, gradients, mirrored2)
    assert float(state["dynamic_scale"]) == 2.0
    assert int(state["iteration"]) == 2
    np.testing.assert_allclose(weights, np.full((2, 2), 1 - 0.1 * (1 + 3) / 2), rtol=1e-6)


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


@pytest.mark.parametrize("own", [False, True])
def test_scales_of_float8_are_the_largest_of_the_replicas(mirrored2, own):
    x = np.random.default_rng(0).normal(size=(28, 16)).astype("float32")
    found = []
    for cls, place in ((keras.Model, tf.distribute.get_strategy()), (tfgpu.Model, mirrored2)):

        class Steps(cls):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
                weights = self.trainable_weights
                self.optimizer.apply(tape.gradient(loss, weights), weights)
                return {"loss": loss}

        keras.utils.set_random_seed(1)
        with place.scope():
            inputs = keras.Input((16,))
            model = (Steps if own else cls)(inputs, keras.layers.Dense(16, name="d")(inputs))
            for layer in model.layers[1:]:
                layer.quantize("float8")
            model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
        history = model.fit(x, x, batch_size=8, epochs=3, shuffle=False, verbose=0).history
        kept = [each for each in model.weights if "scale" in each.path or "amax" in each.path]
        assert len(kept) == 6
        # The weights themselves follow how eight bits were rounded.
        state = [np.ravel(tf.convert_to_tensor(each)) for each in kept]
        found.append([*history["loss"], *np.concatenate(state)])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3)


# ---- wherever the optimizer is -------------------------------------------------------------


def accumulating():
    rate = keras.optimizers.schedules.ExponentialDecay(0.2, 1, 0.5)
    return keras.optimizers.Adam(rate, gradient_accumulation_steps=2)


class Wrapping(keras.optimizers.Optimizer):
    """Leaves the update to another optimizer."""

    def __init__(self, inner):
        super().__init__(learning_rate=0.0)
        self.parts = {"inner": inner}

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.parts["inner"].build(variables)

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
        self.parts["inner"].apply(grads, trainable_variables)


class OwnStep(tfgpu.Model):
    def train_step(self, data):
        return {"loss": updated(self, data)[1]}


WAYS = {
    "plain": (tfgpu.Model, {}, accumulating),
    "eager": (tfgpu.Model, {"run_eagerly": True}, accumulating),
    "own step": (OwnStep, {}, accumulating),
    "wrapped": (tfgpu.Model, {}, lambda: Wrapping(accumulating())),
    "wrapped in an own step": (OwnStep, {}, lambda: Wrapping(accumulating())),
}


@pytest.mark.parametrize("replicas", [1, 2])
def test_accumulation_counts_updates_wherever_the_optimizer_is(mirrored2, replicas):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 3)).astype("float32"), rng.normal(size=(24, 1)).astype("float32")
    found = {}
    for name, (kind, settings, make) in WAYS.items():
        keras.utils.set_random_seed(1)
        with mirrored2.scope() if replicas == 2 else contextlib.nullcontext():
            inputs = keras.Input((3,))
            model = kind(inputs, keras.layers.Dense(1)(inputs))
            model.compile(make(), "mse", **settings)
        model.fit(x, y, batch_size=4, verbose=0, shuffle=False)
        found[name] = model.get_weights()[0].ravel()
    for name, weights in found.items():
        np.testing.assert_allclose(weights, found["plain"], rtol=1e-5, err_msg=name)


class MakesLate(keras.optimizers.SGD):
    """Makes a variable at its first update."""

    late = None

    def update_step(self, gradient, variable, learning_rate):
        if self.late is None:
            self.late = keras.Variable(1.0)
        super().update_step(gradient, variable, learning_rate)


@pytest.mark.parametrize("kind", [tfgpu.Model, OwnStep])
def test_an_optimizer_that_makes_variables_late_is_refused_by_name(mirrored2, kind):
    with mirrored2.scope():
        inputs = keras.Input((3,))
        model = kind(inputs, keras.layers.Dense(1)(inputs))
        model.compile(MakesLate(0.1, name="tardy"), "mse")
    with pytest.raises(ValueError, match="The optimizer 'tardy' makes a variable in its update"):
        model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
