"""What a variable says of its aggregation decides what replicas' assignments make of it.

The numbers are worked out by hand. A batch of 7 rows gives 4 to the first replica and 3 to the
second; a batch of one row leaves the second without.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from replicas import slow

import tfgpu

L = keras.layers
ops = keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(8, 5)).astype("float32")
Y = RNG.normal(size=(8, 1)).astype("float32")
FIRST, SECOND = X[:4], X[4:7]

XLA = pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
AGGREGATIONS = ["none", "mean", "only_first_replica", "sum"]


class Writer(L.Layer):
    """Has a variable, made in one of three ways, to which `rule` assigns at each call."""

    def __init__(self, rule, aggregation, kind="weight", dtype="float32", start=0, **options):
        super().__init__(**options)
        self.rule = rule
        if kind == "weight":
            self.state = self.add_weight(
                shape=(),
                initializer=keras.initializers.Constant(start),
                dtype=dtype,
                trainable=False,
                aggregation=aggregation,
                name="written",
            )
        elif kind == "keras":
            self.state = keras.Variable(
                np.asarray(start, dtype),
                dtype=dtype,
                trainable=False,
                aggregation=aggregation,
                name="written",
            )
        else:
            self.state = tf.Variable(
                np.asarray(start, dtype),
                trainable=False,
                aggregation=tf.VariableAggregation[aggregation.upper()],
                name="written",
            )

    def call(self, values):
        self.rule(self.state, values)
        return values


def mean_of_rows(state, values):
    state.assign(ops.mean(values))


def count_rows(state, values):
    state.assign_add(ops.cast(ops.shape(values)[0], state.dtype))


def count_steps(state, values):
    state.assign_add(ops.cast(1, state.dtype))


def build(
    strategy,
    rule,
    aggregation,
    *,
    jit_compile=False,
    steps_per_execution=1,
    cls=tfgpu.Model,
    **options,
):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        inputs = keras.Input((5,))
        layer = Writer(rule, aggregation, **options)
        model = cls(inputs, L.Dense(1)(layer(inputs)))
        model.compile(
            keras.optimizers.SGD(0.05),
            "mse",
            jit_compile=jit_compile,
            steps_per_execution=steps_per_execution,
        )
    return model


def states(model):
    """The variable's value on each replica."""
    state = model.layers[1].state
    state = state.value if isinstance(state, keras.Variable) else state
    return [v.numpy() for v in getattr(state, "values", [state])]


def run(model, method, rows, batch_size=7):
    data = (X[:rows],) if method == "predict" else (X[:rows], Y[:rows])
    order = {"shuffle": False} if method == "fit" else {}
    getattr(model, method)(*data, batch_size=batch_size, verbose=0, **order)


def means(aggregation, start):
    """What assigning a replica's mean makes of the variable, for a batch of 7 rows."""
    one, two = float(FIRST.mean()), float(SECOND.mean())
    return {
        "none": (4 * one + 3 * two) / 7,
        "mean": (one + two) / 2,
        "only_first_replica": one,
        "sum": start + (one - start) + (two - start),
    }[aggregation]


