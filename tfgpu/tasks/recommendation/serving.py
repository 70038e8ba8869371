"""Exported files: a user in, the best items out, with the tables in the file.

Users and items go in and out as numbers of the tables, which lie beside the file: line n of
`users.txt` is the user n, from 1 on, and 0 is a user who is not there; items likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfgpu.models.recommenders import NEVER
from tfgpu.tasks.parts.serving import Serving
from tfgpu.tasks.task import DataSpec

K = 10
"""Items that a file gives for a user."""

ITEMS, SCORES, RATING = "items", "scores", "rating"


def serve(spec: DataSpec, kind: str) -> Serving:
    """Inputs are those of x, and of ratings `seen`, what is to be left out; see `_outputs`.

    Args:
        spec: The `DataSpec`.
        kind: The format; "" for what the files are compared with.
    """
    rates = spec.fitted["goal"] == "rating"
    num_items = len(spec.fitted["items"]) + 1
    inputs = dict(spec.x)
    left_out = "seen" if rates else "history"
    if rates:
        inputs["seen"] = tf.TensorSpec((seen_length(spec),), tf.int32)
    width = inputs[left_out].shape[0]
    files = {
        f"{name}.txt": "".join(f"{key}\n" for key in spec.fitted[name])
        for name in ("users", "items")
    }
    about = {
        "inputs": {
            "user": "int32 (batch,): line of users.txt, from 1; 0 is a new user",
            left_out: f"int32 (batch, {width}): lines of items.txt that are left out, the last "
            f"{width} of them; 0 pads",
        },
        "outputs": {
            ITEMS: f"int32 (batch, {min(K, num_items - 1)}): lines of items.txt, the best first",
            SCORES: "float32, of the same shape; -1e9 where no item is left",
        },
    }
    if rates:
        about["inputs"]["item"] = "int32 (batch, 1): the item to rate; 0 where none is"
        about["outputs"][RATING] = "float32 (batch, 1): of `item`"
    refused = ""
    if kind == "litert_int8":
        refused = "tables of ids have no int8 form that keeps the order of items; use litert"
    return Serving(
        inputs=inputs,
        model=lambda model: _inference_model(model, inputs, num_items, rates=rates),
        reference=lambda model: _reference(model, num_items, rates=rates, spec=spec),
        outputs=(ITEMS, SCORES, *([RATING] if rates else [])),
        measure="negative_mae" if rates else "ndcg_at_10",
        score=_negative_error if rates else _gain,
        decide=lambda outputs: outputs[ITEMS],
        unit="a score",
        files=files,
        preprocessing=about,
        refused=refused,
    )


def seen_length(spec: DataSpec) -> int:
    """Items that the user with most of them has in training, 1 at the least."""
    return max(1, *(len(each) for each in spec.fitted["seen"]))


def _inference_model(
    model: keras.Model, inputs: Mapping[str, tf.TensorSpec], num_items: int, *, rates: bool
) -> keras.Model:
    """A model of Keras' own operations around the run's."""
    given = {
        name: keras.Input(one.shape, dtype=one.dtype.name, name=name)
        for name, one in inputs.items()
    }
    user = given["user"]
    outputs = {}
    if rates:
        every = ops.expand_dims(ops.zeros_like(user), -1) + np.arange(num_items, dtype=np.int32)
        scores = ops.cast(model({"user": user, "item": every}, training=False), "float32")
        outputs[RATING] = ops.take_along_axis(scores, given["item"], axis=1)
        left_out = given["seen"]
    else:
        x = {"user": user, "history": given["history"]}
        scores = ops.cast(model(x, training=False), "float32")
        left_out = given["history"]
    # Item 0 is always among what is left out. The number of a row, as a sum: shapes are not known.
    left_out = ops.pad(left_out, ((0, 0), (0, 1)))
    rows = ops.cumsum(ops.ones_like(left_out), axis=0) - 1
    places = ops.reshape(ops.stack([rows, left_out], axis=-1), (-1, 2))
    updates = ops.cast(ops.zeros_like(places[:, 0]), "float32") + NEVER
    scores = ops.scatter_update(scores, places, updates)
    values, best = ops.top_k(scores, min(K, num_items - 1))
    outputs |= {ITEMS: ops.cast(best, "int32"), SCORES: values}
    return keras.Model(list(given.values()), outputs)


def _reference(
    model: keras.Model, num_items: int, *, rates: bool, spec: DataSpec
) -> Callable[..., Mapping[str, tf.Tensor]]:
    """The same by sorting all items, those that are left out last."""
    seen = None
    if rates:
        length = seen_length(spec)
        padded = np.zeros((len(spec.fitted["seen"]) + 1, length), np.int32)
        for number, each in enumerate(spec.fitted["seen"], 1):
            padded[number, : len(each)] = each
        seen = tf.constant(padded)

    def call(x: Mapping[str, tf.Tensor], training: bool = False) -> Mapping[str, tf.Tensor]:
        user = x["user"]
        outputs = {}
        if rates:
            assert seen is not None
            every = tf.tile(tf.range(num_items)[None, :], [tf.shape(user)[0], 1])
            scores = model({"user": user, "item": every}, training=training)
            outputs[RATING] = model({"user": user, "item": x["item"]}, training=training)
            left_out = tf.gather(seen, user)
        else:
            scores = model(x, training=training)
            left_out = x["history"]
        out = tf.reduce_max(tf.one_hot(left_out, num_items), axis=1)
        out = tf.maximum(out, tf.one_hot(tf.zeros_like(user), num_items))
        scores = tf.where(out > 0, NEVER, tf.cast(scores, tf.float32))
        order = tf.argsort(scores, direction="DESCENDING", stable=True)
        best = order[:, : min(K, num_items - 1)]
        values = tf.gather(scores, best, axis=1, batch_dims=1)
        return outputs | {ITEMS: best, SCORES: values}

    return call


def _negative_error(outputs: Mapping[str, np.ndarray], y: Any) -> np.ndarray:
    """(n,) minus the absolute error of the rating."""
    return -np.abs(outputs[RATING].astype(np.float64) - y).reshape(len(y), -1).mean(axis=1)


def _gain(outputs: Mapping[str, np.ndarray], y: Any) -> np.ndarray:
    """(n,) NDCG of the items of a file, as `tfgpu.models.retrieval_loss.NDCG` has it."""
    items, real = outputs[ITEMS], outputs[SCORES] > NEVER / 2
    hits = (items[:, :, None] == np.asarray(y)[:, None, :]).any(axis=-1) & real
    discounts = 1 / np.log2(np.arange(2, items.shape[1] + 2))
    count = (np.asarray(y) >= 0).sum(axis=1)
    ideal = np.cumsum(discounts)[np.clip(count, 1, len(discounts)) - 1]
    return (hits * discounts).sum(axis=1) / ideal
