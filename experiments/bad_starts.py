"""What two workers do about each thing that goes wrong: exit codes, seconds, and what they say.

    python experiments/bad_starts.py

Starts real processes on loopback, with the digits, in a temporary folder. Seconds count from the
start of the processes where it goes wrong at the start, else from the signal. Each case runs
`--rounds` times. Writes `experiments/results/bad_starts.json` and the table in
docs/several_machines.md; takes 6 minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from versus import machine, write

from tfgpu.cli.startup import child_environment

FLAGS = ("--dataset=digits", "--devices=CPU:0", "--tensorboard=none", "--epochs=100000")
PAGE = Path(__file__).resolve().parents[1] / "docs" / "several_machines.md"
LIMIT = 120.0  # Seconds, after which what has not ended is killed: code -9.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that goes wrong.

    Attributes:
        what: For the table.
        flags: Of both workers, beside `FLAGS`.
        own: Of one worker more, by its number.
        absent: Worker 1 is not started.
        indices: What TF_CONFIG says of each.
        addresses: In the place of free ones.
        taken: The worker whose port something else listens on.
        tokens: Of each.
        sent: A signal, with the worker that gets it, after two epochs.
        waiting: The signal goes out after two seconds of waiting for the other.
        command: Which is started.
        images: How many of each of two classes each has to train on, in the place of the digits.
        workers: How many there are.
    """

    what: str
    flags: Sequence[str] = ()
    own: Mapping[int, Sequence[str]] = dataclasses.field(default_factory=dict)
    absent: bool = False
    indices: tuple[int, ...] = (0, 1, 2)
    addresses: tuple[str, str] | None = None
    taken: int | None = None
    tokens: tuple[str, ...] = ("secret", "secret", "secret")
    sent: tuple[signal.Signals, int] | None = None
    waiting: bool = False
    command: str = "train"
    images: tuple[int, ...] | None = None
    workers: int = 2


CASES = (
    Case(what="SIGTERM to worker 1", sent=(signal.SIGTERM, 1)),
    Case(what="SIGINT to the chief", sent=(signal.SIGINT, 0)),
    Case(what="`kill -9` of worker 1", sent=(signal.SIGKILL, 1)),
    Case(what="`kill -9` of the chief", sent=(signal.SIGKILL, 0)),
    Case(what="worker 1 stands still (SIGSTOP)", sent=(signal.SIGSTOP, 1)),
    Case(what="other `--seed`", own={1: ["--seed=1"]}),
    Case(what="other `--learning_rate`", own={1: ["--learning_rate=0.5"]}),
    Case(what="other data", images=(40, 41)),
    Case(what="worker 1 never comes, `--join_timeout=9`", flags=["--join_timeout=9"], absent=True),
    Case(what="Ctrl-C while waiting for worker 1", absent=True, waiting=True),
    Case(what="the chief's port is taken", taken=0),
    Case(what="worker 1's port is taken", taken=1),
    Case(what="two workers with index 0", indices=(0, 0)),
    Case(what="port 99999 in TF_CONFIG", addresses=("127.0.0.1:99999", "127.0.0.1:2222")),
    Case(what="another token, `--join_timeout=9`", flags=["--join_timeout=9"], tokens=("a", "b")),
    Case(what="more workers than examples", images=(1, 1, 1), workers=3),
    Case(what="`tune`", command="tune"),
)


