"""The report of every task whose model gives logits over classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfgpu.tasks.parts.class_metrics import ClassificationMetrics, Counts
from tfgpu.tasks.parts.report import Report, lowest
from tfgpu.tensorboard.pictures import Picture
from tfgpu.tensorboard.predictions import ClassPictures, Outputs


class ClassReport(Report):
    """Accuracy, calibration, each class, the confusion matrix; pictures of images and mistakes.

    For integer labels (n,) and logits (n, classes), whatever x is.
    """

    draws = True

    def __init__(self, spec: Any):
        super().__init__(spec)
        self._pictures = ClassPictures(spec.class_names)
        self._metric: ClassificationMetrics | None = None
        self._counts: Counts | None = None

    def metrics(self) -> Sequence[Any]:
        """See `Report.metrics`."""
        classes = self.spec.num_classes
        self._metric = ClassificationMetrics(num_classes=classes, k=min(5, classes))
        return [self._metric]

    def end_split(self) -> None:
        """See `Report.end_split`."""
        assert self._metric is not None
        counts = self._metric.counts()
        self._counts = counts if self._counts is None else self._counts + counts

    @property
    def counts(self) -> Counts:
        """What has been counted in the splits so far."""
        assert self._counts is not None
        return self._counts

    def figures(self, logs: Mapping[str, float]) -> dict[str, Any]:
        """See `Report.figures`."""
        return {
            "accuracy": self.counts.accuracy,
            "top_5_accuracy": self.counts.top_k_accuracy,
            "expected_calibration_error": self.counts.calibration_error,
        }

    def details(self) -> dict[str, Any]:
        """See `Report.details`."""
        return {
            "classes": self.counts.by_class(self.spec.class_names),
            "reliability": self.counts.reliability(),
            "confusion_matrix": [
                [round(count) for count in row] for row in self.counts.confusion.tolist()
            ],
        }

    def lines(self, result: Mapping[str, Any]) -> list[str]:
        """See `Report.lines`."""
        lines = [
            f"loss      {result['loss']:.4f}",
            f"accuracy  {result['accuracy']:.4f}  (top 5: {result['top_5_accuracy']:.4f})",
            f"expected calibration error  {result['expected_calibration_error']:.4f}",
            "",
        ]
        said, classes = lowest(result["classes"], "recall", what="classes with the least recall")
        lines += said
        wide = max(len("class"), *(len(each["name"]) for each in classes))
        lines.append(f"{'class':<{wide}}  precision  recall      f1  examples")
        lines += [
            f"{each['name']:<{wide}}  {_ratio(each['precision']):>9}  {_ratio(each['recall']):>6}"
            f"  {_ratio(each['f1']):>6}  {each['examples']:>8,}"
            for each in classes
        ]
        return lines

    def files(self, result: Mapping[str, Any]) -> Mapping[str, bytes]:
        """See `Report.files`."""
        made = {"confusion_matrix.csv": confusion_table(result).encode()}
        try:
            from tfgpu.tasks.parts import plots
        except ImportError as error:
            if error.name is None or not error.name.startswith("matplotlib"):
                raise
            return made
        return made | plots.draw(result)

    def batch(self, x: Any, y: Any) -> Mapping[str, Picture]:
        """See `Report.batch`."""
        return self._pictures.batch(x, y)

    def predictions(self, outputs: Iterator[Outputs]) -> Mapping[str, Picture]:
        """See `Report.predictions`."""
        return self._pictures.predictions(outputs)


def confusion_table(result: Mapping[str, Any]) -> str:
    """The confusion matrix of a result as CSV, with the names of the classes."""
    names = [each["name"] for each in result["classes"]]
    rows = [["label \\ predicted", *names]]
    rows += [[name, *row] for name, row in zip(names, result["confusion_matrix"], strict=True)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
