"""Settings that a task takes: which features, and its own options, from how they are typed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from tfgpu.cli.settings import read_pairs
from tfgpu.errors import RequestError, did_you_mean
from tfgpu.tasks.task import DataSpec, Task

HEEDED = ("image_size", "label_smoothing", "class_weight", "target", "tokens")
"""Settings that some tasks have no meaning for."""

_OFF = (None, 0, 0.0, "none")


def read_roles(features: str | None, target: str | None = None) -> dict[str, str]:
    """Features by role: "x=image,y=mask" to {"x": "image", "y": "mask"}; a target is y.

    Raises:
        RequestError: The two name different features for y.
    """
    roles = read_pairs(features) if features else {}
    if target and roles.setdefault("y", target) != target:
        raise RequestError(
            f"--target={target} and --features={features} name two features for y; give one"
        )
    return roles


def read_options(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], *, task: str
) -> dict[str, Any]:
    """The options of a task, out of the settings of a run.

    Args:
        settings: With `target`, `tokens` and `task_options`, of which each may be absent.
        defaults: `Task.options`: what there is, with the types.
        task: Its name, for messages.

    Returns:
        `target`, `tokens` and every option of the task.

    Raises:
        RequestError: An option is unknown, or not of its type.
    """
    found = {name: settings.get(name) for name in ("target", "tokens")} | dict(defaults)
    given = settings.get("task_options")
    for name, text in (read_pairs(given) if given else {}).items():
        if name not in defaults:
            known = f"; it has {', '.join(defaults)}" if defaults else ""
            raise RequestError(
                f"--task_options={name}={text}: the task {task} has no option {name!r}"
                f"{did_you_mean(name, defaults)}{known}"
            )
        found[name] = _typed(name, text, defaults[name])
    return found


def _typed(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise RequestError(f"--task_options={name}={text}: must be true or false")
        return text.lower() == "true"
    for kind, what in ((int, "a whole number"), (float, "a number")):
        if type(default) is kind:
            try:
                if math.isfinite(value := kind(text)):
                    return value
            except (ValueError, OverflowError):
                pass
            raise RequestError(f"--task_options={name}={text}: must be {what}")
    return text


def refuse_others(settings: Mapping[str, Any], task: Task) -> None:
    """Refuses settings that a task has no meaning for.

    Raises:
        RequestError: Names the setting.
    """
    for name in HEEDED:
        value = settings.get(name)
        if name not in task.settings and value not in _OFF:
            shown = "x".join(map(str, value)) if isinstance(value, list | tuple) else value
            raise RequestError(
                f"--{name}={shown} has no meaning for the task {task.name}; leave it out"
            )
    names = settings.get("augment")
    for name in names.split(",") if names not in (None, "none") else ():
        if name not in task.augment:
            known = ", ".join(task.augment) or "none at all"
            raise RequestError(
                f"--augment={names}: {name!r} is not an augmentation of the task {task.name}"
                f"{did_you_mean(name, task.augment)}; it has {known}"
            )


_RECIPE = frozenset(
    ("optimizer", "learning_rate", "momentum", "weight_decay", "lr_schedule", "warmup_epochs")
    + ("batch_size", "epochs", "augment")
)


def check_recipe(task: Task, recipe: Mapping[str, Any]) -> None:
    """Refuses a task without a model, and defaults that nothing asks for, such as "epoch".

    Args:
        task: Of the data.
        recipe: What its `recipe` gave.

    Raises:
        RequestError: Names what is wrong.
    """
    if not task.models:
        raise RequestError(f"the task {task.name} has no models: name a builder in its `models`")
    of_models = recipe.get("of_model", {}).values()
    given = [*(name for name in recipe if name != "of_model"), *itertools.chain(*of_models)]
    for name in given:
        if name not in _RECIPE:
            raise RequestError(
                f"the recipe of the task {task.name} has {name!r}{did_you_mean(name, _RECIPE)}; "
                f"it may have {', '.join(sorted(_RECIPE))}, and of_model"
            )


def check_objective(task: Task, spec: DataSpec) -> None:
    """Refuses a task whose `objective` is none of its metrics, before a search trains for it.

    Raises:
        RequestError: Names the metrics.
    """
    metrics = task.metrics(spec)
    names = [each if isinstance(each, str) else getattr(each, "name", None) for each in metrics]
    if task.objective not in ("loss", *names) and None not in names:
        raise RequestError(
            f"the objective of the task {task.name} is {task.objective!r}, which is none of its "
            f"metrics, {', '.join(map(str, names)) or 'of which there are none'}, nor loss"
        )
