"""Batches as a function of (seed, epoch, step), from memory and from disk alike."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfgpu.data.examples import Examples
from tfgpu.data.inputs import evaluation_batches, make_resident, training_batches
from tfgpu.engine.batches import Batches, cut_rows, own_shard
from tfgpu.engine.shards import shard_of
from tfgpu.tasks import loading as sources

N, BATCH = 23, 6  # The last batch of an epoch has 5.
STEPS = 4
IMAGES = np.random.RandomState(0).randint(0, 256, (N, 8, 8, 3), np.uint8)
LABELS = np.arange(N, dtype=np.int32)  # Each its own: a label names its example.


@pytest.fixture(scope="module")
def examples():
    return Examples(
        num_examples=N,
        read=lambda positions: (tf.gather(IMAGES, positions), tf.gather(LABELS, positions)),
        decode=lambda image, label: (tf.ensure_shape(image, (8, 8, 3)), label),
    )


def finished(dataset, count=None):
    """The batches of a data set as one replica's step gets them."""
    resident = dataset.resident[0] if dataset.resident else ()
    return [
        [part.numpy() for part in dataset.device_map(element, resident)]
        for element in itertools.islice(dataset, count)
    ]


def training(examples, *, resident=False, count=3 * STEPS, **changes):
    settings = {"batch_size": BATCH, "seed": 5, "augment": ("crop", "flip"), **changes}
    variables = make_resident(examples, tf.distribute.get_strategy()) if resident else ()
    return finished(training_batches(examples, resident=variables, **settings), count)


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for part, other_part in zip(one, other, strict=True):
            assert part.dtype == other_part.dtype
            np.testing.assert_array_equal(part, other_part)


def labels(batches):
    return np.concatenate([label for _, label in batches]).tolist()


@pytest.fixture(scope="module")
def streamed(examples):
    return training(examples)


def test_resident_and_streaming_batches_are_the_same(examples, streamed):
    assert_same(training(examples, resident=True), streamed)


def test_files_give_the_same_resident_and_streaming(tmp_path):
    for name, image in zip("aabbabab", IMAGES[:8], strict=True):
        path = tmp_path / name / f"{image[0, 0, 0]}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    train = sources.load(
        f"folder:{tmp_path}", data_dir=None, validation_fraction=0.0, image_size=(6, 7), seed=0
    ).train
    settings = {"batch_size": 3, "count": 6}
    assert_same(training(train, resident=True, **settings), training(train, **settings))


def test_each_epoch_visits_each_example_once_in_an_order_of_its_own(streamed):
    epochs = [labels(streamed[STEPS * e : STEPS * (e + 1)]) for e in range(3)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(N))


def test_the_seed_decides_order_and_augmentation(examples, streamed):
    assert_same(training(examples), streamed)
    assert labels(training(examples, seed=6)) != labels(streamed)
    plain = training(examples, augment=())
    assert labels(plain) == labels(streamed)
    assert (plain[0][0] != streamed[0][0]).any()
    for image, label in zip(*plain[0], strict=True):
        np.testing.assert_array_equal(image, IMAGES[label])


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("start", [1, STEPS - 1, STEPS, 2 * STEPS + 3])
def test_a_later_start_goes_on_exactly(examples, streamed, start, resident):
    later = training(examples, resident=resident, start_step=start, count=3 * STEPS - start)
    assert_same(later, streamed[start:])


def test_an_example_is_changed_differently_in_each_epoch(examples):
    one = [training(examples, batch_size=N, count=2)[epoch] for epoch in (0, 1)]
    by_label = [image[np.argsort(label)] for image, label in one]
    assert (by_label[0] != by_label[1]).any(axis=(1, 2, 3)).sum() > N // 2


def by_label(batches):
    """The images of an epoch's batches, in the order of their labels."""
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return images[np.argsort(labels)]


@pytest.mark.parametrize("resident", [True, False])
def test_two_epochs_of_an_alternating_flip_show_each_image_both_ways(examples, resident):
    batches = training(examples, resident=resident, augment=("alternating_flip",))
    first, second, third = (by_label(batches[at : at + STEPS]) for at in range(0, 12, STEPS))
    mirrored = (first != IMAGES).any(axis=(1, 2, 3))
    assert 0 < mirrored.sum() < N
    np.testing.assert_array_equal(first[mirrored], IMAGES[mirrored, :, ::-1])
    np.testing.assert_array_equal(second, first[:, :, ::-1])
    np.testing.assert_array_equal(third, first)


def test_an_alternating_flip_leaves_the_numbers_of_others_alone(examples):
    def crops(names):
        settings = {"batch_size": BATCH, "seed": 5, "augment": names}
        (draws, *_), *_ = itertools.islice(training_batches(examples, **settings), 1)
        return draws.numpy()[:, 1:]

    flips = crops(("flip", "crop"))
    np.testing.assert_array_equal(crops(("alternating_flip", "crop")), flips)


def test_an_alternating_flip_goes_on_in_the_middle_of_an_epoch(examples):
    settings = {"augment": ("alternating_flip", "crop")}
    whole = training(examples, **settings)
    assert_same(training(examples, start_step=6, count=6, **settings), whole[6:])


