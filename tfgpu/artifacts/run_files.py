"""What the files of a run say, in whatever state it is: for lists, comparisons and reports.

Nothing here fails over a run that is unfinished, was killed, diverged, or was written by an older
version: what is missing is empty, and what cannot be read is named. Nothing here imports
TensorFlow, and nothing that a file says is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfgpu.artifacts import lock
from tfgpu.errors import RequestError

RUNNING = "running"
FINISHED = "finished"
PAUSED = "paused"
INTERRUPTED = "interrupted"
FAILED = "failed"
KILLED = "killed"
DAMAGED = "damaged"
STATUSES = (RUNNING, FINISHED, PAUSED, INTERRUPTED, FAILED, KILLED, DAMAGED)
"""Of a run. "paused" is a trial of a search that may be gone on with; "killed" is one that could
not say how it ended; "damaged" one whose settings cannot be read."""

SEARCH = "search.json"
"""A folder with this file is that of a search, whose trials are runs."""

_NO_METRICS = ("epoch", "step", "samples_per_second", "seconds")
_LOWER_IS_BETTER = ("loss", "error", "rmse", "mse", "mae", "perplexity")
_END_OF_LOG = 1 << 16
_NOT_COMPARED = (
    *("run_dir", "resume", "progress", "verbosity", "report", "dry_run", "join_timeout"),
    *("data_dir", "tensorboard", "profile", "checkpoint_every", "hardware_interval"),
)
"""Settings that change nothing of what a run computes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of one run.

    Attributes:
        path: The run directory.
        config: `config.json`; {} where it cannot be read.
        environment: `environment.json`, likewise.
        result: `result.json`, likewise.
        metrics: The lines of `metrics.jsonl` that are whole.
        status: One of `STATUSES`.
        problems: Lines that name what cannot be read.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    status: str
    problems: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunFiles:
        """Reads the files of a run.

        Args:
            path: The run directory.

        Raises:
            RequestError: It is not one.
        """
        place = Path(path).expanduser()
        if not place.is_dir():
            raise RequestError(f"{str(path)!r} is no directory; name that of a run")
        try:
            names = os.listdir(place)
        except OSError as error:
            raise RequestError(f"{str(path)!r} cannot be read ({error.strerror})") from error
        # What cannot be read, as where it is a link to nothing, is a problem of a run.
        if "config.json" not in names:
            raise RequestError(
                f"{str(path)!r} holds no run (no config.json); name the directory of a run"
            )
        problems: list[str] = []
        # First: a run that ends meanwhile is then said to be running, which it was.
        running = lock.held(place / ".lock")
        config = _object(place / "config.json", problems)
        result = _object(place / "result.json", problems)
        return cls(
            path=place,
            config=config,
            environment=_object(place / "environment.json", problems),
            result=result,
            metrics=tuple(_lines(place / "metrics.jsonl", problems)),
            status=_status(config, result, running=running),
            problems=tuple(problems),
        )

    @property
    def name(self) -> str:
        """The name of the directory."""
        return self.path.resolve().name

    @property
    def dataset(self) -> Mapping[str, Any]:
        """What `environment.json` says of the data."""
        return _mapping(self.environment.get("dataset"))

    @functools.cached_property
    def log(self) -> tuple[str, ...]:
        """The last lines of `log.txt`."""
        try:
            with open(self.path / "log.txt", "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _END_OF_LOG))
                text = file.read().decode(errors="replace")
        except OSError:
            return ()
        return tuple(text.splitlines())

    @property
    def reason(self) -> str | None:
        """Why a run failed, or how it was stopped, in its own words; None where it did not say."""
        if self.status not in (FAILED, INTERRUPTED):
            return None
        said = [line for line in self.log if line.startswith("tfgpu: ")]
        # How to go on is `continue_command`.
        return said[-1].removeprefix("tfgpu: ").partition("; continue with: ")[0] if said else None

    @functools.cached_property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of training, the task's in its order and then the loss."""
        found: dict[str, None] = {}
        for line in self.metrics:
            found |= dict.fromkeys(n for n in line if n not in _NO_METRICS)
        if not found:
            found = dict.fromkeys(
                name.removeprefix("test_").removeprefix("val_")
                for name, value in self.result.items()
                if name.startswith(("test_", "val_")) and isinstance(value, int | float)
            )
        names = [name for name in found if not name.startswith("val_")]
        return tuple(sorted(names, key=lambda name: name == "loss"))

    @property
    def metric(self) -> str:
        """The task's first metric, which a search would compare."""
        return str(self.dataset.get("objective") or next(iter(self.metric_names), "loss"))

    @property
    def maximize(self) -> bool:
        """Whether more of `metric` is better; guessed from its name for an older run."""
        recorded = self.dataset.get("maximize")
        if isinstance(recorded, bool):
            return recorded
        return not any(word in self.metric for word in _LOWER_IS_BETTER)

    def value(self, name: str) -> float | None:
        """A figure of the outcome, such as "test_accuracy": of the result, else the last epoch."""
        sources = [self.result, *self.metrics[-1:]]
        if self.result.get("status") == RUNNING:
            sources.reverse()  # The result is that of an earlier process.
        for source in sources:
            value = source.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                with contextlib.suppress(OverflowError):
                    return float(value)
        return None

    @property
    def score(self) -> tuple[str, float | None]:
        """The first metric on the test split, else on validation, else on training: name, value."""
        for split in ("test_", "val_", ""):
            value = self.value(split + self.metric)
            if value is not None:
                return split + self.metric, value
        return f"test_{self.metric}", None

    @property
    def epochs(self) -> tuple[int, int | None]:
        """Epochs done, and those that there are to be."""
        last = self.metrics[-1].get("epoch") if self.metrics else None
        done = last if isinstance(last, int) else self.result.get("epochs")
        wanted = self.config.get("epochs")
        return done if isinstance(done, int) else 0, wanted if isinstance(wanted, int) else None

    @property
    def seconds(self) -> float | None:
        """Seconds that the run took: of its last process; of its epochs where it did not say."""
        total = self.value("total_seconds")
        if total is not None:
            return total
        epochs = [line.get("seconds") for line in self.metrics]
        known = [value for value in epochs if isinstance(value, int | float)]
        return float(sum(known)) if known else None

    @property
    def started(self) -> str:
        """When its last process began, or it was made: ISO 8601, in UTC; "" where nothing tells."""
        recorded = self.environment.get("time")
        if isinstance(recorded, str):
            return recorded
        try:
            changed = (self.path / "config.json").lstat().st_mtime
        except OSError:
            return ""
        return datetime.datetime.fromtimestamp(changed, datetime.UTC).isoformat(timespec="seconds")

    @property
    def continue_command(self) -> str | None:
        """The command that goes on with it; None where there is nothing to go on with."""
        if self.status in (RUNNING, FINISHED, DAMAGED):
            return None
        return self._command(self.path)

    @property
    def repeat_command(self) -> str | None:
        """The command that makes the same run again, in another directory."""
        if self.status == DAMAGED:
            return None
        return self._command(self.path.with_name(f"{self.path.name}-again"))

    def _command(self, run_dir: Path) -> str:
        config = self.path / "config.json"
        return shlex.join(["tfgpu", "train", f"--experiment={config}", f"--run_dir={run_dir}"])

    def settings(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that make the run what it is, for a comparison.

        Args:
            defaults: Of settings that an older version did not know; they had their default's
                effect.
        """
        known = {**defaults, **self.config}
        return {name: value for name, value in known.items() if name not in _NOT_COMPARED}


def find(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The run directories in a folder and below; the folder itself where it is one.

    Trials of a search are left out, unless the folder is that of the search.

    Args:
        folder: Where to look.

    Yields:
        Paths, sorted.

    Raises:
        RequestError: There is no such folder.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise RequestError(f"{str(folder)!r} is no directory; name a folder of runs, or a run")
    if os.path.lexists(place / "config.json"):
        yield place
        return
    for parent, folders, names in os.walk(place, followlinks=False):
        below = Path(parent)
        if below != place and ("config.json" in names or SEARCH in names):
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if below != place and "config.json" in names and SEARCH not in names:
            yield below


def differing(runs: Sequence[RunFiles], *, defaults: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings in which runs differ.

    Args:
        runs: Two or more.
        defaults: Of all settings.

    Returns:
        By name, the value in each run; None where a run does not have the setting.
    """
    settings = [run.settings(defaults) for run in runs]
    names = dict.fromkeys(name for each in settings for name in each)
    found = {name: [each.get(name) for each in settings] for name in names}
    return {
        name: values
        for name, values in found.items()
        if any(value != values[0] for value in values)
    }


def _status(config: Mapping[str, Any], result: Mapping[str, Any], *, running: bool) -> str:
    if not config:
        return DAMAGED
    if running:
        return RUNNING
    status = result.get("status")
    return status if status in (FINISHED, PAUSED, INTERRUPTED, FAILED) else KILLED


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.is_symlink():
            problems.append(f"{path.name} is a link to nothing")
        return {}
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return {}
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} is damaged: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} is damaged: it holds no JSON object")
        return {}
    return value


def _lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines; a last one that is being written is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            if number < len(lines):
                problems.append(f"{path.name}, line {number}, is damaged")
            continue
        if isinstance(value, dict):
            yield value
