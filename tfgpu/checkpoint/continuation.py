"""Whether the backups of a directory are of the training that is about to begin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tfgpu.artifacts.differences import differences, first_of
from tfgpu.checkpoint.fingerprint import describe
from tfgpu.checkpoint.format import Checkpoint
from tfgpu.checkpoint.store import CheckpointStore, OtherRunError
from tfgpu.cluster.membership import Membership
from tfgpu.data.inputs import DeviceDataset
from tfgpu.engine import keras_internals as private
from tfgpu.engine.batches import Batches
from tfgpu.errors import RequestError


def check(
    directory: Path,
    model: keras.Model,
    batches: DeviceDataset,
    *,
    members: Membership,
    run: Mapping[str, Any],
) -> Checkpoint | None:
    """Refuses, before `fit`, the backups that `fit` would refuse; writes nothing.

    Args:
        directory: Of the backups.
        model: Compiled.
        batches: What it is to be trained on.
        members: The processes that train together: the chief alone looks.
        run: What `BackupAndRestore` gets as that.

    Returns:
        The newest one that is sound, for `BackupAndRestore`; None where there is none.

    Raises:
        RequestError: They are of another training.
        ModelFileError: None of them is sound.
    """
    if not model.built:
        build(model, Batches(batches, model.distribute_strategy))
    if not members.is_chief:
        return None
    described = describe(model, batches) | dict(run)
    # What is to be said of damaged ones is said when they are read for good.
    store = CheckpointStore(directory, run_id=digest(described), warn=lambda text: None)
    try:
        checkpoint = store.newest()
    except OtherRunError as other:
        raise refusal(other, described) from None
    if checkpoint is not None:
        check_steps(checkpoint, batches.steps_per_epoch)
    return checkpoint


def build(model: keras.Model, batches: Batches) -> None:
    """Makes all variables, which a model with a `train_step` of its own has after its first.

    Raises:
        RequestError: They cannot be made before.
    """
    losses, metrics = private.compile_loss(model), private.compile_metrics(model)
    parts = (model, losses, metrics, model.optimizer)
    if all(part is None or part.built for part in parts):
        return
    try:
        model.tfgpu_build(batches.model_spec)
    except (RuntimeError, ValueError) as error:
        raise RequestError(
            "BackupAndRestore needs a model that is built: call it on a batch once before "
            f"`fit` ({error})"
        ) from error


def digest(run: Mapping[str, Any]) -> str:
    """What the checkpoints of a training are known by."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def refusal(other: OtherRunError, run: Mapping[str, Any]) -> RequestError:
    """Says in what the training of a backup differs from this one."""
    found = first_of(differences(other.state.get("run", {}), run))
    return RequestError(
        f"{other.path} is of another training ({found}); name another directory, or make it the "
        "same again"
    )


def check_steps(checkpoint: Checkpoint, steps_per_epoch: int) -> None:
    """Refuses a checkpoint of epochs of another length.

    Raises:
        RequestError: Names both.
    """
    found = checkpoint.state["steps_per_epoch"]
    if found != steps_per_epoch:
        raise RequestError(
            f"{checkpoint.path} is of a run with {found} steps an epoch, this one has "
            f"{steps_per_epoch}"
        )
