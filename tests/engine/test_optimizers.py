"""Any Keras optimizer gives the numbers that it gives stock Keras on one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 6)).astype("float32")  # The last batch of 8 is partial.
Y = RNG.normal(size=(22, 1)).astype("float32")


def slow(*values):
    """A case of which others are tried on each run."""
    return pytest.param(*values, marks=pytest.mark.slow)


# Where and how a model runs: the number of replicas, and whether XLA compiles.
PLACES = {"x1": (1, False), "x2": (2, False), "x1-xla": (1, True), "x2-xla": (2, True)}


def strategy_of(name, mirrored2):
    replicas, jit_compile = PLACES[name]
    return (tf.distribute.get_strategy() if replicas == 1 else mirrored2), jit_compile


@pytest.fixture(
    params=[pytest.param(p, marks=pytest.mark.slow) if p == "x1-xla" else p for p in PLACES]
)
def place(request, mirrored2):
    return strategy_of(request.param, mirrored2)


@pytest.fixture(params=["x1", "x2-xla"])
def ends(request, mirrored2):
    """The two places that differ most."""
    return strategy_of(request.param, mirrored2)


STOCK = object()


def where(place):
    """Class, strategy and `jit_compile`; of stock Keras on one device for `STOCK`."""
    if place is STOCK:
        return keras.Model, tf.distribute.get_strategy(), False
    return tfgpu.Model, *place


class Run:
    """A compiled model and what its trainings logged."""

    def __init__(self, place, make_optimizer, *, frozen=False):
        kind, self.strategy, self.jit_compile = where(place)
        keras.utils.set_random_seed(1)
        with self.strategy.scope():
            inputs = keras.Input((6,))
            self.first = keras.layers.Dense(5, activation="tanh", name="first")
            self.first.trainable = not frozen
            outputs = keras.layers.Dense(1, name="second")(self.first(inputs))
            self.model = kind(inputs, outputs)
            self.optimizer = make_optimizer()
        self.losses = []
        self.compile()

    def compile(self, loss="mse"):
        with self.strategy.scope():
            self.model.compile(self.optimizer, loss, jit_compile=self.jit_compile)

    def fit(self, epochs=2, **arguments):
        history = self.model.fit(
            X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **arguments
        )
        self.losses.extend(history.history["loss"])

    def state(self):
        """Losses, weights and the optimizer's variables, by what they are."""
        variables = optimizer_variables(self.optimizer)
        return {
            "losses": self.losses,
            **{f"weight {i}": w for i, w in enumerate(self.model.get_weights())},
            **{f"slot {i}": v.numpy() for i, v in enumerate(variables)},
        }


def optimizer_variables(optimizer):
    """An optimizer's variables and those of the optimizers inside it, each once."""
    variables = list(optimizer.variables)
    inside = [getattr(optimizer, name, None) for name in ("inner", "inner_optimizer")]
    for other in [*inside, *getattr(optimizer, "parts", ())]:
        if other is not None:
            variables.extend(optimizer_variables(other))
    return list({id(v): v for v in variables}.values())


def assert_as_stock(stock, ours, rtol=2e-4, atol=2e-6):
    expected, actual = stock.state(), ours.state()
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=rtol, atol=atol, err_msg=name)
    assert_same_on_replicas(ours)


def assert_same_on_replicas(run):
    for variable in [*run.model.weights, *optimizer_variables(run.optimizer)]:
        first, *others = [v.numpy() for v in getattr(variable.value, "values", [variable.value])]
        assert run.strategy.num_replicas_in_sync == 1 or others, variable.path
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=variable.path)


def on_both(place, make_optimizer, train=Run.fit, **arguments):
    """The same training by stock Keras and by us."""
    runs = [Run(kind, make_optimizer, **arguments) for kind in (STOCK, place)]
    for run in runs:
        train(run)
    return runs


# ---- optimizers of one's own ---------------------------------------------------------------


