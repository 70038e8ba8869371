"""How recordings become x: int16 samples or float32 frames of one length, and how many are real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import Examples, data_errors, python_op
from tfgpu.data.records import Feature, Records, Schema
from tfgpu.data.wav import resample
from tfgpu.engine.datasets import untuned
from tfgpu.errors import DataError, RequestError
from tfgpu.machine import hardware
from tfgpu.models.audio import FULL_SCALE, Input, Spectrogram
from tfgpu.tasks.task import DataSpec, Reading, Request

SAMPLES, FEATURES, LENGTH = "samples", "features", "length"

OPTIONS: Mapping[str, Any] = {
    "rate": 0,
    "seconds": 0.0,
    "frames": 0,
    "frame_ms": 25.0,
    "hop_ms": 10.0,
    "mels": 40,
    "low": 20.0,
    "high": 0.0,
}
"""`--task_options`; 0 stands for what the data decide."""

MOST_RATE = 16000
"""Samples a second that are taken where nothing is asked: speech has little above 8 kHz."""

# Where nothing is asked: as long as so many percent of the training recordings, and no longer than
# so many times their median. What is padded takes as long as what is not.
_LONG_ENOUGH, _TIMES_MEDIAN = 99, 4
_MEASURED = 4096  # Training recordings that lengths, means and deviations are taken of.
_OF_SAMPLES = ("rate", "seconds", "frame_ms", "hop_ms", "mels", "low", "high")


def is_input(feature: Feature) -> bool:
    """Whether a feature is a recording, or frames of one."""
    frames = len(feature.shape) == 2 and feature.shape[-1] is not None
    return feature.kind == "audio" or (feature.kind == "numbers" and frames)


def choose(schema: Schema, given: Mapping[str, str]) -> Mapping[str, str]:
    """The recording and the class: those that the user or the set names, else the only ones."""
    audio = [name for name, feature in schema.features.items() if is_input(feature)]
    labels = schema.of_kind("class")
    roles: dict[str, str] = {}
    if schema.supervised is not None and schema.supervised[0] in audio:
        roles["x"] = schema.supervised[0]
        if schema.supervised[1] in labels:
            roles["y"] = schema.supervised[1]
    if len(audio) == 1:
        roles.setdefault("x", audio[0])
    if len(labels) == 1:
        roles.setdefault("y", labels[0])
    roles |= given
    if roles.get("x") not in audio or roles.get("y") not in labels:
        raise RequestError(
            f"{schema.requested!r} is not an audio-classification set: it needs a recording or "
            f"frames of features, and a class, and has {schema.described}; name them with "
            "--features=x=NAME,y=NAME"
        )
    return {"x": roles["x"], "y": roles["y"]}


def read(request: Request) -> Reading:
    """x: `samples`, int16 (time,), or `features`, float32 (time, features), and `length`, int32 ().

    y: int32 labels ().
    """
    x, y = request.roles["x"], request.roles["y"]
    feature, names = request.schema.features[x], request.schema.features[y].class_names
    if len(names) < 2:
        raise DataError(
            f"{y!r} of {request.schema.requested!r} holds one class only, "
            f"{', '.join(map(repr, names)) or 'none'}: there must be at least two to tell apart"
        )
    ready = feature.kind != "audio"
    fitted = dict(request.fitted) if request.fitted is not None else _fit(request, x, feature)
    rate: int = feature.sample_rate or fitted.get("rate", 0)
    length = fitted["length"]
    if ready != (fitted["input"] == FEATURES) or (
        ready and feature.shape[-1] != len(fitted["mean"])
    ):
        taken = f"frames of {len(fitted['mean'])} features" if "mean" in fitted else "samples"
        raise DataError(
            f"{x!r} of {request.schema.requested!r} is {feature.described}, and the model takes "
            f"{taken}"
        )

    def cut(found: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        values = found[x]
        if ready:
            values = tf.cast(values, tf.float32)
        else:
            values = to_samples(values)
            if rate != fitted["rate"]:
                values = _at_rate(values, rate, fitted["rate"])
        return padded(values, length, FEATURES if ready else SAMPLES)

    def decode(found: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        return cut(found), decode_y(found)

    def decode_y(found: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.cast(found[y], tf.int32)

    def decode_raw(found: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        raw = cut(found)
        if not ready:
            raw[SAMPLES] = tf.cast(raw[SAMPLES], tf.float32) / FULL_SCALE
        return raw

    def examples(split: str, some: Records) -> Examples:
        return some.examples(
            (x, y),
            decode,
            y_names=(y,),
            decode_y=decode_y,
            raw_names=(x,),
            decode_raw=decode_raw,
        )

    if ready:
        of_x = {FEATURES: tf.TensorSpec([length, len(fitted["mean"])], tf.float32)}
    else:
        of_x = {SAMPLES: tf.TensorSpec([length], tf.int16)}
    spec = DataSpec(
        x={**of_x, LENGTH: tf.TensorSpec([], tf.int32)},
        y=tf.TensorSpec((), tf.int32),
        class_names=names,
        fitted=fitted,
    )
    return Reading(spec=spec, examples=examples, notes=_notes(spec, rate))


def to_samples(values: tf.Tensor) -> tf.Tensor:
    """A recording as int16 (time,), its channels mixed down.

    Floats in [-1, 1] and uint8, whose silence is 128, are brought to its range, and so is, as a
    whole, a recording that is louder: of floats that hold whole numbers, or of 24 and 32 bits.
    """
    floats = tf.cast(values, tf.float32)
    if values.dtype.is_floating:
        floats = floats * FULL_SCALE
    elif values.dtype == tf.uint8:
        floats = (floats - 128.0) * 256.0
    elif values.dtype == tf.int16 and values.shape.rank == 1:
        return values
    if values.shape.rank == 2:
        floats = tf.reduce_mean(floats, axis=-1)
    floats *= FULL_SCALE / tf.maximum(tf.reduce_max(tf.abs(floats)), FULL_SCALE)
    floats = tf.clip_by_value(tf.round(floats), -FULL_SCALE, FULL_SCALE - 1)
    return tf.cast(floats, tf.int16)


def padded(values: tf.Tensor, length: int, name: str) -> dict[str, tf.Tensor]:
    """The first of the values, padded at the end with 0, under a name; and how many are real."""
    real = tf.minimum(tf.shape(values)[0], length)
    rest = [[0, 0]] * (values.shape.rank - 1)
    whole = tf.pad(values[:length], [[0, length - real], *rest])
    whole = tf.ensure_shape(whole, [length, *values.shape[1:]])
    return {name: whole, LENGTH: real}


def _at_rate(values: tf.Tensor, given: int, wanted: int) -> tf.Tensor:
    resampled = python_op(lambda some: resample(some, given, wanted), [values], tf.int16)
    return tf.ensure_shape(resampled, [None])


def _fit(request: Request, x: str, feature: Feature) -> dict[str, Any]:
    """The length, and what the frames are, from the training recordings alone.

    Returns:
        "input", "samples" or "features"; "name" of the feature; "length" of x and "longer", the
        share of the recordings that are; of samples "rate" and "spectrogram", of features "mean"
        and "deviation".

    Raises:
        DataError: A recording is damaged.
        RequestError: An option is out of its range.
    """
    options = request.options
    ready = feature.kind != "audio"
    _check_options(options, ready)
    lengths, mean, deviation = _measure(request.train, x, feature)
    common = {"input": FEATURES if ready else SAMPLES, "name": x}
    if ready:
        length = options["frames"]
        if not length:
            # To a multiple of 8, which kernels like.
            length = -(-_enough(lengths) // 8) * 8
        statistics = {"mean": mean.tolist(), "deviation": deviation.tolist()}
        return {
            **common,
            "length": length,
            "longer": float((lengths > length).mean()),
            **statistics,
        }
    known = feature.sample_rate or options["rate"]
    if not known:
        raise RequestError(
            f"{request.schema.requested!r} does not say at which rate {x!r} was recorded: say it "
            "with --task_options=rate=16000"
        )
    rate = options["rate"] or min(known, MOST_RATE)
    lengths = -(-lengths * rate // known)
    length = round(options["seconds"] * rate)
    if not length:
        length = _enough(lengths)
    spectrogram = _spectrogram(options, rate)
    return {
        **common,
        "length": max(length, spectrogram["frame"]),
        "longer": float((lengths > length).mean()),
        "rate": rate,
        "spectrogram": spectrogram,
    }


def _enough(lengths: np.ndarray) -> int:
    """The length that recordings are cut or padded to, where nothing is asked."""
    return int(min(np.percentile(lengths, _LONG_ENOUGH), _TIMES_MEDIAN * np.median(lengths)))


def _check_options(options: Mapping[str, Any], ready: bool) -> None:
    for name in _OF_SAMPLES if ready else ("frames",):
        if options[name] != OPTIONS[name]:
            what = "ready features" if ready else "samples"
            raise RequestError(
                f"--task_options={name}={options[name]} has no meaning for {what}; leave it out"
            )
    for name in OPTIONS:
        least = 1 if name in ("mels", "frame_ms", "hop_ms") else 0
        if options[name] < least:
            raise RequestError(f"--task_options={name}={options[name]}: must be at least {least}")
    if options["hop_ms"] > options["frame_ms"]:
        raise RequestError(
            f"--task_options=hop_ms={options['hop_ms']}: must not exceed frame_ms, which is "
            f"{options['frame_ms']}, or samples would be left out"
        )


def _spectrogram(options: Mapping[str, Any], rate: int) -> dict[str, Any]:
    """The arguments of `Spectrogram`.

    Raises:
        RequestError: The bands do not fit the rate and the frame.
    """
    high = options["high"] or rate / 2
    if not options["low"] < high <= rate / 2:
        raise RequestError(
            f"--task_options=low={options['low']},high={high}: bands lie between 0 and half the "
            f"rate, {rate / 2:g} Hz"
        )
    made = {
        "rate": rate,
        "frame": round(options["frame_ms"] * rate / 1000),
        "hop": max(1, round(options["hop_ms"] * rate / 1000)),
        "mels": options["mels"],
        "low": options["low"],
        "high": high,
    }
    empty = ~Spectrogram(**made).mel_weights().any(axis=0)
    if empty.any():
        raise RequestError(
            f"--task_options=mels={options['mels']}: band {int(empty.argmax())} is narrower than "
            f"the bins of a frame of {made['frame']} samples: take fewer bands or a longer "
            "frame_ms"
        )
    return made


def _measure(train: Records, x: str, feature: Feature) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths of recordings, and of features the mean and the deviation over all their frames."""
    ready = feature.kind != "audio"

    def sums(found: Mapping[str, tf.Tensor]) -> tuple[Any, Any]:
        values = found[x]
        count = tf.shape(values)[0]
        if not ready:
            return (count, tf.zeros([0]), tf.zeros([0])), ()
        frames = tf.cast(values, tf.float64)
        return (count, tf.reduce_sum(frames, 0), tf.reduce_sum(frames**2, 0)), ()

    examples = train.examples((x,), sums)
    count = train.num_examples
    some = np.unique(np.linspace(0, count - 1, min(count, _MEASURED)).astype(np.int64))
    positions = tf.data.Dataset.from_tensor_slices(some)
    measured = positions.batch(64).map(
        lambda of: examples.batch(of)[0], num_parallel_calls=hardware.usable_cores()
    )
    with data_errors():
        parts = list(zip(*untuned(measured).as_numpy_iterator(), strict=True))
    lengths, total, squares = (np.concatenate(part) for part in parts)
    if lengths.min() < 1:
        raise DataError(
            f"training recording {some[lengths.argmin()]} has a length of zero; take it away"
        )
    frames = lengths.sum()
    mean = total.sum(0) / frames
    return lengths, mean, np.sqrt(np.maximum(squares.sum(0) / frames - mean**2, 0))


def model_input(spec: DataSpec) -> Input:
    """What the models are built for."""
    fitted = spec.fitted
    if fitted["input"] == SAMPLES:
        return Input(length=fitted["length"], spectrogram=Spectrogram(**fitted["spectrogram"]))
    return Input(
        length=fitted["length"],
        features=len(fitted["mean"]),
        mean=tuple(fitted["mean"]),
        deviation=tuple(fitted["deviation"]),
    )


def _notes(spec: DataSpec, rate: int) -> tuple[str, ...]:
    fitted = spec.fitted
    longer = f"{fitted['longer']:.1%} of the training recordings are longer"
    if fitted["input"] == FEATURES:
        return (
            f"recordings: the first {fitted['length']} frames of {len(fitted['mean'])} features "
            f"are read, and {longer}",
        )
    made = model_input(spec).spectrogram
    assert made is not None
    resampled = f", resampled from {rate} Hz" if rate != made.rate else ""
    return (
        f"recordings: {made.rate} Hz{resampled}; the first {fitted['length'] / made.rate:.2f} s, "
        f"{made.frames(fitted['length'])} frames of {made.mels} bands, are read, and {longer}",
    )
