"""Trainings with a backup, whole ones and interrupted ones, and in what they are the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import evaluation_batches, make_resident, training_batches

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
LABELS = RANDOM.integers(0, 4, 50, dtype=np.int32)
EXAMPLES = Examples(
    50,
    lambda positions: (tf.gather(IMAGES, positions), tf.gather(LABELS, positions)),
    lambda image, label: (image, label),
)
EPOCHS, BATCH = 3, 8  # Six whole batches and a quarter.


class Killed(Exception):
    """Stands in for `kill -9`: nothing is saved any more."""


class KillAfter(keras.callbacks.Callback):
    """Raises after so many executions."""

    def __init__(self, executions):
        super().__init__()
        self.left = executions

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Killed


def build(strategy, **settings):
    keras.utils.set_random_seed(1)
    settings = {"optimizer": lambda: keras.optimizers.Adam(1e-2), "together": 2} | settings
    with strategy.scope():
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.Conv2D(3, 3)(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Dropout(settings.get("rate", 0.3))(keras.layers.Flatten()(x))
        if "extra" in settings:
            x = settings["extra"]()(x)
        kind = settings.get("kind", tfgpu.Model)
        model = kind(inputs, keras.layers.Dense(4, dtype="float32")(x))
        model.compile(
            settings["optimizer"](),
            settings.get("loss", keras.losses.SparseCategoricalCrossentropy)(from_logits=True),
            metrics=settings.get("metrics", ["accuracy"]),
            steps_per_execution=settings["together"],
        )
    return model


def train(
    folder,
    strategy,
    *,
    streaming=False,
    more=(),
    save_freq=3,
    seed=3,
    batch_size=BATCH,
    augment=("crop", "flip"),
    examples=EXAMPLES,
    patience=2,
    model=None,
    batches=None,
    fit=None,
    **given,
):
    """Returns the model, the last epoch's logs and the backup of one `fit`."""
    model = model or build(strategy, **given)
    resident = () if streaming else make_resident(examples, strategy)
    batches = batches or training_batches(
        examples, batch_size=batch_size, seed=seed, augment=augment, resident=resident
    )
    warnings: list[str] = []
    backup = tfgpu.BackupAndRestore(folder, save_freq=save_freq, warn=warnings.append)
    backup.warnings = warnings
    callbacks = [
        keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True),
        *(callback for callback in more if not isinstance(callback, KillAfter)),
        backup,
        *(callback for callback in more if isinstance(callback, KillAfter)),
    ]
    try:
        history = model.fit(
            batches,
            steps_per_epoch=batches.steps_per_epoch,
            validation_data=evaluation_batches(EXAMPLES, batch_size=BATCH, resident=resident),
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
            **{"epochs": EPOCHS, **(fit or {})},
        ).history
    finally:
        backup.close()
    return model, {name: values[-1] for name, values in history.items()}, backup


def state(model):
    return [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(state(first), state(second), strict=True))


def resumed(folder, strategy, executions, **given):
    with pytest.raises(Killed):
        train(folder, strategy, more=[KillAfter(executions)], **given)
    return train(folder, strategy, **given)
