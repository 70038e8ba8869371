"""Devices: reads `--devices`, chooses among those there are, and sets them up for TensorFlow."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path

from tfgpu.errors import RequestError
from tfgpu.machine import hardware


def parse_devices(devices: str) -> tuple[str, ...]:
    """Reads the value of `--devices`; "all" gives an empty tuple.

    Raises:
        RequestError: The text is not a list of devices of one kind, each once.
    """
    if devices.strip().lower() == "all":
        return ()
    names = tuple(part.strip().upper() for part in devices.split(","))
    for name in names:
        if not re.fullmatch(r"(CPU|GPU):\d+", name):
            raise RequestError(
                f"devices {devices!r}: {name!r} is not a device; write 'all' or a list such as "
                "'GPU:0,GPU:1'"
            )
    names = tuple(f"{name[:3]}:{int(name[4:])}" for name in names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"devices {devices!r} holds {', '.join(twice)} more than once")
    if len({name[:3] for name in names}) > 1:
        raise RequestError(
            f"devices {devices!r} mixes CPU and GPU: replicas have to be of one kind, "
            "or every step waits for the slower"
        )
    return names


def choose_devices(
    *, requested: tuple[str, ...], present: Sequence[str], strategy: str
) -> tuple[str, ...]:
    """Picks the devices of this process.

    Args:
        requested: What `parse_devices` gave.
        present: The logical devices there are, GPUs before CPUs.
        strategy: The value of `--strategy`.

    Raises:
        RequestError: A device is absent, or `one_device` is to run on several.
    """
    if any(name not in present for name in requested):
        raise absent(requested, present)
    if strategy == "one_device":
        if len(requested) > 1:
            raise RequestError(
                f"strategy 'one_device' with devices {','.join(requested)!r}: name one device, "
                "or use --strategy=mirrored"
            )
        return requested or (present[0],)
    kind = present[0][:3]
    return requested or tuple(name for name in present if name.startswith(kind))


def absent(requested: Sequence[str], present: Sequence[str]) -> RequestError:
    absent = [name for name in requested if name not in present]
    message = f"no device {', '.join(absent)} here; there is {', '.join(present)}"
    if absent[0].startswith("CPU"):
        message += " (--virtual_devices splits the CPU into more)"
    return RequestError(message)


def configure_devices(*, on_gpu: bool, virtual_devices: int) -> None:
    """Sets visibility, memory growth and virtual devices; before TensorFlow's devices exist."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if gpus and not on_gpu:
        # A run on the CPU should not hold a context and its hundreds of MB on each GPU. When the
        # devices exist already it is too late, and harmless.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    if on_gpu and not virtual_devices:
        for gpu in gpus:
            # RuntimeError: the devices exist; ValueError: they are split.
            with contextlib.suppress(RuntimeError, ValueError):
                tf.config.experimental.set_memory_growth(gpu, True)
    if not virtual_devices:
        return
    device = gpus[0] if on_gpu else tf.config.list_physical_devices("CPU")[0]
    existing = tf.config.get_logical_device_configuration(device)
    if existing is not None and len(existing) == virtual_devices:
        return
    limit = None
    if on_gpu:
        free = hardware.gpu_free_bytes(tf.config.list_physical_devices("GPU").index(device))
        if free is None:
            raise RequestError(
                "virtual_devices needs the free memory of the first GPU, which nvidia-smi does not "
                "tell here; use --virtual_devices=0"
            )
        # A tenth is left to the CUDA context and to cuDNN, which take theirs past the limit.
        limit = int(free * 0.9 / virtual_devices) >> 20
    configuration = tf.config.LogicalDeviceConfiguration(memory_limit=limit)
    try:
        if on_gpu:
            tf.config.set_visible_devices(device, "GPU")
        tf.config.set_logical_device_configuration(device, [configuration] * virtual_devices)
    except RuntimeError:
        raise RequestError(
            f"virtual_devices {virtual_devices}: TensorFlow's devices exist already in this "
            "process and cannot be split any more; ask for them before anything else runs"
        ) from None


def show_only(requested: Sequence[str]) -> None:
    """Hides the GPUs that were not asked for: MultiWorkerMirroredStrategy takes all it sees."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    names = [f"GPU:{i}" for i in range(len(gpus))]
    if any(name not in names for name in requested):
        raise absent(requested, names)
    tf.config.set_visible_devices([gpus[names.index(name)] for name in requested], "GPU")


def devices_reason(names: Sequence[str], requested: Sequence[str], virtual_devices: int) -> str:
    gpu = names[0].startswith("GPU")
    if virtual_devices:
        split = "the first GPU" if gpu else "the CPU"
        return f"{split} split into {virtual_devices} by --virtual_devices"
    if requested:
        return "as requested"
    if gpu:
        return "all GPUs there are" if len(names) > 1 else "the one GPU there is"
    if Path("/proc/driver/nvidia/version").exists():
        return (
            "an NVIDIA driver is here, but TensorFlow finds no GPU it can use: "
            "pip install 'tfgpu[cuda]', or look at CUDA_VISIBLE_DEVICES"
        )
    return "TensorFlow finds no GPU"
