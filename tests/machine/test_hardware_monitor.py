"""Samples of the hardware, from a driver and a library that the test brings."""

import itertools
import sys
import threading
import time
import types

import pytest

from tfgpu.machine.hardware_monitor import HardwareMonitor

GIB = 1 << 30


class NVMLError(Exception):
    pass


class Driver(types.ModuleType):
    """NVML of GPUs that take 100 W, and count energy or not."""

    NVML_TEMPERATURE_GPU = 0
    NVMLError = NVMLError

    def __init__(self, *, uuids=("GPU-a", "GPU-b"), counts=True, utilization=True):
        super().__init__("pynvml")
        self.uuids, self.counts, self.works = uuids, counts, utilization
        self.open, self.millijoules, self.threads = 0, {0: 5000, 1: 7000}, set()

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, handle):
        return self.uuids[handle]

    def nvmlDeviceGetName(self, handle):
        return b"H200"  # As older versions give it.

    def nvmlDeviceGetUtilizationRates(self, handle):
        self.threads.add(threading.current_thread().name)
        if not self.works:
            raise NVMLError("Not Supported")
        return types.SimpleNamespace(gpu=40 + handle)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return types.SimpleNamespace(used=3 * GIB)

    def nvmlDeviceGetPowerUsage(self, handle):
        return 100_000

    def nvmlDeviceGetTemperature(self, handle, sensor):
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 60

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.counts:
            raise NVMLError("Not Supported")
        self.millijoules[handle] += 2500
        return self.millijoules[handle]


class Library(types.ModuleType):
    """psutil of a machine of which half is used; the first answer of each counter is none."""

    def __init__(self):
        super().__init__("psutil")
        self.asked = 0

    def cpu_percent(self, interval):
        assert interval is None  # Any other would wait.
        self.asked += 1
        return 50.0 if self.asked > 1 else 0.0

    def virtual_memory(self):
        return types.SimpleNamespace(percent=25.0)

    def Process(self):
        process = types.SimpleNamespace(cpu_percent=lambda interval: 150.0)
        process.memory_info = lambda: types.SimpleNamespace(rss=2 * GIB)
        return process


def monitored(tmp_path, *, samples=2, **arguments):
    """A monitor that has taken that many samples in the background, and ended."""
    defaults = {"interval": 0.01, "psutil": Library(), "root": tmp_path}
    monitor = HardwareMonitor(**(defaults | arguments))
    with monitor:
        while monitor.summary()["samples"] < samples:
            time.sleep(0.01)
    return monitor


def figures(monitor):
    return {each["figure"]: each for each in monitor.summary()["figures"]}


