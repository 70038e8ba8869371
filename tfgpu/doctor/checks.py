"""Judges what was found: each line ok, a warning or a problem, with what mends it.

A problem keeps training from starting as it was asked for. A GPU that is there and cannot be
used is one, unless `--devices` names the CPU: TensorFlow would silently train on the CPU.

The functions that take facts ask nothing themselves; `examine` asks, and puts them together.
What they say of GPUs was tried on recorded answers of the driver's library; no GPU has shown
it yet.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tfgpu.doctor import driver as driver_lib
from tfgpu.doctor import framework as framework_lib
from tfgpu.doctor import libraries as libraries_lib
from tfgpu.doctor.driver import Driver
from tfgpu.doctor.framework import Framework
from tfgpu.doctor.libraries import Library, Opened
from tfgpu.doctor.settings import DoctorSettings
from tfgpu.errors import RequestError
from tfgpu.machine import hardware
from tfgpu.machine.cluster import read_cluster

Status = Literal["ok", "warning", "problem"]

OLDEST_DRIVER = "525.60.13"
"""Of CUDA 12 on Linux: table 3 of NVIDIA's "CUDA Compatibility" guide."""

# Below the first a download or a checkpoint may not fit, below the second nothing does.
_LITTLE_DISK, _NO_DISK = 5 << 30, 200 << 20

# NCCL's segments in shared memory; Docker gives 64 MB unless told otherwise.
_SHARED_MEMORY = 512 << 20


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        section: Which part of it.
        item: What was looked at.
        status: What it means for a training.
        value: What was found.
        remedy: What mends it; empty when nothing is to be mended.
    """

    section: str
    item: str
    status: Status
    value: str
    remedy: str = ""


def can_train(findings: Sequence[Finding]) -> bool:
    """Whether a training can start as it was asked for."""
    return all(finding.status != "problem" for finding in findings)


def examine(config: DoctorSettings) -> tuple[list[Finding], int]:
    """Asks the driver, the loader, TensorFlow and the file system, and judges the answers.

    Args:
        config: What is to be trained with: strategy, devices, data and run folders.

    Returns:
        The findings, and how many GPUs a training would use.
    """
    driver = driver_lib.ask()
    folder = libraries_lib.tensorflow_folder()
    libraries = libraries_lib.wanted(libraries_lib.read_config(folder))
    expects_gpu = not config.devices.startswith("CPU") and (
        bool(driver.gpus or driver.cards) or config.devices.startswith("GPU")
    )
    opened: list[Opened] = []
    if expects_gpu:
        opened = libraries_lib.open_all(libraries)
    data_dir = data_folder(config)
    place, folder_findings = data_and_runs(config, data_dir)
    framework = framework_lib.ask(data_dir=place)
    findings = [
        *software(framework, versions=installed_versions()),
        *gpus(
            driver,
            framework,
            zip(libraries, opened, strict=True) if opened else (),
            devices=config.devices,
            variables=os.environ,
            compiler=libraries_lib.compiler_folder(folder, os.environ),
        ),
        *processor(framework, flags=cpu_flags(), machine=platform.machine()),
        *folder_findings,
        *tfds(framework, config.dataset, place),
        *machines(config.strategy, os.environ),
    ]
    # Those that fail the simplest kernel train nothing.
    usable = sum(not gpu.error for gpu in framework.gpus)
    return findings, 0 if config.devices.startswith("CPU") else usable


# ---- software -------------------------------------------------------------------------------


def installed_versions() -> dict[str, str | None]:
    """Of the packages whose versions decide, and of "python"."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("tensorflow", "keras", "tensorflow-datasets"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def bounds() -> dict[str, str]:
    """What tfgpu declares for Python and its packages, such as {"keras": "<3.16,>=3.15.0"}."""
    try:
        lines = importlib.metadata.requires("tfgpu") or []
        declared = {"python": importlib.metadata.metadata("tfgpu")["Requires-Python"] or ""}
    except importlib.metadata.PackageNotFoundError:  # On PYTHONPATH and not installed.
        return {}
    for line in lines:
        if ";" not in line and (match := re.match(r"([\w.-]+)(.*)", line)):
            declared[match[1]] = match[2].strip()
    return declared


