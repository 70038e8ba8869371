"""Files of arrays: what an array is, splits, examples of different length, and what is refused."""

import zipfile

import numpy as np
import pytest
import tensorflow as tf

from tfgpu.data import npz_file
from tfgpu.data.npz_source import open_source
from tfgpu.errors import DataError, RequestError
from tfgpu.tasks import loading

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (6, 4, 5, 3)).astype(np.uint8)
LABELS = np.array([2, 7, 2, 7, 7, 2])


def opened(tmp_path, *, save=np.savez, **arrays):
    save(tmp_path / "a.npz", **arrays)
    return open_source(str(tmp_path / "a.npz"))


def rows(records, name):
    """All rows of a feature, one after another, as `tf.data` reads them."""
    decode = records.select((name,))
    positions = tf.data.Dataset.range(records.num_examples)
    found = positions.map(lambda at: decode(*(part[0] for part in records.read(at[None])))[name])
    return list(found.as_numpy_iterator())


def kinds(source):
    return {name: feature.kind for name, feature in source.schema.features.items()}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_their_classes(tmp_path, save):
    source = opened(tmp_path, save=save, x=IMAGES, y=LABELS[:, None])
    assert kinds(source) == {"x": "image", "y": "class"}
    assert source.schema.supervised == ("x", "y")
    assert source.schema.features["y"].class_names == ("2", "7")
    assert source.split("test", "y") is None
    records = source.split("train", "y")
    np.testing.assert_array_equal(rows(records, "x"), IMAGES)
    np.testing.assert_array_equal(records.load(("y",))["y"], LABELS == 7)


@pytest.mark.parametrize("names", ["x_{}", "{}_x"])
def test_arrays_of_splits(tmp_path, names):
    label = names.replace("x", "y")
    arrays = {
        names.format("train"): IMAGES[:3],
        label.format("train"): LABELS[:3],
        names.format("test"): IMAGES[3:5],
        label.format("test"): LABELS[3:5],
        names.format("val"): IMAGES[5:],
        label.format("val"): LABELS[5:],
    }
    source = opened(tmp_path, **arrays)
    counts = {
        name: source.split(name, "y").num_examples for name in ("train", "test", "validation")
    }
    assert counts == {"train": 3, "test": 2, "validation": 1}
    np.testing.assert_array_equal(rows(source.split("test", "y"), "x"), IMAGES[3:5])


def test_what_has_no_split_in_its_name_is_for_training(tmp_path):
    source = opened(tmp_path, x=IMAGES, y=LABELS, x_test=IMAGES[:1])
    assert source.split("train", "y").num_examples == 6
    assert source.split("test", "y") is None and source.split("test", None).num_examples == 1


@pytest.mark.parametrize(
    ("array", "kind", "shape"),
    [
        (IMAGES[..., 0], "image", (4, 5, 1)),
        (IMAGES / 255.0, "image", (4, 5, 3)),
        (RANDOM.normal(size=(6, 4, 5)), "numbers", (4, 5)),
        (RANDOM.normal(size=(6, 4)), "numbers", (4,)),
        (RANDOM.normal(size=6), "number", ()),
        (np.arange(6), "number", ()),
        (np.array(["a film", "b", "c c", "d", "e", "f"]), "text", ()),
        (np.array(["a", "b", "a", "b", "a", "b"]), "class", ()),
        (np.array([True, False] * 3), "class", ()),
        (RANDOM.normal(size=(6, 2)) * 1j, "other", ()),
    ],
)
def test_type_and_shape_say_what_an_array_is(tmp_path, array, kind, shape):
    feature = opened(tmp_path, a=array).schema.features["a"]
    assert (feature.kind, feature.shape) == (kind, shape)


def test_masks_and_ids_are_known_by_their_names(tmp_path):
    source = opened(tmp_path, images=IMAGES, masks=IMAGES[..., 0] // 100, user_id=LABELS)
    assert kinds(source) == {"images": "image", "masks": "mask", "user_id": "id"}
    assert source.schema.supervised == ("images", "masks")
    found = rows(source.split("train", None), "masks")
    np.testing.assert_array_equal(found, IMAGES[..., :1] // 100)


def test_a_rate_makes_recordings(tmp_path):
    source = opened(tmp_path, x=IMAGES[:, :, 0, 0].astype(np.int16), y=LABELS, sample_rate=8000)
    assert source.schema.features["x"].sample_rate == 8000
    assert kinds(source) == {"x": "audio", "y": "class"}


def test_classes_can_be_named(tmp_path):
    source = opened(tmp_path, x=IMAGES, y=LABELS // 5, class_names=np.array(["low", "high"]))
    assert source.schema.features["y"].class_names == ("low", "high")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": LABELS, "class_names": np.array(["a", "b", "a"])}, "has 'a' twice"),
        ({"y": LABELS, "class_names": np.array(["a", "b", "c"])}, "y has the class 7, and the n"),
    ],
    ids=["twice", "too few"],
)
def test_names_of_classes_that_do_not_fit_are_refused(tmp_path, arrays, said):
    with pytest.raises(DataError, match=said):
        opened(tmp_path, x=IMAGES, **arrays)


def test_classes_of_bytes_that_are_no_utf8_stay_apart(tmp_path):
    source = opened(tmp_path, x=IMAGES, y=np.array([b"\xe8", b"\xe9"] * 3))
    assert source.schema.features["y"].class_names == ("\\xe8", "\\xe9")


def test_a_class_that_only_the_test_has_is_refused(tmp_path):
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS}
    assert opened(tmp_path, **arrays).split("test", "y") is not None
    source = opened(tmp_path, **{**arrays, "y_test": np.array([2, 7, 2, 7, 9, 2])})
    assert source.split("test", None) is not None
    with pytest.raises(DataError, match="the class '9' of 'y' is in the test split and not in"):
        source.split("test", "y")


