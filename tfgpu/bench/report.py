"""The results of a benchmark and their report: tables, `bench.json` and charts."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rich.box
import rich.console
from rich.table import Table

from tfgpu.artifacts import files
from tfgpu.artifacts.files import plain
from tfgpu.bench import interleaved_timing
from tfgpu.bench import verdict as verdict_lib
from tfgpu.bench.factors import Cell
from tfgpu.bench.interleaved_timing import Spread
from tfgpu.bench.settings import BenchSettings
from tfgpu.bench.verdict import Timings, Verdict
from tfgpu.cli import flags
from tfgpu.cli.console import Console, duration
from tfgpu.errors import RequestError

NO_PLOTS = "no charts are drawn without matplotlib: pip install 'tfgpu[plots]'"

# Wide enough that no cell is cut.
_WIDTH = 140


@dataclass
class Result:
    """What was measured of a cell.

    Attributes:
        cell: The configuration.
        error: Why it could not be measured; empty when it was.
        built: What `Trial.build` returned.
        rates: Examples per second, one of each round.
        base: Those of the baseline in the same rounds.
        extra: Other measurements, such as the bandwidth of its all-reduce.
    """

    cell: Cell
    error: str = ""
    built: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> Spread:
        """Examples per second."""
        return interleaved_timing.spread(self.rates)

    @property
    def gain(self) -> Spread:
        """Throughput over the baseline's."""
        return interleaved_timing.compare(self.rates, self.base)


def make_directory(config: BenchSettings) -> Path:
    """Makes the directory for the files, before minutes are spent on measuring.

    Raises:
        RequestError: It cannot be made or written.
    """
    directory = Path(config.run_dir or time.strftime("runs/bench-%Y%m%d-%H%M%S"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise RequestError(
            f"--run_dir={directory}: cannot be written ({error.strerror}); name another place"
        ) from error
    return directory


def write(
    config: BenchSettings,
    directory: Path,
    *,
    console: Console,
    environment: Mapping[str, Any],
    ceilings: Mapping[str, Any],
    results: Sequence[Result],
    remarks: Sequence[str],
    timings: Timings,
    judged: Verdict,
    layers: Sequence[Mapping[str, Any]],
    seconds: float,
) -> None:
    """Prints the result and writes the files.

    Args:
        config: The baseline and what was compared.
        directory: What `make_directory` returned.
        console: Where messages go.
        environment: What environment.json of a run would hold.
        ceilings: What the machine can do at best.
        results: Of each cell, the baseline first.
        remarks: What was left out, and why.
        timings: Of the baseline.
        judged: The verdict on them.
        layers: Operations, bytes and time of each layer's forward pass.
        seconds: What the whole benchmark took.

    Raises:
        OSError: It cannot be written; the error names the file.
    """
    record = {
        "command": shlex.join(["tfgpu", "bench", *flags.to_argv(config, command="bench")]),
        "environment": environment,
        "dataset": config.dataset,
        "model": results[0].built["model"],
        "rounds": config.rounds,
        "seconds": seconds,
        "remarks": list(remarks),
        "ceilings": ceilings,
        "cells": [_cell(result) for result in results],
        "timings": dataclasses.asdict(timings),
        "verdict": dataclasses.asdict(judged),
        "layers": list(layers),
    }
    with files.replacing(directory / "bench.json") as beside:
        beside.write_text(json.dumps(plain(record), indent=1) + "\n", encoding="utf-8")
    console.say(table(results, config.rounds))
    console.say(ceilings_text(ceilings))
    console.say(verdict_lib.describe(judged, timings))
    drawn = draw(record, directory)
    if not drawn:
        console.say(NO_PLOTS)
    names = ", ".join(["bench.json", *(path.name for path in drawn)])
    console.say(f"{duration(seconds)} in all; {names} are in {directory}")


def draw(record: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draws the charts, if matplotlib is installed; returns their files."""
    try:
        from tfgpu.bench import plots
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        return []
    return plots.draw(record, directory)


def _cell(result: Result) -> dict[str, Any]:
    record: dict[str, Any] = {
        "factor": result.cell.factor,
        "name": result.cell.name,
        "flags": result.cell.flags,
        "jit_compile": result.cell.config.jit_compile,
        "error": result.error or None,
        **result.built,
        **result.extra,
    }
    if not result.error:
        record |= {
            "unit": "samples/s",
            "runs": result.rates,
            "rate": result.rate,
            "gain": result.gain,
        }
    return record


def table(results: Sequence[Result], rounds: int) -> str:
    """Formats the throughput of each cell and its ratio to the baseline's."""
    shown = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for head in ("factor", "", "batch", "XLA"):
        shown.add_column(head, no_wrap=True)
    for head in ("samples/s", "middle half", f"gain, n={rounds}", "middle half", "compiling"):
        shown.add_column(head, justify="right", no_wrap=True)
    last = ""
    for result in results:
        factor = result.cell.factor
        head = "" if factor == last else factor.replace("_", " ")
        last = factor
        xla = "on" if result.cell.config.jit_compile else "off"
        batch = str(result.cell.config.batch_size)
        name = "" if factor == "baseline" else result.cell.name
        if result.error:
            shown.add_row(head, name, batch, xla, "failed", "", "", "", "")
            continue
        rate, gain = result.rate, result.gain
        shown.add_row(
            head,
            name,
            batch,
            xla,
            f"{rate['median']:,.0f}",
            f"{rate['low']:,.0f} to {rate['high']:,.0f}",
            "" if factor == "baseline" else f"{gain['median']:.2f}",
            "" if factor == "baseline" else f"{gain['low']:.2f} to {gain['high']:.2f}",
            duration(result.built["compile_seconds"]),
        )
    failed = [f"{result.cell.name}: {result.error}" for result in results if result.error]
    return "\n".join([_as_text(shown), *failed])


def ceilings_text(ceilings: Mapping[str, Any]) -> str:
    """Formats what the machine can do at best."""
    shown = Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("ceiling")
    precisions = list(ceilings["matrix_product"])
    for precision in precisions:
        shown.add_column(precision, justify="right")
    for kind in ("matrix_product", "convolution"):
        values = [quantity(kind, ceilings[kind][precision]) for precision in precisions]
        shown.add_row(kind.replace("_", " "), *values)
    for kind, value in ceilings.items():
        if not isinstance(value, Mapping) and value is not None:
            shown.add_row(kind.replace("_", " "), quantity(kind, value))
    return _as_text(shown)


def quantity(kind: str, value: float | None) -> str:
    """Formats a ceiling with its unit."""
    if value is None:
        return "-"
    if kind in ("matrix_product", "convolution"):
        return f"{value / 1e9:,.0f} GFLOP/s"
    if kind.endswith("bandwidth"):
        return f"{value / 1e9:,.1f} GB/s"
    return f"{value * 1e6:,.2f} us"


def _as_text(shown: Table) -> str:
    out = io.StringIO()
    rich.console.Console(file=out, width=_WIDTH, color_system=None).print(shown)
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())
