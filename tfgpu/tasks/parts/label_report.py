"""The report of models that give a logit for each of several labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.tasks.parts.report import Report, lowest
from tfgpu.tensorboard import pictures
from tfgpu.tensorboard.pictures import Picture
from tfgpu.tensorboard.predictions import SHOWN, Outputs


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64, without overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(logits, np.float64) / 2))


def thresholds_of(spec: Any) -> np.ndarray:
    """float64 (labels,): the thresholds of a run, 0.5 where validation chose none."""
    chosen = spec.fitted.get("thresholds") or [None] * len(spec.class_names)
    return np.array([0.5 if each is None else each for each in chosen])


class LabelReport(Report):
    """Average precision of each label, exactly, and F1 at the thresholds of the run.

    For labels 0 or 1 (n, labels) and logits (n, labels), whatever x is.
    """

    reads_outputs = True

    def __init__(self, spec: Any):
        super().__init__(spec)
        self._labels: list[np.ndarray] = []
        self._chances: list[np.ndarray] = []

    def add(self, x: Any, y: Any, outputs: Any) -> None:
        """See `Report.add`."""
        self._labels.append(np.asarray(y) > 0.5)
        self._chances.append(sigmoid(outputs))

    def _every(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self._labels), np.concatenate(self._chances)

    def figures(self, logs: Mapping[str, float]) -> dict[str, Any]:
        """See `Report.figures`: `map` is computed from all outputs, and not from bins."""
        labels, chances = self._every()
        found = chances >= thresholds_of(self.spec)
        rows = _by_label(labels, chances, thresholds_of(self.spec), self.spec.class_names)
        precisions = [row["average_precision"] for row in rows if row["positives"]]
        scores = [row["f1"] for row in rows if row["positives"]]
        hits = float((found & labels).sum())
        both = float(found.sum() + labels.sum())
        return {
            **dict(logs),
            "map": float(np.mean(precisions)) if precisions else 0.0,
            "macro_f1": float(np.mean(scores)) if scores else 0.0,
            "micro_f1": 2 * hits / both if both else 0.0,
            "exact_match": float((found == labels).all(axis=1).mean()),
        }

    def details(self) -> dict[str, Any]:
        """See `Report.details`."""
        labels, chances = self._every()
        return {
            "labels": _by_label(labels, chances, thresholds_of(self.spec), self.spec.class_names)
        }

    def lines(self, result: Mapping[str, Any]) -> list[str]:
        """See `Report.lines`."""
        chosen = "chosen on validation" if self.spec.fitted.get("thresholds") else "all 0.5"
        lines = [
            f"loss  {result['loss']:.4f}",
            f"mean average precision  {result['map']:.4f}",
            f"F1 at the thresholds ({chosen})  macro {result['macro_f1']:.4f}  "
            f"micro {result['micro_f1']:.4f}",
            f"all labels right  {result['exact_match']:.4f}",
            "",
        ]
        said, rows = lowest(result["labels"], "f1", what="labels with the least F1")
        lines += said
        wide = max(len("label"), *(len(row["name"]) for row in rows))
        lines.append(f"{'label':<{wide}}  threshold      AP  precision  recall      f1  positives")
        lines += [
            f"{row['name']:<{wide}}  {row['threshold']:>9.4f}  {_ratio(row['average_precision'])}"
            f"     {_ratio(row['precision'])}  {_ratio(row['recall'])}  {_ratio(row['f1'])}"
            f"  {row['positives']:>9,}"
            for row in rows
        ]
        return lines

    def batch(self, x: Any, y: Any) -> Mapping[str, Picture]:
        """See `Report.batch`."""
        if not _is_images(x):
            return {}
        names = self.spec.class_names
        captions = [[", ".join(names[i] for i in np.flatnonzero(row)) or "none"] for row in y]
        sheet = pictures.grid(x, captions)
        return {"batch": Picture(sheet, "Images of a training batch, augmented.")}

    def predictions(self, outputs: Iterator[Outputs]) -> Mapping[str, Picture]:
        """See `Report.predictions`: each label, and the images with the most surely wrong ones."""
        kept = list(outputs)
        if not kept:
            return {}
        labels = np.concatenate([np.asarray(y) > 0.5 for _, y, _ in kept])
        chances = np.concatenate([sigmoid(found) for *_, found in kept])
        names = self.spec.class_names
        rows = _by_label(labels, chances, thresholds_of(self.spec), names)
        table = ["| label | AP | F1 at 0.5 | positives |", "| --- | --- | --- | --- |"]
        table += [
            f"| {row['name']} | {_ratio(row['average_precision'])} | {_ratio(row['f1'])} | "
            f"{row['positives']} |"
            for row in rows
        ]
        shown = {"labels": Picture("\n".join(table), "Average precision of each label.")}
        images = [x for x, *_ in kept]
        if not _is_images(images[0]):
            return shown
        wrong = np.where(labels, 1 - chances, chances)
        worst = np.argsort(-wrong.max(axis=1), kind="stable")[:SHOWN]
        every = np.concatenate(images)
        captions = []
        for i in worst.tolist():
            label = int(wrong[i].argmax())
            is_not = "" if labels[i, label] else "not "
            captions.append([f"is {is_not}{names[label]}", f"{chances[i, label]:.1%}"])
        sheet = pictures.grid(every[worst], captions)
        shown["mistakes"] = Picture(sheet, "The labels that the model is most surely wrong about.")
        return shown


def _by_label(
    labels: np.ndarray, chances: np.ndarray, thresholds: np.ndarray, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Figures of each label; what would be divided by zero is None."""
    # Not at the top: importing it takes seconds, and training has no use for it.
    from sklearn.metrics import average_precision_score

    rows = []
    for i, name in enumerate(names):
        true, found = labels[:, i], chances[:, i] >= thresholds[i]
        hits, positives = int((true & found).sum()), int(true.sum())
        both = int(found.sum()) + positives
        rows.append(
            {
                "name": name,
                "threshold": float(thresholds[i]),
                "average_precision": (
                    float(average_precision_score(true, chances[:, i])) if positives else None
                ),
                "precision": hits / int(found.sum()) if found.any() else None,
                "recall": hits / positives if positives else None,
                "f1": 2 * hits / both if both else None,
                "positives": positives,
            }
        )
    return rows


def _ratio(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:.4f}"


def _is_images(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.ndim == 4 and x.shape[-1] in (1, 3)
