"""How a batch is cut into the replicas' rows."""

import numpy as np
import pytest
import tensorflow as tf

from tfgpu.engine.shards import Rows, row_count, shard_of


def _shards(batch, replicas):
    return [shard_of(batch, replica=replica, replicas=replicas) for replica in range(replicas)]


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 24])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_every_row_is_one_replicas_and_in_order(rows, replicas, static):
    batch = tf.reshape(tf.range(2 * rows), [rows, 2])

    def cut(tensor):
        return [
            (shard.data, shard.real, shard.total)
            for shard in (shard_of(tensor, replica=r, replicas=replicas) for r in range(replicas))
        ]

    spec = tf.TensorSpec([rows if static else None, 2], tf.int32)
    shards = tf.function(cut, input_signature=[spec])(batch)
    counted = [data[:real] for data, real, _ in shards]
    np.testing.assert_array_equal(tf.concat(counted, axis=0), batch)
    assert {int(total) for _, _, total in shards} == {rows}
    sizes = [int(real) for _, real, _ in shards]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_replica_for_which_no_row_is_left_gets_one_of_the_batch(rows):
    batch = tf.range(rows)
    for shard in _shards(batch, 4):
        assert shard.data.shape[0] >= 1
        assert set(shard.data.numpy()) <= set(range(rows))


def test_static_shapes_stay_static():
    @tf.function(input_signature=[tf.TensorSpec([7, 3])])
    def shapes(batch):
        parts = _shards(batch, 2)
        assert [part.data.shape.as_list() for part in parts] == [[4, 3], [3, 3]]
        assert [part.real for part in parts] == [4, 3]
        return batch

    shapes(tf.zeros((7, 3)))


def test_every_kind_of_component_is_cut():
    ragged = tf.ragged.constant([[1], [2, 3], [], [4]])
    sparse = tf.sparse.from_dense([[0, 1], [2, 0], [0, 0], [3, 4]])
    batch = {
        "ragged": ragged,
        "sparse": sparse,
        "text": tf.constant(["a", "b", "c", "d"]),
        "none": None,
        "scalar": tf.constant(7),
    }
    first, second = _shards(batch, 2)
    assert first.data["ragged"].to_list() == [[1], [2, 3]]
    assert second.data["ragged"].to_list() == [[], [4]]
    np.testing.assert_array_equal(tf.sparse.to_dense(second.data["sparse"]), [[0, 0], [3, 4]])
    assert second.data["text"].numpy().tolist() == [b"c", b"d"]
    assert second.data["none"] is None
    assert int(second.data["scalar"]) == 7
    assert row_count(batch) == 4


def test_components_of_different_rows_are_refused():
    with pytest.raises(ValueError, match="4 and 3 rows"):
        shard_of((tf.zeros((4, 2)), tf.zeros((3,))), replica=0, replicas=2)


def test_a_batch_without_rows_is_refused():
    with pytest.raises(ValueError, match="no tensor with rows"):
        shard_of((tf.constant(1.0), None), replica=0, replicas=2)


@pytest.mark.parametrize("total", [1, 2, 3, 25])
def test_the_shares_of_the_replicas_add_up_to_one(total):
    batch = tf.zeros((total, 1))
    rows = [Rows(shard.real, shard.total, 4) for shard in _shards(batch, 4)]
    np.testing.assert_allclose(sum(float(r.share) for r in rows), 1.0, rtol=1e-6)
    assert {int(r.present_replicas) for r in rows} == {min(total, 4)}
    for r in rows:
        assert bool(r.present) == (r.real > 0)
        if r.real:
            np.testing.assert_allclose(float(r.share) * float(r.times_share), 1.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (lambda x: tf.abs(x), True),
        (lambda x: tf.reduce_mean(x, axis=1), True),
        (lambda x: tf.reshape(x, [-1]), True),
        (lambda x: x - tf.reduce_mean(x, axis=0), True),
        (lambda x: tf.reduce_mean(tf.stack([x, 2 * x, x + 1]), axis=0), True),
        (lambda x: tf.reduce_mean(tf.abs(x), axis=0), False),
        (lambda x: tf.linalg.matmul(x, x, transpose_a=True), False),
        (lambda x: 2 * tf.reduce_max(x, axis=0) + 1, False),
    ],
)
def test_values_of_rows_are_told_from_as_many_of_classes(of, expected):
    found = []

    @tf.function(input_signature=[tf.TensorSpec([3, 3])])
    def count(x):
        found.append(Rows(3, 6, 2).are_counted_by(of(x)))
        return x

    count(tf.zeros((3, 3)))
    assert found == [expected]
