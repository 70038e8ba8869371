"""COCO's annotation files: where they and their images are found, and what is refused."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from shaped import NAMES, write

from tfgpu.errors import DataError, RequestError
from tfgpu.tasks import loading


def load(path, **settings):
    given = {"data_dir": None, "validation_fraction": 0.0, "image_size": None, "seed": 0}
    return loading.load(f"coco:{path}", **given | settings)


def refused(path, kind=DataError, **settings):
    with pytest.raises(kind) as caught:
        load(path, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(file, change):
    """Rewrites a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


@pytest.fixture
def file(tmp_path):
    return write(tmp_path, 10, least=1, size=(40, 48), sides=(8, 16))


def rows(data):
    """The boxes of all training examples, without padding."""
    _, y = data.train.load_arrays()
    return y[y[..., 4] >= 0]


def test_images_and_boxes_are_those_of_the_file(file):
    data = load(file)
    assert data.task.name == "detection" and data.class_names == NAMES
    assert (data.train.num_examples, data.test.num_examples) == (9, 1)
    images, y = data.train.load_arrays()
    content = json.loads(file.read_text())
    found = 0
    for image, own in zip(images, y, strict=True):
        files = [file.parent / "images" / each["file_name"] for each in content["images"]]
        (number,) = [i for i, f in enumerate(files) if (np.asarray(Image.open(f)) == image).all()]
        expected = [
            [top, left, top + high, left + wide, each["category_id"] - 1, 0]
            for each in content["annotations"]
            if each["image_id"] == number + 1
            for left, top, wide, high in [each["bbox"]]
        ]
        found += len(expected)
        np.testing.assert_allclose(own[: len(expected)], expected, atol=1e-4)
        assert (own[len(expected) :, 4] == -1).all()
    assert found > 9


def test_boxes_are_stretched_with_their_image(file):
    plain, stretched = rows(load(file)), rows(load(file, image_size=(80, 24)))
    np.testing.assert_allclose(stretched[:, :4], plain[:, :4] * [2, 0.5, 2, 0.5], atol=1e-4)


def test_images_without_boxes_are_kept_and_counted(file):
    def change(content):
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] > 4]

    data = load(changed(file, change))
    assert data.train.num_examples + data.test.num_examples == 10
    assert re.search(r"on 9 training images \([34] without\)", data.notes[0])


def test_ids_need_not_be_consecutive_and_crowds_are_marked(file):
    expected = rows(load(file))

    def change(content):
        for each in content["categories"]:
            each["id"] = each["id"] * 7 + 90
        for each in content["annotations"]:
            each["category_id"] = each["category_id"] * 7 + 90
            each["iscrowd"] = (None, 0, "0", 1, "1")[each["id"] % 5]

    data = load(changed(file, change))
    np.testing.assert_array_equal(rows(data)[:, :5], expected[:, :5])
    every = np.concatenate([data.train.load_y(), data.test.load_y()])
    ids = [each["id"] for each in json.loads(file.read_text())["annotations"]]
    crowds = sum(each % 5 > 2 for each in ids)
    assert (every[..., 5] == 1).sum() == crowds
    assert f"crowds, which are neither learnt nor counted as misses: {crowds} of" in "".join(
        data.storage_notes
    )


@pytest.mark.parametrize(
    ("files", "folders", "test_split"),
    [
        (["train.json", "test.json"], ["train", "test"], "test"),
        (
            ["annotations/instances_train2017.json", "annotations/instances_val2017.json"],
            ["train2017", "val2017"],
            "validation",
        ),
        (
            ["train/_annotations.coco.json", "test/_annotations.coco.json"],
            ["train", "test"],
            "test",
        ),
        (["annotations/train.json", "annotations/val.json"], ["images", "images"], "validation"),
    ],
)
def test_the_usual_layouts_of_a_folder_are_found(tmp_path, files, folders, test_split):
    for seed, (name, folder, count) in enumerate(zip(files, folders, (5, 3), strict=True)):
        write(tmp_path, count, least=1, seed=seed, file=name, folder=folder)
    data = load(tmp_path)
    assert (data.train.num_examples, data.test.num_examples) == (5, 3)
    assert data.test_split == test_split


