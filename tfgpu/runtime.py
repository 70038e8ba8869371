"""What a run stands on: environment, TensorFlow's import, devices, strategy, precision, seed.

The order matters, and each function says what has to come before it:

1. `prepare_environment`: environment variables that TensorFlow reads once, at its import.
2. `import_tensorflow`: the import itself, without its chatter.
3. `start`: devices, strategy, precision and seed, before anything has touched a device.

Every choice that `start` makes is kept with its reason; `describe` shows them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import faulthandler
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from tfgpu.config import PRECISIONS, STRATEGIES
from tfgpu.errors import RequestError, WorkError

if TYPE_CHECKING:
    import tensorflow as tf

# The environment variables that change what a run computes or how fast. A list of ours and not
# "TF_*": other tools use that prefix too, Terraform for secrets (TF_VAR_...).
_RECORDED_VARIABLES = re.compile(
    r"(TF_(CONFIG|ENABLE_ONEDNN_OPTS|CPP_|XLA_|FORCE_|GPU_|CUDNN_|CUDA|DETERMINISTIC|DISABLE_|"
    r"NUM_|USE_|AUTO_|LEGACY|OVERRIDE)\w*"
    r"|XLA_FLAGS|KERAS_BACKEND|CUDA_\w+|NVIDIA_TF32_OVERRIDE|NVIDIA_VISIBLE_DEVICES|NCCL_\w+"
    r"|ONEDNN_\w+|OMP_NUM_THREADS|TFDS_DATA_DIR)"
)


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
    def on_gpu(self) -> bool:
        """Whether the replicas run on GPUs."""
        return self.devices[0].startswith("GPU")


def prepare_environment(*, verbosity: int = 0) -> None:
    """Sets the environment variables that TensorFlow and Keras read at their import.

    What the user has set already stays as it is.

    Args:
        verbosity: 0 keeps TensorFlow's C++ log to fatal errors, 1 leaves it alone.

    Raises:
        RequestError: KERAS_BACKEND asks for something else than TensorFlow.
    """
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise RequestError(
            f"KERAS_BACKEND is {backend!r}, but tfgpu trains with TensorFlow: "
            "unset it or set it to 'tensorflow'"
        )
    wanted = {
        # Also set when absent: ~/.keras/keras.json may name another backend.
        "KERAS_BACKEND": "tensorflow",
        # Off by default on AMD processors; LeNet trained there at 2,600 samples/s without and
        # at 8,300 to 10,000 with it, on two cores.
        "TF_ENABLE_ONEDNN_OPTS": "1",
        # TensorFlow otherwise takes nearly all memory of every GPU it sees, used or not.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        # The numbers of nvidia-smi; CUDA's own order puts the fastest device first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    if not verbosity:
        wanted |= {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "ERROR"}
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(missing)
    if missing and "tensorflow" in sys.modules:
        warnings.warn(
            f"TensorFlow was imported before tfgpu set {', '.join(sorted(missing))}: "
            "no effect in this process",
            RuntimeWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def stderr_aside() -> Iterator[Any]:
    """Sends file descriptor 2 to a temporary file; yields that file.

    Python's `sys.stderr` alone would not do: the lines come from C++, before its logging starts
    and so whatever TF_CPP_MIN_LOG_LEVEL says.
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # Closed, as under some service managers: nothing to turn aside.
        with tempfile.TemporaryFile() as nothing:
            yield nothing
        return
    armed = False
    try:
        with tempfile.TemporaryFile() as aside:
            os.dup2(aside.fileno(), 2)
            try:
                if not faulthandler.is_enabled():
                    # An import that aborts (a processor without AVX) must not die silently.
                    faulthandler.enable(file=saved)
                    armed = True
                yield aside
            finally:
                if armed:
                    faulthandler.disable()
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    sys.stderr.flush()
                os.dup2(saved, 2)
    finally:
        os.close(saved)


def import_tensorflow(*, verbosity: int = 0) -> ModuleType:
    """Imports TensorFlow and Keras without their start-up lines.

    `prepare_environment` comes first.

    Args:
        verbosity: 0 drops what the libraries say, 1 leaves it alone.

    Returns:
        The module `tensorflow`.

    Raises:
        WorkError: The import failed; the message holds the end of what was said meanwhile.
    """
    if verbosity:
        try:
            importlib.import_module("keras")
            return importlib.import_module("tensorflow")
        except Exception as error:
            raise _import_failure(error, "") from error
    with stderr_aside() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module("tensorflow")
            importlib.import_module("keras")
            # Loads the CUDA libraries, which speak before C++ logging starts too.
            module.config.list_physical_devices()
        except Exception as error:
            sys.stderr.flush()
            said.seek(0)
            raise _import_failure(error, said.read().decode(errors="replace")) from error
    # Warnings such as "Collective ops is not configured at program startup" are TensorFlow's to
    # itself; what the user has to know comes from `start`.
    module.get_logger().setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
    return module