@pytest.mark.parametrize("kind", ["weight", "keras", "tf"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_floats_of_replicas_with_rows(mirrored2, aggregation, kind):
    model = build(mirrored2, mean_of_rows, aggregation, kind=kind, start=0.25)
    run(model, "fit", 7)
    first, second = states(model)
    assert first == second
    np.testing.assert_allclose(first, means(aggregation, 0.25), rtol=1e-5)


@pytest.mark.parametrize("method", ["fit", slow("evaluate"), slow("predict")])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_floats_under_xla(mirrored2, aggregation, method):
    model = build(mirrored2, mean_of_rows, aggregation, start=0.25, jit_compile=True)
    run(model, method, 7)
    first, second = states(model)
    assert first == second
    np.testing.assert_allclose(first, means(aggregation, 0.25), rtol=1e-5)


@XLA
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_replica_without_rows_counts_nowhere(mirrored2, aggregation, jit_compile):
    model = build(mirrored2, mean_of_rows, aggregation, start=0.25, jit_compile=jit_compile)
    run(model, "fit", 1)
    first, second = states(model)
    assert first == second
    np.testing.assert_allclose(first, X[0].mean(), rtol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_last_batch_of_one_row_goes_on_from_the_batch_before(mirrored2, aggregation):
    def halve(state, values):
        state.assign(0.5 * state + ops.mean(values))

    model = build(mirrored2, halve, aggregation, start=0.5)
    run(model, "fit", 8)
    one, two = 0.25 + float(FIRST.mean()), 0.25 + float(SECOND.mean())
    whole = {
        "none": (4 * one + 3 * two) / 7,
        "mean": (one + two) / 2,
        "only_first_replica": one,
        "sum": one + two - 0.5,
    }[aggregation]
    np.testing.assert_allclose(states(model), 0.5 * whole + X[7].mean(), rtol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_one_device_assigns_as_it_says(aggregation):
    model = build(tf.distribute.get_strategy(), mean_of_rows, aggregation, start=0.25)
    run(model, "fit", 7)
    np.testing.assert_allclose(states(model), [X[:7].mean()], rtol=1e-5)


# ---- counters --------------------------------------------------------------------------------


@XLA
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_sum_counts_the_examples_of_global_batches(mirrored2, method, jit_compile):
    model = build(mirrored2, count_rows, "sum", dtype="int64", start=10, jit_compile=jit_compile)
    run(model, method, 8, batch_size=4)
    assert states(model) == [18, 18]


@pytest.mark.parametrize("dtype", ["int32", "float32"])
@pytest.mark.parametrize("kind", ["weight", "keras", "tf"])
def test_a_sum_counts_the_examples_of_partial_batches(mirrored2, kind, dtype):
    model = build(mirrored2, count_rows, "sum", dtype=dtype, kind=kind, start=10)
    run(model, "fit", 8)  # 4 and 3, then 1 and none.
    assert states(model) == [18, 18]


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_a_sum_counts_the_examples_of_partial_batches_without_training(mirrored2, method):
    model = build(mirrored2, count_rows, "sum", dtype="int32")
    run(model, method, 8)
    assert states(model) == [8, 8]


def test_a_sum_goes_on_within_an_execution(mirrored2):
    model = build(mirrored2, count_rows, "sum", dtype="int32", steps_per_execution=3)
    run(model, "fit", 8, batch_size=2)
    run(model, "fit", 8, batch_size=2)
    assert states(model) == [16, 16]


@XLA
@pytest.mark.parametrize("aggregation", ["none", "only_first_replica"])
@pytest.mark.parametrize("dtype", ["int32", slow("uint8")])
def test_integers_are_those_of_the_first_replica(mirrored2, dtype, aggregation, jit_compile):
    model = build(mirrored2, count_rows, aggregation, dtype=dtype, jit_compile=jit_compile)
    run(model, "fit", 7)
    assert states(model) == [4, 4]


def test_booleans_are_those_of_the_first_replica(mirrored2):
    def note(state, values):
        state.assign(ops.all(ops.equal(values[0], X[0])))

    model = build(mirrored2, note, "none", dtype="bool", start=False)
    run(model, "fit", 7)
    assert states(model) == [True, True]


@pytest.mark.parametrize("aggregation", ["none", "mean", "only_first_replica"])
def test_a_counter_of_steps_counts_global_steps(mirrored2, aggregation):
    model = build(mirrored2, count_steps, aggregation)
    run(model, "fit", 8)
    assert states(model) == [2.0, 2.0]


def test_a_sum_counts_the_steps_of_replicas_with_rows(mirrored2):
    model = build(mirrored2, count_steps, "sum", dtype="int32")
    run(model, "fit", 8)
    assert states(model) == [3, 3]


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_every_float_is_averaged_by_rows(mirrored2, dtype):
    def mean(state, values):
        state.assign(ops.mean(ops.cast(values, dtype)))

    model = build(mirrored2, mean, "none", dtype=dtype)
    run(model, "fit", 7)
    first, second = states(model)
    assert first == second
    np.testing.assert_allclose(
        np.float32(first), (4 * FIRST.mean() + 3 * SECOND.mean()) / 7, rtol=0.02
    )


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["weight", "keras", "tf"])
def test_the_mean_of_integers_is_refused(mirrored2, kind):
    # TensorFlow refuses to make it under the strategy's scope, without its name.
    with pytest.raises(ValueError, match="(?i)written|mean"):
        model = build(mirrored2, count_rows, "mean", dtype="int32", kind=kind)
        run(model, "fit", 7)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("kind", ["keras", "tf"])
def test_the_mean_of_integers_of_outside_the_scope_is_refused_by_name(mirrored2, kind, method):
    layer = Writer(count_rows, "mean", kind, "int32")
    with pytest.raises(ValueError, match="written"):
        with mirrored2.scope():
            inputs = keras.Input((5,))
            model = tfgpu.Model(inputs, L.Dense(1)(layer(inputs)))
            model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
        run(model, method, 7)


# ---- trainable variables, and own steps -------------------------------------------------------


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_update_of_the_optimizer_is_not_aggregated(mirrored2, aggregation):
    class Scale(L.Layer):
        def build(self, shape):
            self.scale = self.add_weight(
                shape=(), initializer="ones", aggregation=aggregation, name="scale"
            )

        def call(self, values):
            return self.scale * values

    scales = []
    for strategy, cls in ((tf.distribute.get_strategy(), keras.Model), (mirrored2, tfgpu.Model)):
        with strategy.scope():
            inputs = keras.Input((5,))
            model = cls(inputs, Scale()(inputs))
            model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=False)
        model.fit(X, X * 3, batch_size=7, epochs=2, shuffle=False, verbose=0)
        value = model.layers[1].scale.value
        scales.append([v.numpy() for v in getattr(value, "values", [value])])
    np.testing.assert_allclose(scales[1], scales[0] * 2, rtol=1e-5)


class Own(tfgpu.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        weights = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}

    def test_step(self, data):
        x, y = data
        return {"loss": self.compute_loss(x=x, y=y, y_pred=self(x))}

    def predict_step(self, x):
        return self(x)


@pytest.mark.parametrize("kind", [slow("weight"), "keras", slow("tf")])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_own_steps_heed_it(mirrored2, aggregation, kind):
    model = build(mirrored2, mean_of_rows, aggregation, start=0.25, cls=Own, kind=kind)
    run(model, "fit", 7)
    first, second = states(model)
    assert first == second
    np.testing.assert_allclose(first, means(aggregation, 0.25), rtol=1e-5)
    run(model, "fit", 1)  # The second replica has a row that is not its own.
    np.testing.assert_allclose(states(model), 2 * [X[0].mean()], rtol=1e-4)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_sum_counts_the_examples_of_own_steps(mirrored2, method):
    model = build(mirrored2, count_rows, "sum", start=10, cls=Own)
    run(model, method, 8, batch_size=4)
    assert states(model) == [18, 18]


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
@pytest.mark.parametrize("aggregation", ["none", "only_first_replica"])
def test_own_steps_count_their_steps(mirrored2, aggregation, method):
    model = build(mirrored2, count_steps, aggregation, dtype="int32", cls=Own)
    run(model, method, 8)
    assert states(model) == [2, 2]


@XLA
def test_a_metric_of_ones_own_adds_up(mirrored2, jit_compile):
    class Rows(L.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.rows = keras.metrics.Sum(name="rows")

        def call(self, values):
            self.rows.update_state(ops.ones_like(values[:, 0]))
            return values

    with mirrored2.scope():
        inputs = keras.Input((5,))
        model = tfgpu.Model(inputs, L.Dense(1)(Rows()(inputs)))
        model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=jit_compile)
    history = model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0).history
    assert history["rows"] == [8.0, 8.0]
