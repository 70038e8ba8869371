"""The CUDA libraries that TensorFlow's wheel looks for, and whether the loader finds them.

TensorFlow opens them by name when it first looks for GPUs, and continues without any GPU if one
does not open. Their names follow from the version macros in the wheel's `cuda_config.h` and the
list in XLA's `tsl/platform/default/dlopen_checker.cc`; the places where it looks, from the
RUNPATH of `libtensorflow_framework.so.2`.

    python -m tfgpu.doctor.libraries '["libcudart.so.12"]'

opens them in a process of its own: a broken library may crash the process that opens it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfgpu.cli.startup import child_environment

LIMIT = 120.0
"""Seconds for `open_all`: the first time, large libraries are read from disk."""


@dataclass(frozen=True)
class Library:
    """A shared library that the wheel looks for.

    Attributes:
        soname: The name under which it is opened.
        package: The distribution that it is part of.
        folder: The distribution's folder below `site-packages/nvidia`.
        lost: What does not work without it.
    """

    soname: str
    package: str
    folder: str
    lost: str


@dataclass(frozen=True)
class Opened:
    """The outcome of opening one library.

    Attributes:
        soname: Of the library.
        path: The file that was opened; None when none was.
        error: Why not, in the loader's words; empty when it was.
        version: The library's own version number; None when it was not asked.
    """

    soname: str
    path: str | None = None
    error: str = ""
    version: int | None = None


def wanted(config: Mapping[str, str]) -> tuple[Library, ...]:
    """Returns the libraries that the wheel opens.

    Args:
        config: The macros of `cuda_config.h`, as `read_config` returns them.
    """
    gpus = "no GPU is used"
    rows = (
        ("cudart", "CUDART", "12", "cuda-runtime", "cuda_runtime", gpus),
        ("cublas", "CUBLAS", "12", "cublas", "cublas", gpus),
        ("cublasLt", "CUBLAS", "12", "cublas", "cublas", gpus),
        ("cufft", "CUFFT", "11", "cufft", "cufft", gpus),
        ("cusolver", "CUSOLVER", "11", "cusolver", "cusolver", gpus),
        ("cusparse", "CUSPARSE", "12", "cusparse", "cusparse", gpus),
        ("cudnn", "CUDNN", "9", "cudnn", "cudnn", gpus),
        ("nccl", "NCCL", "2", "nccl", "nccl", "several GPUs cannot train together"),
        ("cupti", "CUPTI", "12", "cuda-cupti", "cuda_cupti", "profiles show no GPU kernels"),
    )
    cuda = config.get("TF_CUDA_VERSION", "12").partition(".")[0]
    return tuple(
        Library(
            soname=f"lib{name}.so.{config.get(f'TF_{macro}_VERSION', usual)}",
            package=f"nvidia-{package}-cu{cuda}",
            folder=folder,
            lost=lost,
        )
        for name, macro, usual, package, folder, lost in rows
    )


# Opened by the libraries above, not by TensorFlow: only messages of the loader name them.
_INDIRECT = {"libnvJitLink": "nvidia-nvjitlink", "libnvrtc": "nvidia-cuda-nvrtc"}


def read_config(tensorflow: Path | None) -> dict[str, str]:
    """Reads the version macros that the wheel was compiled with.

    Args:
        tensorflow: The folder of the installed module; None when there is none.

    Returns:
        Such as {"TF_CUDA_VERSION": "12.5.1"}; empty when the file is not there.
    """
    if tensorflow is None:
        return {}
    header = tensorflow / "include/third_party/gpus/cuda/cuda_config.h"
    try:
        text = header.read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(re.findall(r'^#define (TF_\w+_VERSION) "([^"]*)"', text, re.MULTILINE))


def tensorflow_folder() -> Path | None:
    """Returns the folder of TensorFlow without importing it; None if it is not installed."""
    try:
        spec = importlib.util.find_spec("tensorflow")
    except (ImportError, ValueError):
        return None
    found = list(spec.submodule_search_locations or ()) if spec else []
    return Path(found[0]) if found else None


def open_all(
    libraries: Sequence[Library], *, environment: Mapping[str, str] | None = None
) -> list[Opened]:
    """Opens each library in a child process, in the places where TensorFlow looks.

    Args:
        libraries: What `wanted` returned.
        environment: Of the process; this one's by default.

    Returns:
        An outcome for each, in order.
    """
    folder = tensorflow_folder()
    requests = [
        [library.soname, str(folder.parent / "nvidia" / library.folder / "lib") if folder else ""]
        for library in libraries
    ]
    variables = child_environment(environment)
    found: dict[str, Opened] = {}
    # After a library that crashes the process, the others are opened in another one.
    while remaining := [request for request in requests if request[0] not in found]:
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__, json.dumps(remaining)],
                capture_output=True,
                text=True,
                env=variables,
                timeout=LIMIT,
            )
            lines = done.stdout.splitlines()
            reason = f"opening it ends the process ({how_ended(done.returncode)})"
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
            text = said.decode(errors="replace") if isinstance(said, bytes) else said
            lines, reason = text.splitlines(), f"opening it takes more than {LIMIT:.0f} s"
        answers = [Opened(**json.loads(line)) for line in lines if line.startswith("{")]
        found |= {answer.soname: answer for answer in answers}
        if len(answers) < len(remaining):
            culprit = remaining[len(answers)][0]
            found[culprit] = Opened(culprit, error=reason)
    return [found[library.soname] for library in libraries]


def how_ended(code: int) -> str:
    """Says how a process ended: "SIGSEGV", "signal 64", "exit code 1"."""
    try:
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"


def remedy(library: Library, opened: Opened, *, python: str = sys.executable) -> str:
    """Returns the command that fixes a library that does not open.

    Args:
        library: The library.
        opened: The outcome of opening it, with an error.
        python: The interpreter whose packages are to be fixed.
    """
    package = library.package
    # The library may be there, but not one that it depends on.
    missing = re.match(r"(lib\w+)\.so[.\d]*: cannot open", opened.error)
    if missing and missing[1] in _INDIRECT:
        package = f"{_INDIRECT[missing[1]]}-{library.package.rpartition('-')[2]}"
    command = f"{shlex.quote(python)} -m pip install"
    if is_installed(package):
        # Its file is missing or damaged, which pip does not notice.
        version = importlib.metadata.version(package)
        return f"{command} --force-reinstall --no-deps {package}=={version}"
    return f"{command} {shlex.quote(requirement(package))}"


def remedy_for_all(*, python: str = sys.executable) -> str:
    """Returns the command that installs all libraries, for the installed TensorFlow."""
    version = importlib.metadata.version("tensorflow") if is_installed("tensorflow") else ""
    what = f"tensorflow[and-cuda]=={version}" if version else "tensorflow[and-cuda]"
    return f"{shlex.quote(python)} -m pip install {shlex.quote(what)}"


def requirement(package: str) -> str:
    """Returns the requirement of the installed TensorFlow for a CUDA package, as pip takes it."""
    try:
        declared = importlib.metadata.requires("tensorflow") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    for line in declared:
        text = "".join(line.partition(";")[0].split())
        if re.match(rf"{re.escape(package)}(?![\w-])", text):
            return text
    return package


def is_installed(package: str) -> bool:
    """Whether a distribution is installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def compiler_folder(tensorflow: Path | None, environment: Mapping[str, str]) -> str | None:
    """Returns where XLA finds `libdevice`, without which it compiles nothing for a GPU.

    Args:
        tensorflow: The folder of the installed module.
        environment: With XLA_FLAGS, CUDA_HOME and CUDA_DIR.

    Returns:
        The folder, or None when there is none.
    """
    flag = re.search(r"--xla_gpu_cuda_data_dir=(\S+)", environment.get("XLA_FLAGS", ""))
    candidates = [flag[1]] if flag else []
    if tensorflow is not None:
        candidates.append(str(tensorflow.parent / "nvidia/cuda_nvcc"))
    candidates += [environment[name] for name in ("CUDA_HOME", "CUDA_DIR") if environment.get(name)]
    candidates += ["/usr/local/cuda", "."]
    for folder in candidates:
        if (Path(folder) / "nvvm/libdevice/libdevice.10.bc").is_file():
            return folder
    return None


