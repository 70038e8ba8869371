"""Tables: a row of numbers and categories -> a class, or a number in the target's own unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfgpu.data.augmentations.drop import dropping
from tfgpu.data.records import Source
from tfgpu.errors import DataError
from tfgpu.models.classification_loss import classification_loss
from tfgpu.tasks.tabular import reading
from tfgpu.tasks.tabular.answers import predictor
from tfgpu.tasks.tabular.columns import choose, goal_of
from tfgpu.tasks.tabular.encoder import Encoder
from tfgpu.tasks.tabular.report import NumberReport, RowClassReport
from tfgpu.tasks.tabular.serving import serve
from tfgpu.tasks.task import DataSpec, Reading, Request, Splits, Task

DROPPED = 0.1
"""Share of the numbers and categories that `--augment=drop` takes for unknown."""


def read(request: Request) -> Reading:
    """See `tfgpu.tasks.tabular.reading.read`; says which metrics go with it."""
    found = reading.read(request)
    return dataclasses.replace(found, task=CLASSES if found.spec.class_names else NUMBERS)


def _loss(spec: DataSpec, settings: Mapping[str, Any]) -> Any:
    if spec.class_names:
        return classification_loss(
            num_classes=spec.num_classes, label_smoothing=settings["label_smoothing"]
        )
    from tfgpu.models.regression_loss import StandardizedSquaredError

    return StandardizedSquaredError(spec.fitted["deviation"])


def _metrics(spec: DataSpec) -> Sequence[Any]:
    if spec.class_names:
        return ["accuracy"]
    from tfgpu.models.regression_loss import R2

    return [
        keras.metrics.RootMeanSquaredError(name="rmse"),
        keras.metrics.MeanAbsoluteError(name="mae"),
        R2(spec.fitted["deviation"], spec.fitted["mean"]),
    ]


def _arguments(spec: DataSpec) -> Mapping[str, Any]:
    fitted = spec.fitted
    encoder = Encoder(fitted)
    number = (
        {"scale": fitted["deviation"], "offset": fitted["mean"]} if not spec.class_names else {}
    )
    return {
        "num_numbers": spec.x["numbers"].shape[0] if encoder.numbers else 0,
        "num_categories": sum(len(each["vocabulary"]) for each in encoder.categories),
        "category_columns": len(encoder.categories),
        # As the numbers are, standardised.
        "edges": [
            [(edge - each["mean"]) / each["variance"] ** 0.5 for edge in each["edges"]]
            for each in encoder.numbers
        ],
        "num_outputs": spec.num_classes or 1,
        **number,
    }


def _recipe(spec: DataSpec, num_examples: int) -> Mapping[str, Any]:
    few = num_examples < 2000
    return {
        "optimizer": "adamw",
        "learning_rate": 1e-3 if few else 2e-3,
        "weight_decay": 1.0,
        "batch_size": 32 if few else 256,
        "epochs": 40,
        "augment": "none",
    }


def drop(x: Any, y: Any, draws: tf.Tensor) -> tuple[Any, Any]:
    """Takes some cells for unknown: numbers become the mean, categories the unknown one.

    One draw serves all cells of a row, by its products with odd numbers.
    """
    changed, start = dict(x), 0
    for name, values in x.items():
        width = values.shape[1]
        steps = tf.cast(tf.range(start, start + width), tf.float32)
        # The fractions of an even draw times numbers far apart are even, one beside the other.
        product = draws[:, :1] * (2.0 * tf.floor(tf.math.floormod(steps * 617.0, 1900.0)) + 257.0)
        dropped = product - tf.floor(product) < DROPPED
        changed[name] = tf.where(dropped, tf.zeros_like(values), values)
        start += width
    return changed, y


def _space(hp: Any) -> dict[str, Any]:
    return {
        "optimizer": hp.Choice("optimizer", ["adamw"]),
        "learning_rate": hp.Float("learning_rate", 3e-4, 1e-2, sampling="log", default=2e-3),
        "weight_decay": hp.Float("weight_decay", 1e-2, 3.0, sampling="log", default=1.0),
        "batch_size": hp.Choice("batch_size", [32, 64, 128, 256], default=128),
        "augment": hp.Choice("augment", ["none", "drop"], default="none"),
        "width": hp.Choice("width", [0.5, 1.0, 2.0], default=1.0),
        "depth": hp.Int("depth", 1, 3, default=2),
    }


def _split(
    source: Source,
    roles: Mapping[str, str],
    validation_fraction: float,
    seed: int,
    options: Mapping[str, Any],
) -> Splits:
    """At random; of classes no other split may have one that training has not."""
    from tfgpu.tasks.loading import split_at_random

    target = roles["y"]
    feature = source.schema.features[target]
    try:
        goal, _ = goal_of(target, feature, options["goal"])
    except DataError:  # Which is said when the target is read, unless its goal is known already.
        goal = "regression"
    label = target if goal == "classification" and feature.class_names else ""
    return split_at_random(source, roles, validation_fraction, seed, unit="rows", label=label)


TASK = Task(
    name="tabular",
    read=read,
    models={name: f"tfgpu.models.tabular:{name}" for name in ("piecewise", "mlp")},
    loss=_loss,
    metrics=_metrics,
    objective="accuracy",
    maximize=True,
    unit="rows",
    choose=choose,
    split=_split,
    fixed=lambda fitted: {"y": fitted["target"]},
    augment={"drop": dropping(drop)},
    arguments=_arguments,
    outputs=lambda spec: (spec.num_classes or 1,),
    recipe=_recipe,
    settings=frozenset({"label_smoothing", "class_weight", "target"}),
    options={
        "goal": "auto",
        "numbers": "",
        "categories": "",
        "ignore": "",
        "vocabulary": 1000,
    },
    report=RowClassReport,
    predict=predictor,
    serve=serve,
    space=_space,
)
CLASSES = TASK
NUMBERS = dataclasses.replace(
    TASK,
    objective="rmse",
    maximize=False,
    settings=frozenset({"target"}),
    report=NumberReport,
)
