"""What a training on several machines agrees on before its first step, and how it fails."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.cli.console import Console
from tfgpu.cluster.membership import Membership
from tfgpu.cluster.rendezvous import LAUNCHED
from tfgpu.errors import Error, RequestError
from tfgpu.machine import collectives
from tfgpu.tasks.loading import Dataset
from tfgpu.train.recipe import Resolved
from tfgpu.train.settings import TrainSettings

_OWN = TrainSettings.names(on_resume="ignored") | {"data_dir", "devices", "intra_op_threads"}


def settings_of_chief(members: Membership, settings: TrainSettings) -> TrainSettings:
    """Gives every process the chief's settings, but for what each may have of its own.

    The chief's hold what the run in its directory has decided.

    Raises:
        RequestError: The chief's settings are impossible here.
    """
    if members.alone:
        return settings
    # From here on all go through the same calls of TensorFlow at the same time.
    members.exchange("TensorFlow is imported", None)
    chiefs = members.broadcast("settings", settings.to_json()).fields["value"]
    own = {name: value for name, value in settings.to_json().items() if name in _OWN}
    return TrainSettings.from_json({**chiefs, **own})


def as_recorded(config: TrainSettings, members: Membership) -> TrainSettings:
    """Takes what the user left open from the run that is to be continued.

    It was decided when that run began: by the devices and the memory that were free then, which
    may not be the same now.
    """
    if not members.is_chief:
        return config
    recorded, given = RunDirectory.recorded(config.run_dir), config.to_json()
    # Not those of which None says "off".
    decided = [*Resolved.__annotations__, "input"]
    if all(
        recorded.get(name) == given[name] for name in ("strategy", "devices", "virtual_devices")
    ):
        decided += ["jit_compile", "intra_op_threads"]
    left_open = {
        name: recorded[name]
        for name in decided
        if given[name] in (None, "auto") and name in recorded
    }
    try:
        return TrainSettings.from_json(given | left_open)
    except RequestError:
        return config  # Of something else, which `RunDirectory.find` names.


def check_data(members: Membership, data: Dataset, *, replicas: int) -> None:
    """Compares the data sets of all processes.

    Args:
        members: The processes that train together.
        data: This one's.
        replicas: Over all processes.

    Raises:
        RequestError: They differ, in every process alike, or there are more replicas than
            examples.
    """
    if members.alone:
        return
    found = members.exchange(
        "data",
        {
            "fingerprint": data.fingerprint,
            "training examples": data.train.num_examples,
            "test examples": data.test.num_examples,
            "classes": len(data.class_names),
            "what was fitted to it": data.spec.fitted_digest,
        },
    )
    for rank, other in enumerate(found):
        for name, value in found[0].items():
            if other[name] != value:
                raise RequestError(
                    f"the workers have other data: {name} is {value} at {members.name(0)} and "
                    f"{other[name]} at {members.name(rank)}; give all of them the same data set"
                )
    if replicas > data.train.num_examples:
        raise RequestError(
            f"{replicas} replicas are more than the {data.train.num_examples} examples to train "
            "on; start fewer workers"
        )


def input_of_all(members: Membership, mode: str, reason: str) -> tuple[str, str]:
    """Streams everywhere when one process has to.

    Args:
        members: The processes that train together.
        mode: What this one would do, "resident" or "streaming".
        reason: Why.

    Returns:
        What all do, and why.
    """
    found = members.exchange("input", [mode, reason])
    for rank, (other, why) in enumerate(found):
        if other == "streaming":
            return other, f"{members.name(rank)}: {why}" if rank != members.rank and why else why
    return mode, reason


def finished_run(
    members: Membership, config: TrainSettings, settings: TrainSettings
) -> dict[str, Any] | None:
    """The result of the same run when it is finished already: what the chief finds.

    Raises:
        Error: The run directory cannot be used, in every process alike.
    """
    found = None
    if members.is_chief:
        found = RunDirectory.find(
            config.run_dir,
            config=settings.to_json(),
            settings=TrainSettings,
            resume=config.resume,
        )
    finished: dict[str, Any] | None = members.broadcast("finished", found).fields["value"]
    return finished


def make_directory(
    members: Membership, config: TrainSettings, settings: TrainSettings, *, dataset: str
) -> RunDirectory:
    """Has the chief make the run's directory; the others learn where it is.

    Raises:
        Error: It cannot be made, in every process alike.
    """
    if not members.is_chief:
        path, resuming = members.broadcast("run directory").fields["value"]
        return RunDirectory(Path(path), chief=False, resuming=resuming)
    directory = RunDirectory.create(
        config.run_dir,
        config=settings.to_json(),
        settings=TrainSettings,
        dataset=dataset,
        model=str(settings.model),
        resume=config.resume,
    )
    members.broadcast("run directory", [str(directory.path), directory.resuming])
    return directory


def keep_logs(members: Membership, directory: RunDirectory, console: Console) -> None:
    """Has the chief keep what each process says: log.txt, and workers/N.log of the others."""
    console.log_to(directory.log if members.is_chief else members.say)
    if members.is_chief:
        members.log_to(directory.log_of_worker)
    else:
        console.mode = "none"  # The chief shows progress; the log of each worker has its own.


def continued_by(argv: Sequence[str]) -> str:
    """The command that continues a run: `argv`, or the launch that started this process."""
    return "the same `tfgpu launch`" if os.environ.get(LAUNCHED) else shlex.join(argv)


@contextlib.contextmanager
def failing_together(members: Membership, command: str) -> Iterator[None]:
    """Says which process was lost, in the place of what TensorFlow says of a collective.

    Args:
        members: The processes that train together.
        command: What continues the run.

    Raises:
        Error: A process was lost, or has failed.
    """
    if members.alone:
        yield
        return
    members.abort = collectives.abort
    members.how_to_go_on = f"start all workers again with the same run directory: {command}"
    try:
        yield
    except Error:
        raise
    except Exception as error:
        if collectives.may_be_of_a_peer(error):
            members.wait_for_failure()
        members.check()
        raise