def test_the_images_may_lie_in_a_folder_that_is_named(tmp_path):
    file = write(tmp_path / "far", 4, least=1, file="notes/boxes.json", folder="else/where")
    assert load(f"{file},{tmp_path / 'far/else/where'}").train.num_examples == 4 - 1


def test_a_test_file_without_annotations_is_no_test_split(tmp_path):
    write(tmp_path, 6, least=1, file="train.json")
    changed(write(tmp_path, 4, file="test.json"), lambda content: content["annotations"].clear())
    assert load(tmp_path).test_split == "a tenth of train"


def test_categories_of_a_test_file_are_found_by_name(tmp_path):
    write(tmp_path, 5, least=1, file="train.json")
    other = write(tmp_path, 5, least=1, file="test.json")
    expected = load(tmp_path).test.load_arrays()[1]

    def change(content):
        for each in content["categories"]:
            each["id"] = 4 - each["id"]
        for each in content["annotations"]:
            each["category_id"] = 4 - each["category_id"]

    changed(other, change)
    np.testing.assert_array_equal(load(tmp_path).test.load_arrays()[1], expected)

    def rename(content):
        content["categories"][0]["name"] = "hexagon"

    changed(other, rename)
    assert "the category 'hexagon' is unknown to" in refused(tmp_path)


def test_the_fingerprint_is_of_the_boxes_too(file):
    before = load(file).fingerprint

    def change(content):
        content["annotations"][0]["bbox"][2] -= 1

    assert load(changed(file, change)).fingerprint != before


def of_first(**changes):
    """Changes the first annotation."""
    return lambda content: content["annotations"][0].update(changes)


def of_all(**changes):
    """Changes every annotation."""
    return lambda content: [each.update(changes) for each in content["annotations"]]


def test_a_box_of_no_area_is_left_out_and_named(file):
    data = load(changed(file, of_first(bbox=[3, 4, 0, 5])))
    assert re.search(
        r"without area, left out: 1 of \d+, such as .*boxes.json, annotation 1 of 0000.png: "
        r"bbox \[3, 4, 0, 5\]",
        data.storage_notes[0],
    )
    every = np.concatenate([data.train.load_y(), data.test.load_y()])
    count = len(json.loads(file.read_text())["annotations"])
    assert (every[..., 4] >= 0).sum() == count - 1


def test_what_reaches_beyond_an_image_is_cut_and_named(file):
    data = load(changed(file, of_first(bbox=[40, 30, 20, 5])))
    assert "beyond the edge of the image, cut to it: 1 of" in data.storage_notes[0]
    every = np.concatenate([data.train.load_y(), data.test.load_y()])
    assert every[..., 3].max() == 48


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_first(bbox=[50, 3, 5, 5]), r"annotation 1 of 0000.png: bbox \[50, 3, 5, 5\] lies out"),
        (of_first(bbox=[1, 2, 3]), r"annotation 1 of 0000.png: bbox \[1, 2, 3\] is not \[left"),
        (of_first(bbox=[1, 2, 3, float("nan")]), r"bbox \[1, 2, 3, NaN\] is not \[left"),
        (of_first(bbox=[1, 2, 3, 10**400]), "annotation 1 of 0000.png: bbox .* is not"),
        (of_first(bbox=[1, 2, 3, True]), "annotation 1 of 0000.png: bbox .* is not"),
        (of_first(iscrowd="no"), 'annotation 1 of 0000.png: iscrowd "no" is neither 0 nor 1'),
        (of_first(iscrowd=[0]), r"annotation 1 of 0000.png: iscrowd \[0\] is neither"),
        (of_first(category_id=[9]), r"category_id \[9\] is none of its categories"),
        (of_first(image_id={"a": 1}), 'annotation 1: image_id {"a": 1} is none of its images'),
        (of_all(iscrowd=1), "every box of .* is a crowd .iscrowd 1. or without area"),
        (of_all(bbox=[0.1, 0.2, 0.5, 0.6]), "seem to be fractions of it, and must be"),
        (lambda content: content["images"][2].update(width=10**400), "is 40x48 .* says 40x1e"),
        (lambda content: content["categories"][0].update(id="1"), "numbers and strings among its"),
        (of_first(category_id=9), "category_id 9 is none of its categories, 1 [(]circle[)], 2"),
        (of_first(image_id=99), "annotation 1: image_id 99 is none of its images"),
        (lambda content: content.pop("images"), "not an annotation file of COCO.*no list 'images'"),
        (lambda content: content["images"].clear(), "names no images"),
        (lambda content: content["categories"].clear(), "has no categories"),
        (lambda content: content["images"][3].pop("file_name"), "image number 4 has no id or no"),
        (lambda content: content["images"][3].update(id=1), "has two of the image id 1"),
        (lambda content: content["categories"][1].update(name="circle"), "two categories 'circle'"),
        (lambda content: content["images"][2].update(width=40), "is 40x48 .* says 40x40"),
        (lambda content: content["images"][2].update(file_name="x.png"), "the image x.png, which"),
        (lambda content: content["annotations"].clear(), "boxes.json has no annotations: there is"),
    ],
)
def test_what_cannot_be_is_refused_by_name(file, change, said):
    assert re.search(said, refused(changed(file, change), (DataError, RequestError)))


