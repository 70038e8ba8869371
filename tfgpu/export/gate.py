"""The comparison of exported files with the Keras model they came from.

Differences are counted over a whole split; times are measured warm, one call after another.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.export.runtimes import Predict
from tfgpu.tasks.parts.serving import Serving

THROUGHPUT_BATCH = 64
LATENCY_CALLS = 200
"""Enough for a 99th percentile that two calls lie above."""
ROUNDED = ("litert_float16", "litert_int8")
"""Formats of other numbers than the model's, which are compared by accuracy."""
SECONDS = 2.0
"""For each of the two measurements at most, after three calls that do not count."""


def _columns(measure: str, unit: str) -> dict[str, tuple[str, str]]:
    """The figures in the table: by heading, the name in export.json and the format."""
    return {
        "greatest difference": ("max_difference", ".1e"),
        "agreement": ("agreement", ".4f"),
        measure: (measure, ".4f"),
        "size, kB": ("kilobytes", ",.0f"),
        "p50, ms": ("latency_ms_p50", ".2f"),
        "p99, ms": ("latency_ms_p99", ".2f"),
        f"{unit}/s at {THROUGHPUT_BATCH}": (f"{unit}_per_second", ",.0f"),
    }


def _most_probable(probabilities: np.ndarray) -> np.ndarray:
    return probabilities.argmax(axis=-1)


def _labels_found(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return _most_probable(probabilities) == labels


def greatest_difference(found: Any, reference: Any) -> float:
    """The greatest difference between two runtimes' floats; NaN once either is.

    Args:
        found: An array, or arrays by name.
        reference: The same.
    """
    if not isinstance(found, Mapping):
        found, reference = {"": found}, {"": reference}
    most = 0.0
    for name, values in reference.items():
        if values.dtype.kind == "f" and values.size:
            # np.maximum, unlike max, keeps a NaN.
            most = float(np.maximum(most, np.abs(found[name] - values).max()))
    return most


@dataclasses.dataclass
class Comparison:
    """How one runtime did against the reference, over the examples so far.

    Attributes:
        examples: How many.
        max_difference: The greatest between two outputs; NaN once either was.
        agreeing: Examples on which both decide the same, or the parts of them.
        right: The sum of its scores: for classes, examples whose label it finds.
    """

    examples: int = 0
    max_difference: float = 0.0
    agreeing: float = 0
    right: float = 0

    def add(
        self,
        found: Any,
        reference: Any,
        y: Any,
        *,
        decide: Callable[[Any], np.ndarray] = _most_probable,
        score: Callable[[Any, Any], np.ndarray] = _labels_found,
        difference: Callable[[Any, Any], float] = greatest_difference,
    ) -> None:
        """Counts a batch.

        Args:
            found: Outputs of the runtime: what the three functions take.
            reference: Of the reference.
            y: Of the examples.
            decide: Outputs to decisions (n, ...).
            score: (outputs, y) to scores (n,).
            difference: (outputs, outputs of the reference) to the greatest difference.
        """
        same = decide(found) == decide(reference)
        self.examples += len(same)
        self.max_difference = float(np.maximum(self.max_difference, difference(found, reference)))
        self.agreeing += float(same.reshape(len(same), -1).mean(axis=1).sum())
        self.right += float(score(found, y).sum())

    @property
    def accuracy(self) -> float:
        """The mean score: for classes, the share of the examples whose label it finds."""
        return self.right / self.examples

    @property
    def agreement(self) -> float:
        """Share of the decisions that are those of the reference."""
        return self.agreeing / self.examples


def compare(
    runtimes: Mapping[str, Predict],
    reference: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Any, Any]],
    servings: Mapping[str, Serving],
) -> tuple[Comparison, dict[str, Comparison]]:
    """Runs every runtime over the same examples.

    Args:
        runtimes: By name.
        reference: What they are compared with, a function of x.
        batches: (x, raw inputs by name, y) of examples.
        servings: How each runtime is compared, and under "" the reference.

    Returns:
        The reference against itself, and each runtime against it.
    """
    found = {name: Comparison() for name in ("", *runtimes)}
    for x, raw, y in batches:
        expected = reference(x)
        outputs = {
            name: predict({key: raw[key] for key in servings[name].inputs})
            for name, predict in runtimes.items()
        }
        for name, ours in ({"": expected} | outputs).items():
            serving = servings[name]
            found[name].add(
                ours,
                expected,
                y,
                decide=serving.decide,
                score=serving.score,
                difference=serving.difference or greatest_difference,
            )
    return found.pop(""), found