class Lookahead(keras.optimizers.Optimizer):
    """Wraps an optimizer; the slow weights follow every `every` steps."""

    def __init__(self, inner, every=2, rate=0.5, name="lookahead"):
        super().__init__(learning_rate=0.0, name=name)
        self.inner, self.every, self.rate = inner, every, rate

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.inner.build(variables)
        self.slow = self.add_optimizer_variables(variables, "slow")

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
        trainable_variables = trainable_variables or self._trainable_variables
        begins = self.iterations.value == 0
        for variable in trainable_variables:
            slow = self.slow[self._get_variable_index(variable)]
            slow.assign(keras.ops.where(begins, variable.value, slow.value))
        self.inner.apply(grads, trainable_variables)
        meets = keras.ops.equal(self.inner.iterations.value % self.every, 0)
        for variable in trainable_variables:
            slow = self.slow[self._get_variable_index(variable)]
            new = slow.value + self.rate * (variable.value - slow.value)
            slow.assign(keras.ops.where(meets, new, slow.value))
            variable.assign(keras.ops.where(meets, new, variable.value))
        self.iterations.assign_add(1)


class CentralizedSGD(keras.optimizers.SGD):
    """Gradient centralization, as an override of `apply`."""

    def apply(self, grads, trainable_variables=None):
        grads = [
            g - keras.ops.mean(g, axis=0, keepdims=True) if len(g.shape) > 1 else g for g in grads
        ]
        return super().apply(grads, trainable_variables)


class AveragedSGD(keras.optimizers.SGD):
    """Stochastic weight averaging: the mean of the weights since step `start`."""

    start = 2

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.means = self.add_optimizer_variables(variables, "mean")
        self.count = self.add_variable((), "zeros", name="averaged")

    def apply(self, grads, trainable_variables=None):
        super().apply(grads, trainable_variables)

        def average():
            self.count.assign_add(1.0)
            for variable, mean in zip(self._trainable_variables, self.means, strict=True):
                mean.assign_add((variable.value - mean.value) / self.count.value)

        tf.cond(self.iterations.value > self.start, average, lambda: None)

    def finalize_variable_values(self, var_list):
        for variable, mean in zip(self._trainable_variables, self.means, strict=True):
            variable.assign(mean.value)


class HalvingSGD(keras.optimizers.SGD):
    """An override of `apply_gradients`, TensorFlow's name for the update."""

    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients([(0.5 * g, v) for g, v in grads_and_vars])


class SignMomentum(keras.optimizers.Optimizer):
    """An `update_step` of its own, with a slot."""

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.slots = self.add_optimizer_variables(variables, "sign")

    def update_step(self, gradient, variable, learning_rate):
        slot = self.slots[self._get_variable_index(variable)]
        self.assign(slot, 0.8 * slot.value + 0.2 * gradient)
        rate = keras.ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * keras.ops.tanh(10.0 * slot.value))


class Multi(keras.optimizers.Optimizer):
    """Sends kernels to one optimizer and biases to another."""

    def __init__(self, kernels, biases, name="multi"):
        super().__init__(learning_rate=0.0, name=name)
        self.parts = [kernels, biases]

    def split(self, variables):
        numbers = [int(len(v.shape) < 2) for v in variables]
        return [[i for i, n in enumerate(numbers) if n == part] for part in (0, 1)]

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        for part, positions in zip(self.parts, self.split(variables), strict=True):
            part.build([variables[i] for i in positions])

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
        trainable_variables = trainable_variables or self._trainable_variables
        for part, positions in zip(self.parts, self.split(trainable_variables), strict=True):
            if positions:
                part.apply(
                    [grads[i] for i in positions], [trainable_variables[i] for i in positions]
                )
        self.iterations.assign_add(1)


def excluding():
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.3)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def callable_rate():
    optimizer = keras.optimizers.SGD(
        lambda: 0.1 / (1.0 + keras.ops.cast(optimizer.iterations, "float32")), momentum=0.9
    )
    return optimizer


