"""The TensorBoard callback of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tfgpu.errors import RequestError, shown
from tfgpu.machine.hardware_monitor import HardwareMonitor
from tfgpu.tasks.parts.report import Report
from tfgpu.tensorboard import TensorBoard
from tfgpu.tensorboard.pictures import Picture
from tfgpu.train.recipe import Resolved
from tfgpu.train.settings import TrainSettings

POINTS_AN_EPOCH = 10
"""Of `batch_<metric>` and `performance/` in TensorBoard."""


def check(config: TrainSettings) -> None:
    """Refuses a run directory below which TensorFlow can write no event files.

    Raises:
        RequestError: The bytes of its path are not UTF-8.
    """
    path = config.run_dir or ""
    if config.tensorboard != "none" and path.encode(errors="replace").decode() != path:
        raise RequestError(
            f"--run_dir={shown(path)}: TensorBoard's files need a path that is UTF-8; name another "
            "--run_dir, or give --tensorboard=none"
        )


def tensorboard_callback(
    config: Resolved,
    directory: Path,
    *,
    report: Report,
    steps_per_epoch: int,
    pictures: bool,
    monitor: HardwareMonitor | None = None,
    also: Callable[[str, Mapping[str, Picture], int], None] | None = None,
) -> TensorBoard:
    """The callback that `--tensorboard` and `--profile` ask for.

    Args:
        config: The settings.
        directory: Where the event files go.
        report: Of the task; draws the pictures.
        steps_per_epoch: Steps of training in an epoch.
        pictures: Whether it writes graphs and pictures too.
        monitor: Samples the hardware; None writes nothing of it.
        also: Gets the pictures too.
    """
    full = config.tensorboard == "full"
    settings = config.to_json()
    not_compared = config.names(on_resume="ignored") | {
        *("data_dir", "tensorboard", "log_to", "profile", "checkpoint_every", "hardware_interval")
    }
    hparams = {
        name: "x".join(map(str, value)) if isinstance(value, list) else value
        for name, value in settings.items()
        if name not in not_compared
    }
    first, _, last = (config.profile or "0:0").partition(":")
    return TensorBoard(
        directory,
        histogram_freq=1 if full else 0,
        write_graph=pictures,
        # Some points an epoch show its course; each of them waits for the device.
        update_freq=max(1, steps_per_epoch // POINTS_AN_EPOCH),
        profile_batch=(int(first), int(last)) if config.profile else 0,
        report=report,
        hparams=hparams,
        write_batches="every" if full else pictures,
        monitor=monitor,
        also=also,
    )
