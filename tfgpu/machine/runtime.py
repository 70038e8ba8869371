"""What a run stands on: devices, strategy, precision, seed.

`startup` comes before it: TensorFlow's environment variables and its import. Then `start`, before
anything has touched a device. Every choice it makes is kept with its reason; `describe` shows them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tfgpu.cli.config import PRECISIONS, STRATEGIES
from tfgpu.errors import RequestError
from tfgpu.machine import hardware
from tfgpu.machine.cluster import read_cluster

if TYPE_CHECKING:
    import tensorflow as tf


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
        raise _absent(requested, [f"CPU:{i}" for i in range(max(1, virtual_devices))])
    if cluster and virtual_devices and not on_gpu:
        raise RequestError(
            "virtual_devices does not go with multi_worker_mirrored on CPUs: TensorFlow gives a "
            "worker without GPUs one replica; start more workers"
        )
    if cluster and requested and requested != ("CPU:0",) and not on_gpu:
        raise RequestError(
            f"devices {devices!r}: a worker of multi_worker_mirrored without GPUs has CPU:0 alone"
        )
    _configure_devices(on_gpu=on_gpu, virtual_devices=virtual_devices)
    threads, threads_reason = _configure_threads(
        intra_op_threads,
        on_gpu=on_gpu,
        # Splitting the CPU is asked for in order to use the parts.
        replicas=1 if strategy == "one_device" else len(requested) or virtual_devices or 1,
        small_steps=small_steps,
    )
    if cluster and requested and on_gpu:
        _show_only(requested)

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
        made, cross_device = tf.distribute.MultiWorkerMirroredStrategy(), ""
        # Its own devices: with several workers TensorFlow lists everybody's.
        names = tuple(name.rpartition("device:")[2] for name in made.extended.worker_devices)
    else:
        names = choose_devices(
            requested=requested,
            present=hardware.logical_devices("GPU", "CPU"),
            strategy=strategy,
        )
        made, cross_device = _strategy(strategy, names)
    jit, jit_reason = decide_jit(jit_compile, on_gpu=on_gpu)
    descriptions = tuple(hardware.description(name) for name in names)
    capability = hardware.compute_capability(names[0]) if on_gpu else None
    replicas = made.num_replicas_in_sync
    choices = (
        Choice("devices", ", ".join(names), _devices_reason(names, requested, virtual_devices)),
        Choice("hardware", "; ".join(dict.fromkeys(descriptions)), ""),
        Choice(
            "strategy",
            f"{strategy}, {replicas} replica{'s' if replicas > 1 else ''}",
            cross_device
            or (f"this is {cluster.name} of {cluster.num_workers} in all" if cluster else ""),
        ),
        Choice("precision", precision, precision_reason(precision, capability=capability)),
        Choice("XLA", "on" if jit else "off", jit_reason),
        *(
            []
            if threads is None
            else [Choice("threads", f"{threads} an operation", threads_reason)]
        ),
        Choice("seed", str(seed), "deterministic kernels, slower" if deterministic else ""),
    )
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
        choices=choices,
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
        "precision": Choice(
            "precision", precision, precision_reason(precision, capability=capability)
        ),
        "XLA": Choice("XLA", "on" if jit else "off", jit_reason),
        "seed": Choice("seed", str(seed), "deterministic kernels, slower")
        if runtime.deterministic
        else Choice("seed", str(seed), ""),
    }
    return dataclasses.replace(
        runtime,
        precision=precision,
        jit_compile=jit,
        jit_reason=jit_reason,
        seed=seed,
        choices=tuple(changed.get(choice.item, choice) for choice in runtime.choices),
    )


def parse_devices(devices: str) -> tuple[str, ...]:
    """Reads the value of `--devices`; "all" gives an empty tuple.

    Raises:
        RequestError: The text is not a list of devices of one kind, each once.
    """
    if devices.strip().lower() == "all":
        return ()
    names = tuple(part.strip().upper() for part in devices.split(","))
    for name in names:
        if not re.fullmatch(r"(CPU|GPU):\d+", name):
            raise RequestError(
                f"devices {devices!r}: {name!r} is not a device; write 'all' or a list such as "
                "'GPU:0,GPU:1'"
            )
    names = tuple(f"{name[:3]}:{int(name[4:])}" for name in names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"devices {devices!r} holds {', '.join(twice)} more than once")
    if len({name[:3] for name in names}) > 1:
        raise RequestError(
            f"devices {devices!r} mixes CPU and GPU: replicas have to be of one kind, "
            "or every step waits for the slower"
        )
    return names


def choose_devices(
    *, requested: tuple[str, ...], present: Sequence[str], strategy: str
) -> tuple[str, ...]:
    """Picks the devices of this process.

    Args:
        requested: What `parse_devices` gave.
        present: The logical devices there are, GPUs before CPUs.
        strategy: The value of `--strategy`.

    Raises:
        RequestError: A device is absent, or `one_device` is to run on several.
    """
    if any(name not in present for name in requested):
        raise _absent(requested, present)
    if strategy == "one_device":
        if len(requested) > 1:
            raise RequestError(
                f"strategy 'one_device' with devices {','.join(requested)!r}: name one device, "
                "or use --strategy=mirrored"
            )
        return requested or (present[0],)
    kind = present[0][:3]
    return requested or tuple(name for name in present if name.startswith(kind))


def _absent(requested: Sequence[str], present: Sequence[str]) -> RequestError:
    absent = [name for name in requested if name not in present]
    message = f"no device {', '.join(absent)} here; there is {', '.join(present)}"
    if absent[0].startswith("CPU"):
        message += " (--virtual_devices splits the CPU into more)"
    return RequestError(message)


def decide_jit(jit_compile: str | bool, *, on_gpu: bool) -> tuple[bool, str]:
    """Whether XLA compiles the training step, and why.

    Raises:
        RequestError: `jit_compile` is neither "auto" nor a truth value.
    """
    asked = {"true": True, "false": False}.get(str(jit_compile).lower(), jit_compile)
    if asked == "auto":
        if on_gpu:
            return True, "auto: on for GPUs, where it fuses the many small kernels of a step"
        return False, "auto: off on CPUs, where LeNet ran at 3,500 samples/s with it, 6,500 without"
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


def _configure_devices(*, on_gpu: bool, virtual_devices: int) -> None:
    """Sets visibility, memory growth and virtual devices; before TensorFlow's devices exist."""
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if gpus and not on_gpu:
        # A run on the CPU should not hold a context and its hundreds of MB on each GPU. When the
        # devices exist already it is too late, and harmless.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    if on_gpu and not virtual_devices:
        for gpu in gpus:
            # RuntimeError: the devices exist; ValueError: they are split.
            with contextlib.suppress(RuntimeError, ValueError):
                tf.config.experimental.set_memory_growth(gpu, True)
    if not virtual_devices:
        return
    device = gpus[0] if on_gpu else tf.config.list_physical_devices("CPU")[0]
    existing = tf.config.get_logical_device_configuration(device)
    if existing is not None and len(existing) == virtual_devices:
        return
    limit = None
    if on_gpu:
        free = hardware.gpu_free_bytes(tf.config.list_physical_devices("GPU").index(device))
        if free is None:
            raise RequestError(
                "virtual_devices needs the free memory of the first GPU, which nvidia-smi does not "
                "tell here; use --virtual_devices=0"
            )
        # A tenth is left to the CUDA context and to cuDNN, which take theirs past the limit.
        limit = int(free * 0.9 / virtual_devices) >> 20
    configuration = tf.config.LogicalDeviceConfiguration(memory_limit=limit)
    try:
        if on_gpu:
            tf.config.set_visible_devices(device, "GPU")
        tf.config.set_logical_device_configuration(device, [configuration] * virtual_devices)
    except RuntimeError:
        raise RequestError(
            f"virtual_devices {virtual_devices}: TensorFlow's devices exist already in this "
            "process and cannot be split any more; ask for them before anything else runs"
        ) from None


