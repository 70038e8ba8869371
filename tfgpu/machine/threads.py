"""CPU threads that share one operation: how many, and why."""

from __future__ import annotations

import os

from tfgpu.errors import RequestError
from tfgpu.machine import hardware


def decide_intra_op_threads(
    asked: int | str, *, replicas: int, small_steps: bool, cores: int, processes: int = 1
) -> tuple[int, str]:
    """How many CPU threads share one operation, and why.

    Args:
        asked: A number, or "auto".
        replicas: That compute on this CPU at the same time.
        small_steps: Whether a step is too small to be shared among threads.
        cores: That this process may use.
        processes: Of this training that use the same cores, with so many replicas each.
    """
    if asked != "auto":
        return int(asked), "as requested"
    replicas *= processes
    if replicas > 1:
        # LeNet at 128 on two replicas and two cores: 15,900 samples/s so, 14,100 with two threads.
        return max(1, cores // replicas), f"auto: {cores} cores for {replicas} replicas"
    if small_steps and cores > 1:
        return 1, "auto: so small a step is slower when it is shared"
    return cores, "auto: all cores"


def configure_threads(
    asked: int | str, *, on_gpu: bool, replicas: int, small_steps: bool, processes: int = 1
) -> tuple[int | None, str]:
    """Sets the threads of an operation; returns how many there are, and why.

    Raises:
        RequestError: A number was asked for after TensorFlow's threads were started.
    """
    import tensorflow as tf

    cores = hardware.usable_cores()
    name = "TF_NUM_INTRAOP_THREADS"
    if asked == "auto":
        if on_gpu:
            return None, ""
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name]) or cores, f"{name} is set"
    threads, reason = decide_intra_op_threads(
        asked, replicas=replicas, small_steps=small_steps, cores=cores, processes=processes
    )
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:
        present = tf.config.threading.get_intra_op_parallelism_threads() or cores
        if asked != "auto" and present != threads:
            raise RequestError(
                f"intra_op_threads {threads}: TensorFlow runs in this process already, with "
                f"{present}; ask for them before anything else runs"
            ) from None
        return present, "TensorFlow's devices existed already"
    return threads, reason
