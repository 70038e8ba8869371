"""The comparison of exported files with the Keras model they came from.

Differences are counted over a whole split; times are measured warm, one call after another.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfgpu.export.runtimes import Predict

THROUGHPUT_BATCH = 64
LATENCY_CALLS = 200
"""Enough for a 99th percentile that two calls lie above."""
SECONDS = 2.0
"""For each of the two measurements at most, after three calls that do not count."""

_COLUMNS = {
    "greatest difference": ("max_difference", ".1e"),
    "agreement": ("agreement", ".4f"),
    "accuracy": ("accuracy", ".4f"),
    "size, kB": ("kilobytes", ",.0f"),
    "p50, ms": ("latency_ms_p50", ".2f"),
    "p99, ms": ("latency_ms_p99", ".2f"),
    f"images/s at {THROUGHPUT_BATCH}": ("images_per_second", ",.0f"),
}
"""Figures in the table: by heading, the name in export.json and the format."""


@dataclasses.dataclass
class Comparison:
    """How one runtime did against the reference, over the examples so far.

    Attributes:
        examples: How many.
        max_difference: The greatest between two probabilities; NaN once either was.
        agreeing: Examples to which both give the same label.
        right: Examples whose label it finds.
    """

    examples: int = 0
    max_difference: float = 0.0
    agreeing: int = 0
    right: int = 0

    def add(self, probabilities: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> None:
        """Counts a batch: (n, classes) twice, and (n,)."""
        found = probabilities.argmax(axis=-1)
        self.examples += len(labels)
        # np.maximum, unlike max, keeps a NaN.
        self.max_difference = float(
            np.maximum(self.max_difference, np.abs(probabilities - reference).max())
        )
        self.agreeing += int((found == reference.argmax(axis=-1)).sum())
        self.right += int((found == labels).sum())

    @property
    def accuracy(self) -> float:
        """Share of the examples whose label it finds."""
        return self.right / self.examples

    @property
    def agreement(self) -> float:
        """Share of the examples to which both give the same label."""
        return self.agreeing / self.examples


def compare(
    runtimes: Mapping[str, Predict],
    reference: Predict,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[Comparison, dict[str, Comparison]]:
    """Runs every runtime over the same examples.

    Args:
        runtimes: By name.
        reference: What they are compared with.
        batches: uint8 images (n, height, width, channels) and integer labels (n,).

    Returns:
        The reference against itself, and each runtime against it.
    """
    own = Comparison()
    others = {name: Comparison() for name in runtimes}
    for images, labels in batches:
        expected = reference(images)
        own.add(expected, expected, labels)
        for name, predict in runtimes.items():
            others[name].add(predict(images), expected, labels)
    return own, others


def measure(predict: Predict, images: np.ndarray) -> dict[str, float]:
    """Times a runtime, warm: single images, and batches of `THROUGHPUT_BATCH`.

    Args:
        predict: The runtime.
        images: uint8 (n, height, width, channels), n at least 1; repeated to fill a batch.

    Returns:
        `latency_ms_p50` and `latency_ms_p99` of `latency_calls` calls with one image,
        `images_per_second` of batches of `THROUGHPUT_BATCH`. The call from Python and the copies
        of pixels and probabilities count.
    """
    singles = _seconds(predict, images[:1])
    batch = np.resize(images, (THROUGHPUT_BATCH, *images.shape[1:]))
    batches = _seconds(predict, batch)
    return {
        "latency_ms_p50": 1e3 * float(np.percentile(singles, 50)),
        "latency_ms_p99": 1e3 * float(np.percentile(singles, 99)),
        "latency_calls": len(singles),
        "images_per_second": THROUGHPUT_BATCH / float(np.median(batches)),
    }


def _seconds(predict: Predict, images: np.ndarray) -> list[float]:
    for _ in range(3):
        predict(images)
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(taken) < LATENCY_CALLS and (not taken or time.perf_counter() < end):
        before = time.perf_counter()
        predict(images)
        taken.append(time.perf_counter() - before)
    return taken


def verdict(
    kind: str,
    found: Comparison,
    reference: Comparison,
    *,
    max_difference: float,
    max_accuracy_difference: float,
) -> str:
    """Says what is wrong with a file.

    Args:
        kind: Its format.
        found: How it did.
        reference: How the Keras model did.
        max_difference: Between probabilities, of a file in float32.
        max_accuracy_difference: Between accuracies, of a file in int8.

    Returns:
        A sentence, or "" when nothing is.
    """
    # Written so that a NaN is wrong.
    if kind == "litert_int8":
        if np.isnan(found.max_difference):
            return "a probability is not a number"
        apart = abs(found.right - reference.right)
        if apart > max_accuracy_difference * found.examples:
            return (
                f"accuracy {found.accuracy:.4f} is {apart / found.examples:.4f} away from "
                f"{reference.accuracy:.4f}, more than {max_accuracy_difference:g}"
            )
    elif not found.max_difference <= max_difference:
        return f"a probability is {found.max_difference:.1e} off, more than {max_difference:g}"
    return ""


def table(files: Iterable[Mapping[str, Any]]) -> str:
    """The lines for a person.

    Args:
        files: `reference` and `files` of export.json.

    Returns:
        Lines without a newline at the end.
    """
    head = ("format", *_COLUMNS, "verdict")
    rows = [head]
    for each in files:
        values = {**each, "kilobytes": each.get("bytes", 0) / 1e3 or None}
        figures = (
            "-" if values.get(key) is None else f"{values[key]:{form}}"
            for key, form in _COLUMNS.values()
        )
        rows.append((each["format"], *figures, each["verdict"]))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(head) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, wide, strict=True))
        ).rstrip()
        for row in rows
    )
