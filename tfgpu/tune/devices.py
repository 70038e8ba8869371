"""The GPUs and processor cores of a machine, and their division among worker processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from tfgpu.errors import RequestError
from tfgpu.machine import hardware
from tfgpu.machine.devices import parse_devices
from tfgpu.tune.settings import TuneSettings


@dataclass(frozen=True)
class WorkerDevices:
    """The GPU or the processor cores that one worker process uses.

    Attributes:
        gpu: Its value of CUDA_VISIBLE_DEVICES; None for what this process sees.
        cores: Processor cores it may run on; empty for all.
    """

    gpu: str | None = None
    cores: tuple[int, ...] = ()


def divide(workers: int, *, gpus: Sequence[str], cores: Sequence[int]) -> list[WorkerDevices]:
    """Divides a machine among workers.

    Args:
        workers: How many.
        gpus: As CUDA_VISIBLE_DEVICES names them.
        cores: Numbers of the processor cores this process may run on.

    Raises:
        RequestError: There are more workers than GPUs.
    """
    if workers <= 1:
        return [WorkerDevices()] * workers
    if gpus:
        if workers > len(gpus):
            count = f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}"
            raise RequestError(
                f"--workers={workers}: there are {count} here, and each worker takes one; use at "
                f"most {len(gpus)}, or --devices=CPU:0"
            )
        return [WorkerDevices(gpu=gpu) for gpu in gpus[:workers]]
    starts = [i * len(cores) // workers for i in range(workers + 1)]
    return [
        # With more workers than cores, several run on the same one.
        WorkerDevices(cores=tuple(cores[start:end]) or (cores[start],))
        for start, end in zip(starts, starts[1:], strict=False)
    ]


def usable_cores() -> tuple[int, ...]:
    """Returns the numbers of the processor cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(hardware.usable_cores()))


def find(config: TuneSettings) -> tuple[list[str], int]:
    """Finds the GPUs of this machine, and hides them from this process, which trains nothing.

    Returns:
        The GPUs for workers, as CUDA_VISIBLE_DEVICES names them, and the replicas of each trial.

    Raises:
        RequestError: The devices that were asked for are not there, or do not go with --workers.
    """
    import tensorflow as tf

    requested = parse_devices(config.devices)
    physical = tf.config.list_physical_devices("GPU")
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    if not physical or (requested and requested[0].startswith("CPU")):
        if requested and requested[0].startswith("GPU"):
            raise RequestError(
                f"no device {config.devices} here; there is CPU:0; leave --devices out"
            )
        replicas = config.virtual_devices or max(1, len(requested))
        return [], 1 if config.strategy == "one_device" else replicas
    visible = [
        name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()
    ]
    # CUDA stops reading the variable at the first GPU that does not exist.
    names = visible[: len(physical)] or [str(number) for number in range(len(physical))]
    if requested:
        if config.workers > 1:
            raise RequestError(
                f"--devices={config.devices} and --workers={config.workers} exclude each other: "
                "workers take a GPU each; choose GPUs by CUDA_VISIBLE_DEVICES"
            )
        return names, len(requested)
    if config.strategy == "one_device" or config.workers > 1:
        return names, max(1, config.virtual_devices)
    return names, config.virtual_devices or len(physical)
