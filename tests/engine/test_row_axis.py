"""What is made of other rows than its own, as far as a graph tells."""

import pytest
import tensorflow as tf

import tfgpu  # noqa: F401
from tfgpu.engine.dataflow import Data
from tfgpu.engine.row_axis import PAIRS, REVERSAL, STATISTICS, mixing
from tfgpu.engine.shards import Rows


def of_its_class(p):
    at = tf.stack([tf.range(tf.shape(p)[0]), tf.argmax(p[:, 0], -1, tf.int32)], axis=1)
    return tf.gather_nd(p[:, 0], at)


def halves(p):
    together = tf.concat([p, 2 * p], axis=0)
    first, second = together[: tf.shape(p)[0]], together[tf.shape(p)[0] :]
    return first - second


ALONE = {
    "elements": lambda p: tf.exp(p) * 2 - p,
    "features": lambda p: tf.reduce_sum(p, axis=[1, 2]),
    "softmax": lambda p: tf.nn.softmax(p, axis=-1),
    "a feature": lambda p: p[:, 0],
    "features put together": lambda p: tf.concat([p, p], axis=-1),
    "back from time-major": lambda p: tf.transpose(
        tf.cumsum(tf.transpose(p, [1, 0, 2])), [1, 0, 2]
    ),
    "steps unpacked": lambda p: tf.stack(tf.unstack(p, axis=1), axis=0)[0],
    "a running sum of steps": lambda p: tf.cumsum(p, axis=1),
    "sorted features": lambda p: tf.sort(p, axis=-1),
    "of its class": of_its_class,
    "of its own, by another": lambda p: tf.gather(p, tf.argmax(p[:, :, 0], -1), batch_dims=1),
    "an equation": lambda p: tf.einsum("bij,bkj->bik", p, p),
    "shuffled": lambda p: tf.gather(p, tf.random.shuffle(tf.range(tf.shape(p)[0]))),
    "two parts of a concatenation": halves,
    "flattened": lambda p: tf.reshape(p, [-1, 12]),
    "a mask of steps": lambda p: p * tf.cast(p[..., :1] > 0, tf.float32),
}
OF_OTHERS = {
    "pairs": (lambda p: tf.matmul(p[:, 0], p[:, 0], transpose_b=True), PAIRS),
    "differences of pairs": (lambda p: p[:, None] - p[None], PAIRS),
    "centred": (lambda p: p - tf.reduce_mean(p, axis=0), STATISTICS),
    "reversed": (lambda p: p[::-1], REVERSAL),
    "reversed by an operation": (lambda p: tf.reverse(p, [0]), REVERSAL),
    "rolled": (lambda p: tf.roll(p, 1, 0), "Roll"),
    "a running sum": (lambda p: tf.cumsum(p, axis=0), "Cumsum"),
    "differences": (lambda p: p[1:] - p[:-1], "StridedSlice"),
    "every second": (lambda p: p[::2], "StridedSlice"),
    "the first half": (lambda p: p[: tf.shape(p)[0] // 2], "StridedSlice"),
    "halves": (lambda p: tf.split(p, 2)[0], "Split"),
    "softmax over rows": (lambda p: tf.nn.softmax(p[:, 0], axis=0), "Softmax"),
    "sorted rows": (lambda p: tf.sort(p[:, 0, 0]), "TopKV2"),
    "chosen": (lambda p: tf.boolean_mask(p, p[:, 0, 0] > 0), "GatherV2"),
    "of others": (lambda p: tf.gather(p, tf.argsort(p[:, 0, 0])), "GatherV2"),
    "with something beside": (lambda p: tf.concat([p, tf.zeros((2, 3, 4))], 0), "ConcatV2"),
    "over rows, time-major": (lambda p: tf.cumsum(tf.transpose(p, [1, 0, 2]), 1), "Cumsum"),
}


def found(make):
    with tf.Graph().as_default():
        batch = tf.compat.v1.placeholder(tf.float32, [None, 3, 4])
        rows = Rows(real=tf.constant(3), total=tf.constant(5), replicas=2, hidden=True)
        data = {id(batch): Data(batch, has_rows=True)}
        return mixing(make(batch), rows, data)


@pytest.mark.parametrize("name", ALONE)
def test_a_value_of_its_row_alone(name):
    assert found(ALONE[name]) is None


@pytest.mark.parametrize("name", OF_OTHERS)
def test_a_value_of_other_rows(name):
    make, kind = OF_OTHERS[name]
    assert found(make) == kind
