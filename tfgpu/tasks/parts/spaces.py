"""Search spaces: functions of KerasTuner's `hp` that return settings of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def of_lenet(hp: Any) -> dict[str, Any]:
    """For `lenet`: optimizer and rate, batch, augmentation, architecture."""
    optimizer = hp.Choice("optimizer", ["sgd", "adamw"])
    # Adam needs a far lower rate than gradient descent.
    with hp.conditional_scope("optimizer", ["sgd"]):
        sgd_rate = hp.Float("sgd_learning_rate", 3e-3, 0.3, sampling="log", default=0.06)
    with hp.conditional_scope("optimizer", ["adamw"]):
        adamw_rate = hp.Float("adamw_learning_rate", 3e-4, 1e-2, sampling="log", default=2e-3)
    return {
        "optimizer": optimizer,
        "learning_rate": sgd_rate if optimizer == "sgd" else adamw_rate,
        "weight_decay": hp.Float("weight_decay", 1e-4, 1e-1, sampling="log", default=0.01),
        "batch_size": hp.Choice("batch_size", [32, 64, 128, 256], default=128),
        "augment": hp.Choice("augment", ["none", "crop"]),
        "label_smoothing": hp.Float("label_smoothing", 0.0, 0.1, step=0.05),
        "width": hp.Choice("width", [0.5, 1.0, 2.0], default=1.0),
        "depth": hp.Int("depth", 1, 3, default=2),
    }


def of_adamw(hp: Any) -> dict[str, Any]:
    """For any model: rate and decay of AdamW, and the batch."""
    return {
        "optimizer": hp.Choice("optimizer", ["adamw"]),
        "learning_rate": hp.Float("learning_rate", 1e-4, 1e-2, sampling="log", default=1e-3),
        "weight_decay": hp.Float("weight_decay", 1e-4, 1e-1, sampling="log", default=4e-3),
        "batch_size": hp.Choice("batch_size", [8, 16, 32], default=16),
    }


def for_examples(
    space: Callable[[Any], dict[str, Any]], num_examples: int, *, replicas: int
) -> Callable[[Any], dict[str, Any]]:
    """A space without the batches that are larger than the training set.

    Args:
        space: A search space.
        num_examples: Training examples.
        replicas: Among which a batch divides.

    Returns:
        The space with those choices of "batch_size" that `tfgpu train` takes; where none of them
        is, with the largest batch that it takes.
    """
    most = max(num_examples // replicas, 1) * replicas
    return lambda hp: space(_SmallBatches(hp, most))


class _SmallBatches:
    """KerasTuner's `hp`, but for the choices of "batch_size" above a number."""

    def __init__(self, hp: Any, most: int):
        self._hp = hp
        self._most = most

    def Choice(self, name: str, values: list[Any], default: Any = None, **settings: Any) -> Any:
        """See KerasTuner."""
        if name == "batch_size":
            values = [value for value in values if value <= self._most] or [self._most]
            default = default if default is None or default in values else max(values)
        return self._hp.Choice(name, values, default=default, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hp, name)
