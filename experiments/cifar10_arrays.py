"""CIFAR-10 as arrays, and how its images are coded, for recipes that do without `tfgpu train`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

NOTES = {
    "JPEG": "The images are JPEG-coded, which costs three points of accuracy: see docs/results.md.",
    "PNG": "The images are coded without loss.",
}
"""Of `coding`, for what is written beside figures."""


def load(data_dir: str | None, *, limit: int | None = None) -> tuple[Any, Any, dict[str, Any]]:
    """CIFAR-10 as arrays: the training and the test split; and where they come from and "coding".

    Args:
        data_dir: TFDS's folder; None for TFDS_DATA_DIR.
        limit: How many images of each split are taken.
    """
    from tfgpu.tasks import loading

    data = loading.load(
        "cifar10", data_dir=data_dir, validation_fraction=0.0, image_size=None, seed=0
    )
    train, test = (
        tuple(part[:limit] for part in split.load_arrays()) for split in (data.train, data.test)
    )
    return train, test, {**data.provenance, "coding": coding(data_dir, data.version)}


def coding(data_dir: str | None, version: str) -> str:
    """How the images of a prepared CIFAR-10 are coded, by Pillow's name: "PNG" is without loss.

    Args:
        data_dir: TFDS's folder; None for TFDS_DATA_DIR.
        version: Of the data set.
    """
    import tensorflow_datasets as tfds
    from PIL import Image

    from tfgpu.data.tfds_source import default_data_dir

    builder = tfds.builder_from_directory(Path(default_data_dir(data_dir), "cifar10", version))
    undecoded = builder.as_dataset("test", decoders={"image": tfds.decode.SkipDecoding()})
    first = next(iter(undecoded.take(1).as_numpy_iterator()))["image"]
    return str(Image.open(io.BytesIO(first)).format)
