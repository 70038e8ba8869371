import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

from tfgpu import runtime
from tfgpu.errors import RequestError
from tfgpu.runtime import choose_devices, parse_devices


def python(program, *, path=None, **variables):
    """Runs a program in a fresh interpreter, without what this one has set."""
    ours = ("TF_", "KERAS_BACKEND", "GRPC_VERBOSITY", "CUDA_DEVICE_ORDER")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ours)
    } | variables
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
        timeout=120,
    )


# The environment.


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    runtime.prepare_environment()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(RequestError, match="KERAS_BACKEND is 'jax'"):
        runtime.prepare_environment()


def test_a_setting_that_comes_too_late_is_told(monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    with pytest.warns(RuntimeWarning, match="TF_ENABLE_ONEDNN_OPTS"):
        runtime.prepare_environment()


def test_a_second_time_is_silent():
    runtime.prepare_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runtime.prepare_environment()


def test_verbosity_leaves_the_log_level_alone(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    runtime.prepare_environment(verbosity=1)
    assert "TF_CPP_MIN_LOG_LEVEL" not in os.environ


# The import.


def test_start_in_a_fresh_process_is_silent_and_does_as_asked():
    done = python(
        """
import json, os
from tfgpu import runtime
runtime.prepare_environment()
runtime.import_tensorflow()
from tensorflow.python.framework.config import is_op_determinism_enabled
made = runtime.start(virtual_devices=3, devices="all", deterministic=True, seed=7)
os.write(2, b"still open")
print(json.dumps({
    "devices": made.devices,
    "replicas": made.strategy.num_replicas_in_sync,
    "deterministic": is_op_determinism_enabled(),
    "variables": runtime.environment(made)["variables"],
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
    decided, reason = runtime.decide_intra_op_threads(
        asked, replicas=replicas, small_steps=small_steps, cores=8
    )
    assert decided == threads
    assert reason


@pytest.mark.parametrize(
    ("arguments", "environment", "threads"),
    [
        ("virtual_devices=2", {}, None),
        ("small_steps=True", {}, 1),
        ("intra_op_threads=3", {"TF_NUM_INTRAOP_THREADS": "5"}, 3),
        ("virtual_devices=2", {"TF_NUM_INTRAOP_THREADS": "5"}, 5),
    ],
)
def test_threads_are_set_before_tensorflow_starts_them(arguments, environment, threads):
    done = python(
        f"""
from tfgpu import runtime
runtime.prepare_environment()
tf = runtime.import_tensorflow()
made = runtime.start({arguments})
print(made.intra_op_threads, tf.config.threading.get_intra_op_parallelism_threads())
""",
        CUDA_VISIBLE_DEVICES="-1",
        **environment,
    )
    said, in_effect = map(int, done.stdout.split())
    assert said == (threads or max(1, runtime.usable_cores() // 2))
    # 0: TensorFlow reads the variable itself.
    assert in_effect == (0 if threads == 5 else said)


def test_threads_asked_for_too_late_are_refused(tensorflow):
    with pytest.raises(RequestError, match="intra_op_threads 7: .* ask for them before"):
        runtime.start(devices="CPU:0", intra_op_threads=7)


def test_a_failing_import_says_what_was_said(tmp_path):
    fake = tmp_path / "tensorflow"
    fake.mkdir()
    fake.joinpath("__init__.py").write_text(
        "import os\nos.write(2, b'libcudart: no such file\\n')\nraise ImportError('broken\\nwheel')"
    )
    done = python(
        """
import os, sys
sys.path.insert(1, os.getcwd())
from tfgpu import errors, runtime
try:
    runtime.import_tensorflow()
except errors.WorkError as error:
    print(error)
os.write(2, b"given back")
""",
        path=tmp_path,
    )
    assert done.stdout.startswith(
        "TensorFlow cannot be imported: ImportError: broken wheel "
        "(it said: libcudart: no such file)"
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == "given back"


def test_an_import_that_aborts_leaves_a_trace(tmp_path):
    fake = tmp_path / "tensorflow"
    fake.mkdir()
    fake.joinpath("__init__.py").write_text("import os\nos.abort()")
    done = python(
        """
import os, sys
sys.path.insert(1, os.getcwd())
from tfgpu import runtime
runtime.import_tensorflow()
""",
        path=tmp_path,
    )
    assert "Aborted" in done.stderr
    assert "import_tensorflow" in done.stderr


def test_standard_error_may_be_closed():
    done = python(
        """
import os
from tfgpu import runtime
os.close(2)
with runtime.stderr_aside():
    pass
print("fine")
"""
    )
    assert done.stdout == "fine\n"


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


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "is not set"),
        ("{", "is not JSON"),
        ("[]", "lacks"),
        ('{"cluster": {}}', "lacks"),
        ('{"cluster": {}, "task": {}}', "names no worker"),
        ('{"cluster": {"worker": "a:1"}, "task": {}}', "not a list"),
        ('{"cluster": {"worker": ["a"]}, "task": {}}', "host:port"),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {}}', "twice"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "'ps'"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}', "index None"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "index 1"),
    ],
)
def test_a_bad_tf_config_is_told_with_a_good_one(monkeypatch, value, message):
    if value is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(RequestError, match=message) as caught:
        runtime.start(strategy="multi_worker_mirrored")
    assert '"task": {"type": "worker", "index": 0}' in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "task", "chief"),
    [
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 0}, True),
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1}, False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, {"type": "worker", "index": 0}, False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, {"type": "chief", "index": 0}, True),
    ],
)
def test_the_chief_of_a_cluster(monkeypatch, cluster, task, chief):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    found = runtime.read_cluster(os.environ)
    assert found.is_chief is chief
    assert found.num_workers == 2


# Memory.

GPUS = runtime.parse_nvidia_smi(
    "0, GPU-aaaa, 81559, 80000, 550.54.15\n"
    "1, GPU-bbbb, 81559, 100, 550.54.15\n"
    "2, GPU-cccc, [N/A], [N/A], 550.54.15\n"
)


def test_nvidia_smi_rows():
    assert [(gpu.index, gpu.free) for gpu in GPUS] == [(0, 80000 << 20), (1, 100 << 20)]
    assert runtime.parse_nvidia_smi("NVIDIA-SMI has failed") == []


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1]),
        ("1,0", [1, 0]),
        ("GPU-bb", [1]),
        ("0,-1,1", [0]),
        ("", []),
        ("MIG-GPU-aaaa/1/0", []),
    ],
)
def test_visible_gpus(visible, indices):
    assert [gpu.index for gpu in runtime.visible_gpus(GPUS, visible)] == indices


def machine(root, *, group="/", **files):
    """A root with 1000 kB of free memory, and the given cgroup files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:  4000 kB\nMemAvailable:  1000 kB\n")
    (root / "proc/self/cgroup").write_text(f"0::{group}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_free_memory_without_limits(tmp_path):
    assert runtime.host_free_memory(root=machine(tmp_path)) == 1000 << 10


def test_an_unlimited_cgroup_is_no_limit(tmp_path):
    root = machine(tmp_path, memory_dot_max="max\n", memory_dot_current="5\n")
    assert runtime.host_free_memory(root=root) == 1000 << 10


def test_a_cgroup_limit_counts_without_the_page_cache(tmp_path):
    root = machine(
        tmp_path,
        memory_dot_max="5000\n",
        memory_dot_current="4500\n",
        memory_dot_stat="anon 10\ninactive_file 300\n",
    )
    assert runtime.host_free_memory(root=root) == 800


def test_a_limit_of_a_parent_cgroup_counts(tmp_path):
    root = machine(
        tmp_path, group="/a/b", a__memory_dot_max="5000\n", a__memory_dot_current="4500\n"
    )
    assert runtime.host_free_memory(root=root) == 500


def test_free_memory_is_never_negative(tmp_path):
    root = machine(tmp_path, memory_dot_max="5000\n", memory_dot_current="6000\n")
    assert runtime.host_free_memory(root=root) == 0


def test_virtual_cpus_share_the_memory():
    assert runtime.free_memory("CPU:0") < 0.6 * runtime.host_free_memory()


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


def test_the_environment_is_json():
    found = runtime.environment(runtime.start(), dataset={"name": "digits"})
    assert json.loads(json.dumps(found)) == found
    assert found["dataset"] == {"name": "digits"}
    assert found["versions"]["tensorflow"] and found["versions"]["keras"]
    assert [device["name"] for device in found["devices"]] == ["CPU:0", "CPU:1"]


def test_the_environment_keeps_no_secrets(monkeypatch):
    monkeypatch.setenv("TF_VAR_password", "secret")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_foo=1")
    found = runtime.environment(runtime.start())["variables"]
    assert "TF_VAR_password" not in found
    assert found["XLA_FLAGS"] == "--xla_cpu_foo=1"


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


def test_the_revision_of_a_checkout(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    clean = runtime._git(tmp_path)
    assert len(clean["revision"]) == 40 and clean["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert runtime._git(tmp_path)["dirty"] is True


def test_a_package_inside_another_checkout_has_no_revision(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "site-packages").mkdir()
    assert runtime._git(tmp_path / "site-packages") is None