def run(case: Case, place: Path) -> dict[str, Any]:
    """Starts the workers, has them go wrong, and says how each ended."""
    path = place / "run"
    flags = [*FLAGS, *case.flags]
    if case.images:
        flags += ["--dataset=folder:images", "--validation_fraction=0"]
    with contextlib.ExitStack() as stack:
        addresses = list(case.addresses or _free(case.workers))
        if case.taken is not None:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            addresses[case.taken] = f"127.0.0.1:{listener.getsockname()[1]}"
        started = 1 if case.absent else case.workers
        folders = [place / f"worker{rank}" for rank in range(started)]
        for folder, count in zip(folders, case.images or (0, 0), strict=False):
            for part, some in (("train", count), ("test", 1)):
                for name in ("light", "dark"):
                    _write_images(folder / "images" / part / name, some)
        began = time.monotonic()
        processes = []
        for rank, folder in enumerate(folders):
            task = {"type": "worker", "index": case.indices[rank]}
            config = {"cluster": {"worker": addresses}, "task": task}
            variables = {
                "TF_CONFIG": json.dumps(config),
                "TFGPU_CLUSTER_TOKEN": case.tokens[rank],
            }
            argv = [sys.executable, "-m", f"tfgpu.{case.command}"]
            argv += [*flags, "--strategy=multi_worker_mirrored"]
            argv += [f"--run_dir={path}{rank or ''}", *case.own.get(rank, ())]
            processes.append(
                subprocess.Popen(
                    argv,
                    cwd=folder,
                    env=child_environment(os.environ | variables),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        if case.waiting:
            time.sleep(2)
            began = time.monotonic()
            processes[0].send_signal(signal.SIGINT)
        if case.sent:
            _await_epoch(path / "log.txt", processes)
            began = time.monotonic()
            number, rank = case.sent
            processes[rank].send_signal(number)
        ends = _ends(processes, began, stands=case.sent and case.sent[0] == signal.SIGSTOP)
    return {
        "codes": [end[0] for end in ends],
        "seconds": [end[1] for end in ends],
        "said": [end[2].replace(f"{place}/", "") for end in ends],
        "run_directory": path.exists(),
    }


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(len(folder.name))
    for number in range(count):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def _free(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def _await_epoch(log: Path, processes: Sequence[subprocess.Popen[str]]) -> None:
    end = time.monotonic() + LIMIT
    while not (log.exists() and "epoch      2/" in log.read_text()):
        if time.monotonic() > end or any(each.poll() is not None for each in processes):
            raise SystemExit("the workers did not train")
        time.sleep(0.02)


def _ends(
    processes: Sequence[subprocess.Popen[str]], began: float, *, stands: bool | None
) -> list[tuple[int, float, str]]:
    """Exit code, seconds and last line of each; one that stands goes on after the other's end."""
    ends: dict[int, tuple[int, float, str]] = {}

    def wait(rank: int, process: subprocess.Popen[str]) -> None:
        _, said = process.communicate()
        line = (said.splitlines() or [""])[-1]
        ends[rank] = (process.returncode, time.monotonic() - began, line)
        if stands:
            for each in processes:
                if each.poll() is None:
                    each.send_signal(signal.SIGCONT)

    threads = [threading.Thread(target=wait, args=each) for each in enumerate(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, began + LIMIT - time.monotonic()))
    for process in processes:
        process.kill()
    for thread in threads:
        thread.join()
    return [ends[rank] for rank in range(len(processes))]


def table(found: Mapping[str, Any]) -> str:
    """The table in Markdown."""
    lines = ["| what | exit codes | seconds |", "| --- | --- | --- |"]
    for what, runs in found["cases"].items():
        codes = sorted({tuple(run["codes"]) for run in runs})
        shown = "; ".join(", ".join(map(str, each)) for each in codes)
        times = [max(run["seconds"]) for run in runs]
        middle = f"{statistics.median(times):.1f} ({min(times):.1f}-{max(times):.1f})"
        lines.append(f"| {what} | {shown} | {middle} |")
    return "\n".join(lines)


def with_table(page: str, found: Mapping[str, Any]) -> str:
    """The page with the table of these results."""
    start, end = "<!-- bad starts -->\n", "\n<!-- /bad starts -->"
    before, _, rest = page.partition(start)
    return before + start + table(found) + end + rest.partition(end)[2]


def main() -> None:
    """Runs every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cases: dict[str, list[dict[str, Any]]] = {case.what: [] for case in CASES}
    for _ in range(options.rounds):
        for case in CASES:
            with tempfile.TemporaryDirectory() as place:
                cases[case.what].append(run(case, Path(place)))
            last = cases[case.what][-1]
            print(f"{case.what}: {last['codes']}, {max(last['seconds']):.1f} s", flush=True)
            for line in last["said"]:
                print(f"    {line}", flush=True)
    found = {"machine": machine(), "rounds": options.rounds, "cases": cases}
    write("bad_starts.json", found)
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
