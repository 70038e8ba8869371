"""`tfgpu doctor` from beginning to end: examine the machine, probe combinations, print."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict
from typing import Any

from tfgpu.cli.console import Console, Countdown
from tfgpu.doctor import environment_checks, findings, probe
from tfgpu.doctor import framework as framework_lib
from tfgpu.doctor import libraries as libraries_lib
from tfgpu.doctor.cluster_checks import check_cluster
from tfgpu.doctor.data_checks import check_folders, check_tfds, data_folder
from tfgpu.doctor.findings import Finding
from tfgpu.doctor.gpu_checks import check_gpus
from tfgpu.doctor.libraries import Opened
from tfgpu.doctor.meeting import check_together
from tfgpu.doctor.probe import Cell, Outcome
from tfgpu.doctor.settings import DoctorSettings
from tfgpu.machine import driver as driver_lib

_SECONDS_A_CELL = 8.0  # First estimate: the import of TensorFlow takes most of it.


def run(config: DoctorSettings) -> int:
    """Examines this machine and prints the findings on standard output.

    Args:
        config: What is to be trained with.

    Returns:
        0 when a training can start, 1 when not.
    """
    # Progress goes to standard error: a script may read standard output.
    console = Console(progress=config.progress, file=sys.stderr)
    with Countdown(console, [1.0]) as countdown:
        countdown.begin("looking at the machine")
        found, gpus = examine(config)
    found += check_together(
        config.strategy, os.environ, timeout=config.join_timeout, say=console.say
    )
    tried: list[tuple[Cell, Outcome]] = []
    if config.probe != "none":
        tried = _probe(config, console, gpus=gpus)
        found.append(_judge_probe(tried))
    if config.json:
        print(_as_json(found, tried))
    else:
        print(findings.as_text(found))
        if tried:
            print(probe.table(tried))
        problems = sum(finding.status == "problem" for finding in found)
        print(
            f"{problems} problem{'s' if problems > 1 else ''}: training cannot start as asked"
            if problems
            else "training can start"
        )
    return 0 if findings.can_train(found) else 1


def examine(config: DoctorSettings) -> tuple[list[Finding], int]:
    """Asks the driver, the loader, TensorFlow and the file system, and checks the answers.

    Args:
        config: What is to be trained with: strategy, devices, data and run folders.

    Returns:
        The findings, and how many GPUs a training would use.
    """
    driver = driver_lib.ask()
    folder = libraries_lib.tensorflow_folder()
    libraries = libraries_lib.wanted(libraries_lib.read_config(folder))
    expects_gpu = not config.devices.startswith("CPU") and (
        bool(driver.gpus or driver.cards) or config.devices.startswith("GPU")
    )
    opened: list[Opened] = libraries_lib.open_all(libraries) if expects_gpu else []
    writable, folder_findings = check_folders(config, data_folder(config))
    framework = framework_lib.ask(data_dir=writable)
    found = [
        *environment_checks.check_software(
            framework, versions=environment_checks.installed_versions()
        ),
        *check_gpus(
            driver,
            framework,
            zip(libraries, opened, strict=True) if opened else (),
            devices=config.devices,
            variables=os.environ,
            compiler=libraries_lib.compiler_folder(folder, os.environ),
        ),
        *environment_checks.check_processor(
            framework, flags=environment_checks.cpu_flags(), machine=platform.machine()
        ),
        *folder_findings,
        *check_tfds(framework, config.dataset, writable),
        *check_cluster(config.strategy, os.environ),
    ]
    # A GPU that fails a matrix product trains nothing.
    usable = sum(not gpu.error for gpu in framework.gpus)
    return found, 0 if config.devices.startswith("CPU") else usable


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


def _judge_probe(tried: list[tuple[Cell, Outcome]]) -> Finding:
    """Judges by the combinations of tfgpu; those of stock Keras are there for comparison."""
    ours = [outcome for cell, outcome in tried if cell.library == "tfgpu"]
    stock = [outcome for cell, outcome in tried if cell.library == "keras"]
    works, stock_works = (
        sum(outcome.status == "works" for outcome in some) for some in (ours, stock)
    )
    parts = [f"tfgpu {works} of {len(ours)}"] if ours else []
    parts += [f"stock Keras {stock_works} of {len(stock)}"] if stock else []
    value = f"{', '.join(parts)} combinations train"
    if works == len(ours):
        return Finding("Probe", "combinations", "ok", value)
    remedy = "choose one that works below, or raise --probe_limit where one hangs"
    return Finding("Probe", "combinations", "warning" if works else "problem", value, remedy)


def _as_json(found: list[Finding], tried: list[tuple[Cell, Outcome]]) -> str:
    report: dict[str, Any] = {
        "can_train": findings.can_train(found),
        "findings": [asdict(finding) for finding in found],
    }
    if tried:
        report["probe"] = [asdict(cell) | asdict(outcome) for cell, outcome in tried]
    return json.dumps(report, indent=1)