def measure(predict: Callable[[Any], Any], inputs: Any, *, unit: str) -> dict[str, float]:
    """Times a runtime, warm: single examples, and batches of `THROUGHPUT_BATCH`.

    Args:
        predict: The runtime.
        inputs: Its inputs, arrays (n, ...), n at least 1; repeated to fill a batch.
        unit: What an example is called, in the plural.

    Returns:
        `latency_ms_p50` and `latency_ms_p99` of `latency_calls` calls with one example,
        `images_per_second`, by the unit, of batches of `THROUGHPUT_BATCH`. The call from Python
        and the copies of inputs and outputs count.
    """
    single = tf.nest.map_structure(lambda array: array[:1], inputs)
    batch = tf.nest.map_structure(
        lambda array: np.resize(array, (THROUGHPUT_BATCH, *array.shape[1:])), inputs
    )
    singles, batches = _seconds(predict, single), _seconds(predict, batch)
    return {
        "latency_ms_p50": 1e3 * float(np.percentile(singles, 50)),
        "latency_ms_p99": 1e3 * float(np.percentile(singles, 99)),
        "latency_calls": len(singles),
        f"{unit}_per_second": THROUGHPUT_BATCH / float(np.median(batches)),
    }


def _seconds(predict: Callable[[Any], Any], inputs: Any) -> list[float]:
    for _ in range(3):
        predict(inputs)
    taken: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(taken) < LATENCY_CALLS and (not taken or time.perf_counter() < end):
        before = time.perf_counter()
        predict(inputs)
        taken.append(time.perf_counter() - before)
    return taken


def verdict(
    kind: str,
    found: Comparison,
    reference: Comparison,
    *,
    max_difference: float,
    max_accuracy_difference: float,
    unit: str = "a probability",
    measure: str = "accuracy",
) -> str:
    """Says what is wrong with a file.

    Args:
        kind: Its format.
        found: How it did.
        reference: How the Keras model did.
        max_difference: Between outputs, of a file in float32.
        max_accuracy_difference: Between mean scores, of a file in `ROUNDED`.
        unit: What an output is called.
        measure: What the score is called.

    Returns:
        A sentence, or "" when nothing is.
    """
    # Written so that a NaN is wrong.
    if kind in ROUNDED:
        if np.isnan(found.max_difference):
            return f"{unit} is not a number"
        apart = abs(found.right - reference.right)
        if apart > max_accuracy_difference * found.examples:
            return (
                f"{measure} {found.accuracy:.4f} is {apart / found.examples:.4f} away from "
                f"{reference.accuracy:.4f}, more than {max_accuracy_difference:g}"
            )
    elif not found.max_difference <= max_difference:
        return f"{unit} is {found.max_difference:.1e} off, more than {max_difference:g}"
    return ""


def table(files: Iterable[Mapping[str, Any]], *, measure: str, unit: str) -> str:
    """The lines for a person.

    Args:
        files: `reference` and `files` of export.json.
        measure: What the score is called.
        unit: What an example is called, in the plural.

    Returns:
        Lines without a newline at the end.
    """
    columns = _columns(measure, unit)
    head = ("format", *columns, "verdict")
    rows = [head]
    for each in files:
        values = {**each, "kilobytes": each.get("bytes", 0) / 1e3 or None}
        figures = (
            "-" if values.get(key) is None else f"{values[key]:{form}}"
            for key, form in columns.values()
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
