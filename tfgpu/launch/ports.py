"""TCP ports of this machine that workers can listen on."""

from __future__ import annotations

import contextlib
import socket


def free_ports(count: int) -> list[int]:
    """Returns ports that nothing listens on, on any address of this machine.

    Raises:
        OSError: There are none.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            # TensorFlow listens on all addresses, whatever TF_CONFIG says.
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def is_free(port: int) -> bool:
    """Tells whether a worker could listen on a port."""
    with socket.socket() as attempt:
        # A connection of earlier workers that the system has not forgotten yet is no hindrance.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind(("", port))
        except OSError:
            return False
    return True
