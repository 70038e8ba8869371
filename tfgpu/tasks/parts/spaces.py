"""Search spaces: functions of KerasTuner's `hp` that return settings of a run."""

from __future__ import annotations

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
