"""Images and boxes as x and y."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

from tfgpu.data import records
from tfgpu.data.examples import Examples, python_op
from tfgpu.data.records import Feature, Records, Schema
from tfgpu.errors import DataError, RequestError
from tfgpu.models.detections import COLUMNS, MOST_DETECTIONS
from tfgpu.tasks.task import DataSpec, Reading, Request

HEADROOM = 1.5
"""How many more boxes than any training image another image may have by default."""


def choose(schema: Schema, given: Mapping[str, str]) -> Mapping[str, str]:
    """An image, and boxes."""
    images, boxes = schema.of_kind("image"), schema.of_kind("boxes")
    roles = dict(given)
    for role, names in (("x", images), ("y", boxes)):
        if role not in roles and len(names) == 1:
            roles[role] = names[0]
    if roles.get("x") not in images or roles.get("y") not in boxes:
        raise RequestError(
            f"{schema.requested!r} is not a detection set: it needs an image and boxes, and has "
            f"{schema.described}; name them with --features=x=NAME,y=NAME"
        )
    return {"x": roles["x"], "y": roles["y"]}


def most_detections(spec: DataSpec) -> int:
    """How many detections an image may have at most."""
    return max(MOST_DETECTIONS, int(spec.y.shape[0]))


def read(request: Request) -> Reading:
    """uint8 images (height, width, channels), and float32 boxes (boxes, 6) in their pixels.

    See `tfgpu.models.detections` for the columns. An image is stretched to `--image_size`, and
    boxes with it.
    """
    x, y = request.roles["x"], request.roles["y"]
    features = request.schema.features
    shape = records.image_shape(features[x], request.image_size, requested=request.schema.requested)
    names = features[y].class_names or ("object",)
    notes: tuple[str, ...] = ()
    if request.fitted is None:
        counts = count(request.train, y, features[y], len(names))
        most = int(counts.sum(axis=1).max())
        fitted = {"max_boxes": _room(request, most)}
        notes = (_described(counts, names),)
    else:
        fitted = dict(request.fitted)
    room = int(fitted["max_boxes"])
    file = ("file",) if "file" in features else ()

    def decode(found: dict[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
        return records.image(found[x], shape), decode_y(found)

    def decode_y(found: dict[str, Any]) -> tf.Tensor:
        rows = boxes_of(found[y], features[y], size=shape[:2])
        place = found.get("file", tf.constant(b"an image"))

        def padded() -> tf.Tensor:
            nothing = [[0.0, 0.0, 0.0, 0.0, -1.0, 0.0]]
            return tf.concat([rows, tf.repeat(nothing, room - tf.shape(rows)[0], axis=0)], axis=0)

        def refused() -> tf.Tensor:
            return tf.ensure_shape(
                python_op(_refuse(room), [tf.shape(rows)[0], place], tf.float32), (room, COLUMNS)
            )

        filled = tf.cond(tf.shape(rows)[0] <= room, padded, refused)
        return tf.ensure_shape(filled, (room, COLUMNS))

    def examples(split: str, some: Records) -> Examples:
        if request.fitted is None and split != "train":
            # Before the training, and not when the test is read at its end.
            most = int(count(some, y, features[y], len(names)).sum(axis=1).max())
            if most > room:
                raise RequestError(
                    f"an image of the split {split} has {most} boxes, and --task_options="
                    f"max_boxes={room} is all there is room for: raise it to {most} or more"
                )
        return some.examples((x, y, *file), decode, y_names=(y, *file), decode_y=decode_y)

    spec = DataSpec(
        x=tf.TensorSpec(shape, tf.uint8),
        y=tf.TensorSpec((room, COLUMNS), tf.float32),
        class_names=names,
        fitted=fitted,
    )
    return Reading(spec=spec, examples=examples, notes=notes)


def boxes_of(found: Any, feature: Feature, *, size: tuple[int, int]) -> tf.Tensor:
    """The boxes of one image as rows of y, without padding: float32 (boxes, 6).

    Boxes without area and without a class are left out.

    Args:
        found: The decoded feature.
        feature: Of the kind "boxes".
        size: (height, width) that the image is brought to.
    """
    parts = feature.parts
    box = tf.cast(found[parts["box"]] if parts else found, tf.float32)
    box = tf.reshape(tf.clip_by_value(box, 0.0, 1.0), [-1, 4])
    number = tf.shape(box)[0]
    label, crowd = tf.zeros([number]), tf.zeros([number])
    if "class" in parts:
        label = tf.cast(found[parts["class"]], tf.float32)
    if "crowd" in parts:
        crowd = tf.cast(found[parts["crowd"]], tf.float32)
    rows = tf.concat([box * (size * 2), label[:, None], crowd[:, None]], axis=1)
    kept = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1]) & (label >= 0)
    return tf.boolean_mask(rows, kept)


def count(some: Records, y: str, feature: Feature, classes: int) -> np.ndarray:
    """How many boxes of each class every image has: int (images, classes)."""

    def decode(found: dict[str, Any]) -> tuple[tf.Tensor, tuple[()]]:
        rows = boxes_of(found[y], feature, size=(1, 1))
        label = tf.cast(rows[:, 4], tf.int32)
        return tf.math.bincount(label, minlength=classes, maxlength=classes), ()

    def shaped(found: dict[str, Any]) -> tuple[tf.Tensor, tuple[()]]:
        counts, nothing = decode(found)
        return tf.ensure_shape(counts, (classes,)), nothing

    counts: np.ndarray = some.examples((y,), shaped).load_arrays()[0]
    return counts


def _room(request: Request, most: int) -> int:
    """Rows of y.

    Raises:
        DataError: There is no box at all.
        RequestError: A training image has more boxes than the option allows.
    """
    requested = request.schema.requested
    if most == 0:
        raise DataError(
            f"the training images of {requested!r} have no box: there is nothing to learn"
        )
    room = int(request.options["max_boxes"])
    if room < 0 or 0 < room < most:
        raise RequestError(
            f"--task_options=max_boxes={room}: a training image of {requested!r} has {most} boxes; "
            f"use {most} or more, or 0 to have it decided"
        )
    return room or -(-round(most * HEADROOM) // 4) * 4


def _described(counts: np.ndarray, names: tuple[str, ...]) -> str:
    each = counts.sum(axis=1)
    without = int((each == 0).sum())
    shown = [f"{name} {n:,}" for name, n in zip(names, counts.sum(axis=0), strict=True)]
    return (
        f"boxes: {each.sum():,} on {len(each):,} training images ({without:,} without), at most "
        f"{each.max()} on one; {', '.join(shown[:12])}{', ...' if len(shown) > 12 else ''}"
    )


def _refuse(room: int) -> Any:
    def refuse(number: np.ndarray, place: bytes) -> NoReturn:
        raise DataError(
            f"{os.fsdecode(place)} has {number} boxes, and the run has room for {room}: train with "
            f"--task_options=max_boxes={number} or more"
        )

    return refuse