OPTIMIZERS = {
    "lookahead": lambda: Lookahead(keras.optimizers.Adam(0.05)),
    "centralized": lambda: CentralizedSGD(0.1, momentum=0.9),
    "averaged": lambda: AveragedSGD(0.1),
    "own apply_gradients": lambda: HalvingSGD(0.1, momentum=0.9),
    "own update_step": lambda: SignMomentum(0.05),
    "multi": lambda: Multi(keras.optimizers.Adam(0.05), keras.optimizers.SGD(0.1, momentum=0.5)),
    "callable rate": callable_rate,
    "schedule": lambda: keras.optimizers.SGD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    ),
    "excluding": excluding,
    "ema": lambda: keras.optimizers.Adam(
        0.05, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=4
    ),
    "ema at the end": lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.7),
    "clipnorm": lambda: keras.optimizers.SGD(0.1, clipnorm=0.1),
    "adafactor": lambda: keras.optimizers.Adafactor(0.05),
    "ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.02),
    "muon": lambda: keras.optimizers.Muon(0.02),
}

# Tried everywhere on each run; of the others, a part is slow.
USUAL = {"lookahead", "centralized", "averaged", "multi", "excluding", "ema"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_of_two_replicas_gives_the_numbers_of_stock(mirrored2, name):
    assert_as_stock(*on_both((mirrored2, False), OPTIMIZERS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_gives_the_numbers_of_stock(ends, name):
    assert_as_stock(*on_both(ends, OPTIMIZERS[name]))


@pytest.mark.parametrize("name", ["lookahead", "averaged", "multi"])
def test_wrapping_optimizers_with_either_replicas_and_either_compiler(place, name):
    assert_as_stock(*on_both(place, OPTIMIZERS[name]))


def test_several_steps_an_execution_give_the_numbers_of_stock(ends):
    def train(run):
        run.model.steps_per_execution = 3
        run.fit()

    assert_as_stock(*on_both(ends, OPTIMIZERS["lookahead"], train))


@pytest.mark.parametrize(
    "name",
    [n if n in USUAL else slow(n) for n in OPTIMIZERS],
)
def test_any_optimizer_under_a_loss_scale_gives_the_numbers_of_stock(mirrored2, name):
    def make():
        return keras.optimizers.LossScaleOptimizer(
            OPTIMIZERS[name](), initial_scale=8.0, dynamic_growth_steps=2
        )

    place = mirrored2, False
    assert_as_stock(*on_both(place, make))


@pytest.mark.parametrize(
    "name", ["lookahead", *(slow(name) for name in ("centralized", "excluding", "ema"))]
)
def test_a_loss_scale_with_xla_gives_the_numbers_of_stock(ends, name):
    def make():
        return keras.optimizers.LossScaleOptimizer(OPTIMIZERS[name](), initial_scale=8.0)

    assert_as_stock(*on_both(ends, make))


# ---- frozen layers -------------------------------------------------------------------------


def freeze(run):
    run.fit()
    run.first.trainable = False
    run.compile()
    run.fit()


def freeze_and_thaw(run):
    freeze(run)
    run.first.trainable = True
    run.compile()
    run.fit()


FREEZING = {
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.05),
    "decay": excluding,
    "global_clipnorm": lambda: keras.optimizers.SGD(0.1, global_clipnorm=0.1),
    "lookahead": OPTIMIZERS["lookahead"],
    "multi": OPTIMIZERS["multi"],
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.05), initial_scale=8.0
    ),
}


@pytest.mark.parametrize(
    "name", [slow(n) if n in ("decay", "global_clipnorm") else n for n in FREEZING]
)
def test_freezing_keeps_the_slots(ends, name):
    assert_as_stock(*on_both(ends, FREEZING[name], freeze))


