"""A forward pass in segments whose activations are computed again in the backward pass.

Between the forward and the backward pass only what goes from one segment to the next is kept, and
the activations inside of one segment at a time. Source: Chen et al., "Training Deep Nets with
Sublinear Memory Cost", arXiv:1604.06174.

A segment is run as a function of its inputs and of the values of all its variables, so that the
second time is the same as the first: moving statistics are assigned once, and dropout drops the
same. (`keras.RematScope` wraps single layers by `tf.recompute_grad`, which refuses the keyword
arguments that Keras gives it in a graph, as of Keras 3.15, and would assign twice.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree

from tfgpu.engine import keras_internals as private


class Segments:
    """The parts of a functional model, in order: each takes what the one before returned.

    Args:
        models: Functional models of the same layers, each of one input and one output tensor.
    """

    def __init__(self, models: Sequence[keras.Model]):
        self._models = tuple(models)

    def __len__(self) -> int:
        return len(self._models)

    def __call__(self, x: Any) -> Any:
        """The model's outputs in training.

        The last segment is run as it is, since its backward pass comes at once.

        Raises:
            ValueError: A layer does what cannot be done twice.
        """
        for segment in self._models[:-1]:
            x = _recomputed(segment, x)
        return self._models[-1](x, training=True)


def _recomputed(segment: keras.Model, x: Any) -> Any:
    """Calls a segment, to be called again when its gradients are asked for."""
    trained, kept = list(segment.trainable_variables), list(segment.non_trainable_variables)
    generator = private.global_generator()
    if generator is not None:
        kept.append(generator.state)
    before = [tf.convert_to_tensor(variable) for variable in kept]
    assigned: list[Any] = []

    def run(inputs: tf.Tensor, weights: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        mapping = [*zip(trained, weights, strict=True), *zip(kept, before, strict=True)]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            output = segment(inputs, training=True)
        if scope.losses:
            raise ValueError(
                "a layer adds a loss (add_loss, or activity_regularizer), which has no place in "
                "a segment that is computed twice; train the model without rematerialization"
            )
        after = [scope.get_current_value(variable) for variable in kept]
        changed = [new is not old for new, old in zip(after, before, strict=True)]
        assigned[:] = [v for v, differs in zip(kept, changed, strict=True) if differs]
        return output, [new for new, differs in zip(after, changed, strict=True) if differs]

    @tf.custom_gradient
    def called(inputs: tf.Tensor, *weights: tf.Tensor) -> Any:
        output, new = run(inputs, weights)

        def gradient(upstream: tf.Tensor, *_: Any) -> Any:
            again = _after(upstream, inputs, dtype=tf.as_dtype(segment.inputs[0].dtype))
            sources: list[tf.Tensor] = [again, *weights] if inputs.dtype.is_floating else [*weights]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                second = run(again, weights)[0]
            found = tape.gradient(
                second,
                sources,
                output_gradients=upstream,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            dense = [tf.convert_to_tensor(each) for each in found]
            return dense if inputs.dtype.is_floating else [None, *dense]

        return [output, *new], gradient

    if hasattr(x, private.MASK):
        raise ValueError("a mask goes from one segment to the next, and would be lost")
    (inputs,) = tree.flatten(x)
    output, *new = called(tf.convert_to_tensor(inputs), *map(tf.convert_to_tensor, trained))
    for variable, value in zip(assigned, new, strict=True):
        variable.assign(value)
    return output


def _after(upstream: tf.Tensor, inputs: tf.Tensor, *, dtype: tf.DType) -> tf.Tensor:
    """`inputs`, but not before `upstream` is there.

    A control dependency would do for TensorFlow alone. XLA has none: it would find the second
    forward pass equal to the first, and keep the activations of that. So a zero that depends on
    `upstream` is added, which nobody can know to be one.

    Args:
        upstream: Floats.
        inputs: Floats, or integers such as pixels.
        dtype: What the segment brings its inputs to, which integers become before the addition.
    """
    first = tf.reshape(upstream, [-1])[:1]
    zero = tf.reduce_sum(tf.where(tf.equal(first, first), tf.zeros_like(first), first))
    if not inputs.dtype.is_floating:
        inputs = tf.cast(inputs, dtype)
    return inputs + tf.cast(zero, inputs.dtype)
