"""Two workers on loopback train as two mirrored replicas of one process: to the bit."""

import pytest
from train_cells import EXAMPLES, STEPS, numbers, results, start, two_workers

# `test_several_workers` trains two by the command each time.
pytestmark = pytest.mark.slow

CELLS = {
    "float32": ["float32", False, 4, "streaming"],
    "mixed_float16": ["mixed_float16", True, 16, "resident"],
}


@pytest.fixture(scope="module", params=["float32", "mixed_float16"])
def workers_and_mirrored(request):
    cells = [CELLS[request.param]]
    (first,), (second,) = two_workers(cells, timeout=240)
    ((mirrored,),) = results([start("mirrored", 2, cells)], timeout=240)
    return first, second, mirrored


def test_two_workers_equal_two_mirrored_replicas_to_the_bit(workers_and_mirrored):
    first, second, mirrored = map(numbers, workers_and_mirrored)
    assert first == second == mirrored


# In float16 steps may be skipped while the loss scale comes down, and what is resident is not read.
of_float32 = pytest.mark.parametrize("workers_and_mirrored", ["float32"], indirect=True)


@of_float32
def test_two_workers_make_every_update(workers_and_mirrored):
    first, _, _ = workers_and_mirrored
    assert first["iterations"] == STEPS


@of_float32
def test_each_worker_reads_its_own_rows_alone(workers_and_mirrored):
    first, second, mirrored = workers_and_mirrored
    assert sorted(first["rows_read"] + second["rows_read"]) == list(range(EXAMPLES))
    assert len(first["rows_read"]) == EXAMPLES // 2
    assert mirrored["rows_read"] == list(range(EXAMPLES))


def test_between_executions_workers_exchange_nothing(workers_and_mirrored):
    # A collective of 6 ms for each: of each variable of each metric, at each reset and each epoch.
    first, second, _ = workers_and_mirrored
    assert [cell["eager_collectives"] for cell in (first, second)] == [0, 0]
