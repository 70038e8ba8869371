"""Strategy x precision x XLA x steps an execution x input: every combination trains, alike."""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf
from train_cells import STEPS, numbers, results, start, train, two_workers

PRECISIONS = ["float32", "mixed_bfloat16", "mixed_float16"]
CELLS = [
    list(cell)
    for cell in itertools.product(PRECISIONS, [False, True], [1, 4, 16], ["resident", "streaming"])
]
# What each run tries: each value of each column at least once.
SOME = {
    "one_device": [["float32", True, 4, "resident"], ["mixed_float16", False, 16, "streaming"]],
    "mirrored": [
        ["float32", False, 4, "streaming"],
        ["mixed_float16", True, 16, "resident"],
    ],
}
TABLE = [
    pytest.param(name, cell, marks=() if cell in SOME[name] else pytest.mark.slow)
    for name in SOME
    for cell in CELLS
]
AT_FOUR_STEPS = [["float32", True, 4, "resident"], ["mixed_float16", False, 4, "streaming"]]


@functools.cache
def reference():
    """What one device says in float32, a step an execution, without XLA."""
    return train(tf.distribute.OneDeviceStrategy("CPU:0"), ["float32", False, 1, "resident"])


def assert_trained(outcome, precision):
    # The first steps of float16 may be skipped while the loss scale comes down.
    assert STEPS - (2 if precision == "mixed_float16" else 0) <= outcome["iterations"] <= STEPS
    tolerance = {"float32": 1e-4, "mixed_bfloat16": 0.1, "mixed_float16": 0.02}[precision]
    expected = reference()
    np.testing.assert_allclose(outcome["loss"], expected["loss"], rtol=tolerance)
    np.testing.assert_allclose(outcome["test_loss"], expected["test_loss"], rtol=tolerance)


@pytest.mark.parametrize(("name", "cell"), TABLE)
def test_every_combination_trains_alike(mirrored2, name, cell):
    strategy = mirrored2 if name == "mirrored" else tf.distribute.OneDeviceStrategy("CPU:0")
    assert_trained(train(strategy, cell), cell[0])


@pytest.mark.parametrize("cell", AT_FOUR_STEPS, ids=str)
def test_a_mirrored_strategy_of_one_replica(cell):
    assert_trained(train(tf.distribute.MirroredStrategy(["CPU:0"]), cell), cell[0])


@pytest.mark.slow
@pytest.mark.parametrize("cell", AT_FOUR_STEPS, ids=str)
def test_a_mirrored_strategy_of_four_replicas(cell):
    ((outcome,),) = results([start("mirrored", 4, [cell])], timeout=240)
    assert_trained(outcome, cell[0])


@pytest.mark.slow
def test_every_combination_of_two_workers_trains_alike():
    first, second = two_workers(CELLS, timeout=1800)
    assert [numbers(cell) for cell in first] == [numbers(cell) for cell in second]
    for cell, outcome in zip(CELLS, first, strict=True):
        assert_trained(outcome, cell[0])
