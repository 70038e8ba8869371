"""Keeps what XLA compiled between processes, in files that TensorFlow reads and writes.

To compile the step of a small network takes 14 s on a GPU, that of a ResNet-50 a minute, and each
run does so anew. TensorFlow can keep compiled programs in a folder. It looks for a program by a
hash, and compares the whole program with the one that was compiled, but neither versions nor
devices nor flags: so each combination of them has a folder of its own here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from tfgpu.errors import RequestError
from tfgpu.machine import driver, user_cache

AUTO, NONE = "auto", "none"
MOST_BYTES = 4 << 30
"""What all folders may take together; the programs that were compiled first are deleted."""

LEAST_FREE = 1 << 30
"""Bytes free on the disk, below which nothing is kept: TensorFlow ends a training that cannot."""

_PROBE = 16 << 20  # Bytes that are written, and deleted, to see whether there is room.
_FLAG = "--tf_xla_persistent_cache_directory"
_VARIABLES = (
    "XLA_FLAGS",
    "TF_XLA_FLAGS",
    "NVIDIA_TF32_OVERRIDE",
    "TF_CUDNN_USE_AUTOTUNE",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "CUDA_VERSION",
    "CUDNN_VERSION",
)
_PACKAGES = (
    "tensorflow",
    "tensorflow-cpu",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "nvidia-cuda-nvcc-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)


def chosen(setting: str) -> Path | None:
    """Where the programs of all versions and devices lie; None where none are kept.

    Args:
        setting: See `keep`.

    Raises:
        RuntimeError: The folder begins with "~", and the user has no home directory.
    """
    if setting == NONE or _FLAG in os.environ.get("TF_XLA_FLAGS", ""):
        return None
    if setting != AUTO:
        return Path(setting).expanduser().absolute()
    # A processor compiles in a second or two.
    own = user_cache.directory() if driver.ask().gpus else None
    return own.absolute() / "xla" if own is not None else None


def keep(setting: str, *, deterministic: bool) -> Path | None:
    """Has TensorFlow, which this process must not have imported yet, keep compiled programs.

    Args:
        setting: "auto", which keeps them in `tfgpu/xla` under the user's cache directory
            (`XDG_CACHE_HOME`, by default `~/.cache`) where the driver knows a GPU and the disk has
            room; "none"; or another folder.
        deterministic: Whether programs are compiled for the same bits each time.

    Returns:
        The folder; None where nothing is kept.

    Raises:
        RequestError: A folder that was asked for cannot be written.
    """
    try:
        root = chosen(setting)
        if root is None:
            return None
        key = _key(driver.ask(), deterministic=deterministic)
        folder = _prepared(root, key, LEAST_FREE if setting == AUTO else 0)
    except (OSError, RuntimeError, ValueError) as error:
        if setting == AUTO:
            return None
        reason = getattr(error, "strerror", None) or error
        raise RequestError(
            f"--compile_cache={setting}: {reason}; give a folder that can be written, or "
            f"--compile_cache={NONE}"
        ) from error
    flags = os.environ.get("TF_XLA_FLAGS", "")
    os.environ["TF_XLA_FLAGS"] = f"{flags} {_FLAG}={folder}".strip()
    return folder


def _prepared(root: Path, key: str, least_free: int) -> Path:
    """Makes the folder, and sees that programs can be written to it and read from it.

    Raises:
        OSError: They cannot be.
        ValueError: TensorFlow does not take such a path.
    """
    if re.search(r"\s", str(root)):
        raise ValueError("TensorFlow takes no folder with a space in its path")
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("xla_compile_cache*.pb"):
        if not _is_whole(path):
            path.unlink(missing_ok=True)
    _make_room(root)
    if shutil.disk_usage(folder).free < least_free:
        raise OSError("little room")
    # What is free does not tell of a quota.
    with tempfile.NamedTemporaryFile(dir=folder, prefix="room-") as probe:
        probe.write(bytes(_PROBE))
        probe.flush()
    return folder


def _is_whole(path: Path) -> bool:
    """Whether a file is a message of Protocol Buffers from its beginning to its end.

    TensorFlow ends a training that meets one which is not, such as what a power cut leaves.
    """
    size = path.stat().st_size
    if size == 0:
        return False
    with open(path, "rb") as file:
        while (at := file.tell()) < size:
            tag = _varint(file)
            if tag is None or tag & 7 not in (0, 2):
                return False
            value = _varint(file)
            if value is None:
                return False
            if tag & 7 == 2:
                file.seek(value, os.SEEK_CUR)
        return at == size


def _varint(file: BinaryIO) -> int | None:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    return None


def _key(found: driver.Driver, *, deterministic: bool) -> str:
    """A name for all that decides what a program is compiled to, besides itself."""
    parts = [f"deterministic={deterministic}", f"driver={found.version}"]
    parts += [f"gpu={gpu.name} {gpu.capability}" for gpu in found.gpus]
    # Of a processor the model is not enough: a virtual one may lack instructions.
    parts += [platform.machine(), _processor()]
    parts += [f"{name}={os.environ.get(name, '')}" for name in _VARIABLES]
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{name}={importlib.metadata.version(name)}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    return "\n".join(sorted(set(re.findall(r"^(?:model name|flags)\s*:.*$", text, re.MULTILINE))))


def _make_room(root: Path) -> None:
    """Deletes the oldest programs of all folders until the rest takes no more than may be."""
    files = []
    for path in root.glob("*/xla_compile_cache*"):
        with contextlib.suppress(OSError):  # Another process may be at it too.
            status = path.stat()
            files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= MOST_BYTES:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
