"""Whether a run can be gone on with: seen before anything of it is written."""

from __future__ import annotations

from pathlib import Path

import keras

from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.checkpoint import continuation
from tfgpu.checkpoint.format import Checkpoint
from tfgpu.cluster.membership import Membership
from tfgpu.data.inputs import DeviceDataset
from tfgpu.errors import ModelFileError
from tfgpu.tasks.loading import Dataset
from tfgpu.train.session import data_identity
from tfgpu.train.settings import TrainSettings


def check(
    members: Membership,
    config: TrainSettings,
    *,
    model: keras.Model,
    batches: DeviceDataset,
    data: Dataset,
) -> Checkpoint | None:
    """Refuses a run whose checkpoints are of another training, or cannot be used.

    Args:
        members: The processes that train together; the chief has the checkpoints.
        config: With `run_dir`, where there may be a run.
        model: Compiled.
        batches: What it is to be trained on.
        data: Of which these are.

    Returns:
        The newest that is sound, in the chief; None for a new run.

    Raises:
        RequestError: They are of another training: other data, another model, ...
        ModelFileError: None is sound, or there is none of a run that has been trained.
    """
    directory = RunDirectory(Path(config.run_dir or "").expanduser())
    found = False
    if members.is_chief and config.run_dir is not None:
        found = directory.has_checkpoint
        if not found and directory.trained:
            raise ModelFileError(
                f"{str(directory.path)!r} has been trained in, and {directory.checkpoints_dir} "
                "holds no checkpoint; put one back, or start again with another --run_dir"
            )
    if not members.broadcast("checkpoints", found).fields["value"]:
        return None
    place, run = directory.checkpoints_dir, data_identity(data)
    return continuation.check(place, model, batches, members=members, run=run)
