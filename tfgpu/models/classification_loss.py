"""The loss that a run is trained with, and evaluated with afterwards."""

from __future__ import annotations

from typing import Any

import keras


def classification_loss(*, num_classes: int, label_smoothing: float) -> keras.losses.Loss:
    """Cross-entropy of logits (n, num_classes) and integer labels (n,).

    Args:
        num_classes: Size of the logits.
        label_smoothing: Mass of each label spread evenly over the classes, in [0, 1).
    """
    if not label_smoothing:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return _SmoothedCrossentropy(num_classes, label_smoothing)


@keras.saving.register_keras_serializable(package="tfgpu")
class _SmoothedCrossentropy(keras.losses.Loss):
    """Keras' `categorical_crossentropy` with label smoothing, for integer labels.

    Args:
        num_classes: Size of the logits.
        label_smoothing: Mass spread evenly over the classes, in [0, 1).
    """

    def __init__(
        self, num_classes: int, label_smoothing: float, name: str | None = None, **kwargs: Any
    ):
        super().__init__(name=name or "smoothed_crossentropy", **kwargs)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each example: labels (n,) and logits (n, num_classes) to (n,)."""
        targets = keras.ops.one_hot(keras.ops.reshape(y_true, [-1]), self.num_classes)
        return keras.losses.categorical_crossentropy(
            targets, y_pred, from_logits=True, label_smoothing=self.label_smoothing
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return super().get_config() | {
            "num_classes": self.num_classes,
            "label_smoothing": self.label_smoothing,
        }
