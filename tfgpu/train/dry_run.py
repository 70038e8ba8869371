"""What `--dry_run` says in the place of a training: every decided setting, and the files."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfgpu.artifacts.run_directory import default_path
from tfgpu.cli import dry_run
from tfgpu.cli.settings import as_typed
from tfgpu.data import sources
from tfgpu.data.tfds_source import default_data_dir
from tfgpu.machine import compile_cache
from tfgpu.tasks.loading import Dataset
from tfgpu.tasks.options import HEEDED
from tfgpu.train.recipe import Resolved, second_rate, takes

_REPORT = "report.html"


def describe(
    config: Resolved,
    asked: Mapping[str, Any],
    *,
    data: Dataset,
    build: Callable[..., Any],
    progress: str,
    workers: int,
) -> str:
    """Lines for a person.

    Args:
        config: With every setting decided.
        asked: What `given` says of the settings as they were given.
        data: Which decide the task, where that was left open.
        build: What builds the model, and decides its width and depth.
        progress: How it is shown.
        workers: Processes that train together.
    """
    place = Path(config.run_dir).expanduser() if config.run_dir else None
    shown = place or default_path(dataset=data.name, model=config.model, ending="TIME")
    validated = data.validation.num_examples if data.validation else 0
    decided = _decided(config, data, build) | {"run_dir": str(shown), "progress": progress}
    lines = [
        f"data             {data.train.num_examples:,} {data.task.unit} to train on, "
        f"{validated:,} to validate, {data.test.num_examples:,} to test ({data.test_split})",
        "",
        "every setting, decided:",
        *dry_run.settings(config, asked, decided=decided, unused=_unused(config, data, build)),
    ]
    going_on = place is not None and (place / "config.json").exists()
    lines += ["", f"would {'go on in' if going_on else 'make'} {shown}, with:"]
    lines += [f"  {name}" for name in files(config, fitted=bool(data.spec.fitted), workers=workers)]
    return "\n".join([*lines, "", dry_run.NOTHING])


def _decided(config: Resolved, data: Dataset, build: Callable[..., Any]) -> dict[str, str]:
    """What data and model make of the settings that were left to them, as it is typed."""
    found = {"task": data.task_name, "data_dir": default_data_dir(config.data_dir)}
    if config.compile_cache == compile_cache.AUTO:
        found["compile_cache"] = str(compile_cache.chosen(compile_cache.AUTO) or compile_cache.NONE)
    if data.roles:
        found["features"] = ",".join(f"{role}={name}" for role, name in data.roles.items())
    if "y" in data.roles:
        found["target"] = data.roles["y"]
    if "tokens" in data.spec.fitted:
        found["tokens"] = str(data.spec.fitted["tokens"])
    if data.spec.image_shape is not None:
        found["image_size"] = as_typed(data.spec.image_shape[:2])
    for name, parameter in inspect.signature(build).parameters.items():
        if name in ("width", "depth") and parameter.default is not parameter.empty:
            found[name] = as_typed(parameter.default)
    if config.unfreeze_at is not None:
        found["unfreeze_learning_rate"] = as_typed(second_rate(config))
    return found


def _unused(config: Resolved, data: Dataset, build: Callable[..., Any]) -> dict[str, str]:
    """Why settings have no meaning for this run, by name."""
    found = {
        name: f"not of the task {data.task_name}"
        for name in HEEDED
        if name not in data.task.settings
    }
    left = [name for name in ("width", "depth") if not takes(build, name)]
    found |= dict.fromkeys(left, f"not of the model {config.model}")
    if config.unfreeze_at is None:
        found["unfreeze_learning_rate"] = "without --unfreeze_at"
    if not sources.is_prepared(config.dataset):
        found["data_dir"] = "only for sets of TensorFlow Datasets"
    return found


def files(config: Resolved, *, fitted: bool, workers: int) -> list[str]:
    """The names of the files and folders of a run, in the order in which they come to be."""
    names = ["config.json", "environment.json", "log.txt"]
    names += ["fitted.json"] if fitted else []
    names += [f"workers/{rank}.log" for rank in range(1, workers)]
    names += ["tensorboard/"] if config.tensorboard != "none" else []
    names += ["tracking/"] if config.log_to != "none" else []
    names += ["metrics.jsonl", "checkpoints/", "model.keras", "result.json"]
    return names + ([_REPORT] if config.report else [])
