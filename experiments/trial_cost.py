"""What a trial of `tfgpu tune` costs beyond its training.

    python experiments/trial_cost.py [--dataset=cifar10]

Runs a random search of twelve trials of three epochs, one worker, and takes from the time between
the beginnings of two neighbouring trials what the first of them spent on training, on waiting for
its input, on validation and on its first execution (tracing and compilation). What is left is
reading settings, building the model, files, and the way to the next trial. Takes about a minute
with the digits. Writes `experiments/results/trial_cost.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from versus import machine, spread, write

TRIALS = 12
WANTED = ("training", "waiting for input", "validation", "compilation, first execution")


def costs(trials: list[dict[str, Any]]) -> list[float]:
    """Seconds that each trial but the last took beside what is wanted of it."""
    return [
        following["started"] - trial["started"] - sum(trial["where"].get(k, 0.0) for k in WANTED)
        for trial, following in zip(trials, trials[1:], strict=False)
    ]


def main() -> None:
    """Runs the search and sums up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "search"
        command = [
            *(sys.executable, "-m", "tfgpu.tune", f"--dataset={options.dataset}"),
            *("--tuner=random", f"--max_trials={TRIALS}", "--epochs=3", "--final_seeds=0"),
            f"--run_dir={place}",
        ]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        lines = (place / "trials.jsonl").read_text().splitlines()
    trials = [json.loads(line) for line in lines]
    beside = costs(trials)
    quartiles = spread(beside)
    where = {
        name: statistics.median(trial["where"].get(name, 0.0) for trial in trials)
        for name in {name for trial in trials for name in trial["where"]}
    }
    print(
        "a trial costs {median:.2f} s ({low:.2f} to {high:.2f}) beside ".format(**quartiles)
        + f"training, validation, tracing and compilation, n={len(beside)}"
    )
    write(
        "trial_cost.json",
        {
            "unit": "seconds",
            "machine": machine(),
            "dataset": options.dataset,
            "costs": beside,
            **quartiles,
            "median_of_each_part": dict(sorted(where.items(), key=lambda part: -part[1])),
        },
    )


if __name__ == "__main__":
    main()
