"""Checks of the GPUs: driver, cards, CUDA libraries, and whether TensorFlow uses them.

They were tested on recorded answers of the driver's library, not yet on a machine with GPUs.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence

from tfgpu.doctor import libraries as libraries_lib
from tfgpu.doctor.environment_checks import within
from tfgpu.doctor.findings import Finding, Section, Status
from tfgpu.doctor.framework import Framework
from tfgpu.doctor.libraries import Library, Opened
from tfgpu.machine import driver as driver_lib
from tfgpu.machine import hardware
from tfgpu.machine.driver import Driver

OLDEST_DRIVER = "525.60.13"
"""The oldest that runs CUDA 12 on Linux: table 3 of NVIDIA's "CUDA Compatibility" guide."""

_SHARED_MEMORY = 512 << 20  # Bytes that NCCL needs; Docker gives 64 MB by default.


def check_gpus(
    driver: Driver,
    framework: Framework,
    opened: Iterable[tuple[Library, Opened]],
    *,
    devices: str = "all",
    variables: Mapping[str, str],
    compiler: str | None,
) -> list[Finding]:
    """Checks driver, cards and libraries, and whether TensorFlow uses the GPUs.

    Args:
        driver: What the driver answered.
        framework: What TensorFlow found.
        opened: The CUDA libraries, with the outcome of opening each; empty if it was not tried.
        devices: The value of `--devices`.
        variables: The environment.
        compiler: Where XLA finds CUDA's libdevice, or None.
    """
    build = framework.build
    found = Section("GPU")
    if devices.startswith("CPU"):
        found.add("devices", "ok", f"not looked at: --devices={devices}")
        return found
    if not driver.gpus and not driver.cards and devices == "all" and driver.code is None:
        value = "none, and no NVIDIA driver: training runs on the CPU"
        if framework.gpus:  # Such as another vendor's, through a plugin.
            value = ", ".join(gpu.description for gpu in framework.gpus)
        found.add("devices", "ok", value)
        return found
    if build and not build.get("is_cuda_build"):
        found.add(
            "wheel",
            "problem",
            "this TensorFlow was built without CUDA",
            f"{shlex.quote(sys.executable)} -m pip install --force-reinstall tensorflow",
        )
    _check_driver(found, driver, build)
    for gpu in driver.gpus:
        _check_card(found, gpu, driver, build)
    hidden = _check_visible_devices(found, driver, variables)
    _check_libraries(found, list(opened))
    if driver.gpus and compiler is None:
        found.add(
            "XLA",
            "warning",
            "finds no libdevice: --jit_compile fails on the GPU",
            f"{shlex.quote(sys.executable)} -m pip install "
            + shlex.quote(libraries_lib.requirement("nvidia-cuda-nvcc-cu12")),
        )
    _check_use(found, driver, framework, devices, hidden)
    if len(framework.gpus) > 1:
        _check_shared_memory(found)
    return found


def _check_driver(found: Section, driver: Driver, build: Mapping[str, object]) -> None:
    built = str(build.get("cuda_version", "12"))
    if driver.code is None:
        remedy = (
            "in a container: `docker run --gpus all` with the NVIDIA Container Toolkit on the "
            "host; else install the driver of your distribution, such as "
            "`sudo apt install nvidia-driver`"
        )
        cards = f"{driver.cards} NVIDIA card{'s' if driver.cards != 1 else ''} in this machine, "
        value = f"{cards if driver.cards else ''}no driver library ({driver.error})"
        return found.add("driver", "problem", value, remedy)
    if driver.code != driver_lib.SUCCESS:
        remedies = {
            driver_lib.VERSION_MISMATCH: "the driver was updated under a loaded kernel module: "
            "reboot, or unload it with `sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia`",
            driver_lib.DRIVER_NOT_LOADED: "`sudo modprobe nvidia`; with Secure Boot the module "
            "has to be signed first",
            driver_lib.NO_PERMISSION: "give this user the devices: `ls -l /dev/nvidia*`, and in a "
            "container `--gpus all`",
        }
        remedy = remedies.get(driver.code, "look at `nvidia-smi` and `sudo dmesg | grep NVRM`")
        return found.add("driver", "problem", driver.error, remedy)
    version = ".".join(map(str, driver.cuda)) if driver.cuda else "?"
    value = f"{driver.version}, runs CUDA up to {version}; the wheel was built for {built}"
    major = int(built.partition(".")[0])
    if driver.cuda is not None and driver.cuda[0] < major:
        remedy = f"install a driver of version {OLDEST_DRIVER} or newer"
        return found.add("driver", "problem", value, remedy)
    return found.add("driver", "ok", value)


