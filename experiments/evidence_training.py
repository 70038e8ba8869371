"""The claims of `evidence.py` about training: one factor each, in processes of `tfgpu.bench`.

What is compared is alive at the same time and trains in turn. Compilation and the first pass are
excluded. "small" is `lenet` on the digits with batches of 128, several steps an execution: steps of
a few milliseconds, where launches count. "large" has steps that are almost all arithmetic: on a GPU
ResNet-50 on 224x224 images with batches of 128, on a CPU `resnet20` on 32x32 images with batches of
32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence_rows import FASTER, missing, ratios, row

from tfgpu.bench import process
from tfgpu.bench.interleaved_timing import MeasuredProcess, MeasurementFailed, spread
from tfgpu.bench.settings import BenchSettings
from tfgpu.machine.hardware_monitor import HardwareMonitor
from tfgpu.machine.runtime import PRECISIONS

FEWEST = 6
"""Rounds that an interval needs; what is slow gets no more."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where and how long is measured.

    Attributes:
        gpus: Names of the GPUs that TensorFlow shows.
        rounds: Of each comparison.
        seconds: Of one measurement, about.
        limit: Seconds of a comparison after which it has `FEWEST` rounds only.
        folder: For files that the claims make.
    """

    gpus: Sequence[str]
    rounds: int
    seconds: float
    limit: float
    folder: Path

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU."""
        return bool(self.gpus)

    @property
    def device(self) -> str:
        """What is measured, if nothing else is said."""
        return self.gpus[0] if self.gpus else "CPU:0"

    @property
    def workloads(self) -> dict[str, dict[str, Any]]:
        """Settings by name: "small" and "large"."""
        small = {"model": "lenet", "dataset": "digits", "batch_size": 128}
        large = {"model": "resnet20", "dataset": "synthetic:32x32x3:10", "batch_size": 32}
        if self.on_gpu:
            large = {"model": "resnet50", "dataset": "synthetic:224x224x3:1000", "batch_size": 128}
        # Calls from Python would be most of a small step on a GPU.
        several = 16 if self.on_gpu else 4
        return {
            "small": {**small, "augment": "none", "steps_per_execution": several},
            "large": {**large, "augment": "none", "steps_per_execution": 1},
        }

    def describe(self, name: str) -> str:
        """A workload in a few words."""
        about = self.workloads[name]
        return f"{about['model']}, batch {about['batch_size']}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One configuration of a comparison.

    Attributes:
        name: For the table.
        changes: Settings that differ from the baseline's.
        requests: Kinds of requests, with arguments, before it is built.
    """

    name: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    requests: Sequence[Mapping[str, Any]] = ()


@dataclasses.dataclass
class Measured:
    """What was measured of a cell: rates by round, or the error that ended it."""

    rates: list[float] = dataclasses.field(default_factory=list)
    error: str = ""


def settings(place: Place, **changes: Any) -> BenchSettings:
    """The settings of a trial: resident data on one device, with XLA on a GPU.

    Without XLA TensorFlow gathers uint8 on the CPU, which would be measured with whatever is.
    """
    plain = {
        **{"strategy": "one_device", "devices": place.device, "resume": "never"},
        **{"input": "resident", "jit_compile": place.on_gpu},
    }
    return BenchSettings(**{**plain, **changes})


@contextlib.contextmanager
def trials(place: Place, cells: Sequence[tuple[Cell, BenchSettings]], found: Sequence[Measured]):
    """Starts and builds a process for each cell, and ends them; one that fails gives None."""
    alive: list[MeasuredProcess | None] = []
    try:
        for _, config in cells:
            hidden = {} if place.on_gpu else {"CUDA_VISIBLE_DEVICES": "-1"}
            alive.append(process.start("trial", config, hidden))
        for number, (cell, _) in enumerate(cells):
            started = alive[number]
            assert started is not None
            try:
                started.read()
                for request in cell.requests:
                    started.ask(dict(request))
                started.ask({"kind": "build"})
            except MeasurementFailed as failure:
                found[number].error = str(failure)
                started.close()
                alive[number] = None
        yield alive
    finally:
        for each in alive:
            if each is not None:
                each.close()


def compare(
    place: Place,
    cells: Sequence[Cell],
    *,
    measure: Callable[[int, MeasuredProcess], float] | None = None,
    **base: Any,
) -> list[Measured]:
    """Measures cells in turn.

    Args:
        place: Where.
        cells: What.
        measure: Asks the process of a cell, by its position, for a rate; by default that of
            training, in examples a second.
        base: Settings of all cells.

    Returns:
        One for each cell. All that did not fail have the same number of rates.
    """
    ask = measure or (lambda _, each: each.ask({"kind": "train", "seconds": place.seconds}))
    found = [Measured() for _ in cells]
    planned = [(cell, settings(place, **{**base, **cell.changes})) for cell in cells]
    with trials(place, planned, found) as alive:
        begin = time.perf_counter()
        for number in range(place.rounds):
            if number >= FEWEST and time.perf_counter() - begin > place.limit:
                break
            for position, (each, one) in enumerate(zip(alive, found, strict=True)):
                if each is None or one.error:
                    continue
                try:
                    one.rates.append(ask(position, each))
                except MeasurementFailed as failure:
                    one.error = str(failure)
    return found


def against(
    cells: Sequence[Cell], found: Sequence[Measured], base: int, what: str, **options: Any
) -> list[dict[str, Any]]:
    """Rows of all cells but one, as ratios to that one's rates.

    Args:
        cells: What was measured.
        found: Its rates.
        base: The position of the one that the others are compared with.
        what: What stands in front of a cell's name.
        options: Of `evidence_rows.ratios`.
    """
    rows = []
    for position, (cell, one) in enumerate(zip(cells, found, strict=True)):
        if position == base:
            continue
        name = f"{what}{cell.name} over {cells[base].name}"
        error = one.error or found[base].error
        if error:
            rows.append(missing(name, error))
        else:
            rows.append(
                ratios(name, one.rates, found[base].rates, rate_unit="examples/s", **options)
            )
    return rows


# ---- the claims --------------------------------------------------------------------------------


def device_over_cpu(place: Place) -> list[dict[str, Any]]:
    """The same training on the GPU and on all cores of the CPU: a graph, streaming input."""
    rows = []
    for name, workload in place.workloads.items():
        what = f"{place.describe(name)}: GPU over CPU"
        if not place.on_gpu:
            rows.append(missing(what, "TensorFlow shows no GPU on this machine"))
            continue
        cells = [Cell("CPU", {"devices": "CPU:0"}), Cell("GPU")]
        found = compare(place, cells, input="streaming", jit_compile=False, **workload)
        rows += against(cells, found, 0, f"{place.describe(name)}: ")
    return rows


def samples_in_parallel(place: Place) -> list[dict[str, Any]]:
    """The rate of a training step by the size of its batch, which is on the device already."""
    sizes = [1, 8, 64, 512, 4096] if not place.on_gpu else [1, 8, 64, 512, 4096, 8192]
    workload = {**place.workloads["small"], "steps_per_execution": 1}
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    cell, found = Cell("lenet"), [Measured()]
    with trials(place, [(cell, settings(place, **workload))], found) as (alive,):
        if alive is None:
            return [missing("lenet: batches over single images", found[0].error)]
        for _ in range(place.rounds):
            for size in sizes:
                request = {"kind": "compute_alone", "batch_size": size}
                rates[size].append(size / alive.ask({**request, "seconds": place.seconds}))
    rows = [
        ratios(f"lenet: batch {size} over batch 1", rates[size], rates[1], rate_unit="images/s")
        for size in sizes[1:]
    ]
    last = f"lenet: batch {sizes[-1]} over batch {sizes[-2]}"
    rows.append(ratios(last, rates[sizes[-1]], rates[sizes[-2]], rate_unit="images/s"))
    curve = {str(size): spread(values) for size, values in rates.items()}
    return [{**each, **({"curve": curve} if each is rows[0] else {})} for each in rows]


def graph_and_xla(place: Place) -> list[dict[str, Any]]:
    """Eager, as a graph, compiled by XLA, and several steps for each call from Python."""
    source = {"input": "streaming"} if place.on_gpu else {}
    several = 64 if place.on_gpu else 16
    cells = [
        Cell("eager", requests=[{"kind": "run_eagerly"}]),
        Cell("graph"),
        Cell("XLA", {"jit_compile": True}),
        Cell(f"{several} steps an execution", {"steps_per_execution": several}),
    ]
    plain = {**source, "jit_compile": False, "steps_per_execution": 1}
    found = compare(place, cells, **{**place.workloads["small"], **plain})
    eager = against(cells[:2], found[:2], 0, "lenet: ")
    return eager + against(cells[1:], found[1:], 0, "lenet: ")


def mixed_precision(place: Place) -> list[dict[str, Any]]:
    """Training in TF32 (where there is one), bfloat16 and float16 over float32."""
    plain = Cell("float32", requests=[{"kind": "allow_tensor_float_32", "allowed": False}])
    cells = [plain]
    rows = []
    if place.on_gpu:
        cells.append(Cell("TF32"))
    for precision in PRECISIONS:
        if precision != "float32":
            name = precision.removeprefix("mixed_")
            cells.append(Cell(name, {"precision": precision}, plain.requests))
    for name, workload in place.workloads.items():
        if not place.on_gpu:
            rows.append(missing(f"{place.describe(name)}: TF32 over float32", "a CPU has no TF32"))
        rows += against(cells, compare(place, cells, **workload), 0, f"{place.describe(name)}: ")
    return rows


def replicas(place: Place) -> list[dict[str, Any]]:
    """Replicas over one, with the batch of a replica (weak) and the global batch (strong) kept."""
    count = len(place.gpus) if len(place.gpus) > 1 else 2
    virtual = len(place.gpus) < 2
    several: dict[str, Any] = {"strategy": "mirrored", "devices": "all"}
    if virtual:
        several["virtual_devices"] = count
    name = f"{count} virtual replicas on one device" if virtual else f"{count} replicas"
    batch = place.workloads["small"]["batch_size"]
    cells = [
        Cell("one replica"),
        Cell(f"{name}, global batch kept", several),
        Cell(f"{name}, replica's batch kept", {**several, "batch_size": count * batch}),
    ]
    found = compare(place, cells, **place.workloads["small"])
    return against(cells, found, 0, "lenet: ")


def all_reduce(place: Place) -> list[dict[str, Any]]:
    """Steps of replicas with their exchange of gradients, over steps that leave it out."""
    count = len(place.gpus) if len(place.gpus) > 1 else 2
    several: dict[str, Any] = {"strategy": "mirrored", "devices": "all"}
    if len(place.gpus) < 2:
        several["virtual_devices"] = count
    cells = [Cell("without", requests=[{"kind": "leave_out_exchange"}]), Cell("with the exchange")]
    rows = []
    for workload in place.workloads.values():
        batch = count * workload["batch_size"]
        base = {**workload, **several, "batch_size": batch}
        found = compare(place, cells, **base)
        what = f"{workload['model']}, {count} replicas, batch {batch}: "
        rows += against(cells, found, 0, what, bound=0.9)
    return rows


def overlap(place: Place) -> list[dict[str, Any]]:
    """Reading and decoding JPEG files beside computing: the share of the shorter that is hidden.

    (input alone + computation alone - both together) / the shorter of the first two: 1 when all of
    it is hidden, 0 when they come one after the other.
    """
    folder = make_jpegs(place.folder / "jpeg", count=640, side=160)
    config = settings(
        place,
        **{"model": "lenet", "dataset": f"folder:{folder}", "image_size": (64, 64)},
        **{"input": "streaming", "augment": "none", "batch_size": 64, "steps_per_execution": 5},
        validation_fraction=0.0,
    )
    what = "JPEG files of 160x160 to lenet at 64x64, batch 64: "
    times: dict[str, list[float]] = {"input alone": [], "computation alone": [], "both": []}
    found = [Measured()]
    with trials(place, [(Cell("lenet"), config)], found) as (alive,):
        if alive is None:
            return [missing(f"{what}share hidden", found[0].error)]
        for _ in range(place.rounds):
            for name, kind in (
                ("input alone", "data_alone"),
                ("computation alone", "compute_alone"),
            ):
                times[name].append(alive.ask({"kind": kind, "seconds": place.seconds}))
            rate = alive.ask({"kind": "train", "seconds": place.seconds})
            times["both"].append(config.batch_size / rate)
    shares = [(a + b - both) / min(a, b) for a, b, both in zip(*times.values(), strict=True)]
    rows = [row(f"{what}share hidden", shares, unit="of the shorter", side="at least", bound=0.5)]
    for name, values in times.items():
        rows.append(row(f"{what}{name}", [1e3 * each for each in values], unit="ms a step"))
    return rows


def make_jpegs(folder: Path, *, count: int, side: int) -> Path:
    """Writes the handwritten digits as JPEG files in folders of classes, for training and test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in range(count + 40):
        split = "train" if number < count else "test"
        place = folder / split / str(digits.target[number])
        place.mkdir(parents=True, exist_ok=True)
        pixels = (digits.images[number] * 15.9).astype("uint8")
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        picture.convert("RGB").save(place / f"{number}.jpg", quality=90)
    return folder


