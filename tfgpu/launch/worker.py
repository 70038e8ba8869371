"""What a worker is: a command line and an environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from tfgpu.cli.startup import child_environment
from tfgpu.cluster.rendezvous import LAUNCHED, TOKEN


def tf_config(addresses: Sequence[str], index: int) -> str:
    """Returns TF_CONFIG for one of the workers at these addresses, each "host:port"."""
    cluster, task = {"worker": list(addresses)}, {"type": "worker", "index": index}
    return json.dumps({"cluster": cluster, "task": task})


def environment(
    *, addresses: Sequence[str], index: int, token: str, gpus: str | None = None
) -> dict[str, str]:
    """Returns the environment of a worker.

    Args:
        addresses: Of all workers.
        index: Of this one.
        token: What they know each other by.
        gpus: Its value of CUDA_VISIBLE_DEVICES; None for that of this process.
    """
    variables = child_environment() | {"TF_CONFIG": tf_config(addresses, index), TOKEN: token}
    # What a worker says is read while it runs.
    variables.setdefault("PYTHONUNBUFFERED", "1")
    variables[LAUNCHED] = "1"
    # Ray and others set it for the tf.keras of old; Keras 3 cannot be had with it.
    variables.pop("TF_USE_LEGACY_KERAS", None)
    if gpus is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpus
    return variables


def command_line(argv: Sequence[str]) -> list[str]:
    """Returns the command line of a worker: the command of tfgpu, and its arguments."""
    return [sys.executable, "-m", f"tfgpu.{argv[0]}", *argv[1:]]


def child_command_line(argv: Sequence[str], cores: Sequence[int]) -> list[str]:
    """Returns the command line of a worker that ends with this process and keeps to its cores."""
    child = [sys.executable, "-m", "tfgpu.launch.child", str(os.getpid())]
    return [*child, ",".join(map(str, cores)), *command_line(argv)]
