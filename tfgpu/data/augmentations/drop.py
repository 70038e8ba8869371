"""Leaves out parts of an example, such as words of a text: which, is the task's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfgpu.data.augment import Transformation


def dropping(function: Callable[[Any, Any, Any], tuple[Any, Any]]) -> Transformation:
    """The augmentation of a task, of one random number an example.

    Args:
        function: See `Transformation`.
    """
    return Transformation("drop", 1, function)
