"""Two processes with nothing but a network between them make one run, and stop it together."""

import signal

import pytest
from resumed_runs import Job, argv_of
from several_workers import Workers, outcome

FLAGS = argv_of({"devices": None, "epochs": "3"})


@pytest.fixture(scope="module")
def mirrored(place):
    """The run of one process with two replicas."""
    path = place / "several" / "mirrored"
    path.parent.mkdir(exist_ok=True)
    Job(place, path, {"devices": None, "epochs": "3", "virtual_devices": "2"}).finish()
    return outcome(path)


def test_two_workers_leave_the_run_of_two_mirrored_replicas(place, mirrored):
    workers = Workers(place, place / "several" / "whole", FLAGS)
    ended = workers.finish()
    assert outcome(workers.path) == mirrored
    # The chief alone writes, and says where; what the other said is there too.
    assert not workers.path.with_name("whole-of-1").exists()
    assert "everything is in" in ended[0].out and "everything is in" not in ended[1].out
    assert "worker 0 (127.0.0.1:" in ended[1].out.splitlines()[-1]
    # Its log has its progress besides.
    log = (workers.path / "workers" / "1.log").read_text().splitlines()
    printed = ended[1].out.splitlines()
    assert [line for line in log if line in printed] == printed
    assert sum(line.startswith("epoch ") for line in log) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "number"), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_a_signal_to_one_stops_both_at_one_step_and_they_go_on_exactly(
    place, mirrored, rank, number
):
    path = place / "several" / f"stopped{rank}"
    workers = Workers(place, path, FLAGS)
    workers.wait_until("epoch 1/3")
    workers.processes[rank].send_signal(number)
    ended = workers.ends()
    assert [ended[i].code for i in (0, 1)] == [128 + number] * 2, ended
    said = [ended[i].err.partition(" steps;")[0] for i in (0, 1)]
    assert said[0] == said[1] and said[0].startswith(f"tfgpu: stopped by {number.name} after ")
    again = Workers(place, path, FLAGS).finish()
    assert "continuing the run" in again[0].out and "continuing" not in again[1].out
    assert outcome(path) == mirrored


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_other_with_its_name_and_both_go_on_exactly(
    place, mirrored
):
    path = place / "several" / "killed"
    workers = Workers(place, path, FLAGS)
    workers.wait_until("epoch 1/3")
    workers.processes[1].kill()
    ended = workers.ends()
    assert ended[0].code == 6 and ended[0].seconds < 15
    [line] = ended[0].err.splitlines()
    assert line.startswith(f"tfgpu: worker 1 ({workers.addresses[1]}) was lost (")
    assert "start all workers again with the same run directory: tfgpu train" in line
    Workers(place, path, FLAGS).finish()
    assert outcome(path) == mirrored
