"""`folder:PATH`: layouts, channels, sizes, and the bad input that users have."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tfgpu.data.folder import read_image
from tfgpu.errors import DataError, RequestError
from tfgpu.tasks import loading as sources

RANDOM = np.random.RandomState(0)


def save(path, *, size=(6, 5), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size if mode == "L" else (*size, len(mode))
    Image.fromarray(RANDOM.randint(0, 256, shape, np.uint8), mode=None).save(path, **options)
    return path


def load(path, **changes):
    settings = {"validation_fraction": 0.0, "image_size": None, "seed": 0, **changes}
    return sources.load(f"folder:{path}", data_dir=None, **settings)


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_train_and_test_folders(folder):
    dataset = load(folder)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (6, 5, 3)
    assert (dataset.train.num_examples, dataset.test.num_examples) == (8, 4)
    assert dataset.test_split == "test"
    images, labels = dataset.train.load_arrays()
    assert labels.tolist() == [0] * 4 + [1] * 4
    expected = [
        np.asarray(Image.open(folder / "train" / name / f"{i}.png"))
        for name in ("cat", "dog")
        for i in range(4)
    ]
    np.testing.assert_array_equal(images, expected)


def test_classes_alone_give_a_test_tenth_by_the_seed(tmp_path):
    for name in ("cat", "dog"):
        for i in range(10):
            save(tmp_path / name / f"{i}.png")
    first, again, other = (load(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert first.test_split == "a tenth of train"
    assert (first.train.num_examples, first.test.num_examples) == (18, 2)
    np.testing.assert_array_equal(first.test.load_arrays()[0], again.test.load_arrays()[0])
    assert first.test.load_arrays()[0].tobytes() != other.test.load_arrays()[0].tobytes()


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_validation_folder_is_the_test_split_without_another(folder, name):
    (folder / "test").rename(folder / name)
    dataset = load(folder)
    assert (dataset.test_split, dataset.test.num_examples) == ("validation", 4)


def test_kinds_of_files_and_nested_folders(tmp_path):
    for path in (
        "a/1.PNG",
        "a/2.jpg",
        "a/3.JPEG",
        "b/1.bmp",
        "b/2.gif",
        "b/deep/3.webp",
        "c/1.png",
    ):
        save(tmp_path / "train" / path)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("not an image")
    save(tmp_path / "test" / "a" / "1.png")
    assert load(tmp_path).train.num_examples == 7


def test_grey_images_alone_have_one_channel(tmp_path):
    for name in ("a", "b"):
        for i in range(3):
            save(tmp_path / name / f"{i}.png", mode="L")
    dataset = load(tmp_path)
    assert dataset.image_shape == (6, 5, 1)
    assert dataset.train.load_arrays()[0].shape[1:] == (6, 5, 1)


def test_grey_and_transparent_images_among_colours_become_rgb(tmp_path):
    save(tmp_path / "a" / "1.png", mode="L")
    save(tmp_path / "a" / "2.png", mode="RGBA")
    save(tmp_path / "b" / "1.png", mode="RGB")
    palette = Image.fromarray(RANDOM.randint(0, 256, (6, 5, 3), np.uint8)).quantize(8)
    palette.save(tmp_path / "b" / "2.png", transparency=bytes(range(8)))
    dataset = load(tmp_path)
    assert dataset.image_shape == (6, 5, 3)
    dataset.train.load_arrays()


def test_16_bits_become_8(tmp_path):
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "wide.png")
    found = read_image(str(tmp_path / "wide.png"), channels=1)
    assert found[..., 0].tolist() == [[0, 0, 1, 255]]


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        save(tmp_path / name / "1.jpg", size=(4, 9), exif=exif)
        save(tmp_path / name / "2.jpg", size=(9, 4))
    dataset = load(tmp_path)
    assert dataset.image_shape == (9, 4, 3)
    dataset.train.load_arrays()


def test_different_sizes_name_two_files_and_the_flag(folder):
    save(folder / "train" / "dog" / "9.png", size=(8, 7))
    with pytest.raises(
        RequestError, match=r"0\.png is 6x5 and .*9\.png is 8x7.*--image_size=HEIGHTxWIDTH"
    ):
        load(folder)
    assert load(folder, image_size=(10, 12)).train.load_arrays()[0].shape == (9, 10, 12, 3)


def test_a_truncated_image_is_named(folder):
    path = save(folder / "train" / "dog" / "9.png", size=(6, 5))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"train/dog/9\.png cannot be read"):
        load(folder).train.load_arrays()


def test_a_truncated_jpeg_is_named(folder):
    path = save(folder / "train" / "dog" / "9.jpg", size=(6, 5))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train/dog/9\.jpg cannot be read"):
        load(folder).train.load_arrays()


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named_before_any_is_decoded(folder, content):
    (folder / "train" / "dog" / "9.png").write_bytes(content)
    with pytest.raises(DataError, match=r"train/dog/9\.png"):
        load(folder)


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match="none' does not exist"):
        load(tmp_path / "none")


def test_a_file_is_no_folder(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        load(save(tmp_path / "a.png"))


def test_no_path_at_all():
    with pytest.raises(RequestError, match="folder: needs a path"):
        load("")


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="holds no folder of a class"):
        load(tmp_path)


def test_images_without_a_class(tmp_path):
    save(tmp_path / "1.png")
    with pytest.raises(DataError, match="holds no folder of a class"):
        load(tmp_path)


def test_one_class(tmp_path):
    save(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match="one class only, 'cat'"):
        load(tmp_path)


def test_a_class_without_images(folder):
    (folder / "train" / "eel").mkdir()
    with pytest.raises(DataError, match="train/eel holds no images"):
        load(folder)


def test_a_class_that_train_does_not_know(folder):
    save(folder / "test" / "eel" / "1.png")
    with pytest.raises(DataError, match="the class 'eel' .*test/eel is unknown to .*cat, dog"):
        load(folder)


def test_a_directory_without_the_prefix_is_explained(folder):
    with pytest.raises(RequestError, match=f"give it as folder:{folder}"):
        sources.load(str(folder), data_dir=None, validation_fraction=0.0, image_size=None, seed=0)


def test_the_fingerprint_is_of_the_content_not_the_place(folder, tmp_path_factory):
    before = load(folder).fingerprint
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert load(moved).fingerprint == before
    save(moved / "train" / "cat" / "9.png")
    assert load(moved).fingerprint != before


def test_needs_no_tensorflow_datasets(folder):
    code = (
        "import sys; from tfgpu.tasks import loading as sources; "
        f"sources.load('folder:{folder}', data_dir=None, validation_fraction=0.0, "
        "image_size=None, seed=0); sys.exit('tensorflow_datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
