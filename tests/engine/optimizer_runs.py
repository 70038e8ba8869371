"""Optimizers of Keras and of one's own, and the same training by stock Keras and by tfgpu."""

import keras
import numpy as np
import tensorflow as tf
from versions import KERAS

import tfgpu

RNG = np.random.default_rng(0)
X = RNG.normal(size=(22, 6)).astype("float32")  # The last batch of 8 is partial.
Y = RNG.normal(size=(22, 1)).astype("float32")

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


class NamingSGD(keras.optimizers.SGD):
    """Calls `update_step` by the names of its arguments."""

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient=gradient, variable=variable, learning_rate=self.learning_rate)
        self.iterations.assign_add(1)


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
    "naming": lambda: NamingSGD(0.1, momentum=0.9),
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
    # That of 3.10 fails under any strategy, with stock Keras too.
    **({"muon": lambda: keras.optimizers.Muon(0.02)} if KERAS > (3, 10) else {}),
}

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
