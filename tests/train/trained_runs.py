"""Runs of the command in this process, of a small model on a few images, and their files."""

import json

import commands
import keras
import numpy as np
from PIL import Image

from tfgpu.train import __main__ as train

METRICS = ["epoch", "step", "loss", "accuracy", "val_loss", "val_accuracy"]
TIMES = ["samples_per_second", "seconds"]

MODEL = """
import keras
import tfgpu


def small(*, image_shape, num_classes):
    layers = keras.layers
    inputs = keras.Input(image_shape)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = layers.Dense(num_classes)(layers.Flatten()(x))
    return tfgpu.Model(inputs, layers.Activation("linear", dtype="float32")(x))


def of_keras(*, image_shape, num_classes):
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, keras.layers.Dense(num_classes)(keras.layers.Flatten()(inputs)))


def three(*, image_shape, num_classes):
    inputs = keras.Input(image_shape)
    return tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))


def nothing(*, image_shape, num_classes):
    pass


def other_arguments(shape):
    pass
"""

# 60 to train on: 6 for validation, 54 in 7 batches, the last of 6.
BASE = {
    "dataset": "folder:images",
    "model": "e2e_models:small",
    "devices": "CPU:0",
    "batch_size": "8",
    "epochs": "3",
    "learning_rate": "0.05",
    "steps_per_execution": "3",
    "tensorboard": "none",
    "progress": "plain",
}


def write_images(root, *, train=30, test=7, size=(8, 8)):
    """Two classes of noise, one darker than the other."""
    random = np.random.RandomState(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(("dark", "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(60 * label, 196 + 60 * label, (*size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return root


def argv_of(settings):
    return [f"--{name}={value}" for name, value in (BASE | settings).items() if value is not None]


def command(*argv):
    """Runs `tfgpu train` in this process; returns its exit code."""
    return commands.command(train.main, *argv)


class Run:
    """A finished run and its files."""

    def __init__(self, path):
        self.path = path
        self.config = json.loads((path / "config.json").read_text())
        self.result = json.loads((path / "result.json").read_text())
        lines = (path / "metrics.jsonl").read_text().splitlines()
        self.metrics = [json.loads(line) for line in lines]

    @property
    def values(self):
        """What a repetition has to give again: everything but times."""
        return [[line[name] for name in METRICS] for line in self.metrics] + [
            self.result[name] for name in ("loss", "val_loss", "test_loss", "test_accuracy")
        ]

    @property
    def weights(self):
        return keras.models.load_model(self.path / "model.keras").get_weights()


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def the_line(capsys):
    """The one line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("tfgpu: ")
    return lines[0]
