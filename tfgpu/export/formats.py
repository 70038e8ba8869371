"""One function a format: from the inference model to a file, or a folder, on the disk.

What the numbers mean travels with them where a format has room for it: class names and
preprocessing are in the properties of an ONNX file, in `assets.extra` of a SavedModel, and in
the ZIP at the end of a LiteRT file, where TensorFlow Lite's own tools look for `labels.txt`
(`unzip -p model.tflite labels.txt`). A `.keras` file has no place for them.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.export.settings import EXPORT_FILES


@dataclasses.dataclass(frozen=True)
class Source:
    """What the writers take.

    Attributes:
        model: Of Keras' own classes, from raw inputs to one output or a dict of them.
        class_names: One a class; () where there are none.
        preprocessing: What has to be done to an example before, as JSON holds it.
        files: More files that travel with it, by name.
        calibration: Raw inputs of training examples, (n, ...) by name, for the ranges of int8.
    """

    model: keras.Model
    class_names: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    calibration: Mapping[str, np.ndarray] | None = None

    @property
    def labels(self) -> str:
        """The content of `labels.txt`: one class a line."""
        return "".join(f"{name}\n" for name in self.class_names)

    @property
    def texts(self) -> dict[str, str]:
        """The files that travel with the model, by name."""
        stated = json.dumps(dict(self.preprocessing), indent=2) + "\n"
        labels = {"labels.txt": self.labels} if self.class_names else {}
        return {**labels, "preprocessing.json": stated, **self.files}

    @property
    def named(self) -> keras.Model:
        """The model with names for its outputs, which end up in the signatures."""
        if isinstance(self.model.output, dict):
            return self.model
        return keras.Model(self.model.inputs, {self.model.output_names[0]: self.model.outputs[0]})

    @property
    def signature(self) -> list[tf.TensorSpec]:
        """Of its inputs."""
        return [
            tf.TensorSpec([None, *each.shape[1:]], each.dtype, name=each.name)
            for each in self.model.inputs
        ]

    @property
    def exported(self) -> list[Any]:
        """The same as Keras' `export` takes it: a list of the arguments of a call."""
        return self.signature if len(self.signature) == 1 else [self.signature]


def write_keras(source: Source, path: Path) -> None:
    """Writes a `.keras` file that plain Keras loads."""
    source.model.save(path)


def write_saved_model(source: Source, path: Path) -> None:
    """Writes a SavedModel with the signature `serving_default`: raw inputs to outputs."""
    named = source.named
    archive = keras.export.ExportArchive()
    archive.track(named)
    # Not `named.export`: it calls the model without `training`, and the default of Keras' layers of
    # augmentation is True.
    archive.add_endpoint(
        "serve", lambda inputs: named(inputs, training=False), input_signature=source.exported
    )
    archive.write_out(path, verbose=False)
    # For whoever opens the folder; TensorFlow leaves this part of a SavedModel to others.
    extra = path / "assets.extra"
    extra.mkdir()
    for name, text in source.texts.items():
        (extra / name).write_text(text, encoding="utf-8")


def write_onnx(source: Source, path: Path) -> None:
    """Writes an ONNX file of any batch."""
    import onnx
    import tf2onnx

    # Registers what tf2onnx lacks.
    import tfgpu.export.onnx_operations  # noqa: F401

    named = source.named

    def call(*raw: tf.Tensor) -> Any:
        return named(raw[0] if len(raw) == 1 else list(raw), training=False)

    function = tf.function(call, input_signature=source.signature)
    converted, _ = tf2onnx.convert.from_function(function, input_signature=source.signature)
    for value in (*converted.graph.input, *converted.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(
        converted,
        {
            **({"labels": json.dumps(source.class_names)} if source.class_names else {}),
            "preprocessing": json.dumps(dict(source.preprocessing)),
            **source.files,
        },
    )
    onnx.checker.check_model(converted, full_check=True)
    onnx.save(converted, path)


def write_litert(source: Source, path: Path) -> None:
    """Writes a LiteRT file in float32, of built-in operators alone."""
    _convert_litert(source, path, operators=tf.lite.OpsSet.TFLITE_BUILTINS)


def write_litert_float16(source: Source, path: Path) -> None:
    """Writes a LiteRT file whose weights are float16; it computes in what the device has."""
    _convert_litert(
        source,
        path,
        operators=tf.lite.OpsSet.TFLITE_BUILTINS,
        types=[tf.float16],
        optimizations=[tf.lite.Optimize.DEFAULT],
    )


def write_litert_int8(source: Source, path: Path) -> None:
    """Writes a LiteRT file that computes in int8; inputs and outputs stay as they are.

    The ranges of the values come from running the calibration examples.
    """
    calibration = source.calibration
    assert calibration is not None

    def representative() -> Iterator[dict[str, np.ndarray]]:
        names = [spec.name for spec in source.signature]
        for one in zip(*(calibration[name] for name in names), strict=True):
            # By name: the file's inputs have an order of their own.
            yield {name: each[None] for name, each in zip(names, one, strict=True)}

    _convert_litert(
        source,
        path,
        # An operator that has no int8 kernel is an error, and not silently one in float.
        operators=tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=representative,
    )


def _convert_litert(
    source: Source,
    path: Path,
    *,
    operators: tf.lite.OpsSet,
    types: Sequence[tf.DType] = (),
    **options: Any,
) -> None:
    target: dict[str, Any] = {"supported_ops": [operators]}
    if types:
        target["supported_types"] = list(types)
    source.named.export(
        str(path),  # Keras 3.13 takes no other.
        format="litert",
        verbose=False,
        input_signature=source.exported,
        target_spec=target,
        **options,
    )
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in source.texts.items():
            # With a time of its own, equal files would differ.
            archive.writestr(zipfile.ZipInfo(name), text)


_WRITERS = {
    "keras": write_keras,
    "saved_model": write_saved_model,
    "onnx": write_onnx,
    "litert": write_litert,
    "litert_float16": write_litert_float16,
    "litert_int8": write_litert_int8,
}

FILES = {kind: (EXPORT_FILES[kind], write) for kind, write in _WRITERS.items()}
"""Name of the file, and what writes it, by format."""
