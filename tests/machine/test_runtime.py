"""Devices, strategy, precision and seed of a run."""

import json

import keras
import numpy as np
import pytest
from fresh_process import python

from tfgpu.errors import RequestError
from tfgpu.machine import hardware, runtime
from tfgpu.machine.devices import choose_devices, parse_devices
from tfgpu.machine.threads import decide_intra_op_threads


def test_start_in_a_fresh_process_is_silent_and_does_as_asked():
    done = python(
        """
import json, os
from tfgpu.artifacts import environment
from tfgpu.cli import startup
from tfgpu.machine import runtime
startup.prepare_environment()
startup.import_tensorflow()
from tensorflow.python.framework.config import is_op_determinism_enabled
made = runtime.start(virtual_devices=3, devices="all", deterministic=True, seed=7)
os.write(2, b"still open")
print(json.dumps({
    "devices": made.devices,
    "replicas": made.strategy.num_replicas_in_sync,
    "deterministic": is_op_determinism_enabled(),
    "variables": environment.record(made)["variables"],
}))
""",
        CUDA_VISIBLE_DEVICES="-1",
    )
    assert done.stderr == "still open"
    said = json.loads(done.stdout)
    assert said["devices"] == ["CPU:0", "CPU:1", "CPU:2"]
    assert said["replicas"] == 3
    assert said["deterministic"]
    assert said["variables"]["TF_ENABLE_ONEDNN_OPTS"] == "1"


@pytest.mark.parametrize(
    ("asked", "replicas", "small_steps", "threads"),
    [
        ("auto", 1, False, 8),
        ("auto", 1, True, 1),
        ("auto", 2, False, 4),
        ("auto", 3, True, 2),
        ("auto", 16, False, 1),
        (3, 2, True, 3),
    ],
)
def test_threads_of_an_operation(asked, replicas, small_steps, threads):
    decided, reason = decide_intra_op_threads(
        asked, replicas=replicas, small_steps=small_steps, cores=8
    )
    assert decided == threads
    assert reason


@pytest.mark.parametrize("cores", [2, 8, 9])
@pytest.mark.parametrize(("processes", "replicas"), [(2, 1), (3, 1), (2, 2)])
def test_workers_that_share_cores_have_the_threads_of_one_process(cores, processes, replicas):
    settings = {"small_steps": True, "cores": cores}
    of_one, _ = decide_intra_op_threads("auto", replicas=processes * replicas, **settings)
    decided, _ = decide_intra_op_threads("auto", replicas=replicas, processes=processes, **settings)
    assert decided == of_one


@pytest.mark.parametrize(
    ("arguments", "environment", "threads"),
    [
        pytest.param("virtual_devices=2", {}, None, marks=pytest.mark.slow),
        pytest.param("small_steps=True", {}, 1, marks=pytest.mark.slow),
        pytest.param(
            *("intra_op_threads=3", {"TF_NUM_INTRAOP_THREADS": "5"}, 3), marks=pytest.mark.slow
        ),
        ("virtual_devices=2", {"TF_NUM_INTRAOP_THREADS": "5"}, 5),
    ],
)
def test_threads_are_set_before_tensorflow_starts_them(arguments, environment, threads):
    done = python(
        f"""
from tfgpu.cli import startup
from tfgpu.machine import runtime
startup.prepare_environment()
tf = startup.import_tensorflow()
made = runtime.start({arguments})
print(made.intra_op_threads, tf.config.threading.get_intra_op_parallelism_threads())
""",
        CUDA_VISIBLE_DEVICES="-1",
        **environment,
    )
    said, in_effect = map(int, done.stdout.split())
    assert said == (threads or max(1, hardware.usable_cores() // 2))
    # 0: TensorFlow reads the variable itself.
    assert in_effect == (0 if threads == 5 else said)


def test_threads_asked_for_too_late_are_refused(tensorflow):
    with pytest.raises(RequestError, match="intra_op_threads 7: .* ask for them before"):
        runtime.start(devices="CPU:0", intra_op_threads=7)


# Devices, by name.


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", ()),
        ("GPU:0", ("GPU:0",)),
        ("gpu:1, GPU:0", ("GPU:1", "GPU:0")),
        ("CPU:00", ("CPU:0",)),
    ],
)
def test_device_lists(text, names):
    assert parse_devices(text) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a device"),
        ("GPU", "'GPU' is not a device"),
        ("GPU:0,", "'' is not a device"),
        ("TPU:0", "'TPU:0' is not a device"),
        ("GPU:-1", "'GPU:-1' is not a device"),
        ("GPU:0,GPU:00", "GPU:0 more than once"),
        ("GPU:0,CPU:0", "mixes CPU and GPU"),
    ],
)
def test_bad_device_lists(text, message):
    with pytest.raises(RequestError, match=message):
        parse_devices(text)


