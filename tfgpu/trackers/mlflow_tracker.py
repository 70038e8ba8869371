"""A run of MLflow. Importing this needs mlflow (the extra `mlflow`).

Where it is kept and in which experiment say MLflow's own variables, MLFLOW_TRACKING_URI and
MLFLOW_EXPERIMENT_NAME; without them it is MLflow's own default, a file in the working directory,
and the experiment "tfgpu". What the run has is asked of MLflow itself, so that an epoch that was
sent just before a kill is not sent again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag

from tfgpu.trackers.run_record import Record, RunRecord

EXPERIMENT = "tfgpu"

_STATUS = {
    "finished": "FINISHED",
    "paused": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
    "killed": "KILLED",
}
_PATIENCE = 30.0
"""Seconds that a trial waits for the run of its search."""

_ID, _MODEL = "tfgpu.id", "tfgpu.model_sha256"
_MOST_METRICS, _MOST_PARAMS, _LONGEST = 1000, 100, 6000
"""Metrics and parameters that one request may have, and characters of a parameter."""


class MlflowTracker:
    """See `tfgpu.trackers.tracker.Tracker`."""

    name = "mlflow"

    def __init__(self) -> None:
        self._record: Any = None
        self._client: Any = None
        self._run_id = ""
        self._epochs: set[int] = set()
        self._system_step = -1
        self._pictures: set[str] = set()

    def open(self, record: RunRecord) -> str:
        self._record = record
        uri = without_credentials(mlflow.get_tracking_uri())
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        place = without_secrets(uri)
        run = self._find(place) or self._create()
        self._run_id = run.info.run_id
        known = record.known(self.name)
        if known.get(place) != self._run_id:
            record.remember(self.name, known | {place: self._run_id})
        if run.info.status != "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")
        self._log_settings(run)
        history = self._client.get_metric_history(self._run_id, "epoch")
        self._epochs = {metric.step for metric in history}
        self._system_step = self._last_system_step(run)
        files = self._client.list_artifacts(self._run_id, "pictures")
        self._pictures = {Path(file.path).name for file in files}
        experiment = self._client.get_experiment(run.info.experiment_id).name
        return f"run {self._run_id} of the experiment {experiment!r} at {place}"

    def has(self, record: Record) -> bool:
        if record.kind == "epoch":
            return record.step in self._epochs
        if record.kind == "system":
            return record.step <= self._system_step
        return record.file in self._pictures

    def log(self, records: Sequence[Record]) -> None:
        metrics: list[Metric] = []
        for record in records:
            found = [
                Metric(key(name), value, round(1e3 * record.time), record.step)
                for name, value in record.values.items()
            ]
            # A request holds whole records: one that fails leaves none in part, which `has` would
            # take for there.
            if len(metrics) + len(found) > _MOST_METRICS:
                self._log_metrics(metrics)
                metrics = []
            metrics += found
        self._log_metrics(metrics)
        for record in records:
            if record.file:
                picture = str(self._record.picture(record))
                self._client.log_artifact(self._run_id, picture, "pictures")

    def end(self, ending: str) -> None:
        run = self._client.get_run(self._run_id)
        record = self._record
        figures = {key(name): value for name, value in record.figures.items()}
        new = {k: v for k, v in figures.items() if run.data.metrics.get(k) != v}
        now, step = round(1e3 * time.time()), int(record.result.get("steps") or 0)
        self._log_metrics([Metric(name, value, now, step) for name, value in new.items()])
        for path in record.documents:
            self._client.log_artifact(self._run_id, str(path))
        if record.model is not None:
            digest = _digest(record.model)
            if run.data.tags.get(_MODEL) != digest:
                self._client.log_artifact(self._run_id, str(record.model), "model")
                self._client.set_tag(self._run_id, _MODEL, digest)
        self._client.set_terminated(self._run_id, _STATUS[ending])

    def _find(self, place: str) -> Run | None:
        """The run that was made for this record."""
        run_id = self._record.known(self.name).get(place)
        if run_id is not None:
            return self._client.get_run(run_id)
        # The process may have been killed before it could keep the id.
        return self._tagged(self._experiment(), self._record.identity["id"])

    def _tagged(self, experiment: str, id: str) -> Run | None:
        found = self._client.search_runs([experiment], f"tags.`{_ID}` = '{id}'", max_results=1)
        return found[0] if found else None

    def _create(self) -> Run:
        identity, experiment = self._record.identity, self._experiment()
        tags = {_ID: identity["id"], "mlflow.source.name": "tfgpu"}
        revision = (self._record.environment.get("git") or {}).get("revision")
        if revision:
            tags["mlflow.source.git.commit"] = revision
        if group := identity.get("group"):
            tags["mlflow.parentRunId"] = self._parent(experiment, group).info.run_id
        return self._client.create_run(experiment, tags=tags, run_name=identity["name"])

    def _parent(self, experiment: str, group: Mapping[str, str]) -> Run:
        """The run of a search, which the process of the search makes."""
        last = time.monotonic() + _PATIENCE
        while (found := self._tagged(experiment, group["id"])) is None:
            if time.monotonic() > last:  # That process failed.
                tags = {_ID: group["id"], "mlflow.source.name": "tfgpu"}
                return self._client.create_run(experiment, tags=tags, run_name=group["name"])
            time.sleep(1.0)
        return found

    def _experiment(self) -> str:
        """The id of the experiment, which is made where there is none."""
        if found := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return found
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name))
            except mlflow.MlflowException:  # Another process has just made it.
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return str(experiment.experiment_id)

    def _log_settings(self, run: Run) -> None:
        found = self._record.settings.items()
        settings = {key(name): text(value)[:_LONGEST] for name, value in found}
        new = [Param(k, v) for k, v in settings.items() if k not in run.data.params]
        for some in _chunks(new, _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=some)
        # Parameters cannot be changed: what a continued run may change is in tags.
        changed = {k: v for k, v in settings.items() if run.data.params.get(k, v) != v}
        tags = [RunTag(f"continued.{name}", value) for name, value in changed.items()]
        if tags:
            self._client.log_batch(self._run_id, tags=tags)

    def _last_system_step(self, run: Run) -> int:
        for name in run.data.metrics:
            if name.startswith("system/"):
                history = self._client.get_metric_history(self._run_id, name)
                return max((metric.step for metric in history), default=-1)
        return -1

    def _log_metrics(self, metrics: Sequence[Metric]) -> None:
        for some in _chunks(metrics, _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=some)


def without_credentials(uri: str) -> str:
    """The address without a name and a password, which go where MLflow looks for them too."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    given, _, host = parts.netloc.rpartition("@")
    name, _, password = given.partition(":")
    os.environ["MLFLOW_TRACKING_USERNAME"] = urllib.parse.unquote(name)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = urllib.parse.unquote(password)
    return parts._replace(netloc=host).geturl()


def without_secrets(uri: str) -> str:
    """The address of a server or a database as it may be said and kept."""
    parts = urllib.parse.urlsplit(uri)
    if not parts.netloc:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def key(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def text(value: Any) -> str:
    """A setting as MLflow, which has text alone, shows it."""
    if isinstance(value, list):
        return "x".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chunks(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), most):
        yield items[first : first + most]
