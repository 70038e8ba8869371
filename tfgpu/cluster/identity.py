"""What processes that train together have to be equal in, found without TensorFlow."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tfgpu

_LIBRARIES = {
    "TensorFlow": ("tensorflow", "tensorflow-cpu", "tf-nightly", "tensorflow-macos"),
    "Keras": ("keras", "keras-nightly"),
    "NumPy": ("numpy",),
    "tensorflow-datasets": ("tensorflow-datasets",),
}


def versions() -> dict[str, str]:
    """Returns the versions of Python, tfgpu and the libraries that decide its numbers."""
    found = {"Python": platform.python_version(), "tfgpu": tfgpu.__version__}
    for name, distributions in _LIBRARIES.items():
        found[name] = "not installed"
        for distribution in distributions:
            try:
                found[name] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def code(builder: str = "") -> dict[str, str]:
    """Returns a digest of tfgpu's own source and of the module of a builder of the user's.

    Args:
        builder: "package.module:function", or the name of a model of tfgpu's.
    """
    digest = hashlib.sha256()
    root = Path(tfgpu.__path__[0])
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    found = {"tfgpu's source": digest.hexdigest()[:16]}
    module, colon, _ = builder.partition(":")
    if colon and (source := _source_of(module)) is not None:
        found[f"the source of {module}"] = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    return found


def _source_of(module: str) -> Path | None:
    """Finds a module's file without importing its package; None when it is elsewhere."""
    relative = Path(*module.split("."))
    for folder in [*sys.path, os.getcwd()]:
        for candidate in (relative.with_suffix(".py"), relative / "__init__.py"):
            if (path := Path(folder or ".") / candidate).is_file():
                return path
    return None


def host_identity() -> str:
    """Returns what only processes on the same cores of the same machine have in common."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = ""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return json.dumps([boot, socket.gethostname(), cores])


def differences(identities: Sequence[Mapping[str, Mapping[str, Any]]], names: Sequence[str]) -> str:
    """Says in what processes differ.

    Args:
        identities: By rank, what has to be equal, by kind and name.
        names: Of the processes, by rank.

    Returns:
        One line; "" when they are equal.
    """
    found = []
    first = json.loads(json.dumps(identities[0]))
    for rank, other in enumerate(identities[1:], start=1):
        other = json.loads(json.dumps(other))
        for kind in first:
            for name in sorted(first[kind].keys() | other.get(kind, {}).keys()):
                here, there = first[kind].get(name), other.get(kind, {}).get(name)
                if here != there:
                    what = f"--{name}" if kind == "setting" else f"{kind} {name}"
                    found.append(
                        f"{what} is {json.dumps(here)} at {names[0]} and {json.dumps(there)} at "
                        f"{names[rank]}"
                    )
    if not found:
        return ""
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return f"the workers differ: {'; '.join(found[:5])}{more}; start all of them alike"
