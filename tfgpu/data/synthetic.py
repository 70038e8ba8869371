"""`synthetic:HEIGHTxWIDTHxCHANNELS:CLASSES`: images made up on the spot, to measure with.

They cost next to nothing to read, so that what is measured is the training. A picture stands
for its class and all of a class look alike, so a model that can learn at all learns them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import resize
from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.errors import RequestError

NUM_TRAIN, NUM_TEST = 8192, 1024

_POOL = 64
"""Different pictures; more would only take memory: 224x224x3 takes 9.6 MB."""


def open_synthetic(name: str, *, image_size: tuple[int, int] | None) -> Source:
    """Opens the set.

    Args:
        name: Such as "synthetic:32x32x3:10".
        image_size: (height, width) to bring every image to, or None.

    Raises:
        RequestError: The name is not of that form.
    """
    match = re.fullmatch(r"synthetic:(\d+)x(\d+)x(\d+):(\d+)", name)
    height, width, channels, classes = map(int, match.groups()) if match else (0, 0, 0, 0)
    if not min(height, width, channels, classes):
        raise RequestError(
            f"--dataset={name}: must be synthetic:HEIGHTxWIDTHxCHANNELS:CLASSES with numbers of "
            "at least 1, such as synthetic:224x224x3:1000"
        )
    size = image_size or (height, width)
    random = np.random.RandomState(0)
    pool = random.randint(0, 256, (_POOL, height, width, channels)).astype(np.uint8)
    with tf.device("CPU"):
        pictures = tf.constant(resize(tf.constant(pool), size).numpy())

    def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (positions,)

    def select(names: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        def decode(position: tf.Tensor) -> dict[str, tf.Tensor]:
            label = tf.cast(position % classes, tf.int32)
            with tf.device("CPU"):
                image = tf.gather(pictures, tf.cast(label, tf.int64) % _POOL)
            return {"image": image, "label": label}

        return decode

    def split(split_name: str, label: str | None = None) -> Records | None:
        counts = {"train": NUM_TRAIN, "test": NUM_TEST}
        if split_name not in counts:
            return None
        return Records(counts[split_name], read, select)

    shape, class_names = (*size, channels), tuple(str(label) for label in range(classes))
    features = {
        "image": Feature(kind="image", shape=shape, dtype="uint8", described=f"images{shape}"),
        "label": Feature(kind="class", dtype="int32", class_names=class_names, described="classes"),
    }
    return Source(
        name="synthetic",
        version="1",
        fingerprint=hashlib.sha256(f"{name} {size}".encode()).hexdigest(),
        schema=Schema(requested=name, features=features, supervised=("image", "label")),
        split=split,
    )
