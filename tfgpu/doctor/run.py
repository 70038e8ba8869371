"""The diagnosis as a whole: asked, judged, printed."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from tfgpu.cli.console import Console, Countdown
from tfgpu.doctor import checks, probe
from tfgpu.doctor.checks import Finding
from tfgpu.doctor.probe import Cell, Outcome
from tfgpu.doctor.settings import DoctorSettings

_SECONDS_A_CELL = 8.0
"""Expected of a combination before any was tried: TensorFlow's import takes most of it."""


def run(config: DoctorSettings) -> int:
    """Examines this machine and prints what was found on standard output.

    Args:
        config: What is to be looked at.

    Returns:
        0 when a training can start, 1 when not.
    """
    # Progress stays off standard output, which a script may read.
    console = Console(progress=config.progress, file=sys.stderr)
    with Countdown(console, [1.0]) as countdown:
        countdown.begin("looking at the machine")
        findings, gpus = checks.examine(config)
    tried: list[tuple[Cell, Outcome]] = []
    if config.probe != "none":
        tried = _probe(config, console, gpus=gpus)
        findings.append(_judged(tried))
    if config.json:
        print(_as_json(findings, tried))
    else:
        print(checks.as_text(findings))
        if tried:
            print(probe.table(tried))
        print(_verdict(findings))
    return 0 if checks.can_train(findings) else 1


def _probe(config: DoctorSettings, console: Console, *, gpus: int) -> list[tuple[Cell, Outcome]]:
    cells = probe.cells(config.probe)
    tried = []
    with Countdown(console, [_SECONDS_A_CELL] * len(cells)) as countdown:
        for cell in cells:
            countdown.begin(str(cell))
            outcome = probe.run(cell, gpus=gpus, limit=config.probe_limit)
            tried.append((cell, outcome))
            countdown.end(f"{cell}: {outcome.status} ({outcome.seconds:.1f} s)")
    return tried


def _judged(tried: list[tuple[Cell, Outcome]]) -> Finding:
    """What the probe means for a training with tfgpu; stock Keras is there to compare."""
    ours = [outcome for cell, outcome in tried if cell.library == "tfgpu"]
    stock = [outcome for cell, outcome in tried if cell.library == "keras"]
    works, stock_works = (
        sum(outcome.status == "works" for outcome in some) for some in (ours, stock)
    )
    told = [f"tfgpu {works} of {len(ours)}"] if ours else []
    told += [f"stock Keras {stock_works} of {len(stock)}"] if stock else []
    value = f"{', '.join(told)} combinations train"
    if works == len(ours):
        return Finding("Probe", "combinations", "ok", value)
    remedy = "choose one that works below, or raise --probe_limit where one hangs"
    return Finding("Probe", "combinations", "warning" if works else "problem", value, remedy)


def _as_json(findings: list[Finding], tried: list[tuple[Cell, Outcome]]) -> str:
    told: dict[str, Any] = {
        "can_train": checks.can_train(findings),
        "findings": [asdict(finding) for finding in findings],
    }
    if tried:
        told["probe"] = [asdict(cell) | asdict(outcome) for cell, outcome in tried]
    return json.dumps(told, indent=1)


def _verdict(findings: list[Finding]) -> str:
    problems = sum(finding.status == "problem" for finding in findings)
    if not problems:
        return "training can start"
    return f"{problems} problem{'s' if problems > 1 else ''}: training cannot start as asked"
