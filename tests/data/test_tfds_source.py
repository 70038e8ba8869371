"""TFDS sets by name: prepared ones are read, others refused in time and with the remedy."""

import http.server
import os
import threading
import time
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfgpu.data import tfds_source
from tfgpu.errors import DataError, RequestError
from tfgpu.tasks import loading as sources

IMAGE = tfds.features.Image
CLASSES = tfds.features.ClassLabel


class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set made to measure: `prepare` derives a class from it."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES = {}
    SUPERVISED = ("image", "label")
    SPLITS = {}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self.FEATURES),
            supervised_keys=self.SUPERVISED,
            license="CC0",
            citation="@misc{tiny}",
            homepage="https://example.org",
        )

    def _split_generators(self, dl_manager):
        return {split: iter(enumerate(rows)) for split, rows in self.SPLITS.items()}

    def _generate_examples(self):
        yield from ()


def rows(count, *, shape=(6, 5, 3), label=None, seed=0):
    random = np.random.RandomState(seed)
    return [
        {
            "image": random.randint(0, 256, shape, np.uint8),
            "label": i % 3 if label is None else label,
        }
        for i in range(count)
    ]


def prepare(
    data_dir,
    splits,
    *,
    features=None,
    name="tiny",
    version="1.0.0",
    file_format=None,
    config=None,
    supervised_keys=("image", "label"),
):
    default = {"image": IMAGE(shape=(6, 5, 3)), "label": CLASSES(names=["a", "b", "c"])}
    builder_class = type(
        name.capitalize(),
        (Tiny,),
        {
            "name": name,
            "VERSION": tfds.core.Version(version),
            "FEATURES": features or default,
            "SPLITS": splits,
            "SUPERVISED": supervised_keys,
            "__module__": __name__,
        },
        skip_registration=True,
    )
    builder = builder_class(data_dir=str(data_dir), file_format=file_format)
    with tfds_source.quiet():
        builder.download_and_prepare(download_config=config)
    return builder


def load(name, data_dir, **changes):
    settings = {"validation_fraction": 0.0, "image_size": None, "seed": 0, **changes}
    return sources.load(name, data_dir=str(data_dir), **settings)


def test_gives_what_tfds_gives_in_permuted_order(tmp_path):
    builder = prepare(tmp_path, {"train": rows(40), "test": rows(9, seed=1)})
    dataset = load("tiny", tmp_path)
    theirs = list(tfds.as_numpy(builder.as_dataset("train")))
    order = np.random.RandomState(0).permutation(40)
    images, labels = dataset.train.take(order).load_arrays()
    np.testing.assert_array_equal(images, [theirs[i]["image"] for i in order])
    np.testing.assert_array_equal(labels, [theirs[i]["label"] for i in order])


def test_describes_the_set(tmp_path):
    prepare(tmp_path, {"train": rows(40), "test": rows(9)})
    dataset = load("tiny", tmp_path)
    assert (dataset.name, dataset.version, dataset.license) == ("tiny", "1.0.0", "CC0")
    assert dataset.citation == "@misc{tiny}" and dataset.homepage == "https://example.org"
    assert dataset.image_shape == (6, 5, 3)
    assert dataset.class_names == ("a", "b", "c")


def test_several_files_a_split(tmp_path):
    config = tfds.download.DownloadConfig(num_shards=4)
    builder = prepare(tmp_path, {"train": rows(40), "test": rows(9)}, config=config)
    assert len(builder.info.splits["train"].filepaths) == 4
    images, _ = load("tiny", tmp_path).train.load_arrays()
    theirs = [row["image"] for row in tfds.as_numpy(builder.as_dataset("train"))]
    np.testing.assert_array_equal(images, theirs)


def test_array_record_gives_the_same_examples(tmp_path):
    splits = {"train": rows(40), "test": rows(9)}
    prepare(tmp_path / "a", splits)
    prepare(tmp_path / "b", splits, file_format="array_record")
    order = np.random.RandomState(0).permutation(40)
    ours = load("tiny", tmp_path / "b").train.take(order).load_arrays()
    expected = load("tiny", tmp_path / "a").train.take(order).load_arrays()
    np.testing.assert_array_equal(ours[0], expected[0])
    np.testing.assert_array_equal(ours[1], expected[1])


def test_the_highest_version_that_fits_is_taken(tmp_path):
    splits = {"train": rows(20), "test": rows(3)}
    for version in ("1.9.0", "1.10.0", "2.0.0"):
        prepare(tmp_path, splits, version=version)
    assert load("tiny", tmp_path).version == "2.0.0"
    assert load("tiny:1.*.*", tmp_path).version == "1.10.0"
    assert load("tiny:1.9.0", tmp_path).version == "1.9.0"


