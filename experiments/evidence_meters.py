"""Energy counters of the machine: NVIDIA's GPUs by NVML, processors by RAPL.

Both count what the whole part takes, whoever uses it and whether it idles; a difference of two
readings is the energy of the time between.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from tfgpu.doctor import driver
from tfgpu.machine import hardware

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows RAPL, for Intel's processors and AMD's."""

Meter = Callable[[], float]
"""Returns joules since some beginning."""


def find(
    *, powercap: Path = POWERCAP, library: str = driver.LIBRARY
) -> tuple[dict[str, Meter], dict[str, str]]:
    """Finds the meters of this machine.

    Args:
        powercap: The folder of RAPL.
        library: Name or path of NVML.

    Returns:
        Meters by name, and why the others are missing, by name too.
    """
    meters: dict[str, Meter] = {}
    reasons: dict[str, str] = {}
    for name, open_meter in (
        ("NVML", lambda: _nvml(library)),
        ("RAPL", lambda: _rapl(powercap)),
    ):
        try:
            meters[name] = open_meter()
            meters[name]()
        except (OSError, AttributeError, ValueError) as error:
            meters.pop(name, None)
            reasons[name] = str(error)
    return meters, reasons


def _nvml(library: str) -> Meter:
    """The energy of the first GPU that CUDA shows."""
    nvml = ctypes.CDLL(library)
    gpus = driver.ask(library=library).gpus
    shown = hardware.visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not shown:
        raise OSError("NVML shows no GPU")

    def check(code: int, what: str) -> None:
        if code != driver.SUCCESS:
            raise OSError(f"{what} answered {code}")

    check(nvml.nvmlInit_v2(), "nvmlInit")
    handle = ctypes.c_void_p()
    found = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(shown[0].index), ctypes.byref(handle))
    check(found, "nvmlDeviceGetHandleByIndex")

    def read() -> float:
        millijoules = ctypes.c_ulonglong()
        # GPUs before Volta have no such counter.
        code = nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        check(code, "nvmlDeviceGetTotalEnergyConsumption")
        return millijoules.value / 1e3

    return read


class _Counter:
    """A counter in microjoules that begins anew at its maximum; returns joules that only grow."""

    def __init__(self, zone: Path):
        self._zone = zone
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last, self._total = self._now(), 0

    def _now(self) -> int:
        return int((self._zone / "energy_uj").read_text())

    def __call__(self) -> float:
        now = self._now()
        self._total += (now - self._last) % self._range if now < self._last else now - self._last
        self._last = now
        return self._total / 1e6


def _rapl(powercap: Path) -> Meter:
    """The energy of all packages: `intel-rapl:0` and the like, without their parts."""
    if not powercap.is_dir():
        raise OSError(f"this machine has no {powercap}")
    zones = [
        zone
        for zone in sorted(powercap.glob("intel-rapl:*"))
        if zone.name.count(":") == 1 and (zone / "energy_uj").exists()
    ]
    if not zones:
        raise OSError(f"{powercap} has no package")
    counters = [_Counter(zone) for zone in zones]  # Root alone may read it on most machines.
    return lambda: sum(counter() for counter in counters)
