"""What the checks and the speed groups of `gpu_report.py` share: the device, data, a network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tfgpu.cli import startup

ROOT = Path(__file__).resolve().parent.parent
BATCH = 128


def say(name: str, passed: bool | None, note: str = "", **figures: Any) -> None:
    """Prints the outcome of a check."""
    line = {"name": name, "passed": passed, "note": note, "figures": figures}
    print("\n" + json.dumps(line), flush=True)


class Place:
    """The first GPU, or for a trial of the checks themselves the CPU.

    Args:
        split: Whether to make two logical devices of it.
    """

    def __init__(self, *, split: bool = False):
        startup.prepare_environment()
        self.tf = tf = startup.import_tensorflow()
        gpus = tf.config.list_physical_devices("GPU")
        self.kind = "GPU" if gpus else "CPU"
        self.on_gpu = bool(gpus)
        device = (gpus or tf.config.list_physical_devices("CPU"))[0]
        if split:
            limit = {"memory_limit": 16_000} if gpus else {}
            tf.config.set_logical_device_configuration(
                device, [tf.config.LogicalDeviceConfiguration(**limit)] * 2
            )
        elif gpus:
            tf.config.experimental.set_memory_growth(device, True)
        self.names = [f"{self.kind}:{i}" for i in range(2 if split else 1)]

    def strategy(self) -> Any:
        """A MirroredStrategy over the device, or over its two halves."""
        distribute = self.tf.distribute
        if len(self.names) == 1:
            return distribute.MirroredStrategy(self.names)
        # NCCL does not work between two parts of one GPU.
        return distribute.MirroredStrategy(
            self.names, cross_device_ops=distribute.ReductionToOneDevice()
        )

    def memory(self) -> dict[str, int]:
        """Bytes in use on the GPU, "current" and "peak"; zeros for a CPU."""
        if not self.on_gpu:
            return {"current": 0, "peak": 0}
        found: dict[str, int] = self.tf.config.experimental.get_memory_info("GPU:0")
        return found


def examples(tf: Any, count: int, *, side: int = 32, classes: int = 10) -> Any:
    """Images of noise whose mean tells the class a little."""
    import numpy as np

    from tfgpu.data.examples import Examples

    random = np.random.default_rng(0)
    labels = random.integers(0, classes, count, np.int32)
    pixels = random.integers(0, 128, (count, side, side, 3), np.uint8)
    pixels += (labels * (127 // classes)).astype(np.uint8)[:, None, None, None]
    return Examples.from_arrays(pixels, labels)


def small_network(cls: type, *, jit: bool, together: int = 16, alike: bool = False) -> Any:
    """A CNN with BatchNormalization and Dropout; `alike` without, so that replicas equal one."""
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x if alike else layers.BatchNormalization()(x))
    x = layers.Flatten()(x)
    x = x if alike else layers.Dropout(0.2)(x)
    model = cls(inputs, layers.Dense(10, dtype="float32")(x))
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=jit,
        steps_per_execution=together,
    )
    return model


def digest(arrays: Any) -> str:
    """A name for the bits of arrays."""
    import numpy as np

    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:12]
