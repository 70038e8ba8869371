"""Saves a model so that plain Keras reads it."""

from __future__ import annotations

import json
from pathlib import Path

import keras

from tfgpu.artifacts import files


def save_for_keras(model: keras.Model, path: Path) -> None:
    """Writes a model whole or not at all, so that plain Keras can read it.

    Args:
        model: The model; one that was compiled with what only tfgpu knows is saved uncompiled.
        path: A `.keras` file.

    Raises:
        OSError: It cannot be written; the old file stays.
    """
    compiled = model.compiled
    # A schedule or a loss of tfgpu's own would be all that plain Keras does not know; and it
    # makes another optimizer of one with a loss scale, unless its policy is set before.
    model.compiled = (
        compiled
        and not isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        and "tfgpu>" not in json.dumps(model.get_compile_config(), default=str)
    )
    try:
        with files.replacing(path) as beside:
            model.save(beside)
    finally:
        model.compiled = compiled
