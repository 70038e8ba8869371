"""Examples that are mixed: by the batch alone, whoever computes it; and their labels."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfgpu.data.augment import draw_numbers, random_crop
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import ClassWeights, make_resident, training_batches
from tfgpu.engine.batches import Batches, own_shard
from tfgpu.engine.shards import Shard
from tfgpu.models.classification_loss import MixedAccuracy, classification_loss

N, BATCH, STEPS = 23, 6, 4  # The last batch of an epoch has 5.
RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (N, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(N, dtype=np.int32)  # Each its own: a label names its example.


@pytest.fixture(scope="module")
def examples():
    return Examples(
        num_examples=N,
        read=lambda positions: (tf.gather(IMAGES, positions), tf.gather(LABELS, positions)),
        decode=lambda image, label: (tf.ensure_shape(image, (8, 8, 3)), label),
    )


def batches_of(examples, *, augment, resident=(), **changes):
    settings = {"batch_size": BATCH, "seed": 5, "num_classes": N, **changes}
    return training_batches(examples, augment=augment, resident=resident, **settings)


def finished(dataset, count=2 * STEPS):
    resident = dataset.resident[0] if dataset.resident else ()
    return [
        [part.numpy() for part in dataset.device_map(element, resident)]
        for element in itertools.islice(dataset, count)
    ]


@pytest.mark.parametrize("augment", [("mixup",), ("crop", "cutmix", "flip")])
def test_resident_and_streaming_batches_are_the_same(examples, augment):
    arrays = make_resident(examples, tf.distribute.get_strategy())
    pairs = zip(
        finished(batches_of(examples, augment=augment)),
        finished(batches_of(examples, augment=augment, resident=arrays)),
        strict=True,
    )
    for streamed, resident in pairs:
        for one, other in zip(streamed, resident, strict=True):
            np.testing.assert_array_equal(other, one)


def test_each_example_is_mixed_with_the_one_before_it_changed_as_in_its_own_place(examples):
    plain = finished(batches_of(examples, augment=("crop",)), 1)[0]
    mixed = finished(batches_of(examples, augment=("crop", "mixup")), 1)[0]
    drawn = draw_numbers(BATCH, width=3, seed=5, step=tf.constant(0, tf.int64)).numpy()
    # Of two augmentations the numbers of an example are others than of one.
    cropped = random_crop(tf.constant(IMAGES[plain[1]]), drawn[:, :2]).numpy().astype(float)
    share = drawn[:, 2:]
    images = share[:, :, None, None] * cropped
    images += (1 - share[:, :, None, None]) * np.roll(cropped, 1, axis=0)
    assert np.abs(mixed[0] - images).max() < 0.51
    own, theirs = np.eye(N)[plain[1]], np.eye(N)[np.roll(plain[1], 1)]
    np.testing.assert_allclose(mixed[1], share * own + (1 - share) * theirs, rtol=1e-6)


@pytest.mark.parametrize("resident", [False, True])
def test_the_replicas_shards_make_one_replicas_batch(examples, mirrored2, resident):
    arrays = make_resident(examples, mirrored2) if resident else ()
    dataset = batches_of(examples, augment=("crop", "mixup"), resident=arrays)
    batches = Batches(dataset, mirrored2)
    iterator = iter(batches)

    def shard(element):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        mine = own_shard(element, whole=batches.whole)
        arrays = dataset.resident[int(tf.get_static_value(replica))] if resident else ()
        images, classes = dataset.device_map(mine.data, arrays)
        return images[: mine.real], classes[: mine.real]

    @tf.function
    def step(element):
        return mirrored2.run(shard, args=(element,))

    for images, classes in finished(batches_of(examples, augment=("crop", "mixup")), STEPS + 1):
        parts = [mirrored2.experimental_local_results(part) for part in step(next(iterator))]
        assert [len(part) for part in parts[1]] == [3, len(classes) - 3]
        np.testing.assert_array_equal(np.concatenate(parts[0]), images)
        np.testing.assert_array_equal(np.concatenate(parts[1]), classes)


def test_what_is_cut_before_it_is_read_is_the_same(examples):
    """Of several processes each reads its own rows, and those that they are mixed with."""
    dataset = batches_of(examples, augment=("crop", "mixup"))
    rows = slice(2, 5)

    def as_shard(numbers):
        return numbers.map(
            lambda draws, positions: Shard((draws[rows], positions[rows]), real=3, total=BATCH)
        )

    [whole] = finished(dataset, 1)
    element = next(iter(dataset.cut(as_shard)))
    images, classes = dataset.device_map(element.data, ())
    np.testing.assert_array_equal(images, whole[0][rows])
    np.testing.assert_array_equal(classes, whole[1][rows])


def test_weights_of_classes_are_mixed_too(examples):
    weights = ClassWeights(tuple(float(i) for i in range(N)))
    dataset = batches_of(examples, augment=("mixup",), class_weights=weights)
    _, classes, given = finished(dataset, 1)[0]
    np.testing.assert_allclose(given, classes @ np.arange(N), rtol=1e-5)


@pytest.mark.parametrize(
    ("augment", "changes", "said"),
    [
        (("mixup", "cutmix"), {}, "mixup and cutmix both mix examples"),
        (("mixup",), {"num_classes": 0}, "num_classes says how many"),
    ],
)
def test_what_cannot_be_mixed_is_refused(examples, augment, changes, said):
    with pytest.raises(ValueError, match=said):
        batches_of(examples, augment=augment, **changes)


# ---- labels that are probabilities --------------------------------------------------------------


LOGITS = RANDOM.normal(size=(5, 3)).astype(np.float32)
CLASSES = RANDOM.dirichlet([1, 1, 1], 5).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_takes_labels_and_probabilities(smoothing):
    loss = classification_loss(num_classes=3, label_smoothing=smoothing, mixed=True)
    logs = np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True))
    for given, classes in ((CLASSES, CLASSES), ([0, 1, 2, 2, 1], np.eye(3)[[0, 1, 2, 2, 1]])):
        targets = classes * (1 - smoothing) + smoothing / 3
        expected = -(targets * logs).sum(axis=1).mean()
        assert float(loss(tf.constant(given), LOGITS)) == pytest.approx(expected, rel=1e-5)


def test_accuracy_takes_labels_and_probabilities():
    labels = CLASSES.argmax(axis=1)
    expected = (labels == LOGITS.argmax(axis=1)).mean()
    for given in (CLASSES, labels):
        metric = MixedAccuracy()
        metric.update_state(tf.constant(given), LOGITS)
        assert float(metric.result()) == pytest.approx(expected)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert isinstance(again, MixedAccuracy) and again.name == "accuracy"