def within(version: str, bound: str) -> bool:
    """Whether a version such as "2.21.0" satisfies a bound such as ">=2.21.0,<2.22"."""

    def numbers(text: str) -> list[int]:
        found = [int(part) for part in re.findall(r"\d+", text)[:3]]
        return found + [0] * (3 - len(found))

    here = numbers(version)
    compare: dict[str, Callable[[list[int]], bool]] = {
        ">=": lambda limit: here >= limit,
        "<=": lambda limit: here <= limit,
        "==": lambda limit: here == limit,
        "<": lambda limit: here < limit,
        ">": lambda limit: here > limit,
    }
    parts = re.findall(r"(>=|<=|==|<|>)\s*([\d.]+)", bound)
    return all(compare[sign](numbers(limit)) for sign, limit in parts)


def software(framework: Framework, *, versions: Mapping[str, str | None]) -> list[Finding]:
    """Python and packages against what tfgpu declares, and whether TensorFlow imports."""
    pip = f"{shlex.quote(sys.executable)} -m pip install"
    declared = bounds()
    found = []
    names = {
        "python": "Python",
        "tensorflow": "TensorFlow",
        "keras": "Keras",
        "tensorflow-datasets": "TFDS",
    }
    for name, item in names.items():
        # TensorFlow comes under other names too; what was imported counts.
        version = versions.get(name) or framework.versions.get(name)
        bound = declared.get(name, "")
        if version is None:
            remedy = f"{pip} {shlex.quote(name + bound)}"
            found.append(Finding("Software", item, "problem", "not installed", remedy))
        elif not within(version, bound):
            remedy = (
                f"make a virtual environment with a Python {bound}"
                if name == "python"
                else f"{pip} {shlex.quote(name + bound)}"
            )
            found.append(
                Finding("Software", item, "problem", f"{version}, but tfgpu takes {bound}", remedy)
            )
        else:
            found.append(Finding("Software", item, "ok", version))
    if framework.error:
        illegal = "SIGILL" in framework.error
        found.append(
            Finding(
                "Software",
                "import",
                "problem",
                f"TensorFlow cannot be used: {framework.error}",
                "this processor lacks instructions that the wheel needs (AVX): use another machine"
                if illegal
                else f"{pip} --force-reinstall tensorflow=={versions.get('tensorflow')}",
            )
        )
    return found


# ---- GPUs -----------------------------------------------------------------------------------


def gpus(
    driver: Driver,
    framework: Framework,
    opened: Sequence[tuple[Library, Opened]] | zip[tuple[Library, Opened]],
    *,
    devices: str = "all",
    variables: Mapping[str, str],
    compiler: str | None,
) -> list[Finding]:
    """Driver, cards, libraries, and what of it TensorFlow uses.

    Args:
        driver: What NVML said.
        framework: What TensorFlow found.
        opened: The libraries of CUDA, with the outcome of opening each; empty when that was
            not tried.
        devices: The value of `--devices`.
        variables: The environment.
        compiler: Where XLA finds CUDA's libdevice, or None.
    """
    build = framework.build
    found = []
    if devices.startswith("CPU"):
        return [Finding("GPU", "devices", "ok", f"not looked at: --devices={devices}")]
    if not driver.gpus and not driver.cards and devices == "all" and driver.code is None:
        value = "none, and no NVIDIA driver: training runs on the CPU"
        if framework.gpus:  # Such as another vendor's, through a plugin.
            value = ", ".join(gpu.description for gpu in framework.gpus)
        return [Finding("GPU", "devices", "ok", value)]
    if build and not build.get("is_cuda_build"):
        found.append(
            Finding(
                "GPU",
                "wheel",
                "problem",
                "this TensorFlow was built without CUDA",
                f"{shlex.quote(sys.executable)} -m pip install --force-reinstall tensorflow",
            )
        )
    found += _driver(driver, build, root=Path("/"))
    for gpu in driver.gpus:
        found.append(_card(gpu, driver, build))
    hidden = _hidden(driver, variables)
    if hidden is not None:
        found.append(hidden)
    found += _libraries(list(opened))
    if driver.gpus and compiler is None:
        found.append(
            Finding(
                "GPU",
                "XLA",
                "warning",
                "finds no libdevice: --jit_compile fails on the GPU",
                f"{shlex.quote(sys.executable)} -m pip install "
                + shlex.quote(libraries_lib.requirement("nvidia-cuda-nvcc-cu12")),
            )
        )
    found += _used(driver, framework, devices, hidden is not None)
    if len(framework.gpus) > 1:
        found += _shared_memory()
    return found


