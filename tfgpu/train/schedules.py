"""Learning-rate schedules: Keras' own, a warm-up for those that have none, one after another."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="tfgpu")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to the start of another schedule, then follows it.

    Args:
        schedule: A schedule, or the rate to stay at.
        warmup_steps: Updates until the schedule begins.
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule | float,
        warmup_steps: int,
    ):
        super().__init__()
        self.schedule = schedule
        self.warmup_steps = warmup_steps

    def __call__(self, step: Any) -> Any:
        """Returns the rate of an update, float32 scalar."""
        step = keras.ops.cast(step, "float32")
        warmup = float(self.warmup_steps)
        follow = self.schedule
        start = follow(0) if callable(follow) else follow
        after = follow(keras.ops.maximum(step - warmup, 0.0)) if callable(follow) else follow
        return keras.ops.where(step < warmup, start * step / warmup, after)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        schedule = self.schedule
        if callable(schedule):
            schedule = keras.saving.serialize_keras_object(schedule)
        return {"schedule": schedule, "warmup_steps": self.warmup_steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WarmUp:
        """Makes a schedule from what `get_config` returned."""
        schedule = config["schedule"]
        if isinstance(schedule, dict):
            schedule = keras.saving.deserialize_keras_object(schedule)
        return cls(schedule, config["warmup_steps"])


@keras.saving.register_keras_serializable(package="tfgpu")
class InTurn(keras.optimizers.schedules.LearningRateSchedule):
    """Two schedules, one after the other.

    Args:
        first: A schedule, or a constant rate.
        second: The same; its updates count from 0 again.
        at_step: The first update of the second.
    """

    def __init__(
        self,
        first: keras.optimizers.schedules.LearningRateSchedule | float,
        second: keras.optimizers.schedules.LearningRateSchedule | float,
        at_step: int,
    ):
        super().__init__()
        self.first, self.second, self.at_step = first, second, at_step

    def __call__(self, step: Any) -> Any:
        """Returns the rate of an update, float32 scalar."""
        step = keras.ops.cast(step, "float32")
        first, second = (
            schedule(at) if callable(schedule) else schedule
            for schedule, at in (
                (self.first, keras.ops.minimum(step, float(max(self.at_step - 1, 0)))),
                (self.second, keras.ops.maximum(step - self.at_step, 0.0)),
            )
        )
        return keras.ops.where(step < self.at_step, first, second)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments."""
        schedules = {"first": self.first, "second": self.second}
        return {
            name: keras.saving.serialize_keras_object(schedule) if callable(schedule) else schedule
            for name, schedule in schedules.items()
        } | {"at_step": self.at_step}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> InTurn:
        """Makes a schedule from what `get_config` returned."""
        first, second = (
            keras.saving.deserialize_keras_object(part) if isinstance(part, dict) else part
            for part in (config["first"], config["second"])
        )
        return cls(first, second, config["at_step"])


def warm_up(
    name: str, *, peak: float, warmup_updates: int, updates: int
) -> keras.optimizers.schedules.LearningRateSchedule | float:
    """A schedule that rises to `peak` and then stays, or falls to 0 at the end.

    Args:
        name: "constant", "cosine" or "linear".
        peak: The highest rate.
        warmup_updates: Updates of the linear rise from 0; 0 for none.
        updates: Updates in all.

    Returns:
        A schedule, or `peak` when there is nothing to schedule. `cosine` is Keras'
        `CosineDecay` with its own warm-up, `linear` Keras' `PolynomialDecay` of power 1.
    """
    schedules = keras.optimizers.schedules
    left = max(updates - warmup_updates, 1)
    if name == "cosine":
        if not warmup_updates:
            return schedules.CosineDecay(peak, left)
        return schedules.CosineDecay(0.0, left, warmup_target=peak, warmup_steps=warmup_updates)
    schedule = peak
    if name == "linear":
        schedule = schedules.PolynomialDecay(peak, left, end_learning_rate=0.0, power=1.0)
    return WarmUp(schedule, warmup_updates) if warmup_updates else schedule
