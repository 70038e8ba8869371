"""Checks that the doctors of all machines make together: ways, versions, clocks.

They meet as the workers of a training do, at the addresses that TF_CONFIG names.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping

from tfgpu.cluster import identity, rendezvous
from tfgpu.cluster.membership import Membership
from tfgpu.cluster.tf_config import Cluster, read_cluster, split_address
from tfgpu.doctor.findings import Finding, Section
from tfgpu.errors import Error, LostWorkerError, RequestError

CLOCKS = 2.0
"""Seconds by which clocks may differ: file times and events of TensorBoard are compared."""

_REACHED_WITHIN = 3.0


def check_together(
    strategy: str, variables: Mapping[str, str], *, timeout: float, say: Callable[[str], None]
) -> list[Finding]:
    """Meets the doctors of the other machines and compares notes.

    Args:
        strategy: The value of `--strategy`; only that of several workers meets anybody.
        variables: The environment.
        timeout: Seconds to wait for the others.
        say: Takes lines that say who is missing.

    Returns:
        The findings, the same on every machine.
    """
    found = Section("Machines together")
    if strategy != "multi_worker_mirrored":
        return found
    try:
        cluster = read_cluster(variables)
        if cluster.num_workers == 1:
            return found
        token = rendezvous.read_token(variables)
        with rendezvous.join(cluster, identity={}, token=token, timeout=timeout, say=say) as all_:
            _compare(found, all_, cluster)
    except LostWorkerError as error:
        remedy = "run `tfgpu doctor --strategy=multi_worker_mirrored` on all machines at once"
        found.add("meeting", "warning", str(error).partition(";")[0], remedy)
    except RequestError as error:
        value, _, remedy = str(error).partition("; ")
        found.add("meeting", "problem", value, remedy or "see the line of TF_CONFIG above")
    except Error as error:
        found.add("meeting", "problem", str(error), "run it again on all machines at once")
    return found


def _compare(found: Section, members: Membership, cluster: Cluster) -> None:
    found.add("meeting", "ok", f"{members.size} machines have met")
    _compare_versions(found, members)
    _compare_clocks(found, members)
    _try_all_ways(found, members, cluster)


def _compare_versions(found: Section, members: Membership) -> None:
    own = {"version of": identity.versions(), "digest of": identity.code()}
    everybody = members.exchange("versions", own)
    names = [members.name(rank) for rank in range(members.size)]
    different = identity.differences(everybody, names)
    if different:
        value = different.removeprefix("the workers differ: ").partition("; start all")[0]
        found.add("versions", "problem", value, "install the same versions on every machine")
    else:
        shown = ", ".join(f"{name} {version}" for name, version in own["version of"].items())
        found.add("versions", "ok", f"the same on all: {shown}")


def _compare_clocks(found: Section, members: Membership) -> None:
    """Reads all clocks at one moment; the way there and back is known, and is the error."""
    members.exchange("the same moment", None)
    began = time.monotonic()
    clocks = members.exchange("clock", time.time())
    error = time.monotonic() - began
    apart = max(clocks) - min(clocks)
    value = f"{apart:.3f} s apart (give or take {error:.3f} s)"
    if apart - error > CLOCKS:
        late = members.name(clocks.index(min(clocks)))
        found.add("clocks", "warning", f"{value}; {late} is the latest", "synchronise them by NTP")
    else:
        found.add("clocks", "ok", value)


def _try_all_ways(found: Section, members: Membership, cluster: Cluster) -> None:
    """Each listens at its port, and each connects to every other."""
    with _Listener(split_address(cluster.address)[1]):
        members.exchange("all listen", None)
        problems = [
            None if rank == members.rank else _why_not_reached(address)
            for rank, address in enumerate(cluster.addresses)
        ]
        table = members.exchange("ways", problems)
    ways = members.size * (members.size - 1)
    bad = [
        (members.name(start), members.name(end), why)
        for start, row in enumerate(table)
        for end, why in enumerate(row)
        if why is not None
    ]
    for start, end, why in bad:
        remedy = "open this port between the machines, in both directions"
        found.add(f"from {start}", "problem", f"{end} is not reached: {why}", remedy)
    if not bad:
        found.add("ways", "ok", f"each reaches each other, {ways} ways")


def _why_not_reached(address: str) -> str | None:
    try:
        socket.create_connection(split_address(address), timeout=_REACHED_WITHIN).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


class _Listener:
    """Takes connections at a port and drops them, as long as it is entered."""

    def __init__(self, port: int):
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("", port))
        self._socket.listen(128)
        self._thread = threading.Thread(target=self._take, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _take(self) -> None:
        while True:
            try:
                self._socket.accept()[0].close()
            except OSError:
                return
