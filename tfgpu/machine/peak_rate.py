"""The rate of matrix products a device reaches: what utilisation is measured against.

Measured once, in a fraction of a second, and kept in `tfgpu/peak.json` under the user's cache
directory (`XDG_CACHE_HOME`, by default `~/.cache`). The nominal rate of a data sheet is not used:
no program reaches it, and a processor's is not written down anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import tensorflow as tf

from tfgpu.machine import user_cache

_SIDE_CPU, _SIDE_GPU = 1024, 8192
_SECONDS = 0.3


def peak_flops(device: str, *, dtype: str = "float32", cache: Path | None = None) -> float:
    """Operations a second of a large square matrix product on a device.

    Args:
        device: A logical device, such as "GPU:0".
        dtype: The dtype the model computes in: float32, float16 or bfloat16.
        cache: The file that keeps what was measured.

    Returns:
        FLOP/s, a multiplication and an addition being two operations: the best of several
        repetitions, measured now or, on this machine with this TensorFlow, earlier.
    """
    if cache is None and (directory := user_cache.directory()) is not None:
        cache = directory / "peak.json"
    is_cuda = tf.sysconfig.get_build_info()["is_cuda_build"]
    key = f"{_describe(device)}|{dtype}|{tf.__version__}|{is_cuda}"
    known = _read(cache)
    if key not in known:
        known[key] = _measure(device, dtype)
        _write(cache, known)
    return known[key]


def _measure(device: str, dtype: str) -> float:
    side = _SIDE_GPU if "GPU" in device else _SIDE_CPU
    with tf.device(device):
        matrix = tf.cast(tf.random.stateless_normal([side, side], [0, 0]), dtype)

        @tf.function
        def product() -> tf.Tensor:
            # A number, so that waiting for it copies no matrix.
            return tf.linalg.matmul(matrix, matrix)[0, 0]

        product().numpy()
        best, deadline = float("inf"), time.perf_counter() + _SECONDS
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            product().numpy()
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _describe(device: str) -> str:
    """What decides the rate: the kind of device, and the threads of a processor."""
    kind, _, index = device.rpartition(":")
    if kind.endswith("GPU"):
        gpus = tf.config.list_physical_devices("GPU")
        gpu = gpus[min(int(index), len(gpus) - 1)]
        return str(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU"))
    from tfgpu.machine import hardware

    threads = tf.config.threading.get_intra_op_parallelism_threads() or hardware.usable_cores()
    onednn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "")
    return f"{hardware.cpu_model()}, {threads} threads, oneDNN {onednn or 'default'}"


def _read(cache: Path | None) -> dict[str, float]:
    if cache is None:
        return {}
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in known.items() if value > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # None yet, or somebody else's: it is measured again.


def _write(cache: Path | None, known: dict[str, float]) -> None:
    if cache is None:
        return
    # A home that cannot be written costs a third of a second the next time, no more.
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f".{cache.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, cache)
