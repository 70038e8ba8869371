"""What a class, or an object itself, defines in the place of Keras' methods."""

from __future__ import annotations

import keras


def is_own(model: keras.Model, name: str) -> bool:
    """Whether `model.name` is another method than Keras': of its class, or set on the object."""
    own = getattr(getattr(model, name), "__func__", None)
    return own is not getattr(keras.Model, name)


def has_own_results(model: keras.Model, name: str) -> bool:
    """Whether only the step knows what to report, and not the model's metrics.

    Args:
        model: Of the step.
        name: `train_step` or `test_step`.
    """
    return is_own(model, name) or is_own(model, "compute_metrics")
