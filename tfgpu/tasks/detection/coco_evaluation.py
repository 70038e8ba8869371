"""The mean average precision of COCO, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfgpu.errors import RequestError
from tfgpu.models.detections import CLASS, CROWD


def coco_tools() -> tuple[Any, Any]:
    """pycocotools' modules `coco` and `cocoeval`.

    Raises:
        RequestError: It is not installed.
    """
    try:
        from pycocotools import coco, cocoeval
    except ImportError:
        raise RequestError(
            "the mean average precision of COCO needs pycocotools: pip install 'tfgpu[detection]'"
        ) from None
    return coco, cocoeval


class CocoEvaluation:
    """Boxes and detections, and what pycocotools makes of them.

    Args:
        names: Of the classes.
        most: Detections of an image that count.
    """

    def __init__(self, names: Sequence[str], most: int):
        self._names, self._most = names, most
        self._images = 0
        self._boxes: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []
        self._result: dict[str, Any] | None = None

    def add(
        self, boxes: np.ndarray, corners: np.ndarray, scores: np.ndarray, labels: np.ndarray
    ) -> None:
        """Adds an image.

        Args:
            boxes: Rows of y.
            corners: (detections, 4): top, left, bottom, right.
            scores: (detections,); those of 0 are none.
            labels: (detections,).
        """
        self._images += 1
        self._result = None
        for row in boxes[boxes[:, CLASS] >= 0]:
            one = self._one(row[:4], int(row[CLASS]), iscrowd=int(row[CROWD] > 0))
            self._boxes.append({**one, "id": len(self._boxes) + 1})
        for corner, score, label in zip(corners, scores, labels, strict=True):
            if score > 0:
                self._found.append(self._one(corner, int(label), score=float(score)))

    def _one(self, corners: np.ndarray, label: int, **more: Any) -> dict[str, Any]:
        top, left, bottom, right = map(float, corners)
        box = [left, top, right - left, bottom - top]
        about = {"image_id": self._images, "category_id": label + 1}
        return {**about, "bbox": box, "area": box[2] * box[3], **more}

    def result(self) -> dict[str, Any]:
        """The figures over all images, and those of each class; None where there is no box."""
        if self._result is None:
            self._result = self._measured()
        return self._result

    def _measured(self) -> dict[str, Any]:
        coco, cocoeval = coco_tools()
        numbers = range(1, len(self._names) + 1)
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco.COCO()
            truth.dataset = {
                "info": {},
                "images": [{"id": i + 1} for i in range(self._images)],
                "annotations": self._boxes,
                "categories": [{"id": i, "name": str(i)} for i in numbers],
            }
            truth.createIndex()
            found = coco.COCO()
            found.dataset = {
                **truth.dataset,
                "annotations": [
                    {**one, "id": i + 1, "iscrowd": 0} for i, one in enumerate(self._found)
                ],
            }
            found.createIndex()
            evaluation = cocoeval.COCOeval(truth, found, "bbox")
            evaluation.params.maxDets = [self._most]
            # Others by the size of boxes would be of the images as they are brought to one size.
            evaluation.params.areaRng = [[0.0, 1e10]]
            evaluation.params.areaRngLbl = ["all"]
            evaluation.evaluate()
            evaluation.accumulate()
        # (IoU, recall, class), -1 for a class without boxes; and (IoU, class).
        precision = evaluation.eval["precision"][..., 0, 0]
        recall = evaluation.eval["recall"][..., 0, 0]
        boxes = np.zeros(len(self._names), int)
        for one in self._boxes:
            boxes[one["category_id"] - 1] += not one["iscrowd"]
        classes = [
            {
                "name": name,
                "ap": _mean(precision[:, :, i]),
                "ap_50": _mean(precision[0, :, i]),
                "recall": _mean(recall[:, i]),
                "boxes": int(boxes[i]),
            }
            for i, name in enumerate(self._names)
        ]
        figures = {
            "map": _mean(precision),
            "map_50": _mean(precision[0]),
            "map_75": _mean(precision[5]),
            "recall": _mean(recall),
        }
        return {"figures": figures, "classes": classes}


def _mean(values: np.ndarray) -> float | None:
    values = values[values > -1]
    return float(values.mean()) if values.size else None
