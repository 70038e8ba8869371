"""The cores and GPUs of a machine, divided among the workers that run on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tfgpu.errors import RequestError
from tfgpu.machine import hardware


def core_shares(cores: Sequence[int], workers: int) -> list[tuple[int, ...]]:
    """Divides cores among workers: contiguous shares of one size.

    All are of one size, though some cores may be left over then: workers wait for each other in
    every step, so the smallest share sets the pace, and threads of one number give the bits of
    as many mirrored replicas in one process.

    Args:
        cores: Numbers of the cores.
        workers: How many.

    Returns:
        The cores of each worker; all empty, for "any core", when there are fewer than workers.
    """
    each = len(cores) // workers
    return [tuple(cores[i * each : (i + 1) * each]) for i in range(workers)]


def gpu_shares(gpus: Sequence[str], workers: int, *, each: int | None = None) -> list[str | None]:
    """Divides GPUs among workers: contiguous shares of one size.

    Args:
        gpus: As CUDA_VISIBLE_DEVICES names them.
        workers: How many.
        each: GPUs of each worker; None for as many as there are for all.

    Returns:
        The value of CUDA_VISIBLE_DEVICES for each worker; None to leave it as it is.

    Raises:
        RequestError: There are too few.
    """
    if each is None:
        if not gpus:
            return [None] * workers
        each = len(gpus) // workers
    elif each == 0:
        return [""] * workers
    if not each or each * workers > len(gpus):
        count = f"{len(gpus) or 'no'} GPU{'' if len(gpus) == 1 else 's'}"
        wanted = f"{each or 1} each" if each else "one each"
        raise RequestError(
            f"--workers={workers}: there {'is' if len(gpus) == 1 else 'are'} {count} here for "
            f"{workers} workers with {wanted}; start fewer, or give the workers --devices=CPU:0"
        )
    return [",".join(gpus[i * each : (i + 1) * each]) for i in range(workers)]


def usable_cores() -> tuple[int, ...]:
    """Returns the numbers of the cores this process may run on; empty where none can be pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))


def visible_gpus() -> list[str]:
    """Returns the GPUs that CUDA shows this process, as CUDA_VISIBLE_DEVICES names them.

    Asks nvidia-smi; TensorFlow, once imported, would hold memory of each.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = hardware.nvidia_smi()
    if visible is None:
        return [str(gpu.index) for gpu in gpus]
    named = [part.strip() for part in visible.split(",") if part.strip()]
    # nvidia-smi lists no parts of a GPU here, and may be missing in a container.
    if any(part.startswith("MIG-") for part in named):
        return named
    if not gpus and Path("/dev/nvidiactl").exists():
        return [] if "-1" in named else named
    return named[: len(hardware.visible_gpus(gpus, visible))]
