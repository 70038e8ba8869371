"""Properties of the command line: flags to settings, experiment files, and the help page."""

import dataclasses
import json

import pytest
from absl import flags as absl_flags

from tfgpu.cli import flags
from tfgpu.errors import RequestError
from tfgpu.evaluate.settings import EvaluateSettings
from tfgpu.export.settings import ExportSettings
from tfgpu.predict.settings import PredictSettings
from tfgpu.train.settings import TrainSettings

FIELDS = [field.name for field in dataclasses.fields(TrainSettings)]

# Every flag in the order of the help page, but virtual_devices, which excludes a list of devices.
EVERY_FLAG = """
    --strategy=one_device --devices=GPU:1 --join_timeout=60 --precision=mixed_float16
    --jit_compile=false
    --steps_per_execution=7 --intra_op_threads=2 --deterministic=true --compile_cache=programs
    --dataset=folder:photos --data_dir=data --task=classification --features=x=image,y=label
    --target=price --tokens=word --task_options=split=time
    --validation_fraction=0.25 --image_size=48x64
    --input=streaming --augment=crop,flip
    --model=package.module:build --width=1.5 --depth=3 --remat=true
    --weights=runs/earlier --freeze=*,!logits --unfreeze_at=4 --unfreeze_learning_rate=0.01
    --layer_decay=0.9
    --batch_size=96 --epochs=9 --optimizer=sgd --learning_rate=0.1 --momentum=0.9
    --weight_decay=0.0005 --lr_schedule=linear --warmup_epochs=1.8 --label_smoothing=0.1
    --class_weight=balanced --clip_norm=1.5 --ema_momentum=0.999 --gradient_accumulation_steps=2
    --early_stopping=3 --seed=12
    --run_dir=runs/mine --resume=must --checkpoint_every=100 --tensorboard=full
    --log_to=mlflow,wandb --profile=5:7
    --hardware_interval=0.5 --report=true --dry_run=true
    --progress=plain --verbosity=1
""".split()


def refusal_of(*argv):
    with pytest.raises(RequestError) as refusal:
        flags.parse(argv)
    message = str(refusal.value)
    assert "\n" not in message
    return message


@pytest.fixture
def experiment(tmp_path):
    """Writes an experiment file and returns its path as text."""

    def write(name, text):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return str(path)

    return write


def test_no_flags_give_the_defaults():
    assert flags.parse([]) == TrainSettings()


def test_every_setting_has_a_flag():
    assert [arg[2:].partition("=")[0] for arg in EVERY_FLAG] == [
        name for name in FIELDS if name != "virtual_devices"
    ]


def test_a_config_gives_back_the_flags_it_came_from():
    assert flags.to_argv(flags.parse(EVERY_FLAG)) == EVERY_FLAG


def test_the_flags_of_the_defaults_are_none():
    assert flags.to_argv(TrainSettings()) == []


@pytest.mark.parametrize(
    ("arg", "name", "value"),
    [
        ("--devices=gpu:0,gpu:1", "devices", "GPU:0,GPU:1"),
        ("--devices=ALL", "devices", "all"),
        ("--virtual_devices=2", "virtual_devices", 2),
        ("--deterministic", "deterministic", True),
        ("--deterministic=true", "deterministic", True),
        ("--deterministic=False", "deterministic", False),
        ("--nodeterministic", "deterministic", False),
        ("--jit_compile", "jit_compile", True),
        ("--nojit_compile", "jit_compile", False),
        ("--jit_compile=auto", "jit_compile", "auto"),
        ("--steps_per_execution=auto", "steps_per_execution", "auto"),
        ("--steps_per_execution=5", "steps_per_execution", 5),
        ("--image_size=28", "image_size", (28, 28)),
        ("--image_size=28x32", "image_size", (28, 32)),
        ("--learning_rate=1e-3", "learning_rate", 1e-3),
        ("--batch_size=auto", "batch_size", None),
        ("--clip_norm=off", "clip_norm", None),
        ("--augment=none", "augment", "none"),
        ("--augment=auto", "augment", None),
        ("--dataset=folder:a=b", "dataset", "folder:a=b"),
    ],
)
def test_a_flag_sets_its_setting(arg, name, value):
    assert getattr(flags.parse([arg]), name) == value


def test_a_value_may_follow_as_its_own_argument():
    assert flags.parse(["--epochs", "3"]).epochs == 3


def test_a_boolean_flag_does_not_take_the_next_argument():
    config = flags.parse(["--jit_compile", "--deterministic", "--epochs=3"])
    assert (config.jit_compile, config.deterministic, config.epochs) == (True, True, 3)


