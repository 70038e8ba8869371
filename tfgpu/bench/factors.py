"""Plans what is compared: one change at a time from a baseline; no TensorFlow here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfgpu.bench.settings import BenchSettings
from tfgpu.cli.settings import as_typed
from tfgpu.errors import RequestError
from tfgpu.machine.runtime import PRECISIONS

# Enough that the host's part of a step is negligible.
_STEPS_CPU, _STEPS_GPU = 16, 64


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One configuration of a benchmark.

    Attributes:
        factor: What it changes; "baseline" for the one without a change.
        name: For tables.
        config: Every setting.
        flags: What to add to the baseline's command line.
        environment: Environment variables to add.
    """

    factor: str
    name: str
    config: BenchSettings
    flags: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def plan(config: BenchSettings, *, gpus: Sequence[str]) -> tuple[list[Cell], list[str]]:
    """Plans the cells to measure, the baseline first, and remarks on what is left out.

    Args:
        config: The baseline's settings, and which factors.
        gpus: Names of the GPUs that TensorFlow shows, such as ("GPU:0", "GPU:1").

    Raises:
        RequestError: A device does not exist, or nothing is left to compare.
    """
    device, others = _devices(config, gpus)
    on_gpu = device.startswith("GPU")
    base = dataclasses.replace(
        config, strategy="one_device", devices=device, virtual_devices=0, resume="never"
    )
    hidden = {} if on_gpu else {"CUDA_VISIBLE_DEVICES": "-1"}
    cells = [Cell(factor="baseline", name="baseline", config=base, environment=hidden)]
    remarks = []

    def add(
        factor: str, *, name: str = "", environment: dict[str, str] = hidden, **changes: Any
    ) -> None:
        given = {key: as_typed(value) for key, value in changes.items() if value != "all"}
        flags = " ".join(f"--{key}={value}" for key, value in given.items())
        name = name or ", ".join(as_typed(value) for value in changes.values())
        changed = dataclasses.replace(base, **changes)
        cells.append(
            Cell(factor=factor, name=name, config=changed, flags=flags, environment=environment)
        )

    for factor in config.chosen_factors:
        if factor == "device":
            other = "CPU:0" if on_gpu else next(iter(gpus), None)
            if other is None:
                remarks.append("device: TensorFlow shows no GPU here, so there is one device only")
                continue
            add(factor, devices=other, environment={})  # It must not be hidden.
        elif factor == "precision":
            for precision in PRECISIONS:
                if precision != base.precision:
                    add(factor, precision=precision)
        elif factor == "xla":
            name = "XLA off" if base.jit_compile else "XLA on"
            add(factor, name=name, jit_compile=not base.jit_compile)
        elif factor == "steps_per_execution":
            several = _STEPS_GPU if on_gpu else _STEPS_CPU
            steps = several if base.steps_per_execution == 1 else 1
            name = f"{steps} step{'s' if steps > 1 else ''} an execution"
            add(factor, name=name, steps_per_execution=steps)
        elif factor == "input":
            add(factor, input="resident" if base.input == "streaming" else "streaming")
        elif factor == "batch_size":
            for batch in (base.batch_size // 4, base.batch_size * 4):
                if batch:
                    add(factor, name=f"batch {batch}", batch_size=batch)
        elif factor == "replicas":
            for name, changes in _replicas(base, others, parts=config.virtual_devices or 2):
                add(factor, name=name, **changes)
    if len(cells) == 1:
        raise RequestError(
            f"--factors={config.factors}: nothing to compare here; {'; '.join(remarks)}"
        )
    return cells, remarks


def _devices(config: BenchSettings, gpus: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the device of the baseline, and all devices that replicas may use."""
    if config.devices == "all":
        return (gpus[0], list(gpus)) if gpus else ("CPU:0", ["CPU:0"])
    wanted = config.devices.split(",")
    absent = [name for name in wanted if name not in (*gpus, "CPU:0")]
    if absent:
        there = ", ".join([*gpus, "CPU:0"])
        raise RequestError(f"--devices={config.devices}: no {', '.join(absent)} here, only {there}")
    return wanted[0], wanted


def _replicas(
    base: BenchSettings, others: Sequence[str], *, parts: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Plans weak scaling (the same batch per replica) and strong scaling (the same over all).

    Yields:
        The name of a cell, and its changes.
    """
    counts: list[tuple[int, dict[str, Any]]]
    if len(others) > 1:
        sizes = sorted({*(2**i for i in range(1, 8) if 2**i <= len(others)), len(others)})
        counts = [(size, {"devices": ",".join(others[:size])}) for size in sizes]
    else:
        # Virtual devices show what several replicas cost, not what several devices gain.
        counts = [(parts, {"devices": "all", "virtual_devices": parts})]
    for size, where in counts:
        shown = f"{size} virtual replicas" if len(others) == 1 else f"{size} replicas"
        strong = base.batch_size // size * size
        for kind, batch in (("weak", base.batch_size * size), ("strong", strong)):
            if batch:
                changes = {"strategy": "mirrored", "batch_size": batch, **where}
                yield f"{shown}, {kind} scaling", changes