def _open(soname: str, folder: str) -> Opened:
    """Opens a library as TensorFlow does: LD_LIBRARY_PATH, the wheel's RUNPATH, then the system."""
    searched = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    candidates = [str(Path(each) / soname) for each in [*filter(None, searched), folder] if each]
    errors = []
    for candidate in [*(path for path in candidates if os.path.exists(path)), soname]:
        try:
            library = ctypes.CDLL(candidate)
        except OSError as error:
            errors.append(str(error))
            continue
        return Opened(soname, path=_path(soname) or candidate, version=_version(library, soname))
    # The first error is the most specific one: that of an existing file.
    return Opened(soname, error=errors[0])


def _path(soname: str) -> str | None:
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    found = re.search(rf"\S*/{re.escape(soname)}\S*$", maps, re.MULTILINE)
    return found[0] if found else None


def _version(library: ctypes.CDLL, soname: str) -> int | None:
    """Asks a library for its version: 12050 for CUDA 12.5, 90300 for cuDNN 9.3.0."""
    number = ctypes.c_int()
    try:
        if soname.startswith("libcudnn."):
            library.cudnnGetVersion.restype = ctypes.c_size_t
            return int(library.cudnnGetVersion())
        if soname.startswith("libcudart."):
            library.cudaRuntimeGetVersion(ctypes.byref(number))
            return number.value
        if soname.startswith("libnccl."):
            library.ncclGetVersion(ctypes.byref(number))
            return number.value
    except AttributeError:
        pass
    return None


if __name__ == "__main__":
    for request in json.loads(sys.argv[1]):
        outcome = _open(*request)
        print(json.dumps(outcome.__dict__), flush=True)