LENGTHS = np.array([2, 1, 4, 3, 1, 2])
ONE_AFTER_ANOTHER = RANDOM.normal(size=(LENGTHS.sum(), 3)).astype(np.float32)
PADDED = np.full((6, 5, 3), 9.0, np.float32)
for i, (end, length) in enumerate(zip(np.cumsum(LENGTHS), LENGTHS, strict=True)):
    PADDED[i, :length] = ONE_AFTER_ANOTHER[end - length : end]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("x", [ONE_AFTER_ANOTHER, PADDED], ids=["packed", "padded"])
def test_lengths_say_how_long_examples_are(tmp_path, monkeypatch, x, mapped):
    if mapped:
        monkeypatch.setattr(npz_file, "MAPPED", 0)
    source = opened(tmp_path, x=x, y=LABELS, x_lengths=LENGTHS)
    assert source.schema.features["x"].shape == (None, 3)
    expected = np.split(ONE_AFTER_ANOTHER, np.cumsum(LENGTHS)[:-1])
    for found, one in zip(rows(source.split("train", "y"), "x"), expected, strict=True):
        np.testing.assert_array_equal(found, one)


def test_a_large_array_stays_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_file, "MAPPED", 100)
    big = np.asfortranarray(RANDOM.normal(size=(6, 4, 5)).astype(">f4"))
    source = opened(tmp_path, x=big, images=IMAGES[..., 0], y=LABELS)
    records = source.split("train", "y")
    np.testing.assert_array_equal(rows(records, "x"), big)
    np.testing.assert_array_equal(records.load(("images",))["images"][..., 0], IMAGES[..., 0])


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    first = opened(tmp_path, x=IMAGES, y=LABELS).fingerprint
    assert opened(tmp_path, x=IMAGES, y=LABELS).fingerprint == first
    assert opened(tmp_path, x=255 - IMAGES, y=LABELS).fingerprint != first


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.array([[1], [1, 2]], object), "y": LABELS[:2]}, "'x' holds Python objects"),
        ({"x": IMAGES, "y": LABELS[:4]}, "x has 6, y has 4"),
        (
            {"x": ONE_AFTER_ANOTHER, "y": LABELS, "lengths": LENGTHS + 1},
            "add up to 19, and no array",
        ),
        ({"x": PADDED, "y": LABELS, "lengths": LENGTHS + 3}, "rows of 7 or more: x 6, y 6"),
        ({"x": PADDED, "y": LABELS, "lengths": LENGTHS * 0}, r"lengths\[0\] is 0"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "x has no rows"),
        ({"x_test": IMAGES, "y_test": LABELS}, "no arrays to train on"),
        ({"x": IMAGES, "y": LABELS, "x_test": IMAGES / 2.0}, "x and x_test differ in type"),
        ({"x": np.ones(3, np.int16), "sample_rate": 0}, "sample_rate is 0"),
    ],
)
def test_arrays_that_do_not_belong_together_are_named(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        opened(tmp_path, **arrays)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_named_where_it_is_used(tmp_path, value):
    x = RANDOM.normal(size=(6, 4))
    x[3, 1] = value
    records = opened(tmp_path, x=x, y=LABELS).split("train", "y")
    assert set(records.load(("y",))["y"]) == {0, 1}
    with pytest.raises(DataError, match=rf"a.npz: x\[3, 1\] is {value}"):
        records.select(("x",))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no arrays")
    with pytest.raises(DataError, match="is no file of NumPy arrays"):
        open_source(str(tmp_path / "a.npz"))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.txt", "no arrays")
    with pytest.raises(DataError, match="holds no array"):
        open_source(str(tmp_path / "a.npz"))
    with pytest.raises(RequestError, match="is a folder"):
        open_source(str(tmp_path))
    with pytest.raises(RequestError, match="is not there"):
        open_source(str(tmp_path / "b.npz"))


# ---- through the tasks ---------------------------------------------------------------------

MASKS = (IMAGES[..., 0] > 100).astype(np.int64)
TEXTS = np.array([f"film {word} seen" for word in ("good", "bad", "fine", "dull", "new", "old")])


@pytest.mark.parametrize(
    ("task", "arrays", "features"),
    [
        ("classification", {"x": IMAGES, "y": LABELS}, {}),
        ("classification", {"a": IMAGES, "b": LABELS, "z": LABELS}, {"x": "a", "y": "b"}),
        ("segmentation", {"images": IMAGES, "masks": MASKS}, {}),
        ("text", {"x": TEXTS, "y": LABELS}, {}),
        ("audio", {"x": PADDED, "y": LABELS, "lengths": LENGTHS}, {}),
        ("recommendation", {"user": LABELS, "item": LABELS[::-1], "rating": LABELS / 2}, {}),
    ],
)
def test_a_task_whose_x_and_y_are_arrays_takes_them(tmp_path, task, arrays, features):
    np.savez(tmp_path / "a.npz", **{f"{name}_train": array for name, array in arrays.items()})
    settings = {"data_dir": None, "validation_fraction": 0.0, "image_size": None, "seed": 0}
    given = {"features": features, "options": lambda found: {**found.options, "tokens": None}}
    data = loading.load(f"npz:{tmp_path / 'a.npz'}", **settings, **given)
    assert data.task_name == task
    x, y = data.train.load_arrays()
    assert data.train.num_examples + data.test.num_examples == 6
    if task == "classification":
        found = np.concatenate([x, data.test.load_arrays()[0]])
        assert sorted(map(bytes, found)) == sorted(map(bytes, IMAGES))
        assert data.class_names == ("2", "7") and set(y) <= {0, 1}
