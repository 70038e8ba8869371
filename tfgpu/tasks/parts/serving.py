"""The signature of an exported file: raw inputs, postprocessing, and how a file is compared.

An exported model takes what a user has (pixels, samples, strings) and gives what a user wants
(probabilities, masks, ids), in float32. `Serving` says how the model of a run becomes that one, and
how the gate of `tfgpu export` tells whether a file of another runtime does the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.errors import RequestError

Arrays = Mapping[str, np.ndarray]

OUTPUT = "outputs"
PROBABILITIES = "probabilities"


def _first_output(outputs: Arrays) -> np.ndarray:
    return next(iter(outputs.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """How the model of a run is exported in one format.

    Attributes:
        inputs: The raw inputs by name, of one example, without the batch. What a test example gives
            for them is its x, by the same names (the one input: x itself), or what its
            `Examples.decode_raw` gives.
        model: The run's model in float32 -> a model of Keras' own classes, from the raw inputs, as
            `keras.Input`s of these names, to a dict of outputs, or to one output that has the name
            of its layer.
        reference: The run's model -> a function of (x, training=False) that gives the outputs by
            name, by another way than `model`.
        outputs: Their names.
        measure: What `score` is called, in `export.json` and in the table.
        score: (outputs, y) of a batch -> (n,) how well the file does on each example; an int8 file
            may lose no more of its mean than `--max_accuracy_difference`.
        decide: Outputs of a batch -> (n, ...) decisions, of which those of a file and of the model
            are compared for agreement.
        difference: (outputs, outputs of the model) -> the greatest difference between them, which
            `--max_difference` bounds for a float file. By default that of all floats.
        unit: What an output is called in messages: "a probability".
        files: More files beside the exported ones, and in them where a format has room: contents
            by name, such as "vocabulary.txt"; the names of the classes are there already.
        preprocessing: What has to be done to an example before, as JSON holds it.
        refused: Why this format cannot be made for this task; "" where it can.
    """

    inputs: Mapping[str, tf.TensorSpec]
    model: Callable[[keras.Model], keras.Model]
    reference: Callable[[keras.Model], Callable[..., Mapping[str, tf.Tensor]]]
    outputs: tuple[str, ...]
    measure: str
    score: Callable[[Arrays, Any], np.ndarray]
    decide: Callable[[Arrays], np.ndarray]
    difference: Callable[[Arrays, Arrays], float] | None = None
    unit: str = "an output"
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    refused: str = ""

    def raw(self, x: Any) -> dict[str, np.ndarray]:
        """x of test examples as the raw inputs, where there is no `Examples.decode_raw`."""
        if isinstance(x, Mapping):
            return {name: x[name] for name in self.inputs}
        (name,) = self.inputs
        return {name: x}


def right(outputs: Arrays, y: Any) -> np.ndarray:
    """(n,) whether the most probable class is the label."""
    return likeliest(outputs) == y


def likeliest(outputs: Arrays) -> np.ndarray:
    """(n, ...) the most probable classes."""
    return outputs[PROBABILITIES].argmax(axis=-1)


def with_softmax(model: Callable[..., tf.Tensor]) -> Callable[..., Mapping[str, tf.Tensor]]:
    """The probabilities that a model's logits mean, as `Serving.reference` gives them.

    Args:
        model: (x, training) -> logits (n, ..., classes).
    """

    def call(x: Any, training: bool = False) -> Mapping[str, tf.Tensor]:
        return {PROBABILITIES: tf.nn.softmax(tf.cast(model(x, training=training), tf.float32))}

    return call


def negative_error(outputs: Arrays, y: Any) -> np.ndarray:
    """(n,) minus the mean absolute difference of the first output from y: higher is better."""
    values = _first_output(outputs).astype(np.float64)
    target = np.asarray(y, np.float64).reshape(values.shape)
    return -np.abs(values - target).reshape(len(values), -1).mean(axis=1)


def agreement_with_nothing(outputs: Arrays) -> np.ndarray:
    """(n, ...) the first output, rounded to 3 digits: decisions where there are none."""
    return np.round(_first_output(outputs), 3)


def plain_serving(spec: Any, kind: str) -> Serving:
    """The default: x in as it is, the model's one output as it is, scored by its error from y.

    Args:
        spec: The `DataSpec`; x is one tensor.
        kind: The format; the same for all.
    """
    if isinstance(spec.x, Mapping) or isinstance(spec.y, Mapping):
        raise RequestError("this run's task cannot be exported: give its Task a `serve`")

    def model(trained: keras.Model) -> keras.Model:
        inputs = keras.Input(spec.x.shape, dtype=spec.x.dtype.name, name="inputs")
        outputs = trained(keras.ops.cast(inputs, "float32"), training=False)
        named = keras.layers.Activation("linear", dtype="float32", name=OUTPUT)(outputs)
        return keras.Model(inputs, named)

    def reference(trained: keras.Model) -> Callable[..., Mapping[str, tf.Tensor]]:
        def call(x: tf.Tensor, training: bool = False) -> Mapping[str, tf.Tensor]:
            return {OUTPUT: tf.cast(trained(tf.cast(x, tf.float32), training=training), tf.float32)}

        return call

    return Serving(
        inputs={"inputs": spec.x},
        model=model,
        reference=reference,
        outputs=(OUTPUT,),
        measure="negative_error",
        score=negative_error,
        decide=agreement_with_nothing,
    )
