"""Saves a model so that plain Keras reads it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tfgpu.artifacts import files

FITTED = "assets/fitted.json"
"""What a task was fitted to on the training split, in a `.keras` file."""


def save_for_keras(
    model: keras.Model, path: Path, *, fitted: Mapping[str, Any] | None = None
) -> None:
    """Writes a model whole or not at all, so that plain Keras can read it.

    Args:
        model: The model; one that was compiled with what only tfgpu knows is saved uncompiled.
        path: A `.keras` file.
        fitted: What goes with the model, as JSON holds it; Keras leaves it aside.

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
            if fitted:
                with zipfile.ZipFile(beside, "a", zipfile.ZIP_DEFLATED) as archive:
                    # With a time of its own, equal files would differ.
                    member = zipfile.ZipInfo(FITTED)
                    archive.writestr(member, json.dumps(fitted, ensure_ascii=False))
    finally:
        model.compiled = compiled
