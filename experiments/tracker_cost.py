"""What `--log_to=mlflow` and `--log_to=wandb` cost a training of `lenet` at batch 512.

    python experiments/tracker_cost.py

Trains with what the flag adds and without it, in processes of their own that take turns of one
epoch of CIFAR-10's size (98 steps), and compares neighbours. MLflow keeps its runs in a file of
SQLite, W&B in offline files: nothing leaves the machine. The first epochs, while the libraries are
imported, are left out; what that takes is measured apart, as user processor time of the process
that sends, which no other work on the machine stretches: for a run of one epoch, and for each
epoch more. Needs the extras mlflow and wandb. Takes about four minutes. Writes
`experiments/results/tracker_cost.json`; see `versus.py` for how it is measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from versus import (
    TrainingProcess,
    arguments,
    children_seconds,
    compare,
    interleave,
    machine,
    spread,
    write,
)

STEPS = 98
HARDWARE_INTERVAL = 2.0  # The default, with and without a tracker.
SETTLED = 60.0  # Seconds until the libraries are imported, on a machine that is busy.
TRACKERS = ("mlflow", "wandb")
EPOCHS = 101


def main() -> None:
    """Runs the comparison."""
    parser = arguments(__doc__.splitlines()[0])
    parser.set_defaults(batch_sizes="512", rounds=27)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    batch_size = int(options.batch_sizes)
    with tempfile.TemporaryDirectory() as folder:
        environment = local(Path(folder))
        settings = {
            "batch_size": batch_size,
            "steps": STEPS,
            "hardware_interval": HARDWARE_INTERVAL,
        }
        processes = [
            TrainingProcess(
                name, "tfgpu", options={**settings, "log_to": name}, environment=environment
            )
            for name in ("none", *TRACKERS)
        ]
        try:
            began = time.monotonic()
            while time.monotonic() - began < SETTLED:
                for process in processes:
                    process.rate()
            rates = dict(
                zip(
                    ("none", *TRACKERS),
                    interleave(processes, rounds=options.rounds),
                    strict=True,
                )
            )
        finally:
            for process in processes:
                process.close()
        rows = []
        for name in TRACKERS:
            ratio = compare(rates["none"], rates[name])
            seconds = [of_sending(name, environment) for _ in range(options.repetitions)]
            row: dict[str, Any] = {
                "tracker": name,
                "version": importlib.metadata.version(name),
                "with": spread(rates[name]),
                "without_over_with": ratio,
                "processor_seconds_of_a_run": spread([one for one, _ in seconds]),
                "processor_seconds_an_epoch": spread([more for _, more in seconds]),
                "repetitions": options.repetitions,
            }
            rows.append(row)
            print(
                f"{name}: training without is {ratio['median']:.3f} times as fast "
                f"({ratio['low']:.3f} to {ratio['high']:.3f}), n={options.rounds}; a run of one "
                f"epoch takes {row['processor_seconds_of_a_run']['median']:.2f} s of a processor, "
                f"each more {1e3 * row['processor_seconds_an_epoch']['median']:.1f} ms, "
                f"n={options.repetitions}"
            )
    write(
        "tracker_cost.json",
        {
            "unit": "samples/s",
            "machine": machine(),
            "versions": processes[0].versions,
            "batch_size": batch_size,
            "steps_an_epoch": STEPS,
            "rounds": options.rounds,
            "without": spread(rates["none"]),
            "rows": rows,
        },
    )


def local(folder: Path) -> dict[str, str]:
    """Variables with which both trackers keep to a folder."""
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "WANDB_MODE": "offline",
    }


def tracking(folder: Path, log_to: str, *, steps: int, monitor: Any) -> list[Any]:
    """The callbacks that `--log_to` adds, with the file of metrics that they read."""
    import keras

    from tfgpu.artifacts.run_directory import RunDirectory
    from tfgpu.cli.console import Console
    from tfgpu.train.tracking import Tracking, TrackingCallback

    directory, done = RunDirectory(folder), types.SimpleNamespace(steps_done=0)

    def end(epoch: int, logs: Mapping[str, float]) -> None:
        done.steps_done = (epoch + 1) * steps
        directory.append_metrics({"epoch": epoch + 1, "step": done.steps_done, **logs})

    console = Console(progress="none", file=sys.stderr)
    tracked = Tracking(folder, log_to.split(","), console=console)
    backup: Any = done
    return [
        keras.callbacks.LambdaCallback(on_epoch_end=end),
        TrackingCallback(tracked, backup, monitor=monitor, report=None),
    ]


def of_sending(tracker: str, environment: dict[str, str]) -> tuple[float, float]:
    """User processor seconds of sending a run of one epoch, and of each epoch more."""
    one, many = (_sent(tracker, environment, epochs=epochs) for epochs in (1, EPOCHS))
    return one, (many - one) / (EPOCHS - 1)


def _sent(tracker: str, environment: dict[str, str], *, epochs: int) -> float:
    from tfgpu.trackers.client import Sender
    from tfgpu.trackers.run_record import RunRecord

    os.environ.update(environment)
    with tempfile.TemporaryDirectory() as folder:
        record = RunRecord(Path(folder))
        record.begin()
        lines = [
            {"epoch": n, "step": n * STEPS, "loss": 1 / n, "accuracy": 0.5, "seconds": 1.0}
            for n in range(1, epochs + 1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (record.run_dir / "metrics.jsonl").write_text(text)
        record.complete()
        before = children_seconds()
        sender = Sender(record, tracker, warn=print)
        sender.end("finished")
        if not sender.wait(say=lambda text: None):
            raise RuntimeError(f"{tracker} did not get everything")
        return children_seconds() - before


if __name__ == "__main__":
    main()
