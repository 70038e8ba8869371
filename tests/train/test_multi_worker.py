"""Two workers on loopback train as two mirrored replicas of one process: to the bit."""

import pytest
from train_cells import STEPS, results, start, two_workers

CELLS = [
    ["float32", False, 4, "streaming"],
    ["mixed_float16", True, 16, "resident"],
]


@pytest.fixture(scope="module")
def workers_and_mirrored():
    workers = two_workers(CELLS, timeout=240)
    return workers, *results([start("mirrored", 2, CELLS)], timeout=240)


@pytest.mark.parametrize("cell", range(len(CELLS)), ids=["float32", "mixed_float16"])
def test_two_workers_equal_two_mirrored_replicas_to_the_bit(workers_and_mirrored, cell):
    (first, second), mirrored = workers_and_mirrored
    assert first[cell] == second[cell]
    assert first[cell] == mirrored[cell]


def test_two_workers_make_every_update(workers_and_mirrored):
    (first, _), _ = workers_and_mirrored
    assert first[0]["iterations"] == STEPS
