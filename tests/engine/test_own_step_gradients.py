"""Gradients in a step of one's own are those of the global batch, whatever it does with them."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from own_steps import TOLERANCE, build, fit
from replicas import assert_same_weights, one_device

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


def trained(make, strategy, cls, **compiled):
    model = build(strategy, make(cls), **compiled)
    with strategy.scope():
        slots = [keras.Variable(0 * w, trainable=False) for w in model.trainable_variables]
    model.slots = slots
    return model, fit(model)["norm"]


def assert_trains_alike_and_says(strategy, make, said, **compiled):
    one, _ = trained(make, one_device(), keras.Model, **compiled)
    with pytest.warns(UserWarning, match=said):
        two, _ = trained(make, strategy, tfgpu.Model, **compiled)
    assert_same_weights(one, two)


@pytest.mark.parametrize("case", CASES)
def test_it_trains_what_one_device_trains_and_says_nothing(mirrored2, case):
    make = minimising(*CASES[case])
    one, expected = trained(make, one_device(), keras.Model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(replicas|A step)")
        two, norms = trained(make, mirrored2, tfgpu.Model)
    assert_same_weights(one, two)
    np.testing.assert_allclose(norms, expected, **TOLERANCE)


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


@pytest.mark.parametrize(
    "loss_of", [sum_by_hand, sum_of_sums, l2_loss, by_einsum, mean_times_rows, a_sum_a_class]
)
def test_a_sum_by_hand_adds_up_and_is_spoken_of(mirrored2, loss_of):
    make = minimising(loss_of)
    assert_trains_alike_and_says(mirrored2, make, "a sum over the rows of its tensors")


def test_a_sum_together_with_a_mean_is_spoken_of(mirrored2):
    def both(model, x, y, y_pred):
        return sum_by_hand(model, x, y, y_pred) + tf.reduce_mean(tf.square(y_pred))

    with pytest.warns(UserWarning, match="a mean over the rows of its tensors and a sum"):
        trained(minimising(both), mirrored2, tfgpu.Model)


def test_a_division_by_what_is_in_the_rows_is_spoken_of(mirrored2):
    def masked(model, x, y, y_pred):
        mask = tf.cast(x[:, 0] > 0, tf.float32)
        return tf.reduce_sum(mask * each(y, y_pred)) / (tf.reduce_sum(mask) + 1e-3)

    with pytest.warns(UserWarning, match="divides a loss by what depends on the rows"):
        trained(minimising(masked), mirrored2, tfgpu.Model)


def test_a_loss_of_a_function_of_tensorflow_is_spoken_of(mirrored2):
    function = tf.function(mean_by_hand)
    assert_trains_alike_and_says(
        mirrored2, minimising(function), "what a tf.function, a branch or a loop"
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


def test_an_update_that_hangs_on_the_value_of_a_loss_is_spoken_of(mirrored2):
    def skipping(model, loss, tape):
        return applied(model, loss, tape, lambda g: [tf.where(loss < 1.2, each, 0) for each in g])

    with pytest.warns(UserWarning, match="of what each replica has of its own rows"):
        trained(minimising(by_compute_loss, skipping), mirrored2, tfgpu.Model)


def test_a_jacobian_of_weights_is_averaged_by_rows(mirrored2):
    def of_two(model, x, y, y_pred):
        loss = each(y, y_pred)
        return tf.stack([tf.reduce_mean(loss), tf.reduce_mean(tf.square(y_pred))])

    def by_jacobian(model, losses, tape):
        weights = model.trainable_variables
        gradients = [g[0] + 0.5 * g[1] for g in tape.jacobian(losses, weights)]
        model.optimizer.apply(gradients, weights)
        return {"norm": losses[0]}

    make = minimising(of_two, by_jacobian)
    assert_trains_alike_and_says(mirrored2, make, "that tape.gradient has not given")


def test_gradients_of_no_tape_are_averaged_by_rows_and_spoken_of(mirrored2):
    def closed_form(cls):
        class Step(cls):
            def train_step(self, data):
                x, y = data
                error = tf.nn.softmax(self(x)) - tf.one_hot(y, 3)
                gradient = tf.reduce_mean(error, axis=0)
                self.optimizer.apply([gradient], [self.trainable_variables[-1]])
                return {"norm": tf.reduce_mean(error)}

        return Step

    assert_trains_alike_and_says(mirrored2, closed_form, "that tape.gradient has not given")


def test_what_counts_by_rows_eagerly_is_spoken_of(mirrored2):
    make = minimising(mean_by_hand)
    assert_trains_alike_and_says(mirrored2, make, "run_eagerly=True", run_eagerly=True)


def test_a_gradient_within_another_tape_is_spoken_of(mirrored2):
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

    with pytest.warns(UserWarning, match="while another tape records"):
        trained(make, mirrored2, tfgpu.Model)


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