def test_the_last_of_two_flags_wins():
    assert flags.parse(["--epochs=3", "--epochs=4"]).epochs == 4


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("--epochs=x", "--epochs=x: must be a whole number"),
        ("--epochs=", "--epochs=: must be a whole number"),
        ("--epochs=2.5", "--epochs=2.5: must be a whole number"),
        ("--epochs=0", "--epochs=0: must be at least 1"),
        ("--learning_rate=fast", "--learning_rate=fast: must be a number"),
        ("--learning_rate=nan", "--learning_rate=nan: must be a number above 0"),
        ("--image_size=32x32x3", "--image_size=32x32x3: must be HEIGHTxWIDTH"),
        ("--image_size=0", "--image_size=0x0: must be two whole numbers"),
        ("--deterministic=maybe", "--deterministic=maybe: must be true or false"),
        ("--jit_compile=maybe", "--jit_compile=maybe: must be auto, true or false"),
        ("--nojit_compile=true", "--nojit_compile=true does not take an argument"),
        ("--steps_per_execution=x", "--steps_per_execution=x: must be auto or a whole number"),
        ("--run_dir=", "--run_dir=: is empty"),
    ],
)
def test_a_value_that_does_not_parse_is_refused(arg, said):
    assert refusal_of(arg).startswith(said)


def test_a_flag_is_not_taken_for_a_value():
    assert refusal_of("--run_dir", "--epochs=3").startswith("--run_dir=--epochs=3: is a flag")


def test_a_missing_value_is_refused():
    assert "--epochs" in refusal_of("--epochs")


@pytest.mark.parametrize(
    ("arg", "meant"),
    [
        ("--epoch=3", "--epochs"),
        ("--batch-size=3", "--batch_size"),
        ("--strategi=mirrored", "--strategy"),
        ("--hepl", "--help"),
    ],
)
def test_an_unknown_flag_is_refused_with_a_suggestion(arg, meant):
    message = refusal_of(arg)
    assert message.startswith(arg.partition("=")[0] + ": no such flag")
    assert f"did you mean {meant!r}" in message


@pytest.mark.parametrize("argv", [["mirrored"], ["--epochs=3", "x"], ["x", "--epochs=3"], ["-"]])
def test_an_argument_that_is_no_flag_is_refused(argv):
    assert "is not a flag" in refusal_of(*argv)


def test_absl_global_flags_stay_as_they_were():
    before = set(absl_flags.FLAGS)
    flags.parse(["--epochs=3"])
    assert set(absl_flags.FLAGS) == before


def test_flags_win_over_a_python_experiment_and_that_over_the_defaults(experiment):
    path = experiment("e.py", "def config():\n    return {'epochs': 3, 'batch_size': 32}\n")
    config = flags.parse([f"--experiment={path}", "--epochs=4"])
    assert config == TrainSettings(epochs=4, batch_size=32)


def test_a_flag_given_its_default_still_wins(experiment):
    path = experiment("e.json", {"precision": "mixed_float16", "epochs": 3, "clip_norm": 1.0})
    argv = [f"--experiment={path}", "--precision=float32", "--epochs=auto", "--clip_norm=off"]
    assert flags.parse(argv) == TrainSettings()


def test_a_value_that_a_flag_replaces_need_not_be_possible(experiment):
    path = experiment("e.json", {"epochs": 0})
    assert flags.parse([f"--experiment={path}", "--epochs=4"]).epochs == 4


def test_the_config_of_a_run_repeats_it_in_another_directory(experiment):
    config = flags.parse(EVERY_FLAG)
    path = experiment("config.json", config.to_json())
    assert flags.parse([f"--experiment={path}"]) == dataclasses.replace(
        config, run_dir=None, resume="auto"
    )


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("e.py", "def config(:\n", "e.py:1: SyntaxError"),
        ("e.py", "x = 1\nimport no_such_module\n", "e.py:2: ModuleNotFoundError"),
        ("e.py", "def config():\n    return 1 / 0\n", "e.py:2: ZeroDivisionError"),
        ("e.py", "raise SystemExit(3)\n", "e.py:1: SystemExit"),
        ("e.py", "import json\ndef config():\n    return json.loads('{')\n", "e.py:3: JSONDecode"),
        ("e.py", "x = 1\n", "must define a function config()"),
        ("e.py", "config = {}\n", "must define a function config()"),
        ("e.py", "def config():\n    return 3\n", "returns a dict"),
        ("e.py", "def config():\n    return {'epoch': 3}\n", "e.py: 'epoch' is not a setting"),
        ("e.py", "def config():\n    return {3: 4}\n", "e.py: 3 is not a setting"),
        ("e.json", "{\n'epochs': 3}", "e.json:2: not JSON"),
        ("e.json", "[" * 100_000, "e.json: is nested too deeply"),
        ("e.json", f'{{"epochs": {"1" * 5000}}}', "e.json: holds a number that is too long"),
        ("e.json", "[]", "must hold an object"),
        ("e.json", '{"epochs": "ten"}', "e.json: --epochs=ten: must be a whole number"),
        ("e.json", '{"epochs": true}', "e.json: --epochs=true: must be a whole number"),
        ("e.json", '{"learning_rate": NaN}', "e.json: --learning_rate=nan"),
        ("e.yaml", "", "must be a .py file"),
    ],
)
def test_an_unusable_experiment_is_refused_with_file_and_line(experiment, name, text, said):
    assert said in refusal_of(f"--experiment={experiment(name, text)}")