def _driver(driver: Driver, build: Mapping[str, object], *, root: Path) -> list[Finding]:
    built = str(build.get("cuda_version", "12"))
    if driver.code is None:
        remedy = (
            "in a container: `docker run --gpus all` with the NVIDIA Container Toolkit on the "
            "host; else install the driver of your distribution, such as "
            "`sudo apt install nvidia-driver`"
        )
        cards = f"{driver.cards} NVIDIA card{'s' if driver.cards != 1 else ''} in this machine, "
        value = f"{cards if driver.cards else ''}no driver library ({driver.error})"
        return [Finding("GPU", "driver", "problem", value, remedy)]
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
        return [Finding("GPU", "driver", "problem", driver.error, remedy)]
    version = ".".join(map(str, driver.cuda)) if driver.cuda else "?"
    value = f"{driver.version}, runs CUDA up to {version}; the wheel was built for {built}"
    major = int(built.partition(".")[0])
    if driver.cuda is not None and driver.cuda[0] < major:
        remedy = f"install a driver of version {OLDEST_DRIVER} or newer"
        return [Finding("GPU", "driver", "problem", value, remedy)]
    return [Finding("GPU", "driver", "ok", value)]


def kernels_for(capability: tuple[int, int], built: Sequence[str]) -> str:
    """What of a wheel runs on a GPU.

    Machine code for sm_XY runs on X.Z with Z at least Y; PTX of compute_XY is compiled by the
    driver on anything newer ("CUDA C++ Programming Guide", binary and PTX compatibility).

    Args:
        capability: Of the GPU, such as (8, 6).
        built: What the wheel holds, such as ["sm_80", "compute_90"].

    Returns:
        The entry that is used: the nearest machine code, else the newest PTX, else "".
    """

    def number(entry: str) -> tuple[int, int]:
        digits = re.sub(r"\D", "", entry.partition("_")[2])
        return int(digits[:-1]), int(digits[-1])

    code = [
        entry
        for entry in built
        if entry.startswith("sm_")
        and number(entry)[0] == capability[0]
        and number(entry)[1] <= capability[1]
    ]
    ptx = [entry for entry in built if entry.startswith("compute_") and number(entry) <= capability]
    return max(code or ptx, key=number, default="")


