"""The loss of one class an example, of which augmentation may make a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from tfgpu.data.augment import Transformation, mix
from tfgpu.models.classification_loss import classification_loss


def class_loss(
    spec: Any, settings: Mapping[str, Any], augment: Mapping[str, Transformation]
) -> keras.losses.Loss:
    """Cross-entropy with the label smoothing of the settings, for mixed examples where they mix.

    Args:
        spec: The `DataSpec`.
        settings: `label_smoothing`, and `augment` where it is known.
        augment: The transformations of the task, by name.
    """
    names = (settings.get("augment") or "none").split(",")
    return classification_loss(
        num_classes=spec.num_classes,
        label_smoothing=settings["label_smoothing"],
        mixed=mix([augment[name] for name in names if name in augment]),
    )