def kernels_for(capability: tuple[int, int], built: Sequence[str]) -> str:
    """Finds which of a wheel's kernels a GPU runs.

    Machine code for X.Y runs on X.Z with Z at least Y; PTX of compute_XY is compiled by the driver
    on anything newer ("CUDA C++ Programming Guide", binary and PTX compatibility). What
    TensorFlow's build calls compute_XY is both: machine code for X.Y, and PTX.

    Args:
        capability: Of the GPU, such as (8, 6).
        built: The kernels in the wheel, such as ["sm_80", "compute_90"].

    Returns:
        The kernels that are used: "sm_XY" for the nearest machine code, else "compute_XY" for the
        newest PTX, else "".
    """

    def number(entry: str) -> tuple[int, int]:
        digits = re.sub(r"\D", "", entry.partition("_")[2])
        return int(digits[:-1]), int(digits[-1])

    code = [
        entry
        for entry in built
        if number(entry)[0] == capability[0] and number(entry)[1] <= capability[1]
    ]
    if code:
        major, minor = number(max(code, key=number))
        return f"sm_{major}{minor}"
    ptx = [entry for entry in built if entry.startswith("compute_") and number(entry) <= capability]
    return max(ptx, key=number, default="")


def _check_card(
    found: Section, gpu: driver_lib.Gpu, driver: Driver, build: Mapping[str, object]
) -> None:
    item = f"GPU {gpu.index}"
    value = gpu.name
    if gpu.total is not None and gpu.free is not None:
        value += f", {gpu.free / 2**30:.1f} of {gpu.total / 2**30:.1f} GiB free"
    if gpu.capability is None:
        return found.add(item, "warning", f"{value}, compute capability unknown")
    shown = ".".join(map(str, gpu.capability))
    value += f", compute capability {shown}"
    if gpu.prohibited:
        remedy = f"`sudo nvidia-smi -i {gpu.index} -c DEFAULT`"
        return found.add(item, "problem", f"{value}; compute mode prohibited", remedy)
    built = build.get("cuda_compute_capabilities")
    if not isinstance(built, list | tuple):
        return found.add(item, "ok", value)
    entry = kernels_for(gpu.capability, built)
    if not entry:
        return found.add(
            item,
            "problem",
            f"{value}: the wheel has no kernels for it, only {', '.join(built)}",
            "train on the CPU with --devices=CPU:0, or build TensorFlow for "
            f"TF_CUDA_COMPUTE_CAPABILITIES={shown}",
        )
    if entry.startswith("compute_"):
        needed = tuple(int(part) for part in str(build.get("cuda_version", "12")).split(".")[:2])
        if driver.cuda is not None and driver.cuda < needed:
            return found.add(
                item,
                "problem",
                f"{value}: the wheel has PTX for it, of CUDA {'.'.join(map(str, needed))}, which "
                f"this driver (CUDA {'.'.join(map(str, driver.cuda))}) cannot compile",
                f"install a driver that runs CUDA {'.'.join(map(str, needed))} or newer",
            )
        value += f": compiled from the wheel's PTX ({entry}) at the first start, kept in ~/.nv"
    else:
        value += f": the wheel's kernels {entry}"
    if gpu.total and gpu.free is not None and gpu.free < gpu.total // 4:
        return found.add(
            item, "warning", f"{value}; others hold its memory", "`nvidia-smi` lists them"
        )
    return found.add(item, "ok", value)


def _check_visible_devices(found: Section, driver: Driver, variables: Mapping[str, str]) -> bool:
    """Checks, and returns, whether CUDA_VISIBLE_DEVICES hides a GPU."""
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    shown = hardware.visible_gpus(driver.gpus, visible)
    if visible is None or not driver.gpus or len(shown) == len(driver.gpus):
        return False
    value = f"{visible!r} shows {len(shown)} of {len(driver.gpus)} GPUs"
    status: Status = "warning" if shown else "problem"
    found.add("CUDA_VISIBLE_DEVICES", status, value, "`unset CUDA_VISIBLE_DEVICES`")
    return True