def _card(gpu: driver_lib.Gpu, driver: Driver, build: Mapping[str, object]) -> Finding:
    item = f"GPU {gpu.index}"
    value = gpu.name
    if gpu.total is not None and gpu.free is not None:
        value += f", {gpu.free / 2**30:.1f} of {gpu.total / 2**30:.1f} GiB free"
    if gpu.capability is None:
        return Finding("GPU", item, "warning", f"{value}, compute capability unknown")
    shown = ".".join(map(str, gpu.capability))
    value += f", compute capability {shown}"
    if gpu.prohibited:
        remedy = f"`sudo nvidia-smi -i {gpu.index} -c DEFAULT`"
        return Finding("GPU", item, "problem", f"{value}; compute mode prohibited", remedy)
    built = build.get("cuda_compute_capabilities")
    if not isinstance(built, list | tuple):
        return Finding("GPU", item, "ok", value)
    entry = kernels_for(gpu.capability, built)
    if not entry:
        return Finding(
            "GPU",
            item,
            "problem",
            f"{value}: the wheel has no kernels for it, only {', '.join(built)}",
            "train on the CPU with --devices=CPU:0, or build TensorFlow for "
            f"TF_CUDA_COMPUTE_CAPABILITIES={shown}",
        )
    if entry.startswith("compute_"):
        needed = tuple(int(part) for part in str(build.get("cuda_version", "12")).split(".")[:2])
        if driver.cuda is not None and driver.cuda < needed:
            return Finding(
                "GPU",
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
        return Finding(
            "GPU", item, "warning", f"{value}; others hold its memory", "`nvidia-smi` lists them"
        )
    return Finding("GPU", item, "ok", value)


def _hidden(driver: Driver, variables: Mapping[str, str]) -> Finding | None:
    """CUDA_VISIBLE_DEVICES, when it hides a GPU."""
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    shown = hardware.visible_gpus(driver.gpus, visible)
    if visible is None or not driver.gpus or len(shown) == len(driver.gpus):
        return None
    return Finding(
        "GPU",
        "CUDA_VISIBLE_DEVICES",
        "warning" if shown else "problem",
        f"{visible!r} shows {len(shown)} of {len(driver.gpus)} GPUs",
        "`unset CUDA_VISIBLE_DEVICES`",
    )


def _libraries(opened: Sequence[tuple[Library, Opened]]) -> list[Finding]:
    if not opened:
        return []
    broken = [(library, outcome) for library, outcome in opened if outcome.error]
    needed = [pair for pair in broken if pair[0].lost.startswith("no GPU")]
    if len(needed) > 3:
        # One command for all rather than a screen of them.
        names = ", ".join(library.soname for library, _ in broken)
        remedy = libraries_lib.remedy_for_all()
        return [Finding("GPU", "libraries", "problem", f"not found: {names}", remedy)]
    found = []
    for library, outcome in broken:
        status: Status = "problem" if (library, outcome) in needed else "warning"
        value = f"{outcome.error}: {library.lost}"
        remedy = libraries_lib.remedy(library, outcome)
        found.append(Finding("GPU", library.soname, status, value, remedy))
    for library, outcome in opened:
        if library.soname.startswith("libcudnn.") and outcome.version:
            found.append(_cudnn(library, outcome, outcome.version))
    if not needed:
        versions = [
            f"CUDA {outcome.version // 1000}.{outcome.version % 1000 // 10}"
            for library, outcome in opened
            if library.soname.startswith("libcudart.") and outcome.version
        ]
        value = ", ".join([f"{len(opened) - len(broken)} of {len(opened)} open", *versions])
        found.append(Finding("GPU", "libraries", "ok", value))
    return found


def _cudnn(library: Library, outcome: Opened, version: int) -> Finding:
    # 90300 is 9.3.0 since cuDNN 9; before, 8907 was 8.9.7.
    digits = (
        (version // 10000, version % 10000 // 100) if version >= 90000 else (version // 1000, 0)
    )
    bound = libraries_lib.requirement(library.package).removeprefix(library.package)
    shown = ".".join(map(str, digits))
    if within(shown, bound):
        return Finding("GPU", "cuDNN", "ok", f"{shown} ({outcome.path})")
    return Finding(
        "GPU",
        "cuDNN",
        "problem",
        f"{shown} at {outcome.path}, but the wheel needs {bound}",
        "`unset LD_LIBRARY_PATH`, or "
        f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(library.package + bound)}",
    )


def _used(driver: Driver, framework: Framework, devices: str, hidden: bool) -> list[Finding]:
    found = []
    for gpu in framework.gpus:
        if gpu.error:
            found.append(
                Finding(
                    "GPU",
                    gpu.name,
                    "problem",
                    f"a matrix product failed: {gpu.error}",
                    "free the GPU (`nvidia-smi` lists who uses it), or mend what is named above",
                )
            )
    if framework.error:
        return found
    wanted = [] if devices == "all" else devices.split(",")
    names = [gpu.name for gpu in framework.gpus]
    absent = [name for name in wanted if name not in names]
    if absent:
        value = f"{', '.join(absent)} asked for; TensorFlow shows {', '.join(names) or 'no GPU'}"
        remedy = f"--devices={','.join(names)}" if names else "--devices=CPU:0"
        found.append(Finding("GPU", "devices", "problem", value, remedy))
    elif driver.gpus and not framework.gpus and not hidden:
        found.append(
            Finding(
                "GPU",
                "TensorFlow",
                "problem",
                f"uses none of {len(driver.gpus)} GPUs{_why(framework.said)}",
                "mend what is named above, or train on the CPU with --devices=CPU:0",
            )
        )
    elif framework.gpus and not any(gpu.error for gpu in framework.gpus):
        value = f"a matrix product ran on {', '.join(names)}"
        found.append(Finding("GPU", "TensorFlow", "ok", value))
    return found


def _why(said: str) -> str:
    """What TensorFlow wrote about it, as the end of a sentence."""
    for pattern in (r"Cannot dlopen some GPU libraries", r"failed call to cuInit: [^\n]*"):
        if match := re.search(pattern, said):
            return f" ({match[0]})"
    return ""


def _shared_memory() -> list[Finding]:
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return []
    if size >= _SHARED_MEMORY:
        return []
    return [
        Finding(
            "GPU",
            "/dev/shm",
            "warning",
            f"{size >> 20} MiB, where NCCL exchanges gradients",
            "`docker run --shm-size=1g`",
        )
    ]


# ---- processor ------------------------------------------------------------------------------


def cpu_flags() -> frozenset[str]:
    """The instruction sets of the processor, as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


_INSTRUCTIONS = {
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "AVX512_BF16",
    "amx_bf16": "AMX_BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}


def processor(framework: Framework, *, flags: frozenset[str], machine: str) -> list[Finding]:
    """Cores, memory, instruction sets and oneDNN.

    Args:
        framework: What TensorFlow found.
        flags: What `cpu_flags` gave.
        machine: Such as "x86_64".
    """
    cores, free = hardware.usable_cores(), hardware.host_free_memory()
    value = (
        f"{hardware.cpu_model()}, {cores} core{'s' if cores > 1 else ''}, "
        f"{free / 2**30:.1f} GiB of memory free"
    )
    found = [
        Finding(
            "CPU", "processor", "warning", value, "close other programs: TensorFlow needs 1 GiB"
        )
        if free < 1 << 30
        else Finding("CPU", "processor", "ok", value)
    ]
    sets = [name for flag, name in _INSTRUCTIONS.items() if flag in flags]
    if machine in ("x86_64", "AMD64") and flags and "avx" not in flags:
        found.append(
            Finding(
                "CPU",
                "instructions",
                "problem",
                f"{', '.join(sets) or 'no vector instructions'}: TensorFlow's wheel needs AVX",
                "use another machine, or a virtual machine that passes the host's processor on",
            )
        )
    elif flags:
        found.append(Finding("CPU", "instructions", "ok", ", ".join(sets)))
    if framework.versions and not framework.onednn:
        found.append(
            Finding(
                "CPU",
                "oneDNN",
                "warning",
                "off: training on a CPU was three times slower without it",
                "`unset TF_ENABLE_ONEDNN_OPTS`",
            )
        )
    elif framework.versions:
        found.append(Finding("CPU", "oneDNN", "ok", "on"))
    return found


# ---- data and disk --------------------------------------------------------------------------


def data_folder(config: DoctorSettings) -> Path:
    """Where TFDS keeps its sets: the flag, the variable, or TFDS's own default."""
    chosen = config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser().absolute()


def data_and_runs(config: DoctorSettings, data_dir: Path) -> tuple[str | None, list[Finding]]:
    """Whether both folders can be written, and the disk under them.

    Returns:
        The folder, existing and writable, where TFDS may try to write, or None; and findings.
    """
    found = []
    place: str | None = None
    if config.dataset.startswith("folder:"):
        path = Path(config.dataset.removeprefix("folder:")).expanduser()
        try:
            images = sum(1 for _ in path.iterdir())
        except OSError as error:
            found.append(
                Finding(
                    "Data",
                    "images",
                    "problem",
                    f"{path}: {error.strerror}",
                    "name a folder that can be read with --dataset=folder:PATH",
                )
            )
        else:
            found.append(Finding("Data", "images", "ok", f"{path}, {images} entries"))
    else:
        finding, place = _folder("Data", "data folder", data_dir, "--data_dir")
        if finding.status == "problem" and data_dir.is_dir() and os.access(data_dir, os.R_OK):
            # Prepared sets are read from it all the same.
            finding = Finding("Data", "data folder", "warning", finding.value, finding.remedy)
        found.append(finding)
        if config.dataset != "digits" and ":" not in config.dataset:
            found.append(_prepared(config.dataset, data_dir))
    found.append(_folder("Data", "run folder", Path(config.run_dir or "runs"), "--run_dir")[0])
    return place, found


def _prepared(dataset: str, data_dir: Path) -> Finding:
    """Whether a TFDS set lies there; what is in it, only reading it tells."""
    if any(data_dir.joinpath(*dataset.split("/")).rglob("dataset_info.json")):
        return Finding("Data", dataset, "ok", f"prepared in {data_dir}")
    return Finding(
        "Data",
        dataset,
        "warning",
        f"not prepared in {data_dir}: the first training downloads it, if TFDS knows it",
        "without a network, prepare it where there is one and name its folder with --data_dir",
    )


def _folder(section: str, item: str, path: Path, flag: str) -> tuple[Finding, str | None]:
    """Tries to write below a folder, or below the nearest that is there already."""
    existing = path.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    remedy = f"name another place with {flag}, or `chmod u+w {shlex.quote(str(existing))}`"
    try:
        with tempfile.TemporaryFile(dir=existing) as trial:
            trial.write(b"tfgpu")
        free = shutil.disk_usage(existing).free
    except OSError as error:
        value = f"{path} cannot be written: {error.strerror or error}"
        return Finding(section, item, "problem", value, remedy), None
    value = f"{path}, {free / 2**30:.1f} GiB free" + (
        "" if existing == path.absolute() else ", made when needed"
    )
    if free < _NO_DISK:
        return Finding(section, item, "problem", value, f"free some space, or {flag}=PATH"), None
    if free < _LITTLE_DISK:
        advice = f"free some space, or {flag}=PATH on another disk"
        return Finding(section, item, "warning", value, advice), str(existing)
    return Finding(section, item, "ok", value), str(existing)


def tfds(framework: Framework, dataset: str, place: str | None) -> list[Finding]:
    """Whether TFDS wrote and read a set."""
    if place is None or framework.error:
        return []
    if framework.tfds_error:
        return [
            Finding(
                "Data",
                "TFDS",
                "problem" if not dataset.startswith("folder:") else "warning",
                f"cannot write and read a set in {place}: {framework.tfds_error}",
                "name another place with --data_dir",
            )
        ]
    return [Finding("Data", "TFDS", "ok", "wrote and read a small set there")]


# ---- several machines -----------------------------------------------------------------------


def machines(strategy: str, variables: Mapping[str, str]) -> list[Finding]:
    """TF_CONFIG and the addresses it names.

    Args:
        strategy: The value of `--strategy`.
        variables: The environment.
    """
    wanted = strategy == "multi_worker_mirrored"
    if not wanted and not variables.get("TF_CONFIG", "").strip():
        value = "not set; --strategy=multi_worker_mirrored needs it"
        return [Finding("Machines", "TF_CONFIG", "ok", value)]
    try:
        cluster = read_cluster(variables)
    except RequestError as error:
        status: Status = "problem" if wanted else "warning"
        text = str(error).partition(": ")[2]
        value, _, remedy = text.partition("; ")
        return [Finding("Machines", "TF_CONFIG", status, value, remedy)]
    plural = "s" if cluster.num_workers > 1 else ""
    found = [
        Finding(
            "Machines",
            "TF_CONFIG",
            "ok",
            f"this is {cluster.name} of {cluster.num_workers} worker{plural}",
        )
    ]
    for address in cluster.addresses:
        host, _, port = address.rpartition(":")
        mine = address == cluster.address
        found.append(_address(host.strip("[]"), int(port), mine=mine))
    return found


def _address(host: str, port: int, *, mine: bool) -> Finding:
    item = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except (OSError, OverflowError) as error:
        remedy = "write a name or number that this machine knows into TF_CONFIG"
        return Finding("Machines", item, "problem", f"unknown host: {error}", remedy)
    with socket.socket(family, kind, protocol) as trial:
        trial.settimeout(2)
        if mine:
            try:
                # Servers set it too: a port that only waits for old packets is free.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
            except OSError as error:
                remedy = f"end what listens there (`ss -ltnp 'sport = :{port}'`), or take another"
                value = f"this worker's own, cannot be listened on: {error.strerror}"
                return Finding("Machines", item, "problem", value, remedy)
            return Finding("Machines", item, "ok", "this worker's own, free")
        try:
            trial.connect(address)
        except TimeoutError:
            remedy = f"open port {port} in the firewall between the machines"
            return Finding("Machines", item, "warning", "does not answer at all", remedy)
        except OSError as error:
            if error.errno is not None and isinstance(error, ConnectionRefusedError):
                return Finding("Machines", item, "ok", "reached; its worker is not started yet")
            remedy = "look at the network between the machines"
            return Finding("Machines", item, "warning", f"not reached: {error.strerror}", remedy)
        return Finding("Machines", item, "ok", "listens already")


def as_text(findings: Sequence[Finding]) -> str:
    """The findings for a person: a line each, and under it what mends it."""
    wide = max(len(finding.item) for finding in findings)
    marks = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}
    lines = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines.append(section)
        lines.append(f"  {marks[finding.status]}  {finding.item:<{wide}}  {finding.value}")
        if finding.remedy:
            lines.append(f"  {'':7}  {'':<{wide}}  -> {finding.remedy}")
    return "\n".join(lines)
