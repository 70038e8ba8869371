"""`tfgpu bench` from beginning to end: machine, baseline and changes, verdict, files."""

from __future__ import annotations

import contextlib
import importlib.util
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tfgpu import errors
from tfgpu.bench import factors, report, verdict
from tfgpu.bench import process as process_lib
from tfgpu.bench.factors import Cell
from tfgpu.bench.interleaved_timing import MeasuredProcess, MeasurementFailed
from tfgpu.bench.report import Result
from tfgpu.bench.settings import BenchSettings
from tfgpu.cli.console import Console, Countdown
from tfgpu.machine import hardware
from tfgpu.machine.runtime import PRECISIONS

SECONDS = 0.6
"""Seconds of training in a round, and of each other measurement, about."""

# First estimates of the seconds that jobs take, on two cores; the countdown corrects them.
_START, _BUILD, _CEILING = 5.0, 4.0, 1.0

_TIMED = {
    "input alone": "data_alone",
    "computation alone": "compute_alone",
    "a quarter of the batch": "compute_alone",
    "training": "train",
}
"""What is timed for the verdict, `_VERDICT_ROUNDS` times, with the kind of the request for it."""

_VERDICT_ROUNDS = 3
_MEMORY = 1 << 30  # Bytes of a process: they limit how many are alive at once.


