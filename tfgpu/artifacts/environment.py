"""What a figure was measured on: versions, devices, driver, git revision, variables."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfgpu.machine import hardware

if TYPE_CHECKING:
    from tfgpu.machine.runtime import Runtime

# The environment variables that change what a run computes or how fast. A list of ours and not
# "TF_*": other tools use that prefix too, Terraform for secrets (TF_VAR_...).
_RECORDED_VARIABLES = re.compile(
    r"(TF_(CONFIG|ENABLE_ONEDNN_OPTS|CPP_|XLA_|FORCE_|GPU_|CUDNN_|CUDA|DETERMINISTIC|DISABLE_|"
    r"NUM_|USE_|AUTO_|LEGACY|OVERRIDE)\w*"
    r"|XLA_FLAGS|KERAS_BACKEND|CUDA_\w+|NVIDIA_TF32_OVERRIDE|NVIDIA_VISIBLE_DEVICES|NCCL_\w+"
    r"|ONEDNN_\w+|OMP_NUM_THREADS|TFDS_DATA_DIR)"
)
_LIBRARIES = ("tensorflow", "keras", "tensorflow-datasets", "numpy")


def record(
    runtime: Runtime,
    *,
    dataset: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What environment.json holds: enough to say what a figure was measured on.

    Nothing here fails: what cannot be found out is None.

    Args:
        runtime: What `runtime.start` gave.
        dataset: Name, version, fingerprint, licence and citation of the data set.
        given: The settings that the user gave, by name; the others were decided.
    """
    import tensorflow as tf

    import tfgpu

    build = tf.sysconfig.get_build_info()
    gpus = hardware.nvidia_smi() if runtime.on_gpu else []
    shown = hardware.visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    devices = []
    for name, description in zip(runtime.devices, runtime.device_descriptions, strict=True):
        capability = hardware.compute_capability(name)
        number = hardware.physical_gpu(int(name[4:])) if name.startswith("GPU") else None
        memory = hardware.host_memory() if name.startswith("CPU") else None
        if number is not None and number < len(shown):
            memory = shown[number].total
        devices.append(
            {
                "name": name,
                "description": description,
                "compute_capability": ".".join(map(str, capability)) if capability else None,
                "memory_bytes": memory,
            }
        )
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "tfgpu": getattr(tfgpu, "__version__", None),
            **{name: _version(name) for name in _LIBRARIES},
            "cuda": build.get("cuda_version"),
            "cudnn": build.get("cudnn_version"),
        },
        "platform": platform.platform(),
        "cpu": {"model": hardware.cpu_model(), "cores": hardware.usable_cores()},
        "devices": devices,
        "nvidia_driver": hardware.driver_version(gpus),
        "strategy": runtime.strategy_name,
        "replicas": runtime.num_replicas,
        "workers": runtime.num_workers,
        "git": _git(Path(tfgpu.__path__[0]).parent),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if _RECORDED_VARIABLES.fullmatch(name)
        },
        "dataset": dict(dataset) if dataset is not None else None,
        "given": dict(given) if given is not None else None,
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        # The same module comes from other distributions too, such as tensorflow-cpu.
        module = sys.modules.get(distribution.replace("-", "_"))
        return getattr(module, "__version__", None)


def _git(folder: Path) -> dict[str, Any] | None:
    """Revision of the checkout whose top is `folder`, and whether it has changes of its own.

    None for an installed package, also when it lies in a virtual environment inside the user's
    own repository: that revision would be of something else.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