def test_an_experiment_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "e.json"
    path.write_bytes(b"\xff\xfe{}")
    assert "is not UTF-8" in refusal_of(f"--experiment={path}")


def test_a_missing_experiment_is_refused(tmp_path):
    assert "No such file" in refusal_of(f"--experiment={tmp_path}/e.py")


def test_a_run_directory_given_as_experiment_suggests_its_config(experiment, tmp_path):
    path = experiment("config.json", {})
    assert path in refusal_of(f"--experiment={tmp_path}")


def test_only_the_python_form_runs_code(experiment, tmp_path):
    path = experiment("e.json", f"open({str(tmp_path / 'made')!r}, 'w')")
    refusal_of(f"--experiment={path}")
    assert not (tmp_path / "made").exists()


def test_a_python_experiment_leaves_nothing_behind(experiment, tmp_path):
    path = experiment("e.py", "def config():\n    return {}\n")
    flags.parse([f"--experiment={path}"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["e.py"]


@pytest.mark.parametrize("name", [*FIELDS, "experiment", "help", "version"])
def test_the_help_page_describes_each_flag_once(name):
    heads = [line.split("=")[0].strip() for line in flags.help_text().splitlines()]
    assert heads.count(f"--{name}") == 1


def test_the_examples_of_the_help_page_parse():
    page = flags.help_text()
    examples = [line.split()[2:] for line in page.splitlines() if line.startswith("  tfgpu train")]
    assert examples
    for argv in examples:
        flags.parse([arg for arg in argv if not arg.startswith("--experiment")])


def test_help_is_answered_even_beside_flags_that_do_not_parse(capsys):
    with pytest.raises(SystemExit) as stop:
        flags.parse(["--epochs=x", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == flags.help_text() + "\n"


def test_version_names_the_three(capsys):
    with pytest.raises(SystemExit) as stop:
        flags.parse(["--version"])
    assert stop.value.code == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["tfgpu", "tensorflow", "keras"]


@pytest.mark.parametrize("command", ["doctor", "bench"])
def test_every_commands_page_gives_defaults_and_examples_that_parse(command):
    page = flags.help_text(command)
    examples = [
        line.split()[2:] for line in page.splitlines() if line.startswith(f"  tfgpu {command}")
    ]
    assert examples
    for example in examples:
        flags.parse(example, command=command)


def test_a_command_has_defaults_of_its_own():
    config = flags.parse([], command="bench")
    assert (config.jit_compile, config.batch_size, config.rounds) == (False, 128, 5)
    assert "--batch_size=auto|N  (default: 128)" in flags.help_text("bench")
    assert flags.to_argv(config, command="bench") == []


def test_an_experiment_serves_every_command(experiment):
    path = experiment("config.json", {"batch_size": 64, "input": "resident", "jit_compile": True})
    config = flags.parse([f"--experiment={path}", "--factors=xla"], command="bench")
    assert (config.batch_size, config.jit_compile, config.factors) == (64, True, "xla")


@pytest.mark.parametrize(
    ("arg", "value"),
    [
        ("--probe", "all"),
        ("--noprobe", "none"),
        ("--probe=all", "all"),
        ("--probe=mirrored,xla", "mirrored,xla"),
    ],
)
def test_the_probe_may_stand_alone_or_take_a_list(arg, value):
    assert flags.parse([arg], command="doctor").probe == value


def test_each_command_has_settings_of_its_own():
    assert flags.parse(["--run_dir=a", "--split=all"], command="evaluate") == EvaluateSettings(
        run_dir="a", split="all"
    )


def test_a_repeated_flag_keeps_all_of_its_values():
    argv = ["--run_dir=a", "--out=x", "--run_dir=b,c", "--out=y"]
    settings = flags.parse(argv, command="report")
    assert (settings.run_dir, settings.out) == (("a", "b,c"), "y")


def test_predict_takes_paths_among_its_flags():
    config = flags.parse(["--run_dir=a", "b.png", "-", "--top_k=1", "c d"], command="predict")
    assert config == PredictSettings(run_dir="a", top_k=1, paths=("b.png", "-", "c d"))


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_the_page_of_a_command_names_each_of_its_flags(command):
    page = flags.help_text(command)
    settings = {"evaluate": EvaluateSettings, "predict": PredictSettings, "export": ExportSettings}
    for field in dataclasses.fields(settings[command]):
        assert f"--{field.name}=" in page or field.name == "paths"


@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_a_flag_of_training_is_none_of_the_commands_after_it(command):
    with pytest.raises(RequestError, match="--epochs: no such flag"):
        flags.parse(["--run_dir=a", "--epochs=3", "x"], command=command)
