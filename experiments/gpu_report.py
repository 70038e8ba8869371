"""What tfgpu does on this machine's first GPU: checks and figures, on one page, in 8 minutes.

    python experiments/gpu_report.py

First the checks whose time does not matter, several at once: kernels of the device map, every
precision with and without XLA from both inputs, two logical devices, memory, copies to the host,
data that end or raise, a run that is killed and resumed to the bit. Then, one after another,
what measures speed: matrix products, `lenet` beside stock Keras, ResNet-50, and the time to 94 %
on CIFAR-10 (where TFDS_DATA_DIR holds it). Prints PASS, FAIL, or INFO for a figure that nothing is
asked of; writes `experiments/results/gpu_report.json` and `gpu_report.md`; exits 1 if a check
failed or a group did not end.

Without a GPU it says so, and runs the checks on the CPU as a trial of themselves: only with --cpu,
which writes nothing. The same checks run one by one with `pytest -m gpu`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_checks
import gpu_place
import gpu_speed
from versus import machine

from tfgpu.machine import driver

EVERY = (*gpu_checks.GROUPS, *gpu_speed.SPEED)
"""The groups, in the order of the report."""

RESULTS = Path(__file__).resolve().parent / "results"


def run_group(group: str, *, limit: float) -> dict[str, Any]:
    """Runs a group in a process of its own.

    Args:
        group: Of `gpu_checks` or `gpu_speed`.
        limit: Seconds that it may take.

    Returns:
        "group", "seconds", "checks", and "error": None, or how it ended before its end.
    """
    module = gpu_checks if group in gpu_checks.GROUPS else gpu_speed
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, module.__file__, group],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=gpu_place.ROOT,
        env=os.environ | {"PYTHONPATH": _path(), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    error = None
    try:
        out, said = process.communicate(timeout=limit)
        if process.returncode:
            lines = said.strip().splitlines()
            error = f"exit {process.returncode}: " + (lines[-1] if lines else "")
    except subprocess.TimeoutExpired:
        process.kill()
        out, said = process.communicate()
        error = f"not done after {limit:.0f} s"
    checks = [json.loads(line) for line in out.splitlines() if line.startswith('{"name"')]
    return {
        "group": group,
        "seconds": time.perf_counter() - begin,
        "checks": checks,
        "error": error,
        "log": said[-4000:] if error else "",
        "date": datetime.date.today().isoformat(),
    }


def _path() -> str:
    return os.pathsep.join([str(gpu_place.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def gpu() -> dict[str, Any] | None:
    """The first GPU as the driver tells of it; None without one."""
    found = driver.ask()
    if not found.gpus:
        return None
    first = found.gpus[0]
    memory = None if first.total is None else f"{first.total / 2**20:.0f} MiB"
    return {"name": first.name, "driver": found.version, "memory": memory}


def show(result: dict[str, Any]) -> None:
    """Prints the outcome of a group."""
    for check in result["checks"]:
        word = {True: "PASS", False: "FAIL", None: "INFO"}[check["passed"]]
        print(f"{word}  {check['name']}  {check['note']}  {_short(check['figures'])}", flush=True)
    if result["error"]:
        print(f"FAIL  {result['group']}: {result['error']}", flush=True)


def _short(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in figures.items() if name != "runs")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_value(each)}" for name, each in value.items()) + ")"
    if isinstance(value, list):
        # Two lists side by side would be a link.
        between = ", " if any(isinstance(each, list) for each in value) else " "
        return "[" + between.join(_value(each) for each in value) + "]"
    return str(value)


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    device, versions = report["gpu"], report["versions"]
    lines = [
        "# What a GPU has shown",
        "",
        "Written by `python experiments/gpu_report.py`; the figures are in `gpu_report.json`.",
        "",
        f"{device['name']}, driver {device['driver']}, {device['memory']}; "
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; {report['machine']['date']}; {report['seconds']:.0f} s in all.",
        "",
        "| | check | figures | date |",
        "| --- | --- | --- | --- |",
    ]
    for result in report["groups"]:
        for check in result["checks"]:
            word = {True: "PASS", False: "**FAIL**", None: ""}[check["passed"]]
            told = " ".join(filter(None, [check["note"], _short(check["figures"])]))
            told = told.replace("|", "/")
            lines.append(f"| {word} | {check['name']} | {told} | {result['date']} |")
        if result["error"]:
            told = result["error"].replace("|", "/")
            lines.append(f"| **FAIL** | {result['group']} | {told} | {result['date']} |")
    return "\n".join(lines) + "\n"


def write(
    folder: Path, device: dict[str, Any], groups: list[dict[str, Any]], *, seconds: float
) -> None:
    """Writes what there is so far, as JSON and as a page.

    Groups that were not asked for stay as an earlier report of the same GPU and versions has them.
    """
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")}
    groups = with_earlier(folder / "gpu_report.json", device, versions, groups)
    report = {
        "gpu": device,
        "machine": machine(),
        "versions": versions,
        "seconds": seconds,
        "groups": groups,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu_report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "gpu_report.md").write_text(page(report))


def with_earlier(
    path: Path, device: dict[str, Any], versions: dict[str, str], groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The groups of this report and, in the order of all, those of an earlier one beside them."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    if (earlier.get("gpu"), earlier.get("versions")) != (device, versions):
        return groups
    date = earlier["machine"]["date"]
    found = {each["group"]: {"date": date, **each} for each in earlier["groups"]}
    found |= {each["group"]: each for each in groups}
    return [found[name] for name in EVERY if name in found]


def main() -> int:
    """Runs the groups; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(EVERY), help="groups, joined by commas")
    parser.add_argument("--jobs", type=int, default=8, help="groups at once")
    parser.add_argument("--limit", type=float, default=150, help="seconds a check may take")
    parser.add_argument("--speed_limit", type=float, default=150, help="the same, of speed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder that is written to")
    parser.add_argument("--profile", help="a folder for TensorBoard's profiles of the speed")
    parser.add_argument("--cpu", action="store_true", help="try the checks on a CPU")
    options = parser.parse_args()
    asked = options.only.split(",")
    unknown = [name for name in asked if name not in EVERY]
    if unknown:
        parser.error(f"--only={unknown[0]}: the groups are {', '.join(EVERY)}")
    device = gpu()
    if device is None and not options.cpu:
        print("gpu_report: there is no GPU that the driver knows of; --cpu tries the checks here")
        return 2
    if options.profile:
        os.environ[gpu_speed.PROFILE] = options.profile
    begin = time.perf_counter()
    results: list[dict[str, Any]] = []

    def keep(result: dict[str, Any]) -> None:
        results.append(result)
        show(result)
        if device is not None and not options.cpu:
            results.sort(key=lambda each: asked.index(each["group"]))
            write(options.out, device, results, seconds=time.perf_counter() - begin)

    together = [name for name in asked if name in gpu_checks.GROUPS]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        waiting = [pool.submit(run_group, name, limit=options.limit) for name in together]
        for done in concurrent.futures.as_completed(waiting):
            keep(done.result())
    for name in (name for name in asked if name in gpu_speed.SPEED):
        keep(run_group(name, limit=options.speed_limit))
    failed = [check for result in results for check in result["checks"] if check["passed"] is False]
    broken = [result["group"] for result in results if result["error"]]
    print(f"{len(failed)} checks failed, {len(broken)} groups did not end")
    return 1 if failed or broken else 0


if __name__ == "__main__":
    sys.exit(main())