@pytest.mark.parametrize(
    ("requested", "present", "strategy", "names"),
    [
        ((), ("GPU:0", "GPU:1", "CPU:0"), "mirrored", ("GPU:0", "GPU:1")),
        ((), ("GPU:0", "GPU:1", "CPU:0"), "one_device", ("GPU:0",)),
        ((), ("CPU:0", "CPU:1"), "mirrored", ("CPU:0", "CPU:1")),
        (("GPU:1",), ("GPU:0", "GPU:1", "CPU:0"), "one_device", ("GPU:1",)),
        (("GPU:1", "GPU:0"), ("GPU:0", "GPU:1", "CPU:0"), "mirrored", ("GPU:1", "GPU:0")),
        (("CPU:0",), ("GPU:0", "CPU:0"), "mirrored", ("CPU:0",)),
    ],
)
def test_choice_of_devices(requested, present, strategy, names):
    assert choose_devices(requested=requested, present=present, strategy=strategy) == names


def test_an_absent_device_is_named_with_those_present():
    with pytest.raises(RequestError, match="no device GPU:2 here; there is GPU:0, GPU:1, CPU:0"):
        choose_devices(
            requested=("GPU:0", "GPU:2"), present=("GPU:0", "GPU:1", "CPU:0"), strategy="mirrored"
        )


def test_one_device_takes_one():
    with pytest.raises(RequestError, match="one_device"):
        choose_devices(
            requested=("CPU:0", "CPU:1"), present=("CPU:0", "CPU:1"), strategy="one_device"
        )


# Decisions.


@pytest.mark.parametrize(
    ("asked", "on_gpu", "jit"),
    [
        ("auto", True, True),
        ("auto", False, False),
        (True, False, True),
        ("false", True, False),
    ],
)
def test_xla(asked, on_gpu, jit):
    decided, reason = runtime.decide_jit(asked, on_gpu=on_gpu)
    assert decided is jit
    assert reason


def test_xla_is_auto_or_a_truth_value():
    with pytest.raises(RequestError, match="'maybe'"):
        runtime.decide_jit("maybe", on_gpu=True)


@pytest.mark.parametrize(
    ("precision", "capability", "says"),
    [
        ("mixed_float16", None, "slower"),
        ("mixed_float16", (6, 1), "6.1 has no tensor cores"),
        ("mixed_float16", (7, 0), ""),
        ("mixed_bfloat16", (7, 5), "no bfloat16"),
        ("mixed_bfloat16", (8, 0), ""),
        ("float32", (8, 9), "TF32"),
        ("float32", None, ""),
    ],
)
def test_precision_reasons(precision, capability, says):
    reason = runtime.precision_reason(precision, capability=capability)
    assert says in reason
    assert bool(says) == bool(reason)


# start, on the two CPUs of these tests.


def test_mirrored_takes_every_device():
    made = runtime.start()
    assert made.devices == ("CPU:0", "CPU:1")
    assert made.num_replicas == made.strategy.num_replicas_in_sync == 2
    assert made.is_chief and not made.on_gpu and made.num_workers == 1


def test_mirrored_over_one_device_is_one_replica():
    made = runtime.start(devices="CPU:1")
    assert made.devices == ("CPU:1",)
    assert made.num_replicas == 1


def test_one_device_is_the_first():
    assert runtime.start(strategy="one_device").devices == ("CPU:0",)


def test_virtual_devices_come_too_late():
    with pytest.raises(RequestError, match="virtual_devices 3.*exist already"):
        runtime.start(virtual_devices=3)


def test_the_precision_becomes_the_policy():
    runtime.start(precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "mixed_bfloat16"


def test_the_seed_decides_what_is_drawn():
    draws = []
    for seed in (3, 3, 4):
        runtime.start(seed=seed)
        draws.append((float(np.random.rand()), float(keras.random.normal(()))))
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "parameter_server"}, "parameter_server"),
        ({"precision": "float8"}, "float8"),
        ({"devices": "GPU:0"}, "no device GPU:0 here; there is CPU:0"),
        ({"devices": "CPU:7"}, "no device CPU:7 here.*--virtual_devices"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed 4294967296"),
        ({"virtual_devices": -2}, "-2"),
    ],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(RequestError, match=message):
        runtime.start(**arguments)


# What is shown and recorded.


def test_the_block_names_every_choice():
    made = runtime.start(precision="mixed_float16")
    text = runtime.describe(
        made,
        global_batch=128,
        steps_per_execution=7,
        input_mode="resident",
        input_reason="0.2 GB of 10 GB",
    )
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "CPU:0, CPU:1" in lines["devices"]
    assert "mirrored, 2 replicas" in lines["strategy"]
    assert "mixed_float16  (CPUs" in lines["precision"]
    assert "off  (auto" in lines["XLA"]
    assert "128 = 2 x 64" in lines["batch"]
    assert lines["steps/execution"].endswith(" 7")
    assert lines["input"].endswith("resident  (0.2 GB of 10 GB)")
