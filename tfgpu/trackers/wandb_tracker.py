"""A run of Weights & Biases. Importing this needs wandb (the extra `wandb`).

The account, the server, the project and the mode are those of W&B's own variables and files, and
without an account the mode is offline. Only what the record has is sent: W&B's own samples of the
machine, the source code, the git state, the terminal and the list of packages are turned off.
"""

from __future__ import annotations

import html
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb

from tfgpu.trackers.run_record import Record, RunRecord

PROJECT = "tfgpu"


class WandbTracker:
    """See `tfgpu.trackers.tracker.Tracker`."""

    name = "wandb"

    def __init__(self) -> None:
        self._record: Any = None
        self._run: Any = None
        self._first = 0  # W&B's steps below this are there.

    def open(self, record: RunRecord) -> str:
        self._record = record
        if self._run is not None:  # An attempt that failed.
            self._run.finish(exit_code=1)
            self._run = None
        mode, why = chosen_mode()
        if mode == "disabled":
            return f"nothing is logged, {why}"
        identity, before = record.identity, self._offline_files()
        group = identity.get("group") or {}
        self._run = run = wandb.init(
            project=wandb.setup().settings.project or PROJECT,
            id=identity["id"],
            name=identity["name"],
            group=group.get("name"),
            dir=str(record.run_dir),
            config=record.settings | {"environment": record.environment},
            resume="allow",
            mode=mode,
            settings=wandb.Settings(
                console="off",
                silent=True,
                host="",
                disable_git=True,
                disable_code=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        run.config.update(record.settings, allow_val_change=True)
        run.define_metric("*", step_metric="step")
        self._first = run.starting_step
        if mode == "offline":
            # W&B's files are not continued. So each has the run from its beginning, which the
            # record holds, and takes the place of those before it that were not sent.
            for folder in before:
                shutil.rmtree(folder, ignore_errors=True)
            folder = Path(run.settings.sync_dir)
            return f"offline{why}; to send it: wandb sync {shlex.quote(str(folder))}"
        return str(run.url)

    def has(self, record: Record) -> bool:
        return record.order < self._first

    def log(self, records: Sequence[Record]) -> None:
        if self._run is None:
            return
        for record in records:
            values: dict[str, Any] = dict(record.values)
            if record.file:
                values[record.tag] = self._picture(record)
            values |= {"step": record.step, "_timestamp": record.time}
            self._run.log(values, step=record.order)

    def end(self, ending: str) -> None:
        if self._run is None:
            return
        run, record = self._run, self._record
        run.summary.update({**record.figures, "status": ending})
        if record.model is not None:
            artifact = wandb.Artifact(f"model-{run.id}", type="model")
            for path in (record.model, *record.documents):
                # As it lies in the run directory, without a copy in W&B's cache.
                artifact.add_file(str(path), policy="immutable", skip_cache=True)
            run.log_artifact(artifact)
        run.finish(exit_code=0 if ending in ("finished", "paused") else 1)
        self._run = None

    def _picture(self, record: Record) -> Any:
        path = self._record.picture(record)
        if path.suffix == ".md":
            return wandb.Html(f"<pre>{html.escape(path.read_text(encoding='utf-8'))}</pre>")
        return wandb.Image(str(path), caption=record.description)

    def _offline_files(self) -> list[Path]:
        """Folders of this run that W&B wrote offline and that were not sent."""
        pattern = f"offline-run-*-{self._record.identity['id']}"
        found = (self._record.run_dir / "wandb").glob(pattern)
        return [folder for folder in found if not any(folder.glob("*.synced"))]


def chosen_mode() -> tuple[str, str]:
    """W&B's mode for this run, and why it is not online."""
    mode = wandb.setup().settings.mode
    if mode in ("offline", "dryrun"):
        return "offline", " as W&B is set to"
    if mode == "disabled":
        return "disabled", "as W&B is set to be disabled"
    # Asks nobody: neither the user, since this process has no terminal, nor W&B.
    if not wandb.login(prompt=False, verify=False):
        return "offline", " for want of an account (wandb login)"
    return "online", ""
