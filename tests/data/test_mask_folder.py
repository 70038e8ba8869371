"""`folder:PATH` with images and masks: layouts, and the bad input that users have."""

import re

import numpy as np
import pytest
from PIL import Image
from segmented import write

from tfgpu.data.mask_folder import read_mask
from tfgpu.errors import DataError, RequestError
from tfgpu.tasks import loading


def load(path, **changes):
    settings = {"validation_fraction": 0.0, "image_size": None, "seed": 0, **changes}
    return loading.load(f"folder:{path}", data_dir=None, **settings)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "set", 12)


def refused(folder, kind=DataError, **changes):
    with pytest.raises(kind) as refusal:
        data = load(folder, **changes)
        data.train.load_arrays()
        data.test.load_arrays()
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_pairs_by_name_give_images_and_class_numbers(folder):
    data = load(folder)
    assert data.task.name == "segmentation"
    assert data.class_names == ("0", "1", "2") and data.image_shape == (24, 32, 3)
    images, masks = data.train.load_arrays()
    assert (images.shape, masks.shape) == ((11, 24, 32, 3), (11, 24, 32))
    assert masks.dtype == np.uint8 and set(np.unique(masks)) == {0, 1, 2}
    # What the mask says is where the colours are.
    assert images[masks == 1][:, 0].mean() > 150 > images[masks == 2][:, 0].mean()


def test_split_folders(tmp_path):
    write(tmp_path / "train", 6)
    write(tmp_path / "test", 3, seed=1)
    data = load(tmp_path)
    assert (data.train.num_examples, data.test.num_examples, data.test_split) == (6, 3, "test")


@pytest.mark.parametrize(
    ("values", "names", "void"),
    [
        ((0, 1, 1), ("background", "foreground"), None),
        ((0, 255, 255), ("background", "foreground"), None),
        ((0, 7, 255), ("background", "foreground"), 255),
        ((3, 4, 9), ("3", "4", "9"), None),
    ],
)
def test_classes_are_the_values_of_the_training_masks(tmp_path, values, names, void):
    data = load(write(tmp_path, 6, values=values))
    assert data.class_names == names
    assert data.spec.fitted["void"] == void
    _, masks = data.train.load_arrays()
    kept = [value for value in sorted(set(values)) if value != void]
    assert set(np.unique(masks)) == {*range(len(kept)), *([255] if void else [])}


def test_an_indexed_mask_is_read_by_its_indices(tmp_path):
    values = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.fromarray(values)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        assert saved.mode == "P"
    np.testing.assert_array_equal(read_mask(str(tmp_path / "mask.png"))[..., 0], values)


def test_classes_may_be_named(folder):
    (folder / "classes.txt").write_text("ground\nred\nblue\n")
    assert load(folder).class_names == ("ground", "red", "blue")


def test_resizing_a_mask_takes_the_nearest_pixel(folder):
    data = load(folder, image_size=(12, 16))
    _, masks = data.train.load_arrays()
    assert masks.shape == (11, 12, 16) and set(np.unique(masks)) == {0, 1, 2}


def test_the_fingerprint_is_of_images_and_masks(folder):
    before = load(folder).fingerprint
    write(folder, 1, seed=9, values=(0, 2, 1))
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(folder / "masks" / "003.png")
    assert load(folder).fingerprint != before


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(("part", "other"), [("images", "mask"), ("masks", "image")])
def test_a_file_without_its_partner_is_named(folder, part, other):
    (folder / part / "extra.png").write_bytes((folder / part / "000.png").read_bytes())
    assert re.search(rf"{part}/extra.png has no {other} of the same name", refused(folder))


@pytest.mark.parametrize("part", ["images", "masks"])
def test_one_folder_without_the_other_is_named(folder, part):
    for file in (folder / part).iterdir():
        file.unlink()
    assert f"{part} holds no images" in refused(folder)
    (folder / part).rmdir()
    assert f"holds no folder {part!r}" in refused(folder)


def test_sizes_that_differ_within_a_pair_are_named(folder):
    Image.fromarray(np.zeros((20, 32), np.uint8)).save(folder / "masks" / "004.png")
    assert re.search(r"004.png is 24x32 and its mask .*004.png is 20x32", refused(folder))


def test_sizes_that_differ_between_pairs_need_a_size(folder):
    write(folder, 1, size=(16, 16))
    assert "--image_size" in refused(folder, RequestError)
    assert load(folder, image_size=(16, 16)).train.load_arrays()[1].shape == (11, 16, 16)


def test_a_value_that_no_training_mask_has_is_named_with_its_file(tmp_path):
    write(tmp_path / "train", 4)
    write(tmp_path / "test", 2, values=(0, 1, 9))
    # Before anything is read to train on.
    with pytest.raises(DataError) as refusal:
        load(tmp_path)
    said = str(refusal.value)
    assert re.search(r"test/masks/000.png has the value 9, and the classes are 0, 1, 2", said)


def test_a_line_without_a_name_is_refused_and_moves_no_class(folder):
    (folder / "classes.txt").write_text("ground\n\nred\nblue\n")
    assert "classes.txt, line 2 is empty" in refused(folder)
    (folder / "classes.txt").write_text("ground\nred\nblue\n\n")
    assert load(folder).class_names == ("ground", "red", "blue")


def test_masks_of_one_bit_among_others_of_0_and_255_are_named(tmp_path):
    write(tmp_path, 6, values=(0, 255, 255))
    for name in ("001", "004"):
        path = tmp_path / "masks" / f"{name}.png"
        Image.open(path).convert("1").save(path)
    assert re.search(r"00[14].png has one bit a pixel.* has the value 255", refused(tmp_path))


def test_masks_of_one_bit_alone_are_two_classes(tmp_path):
    write(tmp_path, 6, values=(0, 255, 255))
    for path in (tmp_path / "masks").iterdir():
        Image.open(path).convert("1").save(path)
    assert load(tmp_path).class_names == ("background", "foreground")


def test_a_value_beyond_the_named_classes_is_named_with_its_file(folder):
    (folder / "classes.txt").write_text("ground\nred\n")
    assert re.search(r"masks/\d+.png has the value 2, and there are 2 classes", refused(folder))


def test_one_class_only_is_refused(tmp_path):
    write(tmp_path, 4, values=(0, 0, 0))
    assert "hold one value only, 0" in refused(tmp_path)


def test_a_colour_image_is_no_mask(folder):
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(folder / "masks" / "002.png")
    assert "masks/002.png is a colour image (RGB)" in refused(folder)


def test_a_jpeg_is_no_mask(folder):
    (folder / "masks" / "002.png").unlink()
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(folder / "masks" / "002.jpg")
    assert "masks/002.jpg is a JPEG" in refused(folder)


def test_wide_values_are_refused(folder):
    Image.fromarray(np.full((24, 32), 300, np.uint16)).save(folder / "masks" / "002.png")
    assert "masks/002.png has the value 300" in refused(folder)


def test_a_file_that_is_no_image_is_named(folder):
    (folder / "masks" / "002.png").write_text("no image")
    assert "masks/002.png is not an image" in refused(folder)