def test_gpus_processor_and_memory_are_sampled_in_the_background(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = Driver()
    monitor = monitored(tmp_path, gpus=[0, 1], nvml=driver)
    found = figures(monitor)
    assert {name: each["mean"] for name, each in found.items()} == {
        "cpu": 50.0,
        "process_cpu": 150.0,
        "process_memory": 2.0,
        "host_memory": 25.0,
        **{"gpu0_utilization": 40.0, "gpu1_utilization": 41.0},
        **{f"gpu{i}_memory": 3.0 for i in (0, 1)},
        **{f"gpu{i}_power": 100.0 for i in (0, 1)},
        **{f"gpu{i}_temperature": 60.0 for i in (0, 1)},
    }
    assert found["gpu0_power"]["unit"] == "W" and found["gpu0_power"]["most"] == 100.0
    summary = monitor.summary()
    assert summary["samples"] >= 2 and summary["seconds"] >= 0.02
    # Differences of the counters, in joules.
    assert [each["joules"] for each in summary["energy"]] == [2.5, 2.5]
    assert summary["energy"][0]["of"] == "GPU 0, H200"
    assert summary["energy_joules"] == 5.0
    assert "hardware" in driver.threads
    assert driver.open == 0 and not [t for t in threading.enumerate() if t.name == "hardware"]


def test_a_point_has_the_samples_since_the_last_one(tmp_path):
    monitor = monitored(tmp_path)
    point = monitor.point()
    assert point["hardware/cpu"] == (50.0, "In %: of all processors of the machine.")
    assert set(point) == {f"hardware/{name}" for name in figures(monitor)}
    assert monitor.point() == {}
    assert monitor.summary()["samples"] >= 2


def test_numbers_are_those_that_cuda_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = figures(monitored(tmp_path, gpus=[0], nvml=Driver()))
    assert found["gpu0_utilization"]["mean"] == 41.0


def test_without_a_counter_energy_is_power_times_time(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    summary = monitored(tmp_path, gpus=[0], nvml=Driver(counts=False)).summary()
    (energy,) = summary["energy"]
    assert energy["joules"] == pytest.approx(100.0 * summary["seconds"])
    assert "samples of power" in energy["by"]


def test_what_a_gpu_does_not_tell_is_named_and_the_rest_is_there(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monitor = monitored(tmp_path, gpus=[0], nvml=Driver(utilization=False))
    assert "gpu0_utilization" not in figures(monitor) and "gpu0_power" in figures(monitor)
    missing = {each["what"]: each["why"] for each in monitor.summary()["missing"]}
    assert missing["utilization of GPU 0"] == "Not Supported"


@pytest.mark.parametrize("visible", ["MIG-1", "7"])
def test_a_gpu_that_nvml_does_not_know_is_named(tmp_path, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    driver = Driver()
    monitor = monitored(tmp_path, gpus=[0], nvml=driver)
    missing = {each["what"]: each["why"] for each in monitor.summary()["missing"]}
    assert "CUDA's number 0" in missing["GPUs"] and driver.open == 0
    assert "cpu" in figures(monitor)


def test_a_library_that_is_not_installed_is_named_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "psutil", None)
    monitor = monitored(tmp_path, gpus=[0], psutil="psutil", samples=0)
    summary = monitor.summary()
    missing = {each["what"]: each["why"] for each in summary["missing"]}
    assert "tfgpu[hardware]" in missing["GPUs"] and "psutil" in missing["processor and memory"]
    assert summary["figures"] == [] and summary["energy_joules"] is None


def test_a_driver_that_breaks_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = Driver()

    def lost(handle):
        raise RuntimeError("GPU is lost")

    driver.nvmlDeviceGetMemoryInfo = lost
    monitor = monitored(tmp_path, gpus=[0], nvml=driver)
    missing = {each["what"]: each["why"] for each in monitor.summary()["missing"]}
    assert missing["GPUs"] == "RuntimeError: GPU is lost"
    assert figures(monitor)["cpu"]["mean"] == 50.0


def test_a_short_run_has_one_sample(tmp_path):
    clock = itertools.count(0, 7.0)
    monitor = monitored(tmp_path, interval=60, samples=0, clock=lambda: float(next(clock)))
    assert monitor.summary()["samples"] == 1


def package(root, number, microjoules, *, whole=10**9):
    folder = root / "sys/class/powercap" / f"intel-rapl:{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(str(microjoules))
    (folder / "max_energy_range_uj").write_text(str(whole))
    (folder / "name").write_text("package-0\n")


def test_the_energy_of_the_processor_is_that_of_its_packages(tmp_path):
    package(tmp_path, "0", 1_000_000)
    package(tmp_path, "0:0", 5)  # A part of the package.
    monitor = HardwareMonitor(interval=60, psutil=Library(), root=tmp_path)
    with monitor:
        package(tmp_path, "0", 3_500_000)
    (energy,) = monitor.summary()["energy"]
    assert energy == {"of": "processor, package-0", "joules": 2.5, "by": "RAPL"}


def test_a_counter_that_has_gone_round_is_counted_on(tmp_path):
    package(tmp_path, "0", 999_000_000)
    monitor = HardwareMonitor(interval=60, psutil=Library(), root=tmp_path)
    with monitor:
        package(tmp_path, "0", 2_000_000)
    assert monitor.summary()["energy_joules"] == pytest.approx(3.0)


def test_counters_that_cannot_be_read_are_named(tmp_path):
    folder = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    folder.mkdir(parents=True)  # A directory cannot be read, whoever asks.
    summary = monitored(tmp_path, samples=0).summary()
    (missing,) = summary["missing"]
    assert missing["what"] == "energy of the processor" and "cannot be read" in missing["why"]