def test_the_fingerprint_changes_with_the_content(tmp_path):
    prepare(tmp_path / "a", {"train": rows(20), "test": rows(3)})
    prepare(tmp_path / "b", {"train": rows(20), "test": rows(3)})
    prepare(tmp_path / "c", {"train": rows(21), "test": rows(3)})
    a, b, c = (load("tiny", tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_the_environment_names_the_data_dir(tmp_path, monkeypatch):
    prepare(tmp_path, {"train": rows(20), "test": rows(3)})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    dataset = sources.load("tiny", data_dir=None, validation_fraction=0.0, image_size=None, seed=0)
    assert dataset.train.num_examples == 20


@pytest.mark.parametrize(
    ("splits", "expected", "count"),
    [
        ({"train": rows(30), "validation": rows(4), "test": rows(5)}, "test", 5),
        ({"train": rows(30), "validation": rows(4), "test": rows(5, label=-1)}, "validation", 4),
        ({"train": rows(30), "test": rows(5, label=-1)}, "a tenth of train", 3),
        ({"train": rows(30)}, "a tenth of train", 3),
    ],
)
def test_the_test_split_is_a_labelled_one(tmp_path, splits, expected, count):
    prepare(tmp_path, splits)
    dataset = load("tiny", tmp_path)
    assert (dataset.test_split, dataset.test.num_examples) == (expected, count)
    assert dataset.train.num_examples == (27 if expected == "a tenth of train" else 30)


def test_no_training_split_is_refused(tmp_path):
    prepare(tmp_path, {"test": rows(5)})
    with pytest.raises(RequestError, match="'tiny' has no training split"):
        load("tiny", tmp_path)


def test_image_size_is_needed_when_sizes_differ(tmp_path):
    features = {"image": IMAGE(shape=(None, None, 3)), "label": CLASSES(num_classes=3)}
    splits = {"train": rows(5) + rows(5, shape=(9, 4, 3)), "test": rows(3)}
    prepare(tmp_path, splits, features=features)
    with pytest.raises(RequestError, match="'tiny' differ in size.*--image_size"):
        load("tiny", tmp_path)
    images, _ = load("tiny", tmp_path, image_size=(7, 8)).train.load_arrays()
    assert images.shape == (10, 7, 8, 3)


def test_grey_images_keep_one_channel(tmp_path):
    features = {"image": IMAGE(shape=(6, 5, 1)), "label": CLASSES(num_classes=3)}
    prepare(tmp_path, {"train": rows(9, shape=(6, 5, 1))}, features=features)
    assert load("tiny", tmp_path).train.load_arrays()[0].shape == (8, 6, 5, 1)


@pytest.mark.parametrize(
    ("features", "supervised", "row", "found"),
    [
        (
            {
                "level": tfds.features.Scalar(dtype=np.float32),
                "file": tfds.features.Text(),
                "label": CLASSES(num_classes=2),
            },
            ("level", "label"),
            {"level": 0.5, "file": "a name", "label": 0},
            "file: Text",
        ),
        (
            {
                "image": IMAGE(shape=(6, 5, 3)),
                "label": tfds.features.Sequence(tfds.features.Text()),
            },
            ("image", "label"),
            {"image": np.zeros((6, 5, 3), np.uint8), "label": ["a", "b"]},
            "label: Sequence",
        ),
        (
            {
                "image": IMAGE(shape=(6, 5, 3)),
                "age": tfds.features.Scalar(dtype=np.float32),
            },
            ("image", "age"),
            {"image": np.zeros((6, 5, 3), np.uint8), "age": 3.5},
            "age: Scalar",
        ),
    ],
)
def test_other_sets_are_refused_with_what_they_hold(tmp_path, features, supervised, row, found):
    prepare(tmp_path, {"train": [row] * 3}, features=features, supervised_keys=supervised)
    with pytest.raises(RequestError, match=f"not an image-classification set.*{found}"):
        load("tiny", tmp_path)


def test_a_set_that_fits_no_task_is_refused_before_its_download(tmp_path):
    with pytest.raises(RequestError, match="not an image-classification set.*speech: Audio"):
        load("ljspeech", tmp_path)


def test_wide_images_are_refused(tmp_path):
    features = {
        "image": IMAGE(shape=(6, 5, 1), dtype=np.uint16, encoding_format="png"),
        "label": CLASSES(num_classes=3),
    }
    image = np.zeros((6, 5, 1), np.uint16)
    prepare(tmp_path, {"train": [{"image": image, "label": 0}] * 3}, features=features)
    with pytest.raises(RequestError, match="uint16"):
        load("tiny", tmp_path)


@pytest.mark.parametrize(
    ("name", "meant"), [("cifr10", "cifar10"), ("CIFAR10", "cifar10"), ("digit", "digits")]
)
def test_an_unknown_name_suggests_close_ones(tmp_path, name, meant):
    with pytest.raises(RequestError, match=f"no data set '{name}'.*did you mean.*{meant}"):
        load(name, tmp_path)


def test_a_set_of_the_users_own_is_suggested(tmp_path):
    prepare(tmp_path, {"train": rows(5)})
    with pytest.raises(RequestError, match="did you mean.*tiny"):
        load("tinny", tmp_path)


@pytest.mark.parametrize(
    "name", ["", "two words", "huggingface:mnist", "a/b/c/d", "cifar10:latest", "../tiny"]
)
def test_what_is_no_name_is_refused(tmp_path, name):
    with pytest.raises(RequestError, match="not a data set"):
        load(name, tmp_path)


def test_an_unknown_configuration_names_the_others(tmp_path):
    with pytest.raises(RequestError, match="no configuration 'digit', but digits"):
        load("emnist/digit", tmp_path)


def test_an_unknown_version_names_the_known(tmp_path):
    with pytest.raises(RequestError, match="9.9.9.*3.0.2"):
        load("cifar10:9.9.9", tmp_path)


def test_without_network_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "network_reachable", lambda urls: False)
    with pytest.raises(DataError, match=f"tfds build mnist --data_dir={tmp_path}.*digits"):
        load("mnist", tmp_path)
    assert not os.listdir(tmp_path)


def test_files_to_fetch_by_hand_are_said(tmp_path):
    with pytest.raises(DataError, match="imagenet2012.*by hand.*digits"):
        load("imagenet2012", tmp_path)


def test_a_host_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(tfds_source, "_answers", lambda url, seconds: time.sleep(20))
    start = time.monotonic()
    assert not tfds_source.network_reachable(["https://example.org/a.zip"], seconds=0.2)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "url",
    # Reserved for this: a name that never resolves, an address that nobody has.
    ["https://tfgpu.invalid/a.zip", "http://192.0.2.1/a.zip", "https://127.0.0.1:1/a.zip"],
)
def test_a_host_that_is_not_there_is_given_up(monkeypatch, url):
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    start = time.monotonic()
    assert not tfds_source.network_reachable([url], seconds=1.0)
    assert time.monotonic() - start < 5


