"""Several processes that train together: what TF_CONFIG says of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from tfgpu.errors import RequestError


class Cluster(NamedTuple):
    """What TF_CONFIG says.

    Attributes:
        name: Of this process in it, such as "worker 0".
        num_workers: Of all processes.
        is_chief: Whether this process writes the run directory.
        address: Of this process, "host:port".
        addresses: Of all.
    """

    name: str
    num_workers: int
    is_chief: bool
    address: str
    addresses: tuple[str, ...]


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
        return RequestError(
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
        if not isinstance(addresses, list) or not all(
            isinstance(address, str) and re.fullmatch(r".+:\d+", address) for address in addresses
        ):
            raise wrong(f"has a {job!r} that is not a list of 'host:port'")
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
    return Cluster(
        name=f"{kind} {index}",
        num_workers=len(everyone),
        is_chief=kind == "chief" or (not hosts["chief"] and index == 0),
        address=hosts[kind][index],
        addresses=tuple(everyone),
    )