def test_the_case_of_a_layer_frozen_after_an_epoch(place):
    def train(run):
        for trainable in (True, False):
            run.first.trainable = trainable
            run.compile()
            run.fit(epochs=1)

    stock, ours = on_both(place, FREEZING["momentum"], train)
    np.testing.assert_allclose(ours.losses, stock.losses, rtol=2e-4)


def test_a_frozen_layer_keeps_its_weights(place):
    run = Run(place, FREEZING["momentum"])
    run.fit()
    before = run.first.get_weights()
    run.first.trainable = False
    run.compile()
    run.fit()
    for old, new in zip(before, run.first.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", ["momentum", slow("adam"), slow("scaled")])
def test_thawing_goes_on_with_the_slots(ends, name):
    assert_as_stock(*on_both(ends, FREEZING[name], freeze_and_thaw))


def test_freezing_keeps_the_averages(ends):
    def train(run):
        run.fit()
        run.model.get_layer("second").trainable = False  # Stock Keras fails with the first.
        run.compile()
        run.fit()

    assert_as_stock(*on_both(ends, OPTIMIZERS["ema"], train))


def test_accumulation_with_frozen_layers_updates_as_stock(ends):
    def make():
        return keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2)

    assert_as_stock(*on_both(ends, make, freeze))


def test_variables_that_the_optimizer_was_not_built_for_are_the_error_of_stock(place):
    messages = []
    for kind in (STOCK, place):
        run = Run(kind, FREEZING["momentum"], frozen=True)
        run.fit()
        run.first.trainable = True
        run.compile()
        with pytest.raises(ValueError) as caught:
            run.fit()
        messages.append(str(caught.value))
    stock, ours = messages
    assert "Unknown variable" in stock
    assert "Unknown variable" in ours
    assert "recreate a new optimizer instance" in ours


def test_trainable_set_and_compiled_by_a_callback(place):
    class Freeze(keras.callbacks.Callback):
        def __init__(self, run):
            super().__init__()
            self.run = run

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                self.run.first.trainable = False
                self.run.compile()
                self.model.make_train_function()  # `compile` has dropped it, in stock Keras too.

    def train(run):
        run.fit(epochs=3, callbacks=[Freeze(run)])
        run.fit()

    assert_as_stock(*on_both(place, FREEZING["momentum"], train))


def test_trainable_set_before_training_by_a_callback(place):
    class Freeze(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.get_layer("first").trainable = False

    def train(run):
        run.fit(callbacks=[Freeze()])

    stock, ours = on_both(place, FREEZING["momentum"], train)
    # Not the slots: under a strategy, stock Keras too makes those of all layers before that.
    np.testing.assert_allclose(ours.losses, stock.losses, rtol=2e-4)
    for expected, actual in zip(stock.model.get_weights(), ours.model.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-6)


# ---- one optimizer used again --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["lookahead", "own update_step", slow("ema"), slow("callable rate")]
)
def test_a_second_fit_goes_on_with_the_state(ends, name):
    def train(run):
        run.fit()
        run.fit()

    assert_as_stock(*on_both(ends, OPTIMIZERS[name], train))


def test_a_second_compile_with_the_optimizer_goes_on_with_the_state(place):
    def train(run):
        run.fit()
        run.compile(loss="mae")
        run.fit()

    assert_as_stock(*on_both(place, FREEZING["adam"], train))


def test_an_optimizer_reads_the_number_of_updates(place):
    run = Run(place, FREEZING["momentum"])
    run.fit(epochs=2)
    run.fit(epochs=1)
    assert int(run.optimizer.iterations.numpy()) == 9  # 3 batches an epoch.


def test_a_rate_that_is_assigned_holds_in_the_next_fit(place):
    def train(run):
        run.fit()
        run.optimizer.learning_rate = 0.0
        run.fit()

    stock, ours = on_both(place, lambda: keras.optimizers.SGD(0.1), train)
    assert_as_stock(stock, ours)
    assert ours.losses[-1] == pytest.approx(ours.losses[-2], rel=1e-6)
