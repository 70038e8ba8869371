"""What is decided for settings left open, and that the optimizer gets every one of them."""

import dataclasses
import itertools
import math
import random
import re
import sys
import types

import keras
import numpy as np
import pytest

from tfgpu.errors import RequestError
from tfgpu.models.builders import find_builder
from tfgpu.train import recipe, session
from tfgpu.train.settings import LR_SCHEDULES, OPTIMIZERS, OPTIMIZERS_WITH_MOMENTUM, TrainSettings


def resolve(*, num_examples=1293, replicas=1, on_gpu=False, **settings):
    return recipe.resolve(
        TrainSettings(**settings), num_examples=num_examples, replicas=replicas, on_gpu=on_gpu
    )


@pytest.mark.parametrize("num_examples", [1, 5, 31, 1293, 50_000])
@pytest.mark.parametrize("replicas", range(1, 9))
def test_the_default_batch_divides_among_the_replicas_and_can_be_given(replicas, num_examples):
    settings = {"num_examples": num_examples, "replicas": replicas}
    batch = resolve(**settings).batch_size
    assert batch % replicas == 0
    usual = resolve(num_examples=num_examples).batch_size
    # Rounded up, and down where the training set ends.
    assert abs(batch - usual) < replicas
    assert batch <= max(num_examples, replicas)
    assert resolve(batch_size=batch, **settings).batch_size == batch


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("num_examples", [1293, 50_000])
def test_nothing_stays_open(num_examples, optimizer):
    config = resolve(num_examples=num_examples, optimizer=optimizer)
    # Where None is "off", the clock's or TFDS's own choice, and where devices decide.
    left = {"clip_norm", "ema_momentum", "early_stopping", "run_dir", "data_dir", "image_size"}
    left |= {"checkpoint_every", "profile", "width", "depth", "weights", "freeze", "unfreeze_at"}
    # Where None is a part of another setting.
    left |= {"unfreeze_learning_rate"}
    # Where None is what the data fit, or has no meaning for the task.
    left |= {"task", "features", "target", "tokens", "task_options"}
    open_ = {name for name, value in config.to_json().items() if value is None}
    assert open_ <= left
    assert isinstance(config.steps_per_execution, int)


def test_what_is_given_stays():
    given = {
        "batch_size": 64,
        "epochs": 3,
        "optimizer": "adamw",
        "learning_rate": 0.5,
        "weight_decay": 0.0,
        "lr_schedule": "constant",
        "warmup_epochs": 0.0,
        "augment": "none",
        "steps_per_execution": 5,
    }
    config = resolve(**given)
    assert {name: getattr(config, name) for name in given} == given
    assert resolve(momentum=0.0, optimizer="sgd").momentum == 0.0


def test_resolving_again_changes_nothing():
    config = resolve(image_size=(32, 32))
    again = recipe.resolve(config, num_examples=1293, replicas=1, on_gpu=False)
    assert again == config == resolve(**config.to_json())


@pytest.mark.parametrize(
    ("replicas", "batch_size", "use"),
    [(2, 1, "use 2"), (2, 33, "use 32 or 34"), (3, 64, "use 63 or 66"), (8, 12, "use 8 or 16")],
)
def test_a_batch_that_does_not_divide_is_refused(replicas, batch_size, use):
    with pytest.raises(RequestError) as refusal:
        resolve(replicas=replicas, batch_size=batch_size)
    said = str(refusal.value)
    assert f"--batch_size={batch_size}" in said and f"{replicas} replicas" in said and use in said


@pytest.mark.parametrize(("replicas", "most"), [(1, 101), (2, 100), (8, 96)])
def test_a_batch_above_the_training_set_is_refused(replicas, most):
    assert resolve(num_examples=101, replicas=replicas, batch_size=most).batch_size == most
    with pytest.raises(RequestError, match=f"training set of 101 examples; use at most {most}"):
        resolve(num_examples=101, replicas=replicas, batch_size=most + replicas)


def test_the_advice_for_a_batch_can_be_followed():
    for num_examples, replicas, asked in itertools.product((3, 20), range(1, 9), range(1, 30)):
        settings = {"num_examples": num_examples, "replicas": replicas}
        try:
            resolve(batch_size=asked, **settings)
        except RequestError as refusal:
            advice = re.findall(r"\d+", str(refusal).rpartition("use ")[2].partition(" over")[0])
            assert advice
            for number in advice:
                resolve(batch_size=int(number), **settings)


def test_a_warm_up_longer_than_the_default_epochs_is_refused():
    with pytest.raises(RequestError, match="--warmup_epochs=500"):
        resolve(warmup_epochs=500)


