"""Mirrors left to right."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfgpu.data.augment import Transformation, random_flip


def change(x: tf.Tensor, y: Any, draws: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """See `random_flip`."""
    return random_flip(x, draws), y


AUGMENTATION = Transformation("flip", 1, change)
