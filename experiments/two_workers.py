"""Two workers with a core each against one process with two virtual devices.

    python experiments/two_workers.py

The workers are bound to a core each and talk over loopback; the one process has both cores. Turn
by turn, they train an epoch of `lenet` at a batch of 512 on CIFAR-10, where it is prepared for TFDS
(TFDS_DATA_DIR), else on noise of its size: samples/s. Then they are started in turn, for the time
from the start of the process to the end of the first execution, and for the seconds of validation
in 30 epochs of digits. Neighbours are compared. Rounds in which other processes took more than a
tenth of the CPU are repeated. On 2 idle cores of an AMD EPYC it takes 12 minutes. Writes
`experiments/results/two_workers.json`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from versus import compare, machine, spread, write

from tfgpu.bench import interleaved_timing

QUIET = 0.1
"""The share of the CPU up to which other processes are let be."""

STEADY = ("training", "waiting for input")
"""What an epoch of training is charged to, without first executions."""

LIMITS = {"samples_per_second": 0.9, "first_step_seconds": 1.5, "validation_seconds": 1.5}
"""What the workers' value over the one process's has to reach, or may not exceed."""


def main() -> None:
    """Runs the turns and the starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="starts of each")
    parser.add_argument("--turns", type=int, default=25, help="epochs of each")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "starts": options.rounds}
    with tempfile.TemporaryDirectory() as folder:
        dataset = _dataset(Path(folder))
        found["dataset"] = dataset.partition(":")[0]
        quiet = ["--tensorboard=none", "--progress=none"]
        images = [f"--dataset={dataset}", "--batch_size=512", *quiet]
        digits = ["--dataset=digits", *quiet]
        # In an epoch, without those of validation.
        examples = 45_000 if dataset == "cifar10" else 9_000
        rates, shares = turns([*images, "--epochs=1000"], examples=examples, count=options.turns)
        found["samples_per_second"] = _compared(*_column(rates, "samples_per_second"))
        found["cpu_seconds_of_an_epoch"] = _compared(*_column(rates, "cpu_seconds"))
        found["others_share_of_turns"] = shares
        cases = {"": [*images, "--epochs=1"], "_of_digits": [*digits, "--epochs=30"]}
        for name, flags in cases.items():
            start = functools.partial(started, flags, Path(folder))
            pairs, shares = quiet_rounds(start, count=options.rounds)
            found["first_step_seconds" + name] = _compared(*_column(pairs, "first_step_seconds"))
            found["others_share_of_starts" + name] = shares
        found["validation_seconds"] = _compared(*_column(pairs, "validation_seconds"))
    for measure, limit in LIMITS.items():
        ratio = found[measure]["ratio"]
        print(
            f"{measure} of two workers over one process: {ratio['median']:.2f} "
            f"({ratio['low']:.2f} to {ratio['high']:.2f}), limit {limit}; medians "
            f"{found[measure]['medians'][0]:,.2f} and {found[measure]['medians'][1]:,.2f}"
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


Pair = tuple[dict[str, float], dict[str, float]]


def _column(starts: Sequence[Pair], measure: str) -> tuple[list[float], list[float]]:
    return [workers[measure] for workers, _ in starts], [one[measure] for _, one in starts]


def _compared(workers: Sequence[float], one: Sequence[float]) -> dict[str, Any]:
    return {
        "two_workers": workers,
        "one_process": one,
        "medians": [spread(workers)["median"], spread(one)["median"]],
        "ratio": compare(workers, one),
    }


def _of_two_workers(flags: Sequence[str]) -> list[tuple[list[str], dict[str, str], set[int]]]:
    """The flags, the variables and the cores of each worker."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    hosts = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    tasks = [
        {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        for index in range(2)
    ]
    flags = ["--strategy=multi_worker_mirrored", *flags]
    return [(flags, {"TF_CONFIG": json.dumps(tasks[index])}, {index}) for index in range(2)]


def _of_one_process(flags: Sequence[str]) -> list[tuple[list[str], dict[str, str], set[int]]]:
    return [(["--strategy=mirrored", "--virtual_devices=2", *flags], {}, {0, 1})]


def quiet_rounds(
    measure: Callable[[], tuple[Pair, float]], *, count: int
) -> tuple[list[Pair], list[float]]:
    """Repeats a measurement until enough were undisturbed.

    Args:
        measure: Returns what was measured, and the CPU seconds of its own processes.
        count: How many are wanted; of at most three times as many the least disturbed are taken.

    Returns:
        What was measured, and the share of the CPU that other processes took meanwhile.
    """
    rounds: list[tuple[float, Pair]] = []
    for _ in range(3 * count):
        busy, start = _busy(), time.perf_counter()
        pair, own = measure()
        spent = (time.perf_counter() - start) * (os.cpu_count() or 1)
        rounds.append((max(0.0, _busy() - busy - own) / spent, pair))
        print(f"{rounds[-1][0]:.0%} others", pair, flush=True)
        if sum(share <= QUIET for share, _ in rounds) == count:
            break
    rounds.sort(key=lambda one: one[0])
    return [pair for _, pair in rounds[:count]], [share for share, _ in rounds[:count]]


def _busy() -> float:
    """CPU seconds of all processes since the machine was started."""
    user, nice, system, _, _, interrupts, soft, steal, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    ticks: int = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + interrupts + soft + steal) / ticks


def turns(flags: Sequence[str], *, examples: int, count: int) -> tuple[list[Pair], list[float]]:
    """Epochs that two workers and one process train in turn, without the first."""
    jobs: list[list[interleaved_timing.MeasuredProcess]] = []
    pool = concurrent.futures.ThreadPoolExecutor(2)

    def epoch(job: list[interleaved_timing.MeasuredProcess]) -> list[dict[str, float]]:
        # All wait between turns: one that waits for a sum of the others takes some of a core.
        return [each.result() for each in [pool.submit(each.ask, "go") for each in job]]

    def turn() -> tuple[Pair, float]:
        workers, one = map(epoch, jobs)
        cpu = [sum(each["cpu_seconds"] for each in job) for job in (workers, one)]
        return (workers[0] | {"cpu_seconds": cpu[0]}, one[0] | {"cpu_seconds": cpu[1]}), sum(cpu)

    try:
        for kind in (_of_two_workers, _of_one_process):
            jobs.append([])
            for of_one, variables, cores in kind(flags):
                order = {"cores": sorted(cores), "turns": examples}
                command, environment = _command(of_one, order)
                jobs[-1].append(
                    interleaved_timing.MeasuredProcess(command, environment=environment | variables)
                )
            for each in jobs[-1]:
                each.read()
        return quiet_rounds(turn, count=count)
    finally:
        for job in jobs:
            for each in job:
                each.close()


def started(flags: Sequence[str], folder: Path) -> tuple[Pair, float]:
    """Trains with two workers and then with one process; what each measured, and CPU seconds."""
    found, before = [], os.times()
    for kind in (_of_two_workers, _of_one_process):
        out = folder / "measured.json"
        processes = []
        for number, (of_one, variables, cores) in enumerate(kind(flags)):
            order = {"begun": time.time(), "cores": sorted(cores)}
            command, environment = _command(of_one, order | ({} if number else {"out": str(out)}))
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment | variables,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        found.append(_finished(processes, out))
    after = os.times()
    own = after.children_user + after.children_system
    own -= before.children_user + before.children_system
    return (found[0], found[1]), own


def _command(flags: Sequence[str], order: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    with tempfile.TemporaryDirectory() as run_dir:  # A name that is free.
        path = run_dir
    root = str(Path(__file__).resolve().parent.parent)
    search = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, __file__, "TRAIN", json.dumps(order), f"--run_dir={path}", *flags]
    return command, os.environ | {"PYTHONPATH": search}


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
    """Trains as the command does, and tells when its first execution had ended.

    Args:
        order: "cores"; "out", a file for what was measured, and "begun", when the process was
            started; "turns", the examples of an epoch, after which to wait until a line comes.
        argv: Flags of `tfgpu train`.
    """
    os.sched_setaffinity(0, order["cores"])
    from tfgpu.cli import console, flags
    from tfgpu.train import __main__ as command
    from tfgpu.train.settings import TrainSettings

    class Noting(console.Stopwatch):
        """Notes when the first execution is charged; waits where validation begins."""

        made: list[Noting] = []

        def __init__(self, **arguments: Any):
            super().__init__(**arguments)
            self.first: float | None = None
            self.trained = 0.0
            self.cpu = 0.0
            self.made.append(self)

        def move(self, seconds: float, *, source: str, target: str) -> None:
            if self.first is None and source == "training":
                self.first = time.time()
            super().move(seconds, source=source, target=target)

        def switch(self, phase: str) -> float:
            spent = super().switch(phase)
            if order.get("turns") and phase == "validation":
                steady = sum(self.seconds.get(name, 0.0) for name in STEADY)
                trained, self.trained = steady - self.trained, steady
                cpu, self.cpu = time.process_time() - self.cpu, time.process_time()
                # The first answer, of an epoch that compiles, says that all is ready.
                interleaved_timing.answer(
                    {"samples_per_second": order["turns"] / (trained or 1.0), "cpu_seconds": cpu}
                )
                sys.stdin.readline()
                self.switch("other")
                super().switch(phase)
            return spent

    console.Stopwatch = Noting  # type: ignore[misc]
    config: TrainSettings = flags.parse(list(argv))
    command.train(config)
    stopwatch = Noting.made[0]
    assert stopwatch.first is not None
    if "out" in order:
        measured = {
            "first_step_seconds": stopwatch.first - order["begun"],
            "validation_seconds": stopwatch.seconds["validation"],
            "total_seconds": time.time() - order["begun"],
        }
        Path(order["out"]).write_text(json.dumps(measured))


if __name__ == "__main__":
    if sys.argv[1:2] == ["TRAIN"]:
        train(json.loads(sys.argv[2]), sys.argv[3:])
    else:
        main()
