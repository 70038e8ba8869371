"""A worker that something else started: its place among the others, and how it takes it."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from tfgpu.cluster.rendezvous import TOKEN, read_token
from tfgpu.errors import RequestError
from tfgpu.launch import ports, worker
from tfgpu.launch.command import Command


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a worker stands among the workers of a training.

    Attributes:
        addresses: Of all workers, "host:port".
        index: Of this one.
        cores: Cores to keep to; empty to leave that as it is.
        gpus: Its value of CUDA_VISIBLE_DEVICES; None to leave that as it is.
    """

    addresses: tuple[str, ...]
    index: int
    cores: Sequence[int] = ()
    gpus: str | None = None


def take(place: Place, command: Command, *, token_how: str) -> NoReturn:
    """Becomes the worker: its process replaces this one, and so gets the signals and the exit code.

    Args:
        place: Its place.
        command: What it runs.
        token_how: How to provide the token that all share, for the message when there is none.

    Raises:
        RequestError: There is no token, or the port is taken.
    """
    token = read_token(os.environ).decode()
    if not token:
        raise RequestError(
            f"{TOKEN} is not set: workers know each other by it, so that no stranger joins; "
            f"{token_how}"
        )
    port = int(place.addresses[place.index].rpartition(":")[2])
    if not ports.is_free(port):
        raise RequestError(
            f"worker {place.index}: port {port} of this machine is taken; choose another for all "
            "workers, such as --port=15000"
        )
    if place.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, place.cores)
    sys.stdout.flush()
    sys.stderr.flush()
    line = worker.command_line(command.argv)
    variables = worker.environment(
        addresses=place.addresses, index=place.index, token=token, gpus=place.gpus
    )
    os.execve(line[0], line, variables)
