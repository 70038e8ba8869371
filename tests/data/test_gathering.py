"""Gathering without TensorFlow's GPU kernels for small integers."""

import numpy as np
import pytest
import tensorflow as tf

from tfgpu.data import gathering


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["GPU:0"])


def random_values(dtype, shape):
    limits = np.iinfo(dtype)
    random = np.random.default_rng(0)
    return tf.constant(random.integers(limits.min, limits.max + 1, shape), dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32"])
@pytest.mark.parametrize("shape", [(9, 4, 4, 3), (9, 3, 2, 1), (9, 5, 5, 3), (9,), (9, 0)])
def test_examples_are_the_same_to_the_bit(a_gpu, dtype, shape):
    values = random_values(dtype, shape)
    for indices in ([3, 0, 8, 3], [[1, 2], [7, 7]]):
        found = gathering.gather(values, tf.constant(indices))
        np.testing.assert_array_equal(found, tf.gather(values, indices))
        assert found.dtype == values.dtype


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
def test_rows_and_columns_are_the_same_to_the_bit(a_gpu, dtype):
    values = random_values(dtype, (4, 6, 5, 3))
    for axis, size in ((1, 6), (2, 5)):
        places = tf.constant(np.random.default_rng(1).integers(0, size, (4, size)))
        found = gathering.gather(values, places, axis=axis, batch_dims=1)
        np.testing.assert_array_equal(found, tf.gather(values, places, axis=axis, batch_dims=1))


@pytest.mark.parametrize("shape", [(9, 4, 4, 3), (9, 3, 2, 1)])
def test_no_small_integers_are_gathered_where_there_is_a_gpu(a_gpu, shape):
    values = random_values("uint8", shape)

    def kinds(axis):
        def gathered(values, indices):
            return gathering.gather(values, indices, axis=axis, batch_dims=axis)

        indices = tf.zeros([9, 2] if axis else [2], tf.int32)
        graph = tf.function(gathered).get_concrete_function(values, indices).graph
        operations = [each for each in graph.get_operations() if each.type == "GatherV2"]
        return {each.inputs[0].dtype for each in operations}

    assert kinds(0) <= {tf.int32, tf.float16}
    assert kinds(1) == {tf.int32}
