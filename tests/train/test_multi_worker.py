"""Two workers on loopback train as two mirrored replicas of one process: to the bit."""

import pytest
from train_cells import EXAMPLES, STEPS, numbers, results, start, two_workers

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
    assert numbers(first[cell]) == numbers(second[cell])
    assert numbers(first[cell]) == numbers(mirrored[cell])


def test_two_workers_make_every_update(workers_and_mirrored):
    (first, _), _ = workers_and_mirrored
    assert first[0]["iterations"] == STEPS


def test_each_worker_reads_its_own_rows_alone(workers_and_mirrored):
    (first, second), mirrored = workers_and_mirrored
    assert sorted(first[0]["rows_read"] + second[0]["rows_read"]) == list(range(EXAMPLES))
    assert len(first[0]["rows_read"]) == EXAMPLES // 2
    assert mirrored[0]["rows_read"] == list(range(EXAMPLES))


def test_between_executions_workers_exchange_nothing(workers_and_mirrored):
    # A collective of 6 ms for each: of each variable of each metric, at each reset and each epoch.
    (first, second), _ = workers_and_mirrored
    assert [cell["eager_collectives"] for cell in [*first, *second]] == [0] * 4
