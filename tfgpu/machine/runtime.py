"""What a run stands on: devices, strategy, precision, seed.

`startup` comes before it: TensorFlow's environment variables and its import. Then `start`, before
anything has touched a device. Every choice it makes is kept with its reason; `describe` shows them.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tfgpu.cluster.tf_config import read_cluster
from tfgpu.errors import RequestError
from tfgpu.machine import hardware
from tfgpu.machine.devices import (
    absent,
    choose_devices,
    configure_devices,
    devices_reason,
    parse_devices,
    show_only,
)
from tfgpu.machine.strategy import STRATEGIES, make_strategy
from tfgpu.machine.threads import configure_threads

if TYPE_CHECKING:
    import tensorflow as tf

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


class Choice(NamedTuple):
    """One line of what was chosen.

    Attributes:
        item: What was to be chosen, such as "precision".
        value: What it is now.
        reason: Why; empty when there is nothing to say.
    """

    item: str
    value: str
    reason: str


@dataclass(frozen=True)
class Runtime:
    """What `start` chose.

    Attributes:
        strategy: The `tf.distribute.Strategy` whose scope models are built in.
        strategy_name: The value of `--strategy`.
        devices: Names of this machine's devices in the strategy, such as "GPU:0".
        device_descriptions: One text for each of `devices`, such as a GPU's name.
        num_replicas: Replicas over all workers.
        num_workers: Processes that train together; 1 but for `multi_worker_mirrored`.
        is_chief: True when this process writes the run directory.
        precision: Name of the Keras dtype policy.
        jit_compile: Whether the training step is compiled by XLA.
        jit_reason: Why.
        seed: Seed of Python, NumPy and TensorFlow.
        deterministic: Whether TensorFlow is held to deterministic kernels.
        intra_op_threads: Threads that share one operation; None on GPUs, where it hardly matters.
        choices: The choices above, each with its reason, in the order of display.
    """

    strategy: tf.distribute.Strategy
    strategy_name: str
    devices: tuple[str, ...]
    device_descriptions: tuple[str, ...]
    num_replicas: int
    num_workers: int
    is_chief: bool
    precision: str
    jit_compile: bool
    jit_reason: str
    seed: int
    deterministic: bool
    intra_op_threads: int | None
    choices: tuple[Choice, ...]

    @property
    def compile_option(self) -> str | bool:
        """`jit_compile` for `model.compile`: "auto" where nobody asked for XLA.

        A model that XLA cannot compile is an error where somebody has.
        """
        automatic = self.jit_compile and self.jit_reason.startswith("auto")
        return "auto" if automatic else self.jit_compile

    @property
    def on_gpu(self) -> bool:
        """Whether the replicas run on GPUs."""
        return self.devices[0].startswith("GPU")

    def check_batch(self, batch_size: int) -> None:
        """Checks that a global batch divides among the replicas.

        Raises:
            RequestError: It does not; names the next one that does.
        """
        replicas = self.num_replicas
        if batch_size % replicas:
            raise RequestError(
                f"--batch_size={batch_size} does not divide among {replicas} replicas; use "
                f"{-(-batch_size // replicas) * replicas}"
            )


def start(
    *,
    strategy: str = "mirrored",
    devices: str = "all",
    virtual_devices: int = 0,
    precision: str = "float32",
    jit_compile: str | bool = "auto",
    seed: int = 0,
    deterministic: bool = False,
    intra_op_threads: int | str = "auto",
    small_steps: bool = False,
    processes: int = 1,
) -> Runtime:
    """Finds the devices and sets strategy, precision and seed.

    It has to come before anything that touches a device: TensorFlow fixes its devices at the
    first operation.

    Args:
        strategy: One of `STRATEGIES`.
        devices: "all" (every GPU, else the CPU) or names separated by commas: "GPU:0,GPU:1".
        virtual_devices: Logical devices to split the CPU, or the first GPU, into; 0 for none.
        precision: One of `PRECISIONS`.
        jit_compile: Whether XLA compiles the training step; "auto" is on for GPUs alone.
        seed: Seed of Python, NumPy and TensorFlow, 0 to 2**32 - 1.
        deterministic: Whether to hold TensorFlow to deterministic kernels.
        intra_op_threads: CPU threads that share one operation, or "auto".
        small_steps: Whether a step is too small to be shared among threads; for "auto".
        processes: Of this training that compute on the same cores; for "auto".

    Raises:
        RequestError: A name is unknown, a device absent, or the combination impossible.
    """
    if strategy not in STRATEGIES:
        raise RequestError(f"strategy {strategy!r} is none of {', '.join(STRATEGIES)}")
    if precision not in PRECISIONS:
        raise RequestError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    if not 0 <= seed < 2**32:
        raise RequestError(f"seed {seed} is outside 0 to {2**32 - 1}")
    if virtual_devices < 0:
        raise RequestError(f"virtual_devices {virtual_devices} is negative: use 0 for none")
    requested = parse_devices(devices)
    wants_cpu = bool(requested) and requested[0].startswith("CPU")
    cluster = read_cluster(os.environ) if strategy == "multi_worker_mirrored" else None

    import keras
    import tensorflow as tf

    # Visible and not physical ones: the process may have hidden them, as the tests do.
    on_gpu = bool(tf.config.get_visible_devices("GPU")) and not wants_cpu
    if requested and not on_gpu and not wants_cpu:
        raise absent(requested, [f"CPU:{i}" for i in range(max(1, virtual_devices))])
    if cluster and virtual_devices and not on_gpu:
        raise RequestError(
            "virtual_devices does not go with multi_worker_mirrored on CPUs: TensorFlow gives a "
            "worker without GPUs one replica; start more workers"
        )
    if cluster and requested and requested != ("CPU:0",) and not on_gpu:
        raise RequestError(
            f"devices {devices!r}: a worker of multi_worker_mirrored without GPUs has CPU:0 alone"
        )
    configure_devices(on_gpu=on_gpu, virtual_devices=virtual_devices)
    threads, threads_reason = configure_threads(
        intra_op_threads,
        on_gpu=on_gpu,
        # Splitting the CPU is asked for in order to use the parts.
        replicas=1 if strategy == "one_device" else len(requested) or virtual_devices or 1,
        small_steps=small_steps,
        processes=processes,
    )
    if cluster and requested and on_gpu:
        show_only(requested)

    # ~/.keras/keras.json may say otherwise, and the models here are written for these.
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    if deterministic:
        # Keras then turns jit_compile="auto" off for good; the step of this project is compiled
        # or not as decided below.
        tf.config.experimental.enable_op_determinism()

    if cluster:
        # Before the devices are listed: collectives between workers are set up at start-up.
        from tfgpu.machine.collectives import strategy_of_workers

        made = strategy_of_workers(cluster)
        strategy_reason = f"this is {cluster.name} of {cluster.num_workers} in all"
        # Its own devices: with several workers TensorFlow lists everybody's.
        names = tuple(name.rpartition("device:")[2] for name in made.extended.worker_devices)
    else:
        present = hardware.logical_devices("GPU", "CPU")
        names = choose_devices(requested=requested, present=present, strategy=strategy)
        made, strategy_reason = make_strategy(strategy, names)
    jit, jit_reason = decide_jit(jit_compile, on_gpu=on_gpu)
    descriptions = tuple(hardware.description(name) for name in names)
    capability = hardware.compute_capability(names[0]) if on_gpu else None
    replicas = made.num_replicas_in_sync
    count = f"{replicas} replica{'s' if replicas > 1 else ''}"
    choices = [
        Choice("devices", ", ".join(names), devices_reason(names, requested, virtual_devices)),
        Choice("hardware", "; ".join(dict.fromkeys(descriptions)), ""),
        Choice("strategy", f"{strategy}, {count}", strategy_reason),
        Choice("precision", precision, precision_reason(precision, capability=capability)),
        Choice("XLA", "on" if jit else "off", jit_reason),
        Choice("seed", str(seed), "deterministic kernels, slower" if deterministic else ""),
    ]
    if threads is not None:
        choices.insert(-1, Choice("threads", f"{threads} an operation", threads_reason))
    return Runtime(
        strategy=made,
        strategy_name=strategy,
        devices=names,
        device_descriptions=descriptions,
        num_replicas=replicas,
        num_workers=cluster.num_workers if cluster else 1,
        is_chief=cluster.is_chief if cluster else True,
        precision=precision,
        jit_compile=jit,
        jit_reason=jit_reason,
        seed=seed,
        deterministic=deterministic,
        intra_op_threads=threads,
        choices=tuple(choices),
    )


def again(runtime: Runtime, *, precision: str, jit_compile: str | bool, seed: int) -> Runtime:
    """Makes the process ready for another run on the same devices, as if it were the first.

    Args:
        runtime: What `start` returned.
        precision: One of `PRECISIONS`.
        jit_compile: As for `start`.
        seed: As for `start`.

    Returns:
        The same devices with these settings.
    """
    import keras

    # Names of layers and variables are numbered through a process, and checkpoints go by them.
    keras.backend.clear_session()
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)
    jit, jit_reason = decide_jit(jit_compile, on_gpu=runtime.on_gpu)
    capability = hardware.compute_capability(runtime.devices[0]) if runtime.on_gpu else None
    changed = {
        "precision": (precision, precision_reason(precision, capability=capability)),
        "XLA": ("on" if jit else "off", jit_reason),
        "seed": (str(seed), "deterministic kernels, slower" if runtime.deterministic else ""),
    }
    choices = [Choice(c.item, *changed.get(c.item, (c.value, c.reason))) for c in runtime.choices]
    return dataclasses.replace(
        runtime,
        precision=precision,
        jit_compile=jit,
        jit_reason=jit_reason,
        seed=seed,
        choices=tuple(choices),
    )


def decide_jit(jit_compile: str | bool, *, on_gpu: bool) -> tuple[bool, str]:
    """Whether XLA compiles the training step, and why.

    Raises:
        RequestError: `jit_compile` is neither "auto" nor a truth value.
    """
    asked = {"true": True, "false": False}.get(str(jit_compile).lower(), jit_compile)
    if asked == "auto":
        if on_gpu:
            return True, "auto: on for GPUs, where it fuses the many small kernels of a step"
        return False, "auto: off on CPUs, where LeNet was slower with it"
    if not isinstance(asked, bool):
        raise RequestError(f"jit_compile {jit_compile!r} is none of auto, true, false")
    return asked, "as requested"


def precision_reason(precision: str, *, capability: tuple[int, int] | None) -> str:
    """What there is to say about a precision on the hardware at hand.

    Args:
        precision: One of `PRECISIONS`.
        capability: CUDA compute capability of the first GPU, such as (8, 0); None on CPUs.
    """
    if capability is None:
        if precision == "mixed_float16":
            return "CPUs compute float16 through float32, slower: for trying out, not for speed"
        if precision == "mixed_bfloat16":
            return "fast only on CPUs with AVX512_BF16 or AMX"
        return ""
    shown = ".".join(map(str, capability))
    if precision == "mixed_float16" and capability < (7, 0):
        return f"compute capability {shown} has no tensor cores (7.0 and up): little to gain"
    if precision == "mixed_bfloat16" and capability < (8, 0):
        return f"compute capability {shown} has no bfloat16 units (8.0 and up): slow"
    if precision == "float32" and capability >= (8, 0):
        return "matrix products and convolutions use TF32 on this GPU, TensorFlow's default"
    return ""


def describe(
    runtime: Runtime,
    *,
    global_batch: int,
    steps_per_execution: int,
    input_mode: str,
    batch_reason: str = "",
    steps_per_execution_reason: str = "",
    input_reason: str = "",
) -> str:
    """The block that says what a run uses and why.

    Args:
        runtime: What `start` gave.
        global_batch: Examples in a step, over all replicas.
        steps_per_execution: Steps the device takes between two meetings with the host.
        input_mode: "resident" or "streaming".
        batch_reason: Why this batch size.
        steps_per_execution_reason: Why so many.
        input_reason: Why this mode.

    Returns:
        Lines of item, value and reason, without a newline at the end.
    """
    choices = [
        *runtime.choices,
        Choice(
            "batch",
            f"{global_batch} = {runtime.num_replicas} x {global_batch // runtime.num_replicas}",
            batch_reason,
        ),
        Choice("steps/execution", str(steps_per_execution), steps_per_execution_reason),
        Choice("input", input_mode, input_reason),
    ]
    left = max(len(choice.item) for choice in choices)
    return "\n".join(
        f"{choice.item:<{left}}  {choice.value}" + (f"  ({choice.reason})" if choice.reason else "")
        for choice in choices
    )
