"""What the experiments on tasks share: a random split, a training, and the rate beside Keras."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from versus import TrainingProcess, children_seconds, compare, interleave, spread


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with open(file, encoding="utf-8-sig", newline="") as opened:
        return list(csv.DictReader(opened))


def split(
    rows: Sequence[dict[str, str]], count: int, seed: int, folder: Path, *, columns: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Writes train.csv and, of `count` rows at random, test.csv; returns the rows' numbers."""
    order = np.random.RandomState(seed).permutation(len(rows))
    parts = {"test": order[:count], "train": order[count:]}
    for name, some in parts.items():
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows[i] for i in some)
    return parts["train"], parts["test"]


def train(dataset: str, flags: Sequence[str], seed: int) -> dict[str, Any]:
    """One training in a process of its own: its result.json, with what the process took.

    That is "process_seconds" and, of the processor, "user_seconds".
    """
    with tempfile.TemporaryDirectory() as place:
        flags = _flags(dataset, flags, seed, f"{place}/run")
        command = [sys.executable, "-m", "tfgpu.train", *flags]
        start, before = time.perf_counter(), children_seconds()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds, user = time.perf_counter() - start, children_seconds() - before
        result = json.loads(Path(place, "run", "result.json").read_text())
    return {**result, "process_seconds": seconds, "user_seconds": user}


def _flags(dataset: str, flags: Sequence[str], seed: int, run_dir: str) -> list[str]:
    return [
        *(f"--dataset={dataset}", "--validation_fraction=0", f"--seed={seed}"),
        *(f"--run_dir={run_dir}", *flags),
    ]


_WORKER = """
import json, sys
from tfgpu.cli import entry
from tfgpu.evaluate import __main__ as evaluate
from tfgpu.train import __main__ as train
for command, argv in json.loads(sys.argv[1]):
    try:
        entry.run({"train": train, "evaluate": evaluate}[command].main, argv)
    except SystemExit as stop:
        if stop.code:
            raise
"""


def train_all(
    datasets: Sequence[str], flags: Sequence[str], seed: int
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """A training for each data set, one after another in one process, and its evaluation.

    Returns:
        The contents of result.json and of evaluation.json, which is of the test split.
    """
    with tempfile.TemporaryDirectory() as place:
        commands = []
        for i, dataset in enumerate(datasets):
            run_dir = f"{place}/{i}"
            commands.append(["train", _flags(dataset, flags, seed, run_dir)])
            commands.append(["evaluate", [f"--run_dir={run_dir}", f"--out={run_dir}/found"]])
        worker = [sys.executable, "-c", _WORKER, json.dumps(commands)]
        subprocess.run(worker, check=True, stdout=subprocess.DEVNULL)
        files = ("result.json", "found/evaluation.json")
        found = []
        for i in range(len(datasets)):
            result, evaluation = (Path(place, str(i), file).read_text() for file in files)
            found.append((json.loads(result), json.loads(evaluation)))
        return found


def throughput(options: Mapping[str, Any], *, rounds: int) -> dict[str, Any]:
    """Examples/s of plain Keras and of tfgpu, in turn; `options` are `versus.task_worker`'s."""
    processes = [
        TrainingProcess(engine, "task", options={"engine": engine, **options})
        for engine in ("keras", "tfgpu")
    ]
    try:
        stock, ours = interleave(processes, rounds=rounds)
    finally:
        for process in processes:
            process.close()
    return {"keras": spread(stock), "tfgpu": spread(ours), "ratio": compare(ours, stock)}
