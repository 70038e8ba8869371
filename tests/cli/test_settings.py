"""Properties of settings: what they refuse, what they say then, and their JSON form."""

import dataclasses
import inspect
import json
import math

import pytest

from tfgpu.bench.settings import BenchSettings
from tfgpu.cli import flags
from tfgpu.cli import settings as settings_module
from tfgpu.cli.entry import COMMANDS
from tfgpu.errors import RequestError
from tfgpu.evaluate.settings import EvaluateSettings
from tfgpu.export.settings import EXPORT_FORMATS, ExportSettings
from tfgpu.predict.settings import PredictSettings
from tfgpu.train.settings import TrainSettings

# One value for every field, none of them the default.
EVERYTHING = {
    "strategy": "one_device",
    "devices": "GPU:1",
    "virtual_devices": 0,
    "join_timeout": 60,
    "precision": "mixed_float16",
    "jit_compile": False,
    "steps_per_execution": 7,
    "intra_op_threads": 2,
    "deterministic": True,
    "compile_cache": "programs",
    "dataset": "folder:some where",
    "data_dir": "data",
    "task": "classification",
    "features": "x=image,y=label",
    "target": "price",
    "tokens": "word",
    "task_options": "split=time",
    "validation_fraction": 0.25,
    "image_size": [48, 64],
    "input": "streaming",
    "augment": "crop,flip",
    "model": "package.module:build",
    "width": 1.5,
    "depth": 3,
    "remat": True,
    "weights": "runs/earlier",
    "freeze": "*,!logits",
    "unfreeze_at": 4,
    "unfreeze_learning_rate": 0.01,
    "layer_decay": 0.9,
    "batch_size": 96,
    "epochs": 9,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "lr_schedule": "linear",
    "warmup_epochs": 1.8,
    "label_smoothing": 0.1,
    "class_weight": "balanced",
    "clip_norm": 1.5,
    "ema_momentum": 0.999,
    "gradient_accumulation_steps": 2,
    "early_stopping": 3,
    "seed": 12,
    "run_dir": "runs/mine",
    "resume": "must",
    "checkpoint_every": 100,
    "tensorboard": "full",
    "log_to": "mlflow,wandb",
    "profile": "5:7",
    "hardware_interval": 0.5,
    "report": True,
    "dry_run": True,
    "progress": "plain",
    "verbosity": 1,
}


def test_the_defaults_are_possible():
    TrainSettings().check()


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_json_round_trip_is_exact(settings):
    config = TrainSettings.from_json(settings)
    text = json.dumps(config.to_json())
    again = TrainSettings.from_json(json.loads(text))
    assert again == config
    assert json.dumps(again.to_json()) == text


def test_everything_names_every_field():
    assert list(EVERYTHING) == [field.name for field in dataclasses.fields(TrainSettings)]


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainSettings().epochs = 3  # type: ignore[misc]


def test_whole_numbers_become_floats_where_a_float_belongs():
    config = TrainSettings(learning_rate=1, clip_norm=2, validation_fraction=0)
    assert [type(v) for v in (config.learning_rate, config.clip_norm)] == [float, float]
    assert config == TrainSettings(learning_rate=1.0, clip_norm=2.0, validation_fraction=0.0)


