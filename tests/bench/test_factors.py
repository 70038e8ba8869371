"""What is compared: one change at a time, nothing by accident."""

import dataclasses

import pytest

from tfgpu.bench import factors
from tfgpu.bench.settings import FACTORS, BenchSettings
from tfgpu.errors import RequestError

GPUS = ["GPU:0", "GPU:1", "GPU:2", "GPU:3"]


def settings_that_differ(base, cell):
    return {
        field.name
        for field in dataclasses.fields(base)
        if getattr(base, field.name) != getattr(cell.config, field.name)
    }


def test_each_cell_changes_what_its_factor_says():
    (base, *cells), remarks = factors.plan(BenchSettings(), gpus=GPUS)
    assert remarks == []
    assert list(dict.fromkeys(cell.factor for cell in cells)) == list(FACTORS)
    changed = {
        "device": {"devices"},
        "precision": {"precision"},
        "xla": {"jit_compile"},
        "steps_per_execution": {"steps_per_execution"},
        "input": {"input"},
        "batch_size": {"batch_size"},
    }
    for cell in cells:
        if cell.factor != "replicas":
            assert settings_that_differ(base.config, cell) == changed[cell.factor], cell.name


def test_xla_is_set_in_every_cell():
    cells, _ = factors.plan(BenchSettings(), gpus=GPUS)
    assert {cell.config.jit_compile for cell in cells if cell.factor != "xla"} == {False}


def test_the_baseline_is_plain():
    (base, *_), _ = factors.plan(BenchSettings(), gpus=[])
    config = base.config
    assert (config.strategy, config.devices, config.precision) == (
        "one_device",
        "CPU:0",
        "float32",
    )
    assert (config.jit_compile, config.steps_per_execution, config.input) == (
        False,
        1,
        "streaming",
    )


def test_weak_scaling_keeps_the_share_and_strong_the_whole():
    cells, _ = factors.plan(BenchSettings(factors="replicas", batch_size=64), gpus=GPUS)
    found = [(cell.config.devices.count("GPU"), cell.config.batch_size) for cell in cells[1:]]
    assert found == [(2, 128), (2, 64), (4, 256), (4, 64)]


def test_one_device_is_split_for_replicas():
    cells, _ = factors.plan(BenchSettings(factors="replicas"), gpus=[])
    assert [cell.config.virtual_devices for cell in cells[1:]] == [2, 2]
    assert all("virtual" in cell.name for cell in cells[1:])
    cells, _ = factors.plan(BenchSettings(factors="replicas", virtual_devices=3), gpus=[])
    assert [cell.config.batch_size for cell in cells[1:]] == [384, 126]


def test_what_a_baseline_has_already_is_taken_away():
    config = BenchSettings(
        jit_compile=True, input="resident", steps_per_execution=8, precision="mixed_float16"
    )
    cells, _ = factors.plan(config, gpus=[])
    found = {cell.factor: cell.config for cell in cells[1:]}
    assert found["xla"].jit_compile is False
    assert found["input"].input == "streaming"
    assert found["steps_per_execution"].steps_per_execution == 1
    assert {c.config.precision for c in cells if c.factor == "precision"} == {
        "float32",
        "mixed_bfloat16",
    }


def test_without_a_gpu_there_is_one_device_and_a_remark():
    cells, remarks = factors.plan(BenchSettings(), gpus=[])
    assert "device" not in {cell.factor for cell in cells}
    assert "no GPU" in remarks[0]
    # Nothing of a GPU that the driver may still have is to be seen.
    assert {cell.environment["CUDA_VISIBLE_DEVICES"] for cell in cells} == {"-1"}


def test_nothing_to_compare_is_refused():
    with pytest.raises(RequestError, match="--factors=device: nothing to compare"):
        factors.plan(BenchSettings(factors="device"), gpus=[])


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(RequestError, match="no GPU:7 here, only GPU:0, .*CPU:0"):
        factors.plan(BenchSettings(devices="GPU:0,GPU:7"), gpus=GPUS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factors": "speed"}, "'speed' is not a factor"),
        ({"factors": "precisio"}, "did you mean 'precision'"),
        ({"factors": ""}, "--factors=: is empty"),
        ({"jit_compile": "auto"}, "must be true or false here"),
        ({"steps_per_execution": "auto"}, "must be a number here"),
        ({"input": "auto"}, "resident or streaming"),
        ({"rounds": 0}, "--rounds=0"),
        ({"batch_size": None}, "must be a number here"),
    ],
)
def test_a_wrong_request_is_refused(settings, message):
    with pytest.raises(RequestError, match=message):
        BenchSettings(**settings)


def test_the_training_is_a_plain_config():
    config = BenchSettings(batch_size=64, rounds=3)
    assert config.training.batch_size == 64
    assert not hasattr(config.training, "rounds")
