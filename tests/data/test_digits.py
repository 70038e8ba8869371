"""The digits: what they are, and that preparing them cannot go wrong."""

import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from tfgpu.data import digits
from tfgpu.errors import DataError
from tfgpu.tasks import loading as sources


def load(data_dir, **changes):
    settings = {"validation_fraction": 0.0, "image_size": None, "seed": 0, **changes}
    return sources.load("digits", data_dir=str(data_dir), **settings)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture(scope="module")
def dataset(data_dir):
    return load(data_dir)


@pytest.fixture(scope="module")
def train(dataset):
    return dataset.train.load_arrays()


@pytest.fixture(scope="module")
def test(dataset):
    return dataset.test.load_arrays()


def test_shapes_and_sizes(dataset, train, test):
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.test_split == "test"
    assert train[0].shape == (1437, 32, 32, 3) and train[1].shape == (1437,)
    assert test[0].shape == (360, 32, 32, 3) and test[1].shape == (360,)


def test_says_where_it_comes_from(dataset):
    assert dataset.license == "CC BY 4.0"
    assert "Optical Recognition of Handwritten Digits" in dataset.citation
    assert dataset.homepage.startswith("https://")
    assert dataset.version == "1.0.0"


def test_each_digit_has_its_share_of_the_test_split(train, test):
    of_test = np.bincount(test[1])
    share = (np.bincount(train[1]) + of_test) * 360 / 1797
    assert np.abs(of_test - share).max() < 1


def test_the_splits_hold_every_image_of_scikit_learn_once(train, test):
    pixels, _ = load_digits(return_X_y=True)
    expected = digits.enlarge(pixels.reshape(-1, 8, 8).astype(np.uint8))
    found = np.concatenate([train[0], test[0]])
    assert sorted(image.tobytes() for image in found) == sorted(i.tobytes() for i in expected)


def test_the_content_never_changes(train, test):
    # A new content needs a new version of the builder.
    digest = hashlib.sha256()
    for array in (*train, *test):
        digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == "b5eb77d8ac50aecc90daf5518eb2c1cc1287f77ba6c5bf7a59fc9e510a038eb9"


def test_another_preparation_gives_the_same_bytes(dataset, train, tmp_path):
    again = load(tmp_path)
    np.testing.assert_array_equal(again.train.load_arrays()[0], train[0])
    assert again.fingerprint == dataset.fingerprint


def test_enlarging_is_bilinear():
    pixels = np.random.RandomState(0).randint(0, 17, (5, 8, 8)).astype(np.uint8)
    exact = tf.image.resize(pixels[..., None].astype(np.float64), (32, 32)).numpy() * 255 / 16
    assert np.abs(digits.enlarge(pixels) - exact).max() <= 0.5 + 1e-3


def test_the_test_split_depends_on_the_pictures_alone():
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = pixels.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.int64)
    order = np.random.RandomState(0).permutation(len(labels))
    np.testing.assert_array_equal(
        digits.choose_test(pixels[order], labels[order]), digits.choose_test(pixels, labels)[order]
    )


def test_preparing_and_reading_say_nothing_and_leave_nothing_else(tmp_path):
    code = (
        "from tfgpu.cli import startup\n"
        "startup.prepare_environment(); startup.import_tensorflow()\n"
        "from tfgpu.tasks import loading as sources\n"
        f"dataset = sources.load('digits', data_dir={str(tmp_path)!r}, validation_fraction=0.1, "
        "image_size=None, seed=0)\n"
        "dataset.test.load_arrays()"
    )
    # A process of its own: absl's logging and TFDS's warnings happen once in each.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(tmp_path) == ["digits"]


def test_a_second_process_uses_what_the_first_made(tmp_path, monkeypatch):
    # Both see nothing there, both prepare; the second finds the first's at its rename.
    first = digits._prepare_in(str(tmp_path))
    before = os.stat(first).st_ino
    assert digits._prepare_in(str(tmp_path)) == first
    assert os.stat(first).st_ino == before
    assert os.listdir(tmp_path) == ["digits"]


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    code = f"from tfgpu.data import digits; print(digits.prepare(data_dir={str(tmp_path)!r}))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)
    ]
    outputs = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(outputs) == 1
    assert load(tmp_path).test.load_arrays()[0].shape == (360, 32, 32, 3)


def test_a_directory_that_cannot_be_written_is_replaced_by_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "file"
    file.touch()  # A directory below a file: nobody can write it, not even root.
    directory = digits.prepare(data_dir=str(file / "data"))
    assert pathlib.Path(directory).is_relative_to(tmp_path / "cache")


def test_nowhere_to_write_is_said(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(digits, "_fallback_dirs", lambda: [str(file / "cache")])
    with pytest.raises(DataError, match="file/data .*file/cache .*--data_dir"):
        digits.prepare(data_dir=str(file / "data"))


def test_a_truncated_record_file_is_named(tmp_path):
    directory = pathlib.Path(digits.prepare(data_dir=str(tmp_path)))
    path = directory / "digits-train.tfrecord-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=path.name):
        load(tmp_path)


def test_a_damaged_record_is_named_when_it_is_read(tmp_path):
    directory = pathlib.Path(digits.prepare(data_dir=str(tmp_path)))
    path = directory / "digits-train.tfrecord-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    dataset = load(tmp_path)
    with pytest.raises(DataError, match=path.name):
        dataset.train.load_arrays()


def test_a_missing_file_is_named(tmp_path):
    directory = pathlib.Path(digits.prepare(data_dir=str(tmp_path)))
    (directory / "digits-test.tfrecord-00000-of-00001").unlink()
    with pytest.raises(DataError, match="digits-test.tfrecord"):
        load(tmp_path)


def test_image_size_is_kept_to(data_dir):
    images, _ = load(data_dir, image_size=(16, 20)).test.load_arrays()
    assert images.shape == (360, 16, 20, 3)
