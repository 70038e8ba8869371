"""What `evaluate` and TensorBoard show of a detector: COCO's mean average precision, and boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.models.detections import CLASS, CROWD, detect
from tfgpu.tasks.detection.coco_evaluation import CocoEvaluation, coco_tools
from tfgpu.tasks.detection.drawing import Box, draw
from tfgpu.tasks.detection.reading import most_detections
from tfgpu.tasks.parts.report import Report, lowest
from tfgpu.tensorboard import pictures
from tfgpu.tensorboard.pictures import Picture
from tfgpu.tensorboard.predictions import Outputs

SHOWN_SCORE = 0.3
"""From which a detection is drawn and said."""

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
        said, classes = lowest(result["classes"], "ap", what="classes with the lowest AP")
        lines += said
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
