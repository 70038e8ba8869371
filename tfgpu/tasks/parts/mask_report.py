"""The report of segmentations: figures by class, and overlays of masks on images."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.models.segmentation_loss import VOID
from tfgpu.tasks.parts.class_report import confusion_table
from tfgpu.tasks.parts.pixel_metrics import MeanDice, MeanIoU, PixelConfusion
from tfgpu.tasks.parts.report import Report, lowest
from tfgpu.tensorboard import pictures
from tfgpu.tensorboard.pictures import Picture
from tfgpu.tensorboard.predictions import Outputs


class MaskReport(Report):
    """Mean IoU and Dice, each class, and the confusion matrix over pixels; overlays.

    For uint8 masks (n, height, width) and logits (n, height, width, classes).
    """

    shown_examples = 16

    def __init__(self, spec: Any):
        super().__init__(spec)
        self._pixels: PixelConfusion | None = None
        self._confusion: np.ndarray | None = None

    def metrics(self) -> Sequence[Any]:
        """See `Report.metrics`."""
        self._pixels = PixelConfusion(num_classes=self.spec.num_classes)
        return [*pixel_metrics(self.spec), self._pixels]

    def end_split(self) -> None:
        """See `Report.end_split`."""
        assert self._pixels is not None
        counts = self._pixels.confusion()
        self._confusion = counts if self._confusion is None else self._confusion + counts

    def details(self) -> dict[str, Any]:
        """See `Report.details`."""
        assert self._confusion is not None
        return {
            "classes": by_class(self._confusion, self.spec.class_names),
            "confusion_matrix": [[round(count) for count in row] for row in self._confusion],
        }

    def lines(self, result: Mapping[str, Any]) -> list[str]:
        """See `Report.lines`."""
        names = ("loss", "mean_iou", "dice", "pixel_accuracy")
        lines = [*(f"{name:<14}  {result[name]:.4f}" for name in names), ""]
        said, classes = lowest(result["classes"], "iou", what="classes with the lowest IoU")
        lines += said
        wide = max(len("class"), *(len(each["name"]) for each in classes))
        lines.append(f"{'class':<{wide}}     iou    dice  precision  recall          pixels")
        for each in classes:
            iou, dice, precision, recall = (
                "-" if each[name] is None else f"{each[name]:.4f}"
                for name in ("iou", "dice", "precision", "recall")
            )
            lines.append(
                f"{each['name']:<{wide}}  {iou:>6}  {dice:>6}  {precision:>9}  {recall:>6}"
                f"  {each['pixels']:>14,}"
            )
        return lines

    def files(self, result: Mapping[str, Any]) -> Mapping[str, bytes]:
        """See `Report.files`."""
        return {"confusion_matrix.csv": confusion_table(result).encode()}

    def batch(self, x: Any, y: Any) -> Mapping[str, Picture]:
        """See `Report.batch`."""
        if x.shape[-1] not in (1, 3):
            return {}
        sheet = pictures.grid(overlay(x, y))
        description = "Images of a training batch, augmented, with their masks in colour."
        return {"batch": Picture(sheet, description)}

    def predictions(self, outputs: Iterator[Outputs]) -> Mapping[str, Picture]:
        """See `Report.predictions`."""
        rows = []
        for x, y, logits in outputs:
            if x.shape[-1] not in (1, 3):
                return {}
            found = np.asarray(logits).argmax(axis=-1).astype(np.uint8)
            shown = [np.broadcast_to(x, (*x.shape[:3], 3)), overlay(x, y), overlay(x, found)]
            rows.append(np.concatenate(shown, axis=2))
        sheet = pictures.grid(np.concatenate(rows))
        description = "Validation images: as they are, with their mask, with the model's."
        return {"overlays": Picture(sheet, description)}


def pixel_metrics(spec: Any) -> list[Any]:
    """Mean IoU and Dice for a `DataSpec` of masks."""
    background = spec.fitted["values"][0] == 0
    return [
        MeanIoU(num_classes=spec.num_classes),
        MeanDice(num_classes=spec.num_classes, background=background),
    ]


def by_class(confusion: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """IoU, Dice, precision and recall of each class; None where there is nothing to divide by."""

    def over(a: float, b: float) -> float | None:
        return float(a / b) if b else None

    found = []
    for i, name in enumerate(names):
        true, predicted, right = confusion[i].sum(), confusion[:, i].sum(), confusion[i, i]
        found.append(
            {
                "name": name,
                "iou": over(right, true + predicted - right),
                "dice": over(2 * right, true + predicted),
                "precision": over(right, predicted),
                "recall": over(right, true),
                "pixels": round(true),
            }
        )
    return found


def colours(count: int) -> np.ndarray:
    """uint8 (count, 3): colours for classes that are far apart in hue, the first black."""
    hues = [(i * 0.381966) % 1.0 for i in range(max(0, count - 1))]  # By the golden angle.
    rgb = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(hue, 0.9, 1.0) for hue in hues)]
    return (np.asarray(rgb[:count]) * 255).round().astype(np.uint8)


def overlay(images: np.ndarray, masks: np.ndarray, *, strength: float = 0.5) -> np.ndarray:
    """Images with the classes of their pixels in colour; class 0 and void pixels stay as they are.

    Args:
        images: uint8 (n, height, width, 1 or 3).
        masks: uint8 (n, height, width).
        strength: Of the colour, from 0 to 1.

    Returns:
        uint8 (n, height, width, 3).
    """
    table = np.zeros((256, 3), np.uint8)
    table[:VOID] = colours(VOID)
    plain = np.broadcast_to(images, (*images.shape[:3], 3))
    mixed = (plain * (1 - strength) + table[masks] * strength).round().astype(np.uint8)
    shown = (masks != 0) & (masks != VOID)
    return np.where(shown[..., None], mixed, plain)
