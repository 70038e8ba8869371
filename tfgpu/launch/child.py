"""Becomes a worker that ends with its parent and keeps to its cores.

`python -m tfgpu.launch.child PARENT CORES COMMAND ...`: the id of the process that started it, the
numbers of cores joined by commas or "" for any, and the command that replaces this process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(parent: int, cores: str, command: list[str]) -> None:
    """Never returns."""
    # Ray, and shells for jobs in the background, have SIGINT ignored. A worker gets what its
    # parent passes on to it, and no other.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if sys.platform == "linux":
        # SIGKILL, since a worker may be stuck in a library that defers every other signal. A run
        # goes on from its last checkpoint whatever ends it. It stays set over exec.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It was gone before.
            os.kill(os.getpid(), signal.SIGKILL)
        if cores:
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