IMPOSSIBLE = [
    ("strategy", "mirorred"),
    ("strategy", None),
    ("devices", ""),
    ("devices", "gpu:0"),
    ("devices", "GPU"),
    ("devices", "GPU:0,"),
    ("devices", "GPU:0,GPU:0"),
    ("devices", "CPU:0,GPU:0"),
    ("virtual_devices", -1),
    ("virtual_devices", 2.0),
    ("precision", "float16"),
    ("jit_compile", "yes"),
    ("jit_compile", 1),
    ("steps_per_execution", 0),
    ("steps_per_execution", "many"),
    ("steps_per_execution", True),
    ("join_timeout", 0),
    ("intra_op_threads", 0),
    ("intra_op_threads", "all"),
    ("deterministic", "true"),
    ("compile_cache", " "),
    ("dataset", ""),
    ("dataset", "folder:"),
    ("dataset", 3),
    ("data_dir", " "),
    ("task", "clasification"),
    ("task", "my module:TASK"),
    ("features", "image,label"),
    ("features", "x=image,x=label"),
    ("target", " "),
    ("tokens", "sentence"),
    ("task_options", "split"),
    ("validation_fraction", 1.0),
    ("validation_fraction", -0.1),
    ("validation_fraction", math.nan),
    ("image_size", [32]),
    ("image_size", [32, 0]),
    ("image_size", [32.0, 32.0]),
    ("image_size", 32),
    ("input", "memory"),
    ("augment", "crop,flop"),
    ("augment", "none,crop"),
    ("augment", "crop,crop"),
    ("augment", ""),
    ("model", ""),
    ("model", "my model:build"),
    ("model", ":build"),
    ("width", 0.0),
    ("width", "wide"),
    ("depth", 0),
    ("depth", 1.5),
    ("remat", "maybe"),
    ("weights", ""),
    ("freeze", "a,,b"),
    ("freeze", "a b"),
    ("unfreeze_at", 1),
    ("unfreeze_learning_rate", 0.0),
    ("layer_decay", 0.0),
    ("layer_decay", "half"),
    ("batch_size", 0),
    ("batch_size", -4),
    ("batch_size", 128.0),
    ("batch_size", 2**31),
    ("epochs", 0),
    ("epochs", "ten"),
    ("epochs", True),
    ("optimizer", "sdg"),
    ("learning_rate", 0),
    ("learning_rate", -0.1),
    ("learning_rate", math.nan),
    ("learning_rate", math.inf),
    ("learning_rate", "0.1"),
    ("learning_rate", 10**400),
    ("momentum", 1.0),
    ("momentum", -0.5),
    ("weight_decay", -1e-4),
    ("lr_schedule", "cosinus"),
    ("warmup_epochs", -1),
    ("label_smoothing", 1.0),
    ("label_smoothing", None),
    ("class_weight", "equal"),
    ("clip_norm", 0),
    ("ema_momentum", 1.0),
    ("gradient_accumulation_steps", 0),
    ("early_stopping", 0),
    ("seed", -1),
    ("seed", 2**31),
    ("seed", None),
    ("run_dir", ""),
    ("resume", "maybe"),
    ("checkpoint_every", 0),
    ("tensorboard", "all"),
    ("log_to", "tensorboard"),
    ("log_to", "wandb,wandb"),
    ("log_to", ""),
    ("profile", "5"),
    ("profile", "7:5"),
    ("profile", "0:5"),
    ("profile", "5-7"),
    ("profile", 5),
    ("hardware_interval", 0),
    ("hardware_interval", math.nan),
    ("report", "yes"),
    ("dry_run", 1),
    ("progress", "fancy"),
    ("verbosity", -1),
]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_refuses_an_impossible_value_and_names_the_flag(name, value):
    with pytest.raises(RequestError) as refusal:
        TrainSettings.from_json({name: value})
    message = str(refusal.value)
    assert message.startswith(f"--{name}=")
    assert "\n" not in message


def test_every_setting_has_an_impossible_value_under_test():
    assert {name for name, _ in IMPOSSIBLE} == {
        field.name for field in dataclasses.fields(TrainSettings)
    }


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"virtual_devices": 2, "devices": "GPU:0"},
            ("--virtual_devices=2", "--devices=GPU:0"),
        ),
        (
            {"strategy": "one_device", "devices": "GPU:0,GPU:1"},
            ("--strategy=one_device", "--devices=GPU:0,GPU:1"),
        ),
        ({"momentum": 0.9, "optimizer": "adam"}, ("--momentum=0.9", "--optimizer=adam")),
        (
            {"early_stopping": 3, "validation_fraction": 0},
            ("--early_stopping=3", "--validation_fraction=0"),
        ),
        ({"warmup_epochs": 3, "epochs": 2}, ("--warmup_epochs=3", "--epochs=2")),
    ],
)
def test_refuses_an_impossible_combination_and_names_both(settings, named):
    with pytest.raises(RequestError) as refusal:
        TrainSettings(**settings)
    assert all(flag in str(refusal.value) for flag in named)


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "multi_worker_mirrored"},
        {"devices": "GPU:0,GPU:1"},
        {"momentum": 0.9},
        {"momentum": 0.9, "optimizer": "rmsprop"},
        {"momentum": 0.0, "optimizer": "adam"},
        {"warmup_epochs": 2, "epochs": 2},
        {"warmup_epochs": 5},
        {"seed": 2**31 - 1},
        {"augment": "none"},
        {"augment": "flip"},
        {"augment": "shift", "task": "mine:TASK"},
    ],
)
def test_accepts_what_is_possible(settings):
    TrainSettings(**settings)


def test_a_combination_is_checked_again_when_a_setting_is_resolved():
    config = TrainSettings(momentum=0.9)
    with pytest.raises(RequestError, match="--optimizer=adam"):
        dataclasses.replace(config, optimizer="adam")


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("strategy", "mirorred", "mirrored"),
        ("precision", "mixed_fp16", "mixed_float16"),
        ("optimizer", "AdamV", "adam"),
        ("lr_schedule", "cosinus", "cosine"),
        ("augment", "crop,flop", "flip"),
    ],
)
def test_suggests_the_nearest_name(name, value, meant):
    with pytest.raises(RequestError, match=f"did you mean '{meant}'"):
        TrainSettings(**{name: value})


