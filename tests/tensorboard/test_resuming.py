"""Event files of a training that is continued, and of others beside it."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import evaluation_batches, training_batches

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
LABELS = (IMAGES.mean(axis=(1, 2, 3)) > 127).astype(np.int32)
EXAMPLES = Examples(
    40,
    lambda positions: (tf.gather(IMAGES, positions), tf.gather(LABELS, positions)),
    lambda image, label: (image, label),
)
BATCH, STEPS = 4, 10


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The measured peak goes where it is not the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def build():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = tfgpu.Model(inputs, keras.layers.Dense(2)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    return model


def steps(folder, tag):
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Tensors(tag)]


class Killed(Exception):
    pass


class KillAt(keras.callbacks.Callback):
    """Stands in for `kill -9` after some executions."""

    def __init__(self, left):
        super().__init__()
        self.left = left

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Killed


def backed_up(folder, backup, *behind):
    batches = training_batches(EXAMPLES, batch_size=BATCH, seed=0)
    saver = tfgpu.BackupAndRestore(backup, save_freq=4)
    with contextlib.ExitStack() as stack:
        stack.callback(saver.close)
        build().fit(
            batches,
            steps_per_epoch=STEPS,
            epochs=2,
            validation_data=evaluation_batches(EXAMPLES, batch_size=BATCH),
            shuffle=False,
            verbose=0,
            callbacks=[tfgpu.TensorBoard(folder, update_freq=1), saver, *behind],
        )


@pytest.mark.parametrize("other", [pytest.param("", marks=pytest.mark.slow), "below"])
def test_resuming_leaves_the_files_of_other_trainings_alone(tmp_path, other):
    with contextlib.suppress(Killed):
        backed_up(tmp_path / "logs", tmp_path / "backup", KillAt(14))
    before = set((tmp_path / "logs").rglob("events.*"))
    backed_up(tmp_path / "logs" / other, tmp_path / "another backup")
    build().fit(  # And one that is not backed up.
        *(IMAGES, LABELS), verbose=0, callbacks=[tfgpu.TensorBoard(tmp_path / "logs" / other)]
    )
    theirs = {
        path: path.read_bytes() for path in set((tmp_path / "logs").rglob("events.*")) - before
    }
    backed_up(tmp_path / "logs", tmp_path / "backup")
    assert theirs and {path: path.read_bytes() for path in theirs if path.exists()} == theirs


def test_resuming_twice_from_one_backup_shows_no_step_twice(tmp_path):
    for left in (14, 2, 0):
        with contextlib.suppress(Killed):
            backed_up(tmp_path / "logs", tmp_path / "backup", KillAt(left))
    assert steps(tmp_path / "logs/train", "batch_loss") == list(range(1, 2 * STEPS + 1))
    assert steps(tmp_path / "logs/validation", "epoch_loss") == [0, 1]
