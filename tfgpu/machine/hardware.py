"""What the machine is made of: cores, memory, GPUs, and how much of it is free."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar


def usable_cores() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if match:
            return " ".join(match[1].split())
    return platform.processor() or platform.machine()


def host_memory() -> int | None:
    return _bytes_of("SC_PHYS_PAGES")


def _bytes_of(pages: str) -> int | None:
    """Bytes in a number of pages; None on Windows, and where macOS does not know the name."""
    try:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def host_free_memory(*, root: Path = Path("/")) -> int:
    """Memory the host can still give this process, in bytes: cgroup limits count.

    Args:
        root: Where /proc and /sys are; for tests.
    """
    free = None
    with contextlib.suppress(OSError):
        match = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.M)
        free = int(match[1]) << 10 if match else None
    if free is None:
        free = _bytes_of("SC_AVPHYS_PAGES")
    if free is None:
        free = 4 << 30  # Half of the least that a machine to train on has.
    return max(0, min([free, *_cgroup_rooms(root)]))


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """What each memory limit over this process leaves, in bytes: cgroup v2 and v1."""
    groups = {"": "/", "memory": "/"}
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                groups[controller] = path
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    v2 = ("memory.max", "memory.current", "inactive_file")
    for controller, names in (("", v2), ("memory", v1)):
        folder = root / "sys/fs/cgroup" / controller
        limit_name, used_name, reclaimable = names
        # A limit may stand at any level; inside a container the path may not exist at all.
        parts = Path(groups[controller].lstrip("/")).parts
        for depth in range(len(parts) + 1):
            level = folder.joinpath(*parts[:depth])
            with contextlib.suppress(OSError, ValueError):
                limit = int((level / limit_name).read_text())  # "max" is a ValueError: no limit.
                used = int((level / used_name).read_text())
                cache = 0
                with contextlib.suppress(OSError):
                    # The page cache counts as used, and gives way.
                    stat = (level / "memory.stat").read_text()
                    match = re.search(rf"^{reclaimable} (\d+)$", stat, re.M)
                    cache = int(match[1]) if match else 0
                yield max(0, limit - used + cache)


@dataclass(frozen=True)
class Gpu:
    """A row of nvidia-smi; memory in bytes."""

    index: int
    uuid: str
    total: int
    free: int
    driver: str


def nvidia_smi() -> list[Gpu]:
    """The GPUs nvidia-smi knows, whatever CUDA_VISIBLE_DEVICES says; empty when it is absent."""
    command = [
        "nvidia-smi",
        "--query-gpu=index,uuid,memory.total,memory.free,driver_version",
        "--format=csv,noheader,nounits",
    ]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_nvidia_smi(out.stdout)


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Reads rows of index, uuid, total MiB, free MiB, driver; rows without numbers are left out."""
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        with contextlib.suppress(ValueError):
            index, uuid, total, free, driver = cells
            gpus.append(Gpu(int(index), uuid, int(total) << 20, int(free) << 20, driver))
    return gpus


class _Numbered(Protocol):
    """A GPU that can be named in CUDA_VISIBLE_DEVICES."""

    @property
    def index(self) -> int: ...

    @property
    def uuid(self) -> str: ...


_G = TypeVar("_G", bound=_Numbered)


def visible_gpus(gpus: Sequence[_G], visible: str | None) -> list[_G]:
    """The GPUs CUDA shows a process, in its order.

    Args:
        gpus: All GPUs, in PCI order.
        visible: The value of CUDA_VISIBLE_DEVICES; None when it is not set.
    """
    if visible is None:
        return list(gpus)
    shown: list[_G] = []
    for part in (part.strip() for part in visible.split(",")):
        match = [
            gpu
            for gpu in gpus
            if part == str(gpu.index) or (part.startswith("GPU-") and gpu.uuid.startswith(part))
        ]
        if len(match) != 1:  # CUDA shows what stands before the first invalid entry.
            break
        shown += match
    return shown


def driver_version(gpus: Sequence[Gpu]) -> str | None:
    if gpus:
        return gpus[0].driver
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        match = re.search(r"Kernel Module.*?\s(\d+\.\d+(\.\d+)?)\s", text)
        return match[1] if match else None
    return None


def logical_devices(*kinds: str) -> tuple[str, ...]:
    """Names of the logical devices of some kinds in turn, such as ("GPU:0", "GPU:1")."""
    import tensorflow as tf

    return tuple(
        # Under multi_worker_mirrored the names begin with the job and task.
        device.name.rpartition("device:")[2]
        for kind in kinds
        for device in tf.config.list_logical_devices(kind)
    )


def physical_gpu(index: int) -> int | None:
    """Number of the visible physical GPU that holds logical GPU `index`."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    seen = 0
    for gpu in tf.config.get_visible_devices("GPU"):
        seen += len(tf.config.get_logical_device_configuration(gpu) or [None])
        if index < seen:
            return gpus.index(gpu)
    return None


def gpu_free_bytes(number: int) -> int | None:
    """Free memory of visible physical GPU `number` in bytes; None when nobody tells."""
    gpus = visible_gpus(nvidia_smi(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return gpus[number].free if number < len(gpus) else None


def _details(device: str) -> dict[str, Any]:
    """TensorFlow's details of the GPU behind a logical one: name and compute capability."""
    import tensorflow as tf

    if not device.startswith("GPU"):
        return {}
    number = physical_gpu(int(device[4:]))
    if number is None:
        return {}
    gpu = tf.config.list_physical_devices("GPU")[number]
    return dict(tf.config.experimental.get_device_details(gpu))


def compute_capability(device: str) -> tuple[int, int] | None:
    capability = _details(device).get("compute_capability")
    return (int(capability[0]), int(capability[1])) if capability else None


def description(device: str) -> str:
    if device.startswith("CPU"):
        count = usable_cores()
        return f"{cpu_model()}, {count} core{'s' if count > 1 else ''}"
    details = _details(device)
    name = details.get("device_name", "GPU")
    capability = compute_capability(device)
    return f"{name}, compute capability {'.'.join(map(str, capability))}" if capability else name


def free_memory(device: str) -> int:
    """Memory that arrays on a device could still take, in bytes.

    Virtual CPUs share one memory, so each has its part of it.

    Args:
        device: A logical device of `Runtime.devices`, such as "CPU:0".
    """
    if device.startswith("CPU"):
        return host_free_memory() // max(1, len(logical_devices("CPU")))
    import tensorflow as tf

    number = physical_gpu(int(device[4:]))
    used = tf.config.experimental.get_memory_info(device)["current"]
    if number is not None:
        gpu = tf.config.list_physical_devices("GPU")[number]
        split = tf.config.get_logical_device_configuration(gpu) or []
        if split and split[0].memory_limit is not None:
            return max(0, (split[0].memory_limit << 20) - used)
        free = gpu_free_bytes(number)
        if free is not None:
            return free
    # Containers without nvidia-smi: the limit TensorFlow set itself at start-up.
    from tfgpu.machine.tensorflow_internals import memory_limit

    return max(0, (memory_limit(device) or 0) - used)