def _import_failure(error: Exception, said: str) -> WorkError:
    """The one line that says why TensorFlow could not be imported."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    # The last five lines: the cause stands at the end, and the message is one line.
    tail = f" (it said: {' | '.join(lines[-5:])})" if lines else ""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return WorkError(
        f"TensorFlow cannot be imported: {what}{tail}; reinstall it with "
        "`pip install --force-reinstall tensorflow` or see the whole with --verbosity=1"
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
            requested=requested, present=_logical("GPU") + _logical("CPU"), strategy=strategy
        )
        made, cross_device = _strategy(strategy, names)
    jit, jit_reason = decide_jit(jit_compile, on_gpu=on_gpu)
    descriptions = tuple(_description(name) for name in names)
    capability = _capability(names[0]) if on_gpu else None
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
    capability = _capability(runtime.devices[0]) if runtime.on_gpu else None
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
        free = _gpu_free_bytes(tf.config.list_physical_devices("GPU").index(device))
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

    cores = usable_cores()
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


def _logical(kind: str) -> tuple[str, ...]:
    """Names of the logical devices of a kind, such as ("GPU:0", "GPU:1")."""
    import tensorflow as tf

    return tuple(
        # Under multi_worker_mirrored the names begin with the job and task.
        device.name.rpartition("device:")[2]
        for device in tf.config.list_logical_devices(kind)
    )


def _strategy(name: str, devices: Sequence[str]) -> tuple[tf.distribute.Strategy, str]:
    """Makes a strategy of one process; also returns what there is to say about its reduction."""
    import tensorflow as tf

    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(devices[0]), ""
    if len(devices) == 1:
        return tf.distribute.MirroredStrategy(list(devices)), ""
    if devices[0].startswith("CPU"):
        return tf.distribute.MirroredStrategy(list(devices)), "ring all-reduce between CPUs"
    if len(tf.config.list_physical_devices("GPU")) < len(_logical("GPU")):
        # NCCL refuses two ranks on one physical GPU.
        return (
            tf.distribute.MirroredStrategy(
                list(devices), cross_device_ops=tf.distribute.ReductionToOneDevice()
            ),
            "reduced on one device: NCCL does not work between parts of one GPU",
        )
    return tf.distribute.MirroredStrategy(list(devices)), "NCCL all-reduce"


class Cluster(NamedTuple):
    """What TF_CONFIG says.

    Attributes:
        name: Of this process in it, such as "worker 0".
        num_workers: Of all processes.
        is_chief: Whether this process writes the run directory.
        address: Of this process, "host:port".
        addresses: Of all.
    """

    name: str
    num_workers: int
    is_chief: bool
    address: str
    addresses: tuple[str, ...]


def read_cluster(variables: Mapping[str, str]) -> Cluster:
    """Reads and checks TF_CONFIG.

    Args:
        variables: The environment.

    Raises:
        RequestError: It is absent or does not describe this worker.
    """
    example = (
        '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
        '"task": {"type": "worker", "index": 0}}'
    )

    def wrong(what: str) -> RequestError:
        return RequestError(
            f"multi_worker_mirrored: TF_CONFIG {what}; each worker needs one such as {example}, "
            "with its own index"
        )

    text = variables.get("TF_CONFIG", "")
    if not text.strip():
        raise wrong("is not set")
    try:
        config = json.loads(text)
    except ValueError as error:
        raise wrong(f"is not JSON ({error})") from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    task = config.get("task") if isinstance(config, dict) else None
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise wrong("lacks 'cluster' or 'task'")
    hosts = {kind: cluster.get(kind, []) for kind in ("chief", "worker")}
    for job, addresses in hosts.items():
        if not isinstance(addresses, list) or not all(
            isinstance(address, str) and re.fullmatch(r".+:\d+", address) for address in addresses
        ):
            raise wrong(f"has a {job!r} that is not a list of 'host:port'")
    everyone = hosts["chief"] + hosts["worker"]
    if not everyone:
        raise wrong("names no worker")
    if len(set(everyone)) < len(everyone):
        raise wrong("names an address twice")
    kind, index = task.get("type"), task.get("index")
    if kind not in hosts:
        raise wrong(f"has task type {kind!r}, neither 'worker' nor 'chief'")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(hosts[kind]):
        raise wrong(f"has task index {index!r}, but {len(hosts[kind])} of type {kind!r}")
    return Cluster(
        name=f"{kind} {index}",
        num_workers=len(everyone),
        is_chief=kind == "chief" or (not hosts["chief"] and index == 0),
        address=hosts[kind][index],
        addresses=tuple(everyone),
    )


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


def _physical_gpu(index: int) -> int | None:
    """Number of the visible physical GPU that holds logical GPU `index`."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    seen = 0
    for gpu in tf.config.get_visible_devices("GPU"):
        seen += len(tf.config.get_logical_device_configuration(gpu) or [None])
        if index < seen:
            return gpus.index(gpu)
    return None


