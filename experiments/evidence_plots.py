"""The pictures of docs/evidence.md. Importing this needs matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import evidence_page
from evidence_rows import FAILS, HOLDS, UNKNOWN
from matplotlib.figure import Figure

_COLOURS = {HOLDS: "tab:green", FAILS: "tab:red", UNKNOWN: "tab:grey"}
_BUDGET = 33.0  # Milliseconds of a frame.


def draw(record: Mapping[str, Any], docs: Path) -> list[Path]:
    """Draws what there is; returns the files."""
    made = []
    for kind, found in record["devices"].items():
        drawn = {"batch": _batch, "latency": _latency, "ratios": _ratios}
        for name in evidence_page.pictures(kind, found):
            figure = drawn[name](found)
            figure.suptitle(_subject(next(iter(found.values()))), fontsize=8)
            path = docs / f"evidence_{kind}_{name}.png"
            figure.savefig(path, dpi=90, metadata={"Software": None})
            made.append(path)
    return made


def _subject(claim: Mapping[str, Any]) -> str:
    versions = claim["versions"]
    return (
        f"{claim['hardware']}; TensorFlow {versions['tensorflow']}, Keras {versions['keras']}; "
        f"{claim['time'][:10]}"
    )


def _batch(found: Mapping[str, Any]) -> Figure:
    curve = next(row["curve"] for row in found["batch"]["rows"] if row.get("curve"))
    sizes = [int(size) for size in curve]
    middle = [each["median"] for each in curve.values()]
    below = [each["median"] - each["low"] for each in curve.values()]
    above = [each["high"] - each["median"] for each in curve.values()]
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.errorbar(sizes, middle, yerr=[below, above], marker="o", capsize=3, label="measured")
    axes.plot(
        sizes, [middle[0] * s / sizes[0] for s in sizes], ":", color="grey", label="all in parallel"
    )
    axes.set(xscale="log", yscale="log", xlabel="images in a batch", ylabel="images/s")
    axes.set_ylim(top=3 * max(middle))
    axes.legend()
    return figure


def _latency(found: Mapping[str, Any]) -> Figure:
    rows = [row for row in found["latency"]["rows"] if row["n"] and row["what"].endswith("p99")]
    figure = Figure(figsize=(7.5, 0.28 * len(rows) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        color = _COLOURS[row["verdict"]]
        axes.barh(place, row["median"], color=color)
        low, high = (row["low"] or row["median"], row["high"] or row["median"])
        axes.plot([low, high], [place, place], color="black", linewidth=1)
    axes.axvline(_BUDGET, color="black", linestyle="--", linewidth=1)
    axes.set_yticks(
        range(len(rows)), [row["what"].removesuffix(", p99") for row in rows], fontsize=8
    )
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="p99 of one image, ms (dashed: 33 ms)")
    return figure


def _ratios(found: Mapping[str, Any]) -> Figure:
    rows = evidence_page.ratios_of(dict(found))
    figure = Figure(figsize=(8.5, 0.25 * len(rows) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, row) in enumerate(rows):
        color = _COLOURS[row["verdict"]]
        axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=2)
        axes.plot(row["median"], place, "o", color=color, markersize=4)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["what"] for _, row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(
        "times as fast (green: holds, red: does not, grey: cannot be shown)", fontsize=8
    )
    return figure
