"""Cores and GPUs are divided evenly."""

import pytest

from tfgpu.errors import RequestError
from tfgpu.launch import shares
from tfgpu.machine.hardware import Gpu


@pytest.mark.parametrize(
    ("cores", "workers", "expected"),
    [
        ((0, 1), 2, [(0,), (1,)]),
        ((2, 3, 6, 7), 2, [(2, 3), (6, 7)]),
        # One is left over: the workers wait for each other, so it would save no time.
        ((0, 1, 2, 3, 4), 2, [(0, 1), (2, 3)]),
        ((0,), 2, [(), ()]),
        ((), 2, [(), ()]),
    ],
)
def test_cores_are_divided_in_contiguous_shares_of_one_size(cores, workers, expected):
    assert shares.core_shares(cores, workers) == expected


@pytest.mark.parametrize(
    ("gpus", "workers", "each", "expected"),
    [
        (["0", "1", "2", "3"], 2, None, ["0,1", "2,3"]),
        (["4", "6", "7"], 2, None, ["4", "6"]),
        (["0", "1", "2", "3"], 2, 1, ["0", "1"]),
        ([], 2, None, [None, None]),
        (["0", "1"], 2, 0, ["", ""]),
    ],
)
def test_gpus_are_divided(gpus, workers, each, expected):
    assert shares.gpu_shares(gpus, workers, each=each) == expected


@pytest.mark.parametrize(
    ("gpus", "each", "said"),
    [(["0"], None, "1 GPU here"), ([], 1, "no GPUs here"), (["0", "1"], 2, "2 GPUs here")],
)
def test_too_few_gpus_are_refused(gpus, each, said):
    with pytest.raises(RequestError) as refused:
        shares.gpu_shares(gpus, 2, each=each)
    assert said in str(refused.value) and "--devices=CPU:0" in str(refused.value)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1", "2"]), ("2,0", ["2", "0"]), ("", []), ("-1", []), ("1,7,2", ["1"])],
)
def test_the_gpus_are_those_that_cuda_shows(monkeypatch, visible, expected):
    gpus = [Gpu(index=i, uuid=f"GPU-{i}", total=1, free=1, driver="550") for i in range(3)]
    monkeypatch.setattr(shares.hardware, "nvidia_smi", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert shares.visible_gpus() == expected
