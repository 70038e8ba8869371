"""Any optimizer with layers that are frozen or thawed gives the numbers of stock Keras."""

import keras
import numpy as np
import pytest
from optimizer_runs import FREEZING, OPTIMIZERS, STOCK, Run, assert_as_stock, on_both
from replicas import slow, ways
from versions import KERAS

place = ways("x1", "x2", slow("x1-xla"), "x2-xla")
ends = ways("x1", "x2-xla")  # The two that differ most.


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


@pytest.mark.parametrize(
    "name",
    [
        slow(n) if n in ("decay", "global_clipnorm", "momentum", "lookahead") else n
        for n in FREEZING
    ],
)
def test_freezing_keeps_the_slots(ends, name):
    assert_as_stock(*on_both(ends, FREEZING[name], freeze))


@pytest.mark.slow
def test_the_case_of_a_layer_frozen_after_an_epoch(place):
    def train(run):
        for trainable in (True, False):
            run.first.trainable = trainable
            run.compile()
            run.fit(epochs=1)

    stock, ours = on_both(place, FREEZING["momentum"], train)
    np.testing.assert_allclose(ours.losses, stock.losses, rtol=2e-4)


@pytest.mark.slow
def test_a_frozen_layer_keeps_its_weights(place):
    run = Run(place, FREEZING["momentum"])
    run.fit()
    before = run.first.get_weights()
    run.first.trainable = False
    run.compile()
    run.fit()
    for old, new in zip(before, run.first.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["momentum", "adam", "scaled"])
def test_thawing_goes_on_with_the_slots(ends, name):
    assert_as_stock(*on_both(ends, FREEZING[name], freeze_and_thaw))


@pytest.mark.slow
def test_freezing_keeps_the_averages(ends):
    def train(run):
        run.fit()
        run.model.get_layer("second").trainable = False  # Stock Keras fails with the first.
        run.compile()
        run.fit()

    assert_as_stock(*on_both(ends, OPTIMIZERS["ema"], train))


@pytest.mark.slow
def test_accumulation_with_frozen_layers_updates_as_stock(ends):
    def make():
        return keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2)

    assert_as_stock(*on_both(ends, make, freeze))


def test_variables_that_the_optimizer_was_not_built_for_are_the_error_of_stock(place):
    if KERAS < (3, 11) and place[0].num_replicas_in_sync > 1:
        pytest.skip("Keras 3.10 cannot write the variable of several replicas into its message")
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
