"""Made-up images: cheap, of the asked shape, the same each time."""

import numpy as np
import pytest

from tfgpu.errors import RequestError
from tfgpu.tasks import loading as sources
from tfgpu.train.settings import TrainSettings


def load(name, image_size=None):
    return sources.load(name, data_dir=None, validation_fraction=0.1, image_size=image_size, seed=0)


def test_shape_and_classes_are_those_of_the_name():
    data = load("synthetic:6x8x1:5")
    images, labels = data.train.take(np.arange(20)).load_arrays()
    assert images.shape == (20, 6, 8, 1) and images.dtype == np.uint8
    assert data.image_shape == (6, 8, 1)
    assert len(data.class_names) == 5
    assert set(labels) == {0, 1, 2, 3, 4}
    assert data.test.num_examples == 1024


def test_images_of_a_class_are_alike_and_of_others_not():
    images, labels = load("synthetic:4x4x3:2").test.take(np.arange(8)).load_arrays()
    for i in range(1, 8):
        assert (images[i] == images[0]).all() == (labels[i] == labels[0])


def test_it_is_the_same_each_time():
    first, second = (load("synthetic:4x4x3:7").test.load_arrays() for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_an_image_size_resizes_it():
    assert load("synthetic:8x8x3:2", image_size=(4, 6)).image_shape == (4, 6, 3)


@pytest.mark.parametrize(
    "name",
    ["synthetic", "synthetic:", "synthetic:8x8:2", "synthetic:8x8x3", "synthetic:0x8x3:2"],
)
def test_another_form_is_refused(name):
    with pytest.raises(RequestError, match="synthetic:HEIGHTxWIDTHxCHANNELS:CLASSES"):
        TrainSettings(dataset=name)
