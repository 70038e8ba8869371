"""TensorBoard's callback where TensorFlow is held to deterministic kernels, and reads no clock."""

import pytest
from fresh_process import python
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROGRAM = """
from tfgpu.cli import startup

startup.prepare_environment()
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.experimental.enable_op_determinism()
import keras
import tfgpu

keras.utils.set_random_seed(0)
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    inputs = keras.Input((3,))
    model = tfgpu.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", steps_per_execution=2)
data = tf.data.Dataset.from_tensor_slices((tf.ones((16, 3)), tf.zeros((16, 1)))).batch(4)
model.fit(data, epochs=3, verbose=0, callbacks=[tfgpu.TensorBoard(FOLDER)])
"""


@pytest.mark.slow
def test_what_needs_a_clock_is_left_out(tmp_path):
    program = PROGRAM.replace("FOLDER", repr(str(tmp_path)))
    done = python(program, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0}).Reload()
    parts = {tag for tag in events.Tags()["tensors"] if "step_milliseconds" in tag}
    whole = "performance/step_milliseconds"
    assert parts == {whole, *(f"{whole}_{part}" for part in ("device", "host", "checkpoint"))}
