"""Classification of sound: samples, or frames of ready features -> one of several classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfgpu.data.augment import Transformation
from tfgpu.data.augmentations.mixup import mixup_recordings
from tfgpu.data.augmentations.shift import shift
from tfgpu.tasks.audio.predictor import AudioPredictor
from tfgpu.tasks.audio.reading import OPTIONS, choose, model_input, read
from tfgpu.tasks.audio.report import AudioReport
from tfgpu.tasks.audio.serving import serve
from tfgpu.tasks.parts.class_loss import class_loss
from tfgpu.tasks.task import DataSpec, Task


def _values(x: Mapping[str, tf.Tensor]) -> str:
    """The name of what is beside the length."""
    (name,) = (each for each in x if each != "length")
    return name


def _shift(x: Mapping[str, tf.Tensor], y: Any, draws: tf.Tensor) -> tuple[Any, Any]:
    name = _values(x)
    values, length = shift(x[name], x["length"], draws)
    return {name: values, "length": length}, y


def _mixup(
    x: Mapping[str, tf.Tensor],
    y: tf.Tensor,
    draws: tf.Tensor,
    others: Mapping[str, tf.Tensor],
    theirs: tf.Tensor,
) -> tuple[Any, Any]:
    name = _values(x)
    values, length = mixup_recordings(x[name], x["length"], draws, others[name], others["length"])
    return {name: values, "length": length}, draws * y + (1 - draws) * theirs


AUGMENT = {
    "shift": Transformation("shift", 1, _shift),
    "mixup": Transformation("mixup", 1, _mixup, mixes=True),
}


def _recipe(spec: DataSpec, num_examples: int) -> Mapping[str, Any]:
    few = num_examples < 5000
    return {
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "batch_size": 32 if few else 128,
        "epochs": 20 if few else 15,
        "augment": "shift",
    }


def _space(hp: Any) -> dict[str, Any]:
    return {
        "optimizer": hp.Choice("optimizer", ["adamw"]),
        "learning_rate": hp.Float("learning_rate", 3e-4, 1e-2, sampling="log", default=2e-3),
        "weight_decay": hp.Float("weight_decay", 1e-3, 0.3, sampling="log", default=0.05),
        "batch_size": hp.Choice("batch_size", [16, 32, 64, 128], default=32),
        "augment": hp.Choice("augment", ["none", "shift", "shift,mixup"], default="shift"),
        "label_smoothing": hp.Float("label_smoothing", 0.0, 0.1, step=0.05),
        "width": hp.Choice("width", [0.5, 1.0, 2.0], default=1.0),
        "depth": hp.Int("depth", 1, 4, default=3),
    }


TASK = Task(
    name="audio",
    read=read,
    models={name: f"tfgpu.models.audio:{name}" for name in ("convolution", "recurrent")},
    loss=lambda spec, settings: class_loss(spec, settings, AUGMENT),
    metrics=lambda spec: ["accuracy"],
    objective="accuracy",
    maximize=True,
    unit="recordings",
    choose=choose,
    augment=AUGMENT,
    arguments=lambda spec: {"input": model_input(spec), "num_classes": spec.num_classes},
    outputs=lambda spec: (spec.num_classes,),
    recipe=_recipe,
    settings=frozenset({"label_smoothing", "class_weight", "target"}),
    options=OPTIONS,
    report=AudioReport,
    predict=AudioPredictor,
    serve=serve,
    space=_space,
)
