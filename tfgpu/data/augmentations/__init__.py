"""Augmentations, one a module, found by the module's name.

To add one, write `NAME.py` with an `AUGMENTATION` in it, a `Transformation` of images and classes.
Its being there is all: `--augment=NAME` finds it. A task whose y is more than a class of an image
has functions of its own; `drop` and `shift` have no other.

Functions take raw pixels, uint8, and reckon in float32: TensorFlow keeps integers that are added or
multiplied in the host's memory, where they stop a GPU.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfgpu.data.augment import Transformation


def names() -> tuple[str, ...]:
    """The names of all: the modules of this package, none of which is imported."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@functools.cache
def of_images() -> Mapping[str, Transformation]:
    """Those of images with classes, by name."""
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names()}
    return {
        name: module.AUGMENTATION
        for name, module in modules.items()
        if hasattr(module, "AUGMENTATION")
    }