def _details(device: str) -> dict[str, Any]:
    """TensorFlow's details of the GPU behind a logical one: name and compute capability."""
    import tensorflow as tf

    if not device.startswith("GPU"):
        return {}
    number = _physical_gpu(int(device[4:]))
    if number is None:
        return {}
    gpu = tf.config.list_physical_devices("GPU")[number]
    return dict(tf.config.experimental.get_device_details(gpu))


def _capability(device: str) -> tuple[int, int] | None:
    capability = _details(device).get("compute_capability")
    return (int(capability[0]), int(capability[1])) if capability else None


def _description(device: str) -> str:
    if device.startswith("CPU"):
        count = usable_cores()
        return f"{cpu_model()}, {count} core{'s' if count > 1 else ''}"
    details = _details(device)
    name = details.get("device_name", "GPU")
    capability = _capability(device)
    return f"{name}, compute capability {'.'.join(map(str, capability))}" if capability else name


def usable_cores() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if match:
            return " ".join(match[1].split())
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class _Gpu:
    """A row of nvidia-smi; memory in bytes."""

    index: int
    uuid: str
    total: int
    free: int
    driver: str


def _nvidia_smi() -> list[_Gpu]:
    """The GPUs nvidia-smi knows, whatever CUDA_VISIBLE_DEVICES says; empty when it is absent."""
    command = [
        "nvidia-smi",
        "--query-gpu=index,uuid,memory.total,memory.free,driver_version",
        "--format=csv,noheader,nounits",
    ]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_nvidia_smi(out.stdout)


def parse_nvidia_smi(text: str) -> list[_Gpu]:
    """Reads rows of index, uuid, total MiB, free MiB, driver; rows without numbers are left out."""
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        with contextlib.suppress(ValueError):
            index, uuid, total, free, driver = cells
            gpus.append(_Gpu(int(index), uuid, int(total) << 20, int(free) << 20, driver))
    return gpus


class _Numbered(Protocol):
    """A GPU that can be named in CUDA_VISIBLE_DEVICES."""

    @property
    def index(self) -> int: ...

    @property
    def uuid(self) -> str: ...


_G = TypeVar("_G", bound=_Numbered)


def visible_gpus(gpus: Sequence[_G], visible: str | None) -> list[_G]:
    """The GPUs CUDA shows a process, in its order.

    Args:
        gpus: All GPUs, in PCI order.
        visible: The value of CUDA_VISIBLE_DEVICES; None when it is not set.
    """
    if visible is None:
        return list(gpus)
    shown: list[_G] = []
    for part in (part.strip() for part in visible.split(",")):
        match = [
            gpu
            for gpu in gpus
            if part == str(gpu.index) or (part.startswith("GPU-") and gpu.uuid.startswith(part))
        ]
        if len(match) != 1:  # CUDA shows what stands before the first invalid entry.
            break
        shown += match
    return shown


