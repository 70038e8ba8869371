"""How `predict` reads images, and says and draws what is on them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tfgpu.data.image_files import read_image
from tfgpu.tasks.detection.drawing import Box, draw
from tfgpu.tasks.detection.reading import most_detections
from tfgpu.tasks.detection.report import detected
from tfgpu.tasks.parts.predictor import ImagePredictor, Written, csv_row


class BoxPredictor(ImagePredictor):
    """Says the boxes of each image in its own pixels, and writes it with them drawn."""

    writes_files = True

    def __init__(self, spec: Any, settings: Any):
        super().__init__(spec, settings)
        self._sizes: dict[str, tuple[int, int]] = {}

    def raw(self, item: Any) -> np.ndarray:
        """The image as it is, uint8 (height, width, 3)."""
        image = read_image(item, channels=3)
        self._sizes[str(item)] = image.shape[0], image.shape[1]
        return image

    def _boxes(self, items: Sequence[Any], outputs: Any) -> Iterator[tuple[str, list[Box]]]:
        """The boxes of each item, in pixels of its image, cut to it."""
        height, width = self.spec.image_shape[:2]
        found = detected(outputs, most_detections(self.spec))
        for item, boxes in zip(items, found, strict=True):
            own = self._sizes[str(item)]
            # The image was stretched, each side by its own factor.
            down, right = own[0] / height, own[1] / width
            limits = [*own, *own]
            placed = []
            for box in boxes:
                corners = np.array(box.corners) * [down, right, down, right]
                top, left, bottom, end = np.clip(corners, 0, limits).tolist()
                placed.append(box._replace(corners=(top, left, bottom, end)))
            yield str(item), placed

    def written(
        self, items: Sequence[Any], raw: Sequence[np.ndarray], outputs: Any
    ) -> Iterator[Sequence[Written]]:
        """See `Predictor.written`."""
        pairs = zip(raw, self._boxes(items, outputs), strict=True)
        for image, (item, boxes) in pairs:
            file = io.BytesIO()
            Image.fromarray(draw(image, boxes, self.spec.class_names)).save(file, format="PNG")
            yield [Written(f"{self.name_of(item)}.boxes.png", file.getvalue())]

    def rows(self, items: Sequence[Any], outputs: Any) -> Iterator[Mapping[str, Any]]:
        """See `Predictor.rows`: the boxes as COCO has them, [left, top, width, height]."""
        assert self.folder is not None
        for item, boxes in self._boxes(items, outputs):
            yield {
                "path": item,
                "overlay": str(self.folder / f"{self.name_of(item)}.boxes.png"),
                "boxes": [
                    {
                        "label": self.spec.class_names[box.label],
                        "score": box.score,
                        "bbox": _bbox(box),
                    }
                    for box in boxes
                ],
            }

    def header(self) -> Sequence[str]:
        """See `Predictor.header`: of a row a box."""
        return ["path", "label", "score", "left", "top", "width", "height"]

    def lines(self, items: Sequence[Any], outputs: Any) -> Iterator[str]:
        """See `Predictor.lines`; a CSV has a line for each box."""
        for row in self.rows(items, outputs):
            boxes = row["boxes"]
            if self.settings.format == "jsonl":
                yield json.dumps(row)
            elif self.settings.format == "csv":
                for box in boxes:
                    yield csv_row([row["path"], box["label"], box["score"], *box["bbox"]])
            else:
                counts: dict[str, int] = {}
                for box in boxes:
                    counts[box["label"]] = counts.get(box["label"], 0) + 1
                said = ", ".join(f"{number} {label}" for label, number in counts.items())
                yield f"{row['path']}  {said or 'nothing'}  {row['overlay']}"


def _bbox(box: Box) -> list[float]:
    top, left, bottom, right = box.corners
    return [round(value, 2) for value in (left, top, right - left, bottom - top)]
