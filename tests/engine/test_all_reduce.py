"""Sums over the replicas: which tensors travel together, in which order, and what arrives."""

import numpy as np
import pytest
import tensorflow as tf

from tfgpu.engine import all_reduce
from tfgpu.engine.all_reduce import buckets, sum_over_replicas


def tensors(*elements, dtype=tf.float32):
    return [None if n is None else tf.zeros(n, dtype) for n in elements]


def test_the_last_tensors_travel_first_in_buckets_that_are_filled():
    assert buckets(tensors(3, 3, 4, 4, 2), bucket_bytes=4 * 8) == [[4, 3], [2, 1], [0]]


def test_a_tensor_that_fills_a_bucket_travels_by_itself():
    assert buckets(tensors(2, 8, 2, 20), bucket_bytes=4 * 8) == [[3], [1], [2, 0]]


def test_a_bucket_is_of_one_dtype_and_nothing_travels_for_none():
    mixed = [*tensors(1, None, 1), *tensors(1, dtype=tf.int64), *tensors(1)]
    assert buckets(mixed, bucket_bytes=1024) == [[3], [4, 2, 0]]


def test_a_bucket_travels_as_soon_as_the_last_of_its_tensors_is_there():
    # The small ones have to wait for the first, and the large one has not.
    assert buckets(tensors(1, 8, 1), bucket_bytes=4 * 8) == [[1], [2, 0]]


@pytest.mark.parametrize(("layers", "count"), [(10, 2), (100, 13), (1000, 32), (8000, 32)])
def test_there_are_no_more_buckets_than_their_latency_allows(layers, count):
    # Of half a megabyte each.
    layer = tf.TensorSpec([1 << 17])
    assert len(buckets([layer] * layers)) == pytest.approx(count, abs=1)


@pytest.mark.parametrize("bucket_bytes", [1, 8, 64, 1 << 30])
def test_each_tensor_is_in_one_bucket(bucket_bytes):
    some = tensors(*np.random.RandomState(0).randint(0, 20, 50))
    found = buckets(some, bucket_bytes=bucket_bytes)
    assert sorted(i for bucket in found for i in bucket) == list(range(50))


@pytest.mark.parametrize("bucket_bytes", [16, all_reduce.BUCKET_BYTES])
def test_sums_over_replicas_keep_shapes_dtypes_and_none(mirrored2, monkeypatch, bucket_bytes):
    monkeypatch.setattr(all_reduce, "BUCKET_BYTES", bucket_bytes)

    def replica():
        context = tf.distribute.get_replica_context()
        one = tf.cast(context.replica_id_in_sync_group + 1, tf.float32)
        tensors = [
            one * tf.reshape(tf.range(6.0), (2, 3)),
            None,
            tf.cast(one, tf.float16) * tf.constant([1.5, 2.5], tf.float16),
            one,
            tf.zeros((0, 4)),
            one * tf.ones((1100, 1000)),  # Large enough to travel by itself.
            tf.cast(one, tf.int64),
        ]
        sums = sum_over_replicas(context, tensors)
        assert sums[1] is None
        return [s for s in sums if s is not None]

    results = tf.function(lambda: mirrored2.run(replica), autograph=False)()
    expected = [
        3 * np.arange(6.0).reshape(2, 3),
        np.float16([4.5, 7.5]),
        3.0,
        np.zeros((0, 4)),
        np.full((1100, 1000), 3.0),
        3,
    ]
    for result, value in zip(results, expected, strict=True):
        for copy in mirrored2.experimental_local_results(result):
            np.testing.assert_array_equal(copy, value)