def test_an_epoch_without_a_remainder_has_whole_batches_of_other_examples(examples):
    dataset = training_batches(examples, batch_size=BATCH, seed=5, drop_remainder=True)
    assert dataset.steps_per_epoch == 3
    assert dataset.element_spec[-1].shape == (BATCH,)
    seen = [labels(finished(dataset.from_step(3 * epoch), 3)) for epoch in range(3)]
    assert [len(set(each)) for each in seen] == [18, 18, 18]
    assert len({tuple(sorted(each)) for each in seen}) == 3


def test_a_batch_larger_than_the_data_without_a_remainder_is_refused(examples):
    with pytest.raises(ValueError, match="batches of 24 .* there are 23"):
        training_batches(examples, batch_size=24, seed=5, drop_remainder=True)


@pytest.mark.parametrize("resident", [False, True])
def test_the_replicas_shards_make_one_replicas_batch(examples, streamed, mirrored2, resident):
    arrays = make_resident(examples, mirrored2) if resident else ()
    dataset = training_batches(
        examples, batch_size=BATCH, seed=5, augment=("crop", "flip"), resident=arrays
    )
    batches = Batches(dataset, mirrored2)
    iterator = iter(batches)

    def shard(element):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        mine = own_shard(element, whole=batches.whole)
        arrays = dataset.resident[int(tf.get_static_value(replica))] if resident else ()
        images, label = dataset.device_map(mine.data, arrays)
        return images[: mine.real], label[: mine.real]

    @tf.function
    def step(element):
        return mirrored2.run(shard, args=(element,))

    for images, label in streamed[: STEPS + 1]:
        parts = [mirrored2.experimental_local_results(part) for part in step(next(iterator))]
        assert [len(part) for part in parts[1]] == [3, len(label) - 3]
        np.testing.assert_array_equal(np.concatenate(parts[0]), images)
        np.testing.assert_array_equal(np.concatenate(parts[1]), label)


@pytest.mark.parametrize("resident", [False, True])
def test_evaluation_visits_each_example_once_in_order(examples, resident):
    variables = make_resident(examples, tf.distribute.get_strategy()) if resident else ()
    dataset = evaluation_batches(examples, batch_size=BATCH, resident=variables)
    batches = finished(dataset)
    assert len(batches) == dataset.steps_per_epoch == STEPS
    np.testing.assert_array_equal(np.concatenate([image for image, _ in batches]), IMAGES)
    assert labels(batches) == list(range(N))
    assert_same(finished(dataset), batches)


def test_sizes_are_static_where_every_batch_is_full(examples):
    full = training_batches(examples.take(np.arange(18)), batch_size=BATCH, seed=0)
    assert all(spec.shape[0] == BATCH for spec in full.element_spec)
    assert full.steps_per_epoch == 3


def test_training_batches_say_that_they_have_no_end(examples):
    # A model watches data that may end; that costs each execution.
    dataset = training_batches(examples, batch_size=BATCH, seed=5)
    assert int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY


def test_nothing_tunes_a_pipeline_and_holds_its_end_up(examples):
    """The thread that does so sleeps for up to a minute, and an iterator's end waits for it."""
    assert training_batches(examples, batch_size=BATCH, seed=0).options().autotune.enabled is False
    assert evaluation_batches(examples, batch_size=BATCH).options().autotune.enabled is False
    assert examples.dataset().options().autotune.enabled is False


# ---- what a process reads ------------------------------------------------------------------------


def noting(noted):
    """Examples that note the positions at which they are read."""

    def read(positions):
        note = tf.numpy_function(lambda p: noted.extend(p.tolist()) or p, [positions], tf.int64)
        positions = tf.ensure_shape(note, positions.shape)
        return tf.gather(IMAGES, positions), tf.gather(LABELS, positions)

    return Examples(N, read, lambda image, label: (tf.ensure_shape(image, (8, 8, 3)), label))


@pytest.mark.parametrize("replicas", [2, 3])
def test_a_process_reads_the_rows_of_its_own_replicas_alone(replicas):
    read = []
    for replica in range(replicas):
        noted = []
        dataset = evaluation_batches(noting(noted), batch_size=BATCH)
        cut = functools.partial(
            cut_rows, local=range(replica, replica + 1), replicas=replicas, even=False
        )
        for shard in dataset.cut(cut):
            assert shard.real == len(shard.data[2])
        read.append(noted)
    assert sorted(itertools.chain(*read)) == list(range(N))
    assert max(map(len, read)) - min(map(len, read)) <= STEPS


@pytest.mark.parametrize("local", [range(1), range(1, 2), range(2, 4)])
@pytest.mark.parametrize("resident", [False, True])
def test_rows_that_are_cut_before_they_are_read_are_those_of_the_batch(examples, local, resident):
    arrays = make_resident(examples, tf.distribute.get_strategy()) if resident else ()
    dataset = training_batches(
        examples, batch_size=BATCH, seed=5, augment=("crop",), resident=arrays, start_step=2
    )
    cut = functools.partial(cut_rows, local=local, replicas=4, even=False)
    parts = itertools.islice(dataset.cut(cut), 3 * len(local))
    for element in itertools.islice(dataset, 3):
        for replica in local:
            expected, shard = shard_of(element, replica=replica, replicas=4), next(parts)
            assert (shard.real, shard.total) == (expected.real, expected.total)
            for one, other in zip(expected.data, shard.data, strict=True):
                np.testing.assert_array_equal(one, other)
