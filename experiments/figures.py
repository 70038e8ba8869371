"""Runs each recipe here with three seeds and writes the figures that the README quotes.

    python experiments/figures.py [digits] [cifar10] [cifar10_tuned]

Writes `experiments/results/figures.json`: for each seed test accuracy, training time and
the wall time of the whole process, TensorFlow's import included, with their medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from versus import machine, write

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)


def measure(recipe: str) -> dict[str, Any]:
    """Trains a recipe with each seed, in processes of their own."""
    runs = []
    environment: dict[str, Any] = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / "run"
            command = [
                *(sys.executable, "-m", "tfgpu.train"),
                f"--experiment={HERE / recipe}.py",
                f"--seed={seed}",
                f"--run_dir={directory}",
            ]
            start = time.perf_counter()
            subprocess.run(command, check=True, cwd=HERE.parent, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            result = json.loads((directory / "result.json").read_text())
            environment = json.loads((directory / "environment.json").read_text())
        kept = ("test_accuracy", "test_loss", "train_seconds", "samples_per_second")
        runs.append(
            {"seed": seed, **{name: result[name] for name in kept}, "process_seconds": seconds}
        )
        print(
            f"{recipe:<10} seed {seed}  test accuracy {result['test_accuracy']:.4f}  "
            f"training {result['train_seconds']:.1f} s  process {seconds:.1f} s",
            flush=True,
        )
    names = [name for name in runs[0] if name != "seed"]
    median = {name: statistics.median(run[name] for run in runs) for name in names}
    return {
        "command": f"python -m tfgpu.train --experiment=experiments/{recipe}.py",
        "dataset": {key: environment["dataset"][key] for key in ("name", "version", "fingerprint")},
        "versions": environment["versions"],
        "median": median,
        "runs": runs,
    }


def main() -> None:
    """Measures the recipes named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=["digits", "cifar10", "cifar10_tuned"])
    recipes = {recipe: measure(recipe) for recipe in parser.parse_args().recipes}
    write("figures.json", {"machine": machine(), "recipes": recipes})


if __name__ == "__main__":
    main()
