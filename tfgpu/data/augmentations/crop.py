"""Shifts by a few pixels, filling in by reflection."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfgpu.data.augment import Transformation, random_crop


def change(x: tf.Tensor, y: Any, draws: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """See `random_crop`."""
    return random_crop(x, draws), y


AUGMENTATION = Transformation("crop", 2, change)
