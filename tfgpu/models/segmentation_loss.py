"""Dice and cross-entropy of segmentations."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

VOID = 255
"""The class of pixels that count nowhere."""


@keras.saving.register_keras_serializable(package="tfgpu")
class DiceCrossentropy(keras.losses.Loss):
    """The sum of cross-entropy and soft Dice loss, a value for each example.

    The cross-entropy is the mean over the pixels of an example; the Dice loss of F. Milletari,
    N. Navab and S. Ahmadi, "V-Net", 3DV 2016, is 1 minus the mean over the classes of
    2 |p g| + 1 over |p| + |g| + 1, with sums over the pixels of the example. Their sum is the loss
    of F. Isensee et al., "nnU-Net", Nature Methods 18, 2021. Pixels of the class `VOID` are left
    out.

    Args:
        num_classes: Size of the logits.
    """

    def __init__(self, num_classes: int, name: str | None = None, **kwargs: Any):
        super().__init__(name=name or "dice_crossentropy", **kwargs)
        self.num_classes = num_classes

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Masks (n, height, width) and logits (n, height, width, classes) to (n,)."""
        labels = ops.cast(y_true, "int32")
        valid = ops.cast(labels != VOID, "float32")
        target = ops.one_hot(ops.where(labels == VOID, 0, labels), self.num_classes)
        log = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)
        count = ops.maximum(ops.sum(valid, axis=(1, 2)), 1.0)
        crossentropy = -ops.sum(ops.sum(target * log, axis=-1) * valid, axis=(1, 2)) / count
        valid = ops.expand_dims(valid, -1)
        target, chance = target * valid, ops.exp(log) * valid
        both = ops.sum(target * chance, axis=(1, 2))
        each = ops.sum(target, axis=(1, 2)) + ops.sum(chance, axis=(1, 2))
        dice = (2.0 * both + 1.0) / (each + 1.0)
        return crossentropy + 1.0 - ops.mean(dice, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return super().get_config() | {"num_classes": self.num_classes}
