"""Asks the NVIDIA driver for its GPUs, through its library NVML, without CUDA or TensorFlow."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
from dataclasses import dataclass
from pathlib import Path

# Values of nvmlReturn_t, from nvml.h, for which the checks know a remedy.
SUCCESS = 0
NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
VERSION_MISMATCH = 18

LIBRARY = "nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as the driver reports it, whatever CUDA_VISIBLE_DEVICES says.

    Attributes:
        index: Its number in PCI order.
        name: Such as "NVIDIA A100-SXM4-40GB".
        uuid: Such as "GPU-8f2c…".
        capability: CUDA compute capability, such as (8, 0); None when unknown.
        total: Memory in bytes; None when unknown, as for parts of a GPU under MIG.
        free: Unused memory in bytes; None likewise.
        prohibited: Whether its compute mode forbids every CUDA program.
    """

    index: int
    name: str
    uuid: str
    capability: tuple[int, int] | None
    total: int | None
    free: int | None
    prohibited: bool = False


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The answers of the driver's library.

    Attributes:
        version: Of the driver, such as "535.104.05"; None when it did not answer.
        cuda: The newest CUDA it can run, such as (12, 2); None likewise.
        gpus: In PCI order.
        cards: NVIDIA display controllers on the PCI bus, which are seen without a driver too.
        code: The nvmlReturn_t of the call that failed, SUCCESS when none did, None when there
            is no library to ask.
        error: What went wrong, empty when nothing did.
    """

    version: str | None = None
    cuda: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    cards: int = 0
    code: int | None = SUCCESS
    error: str = ""


class _Failed(Exception):
    def __init__(self, code: int, text: str):
        super().__init__(text)
        self.code = code


def ask(*, library: str = LIBRARY, root: Path = Path("/")) -> Driver:
    """Asks the driver; never raises.

    Args:
        library: Name or path of NVML.
        root: Where /sys is; for tests.
    """
    cards = _cards(root)
    try:
        nvml = ctypes.CDLL(library)
    except OSError as error:
        return Driver(cards=cards, code=None, error=str(error))
    version: str | None = None
    cuda: tuple[int, int] | None = None
    gpus: list[Gpu] = []
    code, error_text = SUCCESS, ""
    try:
        _call(nvml, "nvmlInit_v2")
        try:
            version = _text(nvml, "nvmlSystemGetDriverVersion")
            number = ctypes.c_int()
            _call(nvml, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(number))
            cuda = (number.value // 1000, number.value % 1000 // 10)
            count = ctypes.c_uint()
            _call(nvml, "nvmlDeviceGetCount_v2", ctypes.byref(count))
            gpus += (_gpu(nvml, index) for index in range(count.value))
        finally:
            nvml.nvmlShutdown()
    except _Failed as failure:
        code, error_text = failure.code, str(failure)
    except AttributeError as error:  # A library without one of the functions.
        return Driver(cards=cards, code=None, error=str(error))
    return Driver(
        version=version, cuda=cuda, gpus=tuple(gpus), cards=cards, code=code, error=error_text
    )


class _Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu:
    handle = ctypes.c_void_p()
    _call(nvml, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    memory, major, minor, mode = _Memory(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    knows_memory = _answers(nvml, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    pair = ctypes.byref(major), ctypes.byref(minor)
    knows_capability = _answers(nvml, "nvmlDeviceGetCudaComputeCapability", handle, *pair)
    knows_mode = _answers(nvml, "nvmlDeviceGetComputeMode", handle, ctypes.byref(mode))
    return Gpu(
        index=index,
        name=_text(nvml, "nvmlDeviceGetName", handle),
        uuid=_text(nvml, "nvmlDeviceGetUUID", handle),
        capability=(major.value, minor.value) if knows_capability else None,
        total=memory.total if knows_memory else None,
        free=memory.free if knows_memory else None,
        prohibited=knows_mode and mode.value == 2,  # NVML_COMPUTEMODE_PROHIBITED
    )


def _text(nvml: ctypes.CDLL, function: str, *arguments: object) -> str:
    buffer = ctypes.create_string_buffer(96)  # The largest buffer size in nvml.h.
    _call(nvml, function, *arguments, buffer, ctypes.c_uint(len(buffer)))
    return buffer.value.decode(errors="replace")


def _call(nvml: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = int(getattr(nvml, function)(*arguments))
    if code != SUCCESS:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        text = nvml.nvmlErrorString(code) or b""
        raise _Failed(code, f"{function}: {text.decode(errors='replace')} ({code})")


def _answers(nvml: ctypes.CDLL, function: str, *arguments: object) -> bool:
    """Calls a function that not every GPU supports; returns whether this one does."""
    return int(getattr(nvml, function)(*arguments)) == SUCCESS


def _cards(root: Path) -> int:
    """Counts NVIDIA's display controllers on the PCI bus."""
    count = 0
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        # Class 0x03: display controllers, 3D controllers of data centres among them.
        count += vendor == "0x10de" and kind.startswith("0x03")
    return count
