"""The charts of a benchmark: throughput by factor, scaling, and the roofline.

Importing this needs matplotlib (the extra `plots`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tfgpu.artifacts import files

_FACTOR_COLOURS = matplotlib.colormaps["tab10"]


def draw(record: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draws the charts that have something on them.

    Args:
        record: The contents of bench.json.
        directory: The directory for the PNG files.

    Returns:
        The files.
    """
    charts = {
        "throughput.png": throughput(record),
        "scaling.png": scaling(record),
        "roofline.png": roofline(record),
    }
    made = []
    for name, figure in charts.items():
        if figure is not None:
            path = directory / name
            with files.named(path):
                figure.savefig(path, dpi=120, metadata={"Software": None})
            made.append(path)
    return made


def throughput(record: Mapping[str, Any]) -> Figure | None:
    """Draws the ratio of each change to the baseline, with its middle half."""
    cells = [cell for cell in record["cells"][1:] if not cell["error"]]
    if not cells:
        return None
    figure = Figure(figsize=(8, 0.42 * len(cells) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    factors = list(dict.fromkeys(cell["factor"] for cell in cells))
    for row, cell in enumerate(cells):
        gain = cell["gain"]
        middle = gain["median"]
        axes.barh(
            row,
            middle,
            xerr=[[middle - gain["low"]], [gain["high"] - middle]],
            color=_FACTOR_COLOURS(factors.index(cell["factor"]) % 10),
            error_kw={"capsize": 3},
        )
        axes.text(0.01, row, f"{cell['rate']['median']:,.0f}/s", va="center", fontsize=8)
    axes.axvline(1.0, color="black", linewidth=1)
    labels = [f"{cell['factor'].replace('_', ' ')}: {cell['name']}" for cell in cells]
    axes.set_yticks(range(len(cells)), labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    base = record["cells"][0]["rate"]["median"]
    # Under and over the whole figure: the labels on the left leave the axes too little room.
    figure.supxlabel(
        f"throughput over the baseline's {base:,.0f} samples/s (median and middle half, "
        f"n={record['rounds']})",
        fontsize=10,
    )
    figure.suptitle(_subject(record), fontsize=9)
    return figure


def scaling(record: Mapping[str, Any]) -> Figure | None:
    """Draws the throughput by replicas, in weak and in strong scaling."""
    cells = [cell for cell in record["cells"] if cell["factor"] == "replicas" and not cell["error"]]
    if not cells:
        return None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    virtual = any("virtual" in cell["name"] for cell in cells)
    for kind, marker in (("weak", "o"), ("strong", "s")):
        points = [(1, {"median": 1.0, "low": 1.0, "high": 1.0})]
        points += [(cell["replicas"], cell["gain"]) for cell in cells if kind in cell["name"]]
        sizes = [size for size, _ in points]
        middles = [gain["median"] for _, gain in points]
        below = [gain["median"] - gain["low"] for _, gain in points]
        above = [gain["high"] - gain["median"] for _, gain in points]
        label = "weak: the same batch a replica" if kind == "weak" else "strong: the same batch"
        axes.errorbar(sizes, middles, yerr=[below, above], marker=marker, capsize=3, label=label)
    most = max(cell["replicas"] for cell in cells)
    if not virtual:
        axes.plot([1, most], [1, most], linestyle=":", color="grey", label="ideal")
    where = "virtual replicas, which share one device" if virtual else "replicas"
    axes.set_xticks(sorted({1, *(cell["replicas"] for cell in cells)}))
    axes.set_ylim(bottom=0)
    axes.set(xlabel=where, ylabel="throughput over one replica's")
    axes.set_title(_subject(record), fontsize=9, loc="left")
    axes.legend()
    return figure


def roofline(record: Mapping[str, Any]) -> Figure | None:
    """Draws the roofline: each layer's forward pass under the ceilings of memory and arithmetic."""
    timings = record["timings"]
    layers: Sequence[Mapping[str, Any]] = [
        layer
        for layer in record["layers"]
        if layer["flops"] and layer["traffic"] and layer["seconds"]
    ]
    if not layers:
        return None
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    peak, bandwidth = timings["peak_flops"], timings["bandwidth"]
    intensities = [layer["flops"] / layer["traffic"] for layer in layers]
    whole = timings["flops"] / timings["traffic"]
    ridge = peak / bandwidth
    left = min(*intensities, whole, ridge) / 3
    right = max(*intensities, whole, ridge) * 3
    axes.plot([left, ridge, right], [left * bandwidth, peak, peak], color="black", linewidth=1.5)
    axes.annotate(f"{bandwidth / 1e9:,.0f} GB/s", (left * 1.2, left * bandwidth * 1.6), fontsize=8)
    axes.annotate(f"{peak / 1e9:,.0f} GFLOP/s", (ridge * 1.1, peak * 1.1), fontsize=8)
    for number, (layer, intensity) in enumerate(zip(layers, intensities, strict=True)):
        axes.scatter(
            intensity,
            layer["flops"] / layer["seconds"],
            color=_FACTOR_COLOURS(number % 10),
            label=layer["name"],
        )
    axes.scatter(
        whole,
        timings["flops"] / timings["both"],
        marker="*",
        s=150,
        color="black",
        label="the training step",
    )
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="operations a byte moved (FLOP/B)", ylabel="operations a second (FLOP/s)")
    axes.set_title(_subject(record), fontsize=9, loc="left")
    axes.legend(fontsize=7, loc="lower right")
    return figure


def _subject(record: Mapping[str, Any]) -> str:
    environment = record["environment"]
    hardware = environment["devices"][0]["description"]
    versions = environment["versions"]
    return (
        f"{record['model']} on {record['dataset']}; {hardware}; "
        f"TensorFlow {versions['tensorflow']}, Keras {versions['keras']}; "
        f"{environment['time'][:10]}"
    )
