"""What a forward pass writes within control flow is kept, on one device and on two."""

import keras
import numpy as np
import pytest
from forward_models import XLA, X, Y, build, evaluate, fit, raw, through, weight
from replicas import copies, slow, ways

import tfgpu

L = keras.layers
ops = keras.ops
way = ways("x1", slow("x1-xla"), "x2", "x2-xla")


class Branching(L.Layer):
    """Adds within a branch, or at each turn of a loop."""

    def __init__(self, kind, make, **options):
        super().__init__(**options)
        self.kind = kind
        self.total = make(np.float32(0.0))

    def add(self, amount):
        self.total.assign_add(amount)

    def call(self, values):
        if self.kind == "cond":

            def add():
                self.add(3.0)
                return values

            return ops.cond(ops.sum(values**2) > 0, add, lambda: values)
        if self.kind == "other_branch":

            def leave():
                self.add(3.0)
                return values

            return ops.cond(ops.sum(values**2) < 0, lambda: values, leave)
        if self.kind == "while_loop":

            def body(turn, x):
                self.add(1.0)
                return turn + 1, x

            return ops.while_loop(lambda turn, x: turn < 3, body, (0, values))[1]
        if self.kind == "fori_loop":

            def turn(_, x):
                self.add(1.0)
                return x

            return ops.fori_loop(0, 3, turn, values)

        def nested(turn, x):
            def add():
                self.add(1.5)
                return turn + 1

            return ops.cond(turn > 0, add, lambda: turn + 1), x

        return ops.while_loop(lambda turn, x: turn < 3, nested, (0, values))[1]


KINDS = ["cond", "other_branch", "while_loop", "fori_loop", "cond_in_while_loop"]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        *((kind, weight) for kind in KINDS),
        *((kind, raw) if kind == "while_loop" else slow(kind, raw) for kind in KINDS),
    ],
)
def test_an_assignment_within_control_flow_is_kept(way, kind, make):
    strategy, jit_compile = way
    network = through(lambda: Branching(kind, make))
    model = build(tfgpu.Model, strategy, network, jit_compile)
    evaluate(model)
    model.predict(X, batch_size=4, verbose=0)
    assert copies(model.layers[1].total) == [24.0] * strategy.num_replicas_in_sync


@pytest.mark.parametrize("make", [weight, raw], ids=["keras", "tf"])
def test_an_assignment_within_a_branch_is_kept_in_training(way, make):
    # A `while_loop` of unknown length has no gradient under XLA, with Keras neither.
    strategy, jit_compile = way
    network = through(lambda: L.Dense(3), lambda: Branching("cond", make))
    model = build(tfgpu.Model, strategy, network, jit_compile)
    fit(model)
    assert copies(model.layers[2].total) == [24.0] * strategy.num_replicas_in_sync


@XLA
def test_replicas_may_take_different_branches(mirrored2, jit_compile):
    class Positive(L.Layer):
        def build(self, shape):
            self.met = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, values):
            def met():
                self.met.assign_add(1.0)
                return values

            return ops.cond(ops.min(values) > 0, met, lambda: values)

    model = build(tfgpu.Model, mirrored2, through(Positive), jit_compile)
    x = np.ones((7, 6), "float32")
    x[4:] = -1
    fit(model, x, Y[:7], batch_size=7, epochs=1)
    # 4 of 7 rows are with the replica that adds 1.
    np.testing.assert_allclose(copies(model.layers[1].met), [4 / 7, 4 / 7], rtol=1e-6)
