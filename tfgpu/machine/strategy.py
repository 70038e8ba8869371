"""Strategies: the `tf.distribute.Strategy` of one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfgpu.machine import hardware

if TYPE_CHECKING:
    import tensorflow as tf

STRATEGIES = ("mirrored", "one_device", "multi_worker_mirrored")


def make_strategy(name: str, devices: Sequence[str]) -> tuple[tf.distribute.Strategy, str]:
    """Makes a strategy of one process; also returns what there is to say about its reduction."""
    import tensorflow as tf

    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0]), ""
    if len(devices) == 1:
        return tf.distribute.MirroredStrategy(list(devices)), ""
    if devices[0].startswith("CPU"):
        return tf.distribute.MirroredStrategy(list(devices)), "ring all-reduce between CPUs"
    if len(tf.config.list_physical_devices("GPU")) < len(hardware.logical_devices("GPU")):
        # NCCL refuses two ranks on one physical GPU.
        on_one = tf.distribute.ReductionToOneDevice()
        return (
            tf.distribute.MirroredStrategy(list(devices), cross_device_ops=on_one),
            "reduced on one device: NCCL does not work between parts of one GPU",
        )
    return tf.distribute.MirroredStrategy(list(devices)), "NCCL all-reduce"
