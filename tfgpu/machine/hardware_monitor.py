"""How a training uses the hardware: samples of GPUs, processor and memory, taken in the background.

GPUs are asked through NVML (nvidia-ml-py), processor and memory through psutil: both come with the
extra `hardware`, and what is missing is named in the summary. A thread asks; it uses neither
TensorFlow nor CUDA, so the numbers of a training do not depend on it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tfgpu.machine import hardware

_EXTRA = "pip install 'tfgpu[hardware]'"
_GIB = 1 << 30
_PATIENCE = 2.0
"""Seconds to wait for a sample that is being taken when the monitor is stopped."""

UNITS = {
    "utilization": ("%", "of the time in which the GPU ran something."),
    "memory": ("GiB", "of the GPU in use, by all processes."),
    "power": ("W", "that the GPU takes."),
    "temperature": ("°C", "of the GPU."),
    "cpu": ("%", "of all processors of the machine."),
    "process_cpu": ("%", "of one processor, by this process: 200 is two of them."),
    "process_memory": ("GiB", "of the host, in use by this process."),
    "host_memory": ("%", "of the memory of the host, in use by all processes."),
}
"""Unit and meaning of each figure; those of GPUs begin with "gpuN_"."""


@dataclass
class _Total:
    """Of the samples of a figure."""

    sum: float = 0.0
    most: float = float("-inf")
    count: int = 0

    def add(self, value: float) -> None:
        self.sum += value
        self.most = max(self.most, value)
        self.count += 1


class HardwareMonitor:
    """Samples the hardware from `start` to `stop`, or while a `with` block runs.

    Attributes:
        interval: Seconds between two samples.
    """

    def __init__(
        self,
        *,
        interval: float,
        gpus: Sequence[int] = (),
        nvml: ModuleType | str = "pynvml",
        psutil: ModuleType | str = "psutil",
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ):
        """Asks nothing yet.

        Args:
            interval: Seconds between two samples.
            gpus: Numbers of the GPUs in use among those that CUDA shows.
            nvml: The module, or its name.
            psutil: Likewise.
            root: Where /sys is; for tests.
            clock: Gives seconds.
        """
        self.interval = interval
        self._numbers = tuple(gpus)
        self._modules = {"nvml": nvml, "psutil": psutil}
        self._clock = clock
        self._missing: dict[str, str] = {}
        self._totals: dict[str, _Total] = {}
        self._since_point: dict[str, dict[str, _Total]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._gpus: _Gpus | None = None
        self._host: _Host | None = None
        self._rapl = _Rapl(root)
        self._energy: list[dict[str, Any]] = []
        self._began = self._ended = clock()
        self._sampled = self._began
        self._samples = 0

    @classmethod
    def of_devices(cls, devices: Sequence[str], *, interval: float) -> HardwareMonitor:
        """For the devices of a run, such as "GPU:0"; TensorFlow has to know them already."""
        numbers = [hardware.physical_gpu(int(d[4:])) for d in devices if d.startswith("GPU")]
        return cls(interval=interval, gpus=sorted({n for n in numbers if n is not None}))

    def __enter__(self) -> HardwareMonitor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Asks for the first time, and begins to sample."""
        psutil = self._module("psutil", "processor and memory", "psutil")
        if psutil is not None:
            with self._noting("processor and memory"):
                self._host = _Host(psutil)
        if self._numbers:
            nvml = self._module("nvml", "GPUs", "nvidia-ml-py")
            if nvml is not None:
                with self._noting("GPUs"):
                    self._gpus = _Gpus(nvml, self._numbers)
        self._rapl.begin()
        self._began = self._ended = self._sampled = self._clock()
        if self._gpus is not None or self._host is not None:
            # A daemon: a GPU that does not answer must not keep the process alive.
            self._thread = threading.Thread(target=self._run, name="hardware", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Takes a last sample and reads the counters of energy; a second time does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                self._missing["the end"] = "a sample was still being taken; the driver is slow"
                self._ended = self._clock()
                return
            # A short run has this sample alone.
            if self._clock() - self._sampled > self.interval / 10:
                self.sample()
        self._ended = self._clock()
        with self._noting("energy of the processor"):
            self._energy += self._rapl.end(self._missing)
        if self._gpus is not None:
            with self._noting("energy of the GPUs"):
                self._energy += self._gpus.energy(self._ended - self._began)
            self._gpus.close()

    def _module(self, kind: str, what: str, distribution: str) -> Any:
        module = self._modules[kind]
        if isinstance(module, str):
            try:
                return importlib.import_module(module)
            except ImportError:
                self._missing[what] = f"{distribution} is not installed: {_EXTRA}"
                return None
        return module

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        # Whatever a driver or a library raises: a figure that cannot be had ends no training.
        except Exception as error:
            self._missing[what] = f"{type(error).__name__}: {error}"

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self.sample()

    def sample(self) -> None:
        """Takes a sample now, in this thread."""
        found: dict[str, float] = {}
        if self._host is not None:
            with self._noting("processor and memory"):
                found |= self._host.sample()
        if self._gpus is not None:
            with self._noting("GPUs"):
                found |= self._gpus.sample(self._missing)
        self._rapl.read()
        with self._lock:
            self._samples += 1
            self._sampled = self._clock()
            for name, value in found.items():
                for totals in (self._totals, *self._since_point.values()):
                    totals.setdefault(name, _Total()).add(value)

    def point(self) -> dict[str, tuple[float, str]]:
        """Means of the samples since the last point, (value, description) by tag of TensorBoard."""
        return {
            f"hardware/{name}": (value, "In {}: {}".format(*_unit(name)))
            for name, value in self.means("TensorBoard").items()
        }

    def means(self, reader: str) -> dict[str, float]:
        """Means of the samples since the same reader asked last, or since the beginning."""
        with self._lock:
            taken = self._since_point.get(reader, self._totals)
            self._since_point[reader] = {}
            return {name: total.sum / total.count for name, total in taken.items()}

    def summary(self) -> dict[str, Any]:
        """What was sampled, for `result.json`; of this process, after `stop`."""
        with self._lock:
            figures = [
                {
                    "figure": name,
                    "unit": _unit(name)[0],
                    "mean": total.sum / total.count,
                    "most": total.most,
                }
                for name, total in self._totals.items()
            ]
        joules = [float(each["joules"]) for each in self._energy]
        return {
            "interval_seconds": self.interval,
            "samples": self._samples,
            "seconds": self._ended - self._began,
            "energy_joules": sum(joules) if joules else None,
            "figures": figures,
            "energy": list(self._energy),
            "missing": [{"what": what, "why": why} for what, why in self._missing.items()],
        }


def _unit(name: str) -> tuple[str, str]:
    kind = name.partition("_")[2] if name.startswith("gpu") else name
    return UNITS[kind]


class _Host:
    """Processor and memory, through psutil."""

    def __init__(self, psutil: Any):
        self._psutil = psutil
        self._process = psutil.Process()
        # The first call has nothing to compare with, and says 0.
        psutil.cpu_percent(None)
        self._process.cpu_percent(None)

    def sample(self) -> dict[str, float]:
        return {
            "cpu": float(self._psutil.cpu_percent(None)),
            "process_cpu": float(self._process.cpu_percent(None)),
            "process_memory": self._process.memory_info().rss / _GIB,
            "host_memory": float(self._psutil.virtual_memory().percent),
        }


@dataclass(frozen=True)
class _Device:
    """A GPU of NVML, as `hardware.visible_gpus` takes it."""

    index: int
    uuid: str
    handle: Any


class _Gpus:
    """The GPUs in use, through NVML."""

    def __init__(self, nvml: Any, numbers: Sequence[int]):
        self._nvml = nvml
        nvml.nvmlInit()
        try:
            handles = [
                nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())
            ]
            known = [
                _Device(index, _text(nvml.nvmlDeviceGetUUID(handle)), handle)
                for index, handle in enumerate(handles)
            ]
            shown = hardware.visible_gpus(known, os.environ.get("CUDA_VISIBLE_DEVICES"))
            lost = [number for number in numbers if number >= len(shown)]
            if lost:
                raise LookupError(
                    f"NVML does not know which of its {len(known)} GPUs CUDA's number {lost[0]} is"
                )
        except BaseException:
            nvml.nvmlShutdown()
            raise
        self._devices = {number: shown[number] for number in numbers}
        self._first = {number: self._counter(d.handle) for number, d in self._devices.items()}
        self._watts: dict[int, _Total] = {}

    def sample(self, missing: dict[str, str]) -> dict[str, float]:
        nvml = self._nvml
        asked: Mapping[str, Callable[[Any], float]] = {
            "utilization": lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
            "memory": lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used / _GIB,
            "power": lambda gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
            "temperature": lambda gpu: nvml.nvmlDeviceGetTemperature(
                gpu, nvml.NVML_TEMPERATURE_GPU
            ),
        }
        found = {}
        for number, device in self._devices.items():
            for name, ask in asked.items():
                try:
                    value = float(ask(device.handle))
                except nvml.NVMLError as error:  # Parts of a GPU under MIG have no utilization.
                    missing[f"{name} of GPU {number}"] = str(error)
                    continue
                found[f"gpu{number}_{name}"] = value
                if name == "power":
                    self._watts.setdefault(number, _Total()).add(value)
        return found

    def energy(self, seconds: float) -> list[dict[str, Any]]:
        """Joules of each GPU since the beginning, and how they are known."""
        found = []
        for number, device in self._devices.items():
            first, last = self._first[number], self._counter(device.handle)
            watts = self._watts.get(number)
            if first is not None and last is not None:
                joules, how = (last - first) / 1e3, "its counter of energy"
            elif watts is not None:
                # Before Volta there is no counter.
                joules, how = watts.sum / watts.count * seconds, "the mean of its samples of power"
            else:
                continue
            name = _text(self._nvml.nvmlDeviceGetName(device.handle))
            found.append({"of": f"GPU {number}, {name}", "joules": joules, "by": how})
        return found

    def _counter(self, handle: Any) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    """Older versions of nvidia-ml-py give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


class _Rapl:
    """The energy of the processor's packages, which Linux shows to root alone since 5.10."""

    def __init__(self, root: Path):
        # "intel-rapl:0" is a package, of AMD's processors too; "intel-rapl:0:1" is a part of it.
        folders = (root / "sys/class/powercap").glob("intel-rapl:*")
        self._packages = sorted(p for p in folders if p.name.count(":") == 1)
        self._last: dict[Path, int] = {}
        self._joules: dict[Path, float] = {}
        self._problem = "this machine shows no counters of it (RAPL)"

    def begin(self) -> None:
        for package in self._packages:
            value = self._value(package)
            if value is not None:
                self._last[package] = value
                self._joules[package] = 0.0

    def read(self) -> None:
        """Counts on; often enough that a counter cannot have gone round twice."""
        for package, before in self._last.items():
            value = self._value(package)
            if value is not None:
                moved = value - before
                if moved < 0:  # It has gone round.
                    moved += self._range(package)
                self._joules[package] += moved / 1e6
                self._last[package] = value

    def end(self, missing: dict[str, str]) -> list[dict[str, Any]]:
        self.read()
        if not self._joules:
            missing["energy of the processor"] = self._problem
        return [
            {"of": f"processor, {self._name(package)}", "joules": joules, "by": "RAPL"}
            for package, joules in self._joules.items()
        ]

    def _value(self, package: Path) -> int | None:
        try:
            return int((package / "energy_uj").read_text())
        except (OSError, ValueError) as error:
            strerror = getattr(error, "strerror", None) or str(error)
            self._problem = f"{package / 'energy_uj'} cannot be read: {strerror}"
            return None

    def _range(self, package: Path) -> int:
        try:
            return int((package / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            return 0

    def _name(self, package: Path) -> str:
        try:
            return (package / "name").read_text().strip()
        except OSError:
            return package.name