def run(config: BenchSettings, *, console: Console) -> Path:
    """Measures, prints the table and the verdict, and writes the files.

    Args:
        config: The baseline and what to compare.
        console: Where messages go.

    Returns:
        The directory with bench.json and the charts.

    Raises:
        tfgpu.errors.Error: The request is wrong, the data cannot be had, or the baseline fails.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(_process("machine", config, {}))
        _ask(machine)
        gpus = _ask(machine, kind="look")["gpus"]
        cells, remarks = factors.plan(config, gpus=gpus)
        directory = stack.enter_context(_removed_on_error(report.make_directory(config)))
        if importlib.util.find_spec("matplotlib") is None:
            remarks.append(report.NO_PLOTS)
        for remark in remarks:
            console.say(remark)
        ceilings = _ceiling_requests()
        groups = _groups(cells[1:], room=hardware.host_free_memory() // _MEMORY)
        jobs = _job_seconds(config, len(ceilings), groups)
        countdown = stack.enter_context(Countdown(console, jobs))
        device = cells[0].config.devices
        environment = _ask(machine, kind="start", device=device)
        measured = _ceilings(machine, ceilings, countdown)
        machine.close()

        countdown.begin("building the baseline")
        base = stack.enter_context(_process("trial", cells[0].config, cells[0].environment))
        baseline = Result(cells[0])
        _ask(base)
        baseline.built = _ask(base, kind="build")
        countdown.end(f"built the baseline ({baseline.built['compile_seconds']:.1f} s compiling)")
        results = [baseline]
        for group in groups:
            results += _measure(group, base, baseline, config.rounds, countdown)
        bandwidths = [r.extra["all_reduce_bandwidth"] for r in results if r.extra]
        # The last cell has the most replicas; None without replicas.
        measured["all_reduce_bandwidth"] = bandwidths[-1] if bandwidths else None
        timings, layers = _timings(base, config, measured, countdown)
        if layers["uncounted"]:
            names = ", ".join(layers["uncounted"])
            remarks.append(f"operations of these layers are not counted: {names}")
            console.say(remarks[-1])
    judged = verdict.judge(timings, _changes(results))
    report.write(
        config,
        directory,
        console=console,
        environment=environment,
        ceilings=measured,
        results=results,
        remarks=remarks,
        timings=timings,
        judged=judged,
        layers=layers["layers"],
        seconds=time.perf_counter() - started,
    )
    return directory


def _job_seconds(config: BenchSettings, ceilings: int, groups: list[list[Cell]]) -> list[float]:
    """Estimates the seconds of each job that the countdown shows, in order."""
    jobs = [_CEILING] * ceilings
    jobs += [_START + _BUILD]
    for group in groups:
        jobs += [_START / _parallel_starts() + _BUILD] * len(group)
        jobs += [SECONDS * (len(group) + 1)] * config.rounds
    jobs += [_BUILD + SECONDS * len(_TIMED)] + [SECONDS * len(_TIMED)] * (_VERDICT_ROUNDS - 1)
    return [*jobs, _BUILD]


@contextlib.contextmanager
def _removed_on_error(directory: Path) -> Iterator[Path]:
    """Removes the directory again, if it is empty, when the benchmark fails."""
    try:
        yield directory
    except BaseException:
        with contextlib.suppress(OSError):  # It is not empty.
            directory.rmdir()
        raise


def _process(
    kind: str, config: BenchSettings, environment: dict[str, str]
) -> contextlib.closing[MeasuredProcess]:
    return contextlib.closing(process_lib.start(kind, config, environment))


def _ask(process: MeasuredProcess, **request: Any) -> Any:
    """Asks a process, or reads its first answer; a failure ends the benchmark."""
    try:
        return process.ask(request) if request else process.read()
    except MeasurementFailed as failure:
        for kind in (errors.RequestError, errors.DataError, errors.ModelFileError):
            if failure.exit_code == kind.exit_code:
                raise kind(str(failure)) from None
        raise errors.WorkError(f"the baseline cannot be measured: {failure}") from None


def _parallel_starts() -> int:
    """Processes that import TensorFlow at the same time."""
    return max(1, min(4, hardware.usable_cores()))


def _groups(cells: Sequence[Cell], *, room: int) -> list[list[Cell]]:
    """Groups cells whose processes are alive together: as many as fit into memory."""
    size = max(1, int(room) - 2)
    return [list(cells[i : i + size]) for i in range(0, len(cells), size)]


def _ceiling_requests() -> list[dict[str, Any]]:
    seconds = {"seconds": SECONDS}
    alone = ("memory_bandwidth", "host_to_device_bandwidth", "launch_seconds", "call_seconds")
    return [
        *({"kind": "matrix_product", "precision": precision} for precision in PRECISIONS),
        *({"kind": "convolution", "precision": precision, **seconds} for precision in PRECISIONS),
        *({"kind": kind, **seconds} for kind in alone),
    ]


def _ceilings(
    machine: MeasuredProcess, requests: list[dict[str, Any]], countdown: Countdown
) -> dict[str, Any]:
    found: dict[str, Any] = {"matrix_product": {}, "convolution": {}}
    for request in requests:
        kind, precision = request["kind"], request.get("precision", "")
        name = f"{kind.replace('_', ' ')} {precision}".rstrip()
        countdown.begin(name)
        try:
            value = machine.ask(request)
        except MeasurementFailed as failure:
            # Such as a dtype that the device does not support.
            value = None
            countdown.end(f"{name}: {failure}")
        else:
            countdown.end(f"{name}: {report.quantity(kind, value)}")
        if precision:
            found[kind][precision] = value
        else:
            found[kind] = value
    return found


def _measure(
    group: list[Cell], base: MeasuredProcess, baseline: Result, rounds: int, countdown: Countdown
) -> list[Result]:
    """Builds the cells of a group, and times them interleaved with the baseline."""
    results = [Result(cell) for cell in group]
    alive: list[tuple[Result, MeasuredProcess]] = []
    with contextlib.ExitStack() as stack:
        parallel = _parallel_starts()
        for first in range(0, len(results), parallel):
            # They import TensorFlow in parallel, but compile one after another, so that the
            # compilation times are not those of a loaded machine.
            processes = []
            for result in results[first : first + parallel]:
                cell = result.cell
                process = stack.enter_context(_process("trial", cell.config, cell.environment))
                processes.append((result, process))
            for result, process in processes:
                _try(result, process)
            for result, process in processes:
                countdown.begin(f"building {result.cell.name}")
                if not result.error:
                    result.built = _try(result, process, kind="build") or {}
                if result.error:
                    process.close()
                    countdown.end(f"{result.cell.name}: {result.error}")
                    continue
                alive.append((result, process))
                seconds = result.built["compile_seconds"]
                countdown.end(f"built {result.cell.name} ({seconds:.1f} s compiling)")
        for number in range(rounds):
            countdown.begin(f"round {number + 1} of {rounds}")
            base_rate = _ask(base, kind="train", seconds=SECONDS)
            baseline.rates.append(base_rate)
            baseline.base.append(base_rate)
            for result, process in list(alive):
                rate = _try(result, process, kind="train", seconds=SECONDS)
                if rate is None:
                    process.close()
                    alive.remove((result, process))
                    continue
                result.rates.append(rate)
                result.base.append(base_rate)
            countdown.end(f"round {number + 1} of {rounds}")
        for result, process in alive:
            if result.cell.factor == "replicas":
                bandwidth = _try(result, process, kind="all_reduce", seconds=SECONDS)
                if bandwidth is not None:
                    result.extra["all_reduce_bandwidth"] = bandwidth
    return results


def _try(result: Result, process: MeasuredProcess, **request: Any) -> Any:
    """Asks the process of a cell; a failure is noted in the result, and gives None."""
    try:
        return process.ask(request) if request else process.read()
    except MeasurementFailed as failure:
        result.error = str(failure)
        return None


def _changes(results: Sequence[Result]) -> list[verdict.Measured]:
    return [
        verdict.Measured(factor=result.cell.factor, flags=result.cell.flags, gain=result.gain)
        for result in results[1:]
        # Not virtual replicas: they run on one device, and gain nothing.
        if not result.error and not result.cell.config.virtual_devices
    ]


def _timings(
    base: MeasuredProcess, config: BenchSettings, ceilings: dict[str, Any], countdown: Countdown
) -> tuple[verdict.Timings, dict[str, Any]]:
    """Measures the timings of the baseline that the verdict needs, also interleaved."""
    batch, quarter = config.batch_size, config.batch_size // 4
    times: dict[str, list[float]] = {name: [] for name in _TIMED}
    for number in range(_VERDICT_ROUNDS):
        what = f"input, computation and both, {number + 1} of {_VERDICT_ROUNDS}"
        countdown.begin(what)
        for name, kind in _TIMED.items():
            request: dict[str, Any] = {"kind": kind, "seconds": SECONDS}
            if name == "a quarter of the batch":
                if not quarter:
                    continue
                request["batch_size"] = quarter
            value = _ask(base, **request)
            times[name].append(batch / value if name == "training" else value)
        countdown.end(what)
    countdown.begin("layers")
    layers = _ask(base, kind="layers", seconds=SECONDS)
    countdown.end("layers")
    medians = {name: statistics.median(values) for name, values in times.items() if values}
    compute = medians["computation alone"]
    part = medians.get("a quarter of the batch")
    # The intercept of a line through the times of the batch and of a quarter of it.
    fixed = None if part is None else (part * batch - compute * quarter) / (batch - quarter)
    timings = verdict.Timings(
        data=medians["input alone"],
        compute=compute,
        both=medians["training"],
        fixed=fixed,
        flops=layers["flops"],
        traffic=layers["traffic"],
        peak_flops=ceilings["matrix_product"][config.precision],
        bandwidth=ceilings["memory_bandwidth"],
    )
    return timings, layers
