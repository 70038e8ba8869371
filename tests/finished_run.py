"""What the tests of the commands after training share: a run directory without a training."""

import json
from pathlib import Path

import keras
import numpy as np
from PIL import Image

import tfgpu
from tfgpu.data.folder import open_folder

CLASSES = ("dark", "grey", "light")
SHAPE = (8, 8, 3)


def build_model(*, shape=SHAPE, classes=3, scale=3.0, seed=0):
    """An untrained model of Keras' own layers that gives different images different labels."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(classes, kernel_initializer=keras.initializers.RandomNormal(0, scale))(x)
    return tfgpu.Model(inputs, keras.layers.Activation("linear", dtype="float32")(x))


def write_run(path, made=None, *, names=CLASSES, shape=SHAPE, dataset="folder:nowhere", **config):
    """Writes the files that the commands read."""
    path.mkdir(parents=True)
    settings = {
        "dataset": dataset,
        "data_dir": None,
        "validation_fraction": 0.1,
        "seed": 0,
        "label_smoothing": 0.0,
        "precision": "float32",
        "model": "lenet",
    }
    (path / "config.json").write_text(json.dumps(settings | config))
    folder = Path(dataset.removeprefix("folder:"))
    fingerprint = open_folder(str(folder)).fingerprint if folder.is_dir() else ""
    about = {
        "name": dataset,
        "fingerprint": fingerprint,
        "class_names": names,
        "image_shape": shape,
    }
    (path / "environment.json").write_text(json.dumps({"dataset": about}))
    if made is not None:
        made.save(path / "model.keras")
    return path


def write_images(root, *, counts, names=CLASSES, size=SHAPE[:2], seed=0):
    """Noise in folders of classes: `counts` is examples a class, by split."""
    random = np.random.RandomState(seed)
    for split, count in counts.items():
        for label, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                low = 60 * label
                pixels = random.randint(low, low + 100, (*size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return root
