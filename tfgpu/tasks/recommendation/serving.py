"""Exported files: a user in, the best items out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfgpu.models.recommenders import NEVER
from tfgpu.tasks.parts.serving import Serving
from tfgpu.tasks.task import DataSpec

K = 10
ITEMS, SCORES, RATING = "items", "scores", "rating"


def serve(spec: DataSpec, kind: str) -> Serving:
    """Numbers of the tables in and out, with the tables beside."""
    raise NotImplementedError


