"""Exported files: columns in as they are, where the format can, and a class or a number out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfgpu.tasks.parts.serving import (
    PROBABILITIES,
    Serving,
    likeliest,
    negative_error,
    right,
    with_softmax,
)
from tfgpu.tasks.tabular.encoder import Encoder, title
from tfgpu.tasks.tabular.reading import NUMBERED, RAW_NUMBERS
from tfgpu.tasks.task import DataSpec

VALUE = "value"


def serve(spec: DataSpec, kind: str) -> Serving:
    """Columns by name for what runs on TensorFlow; else numbers as they are, numbered categories.

    Args:
        spec: The `DataSpec`.
        kind: The format; "" for what the files are compared with.
    """
    encoder = Encoder(spec.fitted)
    classes = bool(spec.class_names)
    by_name = kind in ("", "keras", "saved_model")
    output = PROBABILITIES if classes else VALUE
    numbers = list(encoder.inputs)[: len(encoder.numbers)]
    inputs: dict[str, tf.TensorSpec] = {}
    if by_name:
        for name in encoder.inputs:
            dtype = tf.float32 if name in numbers else tf.string
            inputs[name] = tf.TensorSpec([1], dtype)
    else:
        if encoder.numbers:
            inputs[RAW_NUMBERS] = tf.TensorSpec([len(numbers)], tf.float32)
        if encoder.categories:
            inputs[NUMBERED] = tf.TensorSpec([len(encoder.categories)], tf.int32)

    def model(trained: keras.Model) -> keras.Model:
        if by_name:
            space = encoder.space()
            given = space.get_inputs()
            x = encoder.join(given, space.get_encoded_features())
        else:
            given = {
                name: keras.Input(one.shape, dtype=one.dtype.name, name=name)
                for name, one in inputs.items()
            }
            x = _standardized(encoder, given)
        found = trained({name: x[name] for name in spec.x}, training=False)
        if classes:
            named = keras.layers.Softmax(dtype="float32", name=output)(found)
        else:
            named = keras.layers.Activation("linear", dtype="float32", name=output)(found)
        return keras.Model(given, named)

    refused = ""
    if kind == "litert_int8":
        refused = "columns of different ranges share one scale in int8; use litert"
    return Serving(
        inputs=inputs,
        model=model,
        reference=with_softmax if classes else _reference,
        outputs=(output,),
        measure="accuracy" if classes else "negative_mae",
        score=right if classes else negative_error,
        decide=likeliest if classes else _rounded(spec),
        difference=None if classes else _relative(spec),
        unit="a probability" if classes else "a number over the target's deviation",
        files={"columns.json": json.dumps(_columns(encoder), ensure_ascii=False, indent=1) + "\n"},
        preprocessing=_about(spec, encoder, output),
        refused=refused,
    )


def _standardized(encoder: Encoder, given: Mapping[str, Any]) -> dict[str, Any]:
    """x of the inputs that are joined already."""
    x: dict[str, Any] = {}
    if encoder.numbers:
        raw = given[RAW_NUMBERS]
        missing = ops.isnan(raw)
        # The converters do not take the constants of a Normalization layer.
        mean = np.array([each["mean"] for each in encoder.numbers], np.float32)
        deviation = np.array([each["variance"] for each in encoder.numbers]) ** 0.5
        values = (raw - mean) / deviation.astype(np.float32)
        parts = [ops.where(missing, ops.zeros_like(raw), values)]
        as_float = ops.cast(missing, "float32")
        parts += [as_float[:, i : i + 1] for i in encoder.indicators]
        x["numbers"] = ops.concatenate(parts, axis=-1) if len(parts) > 1 else parts[0]
    if encoder.categories:
        x["categories"] = given[NUMBERED]
    return x


def _columns(encoder: Encoder) -> dict[str, Any]:
    """What a program that has no FeatureSpace needs to prepare a row."""
    names = list(encoder.inputs)
    return {
        RAW_NUMBERS: [title(each) for each in encoder.numbers],
        NUMBERED: [
            {
                "column": title(each),
                "numbers": {
                    category: start + i for i, category in enumerate(each["vocabulary"], 1)
                },
            }
            for each, start in zip(encoder.categories, encoder.starts, strict=True)
        ],
        "inputs": {name: encoder.inputs[name] for name in names},
    }


def _about(spec: DataSpec, encoder: Encoder, output: str) -> dict[str, Any]:
    joined = {}
    if encoder.numbers:
        joined[RAW_NUMBERS] = (
            f"float32, batch x {len(encoder.numbers)}, in the order of columns.json; NaN is missing"
        )
    if encoder.categories:
        joined[NUMBERED] = (
            f"int32, batch x {len(encoder.categories)}, by the numbers of columns.json; 0 is a "
            "category that is not there"
        )
    return {
        "keras, saved_model": "batch x 1 for each of `inputs` of columns.json: float32 (NaN is "
        "missing), or strings in UTF-8",
        "onnx, litert": joined,
        "output": output,
        "target": spec.fitted["target"],
    }


def _reference(trained: keras.Model) -> Callable[..., Mapping[str, tf.Tensor]]:
    def call(x: Mapping[str, tf.Tensor], training: bool = False) -> Mapping[str, tf.Tensor]:
        return {VALUE: tf.cast(trained(x, training=training), tf.float32)}

    return call


def _rounded(spec: DataSpec) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Decisions: a number in hundredths of the target's deviation."""
    step = spec.fitted.get("deviation", 1.0) / 100

    def decide(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.round(outputs[VALUE][:, 0].astype(np.float64) / step)

    return decide


def _relative(spec: DataSpec) -> Callable[[Mapping[str, Any], Mapping[str, Any]], float]:
    """The greatest difference, over the target's deviation: a number may be of any size."""

    def difference(found: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
        apart = np.abs(found[VALUE].astype(np.float64) - reference[VALUE])
        return float(apart.max() / spec.fitted["deviation"]) if apart.size else 0.0

    return difference
