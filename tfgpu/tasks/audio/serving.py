"""Exported models of sound: float samples, or ready features, and how many are real."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfgpu.models.audio import FULL_SCALE
from tfgpu.tasks.audio.reading import FEATURES, LENGTH, SAMPLES, model_input
from tfgpu.tasks.parts.serving import PROBABILITIES, Serving, likeliest, right, with_softmax
from tfgpu.tasks.task import DataSpec

MOST_UNROLLED = 400
"""Steps of a recurrent layer in a LiteRT file, each of which is written out."""

_RECURRENT = ("GRU", "LSTM", "SimpleRNN")


def unrolled(model: keras.Model) -> keras.Model:
    """The same model with its recurrent layers unrolled: LiteRT has no loop for any batch.

    Args:
        model: A functional model.
    """
    found = 0

    def changed(config: Any) -> Any:
        nonlocal found
        if isinstance(config, list | tuple):
            return type(config)(changed(part) for part in config)
        if not isinstance(config, dict):
            return config
        one = {name: changed(part) for name, part in config.items()}
        if one.get("class_name") in _RECURRENT:
            found += 1
            one["config"]["unroll"] = True
        return one

    config = changed(model.get_config())
    if not found:
        return model
    made = type(model).from_config(config)
    made.set_weights(model.get_weights())
    return made


def serve(spec: DataSpec, kind: str) -> Serving:
    """Samples in [-1, 1] or features, and their length, to probabilities, compared by accuracy."""
    fitted = spec.fitted
    ready = fitted["input"] == FEATURES
    name = FEATURES if ready else SAMPLES
    given = spec.x[FEATURES] if ready else tf.TensorSpec(spec.x[SAMPLES].shape, tf.float32)
    spectrogram = model_input(spec).spectrogram
    steps = fitted["length"] if spectrogram is None else spectrogram.frames(fitted["length"])
    inputs = {name: given, LENGTH: spec.x[LENGTH]}

    def model(trained: keras.Model) -> keras.Model:
        raw = {
            each: keras.Input(one.shape, dtype=one.dtype.name, name=each)
            for each, one in inputs.items()
        }
        # With more the file would be large: then the converter refuses the loop, and says so.
        if kind.startswith("litert") and steps <= MOST_UNROLLED:
            trained = unrolled(trained)
        values = raw[name]
        if not ready:
            whole = keras.ops.round(values * FULL_SCALE)
            values = keras.ops.cast(keras.ops.clip(whole, -FULL_SCALE, FULL_SCALE - 1), "int16")
        logits = trained({name: values, LENGTH: raw[LENGTH]}, training=False)
        probabilities = keras.layers.Softmax(dtype="float32", name=PROBABILITIES)(logits)
        return keras.Model(list(raw.values()), probabilities)

    refused = ""
    if kind == "litert_int8" and not ready:
        refused = (
            "the powers of a spectrogram span ten orders of magnitude, which 8 bits do not; take "
            "litert"
        )
    return Serving(
        inputs=inputs,
        model=model,
        reference=with_softmax,
        outputs=(PROBABILITIES,),
        measure="accuracy",
        score=right,
        decide=likeliest,
        unit="a probability",
        preprocessing=_preprocessing(spec, ready),
        refused=refused,
    )


def _preprocessing(spec: DataSpec, ready: bool) -> dict[str, Any]:
    fitted = spec.fitted
    length = fitted["length"]
    if ready:
        said: dict[str, Any] = {
            FEATURES: f"float32, batch x {length} x {len(fitted['mean'])}, as in training: the "
            "model standardises them"
        }
        what = "frames"
    else:
        said = {
            SAMPLES: f"float32 in [-1, 1], batch x {length}, one channel; divide a recording that "
            "goes beyond by its greatest sample",
            "rate": fitted["rate"],
            "spectrogram": {"in": "the model", **fitted["spectrogram"]},
        }
        what = "samples"
    said |= {
        LENGTH: f"int32, batch: how many {what} are real; at least 1, at most {length}",
        "padding": f"the first {length} {what}, padded at the end with 0",
    }
    return {"input": said, "output": PROBABILITIES}
