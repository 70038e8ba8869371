"""Experiment trackers beside TensorBoard: what `--log_to` asks for.

A training never talks to a tracker. It writes what there is to log into its run directory
(`run_record.py`); a process of its own (`sender.py`) reads it there and sends what the tracker does
not have yet (`mirror.py`). So a tracker that is slow, fails or is gone takes neither time nor
anything else from a training, and what it missed is sent later.
"""

from __future__ import annotations

import importlib.util

from tfgpu.errors import RequestError

TRACKERS = ("mlflow", "wandb")
"""What `--log_to` may name: each is the module to be installed, the extra that installs it, and
the module NAME_tracker here."""


def asked(log_to: str) -> tuple[str, ...]:
    """The trackers in the setting `log_to`; () for none."""
    return () if log_to == "none" else tuple(log_to.split(","))


def check(log_to: str) -> None:
    """Refuses trackers whose packages are not installed.

    Raises:
        RequestError: Names the extra to install.
    """
    for name in asked(log_to):
        found = importlib.util.find_spec(name)
        # W&B leaves folders of its name, which Python takes for packages without a file.
        if found is None or found.origin is None:
            raise RequestError(
                f"--log_to={log_to} needs {name}, which is not installed: "
                f"pip install 'tfgpu[{name}]', or leave {name} out",
                page="trackers",
            )
