"""Two virtual CPU devices, set up once, for every test that needs TensorFlow.

TensorFlow fixes its devices at the first operation of a process. A test module therefore
imports TensorFlow or Keras at its top (the devices are then set up before the first test), or
its tests take the fixture `tensorflow`. A module that does neither runs without the 5 s that
the import costs.
"""

import signal
import sys

import pytest

from tfgpu.cli import startup

# Before any test module imports TensorFlow.
startup.prepare_environment()

# A shell has its background jobs ignore SIGINT, and what is ignored stays so in the processes that
# the tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_devices_made = False

# Processes get whole files. The longest come first: the last would leave the others idle.
_LONGEST = {
    *("test_backup_and_restore.py", "test_bench.py", "test_export.py", "test_train_results.py"),
    "test_tune.py",
}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def _two_devices():
    global _devices_made
    tf = startup.import_tensorflow()
    if not _devices_made:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
        assert len(tf.config.list_logical_devices("CPU")) == 2
        _devices_made = True
    return tf


@pytest.fixture(scope="session", autouse=True)
def _devices():
    if "tensorflow" in sys.modules:
        _two_devices()


@pytest.fixture(scope="session")
def tensorflow(_devices):
    """The module, with CPU:0 and CPU:1 set up."""
    return _two_devices()


@pytest.fixture(scope="session")
def mirrored2(tensorflow):
    """A MirroredStrategy of two replicas."""
    return tensorflow.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(autouse=True)
def _float32():
    """Gives back the dtype policy, which is global to the process."""
    yield
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "config"):
        keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def digits_run(tensorflow, tmp_path_factory):
    """A finished run of the main job, a short one: its directory."""
    from tfgpu.cli import flags
    from tfgpu.train import __main__ as train

    place = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(place / "data"))
        argv = ["--devices=CPU:0", "--epochs=4", "--tensorboard=none", "--progress=none"]
        # The folder is the run's own, so that a later command finds the data without the variable.
        argv += [f"--run_dir={place / 'run'}", f"--data_dir={place / 'data'}"]
        train.train(flags.parse(argv))
    return place / "run"
