"""The ceilings of a device: what a training on it is measured against.

Each is the median of repeated runs of one operation that is large enough to fill the device; the
rate of matrix products, to which utilisation refers, is the best of them
(`tfgpu.machine.peak_rate`). A multiplication and an addition count as two operations.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.artifacts import environment
from tfgpu.bench import interleaved_timing
from tfgpu.bench.settings import BenchSettings
from tfgpu.machine import peak_rate, runtime

_DTYPES = {"float32": "float32", "mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}
_CHAIN = 400  # Operations in a sequence, each waiting for the one before, whose cost is measured.


class Machine:
    """Measures a device; the methods answer the requests of `tfgpu.bench.process`."""

    def __init__(self, config: BenchSettings):
        self._config = config
        self._device = ""  # Until `start`.

    def look(self) -> dict[str, Any]:
        """Returns the GPUs that TensorFlow shows; nothing is started yet."""
        return {"gpus": [f"GPU:{i}" for i in range(len(tf.config.list_physical_devices("GPU")))]}

    def start(self, device: str) -> dict[str, Any]:
        """Starts TensorFlow with a device.

        Returns:
            What environment.json of a run would hold.
        """
        started = runtime.start(
            strategy="one_device",
            devices=device,
            precision=self._config.precision,
            jit_compile=False,
        )
        self._device = started.devices[0]
        return environment.record(started)

    def matrix_product(self, precision: str) -> float:
        """Operations per second of a square matrix product in a precision's compute dtype."""
        with tempfile.TemporaryDirectory() as folder:
            # An empty cache, so that it is measured now.
            cache = Path(folder) / "peak.json"
            return peak_rate.peak_flops(self._device, dtype=_DTYPES[precision], cache=cache)

    def convolution(self, precision: str, seconds: float) -> float:
        """Operations per second of a 3x3 convolution, 64 to 64 channels, on 56x56 images."""
        batch = 256 if self._on_gpu else 8
        with tf.device(self._device):
            dtype = _DTYPES[precision]
            images = tf.cast(tf.random.stateless_normal([batch, 56, 56, 64], [0, 1]), dtype)
            kernel = tf.cast(tf.random.stateless_normal([3, 3, 64, 64], [0, 2]), dtype)

            @tf.function
            def convolve() -> tf.Tensor:
                return tf.nn.conv2d(images, kernel, 1, "SAME")[0, 0, 0, 0]

            return 2 * batch * 56 * 56 * 64 * 64 * 9 / _time(convolve, seconds)

    def memory_bandwidth(self, seconds: float) -> float:
        """Bytes per second read and written by an addition of two large arrays."""
        count = (1 << 27) if self._on_gpu else (1 << 24)
        with tf.device(self._device):
            a, b = tf.ones([count]), tf.ones([count])

            @tf.function
            def add() -> tf.Tensor:
                return (a + b)[0]

            return 3 * 4 * count / _time(add, seconds)

    def host_to_device_bandwidth(self, seconds: float) -> float | None:
        """Bytes per second copied from host memory; None on a CPU, which needs no copy."""
        if not self._on_gpu:
            return None
        array = np.ones([1 << 26], np.uint8)
        with tf.device("CPU"):
            host = tf.constant(array)

        def copy() -> None:
            with tf.device(self._device):
                # The reduction has to wait for the copy.
                tf.reduce_max(tf.identity(host)[-8:]).numpy()

        return array.nbytes / interleaved_timing.repeat(copy, seconds=seconds)

    def launch_seconds(self, seconds: float) -> float:
        """Seconds that one operation costs inside a graph, whatever it computes."""
        with tf.device(self._device):
            low, high = tf.constant(0.5), tf.constant(1.5)

            @tf.function
            def chain(x: tf.Tensor) -> tf.Tensor:
                # Two operations that graph optimisation does not merge.
                for _ in range(_CHAIN // 2):
                    x = tf.minimum(tf.maximum(x, low), high)
                return x

            x = tf.constant(1.0)
            return _time(lambda: chain(x), seconds) / _CHAIN

    def call_seconds(self, seconds: float) -> float:
        """Seconds that a call of a compiled function from Python costs."""
        with tf.device(self._device):

            @tf.function
            def nothing(x: tf.Tensor) -> tf.Tensor:
                return tf.identity(x)

            x = tf.constant(1.0)
            return _time(lambda: nothing(x), seconds)

    @property
    def _on_gpu(self) -> bool:
        return self._device.startswith("GPU")


def _time(function: Callable[[], tf.Tensor], seconds: float) -> float:
    """Returns the seconds of one call; on a GPU several are in flight at once."""
    function().numpy()
    start = time.perf_counter()
    function().numpy()
    # So many between two waits that the cost of waiting is negligible.
    several = int(min(1000, max(1, 0.02 / max(time.perf_counter() - start, 1e-6))))

    def work() -> None:
        for _ in range(several - 1):
            function()
        function().numpy()

    return interleaved_timing.repeat(work, seconds=seconds) / several
