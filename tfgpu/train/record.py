"""The callback that keeps a run's files: metrics.jsonl, and the outcome for result.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.checkpoint import training_state
from tfgpu.checkpoint.backup_and_restore import BackupAndRestore
from tfgpu.cli.console import Console, Stopwatch
from tfgpu.data.examples import Examples
from tfgpu.errors import WorkError
from tfgpu.machine.hardware_monitor import HardwareMonitor
from tfgpu.train.progress import Timing
from tfgpu.train.recipe import Resolved

RESULT_FIELDS = (
    "status",
    "dataset",
    "model",
    "parameters",
    "strategy",
    "replicas",
    "precision",
    "jit_compile",
    "steps_per_execution",
    "batch_size",
    "epochs",
    "steps",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
    "identical_inputs",
    "samples_per_second",
    "train_seconds",
    "total_seconds",
    "time_spent",
    "hardware",
)
"""Of result.json, always all of them: null for what the run did not come to. Of a task with other
metrics it has these too, as NAME, val_NAME and test_NAME."""


def measured(metrics: Sequence[str]) -> list[str]:
    """The fields of result.json that are losses and metrics of a task."""
    return [f"{split}{name}" for split in ("", "val_", "test_") for name in (*metrics, "loss")]


def count_identical(
    outcome: dict[str, Any],
    split: str,
    examples: Examples,
    *,
    count: Callable[[Examples], int | None],
    unit: str,
    console: Console,
) -> None:
    """Says how many inputs of a split are in training too, and keeps it in the outcome.

    Args:
        outcome: Of the run.
        split: "validation" or "test".
        examples: Of that split.
        count: `Session.identical_inputs`.
        unit: What examples are called, in the plural.
        console: Where it is said.
    """
    found = count(examples)
    outcome["identical_inputs"] = (outcome["identical_inputs"] or {}) | {split: found}
    if found:
        console.say(
            f"{found:,} of {examples.num_examples:,} {split} {unit} are identical to training "
            f"{unit}: the figures on them tell less of new ones"
        )


def close_outcome(
    outcome: dict[str, Any],
    directory: RunDirectory,
    stopwatch: Stopwatch,
    monitor: HardwareMonitor | None,
    status: str,
) -> None:
    """Writes the outcome to result.json, with how the time was spent.

    Args:
        outcome: Of the run; is completed.
        directory: Of the run.
        stopwatch: Started with the process.
        monitor: Is stopped; None where there is none.
        status: How the run ended.
    """
    if monitor is not None:
        monitor.stop()
        outcome["hardware"] = monitor.summary()
    stopwatch.switch(stopwatch.phase)  # What goes on now is charged too.
    outcome["status"] = status
    outcome["total_seconds"] = stopwatch.total
    outcome["time_spent"] = dict(stopwatch.seconds)
    directory.write_result(outcome)


class Record(keras.callbacks.Callback):
    """Writes metrics.jsonl, a line an epoch, and keeps the outcome up to date."""

    def __init__(
        self,
        directory: RunDirectory,
        timing: Timing,
        outcome: dict[str, Any],
        config: Resolved,
        backup: BackupAndRestore,
        metrics: Sequence[str],
        warn: Callable[[str], None],
    ):
        super().__init__()
        self._warn = warn
        names = ("loss", *metrics)
        self._names = (*names, *(f"val_{name}" for name in names))
        self._directory = directory
        self._timing = timing
        self._outcome = outcome
        self._config = config
        self._backup = backup

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        done = self._outcome["epochs"] * self._timing.steps_per_epoch
        self._outcome["steps"] = done + self._timing.steps_done
        if not math.isfinite(self._timing.latest.get("loss", 0.0)):
            self._stop_broken()

    def check_weights(self) -> None:
        """Ends a training whose weights are not finite: the loss is that before the last update.

        Raises:
            WorkError: They are not.
        """
        name = training_state.not_finite(training_state.arrays_of(self.model))
        if name is not None:
            path = training_state.variables_of(self.model)[name].path
            self._stop_broken(f" ({path} is not)")

    def _stop_broken(self, what: str = "") -> None:
        """Ends a training that is not finite any more, and says where it broke."""
        steps = self._outcome["steps"]
        broken = self._backup.first_breakage(steps)
        where = f"within {steps} steps{what}"
        if broken is not None:
            self._outcome["steps"] = broken.step
            where = f"at step {broken.step}, first in the gradient of {broken.variable}{what}"
        raise WorkError(
            f"the training is not finite any more, {where}; the checkpoints before it are kept; "
            f"lower --learning_rate={self._config.learning_rate}, or set --clip_norm=1",
            page="checkpoints#how-a-run-ends",
        )

    def get_state(self) -> dict[str, Any]:
        """Returns what a resumed run has to know of the files and of the outcome."""
        names = ("epochs", "steps", *self._names)
        return {
            "metrics_bytes": self._directory.metrics_size(),
            "outcome": {name: self._outcome[name] for name in names},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes back to what `get_state` returned."""
        if missing := self._directory.truncate_metrics(state["metrics_bytes"]):
            self._warn(
                f"metrics.jsonl lacks {missing:,} bytes of what it held at the checkpoint: epochs "
                "before it are missing there; the training is not concerned"
            )
        self._outcome.update(state["outcome"])

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        values = {
            name: float(logs[name]) if logs and name in logs else None for name in self._names
        }
        self._outcome.update(values, epochs=epoch + 1)
        self._directory.append_metrics(
            {
                "epoch": epoch + 1,
                "step": self._outcome["steps"],
                **values,
                "samples_per_second": self._timing.samples_per_second,
                "seconds": self._timing.epoch_seconds,
            }
        )