def turn(file):
    """Has the first image say that it is stored on its side."""
    path = file.parent / "images" / "0000.png"
    tag = Image.Exif()
    tag[0x0112] = 6
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=tag)


def test_boxes_of_the_picture_as_it_is_stored_are_refused_with_the_reason(file):
    turn(file)
    said = refused(file)
    assert "0000.png is 48x40 (height x width) turned upright by their EXIF tag and" in said
    assert "says 40x48" in said


def test_what_is_unusual_about_the_images_is_said(file):
    turn(file)
    images = file.parent / "images"
    with Image.open(images / "0001.png") as image:
        image.convert("RGBA").save(images / "0001.png")

    def change(content):
        content["images"][0].update(height=48, width=40)
        content["images"][3]["file_name"] = content["images"][2]["file_name"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] > 1]

    said = load(changed(file, change), image_size=(32, 32)).storage_notes
    assert "images: 1 with transparency, which is dropped (0001.png)" in said
    turned = "images: 1 turned upright by their EXIF tag (0000.png): their boxes must be of the"
    assert any(note.startswith(turned) for note in said)
    twice = "images: 1 of 10 are a file that another image of "
    assert any(note.startswith(twice) and "0002.png" in note for note in said)


@pytest.mark.parametrize(
    ("text", "said"), [("[1, 2]", "no list 'images'"), ("{", "is not JSON"), ("", "is not JSON")]
)
def test_a_file_that_is_not_cocos_is_refused(file, text, said):
    file.write_text(text)
    assert said in refused(file)


def test_a_folder_without_a_file_and_a_missing_file_are_refused(tmp_path):
    assert "has no train.json" in refused(tmp_path, RequestError)
    assert "does not exist" in refused(tmp_path / "nothing.json")
    for year in (2014, 2017):
        write(tmp_path, 2, file=f"annotations/instances_train{year}.json")
    assert "instances_train2014.json and annotations/" in refused(tmp_path, RequestError)


def test_images_that_differ_in_size_need_a_size(tmp_path):
    write(tmp_path, 3, least=1, file="train.json", folder="train")
    write(tmp_path, 3, least=1, file="test.json", folder="test", size=(40, 40))
    assert "--image_size" in refused(tmp_path, RequestError)
    assert load(tmp_path, image_size=(32, 32)).test.load_arrays()[0].shape == (3, 32, 32, 3)


def test_more_boxes_than_there_is_room_for_are_refused_before_the_training(tmp_path):
    write(tmp_path, 4, least=1, most=1, file="train.json", folder="train")
    write(tmp_path, 4, least=7, most=7, size=(90, 90), file="test.json", folder="test")
    said = refused(tmp_path, RequestError, image_size=(64, 64))
    assert re.search("of the split test has [567] boxes, and --task_options=max_boxes=4", said)
    options = {"options": lambda task: {"max_boxes": 9}}
    assert load(tmp_path, image_size=(64, 64), **options).train.load_y().shape == (4, 9, 6)
    options = {"options": lambda task: {"max_boxes": -1}}
    assert "max_boxes=-1" in refused(tmp_path, RequestError, image_size=(64, 64), **options)
