"""The one entry to the data: a name becomes training, validation and test examples."""

import dataclasses
import os
from typing import Any

import numpy as np

from tfgpu.data.examples import Description, Examples, Source
from tfgpu.errors import RequestError

# Each purpose has a stream of random numbers of its own, so that one split does not depend on
# whether another was made.
_TEST_STREAM = 1
_VALIDATION_STREAM = 2

_DESCRIBED = dataclasses.fields(Description)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageDataset(Description):
    """Labelled images in their splits.

    Attributes:
        train: The examples to train on, without those of validation.
        validation: The part carved from train; None when the fraction is 0.
        test: To be read once, at the end.
        test_split: Which split that is: "test", "validation" or "a tenth of train".
    """

    train: Examples
    validation: Examples | None
    test: Examples
    test_split: str

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the images come from and how many there are, as JSON keeps it."""
        return {
            **{field.name: getattr(self, field.name) for field in _DESCRIBED},
            "image_shape": list(self.image_shape),
            "class_names": list(self.class_names),
            "train_examples": self.train.num_examples,
            "validation_examples": self.validation.num_examples if self.validation else 0,
            "test_examples": self.test.num_examples,
            "test_split": self.test_split,
        }


def load(
    name: str,
    *,
    data_dir: str | None,
    validation_fraction: float,
    image_size: tuple[int, int] | None,
    seed: int,
) -> ImageDataset:
    """Opens a data set by name. No image is decoded yet.

    Args:
        name: `digits`; a TFDS name such as `cifar10`, `name/config` or `name:version`;
            `folder:PATH`; or `synthetic:HEIGHTxWIDTHxCHANNELS:CLASSES`.
        data_dir: Where TFDS sets lie prepared; None for TFDS_DATA_DIR, else TFDS's own default.
        validation_fraction: Which part of the training split to hold out, in [0, 1).
        image_size: (height, width) to bring every image to; None for the data's own.
        seed: Decides which examples are held out.

    Raises:
        RequestError: An unknown name, a set that is not image classification, images of different
            sizes without `image_size`, a fraction that leaves nothing.
        DataError: The data cannot be had or is damaged.
        WorkError: The disk is full.
    """
    if not 0 <= validation_fraction < 1:
        raise RequestError(f"validation_fraction must lie in [0, 1), not {validation_fraction}")
    if image_size is not None and min(image_size) < 1:
        raise RequestError(f"image_size must be positive, not {image_size[0]}x{image_size[1]}")
    source = _open(name, data_dir=data_dir, image_size=image_size)
    train = source.split("train")
    if train is None:
        raise RequestError(f"{name!r} has no training split with labels")
    for test_split in ("test", "validation"):
        test = source.split(test_split)
        if test is not None:
            break
    else:
        test_split = "a tenth of train"
        if train.num_examples < 2:
            raise RequestError(f"{name!r} has one image only: none is left to test on")
        train, test = _carve(train, max(1, round(train.num_examples / 10)), seed, _TEST_STREAM)
    validation = None
    if validation_fraction:
        count = round(train.num_examples * validation_fraction)
        if not 0 < count < train.num_examples:
            raise RequestError(
                f"validation_fraction={validation_fraction} of {train.num_examples} training "
                f"images leaves {count} to validate on and {train.num_examples - count} to train "
                "on: both must be positive (0 turns validation off)"
            )
        train, validation = _carve(train, count, seed, _VALIDATION_STREAM)
    described = {field.name: getattr(source, field.name) for field in _DESCRIBED}
    return ImageDataset(
        **described, train=train, validation=validation, test=test, test_split=test_split
    )


def _open(name: str, *, data_dir: str | None, image_size: tuple[int, int] | None) -> Source:
    if data_dir and "://" in data_dir:
        raise RequestError(f"data_dir must be a local directory, not {data_dir!r}")
    # Each source imports what only it needs: a folder works without TFDS.
    if name.startswith("folder:"):
        from tfgpu.data.folder import open_folder

        path = name.removeprefix("folder:")
        if not path:
            raise RequestError("folder: needs a path, such as folder:images")
        return open_folder(path, image_size=image_size)
    if name.startswith("synthetic:"):
        from tfgpu.data.synthetic import open_synthetic

        return open_synthetic(name, image_size=image_size)
    if name == "digits":
        from tfgpu.data.digits import open_digits

        return open_digits(data_dir=data_dir, image_size=image_size)
    if os.path.isdir(name) and os.sep in name:
        raise RequestError(f"{name!r} is a directory: give it as folder:{name}")
    from tfgpu.data.tfds_source import open_name

    return open_name(name, data_dir=data_dir, image_size=image_size)


def _carve(examples: Examples, count: int, seed: int, stream: int) -> tuple[Examples, Examples]:
    """Splits off `count` examples; both parts keep their natural order."""
    # RandomState's stream is frozen by NumPy's compatibility policy; Generator's is not.
    random = np.random.RandomState(
        np.random.MT19937(np.random.SeedSequence([seed % 2**64, stream]))
    )
    order = random.permutation(examples.num_examples)
    return examples.take(np.sort(order[count:])), examples.take(np.sort(order[:count]))
