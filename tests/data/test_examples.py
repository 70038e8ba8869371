"""Random access to examples, and the rule of resizing."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfgpu.data.examples import Examples, data_errors, python_op, resize
from tfgpu.errors import DataError

IMAGES = np.random.RandomState(0).randint(0, 256, (600, 4, 5, 3), np.uint8)
LABELS = np.arange(600, dtype=np.int32) % 7


@pytest.fixture
def examples():
    def decode(image, label):
        return tf.ensure_shape(image, (4, 5, 3)), label

    def read(positions):
        return tf.gather(IMAGES, positions), tf.gather(LABELS, positions)

    return Examples(num_examples=600, read=read, decode=decode)


def test_load_arrays_gives_every_example_in_natural_order(examples):
    images, labels = examples.load_arrays()
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)


def test_load_arrays_reports_progress_up_to_the_end(examples):
    seen = []
    examples.load_arrays(lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (600, 600)


def test_nbytes_is_that_of_the_arrays(examples):
    assert examples.nbytes == sum(array.nbytes for array in examples.load_arrays())


def test_take_of_take_composes(examples):
    view = examples.take(np.array([5, 3, 599, 3])).take(np.array([2, 0]))
    images, labels = view.load_arrays()
    np.testing.assert_array_equal(images, IMAGES[[599, 5]])
    np.testing.assert_array_equal(labels, LABELS[[599, 5]])


@pytest.mark.parametrize("position", [-1, 600])
def test_take_refuses_positions_outside(examples, position):
    with pytest.raises(IndexError, match="600"):
        examples.take(np.array([0, position]))


def test_take_of_nothing_is_empty(examples):
    images, labels = examples.take(np.array([], np.int64)).load_arrays()
    assert images.shape == (0, 4, 5, 3) and labels.shape == (0,)


def test_dataset_follows_the_positions(examples):
    order = np.random.RandomState(1).permutation(600)
    found = [
        int(label)
        for _, label in examples.dataset(tf.data.Dataset.from_tensor_slices(order.astype(np.int64)))
    ]
    np.testing.assert_array_equal(found, LABELS[order])


def test_dataset_has_a_static_shape(examples):
    assert examples.dataset().element_spec[0].shape == (4, 5, 3)
    assert examples.image_shape == (4, 5, 3)


def test_a_data_error_in_the_graph_keeps_its_message():
    def fail(position):
        raise DataError(f"/a/file (with marks: [x], {{y}}) is broken at {position}")

    dataset = tf.data.Dataset.range(3).map(lambda i: python_op(fail, [i], tf.uint8))
    with pytest.raises(DataError, match=r"^/a/file \(with marks: \[x\], \{y\}\) is broken at 0$"):
        with data_errors():
            list(dataset)


def test_other_errors_of_the_graph_pass_unchanged():
    with pytest.raises(tf.errors.InvalidArgumentError):
        with data_errors():
            tf.io.decode_png(b"no image")


def test_load_arrays_names_the_example_that_does_not_decode():
    good = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
    records = tf.constant([good] * 300 + [b"no image"] + [good] * 9)
    examples = Examples(
        num_examples=310,
        read=lambda positions: (tf.gather(records, positions),),
        decode=lambda record: (
            tf.ensure_shape(tf.io.decode_png(record, channels=3), (4, 4, 3)),
            tf.constant(0),
        ),
    )
    with pytest.raises(DataError, match="example 300 cannot be decoded"):
        examples.load_arrays()


@pytest.mark.parametrize("size", [(2, 3), (9, 8), (4, 10)])
def test_resize_agrees_with_pillow(size):
    image = IMAGES[0]
    ours = resize(tf.constant(image), size).numpy()
    pillow = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    assert ours.dtype == np.uint8 and ours.shape == (*size, 3)
    # Pillow rounds its weights to 8 bits and between the two directions.
    assert np.abs(ours.astype(int) - pillow).max() <= 1


def test_resize_of_a_batch_is_that_of_each_image():
    batch = resize(tf.constant(IMAGES[:3]), (7, 2)).numpy()
    for one, image in zip(batch, IMAGES[:3], strict=True):
        np.testing.assert_array_equal(one, resize(tf.constant(image), (7, 2)).numpy())


def test_resize_to_its_own_size_changes_nothing():
    np.testing.assert_array_equal(resize(tf.constant(IMAGES[0]), (4, 5)).numpy(), IMAGES[0])
