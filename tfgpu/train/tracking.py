"""What `--log_to` asks for: the callback that keeps the record for trackers, and its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfgpu import trackers
from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.checkpoint.backup_and_restore import BackupAndRestore
from tfgpu.cli.console import Console
from tfgpu.machine.hardware_monitor import HardwareMonitor
from tfgpu.tasks.parts.report import Report
from tfgpu.tensorboard import predictions
from tfgpu.tensorboard.pictures import Picture
from tfgpu.trackers.client import Sender
from tfgpu.trackers.run_record import RunRecord
from tfgpu.trackers.tracker import ENDINGS
from tfgpu.train.settings import TrainSettings

SYSTEM_SECONDS = 15.0
"""Between two records of how the hardware is used, at least; also one at the end of each epoch."""


class Tracking:
    """The record of a run for trackers, and the process that sends it."""

    def __init__(
        self,
        run_dir: Path,
        names: Sequence[str],
        *,
        console: Console,
    ):
        """Begins the record; nothing is sent yet.

        Args:
            run_dir: Of the run.
            names: Of the trackers.
            console: For what they have to say.
        """
        self.record = RunRecord(run_dir)
        self._names = names
        self._console = console
        self._senders: list[Sender] = []
        self.record.begin()

    def start(self) -> None:
        """Starts the processes that send; a second time does nothing."""
        if not self._senders:
            self._senders = [Sender(self.record, name, warn=self._warn) for name in self._names]

    def update(self) -> None:
        """Takes over the epochs that are new, and has everything sent, without waiting for it."""
        self.record.complete()
        for sender in self._senders:
            sender.update()
            sender.tell(self._console.say)

    def end(self, ending: str) -> None:
        """Waits until the rest is sent, but not for ever."""
        self.record.complete()
        self.start()
        for sender in self._senders:
            sender.end(ending)
        try:
            for sender in self._senders:
                if not sender.wait(say=self._console.say):
                    self._console.say(
                        f"not all was sent to {sender.tracker}: {self.record.path} has it, and the "
                        "same command with this --run_dir sends the rest"
                    )
        finally:  # After Ctrl-C nobody waits for the others any more.
            for sender in self._senders:
                sender.kill()

    def add_pictures(self, kind: str, shown: Mapping[str, Picture], step: int) -> None:
        """Adds pictures; see `RunRecord.add_picture`."""
        for tag, picture in shown.items():
            self.record.add_picture(kind, step, tag, picture.content, picture.description)

    def _warn(self, text: str) -> None:
        self._console.say(f"warning: {text}")


class TrackingCallback(keras.callbacks.Callback):
    """Keeps the record of a training while it goes on. Comes after `BackupAndRestore`.

    Args:
        tracking: Of the run.
        backup: Knows how far the training is.
        monitor: Samples the hardware; None records nothing of it.
        report: Draws a batch of training; None leaves the pictures to TensorBoard's callback.
    """

    def __init__(
        self,
        tracking: Tracking,
        backup: BackupAndRestore,
        *,
        monitor: HardwareMonitor | None,
        report: Report | None,
    ):
        super().__init__()
        self._tracking = tracking
        self._backup = backup
        self._monitor = monitor
        self._report = report
        self._sampled, self._sampled_step = time.monotonic(), -1

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        # Whatever comes after the checkpoint is trained again.
        self._tracking.record.rewind(self._backup.steps_done)
        self._tracking.start()
        self._tracking.update()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._report is not None and epoch == 0 and self._backup.steps_done == 0:
            batches = getattr(self.model, "tfgpu_batches", None)
            source = batches.source if batches is not None else None
            shown = predictions.pictures_of_batch(self._report, source, step=0)
            self._tracking.add_pictures("batch", shown, 0)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        if time.monotonic() - self._sampled > SYSTEM_SECONDS:
            self._sample()
            self._tracking.update()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._sample()
        self._tracking.update()

    def _sample(self) -> None:
        self._sampled, step = time.monotonic(), self._backup.steps_done
        if self._monitor is not None and step > self._sampled_step:
            self._sampled_step = step
            means = self._monitor.means("trackers")
            values = {f"system/{name}": value for name, value in means.items()}
            self._tracking.record.add_system(step, values)


def begin(config: TrainSettings, directory: RunDirectory, console: Console) -> Tracking | None:
    """Begins what `--log_to` asks for; None for nothing, and for a worker that is not the chief."""
    names = trackers.asked(config.log_to) if directory.chief else ()
    return Tracking(directory.path, names, console=console) if names else None


@contextlib.contextmanager
def ending(tracking: Tracking | None) -> Iterator[None]:
    """Sends the rest when the run has ended, however it ended."""
    try:
        yield
    finally:
        if tracking is not None:
            status = str(tracking.record.result.get("status"))
            # On a full disk there is none, or that of an earlier process.
            tracking.end(status if status in ENDINGS else "failed")


def send_rest(config: TrainSettings, console: Console) -> None:
    """Sends what trackers lack of a run that is finished."""
    names = trackers.asked(config.log_to)
    if names:
        Tracking(Path(str(config.run_dir)).expanduser(), names, console=console).end("finished")
