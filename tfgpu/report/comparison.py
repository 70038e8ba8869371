"""What a report says of several runs: differences in settings, and the spread over seeds."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from tfgpu.artifacts import run_files
from tfgpu.artifacts.run_files import RunFiles
from tfgpu.cli.console import duration
from tfgpu.report import tables
from tfgpu.report.charts import Chart, Series, figure, line_chart
from tfgpu.report.tables import Table
from tfgpu.train.settings import TrainSettings

_SPLITS = ("test_", "val_", "")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        name: Of the runs, in one text.
        runs: Two or more.
    """

    name: str
    runs: tuple[RunFiles, ...]


def defaults() -> dict[str, Any]:
    """Of the settings that a run of an older version does not have."""
    return TrainSettings().to_json()


def names_of(runs: Sequence[RunFiles]) -> list[str]:
    """A name for each run: that of its directory, or its path where two have the same."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.path)
        for name, run in zip(names, runs, strict=True)
    ]


def overview(runs: Sequence[RunFiles]) -> Table:
    """A row a run: its state and its figures."""
    metrics = _metrics(runs)
    head = ["run", "status", "epochs", "time", *(s + name for name in metrics for s in _SPLITS[:2])]
    rows = []
    for name, run in zip(names_of(runs), runs, strict=True):
        done, wanted = run.epochs
        seconds = run.seconds
        row = [name, run.status, f"{done} of {wanted}" if wanted else str(done)]
        row.append("-" if seconds is None else duration(seconds))
        row += [figure(run.value(s + metric)) for metric in metrics for s in _SPLITS[:2]]
        rows.append(row)
    return Table("The runs", head, rows)


def settings(runs: Sequence[RunFiles]) -> Table | None:
    """The settings in which they differ; None where there are none."""
    found = run_files.differing(runs, defaults=defaults())
    rows = [[name, *map(tables.as_set, values)] for name, values in found.items()]
    caption = "Settings in which the runs differ"
    return Table(caption, ["setting", *names_of(runs)], rows) if rows else None


def environments(runs: Sequence[RunFiles]) -> Table | None:
    """What they stood on, where that differs, and the fingerprints of their data."""
    asked: dict[str, Callable[[RunFiles], Any]] = {
        "data: fingerprint": lambda run: run.dataset.get("fingerprint"),
        "git": lambda run: run.environment.get("git"),
        "platform": lambda run: run.environment.get("platform"),
        "devices": lambda run: [
            each.get("description") if isinstance(each, dict) else None
            for each in _as(list, run.environment.get("devices"))
        ],
        "replicas": lambda run: run.environment.get("replicas"),
    }
    versions = dict.fromkeys(name for run in runs for name in _versions(run))
    for library in versions:
        asked[f"version of {library}"] = lambda run, library=library: (  # type: ignore[misc]
            _versions(run).get(library)
        )
    rows = []
    for name, ask in asked.items():
        values = [ask(run) for run in runs]
        if any(value != values[0] for value in values):
            rows.append([name, *map(tables.text, values)])
    caption = "What they stood on, where it differs"
    return Table(caption, ["what", *names_of(runs)], rows) if rows else None


def _versions(run: RunFiles) -> dict[str, Any]:
    return _as(dict, run.environment.get("versions"))


def _as(kind: type[Any], value: Any) -> Any:
    """The value where it is of a kind, else an empty one: a file may say anything."""
    return value if isinstance(value, kind) else kind()


def groups(runs: Sequence[RunFiles]) -> list[Group]:
    """The runs that differ in their seed alone, where there are two or more."""
    found: dict[str, list[tuple[str, RunFiles]]] = {}
    for name, run in zip(names_of(runs), runs, strict=True):
        same = {key: value for key, value in run.settings(defaults()).items() if key != "seed"}
        same["data"] = run.dataset.get("fingerprint")
        found.setdefault(json.dumps(same, sort_keys=True), []).append((name, run))
    return [
        Group(", ".join(name for name, _ in each), tuple(run for _, run in each))
        for each in found.values()
        if len({run.config.get("seed") for _, run in each}) > 1
    ]


def spread(group: Group) -> Table | None:
    """Mean, standard deviation and range of each figure over the seeds of a group."""
    rows = []
    for metric in _metrics(group.runs):
        for split in _SPLITS:
            known = [run.value(split + metric) for run in group.runs]
            values = [value for value in known if value is not None]
            if len(values) > 1:
                rows.append(
                    [
                        split + metric,
                        str(len(values)),
                        figure(statistics.fmean(values)),
                        figure(statistics.stdev(values)),
                        figure(min(values)),
                        figure(max(values)),
                    ]
                )
    if not rows:
        return None
    head = ["figure", "runs", "mean", "standard deviation", "lowest", "highest"]
    note = "The standard deviation is that of a sample (divided by n - 1)."
    return Table(f"Over the seeds of {group.name}", head, rows, note)


def curves(runs: Sequence[RunFiles]) -> list[Chart]:
    """A chart a metric and split: a line a run, of the seeds of a group their mean and range."""
    grouped = groups(runs)
    in_group = {id(run) for group in grouped for run in group.runs}
    charts = []
    for metric in _metrics(runs):
        for split in ("val_", ""):
            series = [_mean(group, split + metric) for group in grouped]
            series += [
                Series(name, _points(run, split + metric))
                for name, run in zip(names_of(runs), runs, strict=True)
                if id(run) not in in_group
            ]
            charts.append(line_chart(split + metric, series))
    return [chart for chart in charts if chart is not None]


def _points(run: RunFiles, name: str) -> list[tuple[float, float | None]]:
    found = []
    for line in run.metrics:
        epoch, value = line.get("epoch"), line.get(name)
        if isinstance(epoch, int):
            found.append((float(epoch), value if isinstance(value, int | float) else None))
    return found


def _mean(group: Group, name: str) -> Series:
    by_epoch: dict[float, list[float]] = {}
    for run in group.runs:
        for epoch, value in _points(run, name):
            if value is not None:
                by_epoch.setdefault(epoch, []).append(value)
    known = sorted(by_epoch.items())
    return Series(
        f"mean of {group.name}",
        [(epoch, statistics.fmean(values)) for epoch, values in known],
        band=[(epoch, min(values), max(values)) for epoch, values in known if len(values) > 1],
    )


def _metrics(runs: Sequence[RunFiles]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.metric_names))