def energy_and_cost(place: Place, *, price: float | None) -> list[dict[str, Any]]:
    """Energy and device time of a trained image, as the machine's own meters say.

    Args:
        place: Where.
        price: Of an hour of the machine, in a currency of the caller's.
    """
    workload, what = place.workloads["large"], f"{place.describe('large')}: "
    cells = [Cell("float32")]
    if place.on_gpu:
        cells.append(Cell("float16", {"precision": "mixed_float16"}))
    used: list[dict[str, list[float]]] = [{} for _ in cells]
    absent: dict[str, str] = {}

    def measure(position: int, each: MeasuredProcess) -> float:
        monitor = HardwareMonitor(interval=0.5, gpus=(0,) if place.on_gpu else ())
        with monitor:
            rate = float(each.ask({"kind": "train", "seconds": max(2.0, place.seconds)}))
        told = monitor.summary()
        images = rate * told["seconds"]
        for part in told["energy"]:
            used[position].setdefault(part["of"], []).append(part["joules"] / images)
        for gone in told["missing"]:
            if gone["what"] != "processor and memory":  # How busy they are.
                absent[gone["what"]] = gone["why"]
        return rate

    found = compare(place, cells, measure=measure, **workload)
    rows = []
    for cell, one, energies in zip(cells, found, used, strict=True):
        if one.error:
            rows.append(missing(f"{what}{cell.name}", one.error))
            continue
        hours = [1e6 / 3600 / rate for rate in one.rates]
        about = f"{what}device time of a million images, {cell.name}"
        rows.append(row(about, hours, unit="hours"))
        if price is not None:
            costs = [price * each for each in hours]
            about = f"{what}cost of a million images, {cell.name}"
            rows.append(row(about, costs, unit=f"at {price:g} an hour"))
        for name, values in energies.items():
            rows.append(row(f"{what}energy of {name}, {cell.name}", values, unit="J an image"))
    rows += [missing(f"{what}{name}", reason) for name, reason in absent.items()]
    if len(cells) > 1:
        for name in used[0].keys() & used[1].keys():
            rows.append(
                row(
                    f"{what}energy of {name}, float16 over float32",
                    [a / b for a, b in zip(used[1][name], used[0][name], strict=False)],
                    **{"unit": "times the energy", "side": "at most", "bound": 1 / FASTER},
                )
            )
    return rows