def _gpu_free_bytes(number: int) -> int | None:
    """Free memory of visible physical GPU `number` in bytes; None when nobody tells."""
    gpus = visible_gpus(_nvidia_smi(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    return gpus[number].free if number < len(gpus) else None


def free_memory(device: str) -> int:
    """Memory that arrays on a device could still take, in bytes.

    Virtual CPUs share one memory, so each has its part of it.

    Args:
        device: A logical device of `Runtime.devices`, such as "CPU:0".
    """
    if device.startswith("CPU"):
        return host_free_memory() // max(1, len(_logical("CPU")))
    import tensorflow as tf

    number = _physical_gpu(int(device[4:]))
    used = tf.config.experimental.get_memory_info(device)["current"]
    if number is not None:
        gpu = tf.config.list_physical_devices("GPU")[number]
        split = tf.config.get_logical_device_configuration(gpu) or []
        if split and split[0].memory_limit is not None:
            return max(0, (split[0].memory_limit << 20) - used)
        free = _gpu_free_bytes(number)
        if free is not None:
            return free
    # Containers without nvidia-smi: the limit TensorFlow set itself at start-up.
    from tensorflow.python.client import device_lib

    for found in device_lib.list_local_devices():
        if found.name == f"/device:{device}":
            return max(0, found.memory_limit - used)
    return 0


def host_free_memory(*, root: Path = Path("/")) -> int:
    """Memory the host can still give this process, in bytes: cgroup limits count.

    Args:
        root: Where /proc and /sys are; for tests.
    """
    free = None
    with contextlib.suppress(OSError):
        match = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.M)
        free = int(match[1]) << 10 if match else None
    if free is None:
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):  # Windows, and macOS for the first name.
            free = 4 << 30  # Half of the least that a machine to train on has.
    return max(0, min([free, *_cgroup_rooms(root)]))


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """What each memory limit over this process leaves, in bytes: cgroup v2 and v1."""
    groups = {"": "/", "memory": "/"}
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                groups[controller] = path
    files = (
        ("sys/fs/cgroup", groups[""], "memory.max", "memory.current", "inactive_file"),
        (
            "sys/fs/cgroup/memory",
            groups["memory"],
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    )
    for base, group, limit_name, used_name, reclaimable in files:
        folder = root / base
        # A limit may stand at any level; inside a container the path may not exist at all.
        parts = Path(group.lstrip("/")).parts
        for depth in range(len(parts) + 1):
            level = folder.joinpath(*parts[:depth])
            with contextlib.suppress(OSError, ValueError):
                limit = int((level / limit_name).read_text())  # "max" is a ValueError: no limit.
                used = int((level / used_name).read_text())
                cache = 0
                with contextlib.suppress(OSError):
                    # The page cache counts as used, and gives way.
                    stat = (level / "memory.stat").read_text()
                    match = re.search(rf"^{reclaimable} (\d+)$", stat, re.M)
                    cache = int(match[1]) if match else 0
                yield max(0, limit - used + cache)


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


def environment(runtime: Runtime, *, dataset: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What environment.json holds: enough to say what a figure was measured on.

    Nothing here fails: what cannot be found out is None.

    Args:
        runtime: What `start` gave.
        dataset: Name, version, fingerprint, licence and citation of the data set.
    """
    import tensorflow as tf

    import tfgpu

    build = tf.sysconfig.get_build_info()
    gpus = _nvidia_smi() if runtime.on_gpu else []
    shown = visible_gpus(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
    devices = []
    for name, description in zip(runtime.devices, runtime.device_descriptions, strict=True):
        capability = _capability(name)
        number = _physical_gpu(int(name[4:])) if name.startswith("GPU") else None
        devices.append(
            {
                "name": name,
                "description": description,
                "compute_capability": ".".join(map(str, capability)) if capability else None,
                "memory_bytes": (
                    _host_memory()
                    if name.startswith("CPU")
                    else shown[number].total
                    if number is not None and number < len(shown)
                    else None
                ),
            }
        )
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "tfgpu": getattr(tfgpu, "__version__", None),
            **{
                name: _version(name)
                for name in ("tensorflow", "keras", "tensorflow-datasets", "numpy")
            },
            "cuda": build.get("cuda_version"),
            "cudnn": build.get("cudnn_version"),
        },
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "cores": usable_cores()},
        "devices": devices,
        "nvidia_driver": _driver(gpus),
        "strategy": runtime.strategy_name,
        "replicas": runtime.num_replicas,
        "workers": runtime.num_workers,
        "git": _git(Path(tfgpu.__path__[0]).parent),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if _RECORDED_VARIABLES.fullmatch(name)
        },
        "dataset": dict(dataset) if dataset is not None else None,
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        # The same module comes from other distributions too, such as tensorflow-cpu.
        module = sys.modules.get(distribution.replace("-", "_"))
        return getattr(module, "__version__", None)


def _host_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _driver(gpus: Sequence[_Gpu]) -> str | None:
    if gpus:
        return gpus[0].driver
    with contextlib.suppress(OSError):
        text = Path("/proc/driver/nvidia/version").read_text()
        match = re.search(r"Kernel Module.*?\s(\d+\.\d+(\.\d+)?)\s", text)
        return match[1] if match else None
    return None


def _git(folder: Path) -> dict[str, Any] | None:
    """Revision of the checkout whose top is `folder`, and whether it has changes of its own.

    None for an installed package, also when it lies in a virtual environment inside the user's
    own repository: that revision would be of something else.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None
        return {
            "revision": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
