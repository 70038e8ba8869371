"""Two workers with a core each against one process with two virtual devices.

    python experiments/two_workers.py

Starts both in turn, round by round, and compares neighbours: `lenet` at a batch of 512 on
CIFAR-10, where it is prepared for TFDS (TFDS_DATA_DIR), else on noise of its size, for samples/s
and the time from the start of the process to the end of the first execution; and 30 epochs of
digits, for the seconds of validation. The workers are bound to a core each and talk over loopback;
the one process has both cores. On 2 cores of an AMD EPYC the 7 rounds take 20 minutes. Writes
`experiments/results/two_workers.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versus import compare, machine, spread, write

LIMITS = {"samples_per_second": 0.9, "first_step_seconds": 1.5, "validation_seconds": 1.5}
"""What the workers' value over the one process's has to reach, or may not exceed."""


def main() -> None:
    """Runs the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = _dataset(Path(folder))
        cases = {
            dataset.partition(":")[0]: [f"--dataset={dataset}", "--batch_size=512", "--epochs=3"],
            "digits": ["--dataset=digits", "--epochs=30"],
        }
        found: dict[str, Any] = {"machine": machine(), "rounds": options.rounds}
        for name, flags in cases.items():
            flags += ["--tensorboard=none", "--progress=none"]
            workers, one = [], []
            for number in range(options.rounds):
                workers.append(two_workers(flags, Path(folder)))
                one.append(one_process(flags, Path(folder)))
                print(f"{name} {number + 1}/{options.rounds}: {workers[-1]} {one[-1]}", flush=True)
            found[name] = {"flags": flags} | _compared(workers, one)
            for measure, limit in LIMITS.items():
                ratio = found[name][measure]["ratio"]
                print(
                    f"{name}: {measure} of two workers over one process: {ratio['median']:.2f} "
                    f"({ratio['low']:.2f} to {ratio['high']:.2f}), limit {limit}"
                )
        write("two_workers.json", found)


def _dataset(folder: Path) -> str:
    prepared = os.environ.get("TFDS_DATA_DIR")
    if prepared and (Path(prepared) / "cifar10").is_dir():
        return "cifar10"
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for label in range(10):
        place = folder / "noise" / "train" / str(label)
        place.mkdir(parents=True)
        for number in range(1000):
            pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    return f"folder:{folder / 'noise'}"


def _compared(
    workers: Sequence[Mapping[str, float]], one: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    return {
        measure: {
            "two_workers": (some := [values[measure] for values in workers]),
            "one_process": (others := [values[measure] for values in one]),
            "medians": [spread(some)["median"], spread(others)["median"]],
            "ratio": compare(some, others),
        }
        for measure in LIMITS
    }


def two_workers(flags: Sequence[str], folder: Path) -> dict[str, float]:
    """Trains with two workers; what the chief measured."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    hosts = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        processes.append(
            _start(
                ["--strategy=multi_worker_mirrored", *flags],
                folder / f"worker{index}.json",
                cores={index},
                TF_CONFIG=json.dumps(task),
            )
        )
    return _finished(processes, folder / "worker0.json")


def one_process(flags: Sequence[str], folder: Path) -> dict[str, float]:
    """Trains with two virtual devices of one process."""
    flags = ["--strategy=mirrored", "--virtual_devices=2", *flags]
    process = _start(flags, folder / "one.json", cores={0, 1})
    return _finished([process], folder / "one.json")


def _start(
    flags: Sequence[str], out: Path, *, cores: set[int], **variables: str
) -> subprocess.Popen[str]:
    with tempfile.TemporaryDirectory() as run_dir:  # A name that is free.
        path = run_dir
    root = Path(__file__).resolve().parent.parent
    variables["PYTHONPATH"] = os.pathsep.join(
        [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    order = {"begun": time.time(), "out": str(out), "cores": sorted(cores)}
    return subprocess.Popen(
        [sys.executable, __file__, "TRAIN", json.dumps(order), f"--run_dir={path}", *flags],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finished(processes: Sequence[subprocess.Popen[str]], out: Path) -> dict[str, float]:
    try:
        for process in processes:
            said, _ = process.communicate(timeout=600)
            if process.returncode:
                raise SystemExit(f"a training ended with {process.returncode}:\n{said}")
    finally:
        for process in processes:
            process.kill()
    measured: dict[str, float] = json.loads(out.read_text())
    return measured


# ---- in the processes that train -------------------------------------------------------------


def train(order: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Trains as the command does, and writes down when its first execution had ended."""
    os.sched_setaffinity(0, order["cores"])
    from tfgpu.cli import console, flags
    from tfgpu.train import __main__ as command
    from tfgpu.train.settings import TrainSettings

    class Noting(console.Stopwatch):
        """Notes when the first execution is charged, and all that is."""

        first: float | None = None
        made: list[Noting] = []

        def __init__(self, **arguments: Any):
            super().__init__(**arguments)
            self.made.append(self)

        def move(self, seconds: float, *, source: str, target: str) -> None:
            if self.first is None and source == "training":
                self.first = time.time()
            super().move(seconds, source=source, target=target)

    console.Stopwatch = Noting  # type: ignore[misc]
    config: TrainSettings = flags.parse(list(argv))
    result = command.train(config)
    stopwatch = Noting.made[0]
    assert stopwatch.first is not None
    Path(order["out"]).write_text(
        json.dumps(
            {
                "samples_per_second": result["samples_per_second"],
                "first_step_seconds": stopwatch.first - order["begun"],
                "validation_seconds": stopwatch.seconds["validation"],
                "total_seconds": time.time() - order["begun"],
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["TRAIN"]:
        train(json.loads(sys.argv[2]), sys.argv[3:])
    else:
        main()
