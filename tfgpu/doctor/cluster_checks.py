"""Checks of a training on several machines: TF_CONFIG and the addresses it names."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from tfgpu.cluster.tf_config import read_cluster
from tfgpu.doctor.findings import Finding, Section, Status
from tfgpu.errors import RequestError


def check_cluster(strategy: str, variables: Mapping[str, str]) -> list[Finding]:
    """Checks TF_CONFIG and the addresses it names.

    Args:
        strategy: The value of `--strategy`.
        variables: The environment.
    """
    found = Section("Machines")
    wanted = strategy == "multi_worker_mirrored"
    if not wanted and not variables.get("TF_CONFIG", "").strip():
        value = "not set; --strategy=multi_worker_mirrored needs it"
        found.add("TF_CONFIG", "ok", value)
        return found
    try:
        cluster = read_cluster(variables)
    except RequestError as error:
        status: Status = "problem" if wanted else "warning"
        text = str(error).partition(": ")[2]
        value, _, remedy = text.partition("; ")
        found.add("TF_CONFIG", status, value, remedy)
        return found
    plural = "s" if cluster.num_workers > 1 else ""
    found.add("TF_CONFIG", "ok", f"this is {cluster.name} of {cluster.num_workers} worker{plural}")
    for address in cluster.addresses:
        host, _, port = address.rpartition(":")
        _check_address(found, host.strip("[]"), int(port), mine=address == cluster.address)
    return found


def _check_address(found: Section, host: str, port: int, *, mine: bool) -> None:
    item = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except (OSError, OverflowError) as error:
        remedy = "write a name or number that this machine knows into TF_CONFIG"
        return found.add(item, "problem", f"unknown host: {error}", remedy)
    with socket.socket(family, kind, protocol) as trial:
        trial.settimeout(2)
        if mine:
            try:
                # As servers do: a port in TIME_WAIT counts as free.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
            except OSError as error:
                remedy = f"end what listens there (`ss -ltnp 'sport = :{port}'`), or take another"
                value = f"this worker's own, cannot be listened on: {error.strerror}"
                return found.add(item, "problem", value, remedy)
            return found.add(item, "ok", "this worker's own, free")
        try:
            trial.connect(address)
        except TimeoutError:
            remedy = f"open port {port} in the firewall between the machines"
            return found.add(item, "warning", "does not answer at all", remedy)
        except OSError as error:
            if error.errno is not None and isinstance(error, ConnectionRefusedError):
                return found.add(item, "ok", "reached; its worker is not started yet")
            remedy = "look at the network between the machines"
            return found.add(item, "warning", f"not reached: {error.strerror}", remedy)
        return found.add(item, "ok", "listens already")
