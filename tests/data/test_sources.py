"""Carving the validation split, whatever the source."""

import numpy as np
import pytest
from PIL import Image

from tfgpu.errors import RequestError
from tfgpu.tasks import loading as sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 grey images to train on, each a colour of its own, and 2 to test."""
    root = tmp_path_factory.mktemp("images")
    for i in range(102):
        path = root / ("train" if i < 100 else "test") / "ab"[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), i, np.uint8)).save(path)
    return root


def carve(folder, fraction, seed=0):
    """Returns the colours in train and in validation."""
    dataset = sources.load(
        f"folder:{folder}",
        data_dir=None,
        validation_fraction=fraction,
        image_size=None,
        seed=seed,
    )
    train = dataset.train.load_arrays()[0][:, 0, 0, 0].tolist()
    if dataset.validation is None:
        return train, None
    return train, dataset.validation.load_arrays()[0][:, 0, 0, 0].tolist()


def test_validation_and_train_are_disjoint_and_whole(folder):
    train, validation = carve(folder, 0.15)
    assert len(validation) == 15
    assert sorted(train + validation) == list(range(100))


def test_the_seed_alone_decides(folder):
    assert carve(folder, 0.1, seed=3) == carve(folder, 0.1, seed=3)
    assert carve(folder, 0.1, seed=3) != carve(folder, 0.1, seed=4)


def test_the_choice_never_changes(folder):
    # A checkpoint of an older version must meet the same split: the stream is frozen.
    assert carve(folder, 0.05, seed=0)[1] == [18, 22, 57, 63, 69]


def test_a_fraction_of_zero_carves_nothing(folder):
    train, validation = carve(folder, 0.0)
    assert len(train) == 100 and validation is None


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_fractions_outside_are_refused(folder, fraction):
    with pytest.raises(RequestError, match=r"\[0, 1\)"):
        carve(folder, fraction)


@pytest.mark.parametrize(("fraction", "kept"), [(0.004, "0 to validate"), (0.999, "0 to train")])
def test_fractions_that_leave_nothing_are_refused(folder, fraction, kept):
    with pytest.raises(RequestError, match=kept):
        carve(folder, fraction)


@pytest.mark.parametrize("size", [(0, 4), (4, -1)])
def test_image_sizes_must_be_positive(folder, size):
    with pytest.raises(RequestError, match="image_size must be positive"):
        sources.load(
            f"folder:{folder}", data_dir=None, validation_fraction=0.0, image_size=size, seed=0
        )
