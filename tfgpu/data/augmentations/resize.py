"""Enlarges or shrinks about the middle."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfgpu.data.augment import Transformation, random_resize


def change(x: tf.Tensor, y: Any, draws: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """See `random_resize`."""
    return random_resize(x, draws), y


AUGMENTATION = Transformation("resize", 2, change)
