"""What `evaluate` and TensorBoard show of a task: `Report`, which shows the task's own metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfgpu.tensorboard.pictures import Picture
from tfgpu.tensorboard.predictions import Outputs

LISTED = 25
"""Classes that the lines of a report show at most."""


def lowest(
    rows: Sequence[Mapping[str, Any]], figure: str, *, what: str
) -> tuple[list[str], list[Mapping[str, Any]]]:
    """The rows to list, and where they are not all, the line that says so.

    Args:
        rows: With `figure` in each, which may be None.
        figure: Those with the lowest of it are listed, as many as `LISTED`.
        what: For the line, such as "classes with the least recall".
    """
    if len(rows) <= LISTED:
        return [], list(rows)
    ordered = sorted(rows, key=lambda row: (row[figure] is None, row[figure]))
    return [f"the {LISTED} of {len(rows)} {what}:"], ordered[:LISTED]


class Report:
    """How `evaluate` measures a model, and what TensorBoard shows of it. A task may subclass it.

    `metrics` are computed on the device, with those of a split added up over its batches and
    replicas. What needs the outputs themselves on the host (a ranking over all items, boxes to be
    matched) sets `reads_outputs` and counts in `add`, at the cost of a pass of prediction.

    Args:
        spec: The `DataSpec`.

    Attributes:
        spec: The same.
        reads_outputs: Whether `add` is to be called.
        draws: Whether `files` has charts, where matplotlib is installed.
        shown_examples: Of the validation split, how many `predictions` gets; None: all.
    """

    reads_outputs = False
    draws = False
    shown_examples: int | None = None

    def __init__(self, spec: Any):
        self.spec = spec

    def metrics(self) -> Sequence[Any] | None:
        """Keras metrics for the evaluation, made in the scope of the strategy; None: the task's."""
        return None

    def add(self, x: Any, y: Any, outputs: Any) -> None:
        """Counts a batch on the host; called with `reads_outputs` alone."""

    def end_split(self) -> None:
        """Called when a split has been read, before the metrics are reset for another."""

    def figures(self, logs: Mapping[str, float]) -> dict[str, Any]:
        """The main figures, by their names in `evaluation.json`.

        Args:
            logs: The results of the metrics over all splits that were read.
        """
        return dict(logs)

    def details(self) -> dict[str, Any]:
        """More for `evaluation.json`: tables by class, curves."""
        return {}

    def lines(self, result: Mapping[str, Any]) -> list[str]:
        """The lines for a person, below the one that names the data.

        Args:
            result: The contents of `evaluation.json`, of which "loss" is one.
        """
        names = [name for name, value in result.items() if isinstance(value, float)]
        wide = max(map(len, names), default=0)
        return [f"{name:<{wide}}  {result[name]:.4f}" for name in names]

    def files(self, result: Mapping[str, Any]) -> Mapping[str, bytes]:
        """Files for the folder of `evaluation.json`, by name.

        Args:
            result: The contents of `evaluation.json`.
        """
        return {}

    def batch(self, x: Any, y: Any) -> Mapping[str, Picture]:
        """What TensorBoard shows of a training batch as the model sees it, by tag."""
        return {}

    def predictions(self, outputs: Iterator[Outputs]) -> Mapping[str, Picture]:
        """What TensorBoard shows at the end of a training, of the validation split, by tag."""
        return {}
