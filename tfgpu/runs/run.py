"""`tfgpu runs` from beginning to end: find the runs, read their files, sort, print."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfgpu.artifacts import files, run_files
from tfgpu.artifacts.run_files import RunFiles
from tfgpu.cli.console import duration
from tfgpu.errors import RequestError
from tfgpu.runs.settings import RunsSettings
from tfgpu.train.settings import TrainSettings

DEFAULT = "runs"

_ATTENTION = (
    run_files.RUNNING,
    run_files.FAILED,
    run_files.KILLED,
    run_files.INTERRUPTED,
    run_files.DAMAGED,
    run_files.PAUSED,
    run_files.FINISHED,
)


def run(config: RunsSettings) -> str:
    """Lists runs.

    Args:
        config: The settings.

    Returns:
        What is to be printed.

    Raises:
        RequestError: A path is no directory, or there are too few runs to compare.
    """
    folders = config.paths or (DEFAULT,)
    if not config.paths and not Path(DEFAULT).is_dir():
        raise RequestError(
            f"there is no folder {DEFAULT!r} here; name the folder of your runs: tfgpu runs FOLDER"
        )
    places = dict.fromkeys(place for folder in folders for place in run_files.find(folder))
    found = sorted(map(RunFiles.read, places), key=_KEYS[config.sort])
    if config.compare and len(found) < 2:
        raise RequestError(
            f"--compare: there is {'one run' if found else 'no run'} in {', '.join(folders)}; "
            "name two or more"
        )
    if config.format == "json":
        return json.dumps(_compared(found) if config.compare else list(map(_as_json, found)))
    if not found:
        return f"no runs in {', '.join(folders)}"
    return _comparison(found) if config.compare else _list(found)


def _best(run: RunFiles) -> tuple[Any, ...]:
    """By metric, so that only what can be compared is; the best first, and none last."""
    _, value = run.score
    if value is None:
        return (1, run.metric, 0.0)
    return (0, run.metric, -value if run.maximize else value)


_KEYS: Mapping[str, Callable[[RunFiles], Any]] = {
    # ISO 8601 in UTC sorts as text; the newest first.
    "started": lambda run: [-ord(letter) for letter in run.started],
    "metric": _best,
    "time": lambda run: -(run.seconds or 0.0),
    "status": lambda run: (_ATTENTION.index(run.status), str(run.path)),
    "name": lambda run: str(run.path),
}


def _as_json(run: RunFiles) -> dict[str, Any]:
    name, value = run.score
    done, wanted = run.epochs
    plain: dict[str, Any] = files.plain(
        {
            "run_dir": run.path,
            "status": run.status,
            "reason": run.reason,
            "task": run.dataset.get("task"),
            "dataset": run.config.get("dataset"),
            "model": run.config.get("model"),
            "metric": name,
            "value": value,
            "epochs": done,
            "of_epochs": wanted,
            "seconds": run.seconds,
            "started": run.started,
            "continue": run.continue_command,
            "problems": run.problems,
        }
    )
    return plain


def _compared(runs: Sequence[RunFiles]) -> dict[str, Any]:
    different = run_files.differing(runs, defaults=TrainSettings().to_json())
    return {"runs": list(map(_as_json, runs)), "differences": different}


def _list(runs: Sequence[RunFiles]) -> str:
    rows = [["run", "status", "metric", "", "epochs", "time", "started (UTC)"]]
    for run in runs:
        name, value = run.score
        rows.append(
            [
                str(run.path),
                run.status,
                name if value is not None else "-",
                _number(value),
                _epochs(run),
                "-" if run.seconds is None else duration(run.seconds),
                run.started[:16].replace("T", " "),
            ]
        )
    lines = _aligned(rows)
    for run in runs:
        said = [run.reason or "", *run.problems]
        lines += [_printable(f"{run.path}: {text}") for text in said if text]
    on = {str(run.path): run.continue_command for run in runs if run.continue_command}
    if on:
        lines += ["", "to go on with those that did not finish:", *(f"  {c}" for c in on.values())]
    return "\n".join(lines)


def _comparison(runs: Sequence[RunFiles]) -> str:
    rows = [["", *(str(run.path) for run in runs)], ["status", *(run.status for run in runs)]]
    metrics = dict.fromkeys(name for run in runs for name in run.metric_names)
    for name in (split + metric for metric in metrics for split in ("test_", "val_", "")):
        values = [run.value(name) for run in runs]
        if any(value is not None for value in values):
            rows.append([name, *map(_number, values)])
    rows.append(["epochs", *map(_epochs, runs)])
    known = [run.seconds for run in runs]
    rows.append(["time", *("-" if v is None else duration(v) for v in known)])
    different = run_files.differing(runs, defaults=TrainSettings().to_json())
    rows += [
        [name, *(v if isinstance(v, str) else json.dumps(v) for v in values)]
        for name, values in different.items()
    ]
    lines = _aligned(rows)
    if not different:
        lines.append("the runs have the same settings")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3e}"


def _epochs(run: RunFiles) -> str:
    done, wanted = run.epochs
    return f"{done}/{wanted}" if wanted else str(done)


def _printable(text: str) -> str:
    """Without the control characters that a file may hold, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    shown = [[_printable(cell) for cell in row] for row in rows]
    wide = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, wide, strict=True)).rstrip()
        for row in shown
    ]
