"""Fine-tuning: what is frozen, when it thaws, at which rates, and the same through a kill."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from resumed_runs import command, killed, same
from trained_runs import the_line

import tfgpu
from tfgpu.errors import RequestError
from tfgpu.train import recipe
from tfgpu.train.fine_tuning import freeze, rates_by_depth, with_rates
from tfgpu.train.settings import TrainSettings

# Of Keras' own, when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

THAW = {"freeze": "*,!dense*", "unfreeze_at": "3", "layer_decay": "0.5", "checkpoint_every": "2"}


def network():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="first")(inputs)
    x = layers.BatchNormalization(name="first_norm")(x)
    inner = keras.Sequential([layers.Dense(4, name="within")], name="inner")
    return tfgpu.Model(inputs, layers.Dense(2, name="logits")(inner(x)))


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ("first", ["first"]),
        ("first*", ["first", "first_norm"]),
        ("*,!logits", ["first", "first_norm", "within"]),
        ("within,first", ["first", "within"]),
        ("*,!first*", ["within", "logits"]),
        ("?irst", ["first"]),
    ],
)
def test_layers_are_frozen_by_patterns(patterns, frozen):
    model = network()
    assert [layer.name for layer in freeze(model, patterns)] == frozen
    for layer in (*model.layers[1:3], model.get_layer("inner").layers[0], model.layers[-1]):
        assert layer.trainable is (layer.name not in frozen)


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ("frist", "'frist' matches no layer .* .did you mean 'first'.*; this model has first, fi"),
        ("first,conv*", "'conv.*' matches no layer"),
        ("*", "leaves nothing to train; .* --freeze='.*,!logits'"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(patterns, said):
    with pytest.raises(RequestError, match=f"--freeze=.*{said}"):
        freeze(network(), patterns)


def test_rates_fall_with_the_distance_from_the_output():
    model = network()
    rates = rates_by_depth(model, model.trainable_variables, 0.5)
    named = dict(zip([v.path for v in model.trainable_variables], rates, strict=True))
    # A normalisation has the rate of the layer before it.
    assert named == {
        **{"first/kernel": 0.25, "first/bias": 0.25},
        **{"first_norm/gamma": 0.25, "first_norm/beta": 0.25},
        **{"inner/within/kernel": 0.5, "inner/within/bias": 0.5},
        **{"logits/kernel": 1.0, "logits/bias": 1.0},
    }


OPTIMIZERS = [
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("AdamW", {"weight_decay": 0.1, "global_clipnorm": 0.5}),
    ("RMSprop", {"momentum": 0.5}),
    ("Lion", {"weight_decay": 0.1}),
]


@pytest.mark.parametrize(("name", "settings"), OPTIMIZERS)
def test_a_variable_moves_as_under_an_optimizer_with_its_own_rate(name, settings):
    make = getattr(keras.optimizers, name)
    rates, start = [0.25, 1.0], np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    variables = [keras.Variable(row) for row in start]
    optimizer = with_rates(make(0.1, **settings), rates)
    alone = [make(0.1 * rate, **settings) for rate in rates]
    others = [[keras.Variable(row) for row in start] for _ in rates]
    for step in range(4):
        gradients = [
            tf.constant(row, tf.float32) for row in np.random.default_rng(step).normal(size=(2, 5))
        ]
        optimizer.apply(gradients, variables)
        # With both gradients, so that the norm that is clipped is the same.
        for each, own in zip(alone, others, strict=True):
            each.apply(gradients, own)
    for i, variable in enumerate(variables):
        np.testing.assert_allclose(variable.numpy(), others[i][i].numpy(), rtol=1e-6, atol=1e-7)


def test_the_schedule_begins_anew_at_the_thaw():
    config = recipe.resolve(
        TrainSettings(
            epochs=10,
            learning_rate=0.4,
            freeze="a",
            unfreeze_at=5,
            warmup_epochs=5.0,
            batch_size=10,
        ),
        num_examples=100,
        replicas=1,
        on_gpu=False,
    )
    schedule = recipe.make_schedule(config, steps_per_epoch=10)
    rates = [float(schedule(step)) for step in range(100)]
    # Two of four epochs of warm-up to 0.4, then three of six to a tenth of that.
    assert rates[0] == rates[40] == 0.0
    assert rates[20] == pytest.approx(0.4) and rates[39] < 0.01
    assert max(rates[40:]) == rates[70] == pytest.approx(0.04) and rates[99] < 0.001
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert [float(again(step)) for step in (0, 20, 39, 40, 70)] == [
        rates[step] for step in (0, 20, 39, 40, 70)
    ]


def test_layers_stay_until_the_thaw_and_move_after_it(place, here, tmp_path):
    """Epochs 1 and 2 train the last layer alone, also in moving statistics; epoch 3 all."""
    settings = {**THAW, "tensorboard": "none", "early_stopping": None}
    assert command(tmp_path / "start", epochs="1", **{"tensorboard": "none"}) == 0
    weights = {"weights": str(tmp_path / "start")}

    def state(path):
        return keras.models.load_model(path / "model.keras", compile=False).get_weights()

    start = state(tmp_path / "start")
    for epochs, moved in (("2", False), ("3", True)):
        path = tmp_path / epochs
        frozen = settings if moved else {k: v for k, v in settings.items() if k != "unfreeze_at"}
        assert command(path, epochs=epochs, **frozen, **weights) == 0
        log = (path / "log.txt").read_text()
        assert f"from {tmp_path / 'start'}" in log and "frozen           2 layers" in log
        changed = [(a != b).any() for a, b in zip(start, state(path), strict=True)]
        # Convolution and normalisation, 2 + 4 arrays, and the last layer's two.
        assert changed == [moved] * 6 + [True] * 2


@pytest.mark.slow
def test_a_run_killed_before_at_and_after_the_thaw_ends_with_the_same_bits(
    place, here, tmp_path, monkeypatch
):
    assert command(tmp_path / "whole", **THAW) == 0
    cut = tmp_path / "cut"
    for steps in (9, 14, 19):  # Of 7 an epoch: before, with the last step before it, and after.
        killed(cut, monkeypatch, steps=steps, **THAW)
    assert command(cut, **THAW) == 0
    same(tmp_path / "whole", cut)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unfreeze_at": 3}, "--unfreeze_at=3: has no meaning without --freeze"),
        (
            {"freeze": "a", "unfreeze_learning_rate": 0.1},
            "--unfreeze_learning_rate=0.1: has no meaning without --unfreeze_at",
        ),
        ({"layer_decay": 1.5}, "--layer_decay=1.5: must be at most 1"),
        ({"freeze": "a,,b"}, "--freeze=a,,b: must be names or patterns"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(RequestError, match=said):
        TrainSettings(**settings)


def test_a_thaw_after_the_last_epoch_is_refused(place, here, tmp_path, capsys):
    assert command(tmp_path / "run", freeze="conv*", unfreeze_at="9") == 2
    assert "--unfreeze_at=9 is after the last of 4 epochs" in the_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_there_is_refused_before_anything_is_written(
    place, here, tmp_path, capsys
):
    assert command(tmp_path / "run", weights="absent.keras") == 2
    assert "--weights=absent.keras: there is no such file" in the_line(capsys)
    assert not (tmp_path / "run").exists()
