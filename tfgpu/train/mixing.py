"""A training whose augmentation mixes examples: labels then are probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfgpu.errors import RequestError
from tfgpu.train.recipe import Resolved, transformations

if TYPE_CHECKING:
    from tfgpu.tasks.loading import Dataset


def mixed_classes(config: Resolved, data: Dataset) -> int:
    """How many classes labels have the probabilities of, where `--augment` mixes examples; else 0.

    Raises:
        RequestError: Two augmentations mix.
    """
    mixing = [each.name for each in transformations(config, data.task) if each.mixes]
    if len(mixing) > 1:
        raise RequestError(
            f"--augment={config.augment}: {' and '.join(mixing)} both mix examples; name one of "
            "them"
        )
    return data.spec.num_classes if mixing else 0


def make_metrics(config: Resolved, data: Dataset) -> list[Any]:
    """The metrics of a task, which take probabilities where `--augment` mixes labels."""
    from tfgpu.models.classification_loss import MixedAccuracy

    metrics = list(data.task.metrics(data.spec))
    if not mixed_classes(config, data):
        return metrics
    return [MixedAccuracy() if each == "accuracy" else each for each in metrics]
