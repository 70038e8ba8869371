"""Exported files: pixels in, detections out, with peaks found and overlaps suppressed in the file.

A file in int8 ends before that: its logits and boxes of cells are made into detections beside it,
by the steps in `export.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfgpu.models.detections import CLASS, CROWD, MOST_LOG, OVERLAP, detect, overlaps
from tfgpu.models.detector import STRIDE
from tfgpu.tasks.detection.reading import most_detections
from tfgpu.tasks.detection.report import SHOWN_SCORE
from tfgpu.tasks.parts.image_serving import INPUT, image_preprocessing
from tfgpu.tasks.parts.serving import Arrays, Serving
from tfgpu.tasks.task import DataSpec

BOXES, SCORES, CLASSES, CELLS = "boxes", "scores", "classes", "cells"

COMPARED_SCORE = 0.05
"""Detections of less are not compared one by one: they come and go with the last digit."""


def serve(spec: DataSpec, kind: str) -> Serving:
    """uint8 pixels to detections, compared by F1 at an IoU of 0.5.

    Args:
        spec: The `DataSpec`.
        kind: The format; "" for what the files are compared with.
    """
    shape = spec.image_shape
    assert shape is not None
    count = most_detections(spec)
    raw = kind == "litert_int8"
    about = image_preprocessing(shape)
    about.pop("output")
    return Serving(
        inputs={INPUT: spec.x},
        model=lambda model: _cells(model, shape) if raw else _inference_model(model, shape, count),
        reference=lambda model: _reference(model, count),
        outputs=(CELLS,) if raw else (BOXES, SCORES, CLASSES),
        measure="f1_50",
        score=lambda outputs, y: _f1(_found(outputs, count), y),
        decide=lambda outputs: _numbers(_found(outputs, count), spec.num_classes),
        difference=lambda ours, theirs: _difference(
            _found(ours, count), _found(theirs, count), shape
        ),
        unit="a score or a side of a box, as a share of the image's,",
        preprocessing=about | {"outputs": _described(count), "int8": _STEPS},
    )


def _described(count: int) -> dict[str, str]:
    return {
        BOXES: f"float32 (batch, {count}, 4): left, top, right, bottom, in pixels of the input",
        SCORES: f"float32 (batch, {count}), the greatest first; suppressed ones are 0",
        CLASSES: f"int32 (batch, {count}): lines of labels.txt, from 0",
        "image": "x of a box times the width of the image over that of the input; y likewise",
    }


_STEPS = {
    CELLS: "float32 (batch, rows, columns, classes + 4): logits, then down, right, log height, "
    "log width",
    "scores": "sigmoid of the logits where they are the greatest of their 3x3 cells, else 0; the "
    "greatest of all cells and classes are detections",
    "boxes": f"middle: (row + 0.5 + down, column + 0.5 + right) * {STRIDE}; sides: exp(log) * "
    f"{STRIDE}",
    "suppression": f"a detection is none where a greater one of its class overlaps it by an IoU "
    f"above {OVERLAP}",
}


def _inference_model(
    model: keras.Model, image_shape: tuple[int, int, int], count: int
) -> keras.Model:
    """A model of Keras' own operations around the run's, that does what `detect` does.

    Shapes that are not known come from other tensors, which every format can hold.
    """
    pixels = keras.Input(image_shape, dtype="uint8", name=INPUT)
    cells = ops.cast(model(ops.cast(pixels, "float32"), training=False), "float32")
    _, rows, columns, channels = cells.shape
    classes = channels - 4
    logits = cells[..., :classes]
    peaks = ops.max_pool(logits, 3, strides=1, padding="same")
    scores = ops.sigmoid(logits) * ops.cast(ops.greater_equal(logits, peaks), "float32")
    scores = ops.reshape(scores, (-1, rows * columns * classes))
    scores, places = ops.top_k(scores, min(count, rows * columns * classes))
    # Of the full shape: Keras 3.15 adds (rows, 1) to (batch, rows, rows) along the last axis.
    row, column = np.indices((rows, columns), np.float32) + np.float32(0.5)
    down, right = cells[..., classes] + row, cells[..., classes + 1] + column
    half = ops.exp(ops.clip(cells[..., classes + 2 :], -MOST_LOG, MOST_LOG)) / 2
    high, wide = half[..., 0], half[..., 1]
    sides = [right - wide, down - high, right + wide, down + high]
    boxes = ops.reshape(ops.stack(sides, axis=-1) * STRIDE, (-1, rows * columns, 4))
    places = ops.cast(places, "int32")
    cell = ops.floor_divide(places, classes)
    found = places - cell * classes
    boxes = ops.take_along_axis(boxes, ops.expand_dims(cell, -1), axis=1)
    a, b = ops.expand_dims(boxes, 2), ops.expand_dims(boxes, 1)
    both = ops.maximum(
        ops.minimum(a[..., 2:], b[..., 2:]) - ops.maximum(a[..., :2], b[..., :2]), 0.0
    )
    both = both[..., 0] * both[..., 1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    union = ops.expand_dims(area, 2) + ops.expand_dims(area, 1) - both
    same = ops.cast(ops.equal(ops.expand_dims(found, 2), ops.expand_dims(found, 1)), "float32")
    surer = np.triu(np.ones((scores.shape[1],) * 2, np.float32), 1)
    # The union is positive: sides are exponentials.
    overlap = ops.max(both / union * same * surer, axis=1)
    kept = scores * ops.cast(ops.less_equal(overlap, OVERLAP), "float32")
    return keras.Model(pixels, {BOXES: boxes, SCORES: kept, CLASSES: found})


def _cells(model: keras.Model, image_shape: tuple[int, int, int]) -> keras.Model:
    """Without the search for peaks, whose operations have no int8 form."""
    pixels = keras.Input(image_shape, dtype="uint8", name=INPUT)
    cells = model(ops.cast(pixels, "float32"), training=False)
    return keras.Model(
        pixels, keras.layers.Activation("linear", dtype="float32", name=CELLS)(cells)
    )


def _reference(model: keras.Model, count: int) -> Callable[..., Mapping[str, tf.Tensor]]:
    def call(images: tf.Tensor, training: bool = False) -> Mapping[str, tf.Tensor]:
        cells = model(tf.cast(images, tf.float32), training=training)
        return _named(detect(cells, count=count))

    return call


def _named(found: Any) -> dict[str, tf.Tensor]:
    boxes = tf.gather(found.boxes, [1, 0, 3, 2], axis=-1)
    return {BOXES: boxes, SCORES: found.scores, CLASSES: found.classes}


def _found(outputs: Arrays, count: int) -> Arrays:
    """The detections that outputs of any format mean."""
    if CELLS not in outputs:
        return outputs
    found = _named(detect(outputs[CELLS], count=count))
    return {name: value.numpy() for name, value in found.items()}


def _numbers(found: Arrays, classes: int) -> np.ndarray:
    """(n, classes): how many there are of each class, which does not depend on their order."""
    shown = found[SCORES] >= SHOWN_SCORE
    return ((found[CLASSES][..., None] == np.arange(classes)) & shown[..., None]).sum(axis=1)


def _f1(found: Arrays, y: Any) -> np.ndarray:
    """(n,) F1 of the detections of each image that are shown, at an IoU of 0.5.

    A detection is right where it is the surest of those that overlap a box of its class the most,
    and by half. An image without boxes has 1 where nothing is found.
    """
    y = np.asarray(y)
    corners = tf.gather(found[BOXES], [1, 0, 3, 2], axis=-1)
    overlap = np.array(overlaps(corners, tf.constant(y[..., :4])))
    overlap[found[CLASSES][:, :, None] != y[:, None, :, CLASS]] = 0
    best = overlap.argmax(axis=-1)
    shown = found[SCORES] >= SHOWN_SCORE
    hit = (overlap.max(axis=-1) >= 0.5) & shown
    values = []
    for i in range(len(y)):
        crowd = y[i, :, CROWD] > 0
        real = (y[i, :, CLASS] >= 0) & ~crowd
        ignored = hit[i] & crowd[best[i]]
        right = len(np.unique(best[i][hit[i] & ~ignored]))
        both = real.sum() + (shown[i] & ~ignored).sum()
        values.append(2 * right / both if both else 1.0)
    return np.array(values)


def _difference(ours: Arrays, theirs: Arrays, image_shape: tuple[int, int, int]) -> float:
    """The greatest difference of a score or of a side, of detections that belong together.

    To each detection of the model belongs the nearest of its class; equal scores may come in
    another order.
    """
    if not all(
        np.isfinite(part[name]).all() for part in (ours, theirs) for name in (BOXES, SCORES)
    ):
        return float("nan")
    height, width, _ = image_shape
    most = 0.0
    # Either way: what the file alone has is a difference too.
    for one, other in ((theirs, ours), (ours, theirs)):
        for i in range(len(one[SCORES])):
            sure = one[SCORES][i] >= COMPARED_SCORE
            boxes, scores, classes = (other[name][i] for name in (BOXES, SCORES, CLASSES))
            apart = np.abs(one[BOXES][i][sure][:, None] - boxes) / [width, height, width, height]
            apart = np.maximum(apart.max(axis=-1), np.abs(one[SCORES][i][sure][:, None] - scores))
            apart[one[CLASSES][i][sure][:, None] != classes] = 1.0
            most = max(most, float(apart.min(axis=1).max(initial=0.0)))
    return most
