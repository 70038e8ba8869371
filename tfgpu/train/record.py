"""The callback that keeps a run's files: metrics.jsonl, and the outcome for result.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras

from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.checkpoint.backup_and_restore import BackupAndRestore
from tfgpu.errors import WorkError
from tfgpu.train.progress import Timing
from tfgpu.train.recipe import Resolved


class Record(keras.callbacks.Callback):
    """Writes metrics.jsonl, a line an epoch, and keeps the outcome up to date."""

    def __init__(
        self,
        directory: RunDirectory,
        timing: Timing,
        outcome: dict[str, Any],
        config: Resolved,
        backup: BackupAndRestore,
    ):
        super().__init__()
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

    def _stop_broken(self) -> None:
        """Ends a training that is not finite any more, and says where it broke."""
        steps = self._outcome["steps"]
        broken = self._backup.first_breakage(steps)
        where = f"within {steps} steps"
        if broken is not None:
            self._outcome["steps"] = broken.step
            where = f"at step {broken.step}, first in the gradient of {broken.variable}"
        raise WorkError(
            f"the training is not finite any more, {where}; the checkpoints before it are kept; "
            f"lower --learning_rate={self._config.learning_rate}, or set --clip_norm=1"
        )

    def get_state(self) -> dict[str, Any]:
        """Returns what a resumed run has to know of the files and of the outcome."""
        names = ("epochs", "steps", "loss", "accuracy", "val_loss", "val_accuracy")
        return {
            "metrics_bytes": self._directory.metrics_size(),
            "outcome": {name: self._outcome[name] for name in names},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes back to what `get_state` returned."""
        self._directory.truncate_metrics(state["metrics_bytes"])
        self._outcome.update(state["outcome"])

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        values = {
            name: float(logs[name]) if logs and name in logs else None
            for name in ("loss", "accuracy", "val_loss", "val_accuracy")
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
