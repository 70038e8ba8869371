"""Charts of an evaluation: confusion matrix and reliability diagram, or predicted over true.

Importing this needs matplotlib (the extra `plots`).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_READABLE = 25  # Classes up to which each cell shows its number and each class its name.


def draw(result: Mapping[str, Any]) -> dict[str, bytes]:
    """Draws both charts.

    Args:
        result: The contents of evaluation.json.

    Returns:
        PNG files by name.
    """
    names = [each["name"] for each in result["classes"]]
    pictures = {
        "confusion_matrix.png": confusion_matrix(np.asarray(result["confusion_matrix"]), names),
        "reliability.png": reliability(result["reliability"], result["expected_calibration_error"]),
    }
    return {name: png(figure) for name, figure in pictures.items()}


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    # The version of matplotlib in the file would make equal results differ.
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()


def confusion_matrix(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Draws the confusion matrix, coloured relative to the sum of the row.

    Args:
        counts: (classes, classes): rows are labels, columns predictions.
        names: One a class.
    """
    total = counts.sum(axis=1, keepdims=True)
    fractions = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    readable = len(names) <= _READABLE
    side = 2.5 + 0.4 * len(names) if readable else 9
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if readable:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    column,
                    row,
                    f"{count:d}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if fractions[row, column] > 0.5 else "black",
                )
    axes.set(xlabel="predicted", ylabel="label")
    figure.colorbar(image, ax=axes, label="share of the label's examples", shrink=0.8)
    return figure


def scatter(targets: np.ndarray, found: np.ndarray, *, name: str, title: str) -> Figure:
    """Draws predicted over true numbers.

    Args:
        targets: (n,).
        found: (n,).
        name: Of the target.
        title: Above the chart.
    """
    figure = Figure(figsize=(5, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(targets, found, ".", alpha=0.4)
    ends = [float(targets.min()), float(targets.max())]
    axes.plot(ends, ends, "--", color="grey")
    axes.set(xlabel=name, ylabel="predicted", title=title)
    return figure


def reliability(bins: Sequence[Mapping[str, Any]], error: float) -> Figure:
    """Draws accuracy over confidence by bins, and below it the number of examples in each.

    Args:
        bins: `reliability` of evaluation.json.
        error: The expected calibration error, for the title.
    """
    figure = Figure(figsize=(5, 6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    left = [each["low"] for each in bins]
    width = bins[0]["high"] - bins[0]["low"]
    filled = [each for each in bins if each["examples"]]
    upper.bar(
        [each["low"] for each in filled],
        [each["accuracy"] for each in filled],
        width=width,
        align="edge",
        edgecolor="white",
        label="accuracy",
    )
    upper.plot(
        [each["confidence"] for each in filled],
        [each["accuracy"] for each in filled],
        "k.",
        label="at the mean confidence",
    )
    upper.plot([0, 1], [0, 1], "--", color="grey", label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.set_title(f"expected calibration error {error:.4f}")
    upper.legend(loc="upper left", fontsize=8)
    lower.bar(left, [each["examples"] for each in bins], width=width, align="edge", color="grey")
    lower.set(xlabel="confidence", ylabel="examples")
    return figure
