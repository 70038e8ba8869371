"""The table of trials that is shown while a search runs, or a line for each change."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import rich.table
from rich.live import Live

from tfgpu.cli.console import Console, duration
from tfgpu.cli.settings import as_typed
from tfgpu.tune.oracle import COMPLETED, FAILED, RUNNING

_ROWS = 15  # Trials shown: the running ones, the best, and the latest.


def shown_settings(values: Mapping[str, Any]) -> str:
    """Formats hyperparameters as text, without those that KerasTuner adds."""
    return ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={as_typed(value)}"
        for name, value in values.items()
        if not name.startswith("tuner/")
    )


class TrialsTable:
    """Shows the trials of a search: as a live table on a terminal, as lines elsewhere.

    Use it as a context.

    Args:
        console: Where to show them.
        objective: The metric by which trials are compared.
    """

    def __init__(self, console: Console, objective: str):
        self._console = console
        self._objective = objective
        self._best: float | None = None
        self._shown: dict[str, str] = {}
        self._live: Live | None = None

    def __enter__(self) -> TrialsTable:
        if self._console.mode == "bar":
            self._live = Live(console=self._console.rich, auto_refresh=False, transient=True)
            self._live.start()
            self._console.live = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._console.live = False
            self._live.stop()
            self._live = None

    def show(self, oracle: Any, *, left: float | None) -> None:
        """Shows the state of the search.

        Args:
            oracle: With its trials and records.
            left: Seconds until the time is up; None without a limit.
        """
        for trial in list(oracle.trials.values()):
            record = oracle.records.get(trial.trial_id, {})
            previous = self._shown.get(trial.trial_id)
            now = trial.status
            if now == RUNNING and trial.trial_id in oracle.pending:
                now = "WAITING"
            if now != previous:
                self._shown[trial.trial_id] = now
                if previous is not None or now == RUNNING:
                    self._print(trial, record, now)
        if self._live is not None:
            self._live.update(self.table(oracle, left=left), refresh=True)

    def mark_shown(self, oracle: Any) -> None:
        """Marks the trials as shown, as an earlier process has shown them."""
        self._shown = {trial.trial_id: trial.status for trial in oracle.trials.values()}
        for trial_id in oracle.pending:
            self._shown[trial_id] = "WAITING"

    def _print(self, trial: Any, record: Mapping[str, Any], status: str) -> None:
        number = f"trial {trial.trial_id}"
        if status == COMPLETED:
            epochs = record.get("epochs")
            text = (
                f"{number}  {self._objective} {trial.score:.4f}  after {epochs} "
                f"epoch{'' if epochs == 1 else 's'}, {duration(record.get('seconds', 0.0))}"
            )
        elif status == FAILED:
            text = f"{number}  failed: {record.get('reason')}"
        elif status == RUNNING:
            text = f"{number}  {shown_settings(trial.hyperparameters.values)}"
            past = trial.hyperparameters.values.get("tuner/trial_id")
            if past is not None:
                text = f"{number}  goes on with trial {past}"
        else:
            text = f"{number}  waits to be gone on with"
        self._console.progress_line(text)

    def table(self, oracle: Any, *, left: float | None) -> rich.table.Table:
        """Makes the table: running trials, the best ones, and then the latest."""
        trials = list(oracle.trials.values())
        ended = [trial for trial in trials if trial.status == COMPLETED]
        lowest = oracle.objective.direction == "min"
        ended.sort(key=lambda trial: trial.score if lowest else -trial.score)
        running = list(oracle.ongoing_trials.values())
        rows = [*running, *ended[: _ROWS - 5]]
        rows += [trial for trial in reversed(trials) if trial not in rows]
        failed = sum(trial.status == FAILED for trial in trials)
        title = f"{len(trials)} trials, {len(ended)} completed, {failed} failed"
        if left is not None:
            title += f", {duration(max(0.0, left))} left"
        table = rich.table.Table(title=title, title_justify="left", expand=False)
        for name in ("trial", "status", "epochs", self._objective, "time", "settings"):
            right = name in ("epochs", self._objective, "time")
            table.add_column(name, justify="right" if right else "left", no_wrap=name != "settings")
        for trial in rows[:_ROWS]:
            record = oracle.records.get(trial.trial_id, {})
            score = trial.score
            if trial in running:
                score = record.get("metrics", {}).get(self._objective)
            seconds = record.get("seconds")
            if seconds is None and trial in running:
                seconds = time.time() - record.get("started", time.time())
            table.add_row(
                trial.trial_id,
                trial.status.lower(),
                str(record.get("epochs", "")),
                "" if score is None else f"{score:.4f}",
                "" if seconds is None else duration(seconds),
                record["reason"]
                if trial.status == FAILED and "reason" in record
                else shown_settings(trial.hyperparameters.values),
            )
        return table
