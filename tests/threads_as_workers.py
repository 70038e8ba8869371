"""Clusters of threads for tests: each "process" is a thread that joins with its own rank."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tfgpu.cluster import rendezvous
from tfgpu.cluster.membership import Membership
from tfgpu.cluster.tf_config import Cluster


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def cluster_of(ports: list[int], rank: int) -> Cluster:
    """What TF_CONFIG says to one of the processes."""
    return Cluster(
        rank=rank,
        names=tuple(f"worker {i}" for i in range(len(ports))),
        addresses=tuple(f"127.0.0.1:{port}" for port in ports),
    )


def join(cluster: Cluster, **options: Any) -> Membership:
    """Joins with what tests need."""
    options = {
        "identity": {"setting": {"seed": 0}},
        "token": b"secret",
        "timeout": 20,
        "say": lambda line: None,
    } | options
    return rendezvous.join(cluster, **options)


def each(count: int, work: Callable[[int], Any], timeout: float = 30) -> list[Any]:
    """Calls `work(rank)` in a thread each; returns results, exceptions among them."""
    results: list[Any] = [None] * count

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), "a process of the cluster hangs"
    return results


@contextlib.contextmanager
def joined(count: int) -> Iterator[list[Membership]]:
    """The memberships of `count` processes."""
    ports = free_ports(count)
    members = each(count, lambda rank: join(cluster_of(ports, rank)))
    for member in members:
        if isinstance(member, BaseException):
            raise member
    try:
        yield members
    finally:
        each(count, lambda rank: members[rank].close(0))
