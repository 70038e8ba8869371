"""What `--dry_run` says in the place of a training: every decided setting, and the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfgpu.artifacts.run_directory import default_path
from tfgpu.cli.settings import Settings, as_typed
from tfgpu.tasks.loading import Dataset
from tfgpu.train.recipe import Resolved

_REPORT = "report.html"


def given(config: Settings) -> dict[str, Any]:
    """The settings that were given: those that are not as the class has them."""
    defaults = type(config)().to_json()
    return {
        name: value
        for name, value in config.to_json().items()
        if value != defaults[name] and name not in config.names(on_resume="ignored")
    }


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
        *settings(dataclasses.replace(config, task=data.task_name), asked),
    ]
    going_on = place is not None and (place / "config.json").exists()
    lines += ["", f"would {'go on in' if going_on else 'make'} {shown}, with:"]
    lines += [f"  {name}" for name in files(config, fitted=bool(data.spec.fitted), workers=workers)]
    return "\n".join([*lines, "", "a dry run: nothing has been written"])


def settings(config: Settings, asked: Mapping[str, Any]) -> list[str]:
    """A line a setting, as it is typed, with who has decided it.

    Args:
        config: The settings.
        asked: What `given` says of them as they were given.
    """
    defaults = type(config)
    rows = []
    for section in defaults.page().values():
        for name, setting in section.items():
            if setting.on_resume == "ignored" and name not in ("run_dir", "resume"):
                continue
            value = getattr(config, name)
            word = setting.word if value is None and setting.word is not None else None
            flag = f"--{name}={word or as_typed(value)}"
            how = "given" if name in asked or (name == "run_dir" and value is not None) else ""
            if not how and value != getattr(defaults, name):
                how = "decided"
            rows.append((flag, how))
    wide = max(len(flag) for flag, how in rows if how) if any(how for _, how in rows) else 0
    return [f"  {flag:<{wide}}  {how}".rstrip() for flag, how in rows]


def files(config: Resolved, *, fitted: bool, workers: int) -> list[str]:
    """The names of the files and folders of a run, in the order in which they come to be."""
    names = ["config.json", "environment.json", "log.txt"]
    names += ["fitted.json"] if fitted else []
    names += [f"workers/{rank}.log" for rank in range(1, workers)]
    names += ["tensorboard/"] if config.tensorboard != "none" else []
    names += ["metrics.jsonl", "checkpoints/", "model.keras", "result.json"]
    return names + ([_REPORT] if config.report else [])