@pytest.mark.parametrize("steps_per_epoch", [1, 7])
@pytest.mark.parametrize("schedule", LR_SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_every_schedule_and_setting(name, schedule, steps_per_epoch):
    momentum = 0.8 if name in OPTIMIZERS_WITH_MOMENTUM else None
    config = resolve(
        optimizer=name,
        lr_schedule=schedule,
        learning_rate=0.25,
        momentum=momentum,
        weight_decay=0.125,
        clip_norm=1.5,
        ema_momentum=0.75,
        gradient_accumulation_steps=2,
        epochs=4,
    )
    optimizer = recipe.make_optimizer(config, steps_per_epoch=steps_per_epoch)
    assert type(optimizer).__name__.lower() == name
    assert optimizer.weight_decay == 0.125
    assert optimizer.global_clipnorm == 1.5
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, 0.75)
    assert optimizer.gradient_accumulation_steps == 2
    assert getattr(optimizer, "momentum", 0.0) == (momentum or 0.0)
    if name == "sgd":
        assert optimizer.nesterov
    variable = keras.Variable(np.ones(3, np.float32))
    optimizer.build([variable])
    assert 0 <= float(optimizer.learning_rate) <= 0.25


def test_what_is_off_stays_off():
    config = resolve(weight_decay=0.0, momentum=0.0)
    optimizer = recipe.make_optimizer(config, steps_per_epoch=3)
    off = (optimizer.weight_decay, optimizer.global_clipnorm, optimizer.use_ema)
    assert off == (None, None, False)
    assert (optimizer.gradient_accumulation_steps, optimizer.nesterov) == (None, False)


def rates(schedule, *, warmup, steps_per_epoch=10, epochs=5, every=1):
    """The rate at each update, the first being number 0, and what follows the last."""
    config = resolve(
        lr_schedule=schedule,
        learning_rate=0.5,
        warmup_epochs=warmup,
        epochs=epochs,
        gradient_accumulation_steps=every,
    )
    made = recipe.make_schedule(config, steps_per_epoch=steps_per_epoch)
    updates = steps_per_epoch * epochs // every
    return [float(made(i)) if callable(made) else made for i in range(updates + 1)]


def by_hand(schedule, *, warmup, updates):
    """The same in plain arithmetic."""
    values = []
    for i in range(updates + 1):
        done = (i - warmup) / max(updates - warmup, 1)
        if i < warmup:
            values.append(0.5 * i / warmup)
        elif schedule == "constant":
            values.append(0.5)
        elif schedule == "linear":
            values.append(0.5 * (1 - done))
        else:
            values.append(0.5 * (1 + math.cos(math.pi * done)) / 2)
    return values


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
@pytest.mark.parametrize(("warmup", "updates_of_it"), [(0.0, 0), (0.5, 5), (2.0, 20)])
def test_the_rate_at_every_update(schedule, warmup, updates_of_it):
    found = rates(schedule, warmup=warmup)
    np.testing.assert_allclose(
        found, by_hand(schedule, warmup=updates_of_it, updates=50), atol=1e-6
    )
    # The start, the peak and the end, in numbers.
    assert found[0] == (0.0 if warmup else 0.5)
    assert max(found) == found[updates_of_it] == 0.5
    assert found[-1] == pytest.approx(0.5 if schedule == "constant" else 0.0, abs=1e-6)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_accumulation_counts_updates_and_not_steps(schedule):
    found = rates(schedule, warmup=2.0, every=4)
    np.testing.assert_allclose(found, by_hand(schedule, warmup=5, updates=12), atol=1e-6)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_a_run_of_warm_up_alone(schedule):
    found = rates(schedule, warmup=5.0)
    np.testing.assert_allclose(found[:-1], [0.5 * i / 50 for i in range(50)], atol=1e-6)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_more_accumulation_than_steps_still_makes_a_schedule(schedule):
    assert all(map(math.isfinite, rates(schedule, warmup=1.0, every=1000)))


def test_a_training_without_an_update_is_refused():
    settings = {"batch_size": 10, "epochs": 2}
    enough = resolve(num_examples=95, gradient_accumulation_steps=20, **settings)
    recipe.check_updates(enough, num_examples=95)
    too_few = resolve(num_examples=95, gradient_accumulation_steps=21, **settings)
    with pytest.raises(RequestError, match="=21 is more than the 20 steps of all 2 epochs"):
        recipe.check_updates(too_few, num_examples=95)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_a_schedule_survives_saving(schedule):
    config = resolve(lr_schedule=schedule, learning_rate=0.5, warmup_epochs=1.0, epochs=2)
    made = recipe.make_schedule(config, steps_per_epoch=4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    assert [float(again(i)) for i in range(9)] == [float(made(i)) for i in range(9)]


def test_augmentations():
    assert recipe.augmentations(resolve(augment="none")) == ()
    assert recipe.augmentations(resolve(augment="flip,crop")) == ("flip", "crop")


def test_callbacks_are_those_asked_for():
    assert recipe.make_callbacks(resolve()) == []
    both = recipe.make_callbacks(resolve(early_stopping=3, ema_momentum=0.9))
    # The average has to be in the model when early stopping looks.
    assert [type(callback).__name__ for callback in both] == ["SwapEMAWeights", "EarlyStopping"]


def test_lenet_is_found():
    from tfgpu.models.lenet import lenet

    assert find_builder("lenet") is lenet


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder of a user, with modules in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "e2e_good.py").write_text("def build(): pass\nthing = 3\n")
    (tmp_path / "e2e_raises.py").write_text("1 / 0\n")
    (tmp_path / "e2e_needs.py").write_text("import e2e_absent\n")
    return tmp_path


