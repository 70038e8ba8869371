"""The loss that a run is trained with, and evaluated with afterwards."""

from __future__ import annotations

from typing import Any

import keras


def classification_loss(
    *, num_classes: int, label_smoothing: float, mixed: bool = False
) -> keras.losses.Loss:
    """Cross-entropy of logits (n, num_classes) and integer labels (n,).

    Args:
        num_classes: Size of the logits.
        label_smoothing: Mass of each label spread evenly over the classes, in [0, 1).
        mixed: Whether labels may be probabilities (n, num_classes) too, as those of mixed
            examples are.
    """
    if not label_smoothing and not mixed:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return _SmoothedCrossentropy(num_classes, label_smoothing)


@keras.saving.register_keras_serializable(package="tfgpu")
class _SmoothedCrossentropy(keras.losses.Loss):
    """Keras' `categorical_crossentropy` with label smoothing, for labels or probabilities.

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
        """Loss of each example: labels (n,) or (n, num_classes), and logits, to (n,)."""
        if tuple(y_true.shape[1:]) == (self.num_classes,) != (1,):
            targets = y_true
        else:
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


@keras.saving.register_keras_serializable(package="tfgpu")
class MixedAccuracy(keras.metrics.MeanMetricWrapper):
    """The share of examples whose likeliest class is found, for labels or probabilities.

    Args:
        name: Of the metric.
        dtype: Of the sums.
    """

    def __init__(self, name: str = "accuracy", dtype: Any = None):
        super().__init__(fn=_is_found, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return {"name": self.name, "dtype": self.dtype}


def _is_found(y_true: Any, y_pred: Any) -> Any:
    """(n,) or (n, classes), and (n, classes), to 1.0 or 0.0 for each example."""
    if len(y_true.shape) == len(y_pred.shape) and y_true.shape[-1] == y_pred.shape[-1]:
        y_true = keras.ops.argmax(y_true, axis=-1)
    found = keras.ops.argmax(y_pred, axis=-1)
    labels = keras.ops.cast(keras.ops.reshape(y_true, [-1]), found.dtype)
    return keras.ops.cast(keras.ops.equal(labels, found), "float32")
