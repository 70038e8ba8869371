"""Asks TensorFlow what it finds on this machine, in a child process that may crash.

    python -m tfgpu.doctor.framework '{"data_dir": null}'

imports TensorFlow, Keras and TFDS in the environment that tfgpu sets up, multiplies two matrices
on every GPU, writes and reads a small data set with TFDS, and prints what it found as JSON.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tfgpu.cli.startup import child_environment
from tfgpu.doctor.libraries import how_ended

LIMIT = 180.0
"""Seconds for the process: the first start on a GPU that runs the wheel's PTX compiles it."""

_MARK = "tfgpu framework: "


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU that TensorFlow shows.

    Attributes:
        name: Such as "GPU:0".
        description: The hardware's name.
        capability: CUDA compute capability, or None.
        error: What a matrix product on it raised; empty when it ran.
    """

    name: str
    description: str
    capability: tuple[int, int] | None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Framework:
    """What TensorFlow found.

    Attributes:
        versions: Of "tensorflow", "keras", "tensorflow-datasets" as imported.
        build: What `tf.sysconfig.get_build_info()` returns.
        gpus: The GPUs that TensorFlow shows.
        onednn: Whether oneDNN's kernels are on.
        tfds_error: Why a TFDS set could not be written and read; empty when it could.
        stderr: What the libraries printed on standard error.
        error: Why the process ended early; empty when it did not.
    """

    versions: dict[str, str] = field(default_factory=dict)
    build: dict[str, Any] = field(default_factory=dict)
    gpus: tuple[Device, ...] = ()
    onednn: bool = False
    tfds_error: str = ""
    stderr: str = ""
    error: str = ""


def ask(*, data_dir: str | None, environment: Mapping[str, str] | None = None) -> Framework:
    """Starts the process and reads its answers; never raises.

    Args:
        data_dir: Where a TFDS set is to be written and read; None for nowhere.
        environment: Of the process; this one's by default.
    """
    # TensorFlow's messages say why a GPU is not used, and whether oneDNN is on.
    variables = child_environment(environment) | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    request = json.dumps({"data_dir": data_dir})
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        command = [sys.executable, "-m", __name__, request]
        ended = ""
        try:
            code = subprocess.run(
                command, stdout=out, stderr=err, env=variables, timeout=LIMIT
            ).returncode
            if code:
                ended = f"it {'was ended by' if code < 0 else 'ended with'} {how_ended(code)}"
        except subprocess.TimeoutExpired:
            ended = f"it did not answer within {LIMIT:.0f} s"
        out.seek(0)
        err.seek(0)
        found: dict[str, Any] = {}
        for line in out:  # The GPUs come twice: before and after the matrix product.
            if line.startswith(_MARK):
                found |= json.loads(line.removeprefix(_MARK))
        stderr = err.read()
    gpus = tuple(
        Device(**gpu | {"capability": tuple(gpu["capability"]) if gpu["capability"] else None})
        for gpu in found.pop("gpus", ())
    )
    lines = [line for line in stderr.splitlines() if line.strip()]
    if ended and lines:
        ended += f": {' '.join(lines[-1].split())}"
    return Framework(**found, gpus=gpus, stderr=stderr, error=ended)


def _print(**found: Any) -> None:
    print(_MARK + json.dumps(found), flush=True)


def _main(data_dir: str | None) -> None:
    from tfgpu.cli import startup

    startup.prepare_environment(verbosity=1)
    import keras
    import tensorflow as tf

    from tfgpu.machine.tensorflow_internals import has_onednn

    _print(
        versions={"tensorflow": tf.__version__, "keras": keras.__version__},
        build={key: _plain(value) for key, value in tf.sysconfig.get_build_info().items()},
        onednn=has_onednn(),
    )
    gpus = []
    for number, gpu in enumerate(tf.config.list_physical_devices("GPU")):
        with contextlib.suppress(RuntimeError, ValueError):
            tf.config.experimental.set_memory_growth(gpu, True)
        details = tf.config.experimental.get_device_details(gpu)
        gpus.append(
            Device(
                name=f"GPU:{number}",
                description=details.get("device_name", "GPU"),
                capability=details.get("compute_capability"),
            )
        )
    _print(gpus=[asdict(gpu) for gpu in gpus])
    tried = []
    for gpu in gpus:
        error = ""
        try:
            with tf.device(gpu.name):
                tf.matmul(tf.ones((64, 64)), tf.ones((64, 64))).numpy()
        except Exception as failure:
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
        tried.append(asdict(gpu) | {"error": error})
    _print(gpus=tried)
    if data_dir is not None:
        _print(tfds_error=_write_and_read(data_dir))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | bool | list) else str(value)


def _write_and_read(data_dir: str) -> str:
    """Prepares `digits` in a temporary folder in `data_dir` and reads it; returns the error."""
    from tfgpu.data import digits
    from tfgpu.data.tfds_source import quiet

    try:
        with (
            tempfile.TemporaryDirectory(
                prefix=".tfgpu-doctor-", dir=data_dir, ignore_cleanup_errors=True
            ) as made,
            quiet(),
        ):
            next(iter(digits.build(made).as_dataset(split="test").take(1)))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
