"""What a class, or an object itself, defines in the place of Keras' methods."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from tfgpu.engine import keras_internals as private


def is_own(model: keras.Model, name: str) -> bool:
    """Whether `model.name` is another method than Keras': of its class, or set on the object."""
    own = getattr(getattr(model, name), "__func__", None)
    return own is not getattr(keras.Model, name)


def has_own_results(model: keras.Model, name: str) -> bool:
    """Whether only the step knows what to report, and not the model's metrics.

    Args:
        model: Of the step.
        name: `train_step` or `test_step`.
    """
    return is_own(model, name) or is_own(model, "compute_metrics")


def has_keras_metrics(model: keras.Model) -> bool:
    """Whether a model's metrics, and how they are computed, are Keras' alone: XLA compiles those.

    A function of somebody else's is called by a `MeanMetricWrapper`.
    """
    if is_own(model, "compute_metrics"):
        return False
    config = private.compile_config(model).config
    given = tree.flatten([config["metrics"], config["weighted_metrics"]])
    return all(
        metric is None
        or isinstance(metric, str)
        or (
            isinstance(metric, keras.metrics.Metric)
            and type(metric).__module__.startswith("keras.")
            and type(metric) is not keras.metrics.MeanMetricWrapper
        )
        for metric in given
    )


def everywhere(
    cls: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Has something stand in for a method of a class and of those derived from it, for good.

    Args:
        cls: The class.
        name: Of the method.
        around: Makes what stands in, of what a class has.
    """
    theirs = vars(cls).get(name)
    if inspect.isfunction(theirs) and not hasattr(theirs, "tfgpu_stands_in"):
        ours: Any = functools.wraps(theirs)(around(theirs))
        ours.tfgpu_stands_in = True
        setattr(cls, name, ours)
    for derived in cls.__subclasses__():
        everywhere(derived, name, around)
