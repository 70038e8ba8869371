"""The dynamic loss scale: one decision for all replicas, and a skipped step leaves no trace."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import copies

import tfgpu
from tfgpu.engine import update

RNG = np.random.RandomState(0)
X = RNG.randn(256, 6).astype("float32")
LABELS = (X @ RNG.randn(6, 3)).argmax(1).astype("int32")


def build(strategy, *, optimizer, dtype="mixed_float16", normalize=False, **compiled):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(dtype)
    with strategy.scope():
        inputs = keras.Input((6,))
        x = keras.layers.Dense(16, "relu")(inputs)
        if normalize:
            x = keras.layers.BatchNormalization()(x)
        model = tfgpu.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))
        model.compile(
            optimizer=optimizer(),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            **compiled,
        )
    return model


def fit(model, x, y, *, batch_size, **arguments):
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    return model.fit(data, verbose=0, shuffle=False, **arguments).history


def adam():
    return keras.optimizers.Adam(0.01, use_ema=True)


@pytest.mark.parametrize(
    ("replica", "jit_compile"),
    [
        (0, True),
        (1, False),
        pytest.param(0, False, marks=pytest.mark.slow),
        pytest.param(1, True, marks=pytest.mark.slow),
    ],
)
def test_an_overflow_on_one_replica_skips_the_step_on_all(mirrored2, replica, jit_compile):
    model = build(mirrored2, optimizer=adam, normalize=True, jit_compile=jit_compile)
    fit(model, X[:32], LABELS[:32], batch_size=8)
    state = [*model.trainable_variables, *model.non_trainable_variables]
    state += model.optimizer.inner_optimizer.variables
    before = [copies(variable) for variable in state]
    scale = float(model.optimizer.dynamic_scale.numpy())
    iterations = int(model.optimizer.iterations.numpy())
    assert iterations > 0

    x = X[:8].copy()
    x[4 * replica] = 1e30  # Infinite in float16.
    fit(model, x, LABELS[:8], batch_size=8)

    for variable, old in zip(state, before, strict=True):
        np.testing.assert_array_equal(old, copies(variable), err_msg=variable.path)
    assert set(map(float, copies(model.optimizer.dynamic_scale))) == {scale / 2}
    assert set(map(int, copies(model.optimizer.step_counter))) == {0}
    fit(model, X[:32], LABELS[:32], batch_size=8)
    assert np.isfinite(model.get_weights()[0]).all()
    assert int(model.optimizer.iterations.numpy()) == iterations + 4


def test_the_scale_doubles_after_so_many_good_steps(mirrored2):
    def optimizer():
        return keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.01), initial_scale=8.0, dynamic_growth_steps=3
        )

    model = build(mirrored2, optimizer=optimizer, steps_per_execution=4)
    fit(model, X[:56], LABELS[:56], batch_size=8)  # 7 steps
    assert list(map(float, copies(model.optimizer.dynamic_scale))) == [32.0, 32.0]
    assert list(map(int, copies(model.optimizer.step_counter))) == [1, 1]


def test_a_scale_too_large_comes_down_and_the_run_learns(mirrored2):
    def optimizer():
        return keras.optimizers.LossScaleOptimizer(
            keras.optimizers.Adam(0.02), initial_scale=2.0**40
        )

    model = build(mirrored2, optimizer=optimizer, steps_per_execution=8)
    losses = fit(model, X, LABELS, batch_size=32, epochs=8)["loss"]
    assert float(model.optimizer.dynamic_scale.numpy()) < 2.0**30
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_float16_is_as_accurate_as_float32(mirrored2):
    accuracies = {}
    for dtype in ("float32", "mixed_float16"):
        model = build(
            mirrored2,
            optimizer=lambda: keras.optimizers.Adam(0.02),
            dtype=dtype,
            steps_per_execution=8,
        )
        accuracies[dtype] = fit(model, X, LABELS, batch_size=32, epochs=12)["accuracy"][-1]
    assert accuracies["float32"] > 0.93
    assert abs(accuracies["mixed_float16"] - accuracies["float32"]) < 0.02


@pytest.mark.parametrize("accumulation", [None, 2])
def test_a_constant_scale_changes_nothing_in_float32(mirrored2, accumulation):
    weights = []
    for factor in (None, 1024.0):
        model = build(
            mirrored2,
            optimizer=lambda factor=factor: keras.optimizers.SGD(
                0.05,
                momentum=0.9,
                global_clipnorm=0.5,
                loss_scale_factor=factor,
                gradient_accumulation_steps=accumulation,
            ),
            dtype="float32",
        )
        fit(model, X[:64], LABELS[:64], batch_size=16, epochs=2)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)  # A power of 2 changes no digit.


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=1.0),
    "averaging": adam,
    # It keeps a number that is not among its variables.
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_xla_updates_without_a_branch_what_it_updates_with_one(monkeypatch, kind, mirrored):
    def train(branch):
        monkeypatch.setattr(update, "_can_take_back", (lambda _: False) if branch else can)
        strategy = tf.distribute.get_strategy()
        if mirrored:
            strategy = tf.distribute.MirroredStrategy(["CPU:0"])
        model = build(
            strategy, optimizer=scaled, normalize=True, jit_compile=True, steps_per_execution=3
        )
        x = X[:88].copy()
        x[20] = 1e30  # Infinite in float16: the third of eleven steps.
        fit(model, x, LABELS[:88], batch_size=8)
        inner = model.optimizer.inner_optimizer
        hidden = [inner._u_product] if kind == "nadam" else []
        variables = [*model.variables, *model.optimizer.variables, *hidden]
        return [(v.path, copies(v)[0]) for v in variables], branches(model)

    def branches(model):
        graphs = [
            concrete.graph.as_graph_def()
            for function in model.train_function.traced
            for concrete in function._list_all_concrete_functions()
        ]
        nodes = [
            node for graph in graphs for fun in graph.library.function for node in fun.node_def
        ]
        return sum(node.op in ("If", "StatelessIf") and "update" in node.name for node in nodes)

    def scaled():
        return keras.optimizers.LossScaleOptimizer(OPTIMIZERS[kind](), dynamic_growth_steps=4)

    can = update._can_take_back
    expected, with_one = train(branch=True)
    found, without = train(branch=False)
    assert with_one > without == (1 if kind == "accumulating" else 0)
    for (name, value), (_, other) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(other, value, err_msg=name)
        assert np.isfinite(value).all()
