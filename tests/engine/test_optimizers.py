"""Any Keras optimizer gives the numbers that it gives stock Keras on one device."""

import keras
import pytest
import tensorflow as tf
from optimizer_runs import FREEZING, OPTIMIZERS, Run, assert_as_stock, on_both
from replicas import slow, ways

import tfgpu

place = ways("x1", "x2", slow("x1-xla"), "x2-xla")
ends = ways("x1", "x2-xla")  # The two that differ most.
# Tried everywhere on each run; of the others, a part is slow.
USUAL = {"lookahead", "centralized", "averaged", "multi", "excluding", "ema"}
OWN = {"own apply_gradients", "naming", "own update_step", "callable rate", "adafactor", "muon"}


@pytest.mark.parametrize("name", [n if n in USUAL | OWN else slow(n) for n in OPTIMIZERS])
def test_any_optimizer_of_two_replicas_gives_the_numbers_of_stock(mirrored2, name):
    assert_as_stock(*on_both((mirrored2, False), OPTIMIZERS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_gives_the_numbers_of_stock(ends, name):
    assert_as_stock(*on_both(ends, OPTIMIZERS[name]))


@pytest.mark.parametrize("name", ["lookahead", "averaged", "multi"])
def test_wrapping_optimizers_with_either_replicas_and_either_compiler(place, name):
    assert_as_stock(*on_both(place, OPTIMIZERS[name]))


@pytest.mark.slow
def test_several_steps_an_execution_give_the_numbers_of_stock(ends):
    def train(run):
        run.model.steps_per_execution = 3
        run.fit()

    assert_as_stock(*on_both(ends, OPTIMIZERS["lookahead"], train))


@pytest.mark.parametrize(
    "name",
    [n if n in ("lookahead", "averaged", "multi") else slow(n) for n in OPTIMIZERS],
)
def test_any_optimizer_under_a_loss_scale_gives_the_numbers_of_stock(mirrored2, name):
    def make():
        return keras.optimizers.LossScaleOptimizer(
            OPTIMIZERS[name](), initial_scale=8.0, dynamic_growth_steps=2
        )

    place = mirrored2, False
    assert_as_stock(*on_both(place, make))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lookahead", "centralized", "excluding", "ema"])
def test_a_loss_scale_with_xla_gives_the_numbers_of_stock(ends, name):
    def make():
        return keras.optimizers.LossScaleOptimizer(OPTIMIZERS[name](), initial_scale=8.0)

    assert_as_stock(*on_both(ends, make))


@pytest.mark.parametrize(
    "name", ["lookahead", "own update_step", slow("ema"), slow("callable rate")]
)
def test_a_second_fit_goes_on_with_the_state(ends, name):
    def train(run):
        run.fit()
        run.fit()

    assert_as_stock(*on_both(ends, OPTIMIZERS[name], train))


@pytest.mark.slow
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


class Anchored(keras.optimizers.SGD):
    """Pulls the weights back to where they were when it was built."""

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.anchors = self.add_optimizer_variables(variables, "anchor")
            for anchor, variable in zip(self.anchors, variables, strict=True):
                self.assign(anchor, keras.ops.copy(variable))

    def update_step(self, gradient, variable, learning_rate):
        anchor = self.anchors[self._get_variable_index(variable)]
        self.assign_sub(variable, learning_rate * (gradient + variable - anchor))


def anchored_under_a_scale():
    return keras.optimizers.LossScaleOptimizer(Anchored(0.2), initial_scale=8.0)


@pytest.mark.parametrize("make", [lambda: Anchored(0.2), anchored_under_a_scale])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_an_optimizer_builds_from_the_weights_is_there_from_the_first_step(make, compiled):
    def train(run):
        if not isinstance(run.model, tfgpu.Model):  # Which would build it in each trace.
            run.optimizer.build(run.model.trainable_variables)
        run.fit()

    place = tf.distribute.get_strategy(), compiled
    assert_as_stock(*on_both(place, make, train))
