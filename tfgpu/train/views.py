"""What shows a training while it runs and afterwards: TensorBoard, and trackers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tfgpu.checkpoint.backup_and_restore import BackupAndRestore
from tfgpu.machine.hardware_monitor import HardwareMonitor
from tfgpu.tasks.parts.report import Report
from tfgpu.tensorboard import predictions
from tfgpu.train.recipe import Resolved
from tfgpu.train.tensorboard import tensorboard_callback
from tfgpu.train.tracking import Tracking, TrackingCallback


class Views:
    """TensorBoard and trackers, as far as settings ask for them.

    Attributes:
        tensorboard: The callbacks that write event files.
        tracking: Those that keep the record for trackers; they come after `BackupAndRestore`.
    """

    def __init__(
        self,
        config: Resolved,
        directory: Path,
        *,
        report: Report,
        steps_per_epoch: int,
        pictures: bool,
        monitor: HardwareMonitor | None,
        tracking: Tracking | None,
        backup: BackupAndRestore,
    ):
        """Makes the callbacks.

        Args:
            config: The settings.
            directory: Where the event files go.
            report: Of the task; draws the pictures.
            steps_per_epoch: Steps of training in an epoch.
            pictures: Whether graphs and pictures are wanted, which take seconds.
            monitor: Samples the hardware, or None.
            tracking: For trackers, or None.
            backup: Of the training.
        """
        self._report, self._tracking = report, tracking
        self._event_files = None
        if config.tensorboard != "none":
            self._event_files = tensorboard_callback(
                config,
                directory,
                report=report,
                steps_per_epoch=steps_per_epoch,
                pictures=pictures,
                monitor=monitor,
                also=tracking.add_pictures if tracking is not None else None,
            )
        self.tensorboard = [self._event_files] if self._event_files is not None else []
        self.tracking: list[keras.callbacks.Callback] = []
        if tracking is not None:
            own = report if pictures and self._event_files is None else None
            self.tracking = [TrackingCallback(tracking, backup, monitor=monitor, report=own)]

    @property
    def any(self) -> bool:
        """Whether there are some."""
        return self._event_files is not None or self._tracking is not None

    def show_predictions(self, model: keras.Model, validation: Any, *, step: int) -> None:
        """Shows what the model makes of the validation split at the end."""
        if self._event_files is not None:
            self._event_files.show_predictions(validation, step=step)
        elif self._tracking is not None:
            shown = predictions.pictures_of(self._report, model, validation)
            self._tracking.add_pictures("predictions", shown, step)

    def show_result(self, metrics: Mapping[str, float | None], *, step: int) -> None:
        """Shows the final metrics beside the settings; trackers have them from the result."""
        if self._event_files is not None:
            self._event_files.show_result(metrics, step=step)
