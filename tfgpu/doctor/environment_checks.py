"""Checks of the software environment and the processor."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from operator import eq, ge, gt, le, lt
from pathlib import Path

from tfgpu.doctor.findings import Finding, Section
from tfgpu.doctor.framework import Framework
from tfgpu.machine import hardware


def installed_versions() -> dict[str, str | None]:
    """Returns the versions of Python and of the packages that matter, None for missing ones."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("tensorflow", "keras", "tensorflow-datasets"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def bounds() -> dict[str, str]:
    """Returns the versions that tfgpu requires, such as {"keras": "<3.16,>=3.15.0"}."""
    try:
        lines = importlib.metadata.requires("tfgpu") or []
        declared = {"python": importlib.metadata.metadata("tfgpu")["Requires-Python"] or ""}
    except importlib.metadata.PackageNotFoundError:  # On PYTHONPATH and not installed.
        return {}
    for line in lines:
        if ";" not in line and (match := re.match(r"([\w.-]+)(.*)", line)):
            declared[match[1]] = match[2].strip()
    return declared


def within(version: str, bound: str) -> bool:
    """Whether a version such as "2.21.0" satisfies a bound such as ">=2.21.0,<2.22"."""

    def numbers(text: str) -> list[int]:
        found = [int(part) for part in re.findall(r"\d+", text)[:3]]
        return found + [0] * (3 - len(found))

    here = numbers(version)
    compare = {">=": ge, "<=": le, "==": eq, "<": lt, ">": gt}
    parts = re.findall(r"(>=|<=|==|<|>)\s*([\d.]+)", bound)
    return all(compare[sign](here, numbers(limit)) for sign, limit in parts)


def _lower(bound: str) -> str:
    return ",".join(part for part in bound.split(",") if ">" in part)


def check_software(framework: Framework, *, versions: Mapping[str, str | None]) -> list[Finding]:
    """Checks the versions of Python and packages, and whether TensorFlow can be imported."""
    pip = f"{shlex.quote(sys.executable)} -m pip install"
    declared = bounds()
    found = Section("Software")
    names = {
        "python": "Python",
        "tensorflow": "TensorFlow",
        "keras": "Keras",
        "tensorflow-datasets": "TFDS",
    }
    for name, item in names.items():
        # TensorFlow has distributions of other names too.
        version = versions.get(name) or framework.versions.get(name)
        bound = declared.get(name, "")
        remedy = f"{pip} {shlex.quote(name + bound)}"
        if version is None:
            found.add(item, "problem", "not installed", remedy)
        elif not within(version, bound):
            if name == "python":
                remedy = f"make a virtual environment with a Python {bound}"
            newer = name in ("tensorflow", "keras") and within(version, _lower(bound))
            if newer:  # It may work: what tfgpu needs of it is checked when it starts.
                found.add(item, "warning", f"{version}, newer than tried: {bound}", remedy)
            else:
                found.add(item, "problem", f"{version}, but tfgpu takes {bound}", remedy)
        else:
            found.add(item, "ok", version)
    if framework.error:
        illegal = "SIGILL" in framework.error
        found.add(
            "import",
            "problem",
            f"TensorFlow cannot be used: {framework.error}",
            "this processor lacks instructions that the wheel needs (AVX): use another machine"
            if illegal
            else f"{pip} --force-reinstall tensorflow=={versions.get('tensorflow')}",
        )
    return found


def cpu_flags() -> frozenset[str]:
    """Returns the instruction sets of the processor as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


_INSTRUCTIONS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_bf16": "AMX_BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}


def check_processor(framework: Framework, *, flags: frozenset[str], machine: str) -> list[Finding]:
    """Checks cores, memory, instruction sets and oneDNN.

    Args:
        framework: What TensorFlow found.
        flags: What `cpu_flags` returned.
        machine: Such as "x86_64".
    """
    cores, free = hardware.usable_cores(), hardware.host_free_memory()
    value = (
        f"{hardware.cpu_model()}, {cores} core{'s' if cores > 1 else ''}, "
        f"{free / 2**30:.1f} GiB of memory free"
    )
    found = Section("CPU")
    if free < 1 << 30:
        found.add("processor", "warning", value, "close other programs: TensorFlow needs 1 GiB")
    else:
        found.add("processor", "ok", value)
    sets = [name for flag, name in _INSTRUCTIONS.items() if flag in flags]
    if machine in ("x86_64", "AMD64") and flags and "avx" not in flags:
        found.add(
            "instructions",
            "problem",
            f"{', '.join(sets) or 'no vector instructions'}: TensorFlow's wheel needs AVX",
            "use another machine, or a virtual machine that passes the host's processor on",
        )
    elif flags:
        found.add("instructions", "ok", ", ".join(sets))
    if framework.versions and not framework.onednn:
        found.add(
            "oneDNN",
            "warning",
            "off: training on a CPU was three times slower without it",
            "`unset TF_ENABLE_ONEDNN_OPTS`",
        )
    elif framework.versions:
        found.add("oneDNN", "ok", "on")
    return found
