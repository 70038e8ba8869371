"""A finished run for the workers of several machines, of which the chief alone has to have it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.cluster.membership import Membership

_PIECE = 1 << 20
_LEFT_OUT = frozenset({"log.txt", "metrics.jsonl", "report.html", ".lock"})
"""Files of a run that nothing but a training reads."""


@contextlib.contextmanager
def opened(members: Membership, run_dir: str) -> Iterator[TrainedRun]:
    """Opens a run at the chief, and a copy of it in every other process.

    Args:
        members: The processes that work together; alone, the run is opened and that is all.
        run_dir: The run directory, where the chief is.

    Yields:
        The run; the copy of another process is removed at the end.

    Raises:
        tfgpu.errors.Error: What `TrainedRun.open` refuses, in every process alike.
    """
    if members.is_chief:
        run = TrainedRun.open(run_dir)
        if not members.alone:
            _send(members, run.path)
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="tfgpu-run-") as folder:
        _receive(members, Path(folder))
        yield TrainedRun.open(folder)


def _send(members: Membership, path: Path) -> None:
    files = [f for f in sorted(path.iterdir()) if f.is_file() and f.name not in _LEFT_OUT]
    members.broadcast("files of the run", [(file.name, file.stat().st_size) for file in files])
    for file in files:
        with open(file, "rb") as opened_file:
            while piece := opened_file.read(_PIECE):
                members.broadcast("a part of a file", None, piece)


def _receive(members: Membership, folder: Path) -> None:
    for name, size in members.broadcast("files of the run").fields["value"]:
        with open(folder / Path(name).name, "wb") as file:
            while file.tell() < size:
                file.write(members.broadcast("a part of a file").body)
