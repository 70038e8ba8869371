"""Gradients in a step of one's own are those of the global batch, whatever it does with them."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from own_steps import TOLERANCE, X, build, fit
from replicas import assert_same_weights, one_device, slow

import tfgpu


def minimising(loss_of, use=None):
    """Makes a class of a step that minimises `loss_of(model, x, y, y_pred)`.

    `use(model, loss, tape)` does what comes after the loss, and gives what is reported.
    """

    def make(cls):
        class Step(cls):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape(persistent=True) as tape:
                    loss = loss_of(self, x, y, self(x, training=True))
                return (use or applied)(self, loss, tape)

        return Step

    return make


def applied(model, loss, tape, change=lambda gradients: gradients):
    weights = model.trainable_variables
    gradients = change(tape.gradient(loss, weights))
    model.optimizer.apply_gradients(zip(gradients, weights, strict=True))
    return {"norm": tf.linalg.global_norm(gradients)}


def changed(change):
    return lambda model, loss, tape: applied(model, loss, tape, change)


def each(y, y_pred):
    return keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)


def by_compute_loss(model, x, y, y_pred):
    return model.compute_loss(x, y, y_pred)


def mean_by_hand(model, x, y, y_pred):
    return tf.reduce_mean(each(y, y_pred))


def mean_of_division(model, x, y, y_pred):
    return tf.reduce_sum(each(y, y_pred)) / tf.cast(tf.shape(x)[0], tf.float32)


def with_penalty(model, x, y, y_pred):
    kernel = model.trainable_variables[0]
    penalty = 0.3 * tf.reduce_sum(tf.square(kernel)) + tf.reduce_mean(tf.square(y_pred))
    return model.compute_loss(x, y, y_pred) + penalty


def by_hand_beside_a_keras_loss(model, x, y, y_pred):
    keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, y_pred)  # Only to be shown.
    return tf.reduce_mean(each(y, y_pred))


def a_value_a_row(model, x, y, y_pred):
    return each(y, y_pred)


def average_loss(model, x, y, y_pred):
    return tf.nn.compute_average_loss(each(y, y_pred)) + tf.nn.scale_regularization_loss(
        tf.reduce_sum(tf.square(model.trainable_variables[0]))
    )


def mean_of_product(model, x, y, y_pred):
    return tf.reduce_sum(each(y, y_pred)) * (1 / tf.cast(tf.shape(x)[0], tf.float32))


def from_upstream(model, loss, tape):
    """Backwards in two parts: the gradient of the outputs by hand, with the rows at hand."""
    x, y = model.now
    with tf.GradientTape() as again:
        y_pred = model(x, training=True)
    rows = tf.cast(tf.shape(x)[0], tf.float32)
    upstream = (tf.nn.softmax(y_pred) - tf.one_hot(y, 3)) / rows
    gradients = again.gradient(y_pred, model.trainable_variables, output_gradients=upstream)
    model.optimizer.apply(gradients, model.trainable_variables)
    return {"norm": tf.linalg.global_norm(gradients)}


def by_assignment(model, loss, tape):
    weights = model.trainable_variables
    for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
        weight.assign_sub(0.1 * gradient)
    return {"norm": loss}


def sharpness_aware(model, loss, tape):
    weights, (x, y) = model.trainable_variables, model.now
    gradients = tape.gradient(loss, weights)
    norm = tf.linalg.global_norm(gradients)
    steps = [0.5 * gradient / norm for gradient in gradients]
    for weight, step in zip(weights, steps, strict=True):
        weight.assign_add(step)
    with tf.GradientTape() as again:
        other = model.compute_loss(x, y, model(x, training=True))
    gradients = again.gradient(other, weights)
    for weight, step in zip(weights, steps, strict=True):
        weight.assign_sub(step)
    model.optimizer.apply(gradients, weights)
    return {"norm": norm}


def remembered(model, x, y, y_pred):
    model.now = (x, y)
    return model.compute_loss(x, y, y_pred)


def gathered(model, loss, tape):
    weights = model.trainable_variables
    gradients = tape.gradient(loss, weights)
    for slot, gradient in zip(model.slots, gradients, strict=True):
        slot.assign(0.5 * slot + gradient)
    model.optimizer.apply([0.1 * tf.convert_to_tensor(slot) for slot in model.slots], weights)
    return {"norm": loss}


CASES = {
    "mean by hand": (mean_by_hand, None),
    "division by rows": (mean_of_division, None),
    "penalty": (with_penalty, None),
    "beside a Keras loss": (by_hand_beside_a_keras_loss, None),
    "a value a row": (a_value_a_row, None),
    "average loss": (average_loss, None),
    "clipped": (by_compute_loss, changed(lambda g: tf.clip_by_global_norm(g, 0.3)[0])),
    "assigned": (by_compute_loss, by_assignment),
    "sharpness": (remembered, sharpness_aware),
    "gathered": (by_compute_loss, gathered),
    "product with 1/rows": (mean_of_product, None),
    "upstream by hand": (remembered, from_upstream),
}


def trained(make, strategy, cls, rows=25, **compiled):
    model = build(strategy, make(cls), **compiled)
    with strategy.scope():
        slots = [keras.Variable(0 * w, trainable=False) for w in model.trainable_variables]
    model.slots = slots
    return model, fit(model, rows=rows)["norm"]


def assert_trains_alike_and_says(strategy, make, said, **compiled):
    one, _ = trained(make, one_device(), keras.Model, **compiled)
    with pytest.warns(UserWarning, match=said):
        two, _ = trained(make, strategy, tfgpu.Model, **compiled)
    assert_same_weights(one, two)


def assert_trains_alike(strategy, make, rows=25):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(replicas|A step)")
        (one, expected), (two, norms) = (
            trained(make, place, cls, rows=rows)
            for cls, place in ((keras.Model, one_device()), (tfgpu.Model, strategy))
        )
    assert_same_weights(one, two)
    np.testing.assert_allclose(norms, expected, **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_it_trains_what_one_device_trains_and_says_nothing(mirrored2, case):
    assert_trains_alike(mirrored2, minimising(*CASES[case]))


def sum_by_hand(model, x, y, y_pred):
    return tf.reduce_sum(each(y, y_pred)) / 6.0


def sum_of_sums(model, x, y, y_pred):
    return tf.reduce_mean(tf.reduce_sum(tf.square(y_pred), axis=0))


def l2_loss(model, x, y, y_pred):
    return 0.1 * tf.nn.l2_loss(y_pred)


def by_einsum(model, x, y, y_pred):
    return 0.1 * tf.einsum("ij,ij->", y_pred, y_pred)


def mean_times_rows(model, x, y, y_pred):
    return 0.1 * tf.reduce_mean(each(y, y_pred)) * tf.cast(tf.shape(x)[0], tf.float32)


def a_sum_a_class(model, x, y, y_pred):
    return 0.1 * tf.reduce_sum(tf.square(y_pred), axis=0)


def sum_and_mean(model, x, y, y_pred):
    return sum_by_hand(model, x, y, y_pred) + tf.reduce_mean(tf.square(y_pred))


def masked(model, x, y, y_pred):
    mask = tf.cast(x[:, 0] > 0, tf.float32)
    return tf.reduce_sum(mask * each(y, y_pred)) / (tf.reduce_sum(mask) + 1e-3)


def of_chosen_rows(model, x, y, y_pred):
    return tf.reduce_mean(tf.boolean_mask(each(y, y_pred), x[:, 0] > 0))


def root(model, x, y, y_pred):
    return tf.sqrt(tf.reduce_mean(tf.square(y_pred))) + tf.reduce_mean(each(y, y_pred)) ** 2


def normalized(model, x, y, y_pred):
    weight = tf.abs(x[:, 0])
    return tf.reduce_mean(each(y, y_pred) * weight / tf.reduce_mean(weight))


def largest(model, x, y, y_pred):
    return tf.reduce_max(each(y, y_pred))


def contrastive(model, x, y, y_pred):
    near = tf.matmul(y_pred, y_pred, transpose_b=True)
    same = tf.cast(y[:, None] == y[None], tf.float32)
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(same, near))


def with_weights_penalised(model, x, y, y_pred):
    kernel = model.trainable_variables[0]
    return tf.sqrt(tf.reduce_mean(each(y, y_pred)) + tf.reduce_sum(tf.square(kernel)))


def with_a_learned_temperature(model, x, y, y_pred):
    """Of numbers of weights alone, of which one is made of the other."""
    scale = tf.nn.softplus(model.trainable_variables[-1][0])
    return tf.sqrt(tf.reduce_mean(each(y, y_pred))) / scale + tf.math.log(scale)


NO_MEANS = [
    *(sum_by_hand, sum_of_sums, l2_loss, by_einsum, mean_times_rows, a_sum_a_class),
    *(sum_and_mean, masked, of_chosen_rows, root, normalized, largest, contrastive),
    *(with_weights_penalised, with_a_learned_temperature),
]
QUICK = (
    *(sum_by_hand, masked, normalized, contrastive, with_weights_penalised),
    with_a_learned_temperature,
)


@pytest.mark.parametrize("loss_of", [each if each in QUICK else slow(each) for each in NO_MEANS])
@pytest.mark.parametrize("rows", [25, slow(24)])
def test_what_is_no_mean_is_that_of_all_rows(mirrored2, loss_of, rows):
    assert_trains_alike(mirrored2, minimising(loss_of), rows=rows)


def test_a_loss_of_a_function_of_tensorflow_is_spoken_of(mirrored2):
    function = tf.function(mean_by_hand)
    assert_trains_alike_and_says(
        mirrored2, minimising(function), "inside a tf.function, a branch or a loop"
    )


def test_a_gradient_inside_a_function_adds_up_and_is_spoken_of(mirrored2):
    def make(cls):
        class Step(cls):
            @tf.function
            def gradients(self, x, y):
                with tf.GradientTape() as tape:
                    loss = mean_by_hand(self, x, y, self(x, training=True))
                return tape.gradient(loss, self.trainable_variables)

            def train_step(self, data):
                gradients = self.gradients(*data)
                self.optimizer.apply(gradients, self.trainable_variables)
                return {"norm": tf.constant(0.0)}

        return Step

    assert_trains_alike_and_says(mirrored2, make, "takes a gradient inside a tf.function")


def test_an_update_that_hangs_on_the_value_of_a_loss(mirrored2):
    def skipping(model, loss, tape):
        return applied(model, loss, tape, lambda g: [tf.where(loss < 1.2, each, 0) for each in g])

    assert_trains_alike(mirrored2, minimising(by_compute_loss, skipping))


@pytest.mark.slow
def test_a_jacobian_of_weights(mirrored2):
    def of_two(model, x, y, y_pred):
        loss = each(y, y_pred)
        return tf.stack([tf.reduce_mean(loss), tf.reduce_mean(tf.square(y_pred))])

    def by_jacobian(model, losses, tape):
        weights = model.trainable_variables
        gradients = [g[0] + 0.5 * g[1] for g in tape.jacobian(losses, weights)]
        model.optimizer.apply(gradients, weights)
        return {"norm": losses[0]}

    make = minimising(of_two, by_jacobian)
    assert_trains_alike(mirrored2, make)


def test_gradients_of_no_tape(mirrored2):
    def closed_form(cls):
        class Step(cls):
            def train_step(self, data):
                x, y = data
                error = tf.nn.softmax(self(x)) - tf.one_hot(y, 3)
                gradient = tf.reduce_sum(error, axis=0) / tf.cast(tf.shape(x)[0], tf.float32)
                self.optimizer.apply([gradient], [self.trainable_variables[-1]])
                return {"norm": tf.reduce_mean(error)}

        return Step

    assert_trains_alike(mirrored2, closed_form)


def test_what_counts_by_rows_eagerly_is_spoken_of(mirrored2):
    make = minimising(mean_by_hand)
    assert_trains_alike_and_says(mirrored2, make, "run_eagerly=True", run_eagerly=True)


def test_a_gradient_within_another_tape(mirrored2):
    def make(cls):
        class Step(cls):
            def train_step(self, data):
                x, y = data
                weights = self.trainable_variables
                with tf.GradientTape() as outer:
                    with tf.GradientTape() as inner:
                        loss = self.compute_loss(x, y, self(x, training=True))
                    norm = tf.linalg.global_norm(inner.gradient(loss, weights))
                self.optimizer.apply(outer.gradient(norm, weights), weights)
                return {"norm": norm}

        return Step

    assert_trains_alike(mirrored2, make)


def test_a_gradient_by_what_is_made_of_weights(mirrored2):
    """Weights that were updated once, inside of the tape, as in MAML."""

    def make(cls):
        class Step(cls):
            def train_step(self, data):
                x, y = data
                kernel, bias = self.trainable_variables[-2:]
                hidden = self.layers[1](x)
                with tf.GradientTape() as outer:
                    fast = 1.0 * kernel
                    with tf.GradientTape() as inner:
                        inner.watch(fast)
                        loss = tf.reduce_mean(each(y, hidden @ fast + bias))
                    fast = fast - 0.5 * inner.gradient(loss, fast)
                    loss = tf.reduce_mean(each(y, hidden @ fast + bias))
                self.optimizer.apply(outer.gradient(loss, [kernel, bias]), [kernel, bias])
                return {"norm": loss}

        return Step

    assert_trains_alike(mirrored2, make)


def test_points_that_are_no_rows(mirrored2):
    """The derivative of the network by points of its own, which each replica has."""
    points = tf.constant(X[:3])

    def make(cls):
        class Step(cls):
            def train_step(self, data):
                with tf.GradientTape() as tape:
                    with tf.GradientTape() as inner:
                        inner.watch(points)
                        outputs = tf.square(self(points))
                    slope = inner.gradient(outputs, points)
                    loss = self.compute_loss(*data, self(data[0])) + tf.reduce_mean(slope**2)
                weights = self.trainable_variables
                self.optimizer.apply(tape.gradient(loss, weights), weights)
                return {"norm": tf.reduce_mean(tf.abs(slope))}

        return Step

    assert_trains_alike(mirrored2, make)


def test_rows_of_an_embedding_that_a_step_clips(mirrored2):
    """Where their gradient is `IndexedSlices`, as on one device."""

    def make(cls):
        class Step(cls):
            def train_step(self, data):
                x, y = data
                ids = tf.cast(y, tf.int32)
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(tf.gather(self.table.value, ids) - x))
                (slices,) = tape.gradient(loss, [self.table])
                values = tf.clip_by_norm(slices.values, 0.05, axes=[1])
                self.optimizer.apply(
                    [tf.IndexedSlices(values, slices.indices, slices.dense_shape)], [self.table]
                )
                return {"norm": loss}

        return Step

    with mirrored2.scope():
        model = build(mirrored2, make(tfgpu.Model))
        model.table = keras.Variable(np.zeros((3, 8), "float32"), name="table")
        model.optimizer = keras.optimizers.SGD(1.0)
    fit(model, epochs=1)
    # A row of the table moves by 0.05 a batch at most, of which there are five.
    assert 0.05 < np.linalg.norm(model.table.numpy(), axis=1).max() <= 0.25 + 1e-5


def test_a_number_of_pythons_is_a_replicas_and_spoken_of(mirrored2):
    def by_pythons(model, x, y, y_pred):
        return tf.reduce_sum(each(y, y_pred)) / (2 * x.shape[0])

    model = build(mirrored2, minimising(by_pythons)(tfgpu.Model))
    with pytest.warns(UserWarning, match=r"one of Python's, such as x.shape\[0\]"):
        fit(model, rows=24)


def test_a_division_by_the_number_of_replicas_finds_one(mirrored2):
    def shared_out(model, x, y, y_pred):
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return tf.reduce_mean(each(y, y_pred)) / replicas

    assert_trains_alike(mirrored2, minimising(shared_out))
    assert mirrored2.num_replicas_in_sync == 2


@pytest.mark.parametrize("loss_of", [by_compute_loss, sum_by_hand, a_value_a_row])
def test_a_gradient_of_inputs_is_that_of_the_rows_at_hand(mirrored2, loss_of):
    def make(cls):
        class Step(cls):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    loss = loss_of(self, x, y, self(x))
                return {"norm": tf.reduce_mean(tf.norm(tape.gradient(loss, x), axis=1))}

        return Step

    _, expected = trained(make, one_device(), keras.Model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(replicas|A step)")
        _, norms = trained(make, mirrored2, tfgpu.Model)
    np.testing.assert_allclose(norms, expected, **TOLERANCE)


def test_outside_of_steps_a_tape_is_tensorflows():
    weight = tf.Variable(3.0)
    with tf.GradientTape() as tape:
        loss = weight * weight
    assert float(tape.gradient(loss, weight)) == 6.0
    assert float(tf.nn.compute_average_loss([2.0, 4.0])) == 3.0
