"""What `--dry_run` says in the place of a training: every decided setting, and the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpu.artifacts.run_directory import default_path
from tfgpu.cli import dry_run
from tfgpu.tasks.loading import Dataset
from tfgpu.train.recipe import Resolved

_REPORT = "report.html"


def describe(config: Resolved, asked: Mapping[str, Any], *, data: Dataset, workers: int) -> str:
    """Lines for a person.

    Args:
        config: With every setting decided.
        asked: What `given` says of the settings as they were given.
        data: Which decide the task, where that was left open.
        workers: Processes that train together.
    """
    place = Path(config.run_dir).expanduser() if config.run_dir else None
    shown = place or default_path(dataset=data.name, model=config.model, ending="TIME")
    validated = data.validation.num_examples if data.validation else 0
    lines = [
        f"data             {data.train.num_examples:,} {data.task.unit} to train on, "
        f"{validated:,} to validate, {data.test.num_examples:,} to test ({data.test_split})",
        "",
        "every setting, decided:",
        *dry_run.settings(dataclasses.replace(config, task=data.task_name), asked),
    ]
    going_on = place is not None and (place / "config.json").exists()
    lines += ["", f"would {'go on in' if going_on else 'make'} {shown}, with:"]
    lines += [f"  {name}" for name in files(config, fitted=bool(data.spec.fitted), workers=workers)]
    return "\n".join([*lines, "", dry_run.NOTHING])


def files(config: Resolved, *, fitted: bool, workers: int) -> list[str]:
    """The names of the files and folders of a run, in the order in which they come to be."""
    names = ["config.json", "environment.json", "log.txt"]
    names += ["fitted.json"] if fitted else []
    names += [f"workers/{rank}.log" for rank in range(1, workers)]
    names += ["tensorboard/"] if config.tensorboard != "none" else []
    names += ["tracking/"] if config.log_to != "none" else []
    names += ["metrics.jsonl", "checkpoints/", "model.keras", "result.json"]
    return names + ([_REPORT] if config.report else [])