def _check_libraries(found: Section, opened: Sequence[tuple[Library, Opened]]) -> None:
    if not opened:
        return
    broken = [(library, outcome) for library, outcome in opened if outcome.error]
    needed = [pair for pair in broken if pair[0].lost.startswith("no GPU")]
    if len(needed) > 3:
        # One command for all of them.
        names = ", ".join(library.soname for library, _ in broken)
        remedy = libraries_lib.remedy_for_all()
        return found.add("libraries", "problem", f"not found: {names}", remedy)
    for library, outcome in broken:
        status: Status = "problem" if (library, outcome) in needed else "warning"
        value = f"{outcome.error}: {library.lost}"
        remedy = libraries_lib.remedy(library, outcome)
        found.add(library.soname, status, value, remedy)
    for library, outcome in opened:
        if library.soname.startswith("libcudnn.") and outcome.version:
            _check_cudnn(found, library, outcome, outcome.version)
    if not needed:
        versions = [
            f"CUDA {outcome.version // 1000}.{outcome.version % 1000 // 10}"
            for library, outcome in opened
            if library.soname.startswith("libcudart.") and outcome.version
        ]
        value = ", ".join([f"{len(opened) - len(broken)} of {len(opened)} open", *versions])
        found.add("libraries", "ok", value)


def _at_least(pin: re.Match[str]) -> str:
    return f">={pin[1]}{pin[2]},<{int(pin[1]) + 1}"


def _check_cudnn(found: Section, library: Library, outcome: Opened, version: int) -> None:
    # 90300 is 9.3.0 since cuDNN 9; before, 8907 was 8.9.7.
    digits = (
        (version // 10000, version % 10000 // 100) if version >= 90000 else (version // 1000, 0)
    )
    bound = libraries_lib.requirement(library.package).removeprefix(library.package)
    shown = ".".join(map(str, digits))
    # A wheel that pins one version runs with every later one of the same major number.
    if within(shown, re.sub(r"^==(\d+)(\S*)$", _at_least, bound)):
        return found.add("cuDNN", "ok", f"{shown} ({outcome.path})")
    return found.add(
        "cuDNN",
        "problem",
        f"{shown} at {outcome.path}, but the wheel needs {bound}",
        "`unset LD_LIBRARY_PATH`, or "
        f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(library.package + bound)}",
    )


def _check_use(
    found: Section, driver: Driver, framework: Framework, devices: str, hidden: bool
) -> None:
    for gpu in framework.gpus:
        if gpu.error:
            found.add(
                gpu.name,
                "problem",
                f"a matrix product failed: {gpu.error}",
                "free the GPU (`nvidia-smi` lists who uses it), or mend what is named above",
            )
    if framework.error:
        return
    wanted = [] if devices == "all" else devices.split(",")
    names = [gpu.name for gpu in framework.gpus]
    absent = [name for name in wanted if name not in names]
    if absent:
        value = f"{', '.join(absent)} asked for; TensorFlow shows {', '.join(names) or 'no GPU'}"
        remedy = f"--devices={','.join(names)}" if names else "--devices=CPU:0"
        found.add("devices", "problem", value, remedy)
    elif driver.gpus and not framework.gpus and not hidden:
        found.add(
            "TensorFlow",
            "problem",
            f"uses none of {len(driver.gpus)} GPUs{_why(framework.stderr)}",
            "mend what is named above, or train on the CPU with --devices=CPU:0",
        )
    elif framework.gpus and not any(gpu.error for gpu in framework.gpus):
        value = f"a matrix product ran on {', '.join(names)}"
        found.add("TensorFlow", "ok", value)


def _why(stderr: str) -> str:
    """Returns the reason that TensorFlow printed, as the end of a sentence."""
    for pattern in (r"Cannot dlopen some GPU libraries", r"failed call to cuInit: [^\n]*"):
        if match := re.search(pattern, stderr):
            return f" ({match[0]})"
    return ""


def _check_shared_memory(found: Section) -> None:
    with contextlib.suppress(OSError):
        size = shutil.disk_usage("/dev/shm").total
        if size < _SHARED_MEMORY:
            value = f"{size >> 20} MiB, where NCCL exchanges gradients"
            found.add("/dev/shm", "warning", value, "`docker run --shm-size=1g`")
