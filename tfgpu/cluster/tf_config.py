"""What TF_CONFIG says of the processes that train together."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from tfgpu.errors import MeetingError, RequestError


class Cluster(NamedTuple):
    """What TF_CONFIG says.

    Attributes:
        rank: Of this process among all; the chief's is 0.
        names: Of all processes, such as "worker 0", by rank.
        addresses: Of all, "host:port", by rank.
    """

    rank: int
    names: tuple[str, ...]
    addresses: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of this process, such as "worker 0"."""
        return self.names[self.rank]

    @property
    def num_workers(self) -> int:
        """Processes in all."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    @property
    def address(self) -> str:
        """Of this process, "host:port"."""
        return self.addresses[self.rank]


def split_address(address: str) -> tuple[str, int]:
    """Splits "host:port", also "[::1]:2222".

    Raises:
        ValueError: It is none, or the port is not between 1 and 65535.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(\d+)", address)
    if match is None:
        raise ValueError(f"{address!r} is not host:port")
    port = int(match[2])
    if not 1 <= port <= 65535:
        raise ValueError(f"{address!r} has port {port}, which is not between 1 and 65535")
    return match[1].strip("[]"), port


def read_cluster(variables: Mapping[str, str]) -> Cluster:
    """Reads and checks TF_CONFIG.

    Args:
        variables: The environment.

    Raises:
        RequestError: It is absent or does not describe this worker.
    """
    example = (
        '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )

    def wrong(what: str) -> RequestError:
        return MeetingError(
            f"multi_worker_mirrored: TF_CONFIG {what}; each worker needs one such as {example}, "
            "with its own index"
        )

    text = variables.get("TF_CONFIG", "")
    if not text.strip():
        raise wrong("is not set")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise wrong(f"is not JSON ({error})") from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise wrong("lacks 'cluster' or 'task'")
    hosts = {kind: cluster.get(kind, []) for kind in ("chief", "worker")}
    for job, addresses in hosts.items():
        if not isinstance(addresses, list) or not all(isinstance(a, str) for a in addresses):
            raise wrong(f"has a {job!r} that is not a list of 'host:port'")
        for address in addresses:
            try:
                split_address(address)
            except ValueError as error:
                raise wrong(f"has a {job!r} of which {error}") from None
    everyone = hosts["chief"] + hosts["worker"]
    if not everyone:
        raise wrong("names no worker")
    if len(set(everyone)) < len(everyone):
        raise wrong("names an address twice")
    kind, index = task.get("type"), task.get("index")
    if kind not in hosts:
        raise wrong(f"has task type {kind!r}, neither 'worker' nor 'chief'")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(hosts[kind]):
        raise wrong(f"has task index {index!r}, but {len(hosts[kind])} of type {kind!r}")
    names = [f"{job} {i}" for job in ("chief", "worker") for i in range(len(hosts[job]))]
    return Cluster(
        rank=names.index(f"{kind} {index}"), names=tuple(names), addresses=tuple(everyone)
    )