def decide_intra_op_threads(
    asked: int | str, *, replicas: int, small_steps: bool, cores: int
) -> tuple[int, str]:
    """How many CPU threads share one operation, and why.

    Args:
        asked: A number, or "auto".
        replicas: That compute on this CPU at the same time.
        small_steps: Whether a step is too small to be shared among threads.
        cores: That this process may use.
    """
    if asked != "auto":
        return int(asked), "as requested"
    if replicas > 1:
        # LeNet at 128 on two replicas and two cores: 15,900 samples/s so, 14,100 with two threads.
        return max(1, cores // replicas), f"auto: {cores} cores for {replicas} replicas"
    if small_steps and cores > 1:
        return 1, "auto: so small a step is slower when it is shared"
    return cores, "auto: all cores"


def _configure_threads(
    asked: int | str, *, on_gpu: bool, replicas: int, small_steps: bool
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
        asked, replicas=replicas, small_steps=small_steps, cores=cores
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


def _show_only(requested: Sequence[str]) -> None:
    """Hides the GPUs that were not asked for: MultiWorkerMirroredStrategy takes all it sees."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    names = [f"GPU:{i}" for i in range(len(gpus))]
    if any(name not in names for name in requested):
        raise _absent(requested, names)
    tf.config.set_visible_devices([gpus[names.index(name)] for name in requested], "GPU")


def _strategy(name: str, devices: Sequence[str]) -> tuple[tf.distribute.Strategy, str]:
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
        return (
            tf.distribute.MirroredStrategy(
                list(devices), cross_device_ops=tf.distribute.ReductionToOneDevice()
            ),
            "reduced on one device: NCCL does not work between parts of one GPU",
        )
    return tf.distribute.MirroredStrategy(list(devices)), "NCCL all-reduce"


def _devices_reason(names: Sequence[str], requested: Sequence[str], virtual_devices: int) -> str:
    gpu = names[0].startswith("GPU")
    if virtual_devices:
        split = "the first GPU" if gpu else "the CPU"
        return f"{split} split into {virtual_devices} by --virtual_devices"
    if requested:
        return "as requested"
    if gpu:
        return "all GPUs there are" if len(names) > 1 else "the one GPU there is"
    if Path("/proc/driver/nvidia/version").exists():
        return (
            "an NVIDIA driver is here, but TensorFlow finds no GPU it can use: "
            "pip install 'tfgpu[cuda]', or look at CUDA_VISIBLE_DEVICES"
        )
    return "TensorFlow finds no GPU"


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
