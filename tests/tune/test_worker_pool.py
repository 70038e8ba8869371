"""Workers of one machine: the devices each gets, and how the end of one is described."""

import pytest

from tfgpu import errors
from tfgpu.tune import devices, worker_pool
from tfgpu.tune.devices import WorkerDevices
from tfgpu.tune.settings import TuneSettings


def test_one_worker_has_the_whole_machine():
    assert devices.divide(1, gpus=["0", "1"], cores=(0, 1, 2, 3)) == [WorkerDevices()]


def test_workers_take_a_gpu_each():
    divided = devices.divide(2, gpus=["3", "GPU-5a", "7"], cores=(0, 1))
    assert [each.gpu for each in divided] == ["3", "GPU-5a"]


def test_more_workers_than_gpus_are_refused():
    with pytest.raises(errors.RequestError, match="--workers=3: there are 2 GPUs here"):
        devices.divide(3, gpus=["0", "1"], cores=(0,))


@pytest.mark.parametrize(
    ("workers", "cores", "shares"),
    [
        (2, (0, 1, 2, 3), [(0, 1), (2, 3)]),
        (2, (4, 5, 9), [(4,), (5, 9)]),
        (3, (0, 1), [(0,), (0,), (1,)]),
    ],
)
def test_workers_without_gpus_take_a_group_of_cores_each(workers, cores, shares):
    assert [each.cores for each in devices.divide(workers, gpus=[], cores=cores)] == shares


def test_the_end_of_a_process_is_told_in_words():
    assert worker_pool.describe_exit(-9) == "was killed by SIGKILL (out of memory?)"
    assert worker_pool.describe_exit(-11) == "was killed by SIGSEGV"
    assert worker_pool.describe_exit(3) == "ended with exit code 3"


@pytest.mark.parametrize(
    ("code", "kind"), [(2, errors.RequestError), (3, errors.DataError), (5, errors.WorkError)]
)
def test_a_worker_that_cannot_begin_passes_its_error_on(tmp_path, code, kind):
    config = TuneSettings(run_dir=str(tmp_path))
    worker = worker_pool.Worker("worker-0", WorkerDevices(), config=config, ip="127.0.0.1", port=1)
    log = tmp_path / "logs" / "worker-0.log"
    log.parent.mkdir()
    log.write_text("something\ntfgpu: the data are gone; bring them back\n")
    failure = worker.failure(code)
    assert type(failure) is kind
    assert "the data are gone; bring them back" in str(failure)
