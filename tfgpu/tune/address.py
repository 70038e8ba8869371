"""The role of a process in a search over several machines, and the address of its chief.

They come from the environment variables that KerasTuner uses.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from tfgpu.errors import RequestError

TUNER_ID = "KERASTUNER_TUNER_ID"
ORACLE_IP = "KERASTUNER_ORACLE_IP"
ORACLE_PORT = "KERASTUNER_ORACLE_PORT"


@dataclass(frozen=True)
class Role:
    """The role of this process, read from the environment.

    Attributes:
        chief: Whether it is the chief, which holds the oracle.
        name: Its tuner id, with which those of its workers begin.
        ip: The chief's address.
        port: The chief's port; 0 for any that is free.
    """

    chief: bool = True
    name: str = "worker"
    ip: str = "127.0.0.1"
    port: int = 0

    @property
    def alone(self) -> bool:
        """Whether the search runs on this machine only."""
        return self.port == 0


def read(environ: Mapping[str, str]) -> Role:
    """Reads KerasTuner's variables.

    Args:
        environ: Such as `os.environ`.

    Raises:
        RequestError: One is missing or invalid.
    """
    given = {name: environ.get(name, "") for name in (TUNER_ID, ORACLE_IP, ORACLE_PORT)}
    if not any(given.values()):
        return Role()
    for name, value in given.items():
        if not value:
            others = " and ".join(other for other in given if other != name)
            raise RequestError(
                f"{name} is not set, and {others} go with it; set all three for a search over "
                "several machines, or none"
            )
    port = given[ORACLE_PORT]
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise RequestError(f"{ORACLE_PORT}={port}: must be a port, 1 to 65535")
    return Role(
        # The same test as KerasTuner's.
        chief="chief" in given[TUNER_ID],
        name=given[TUNER_ID],
        ip=given[ORACLE_IP],
        port=int(port),
    )


def target(ip: str, port: int) -> str:
    """Returns the address in the form that gRPC takes."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def taken(ip: str, port: int) -> RequestError:
    """Returns the error of a port that cannot be listened on."""
    return RequestError(
        f"{ORACLE_PORT}={port}: cannot be listened on at {ip}; choose a free port, and for "
        f"{ORACLE_IP} an address of this machine"
    )


def check_free(role: Role) -> None:
    """Checks that the chief can listen, before anything is written.

    Raises:
        RequestError: The port is taken, or the address is another machine's.
    """
    family = socket.AF_INET6 if ":" in role.ip else socket.AF_INET
    with socket.socket(family) as attempt:
        # As the server does; a connection that has just ended is no obstacle.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((role.ip, role.port))
        except OSError as error:
            if role.alone:
                raise RequestError(f"no free port at {role.ip} ({error.strerror})") from None
            raise taken(role.ip, role.port) from None


def variables(*, tuner_id: str, ip: str, port: int) -> dict[str, str]:
    """Returns the environment variables of a worker."""
    # Not through a proxy: the chief is on the same network.
    direct = ",".join(filter(None, [os.environ.get("no_grpc_proxy"), ip]))
    return {TUNER_ID: tuner_id, ORACLE_IP: ip, ORACLE_PORT: str(port), "no_grpc_proxy": direct}
