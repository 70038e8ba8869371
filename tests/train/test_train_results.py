"""`tfgpu train` from end to end: what repeats, and what trains."""

import keras
import numpy as np
import pytest
from trained_runs import METRICS, Run, argv_of, command

from tfgpu.tasks import loading as sources

pytestmark = [
    pytest.mark.usefixtures("here"),
    # TensorFlow's MirroredVariable, when Keras saves or compares weights.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]


# ---- what repeats -------------------------------------------------------------------------


def test_the_same_flags_give_the_same_run_to_the_bit(run, place):
    path = place / "runs" / "twice"
    assert command(*argv_of({}), f"--run_dir={path}") == 0
    again = Run(path)
    assert again.values == run().values
    for one, other in zip(again.weights, run().weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_its_config_repeats_a_run(run, place):
    this = run(label_smoothing=0.1, lr_schedule="linear", epochs=1)
    path = place / "runs" / "repeated"
    assert command(f"--experiment={this.path}/config.json", f"--run_dir={path}") == 0
    again = Run(path)
    assert again.values == this.values
    assert {**again.config, "run_dir": 0} == {**this.config, "run_dir": 0}


def test_another_seed_gives_another_run(run):
    assert run(seed=1, epochs=1).values[0] != run().values[0]


@pytest.mark.parametrize("devices", ["CPU:0", pytest.param("CPU:0,CPU:1", marks=pytest.mark.slow)])
def test_streaming_gives_the_resident_run_to_the_bit(run, devices):
    settings = {"devices": devices, "augment": "crop,flip"}
    resident = run(input="resident", **settings)
    assert run(input="streaming", **settings).values == resident.values


def test_two_replicas_give_the_run_of_one(run):
    one = run(input="resident", devices="CPU:0", augment="crop,flip")
    two = run(input="resident", devices="CPU:0,CPU:1", augment="crop,flip")
    assert (one.result["replicas"], two.result["replicas"]) == (1, 2)
    for line, other in zip(one.metrics, two.metrics, strict=True):
        expected = [line[name] for name in METRICS]
        assert [other[name] for name in METRICS] == pytest.approx(expected, rel=1e-4)
    assert two.result["test_loss"] == pytest.approx(one.result["test_loss"], rel=1e-4)


@pytest.mark.slow
def test_executions_of_another_size_give_the_same_run(run):
    assert run(steps_per_execution=100, tensorboard="none").values == run().values


def test_one_device_is_one_replica(run):
    this = run(strategy="one_device", devices="all")
    assert this.result["replicas"] == 1
    assert this.result["test_loss"] == pytest.approx(run().result["test_loss"], rel=1e-4)


# ---- what trains --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"precision": "mixed_float16", "epochs": 1}, marks=pytest.mark.slow),
        pytest.param({"precision": "mixed_bfloat16", "epochs": 1}, marks=pytest.mark.slow),
        pytest.param({"jit_compile": "true"}, marks=pytest.mark.slow),
        {"precision": "mixed_float16", "jit_compile": "true", "devices": "CPU:0,CPU:1"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_precision_and_xla_train_like_float32(run, settings):
    this = run(**settings)
    for line, other in zip(this.metrics, run().metrics, strict=False):
        assert line["loss"] == pytest.approx(other["loss"], rel=0.03)
    assert this.result["jit_compile"] is ("jit_compile" in settings)


def test_it_learns(run):
    assert run(epochs=20).result["test_accuracy"] == 1.0


def test_no_validation(run):
    this = run(validation_fraction=0, epochs=1)
    assert this.metrics[0]["step"] == 8
    assert this.metrics[0]["val_loss"] is this.result["val_accuracy"] is None
    assert this.result["test_loss"] is not None


def test_early_stopping_ends_with_the_best_epoch(run):
    # A rate at which it gets worse again.
    this = run(early_stopping=2, epochs=60, learning_rate=0.9, lr_schedule="constant")
    losses = [line["val_loss"] for line in this.metrics]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 2 < 60
    assert this.result["epochs"] == len(losses)
    assert this.result["steps"] == 7 * len(losses)
    assert evaluate_validation(this)["loss"] == pytest.approx(min(losses), rel=1e-5)


def evaluate_validation(this):
    """The saved model on the validation split."""
    data = sources.load(
        "folder:images", data_dir=None, validation_fraction=0.1, image_size=None, seed=0
    )
    model = keras.models.load_model(this.path / "model.keras", compile=False)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model.evaluate(*data.validation.load_arrays(), verbose=0, return_dict=True)


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["CPU:0", "CPU:0,CPU:1"])
def test_the_average_is_validated_tested_and_saved(run, devices):
    this = run(ema_momentum=0.9, devices=devices)
    plain = run(devices=devices)
    assert this.metrics[0]["loss"] == plain.metrics[0]["loss"]
    assert this.metrics[0]["val_loss"] != plain.metrics[0]["val_loss"]
    assert evaluate_validation(this)["loss"] == pytest.approx(this.result["val_loss"], rel=1e-5)


@pytest.mark.slow
def test_early_stopping_restores_the_best_average(run):
    this = run(
        ema_momentum=0.5, early_stopping=2, epochs=60, learning_rate=0.9, lr_schedule="constant"
    )
    losses = [line["val_loss"] for line in this.metrics]
    assert len(losses) < 60
    assert evaluate_validation(this)["loss"] == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.slow
def test_accumulation_and_clipping_train(run):
    this = run(gradient_accumulation_steps=4, clip_norm=1, optimizer="adamw")
    assert this.result["steps"] == 21
    assert this.metrics[-1]["loss"] < this.metrics[0]["loss"]


@pytest.mark.slow
def test_accumulating_every_batch_is_one_batch_an_epoch(run):
    settings = {"validation_fraction": 0, "epochs": 2, "momentum": 0, "augment": "none"}
    whole = run(batch_size=60, **settings)
    parts = run(batch_size=10, gradient_accumulation_steps=6, **settings)
    for one, other in zip(whole.weights, parts.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_images_are_resized(run):
    assert run(image_size="12x10", epochs=1).result["parameters"] == 112 + 5 * 4 * 4 * 2 + 2