def test_a_builder_in_the_current_folder_is_found(here):
    assert find_builder("e2e_good:build").__name__ == "build"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lenett", "none of lenet.*did you mean 'lenet'.*package.module:function"),
        ("e2e_none:build", "there is no module 'e2e_none'"),
        ("e2e_none.inner:build", "there is no module 'e2e_none'"),
        ("e2e_good:biuld", "has no function 'biuld'.*did you mean 'build'"),
        ("e2e_good:thing", "has no function 'thing'"),
        ("e2e_raises:build", "importing e2e_raises failed: ZeroDivisionError"),
        ("e2e_needs:build", "e2e_needs needs 'e2e_absent'"),
    ],
)
def test_a_builder_that_cannot_be_had_is_refused(here, name, said):
    with pytest.raises(RequestError, match=f"--model={name}.*{said}"):
        find_builder(name)


def test_a_builder_gets_what_is_set_and_nothing_else():
    def build(*, image_shape, num_classes, depth=7):
        return depth

    shape = {"image_shape": (8, 8, 1), "num_classes": 2}
    assert recipe.build_model(TrainSettings(model="m:build"), build, **shape) == 7
    assert recipe.build_model(TrainSettings(model="m:build", depth=3), build, **shape) == 3


def test_a_setting_that_the_builder_does_not_take_is_refused():
    def build(*, image_shape, num_classes):
        return None

    config = TrainSettings(model="m:build", width=2.0)
    with pytest.raises(
        RequestError, match="--width=2.0: --model=m:build takes no argument 'width'"
    ):
        recipe.build_model(config, build, image_shape=(8, 8, 1), num_classes=2)


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 62_006),
        ({"width": 1.0, "depth": 2}, 62_006),
        # 12 and 32 channels, 240 and 168 units: sizes worked out by hand.
        ({"width": 2.0}, 912 + 9_632 + 192_240 + 40_488 + 1_690),
        # A 3x3 convolution of 16 to 16 channels more.
        ({"depth": 3}, 62_006 + 2_320),
        # conv1 alone: 14 x 14 x 6 values into the first dense layer.
        ({"depth": 1}, 456 + 1_176 * 120 + 120 + 10_164 + 850),
    ],
)
def test_width_and_depth_of_lenet(tensorflow, settings, parameters):
    from tfgpu.models.lenet import lenet

    model = recipe.build_model(
        TrainSettings(**settings), lenet, image_shape=(32, 32, 3), num_classes=10
    )
    assert model.count_params() == parameters


def test_resolved_settings_are_those_of_config():
    names = [field.name for field in dataclasses.fields(recipe.Resolved)]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(TrainSettings))


@pytest.mark.parametrize(
    ("settings", "small"),
    [
        ({}, False),
        ({"batch_size": 4}, True),
        ({"batch_size": 16}, True),
        ({"batch_size": 17}, False),
        ({"batch_size": 4, "image_size": (64, 64)}, True),
        ({"batch_size": 4, "image_size": (224, 224)}, False),
        ({"batch_size": 4, "model": "mine:build"}, False),
        ({"batch_size": 4, "width": 4.0}, False),
        ({"batch_size": 4, "dataset": "csv:table.csv"}, False),
    ],
)
def test_steps_too_small_to_share(settings, small):
    assert session.has_small_steps(TrainSettings(**settings)) is small


def test_initial_values_depend_on_the_seed_whatever_was_drawn_before():
    task = types.SimpleNamespace(
        arguments=lambda spec: {"image_shape": (32, 32, 3), "num_classes": 10},
        outputs=lambda spec: None,
    )
    data = types.SimpleNamespace(task=task, spec=None)
    build = find_builder("lenet")

    def values(seed, draws):
        random.seed(draws)
        np.random.seed(draws)
        model = recipe.build_checked(resolve(seed=seed), build, data)
        return np.concatenate([each.ravel() for each in model.get_weights()])

    first = values(0, 1)
    np.testing.assert_array_equal(values(0, 2), first)
    assert np.any(values(1, 1) != first)
