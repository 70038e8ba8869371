"""The performance of a training: throughput, the parts of a step's time, FLOP/s and memory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine import keras_internals as private
from tfgpu.engine.step_statistics import StepStatistics
from tfgpu.machine import flops
from tfgpu.machine.peak_rate import peak_flops


@dataclass
class _Interval:
    """The measurements since the last point was written."""

    began: float
    examples: float
    input_seconds: float
    all_reduce_seconds: float
    exposed_seconds: float
    saving_seconds: float
    steps: int = 0
    executing: float = 0.0


class PerformanceMeter:
    """Measures the steps of a training, interval by interval.

    Args:
        model: The model that is trained.
        statistics: Its step statistics; None for a model of Keras.
    """

    def __init__(self, model: keras.Model, statistics: StepStatistics | None):
        self.model = model
        self._statistics = statistics
        self._interval: _Interval | None = None
        counted = flops.count(self.model)
        # None if layers are not counted: utilization would be too low.
        self._flops = counted.training if counted.forward and not counted.uncounted else None
        self._peak = 0.0 if self._flops is None else self._peak_of_replicas()

    @property
    def measuring(self) -> bool:
        """Whether an interval has begun."""
        return self._interval is not None

    def begin(self) -> None:
        """Begins an interval; the measurements of the one before are dropped."""
        self._interval = self._begin_interval()

    def end(self) -> None:
        """Drops the measurements; nothing is measured until `begin`."""
        self._interval = None

    def add(self, *, steps: int, seconds: float) -> None:
        """Adds an execution of some steps to the interval, and the seconds that the call took."""
        if self._interval is not None:
            self._interval.steps += steps
            self._interval.executing += seconds

    def measure(self, logs: Mapping[str, Any] | None) -> dict[str, tuple[float, str]]:
        """Ends the interval and begins the next one.

        Args:
            logs: Of the latest step, which is waited for.

        Returns:
            (value, description) by tag; empty without steps.
        """
        interval = self._interval
        if interval is None or interval.steps == 0:
            return {}
        waiting = time.perf_counter()
        to_floats(logs)  # Waits for the device, so that all of its work is in the interval.
        following = self._begin_interval()
        self._interval = following
        seconds = following.began - interval.began
        executing = interval.executing + following.began - waiting
        entered = following.input_seconds - interval.input_seconds
        saved = following.saving_seconds - interval.saving_seconds
        summed = following.all_reduce_seconds - interval.all_reduce_seconds
        exposed = following.exposed_seconds - interval.exposed_seconds
        rate = (following.examples - interval.examples) / seconds
        statistics = self._statistics
        parts = {"step_milliseconds": (seconds, "Of a training step, all in all.")}
        if statistics is None or statistics.times_input:
            parts["step_milliseconds_input"] = entered, "Of a step: waiting for its batch."
            device = "Of a step: on the device, with the calls that start it."
        else:
            device = "Of a step: on the device, with the calls that start it and its batch."
        parts |= {
            "step_milliseconds_device": (executing - entered, device),
            "step_milliseconds_host": (
                seconds - executing - saved,
                "Of a step: Python between executions, callbacks among it.",
            ),
            "step_milliseconds_checkpoint": (saved, "Of a step: waiting for checkpoints."),
        }
        if statistics is not None and statistics.times_all_reduce:
            parts["step_milliseconds_all_reduce"] = (
                summed,
                "Of a step: from when something is to be summed over the replicas until all is.",
            )
            parts["step_milliseconds_all_reduce_exposed"] = (
                exposed,
                "Of a step: those sums, after the last gradient was there.",
            )
        point = {
            f"performance/{name}": (max(0.0, 1e3 * spent / interval.steps), description)
            for name, (spent, description) in parts.items()
        }
        point["performance/samples_per_second"] = (rate, "Training examples a second.")
        if statistics is not None and statistics.all_reduce_bytes:
            point["performance/all_reduce_bytes"] = (
                float(statistics.all_reduce_bytes),
                "Bytes that a step sums over the replicas.",
            )
        if self._flops is not None and self._peak:
            point["performance/flops_utilization"] = (
                rate * self._flops / self._peak,
                "Of the rate that a matrix product reaches on these devices; "
                f"{self._flops / 1e6:,.2f} MFLOP an example.",
            )
        for device, gib in _memory(_local_devices(self.model)).items():
            point[f"memory/{device}"] = (gib, "GiB in use.")
        return point

    def _begin_interval(self) -> _Interval:
        examples, statistics = self._examples(), self._statistics
        waited = summed = exposed = 0.0
        if statistics is not None:
            waited = float(statistics.input_seconds.numpy())
            summed = float(statistics.all_reduce_seconds.numpy())
            exposed = float(statistics.all_reduce_exposed_seconds.numpy())
        return _Interval(
            began=time.perf_counter(),
            examples=examples,
            input_seconds=waited,
            all_reduce_seconds=summed,
            exposed_seconds=exposed,
            saving_seconds=self._saving(),
        )

    def _examples(self) -> float:
        """Returns the examples of this epoch so far: the weights in the mean of the loss."""
        tracker = private.loss_tracker(self.model)
        if tracker is None:
            return 0.0
        # Those of this worker's replicas: a sum over all workers would need all to take part.
        strategy = self.model.distribute_strategy
        parts = strategy.experimental_local_results(tracker.count.value)
        return sum(map(to_float, parts)) * strategy.num_replicas_in_sync / len(parts)

    def _saving(self) -> float:
        callbacks = getattr(self.model, "tfgpu_given_callbacks", ())
        return sum(getattr(callback, "save_seconds", 0.0) for callback in callbacks)

    def _peak_of_replicas(self) -> float:
        """Returns the FLOP/s that all replicas together can reach."""
        strategy = self.model.distribute_strategy
        devices = _local_devices(self.model)
        peak = peak_flops(devices[0], dtype=self.model.dtype_policy.compute_dtype)
        replicas: int = strategy.num_replicas_in_sync
        if devices[0].startswith("GPU"):
            # Virtual GPUs divide the peak of a physical one.
            physical = len(tf.config.list_physical_devices("GPU"))
            return peak * replicas * min(1.0, physical / len(devices))
        return peak * replicas


def to_floats(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """Converts the scalars of logs to Python numbers, which waits for the device."""
    if not isinstance(logs, Mapping):
        return {}
    values = {name: tf.convert_to_tensor(value) for name, value in logs.items()}
    return {
        name: to_float(value) for name, value in values.items() if value.shape.num_elements() == 1
    }


def to_float(value: Any) -> float:
    """Converts a variable, tensor or array of one element to a Python number."""
    return float(tf.reshape(tf.convert_to_tensor(value), []).numpy())


def _local_devices(model: keras.Model) -> list[str]:
    if private.own_strategy(model) is not None:
        devices = model.distribute_strategy.extended.worker_devices
    else:  # The default strategy, which names none.
        devices = [d.name for d in tf.config.list_logical_devices("GPU")[:1]] or ["device:CPU:0"]
    return [device.rpartition("device:")[2] for device in devices]


def _memory(devices: Sequence[str]) -> dict[str, float]:
    """Returns the GiB in use: of each GPU by TensorFlow, of the host by this process."""
    found = {}
    for device in devices:
        if device.startswith("GPU"):
            found[device] = tf.config.experimental.get_memory_info(device)["current"] / (1 << 30)
    pages = Path("/proc/self/statm")
    if pages.exists():
        resident = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        found["host"] = resident / (1 << 30)
    return found
