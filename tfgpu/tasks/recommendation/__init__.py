"""Recommendation: ratings of items by users, or the items that a user will take next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfgpu.data.augmentations.drop import dropping
from tfgpu.errors import RequestError
from tfgpu.tasks.parts.report import Report
from tfgpu.tasks.recommendation import reading, tables
from tfgpu.tasks.recommendation.answers import ItemPredictor
from tfgpu.tasks.recommendation.columns import choose
from tfgpu.tasks.recommendation.serving import serve
from tfgpu.tasks.recommendation.splits import split
from tfgpu.tasks.task import DataSpec, Reading, Request, Task

_MODULE = "tfgpu.models.recommenders"
RATING_MODELS = {name: f"{_MODULE}:{name}" for name in ("factors", "ranking")}
RETRIEVAL_MODELS = {"two_tower": f"{_MODULE}:two_tower"}

DROPPED = 0.5
"""The share of a history that `--augment=drop` leaves out."""


def _rates(spec: DataSpec) -> bool:
    return bool(spec.fitted["goal"] == "rating")


def read(request: Request) -> Reading:
    """See `tfgpu.tasks.recommendation.reading.read`; says which models and metrics go with it."""
    found = reading.read(request)
    return dataclasses.replace(found, task=RATING if _rates(found.spec) else RETRIEVAL)


def _loss(spec: DataSpec, settings: Mapping[str, Any]) -> Any:
    if _rates(spec):
        return keras.losses.MeanSquaredError()
    from tfgpu.models.retrieval_loss import ItemCrossentropy

    return ItemCrossentropy()


def _metrics(spec: DataSpec) -> Sequence[Any]:
    if _rates(spec):
        return [
            keras.metrics.RootMeanSquaredError(name="rmse"),
            keras.metrics.MeanAbsoluteError(name="mae"),
        ]
    from tfgpu.models.retrieval_loss import NDCG, Recall

    return [NDCG(), Recall()]


def _arguments(spec: DataSpec) -> Mapping[str, Any]:
    fitted = spec.fitted
    sizes = {"num_users": len(fitted["users"]) + 1, "num_items": len(fitted["items"]) + 1}
    return sizes | ({"mean": fitted["mean"]} if _rates(spec) else {})


def _outputs(spec: DataSpec) -> Any:
    # A model of ratings takes any number of candidates.
    return (None,) if _rates(spec) else (len(spec.fitted["items"]) + 1,)


def _recipe(spec: DataSpec, num_examples: int) -> Mapping[str, Any]:
    """Measured on MovieLens-100K, and carried over to other sizes of the tables.

    A row of a table is in a batch as often as its share of the interactions says. So gradient
    descent on a batch's mean is stable up to a rate that goes with the inverse of the largest
    share; and a decay that is in balance with a row's gradients goes with the inverse of the number
    of rows.
    """
    users, items = len(spec.fitted["users"]), len(spec.fitted["items"])
    if not _rates(spec):
        return {
            "optimizer": "adamw",
            "learning_rate": 5e-3,
            "weight_decay": 2.0,
            "batch_size": 64,
            "epochs": 60,
            "augment": "drop",
        }
    seen = [np.array(each) for each in spec.fitted["seen"]]
    of_items = np.bincount(np.concatenate(seen))
    most = max(of_items.max(), *map(len, seen)) / of_items.sum()
    return {
        "optimizer": "sgd",
        "learning_rate": _rounded(0.037 / most),
        "momentum": 0.0,
        "weight_decay": _rounded(0.38 / float(np.sqrt(users * items))),
        "batch_size": 256,
        "epochs": 20,
        "augment": "none",
        "of_model": {
            "ranking": {
                "optimizer": "adamw",
                "learning_rate": 1e-3,
                "weight_decay": 2.0,
                "epochs": 6,
            }
        },
    }


def _rounded(value: float) -> float:
    """To two digits, for settings that are read by people."""
    return float(f"{value:.1e}")


def drop(x: Any, y: Any, draws: tf.Tensor) -> tuple[Any, Any]:
    """Leaves out items of a history at random, one independent of another.

    Whether item i is dropped follows from the draw of the example and i, by the finalizer of
    MurmurHash3 (A. Appleby, public domain).
    """
    if "history" not in x:
        raise RequestError(
            "--augment=drop drops items of a history, which a model of ratings does not take; "
            "leave it out"
        )
    seed = tf.cast(draws[:, :1] * 2**24, tf.uint32) * tf.constant(0x9E3779B1, tf.uint32)
    mixed = tf.cast(x["history"], tf.uint32) * tf.constant(0x85EBCA77, tf.uint32) + seed
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        right = tf.bitwise.right_shift(mixed, tf.constant(shift, tf.uint32))
        mixed = tf.bitwise.bitwise_xor(mixed, right) * tf.constant(factor, tf.uint32)
    share = tf.cast(tf.bitwise.right_shift(mixed, tf.constant(8, tf.uint32)), tf.float32) / 2**24
    return {**x, "history": tf.where(share < DROPPED, 0, x["history"])}, y


def _rating_space(hp: Any) -> dict[str, Any]:
    return {
        "optimizer": hp.Choice("optimizer", ["sgd"]),
        "learning_rate": hp.Float("learning_rate", 0.3, 20.0, sampling="log", default=3.0),
        "weight_decay": hp.Float("weight_decay", 3e-5, 3e-2, sampling="log", default=3e-4),
        "batch_size": hp.Choice("batch_size", [128, 256, 512], default=256),
        "width": hp.Choice("width", [0.25, 0.5, 1.0, 2.0], default=1.0),
    }


def _retrieval_space(hp: Any) -> dict[str, Any]:
    return {
        "optimizer": hp.Choice("optimizer", ["adamw"]),
        "learning_rate": hp.Float("learning_rate", 5e-4, 2e-2, sampling="log", default=5e-3),
        "weight_decay": hp.Float("weight_decay", 0.1, 5.0, sampling="log", default=2.0),
        "batch_size": hp.Choice("batch_size", [32, 64, 128], default=64),
        "width": hp.Choice("width", [0.25, 0.5, 1.0, 2.0], default=1.0),
    }


TASK = Task(
    name="recommendation",
    read=read,
    models={**RATING_MODELS, **RETRIEVAL_MODELS},
    loss=_loss,
    metrics=_metrics,
    objective="rmse",
    unit="interactions",
    choose=choose,
    split=split,
    augment={"drop": dropping(drop)},
    arguments=_arguments,
    outputs=_outputs,
    recipe=_recipe,
    settings=frozenset(),
    options={"goal": "auto", "split": "random", "test_fraction": 0.1},
    report=Report,
    predict=ItemPredictor,
    serve=serve,
    announce=tables.announce,
    space=_rating_space,
)
RATING = dataclasses.replace(TASK, models=RATING_MODELS, augment={})
RETRIEVAL = dataclasses.replace(
    TASK,
    models=RETRIEVAL_MODELS,
    objective="ndcg_at_10",
    maximize=True,
    unit="users",
    space=_retrieval_space,
    # Of a user there is one example in each split.
    counts_identical=False,
)
