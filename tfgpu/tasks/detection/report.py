"""What `evaluate` and TensorBoard show of a detector: COCO's mean average precision, and boxes."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.errors import RequestError
from tfgpu.models.detections import CLASS, CROWD, detect
from tfgpu.tasks.detection.drawing import Box, draw
from tfgpu.tasks.detection.reading import most_detections
from tfgpu.tasks.parts.report import Report
from tfgpu.tensorboard import pictures
from tfgpu.tensorboard.pictures import Picture
from tfgpu.tensorboard.predictions import Outputs

SHOWN_SCORE = 0.3
"""From which a detection is drawn and said."""

SHOWN = 25
"""Classes in the table, at most: of more, those with the lowest AP are shown."""

_IMAGES = 16


class BoxReport(Report):
    """COCO's AP by class, and the recall of all detections; drawn boxes.

    IoU does not change when an image and its boxes are stretched, so that the figures are those of
    the images in their own size.
    """

    reads_outputs = True
    shown_examples = _IMAGES

    def __init__(self, spec: Any):
        super().__init__(spec)
        self._evaluation = CocoEvaluation(spec.class_names, most_detections(spec))

    def metrics(self) -> Sequence[Any] | None:
        """See `Report.metrics`: here too, so that what is missing is said before the work."""
        coco_tools()
        return None

    def add(self, x: Any, y: Any, outputs: Any) -> None:
        """See `Report.add`."""
        found = detect(np.asarray(outputs, np.float32), count=most_detections(self.spec))
        for boxes, corners, scores, labels in zip(y, *(a.numpy() for a in found), strict=True):
            self._evaluation.add(boxes, corners, scores, labels)

    def figures(self, logs: Mapping[str, float]) -> dict[str, Any]:
        """See `Report.figures`."""
        return {**dict(logs), **self._evaluation.result()["figures"]}

    def details(self) -> dict[str, Any]:
        """See `Report.details`."""
        return {"classes": self._evaluation.result()["classes"]}

    def lines(self, result: Mapping[str, Any]) -> list[str]:
        """See `Report.lines`."""
        named = {
            "loss": "loss",
            "map": "mAP at 0.50 to 0.95",
            "map_50": "mAP at 0.50",
            "map_75": "mAP at 0.75",
            "recall": "recall at 0.50 to 0.95",
        }
        wide = max(map(len, named.values()))
        lines = [
            *(f"{text:<{wide}}  {_shown(result[name])}" for name, text in named.items()),
            "",
        ]
        classes = result["classes"]
        if len(classes) > SHOWN:
            lines.append(f"the {SHOWN} of {len(classes)} classes with the lowest AP:")
            classes = sorted(classes, key=lambda each: (each["ap"] is None, each["ap"]))[:SHOWN]
        wide = max(len("class"), *(len(each["name"]) for each in classes))
        lines.append(f"{'class':<{wide}}      AP   AP 50  recall   boxes")
        for each in classes:
            ap, ap_50, recall = (_shown(each[name]) for name in ("ap", "ap_50", "recall"))
            lines.append(
                f"{each['name']:<{wide}}  {ap:>6}  {ap_50:>6}  {recall:>6}  {each['boxes']:>6,}"
            )
        return lines

    def batch(self, x: Any, y: Any) -> Mapping[str, Picture]:
        """See `Report.batch`."""
        if x.shape[-1] not in (1, 3):
            return {}
        shown = [draw(image, of_y(rows)) for image, rows in zip(x, y, strict=True)]
        description = "Images of a training batch, augmented, with their boxes."
        return {"batch": Picture(pictures.grid(np.stack(shown)), description)}

    def predictions(self, outputs: Iterator[Outputs]) -> Mapping[str, Picture]:
        """See `Report.predictions`."""
        rows = []
        names = self.spec.class_names
        for x, y, cells in outputs:
            if x.shape[-1] not in (1, 3):
                return {}
            for image, boxes, found in zip(
                x, y, detected(cells, most_detections(self.spec)), strict=True
            ):
                pair = [draw(image, of_y(boxes)), draw(image, found, names)]
                rows.append(np.concatenate(pair, axis=1))
        sheet = pictures.grid(np.stack(rows))
        description = (
            "Validation images: with their boxes, and with the model's of a score of "
            f"{SHOWN_SCORE} or more."
        )
        return {"boxes": Picture(sheet, description)}


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def of_y(rows: np.ndarray) -> list[Box]:
    """The boxes of y, without padding and crowds."""
    return [
        Box(tuple(map(float, row[:4])), int(row[CLASS]))  # type: ignore[arg-type]
        for row in rows
        if row[CLASS] >= 0 and not row[CROWD]
    ]


def detected(
    outputs: Any,
    count: int,
    *,
    least: float = SHOWN_SCORE,
) -> list[list[Box]]:
    """The detections of each image of a batch, the surest first, in pixels of the model's images.

    Args:
        outputs: (n, rows, columns, classes + 4), of the model.
        count: Of detections at most.
        least: Score.
    """
    boxes, scores, classes = (part.numpy() for part in detect(outputs, count=count))
    return [
        [
            Box(tuple(map(float, boxes[i, k])), int(classes[i, k]), float(scores[i, k]))  # type: ignore[arg-type]
            for k in np.flatnonzero(scores[i] >= least)
        ]
        for i in range(len(scores))
    ]


# ---- COCO's measure ------------------------------------------------------------------------


def coco_tools() -> Any:
    """pycocotools' modules `coco` and `cocoeval`.

    Raises:
        RequestError: It is not installed.
    """
    try:
        return tuple(
            importlib.import_module(f"pycocotools.{name}") for name in ("coco", "cocoeval")
        )
    except ImportError:
        raise RequestError(
            "the mean average precision of COCO needs pycocotools: pip install 'tfgpu[detection]'"
        ) from None


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