def test_an_unknown_setting_is_refused_with_a_suggestion():
    with pytest.raises(RequestError, match="'epoch' is not a setting .*'epochs'"):
        TrainSettings.from_json({"epoch": 3})


@pytest.mark.parametrize(
    ("settings", "values", "said"),
    [
        (EvaluateSettings, {}, "--run_dir is missing"),
        (EvaluateSettings, {"split": "tset"}, "--split=tset: must be one of"),
        (EvaluateSettings, {"batch_size": 0}, "--batch_size=0: must be at least 1"),
        (EvaluateSettings, {"jit_compile": "yes"}, "--jit_compile=yes: must be auto"),
        (EvaluateSettings, {"devices": "TPU:0"}, "'TPU:0' is not a device"),
        (EvaluateSettings, {"dataset": " "}, "--dataset= : is empty"),
        (EvaluateSettings, {"model": "lenet"}, "--model=lenet: must be package.module:function"),
        (PredictSettings, {"paths": ()}, "nothing to predict"),
        (PredictSettings, {"paths": ("a",), "format": "xml"}, "--format=xml: must be one of"),
        (PredictSettings, {"paths": ("a",), "top_k": 0}, "--top_k=0: must be at least 1"),
        (ExportSettings, {}, "--run_dir is missing"),
        (ExportSettings, {"formats": "onnx,tflit"}, "'tflit' is not a format"),
        (ExportSettings, {"formats": "onnx,onnx"}, "names a format twice"),
        (ExportSettings, {"formats": ""}, "--formats="),
        (ExportSettings, {"max_difference": -1.0}, "--max_difference=-1.0"),
        (ExportSettings, {"calibration_examples": 0}, "--calibration_examples=0"),
    ],
)
def test_the_commands_after_training_refuse_what_is_impossible(settings, values, said):
    given = values if "missing" in said else {"run_dir": "runs/a"} | values
    with pytest.raises(RequestError) as refusal:
        settings(**given)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("formats", "chosen"),
    [("all", EXPORT_FORMATS), ("litert,keras", ("keras", "litert")), ("onnx", ("onnx",))],
)
def test_formats_are_written_in_one_order(formats, chosen):
    assert ExportSettings(run_dir="a", formats=formats).chosen_formats == chosen


def test_a_run_is_continued_with_what_decides_how_it_is_computed():
    """These words are in run directories that exist: a setting must not change sides unseen."""
    assert TrainSettings.names(on_resume="ignored") == {
        *("run_dir", "resume", "verbosity", "progress", "join_timeout", "report", "dry_run"),
        "compile_cache",
    }
    assert TrainSettings.names(on_resume="allowed") == {
        *("strategy", "devices", "virtual_devices", "precision", "jit_compile"),
        *("steps_per_execution", "intra_op_threads", "deterministic", "data_dir", "input"),
        *("checkpoint_every", "tensorboard", "log_to", "profile", "hardware_interval"),
        *("task", "remat"),
    }


def test_trials_differ_in_what_is_no_matter_of_the_process_or_the_data():
    assert TrainSettings.names(tunable=False) == {
        *("strategy", "devices", "virtual_devices", "intra_op_threads", "deterministic"),
        *(
            "join_timeout",
            "weights",
            "dataset",
            "data_dir",
            "validation_fraction",
            "image_size",
            "seed",
        ),
        *("run_dir", "resume"),
        *("task", "features", "target", "tokens", "task_options"),
        *("checkpoint_every", "tensorboard", "log_to", "profile", "progress", "verbosity"),
        *("hardware_interval", "report", "dry_run", "compile_cache"),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_a_command_has_help_and_a_section(command):
    taken = flags.settings_of(command)
    for title, section in taken.page().items():
        assert title
        for name in section:
            assert taken.help(name), name


def test_help_is_that_of_the_nearest_class_that_has_any():
    assert TrainSettings.help("run_dir") != BenchSettings.help("run_dir")
    assert TrainSettings.help("seed") == BenchSettings.help("seed")


def test_without_its_source_a_command_has_no_help_and_still_works(monkeypatch):
    def no_source(module):
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", no_source)
    settings_module._documented.cache_clear()
    try:
        assert "--epochs=auto|N" in flags.help_text("train")
        assert flags.parse(["--epochs=3"]).epochs == 3
    finally:
        settings_module._documented.cache_clear()


def test_another_default_keeps_the_declaration():
    assert BenchSettings.setting("input") == TrainSettings.setting("input")
    with pytest.raises(RequestError, match="--input=memory: must be one of"):
        BenchSettings(input="memory")


def test_a_field_declared_again_says_what_differs_alone():
    again, first = BenchSettings.setting("run_dir"), TrainSettings.setting("run_dir")
    assert again.default != first.default
    assert dataclasses.replace(again, default=first.default) == first
