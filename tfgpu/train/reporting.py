"""The report that a training ends with, and what it has to know of the runs before."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.artifacts.run_files import RunFiles
from tfgpu.cli.console import Console
from tfgpu.errors import Error


def given_before(run_dir: str | None) -> dict[str, Any]:
    """The settings that were given when the run began that is to be continued; {} for a new one."""
    if run_dir is None:
        return {}
    try:
        path = Path(run_dir).expanduser() / "environment.json"
        found = json.loads(path.read_text(encoding="utf-8"))["given"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def ending(directory: RunDirectory, console: Console, *, wanted: bool) -> Iterator[None]:
    """Writes the report when the run has let go of its directory, however it ended."""
    try:
        yield
    finally:
        if wanted:
            console.log_to(None)  # The log is closed: it is a part of what is reported.
            write(directory.path, console)


def write(run_dir: Path, console: Console) -> None:
    """Writes the report of a run; that it cannot be written takes nothing from the run."""
    from tfgpu.report import run as report  # For those who want one alone.

    try:
        console.say(f"report: {report.write([RunFiles.read(run_dir)])}")
    except (Error, OSError) as error:
        console.say(f"warning: no report was written: {error}")
