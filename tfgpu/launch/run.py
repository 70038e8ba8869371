"""One launch: checks what the workers are to run, and hands it to the backend."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from tfgpu.errors import RequestError
from tfgpu.launch import command as commands
from tfgpu.launch import kubernetes, local, slurm
from tfgpu.launch.settings import LaunchSettings


def run(config: LaunchSettings, argv: Sequence[str]) -> int | None:
    """Starts workers, or writes what starts them.

    Args:
        config: The settings of the launch.
        argv: What each worker runs: a command of tfgpu, and its arguments.

    Raises:
        tfgpu.errors.Error: The request is wrong, or a worker failed.
    """
    command = commands.read(config, argv)
    if config.backend == "local":
        local.run(config, command)
    elif config.backend == "slurm":
        slurm.run(config, command)
    elif config.backend == "kubernetes":
        kubernetes.write(config, command)
    elif config.backend == "kubernetes_pod":
        kubernetes.become_worker(config, command)
    else:
        if importlib.util.find_spec("ray") is None:
            raise RequestError(
                "--backend=ray needs Ray, which is not installed: pip install 'tfgpu[ray]'"
            )
        from tfgpu.launch import ray

        ray.run(config, command)
    return None
