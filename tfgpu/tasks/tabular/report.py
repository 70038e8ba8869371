"""What `evaluate` and TensorBoard show of a model of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.tasks.parts.class_report import ClassReport
from tfgpu.tasks.parts.report import Report
from tfgpu.tensorboard.pictures import Picture
from tfgpu.tensorboard.predictions import SHOWN, Outputs

_QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")
_POINTS = 2000  # In a chart.


class RowClassReport(ClassReport):
    """That of classes, with the area under the ROC curve, computed over all examples."""

    reads_outputs = True

    def __init__(self, spec: Any):
        super().__init__(spec)
        self._labels: list[np.ndarray] = []
        self._logits: list[np.ndarray] = []

    def add(self, x: Any, y: Any, outputs: Any) -> None:
        """See `Report.add`."""
        self._labels.append(np.reshape(y, [-1]))
        self._logits.append(np.asarray(outputs, np.float64))

    def figures(self, logs: Mapping[str, float]) -> dict[str, Any]:
        """See `Report.figures`."""
        return {**super().figures(logs), "auc": self._area()}

    def _area(self) -> float | None:
        """Of more than two classes the mean over those that have examples, each against the rest.

        None where fewer than two classes have examples.
        """
        from sklearn.metrics import roc_auc_score

        labels, logits = np.concatenate(self._labels), np.concatenate(self._logits)
        present = np.unique(labels)
        if len(present) < 2:
            return None
        if logits.shape[1] == 2:
            return float(roc_auc_score(labels, logits[:, 1] - logits[:, 0]))
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        return float(np.mean([roc_auc_score(labels == i, chances[:, i]) for i in present]))

    def lines(self, result: Mapping[str, Any]) -> list[str]:
        """See `Report.lines`."""
        lines = super().lines(result)
        if result["auc"] is not None:
            lines.insert(2, f"area under the ROC curve  {result['auc']:.4f}")
        return lines


class NumberReport(Report):
    """Errors in the unit of the target, beside those of its mean; where they are large."""

    reads_outputs = True
    draws = True

    def __init__(self, spec: Any):
        super().__init__(spec)
        self._targets: list[np.ndarray] = []
        self._found: list[np.ndarray] = []

    def add(self, x: Any, y: Any, outputs: Any) -> None:
        """See `Report.add`."""
        self._targets.append(np.reshape(y, [-1]).astype(np.float64))
        self._found.append(np.reshape(outputs, [-1]).astype(np.float64))

    def _errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Targets, and what the model says more."""
        targets = np.concatenate(self._targets)
        return targets, np.concatenate(self._found) - targets

    def figures(self, logs: Mapping[str, float]) -> dict[str, Any]:
        """See `Report.figures`."""
        targets, errors = self._errors()
        return {
            **dict(logs),
            "median_absolute_error": float(np.median(np.abs(errors))),
            "mean_error": float(errors.mean()),
            "rmse_of_mean": float(np.sqrt(np.square(targets - self.spec.fitted["mean"]).mean())),
        }

    def details(self) -> dict[str, Any]:
        """See `Report.details`."""
        targets, errors = self._errors()
        order = np.argsort(targets, kind="stable")
        quarters = []
        for name, some in zip(_QUARTERS, np.array_split(order, 4), strict=True):
            if len(some):
                quarters.append(
                    {
                        "name": name,
                        "lowest": float(targets[some].min()),
                        "highest": float(targets[some].max()),
                        "examples": len(some),
                        "mae": float(np.abs(errors[some]).mean()),
                        "mean_error": float(errors[some].mean()),
                    }
                )
        return {"target": self.spec.fitted["target"], "quarters": quarters}

    def lines(self, result: Mapping[str, Any]) -> list[str]:
        """See `Report.lines`."""
        lines = [
            f"loss  {result['loss']:.4f}",
            f"R2    {result['r2']:.4f}",
            f"in the unit of {result['target']}:",
            f"rmse  {result['rmse']:.6g}  (of the training mean: {result['rmse_of_mean']:.6g})",
            f"mae   {result['mae']:.6g}  (median {result['median_absolute_error']:.6g}, "
            f"mean error {result['mean_error']:+.4g})",
            "",
            f"{result['target']:<17} {'from':>12} {'to':>12} {'mae':>12} {'mean error':>12}"
            "  examples",
        ]
        lines += [
            f"{each['name']:<17} {each['lowest']:>12.6g} {each['highest']:>12.6g} "
            f"{each['mae']:>12.6g} {each['mean_error']:>+12.4g}  {each['examples']:>8,}"
            for each in result["quarters"]
        ]
        return lines

    def files(self, result: Mapping[str, Any]) -> Mapping[str, bytes]:
        """See `Report.files`: predicted over true values, where matplotlib is installed."""
        try:
            from tfgpu.tasks.parts import plots
        except ImportError as error:
            if error.name is None or not error.name.startswith("matplotlib"):
                raise
            return {}
        targets, errors = self._errors()
        # The same rows each time.
        some = np.random.RandomState(0).permutation(len(targets))[:_POINTS]
        found = targets[some], (targets + errors)[some]
        figure = plots.scatter(*found, name=result["target"], title=f"R2 {result['r2']:.4f}")
        return {"predicted.png": plots.png(figure)}

    def batch(self, x: Any, y: Any) -> Mapping[str, Picture]:
        """See `Report.batch`."""
        return {}

    def predictions(self, outputs: Iterator[Outputs]) -> Mapping[str, Picture]:
        """See `Report.predictions`: the rows that the model is furthest off at."""
        parts = [(np.reshape(y, [-1]), np.reshape(found, [-1])) for _, y, found in outputs]
        if not parts:
            return {}
        targets, found = (np.concatenate(each).astype(float) for each in zip(*parts, strict=True))
        worst = np.argsort(-np.abs(found - targets), kind="stable")[:SHOWN]
        rows = [(str(i), f"{targets[i]:.6g}", f"{found[i]:.6g}") for i in worst.tolist()]
        text = _table(("row", self.spec.fitted["target"], "predicted"), rows)
        return {"mistakes": Picture(text, "The rows that the model is furthest off at.")}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
