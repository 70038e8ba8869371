"""Dice and cross-entropy of segmentations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

VOID = 255
"""The class of pixels that count nowhere."""


@keras.saving.register_keras_serializable(package="tfgpu")
class DiceCrossentropy(keras.losses.Loss):
    """The sum of cross-entropy and soft Dice loss, a value for each example.

    The cross-entropy is the mean over the pixels of an example, each weighted by its class. The
    Dice loss of F. Milletari, N. Navab and S. Ahmadi, "V-Net", 3DV 2016, is 1 minus the mean of
    2 |p g| over |p| + |g|, with sums over the pixels of the example, over the classes that the
    example has: for one that it has not, every prediction gives the same 0, and smoothing it to
    1 over |p| + 1 has a gradient only where next to nothing is predicted any more, so that sets
    whose masks are mostly empty end with empty predictions. Their sum is the loss of F. Isensee et
    al., "nnU-Net", Nature Methods 18, 2021. Pixels of the class `VOID` are left out.

    Args:
        num_classes: Size of the logits.
        class_weights: A factor for each class in the cross-entropy; None for 1.
    """

    def __init__(
        self,
        num_classes: int,
        class_weights: Sequence[float] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name or "dice_crossentropy", **kwargs)
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(f"{len(class_weights)} class weights for {num_classes} classes")
        self.num_classes = num_classes
        self.class_weights = None if class_weights is None else list(class_weights)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Masks (n, height, width) and logits (n, height, width, classes) to (n,)."""
        labels = ops.cast(y_true, "int32")
        valid = ops.cast(labels != VOID, "float32")
        target = ops.one_hot(ops.where(labels == VOID, 0, labels), self.num_classes)
        log = ops.log_softmax(ops.cast(y_pred, "float32"), axis=-1)
        count = ops.maximum(ops.sum(valid, axis=(1, 2)), 1.0)
        weights = [1.0] * self.num_classes if self.class_weights is None else self.class_weights
        weights = ops.convert_to_tensor(weights, "float32")
        crossentropy = (
            -ops.sum(ops.sum(target * weights * log, axis=-1) * valid, axis=(1, 2)) / count
        )
        valid = ops.expand_dims(valid, -1)
        target, chance = target * valid, ops.exp(log) * valid
        both = ops.sum(target * chance, axis=(1, 2))
        true = ops.sum(target, axis=(1, 2))
        # A class without a pixel has no overlap to gain: it is left to the cross-entropy.
        there = ops.cast(true > 0, "float32")
        dice = 2.0 * both / ops.maximum(true + ops.sum(chance, axis=(1, 2)), 1.0)
        present = ops.maximum(ops.sum(there, axis=-1), 1.0)
        return crossentropy + ops.sum(there * (1.0 - dice), axis=-1) / present

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        return super().get_config() | {
            "num_classes": self.num_classes,
            "class_weights": self.class_weights,
        }


def class_weights(shares: Sequence[float]) -> list[float]:
    """Weights that keep rare classes from being drowned in frequent ones.

    1 / ln(1.02 + share), the weighting of A. Paszke et al., "ENet: A Deep Neural Network
    Architecture for Real-Time Semantic Segmentation", 2016, divided by its mean over the pixels: a
    class of a tenth of a percent counts 33 times as much a pixel as one of nearly all, while two
    classes of a similar size stay as they are.

    Args:
        shares: Of each class among the pixels; they sum to 1.
    """
    weights = [1 / math.log(1.02 + share) for share in shares]
    mean = sum(weight * share for weight, share in zip(weights, shares, strict=True))
    return [weight / mean for weight in weights]
