"""What `tfgpu export --dry_run` says: every setting, and the files."""

from __future__ import annotations

import dataclasses

from tfgpu.artifacts.trained_run import TrainedRun
from tfgpu.cli import dry_run
from tfgpu.export.settings import EXPORT_FILES, ExportSettings


def describe(config: ExportSettings, run: TrainedRun) -> str:
    """Lines for a person.

    Args:
        config: The settings.
        run: What `--run_dir` holds.
    """
    directory = config.directory(run.path)
    decided = dataclasses.replace(
        config,
        out=str(directory),
        formats=",".join(config.chosen_formats),
        dataset=config.dataset or run.config["dataset"],
        data_dir=config.data_dir or (None if config.dataset else run.config["data_dir"]),
    )
    lines = [f"task             {run.dataset.get('task', 'classification')}", ""]
    lines += [
        "every setting, decided:",
        *dry_run.settings(decided, dry_run.given(config, of_the_process=True)),
    ]
    lines += ["", f"would write to {directory}:"]
    for kind in config.chosen_formats:
        path = directory / EXPORT_FILES[kind]
        # Of a SavedModel each export is a version of its own, which replaces nothing.
        replaces = path.exists() and kind != "saved_model"
        lines.append(
            f"  {path.name}{'/N' if kind == 'saved_model' else ''}"
            f"{'  (replaces the one there)' if replaces else ''}"
        )
    names = ["labels.txt"] if run.dataset.get("class_names") else []
    lines += [f"  {name}" for name in (*names, "export.json")]
    if config.formats == "all":
        lines.append("Of these, formats that the task has no file of are left out.")
    lines.append("A file that differs too much from the model gets the name NAME.rejected.")
    return "\n".join([*lines, "", dry_run.NOTHING])