def test_one_host_that_answers_is_enough(monkeypatch):
    monkeypatch.setattr(tfds_source, "_answers", lambda url, seconds: url == "https://up.org/")
    assert tfds_source.network_reachable(["https://down.org/a", "https://up.org/b"])
    assert not tfds_source.network_reachable(["https://down.org/a", "ftp://up.org/b"])


def test_a_server_that_refuses_is_a_server(monkeypatch):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *args):
            pass

    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert tfds_source.network_reachable([f"http://127.0.0.1:{server.server_port}/a.zip"])


def test_a_failed_download_says_why(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise tfds.download.DownloadError("404 for the file")

    monkeypatch.setattr(tfds_source, "network_reachable", lambda urls: True)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(DataError, match="mnist.*404 for the file.*tfds build mnist"):
        load("mnist", tmp_path)


def test_metadata_that_cannot_be_read_is_named(tmp_path):
    prepare(tmp_path, {"train": rows(5), "test": rows(3)})
    (tmp_path / "tiny/1.0.0/features.json").write_text("{")
    with pytest.raises(DataError, match="tiny/1.0.0 does not hold a readable data set"):
        load("tiny", tmp_path)


def test_a_remote_data_dir_is_refused():
    with pytest.raises(RequestError, match="local directory, not 'gs://bucket'"):
        load("cifar10", "gs://bucket")


@pytest.mark.skipif("TFDS_DATA_DIR" not in os.environ, reason="needs CIFAR-10 in TFDS_DATA_DIR")
def test_cifar10():
    dataset = load("cifar10", os.environ["TFDS_DATA_DIR"])
    if dataset.train.num_examples != 50_000:
        pytest.skip("TFDS_DATA_DIR holds another CIFAR-10")
    assert dataset.test.num_examples == 10_000
    assert dataset.class_names[:2] == ("airplane", "automobile")
    order = np.random.RandomState(0).permutation(10_000)[:300]
    images, labels = dataset.test.take(order).load_arrays()
    builder = tfds.builder("cifar10", data_dir=os.environ["TFDS_DATA_DIR"])
    rows_of_tfds = builder.as_dataset("test", as_supervised=True).batch(10_000)
    their_images, their_labels = next(iter(rows_of_tfds))
    np.testing.assert_array_equal(images, tf.gather(their_images, order))
    np.testing.assert_array_equal(labels, tf.gather(their_labels, order))
