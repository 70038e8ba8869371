"""Which combinations train: stock Keras and tfgpu, side by side.

    python experiments/combinations.py

Every cell of strategy x precision x XLA x steps per execution trains a small CNN (with
batch normalisation and dropout, on batches of which the last is partial) for two epochs
with each library; tfgpu with resident and with streaming input. The processor is split
into two virtual devices; two workers are two processes on the loopback interface. Each
cell has a process of its own and a time limit (`tfgpu.doctor.probe`, which
`tfgpu doctor --probe` runs too), so that one that aborts or hangs is seen as such. Writes
`experiments/results/combinations.json` and prints the README's table.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from versus import machine, write

from tfgpu.doctor import probe
from tfgpu.machine.runtime import PRECISIONS

STRATEGIES = {
    "one_device": "one_device",
    "mirrored x2": "mirrored",
    "multi_worker_mirrored x2": "multi_worker_mirrored",
}
STEPS = (1, 4, 100)  # The last is more than an epoch.
INPUTS = {"keras": ("tf.data",), "tfgpu": ("resident", "streaming")}
LIMIT = 240
"""Seconds for a cell."""


def measure(library: str, strategy: str, precision: str, jit: bool) -> list[dict[str, Any]]:
    """Trains a group of cells."""
    outcomes = []
    for steps, mode in itertools.product(STEPS, INPUTS[library]):
        cell = probe.Cell(
            library=library,
            strategy=STRATEGIES[strategy],
            precision=precision,
            jit_compile=jit,
            steps_per_execution=steps,
            input=mode,
        )
        outcome = probe.run(cell, limit=LIMIT)
        works = outcome.status == "works"
        told = {"loss": outcome.loss} if works else {"error": outcome.error}
        outcomes.append(
            {
                "library": library,
                "strategy": strategy,
                "precision": precision,
                "jit_compile": jit,
                "steps": steps,
                "input": mode,
                "works": works,
                **told,
            }
        )
    return outcomes


def table(cells: list[dict[str, Any]]) -> str:
    """The README's table: how many cells of each kind train."""
    lines = [
        "| strategy | XLA | steps per execution | stock Keras | tfgpu |",
        "| --- | --- | --- | --- | --- |",
    ]
    for strategy, jit, several in itertools.product(STRATEGIES, (False, True), (False, True)):
        row = [strategy, "on" if jit else "off", "4, more than an epoch" if several else "1"]
        for library in ("keras", "tfgpu"):
            chosen = [
                cell["works"]
                for cell in cells
                if cell["library"] == library
                and cell["strategy"] == strategy
                and cell["jit_compile"] == jit
                and (cell["steps"] > 1) == several
            ]
            row.append(f"{sum(chosen)} of {len(chosen)}")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs all groups."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--strategy", choices=list(STRATEGIES), help="measure this one again, and keep the others"
    )
    options = parser.parse_args()
    cells = []
    if options.strategy:
        known = json.loads((Path(__file__).parent / "results" / "combinations.json").read_text())
        cells = [cell for cell in known["cells"] if cell["strategy"] != options.strategy]
    chosen = [options.strategy] if options.strategy else STRATEGIES
    for kind in itertools.product(INPUTS, chosen, PRECISIONS, (False, True)):
        outcomes = measure(*kind)
        cells += outcomes
        works = sum(outcome["works"] for outcome in outcomes)
        print(*kind, f"{works} of {len(outcomes)} work", flush=True)
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    write("combinations.json", {"machine": machine(), "versions": versions, "cells": cells})
    print(table(cells))


if __name__ == "__main__":
    main()
