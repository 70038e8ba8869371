"""`tfgpu train` from end to end: what it leaves behind, what repeats, and how it stops.

Most runs here are of a small model on a few images, in this process; what needs a process of its
own (signals, a Keras without tfgpu) has one. Runs with the same settings are made once.
"""

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tfgpu
from tfgpu.cli import entry
from tfgpu.data import sources
from tfgpu.data.examples import Examples
from tfgpu.train import __main__ as train
from tfgpu.train.run import RESULT_FIELDS

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

METRICS = ["epoch", "step", "loss", "accuracy", "val_loss", "val_accuracy"]
TIMES = ["samples_per_second", "seconds"]

MODEL = """
import keras
import tfgpu


def small(*, image_shape, num_classes):
    layers = keras.layers
    inputs = keras.Input(image_shape)
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = layers.Dense(num_classes)(layers.Flatten()(x))
    return tfgpu.Model(inputs, layers.Activation("linear", dtype="float32")(x))


def of_keras(*, image_shape, num_classes):
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, keras.layers.Dense(num_classes)(keras.layers.Flatten()(inputs)))


def three(*, image_shape, num_classes):
    inputs = keras.Input(image_shape)
    return tfgpu.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))


def nothing(*, image_shape, num_classes):
    pass


def other_arguments(shape):
    pass
"""

# 60 to train on: 6 for validation, 54 in 7 batches, the last of 6.
BASE = {
    "dataset": "folder:images",
    "model": "e2e_models:small",
    "devices": "CPU:0",
    "batch_size": "8",
    "epochs": "3",
    "learning_rate": "0.05",
    "steps_per_execution": "3",
    "tensorboard": "none",
    "progress": "plain",
}


def write_images(root, *, train=30, test=7, size=(8, 8)):
    """Two classes of noise, one darker than the other."""
    random = np.random.RandomState(0)
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(("dark", "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.randint(60 * label, 196 + 60 * label, (*size, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A user's folder: images, a module with models, and the runs of this module."""
    place = tmp_path_factory.mktemp("user")
    write_images(place / "images")
    (place / "e2e_models.py").write_text(MODEL)
    return place


@pytest.fixture(autouse=True)
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(place / "data"))
    # A checkout need not be installed for the processes that are started here.
    monkeypatch.setenv("PYTHONPATH", str(Path(tfgpu.__file__).parents[1]))


def argv_of(settings):
    return [f"--{name}={value}" for name, value in (BASE | settings).items() if value is not None]


def command(*argv):
    """Runs the command in this process; returns its exit code."""
    with pytest.raises(SystemExit) as stop:
        entry.run(train.main, list(argv))
    # The command's own, which a process has once; here tests go on.
    keras.config.set_dtype_policy("float32")
    return stop.value.code or 0


class Run:
    """A finished run and its files."""

    def __init__(self, path):
        self.path = path
        self.config = json.loads((path / "config.json").read_text())
        self.result = json.loads((path / "result.json").read_text())
        lines = (path / "metrics.jsonl").read_text().splitlines()
        self.metrics = [json.loads(line) for line in lines]

    @property
    def values(self):
        """What a repetition has to give again: everything but times."""
        return [[line[name] for name in METRICS] for line in self.metrics] + [
            self.result[name] for name in ("loss", "val_loss", "test_loss", "test_accuracy")
        ]

    @property
    def weights(self):
        return keras.models.load_model(self.path / "model.keras").get_weights()


@pytest.fixture
def run(place, request):
    """Runs the command with changes to `BASE`, once a set of changes."""
    made = request.config.__dict__.setdefault("_e2e_runs", {})

    def run(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            path = place / "runs" / f"run{len(made)}"
            assert command(*argv_of(changes), f"--run_dir={path}") == 0
            made[key] = Run(path)
        return made[key]

    return run


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- what a run leaves behind -----------------------------------------------------------


def test_the_files_of_a_run_and_their_fields(run, place):
    this = run(tensorboard="default")
    names = {path.name for path in this.path.iterdir()}
    assert names - {"checkpoints", ".lock"} == {
        "config.json",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "model.keras",
        "result.json",
        "tensorboard",
    }
    events = {str(path.parent.relative_to(this.path)) for path in this.path.rglob("*tfevents*")}
    assert events == {"tensorboard", "tensorboard/train", "tensorboard/validation"}

    assert this.config["dataset"] == "folder:images"
    # Those for which None says "off", or the data's own.
    left = {"data_dir", "image_size", "clip_norm", "ema_momentum", "early_stopping"}
    left |= {"checkpoint_every", "profile", "width", "depth"}
    assert {name for name, value in this.config.items() if value is None} <= left
    assert "auto" not in {this.config[n] for n in ("jit_compile", "input", "steps_per_execution")}

    assert [line["epoch"] for line in this.metrics] == [1, 2, 3]
    assert [line["step"] for line in this.metrics] == [7, 14, 21]
    for line in this.metrics:
        assert list(line) == METRICS + TIMES
        assert all(math.isfinite(line[name]) for name in METRICS + TIMES)

    result = this.result
    assert list(result) == list(RESULT_FIELDS)
    assert None not in result.values()
    expected = {
        "status": "finished",
        "dataset": "folder:images",
        "model": "e2e_models:small",
        "parameters": 112 + 74,
        "strategy": "mirrored",
        "replicas": 1,
        "precision": "float32",
        "jit_compile": False,
        "steps_per_execution": 3,
        "batch_size": 8,
        "epochs": 3,
        "steps": 21,
    }
    assert {name: result[name] for name in expected} == expected
    last = {name: this.metrics[-1][name] for name in METRICS[2:]}
    assert {name: result[name] for name in last} == last
    assert 0 < result["train_seconds"] < result["total_seconds"]
    assert result["test_accuracy"] * 14 == pytest.approx(round(result["test_accuracy"] * 14))

    environment = json.loads((this.path / "environment.json").read_text())
    assert {"versions", "devices", "nvidia_driver", "git", "dataset"} <= set(environment)
    assert environment["versions"]["tensorflow"] == tf.__version__
    dataset = environment["dataset"]
    assert {"name", "version", "fingerprint", "license", "citation"} <= set(dataset)
    counts = [dataset[f"{split}_examples"] for split in ("train", "validation", "test")]
    assert counts == [54, 6, 14]

    log = (this.path / "log.txt").read_text()
    assert "batch            8 = 1 x 8\n" in log
    assert re.search(r"^epoch 3/3  loss ", log, re.M)
    assert f"test accuracy {result['test_accuracy']:.4f}" in log
    assert f"tensorboard --logdir {this.path}/tensorboard" in log


def test_the_terminal_shows_what_the_log_holds(run, place, capsys):
    path = place / "runs" / "shown"
    assert command(*argv_of({}), f"--run_dir={path}") == 0
    shown = capsys.readouterr()
    assert shown.out == (path / "log.txt").read_text()
    assert shown.err == ""
    assert not (path / "tensorboard").exists() and "tensorboard" not in shown.out


def test_progress_none_shows_no_progress_but_logs_it(place, capsys):
    path = place / "runs" / "silent"
    assert command(*argv_of({"progress": "none", "epochs": "1"}), f"--run_dir={path}") == 0
    assert "epoch 1/1" not in capsys.readouterr().out
    assert "epoch 1/1" in (path / "log.txt").read_text()


def test_the_saved_model_is_the_one_that_was_tested(run):
    this = run()
    model = tfgpu.load_model(this.path / "model.keras")
    data = sources.load(
        "folder:images", data_dir=None, validation_fraction=0.1, image_size=None, seed=0
    )
    images, labels = data.test.load_arrays()
    logits = model.predict(images, verbose=0)
    assert logits.dtype == np.float32
    assert np.mean(logits.argmax(1) == labels) == pytest.approx(this.result["test_accuracy"])


# Loads each model where tfgpu cannot be imported, and writes the logits of raw pixels.
WITHOUT_TFGPU = """
import sys, warnings
sys.modules["tfgpu"] = None
import keras, numpy as np
pixels = np.load(sys.argv[1])
for path in sys.argv[2:]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = keras.models.load_model(path)
    assert type(model).__module__.startswith("keras."), type(model)
    np.save(path + ".npy", model(pixels).numpy())
"""


def test_plain_keras_without_tfgpu_loads_every_model(run, place):
    runs = [
        run(),
        # A loss and a schedule of tfgpu's own.
        run(label_smoothing=0.1, lr_schedule="linear", epochs=1),
        run(precision="mixed_float16", epochs=1),
    ]
    pixels = np.random.RandomState(1).randint(0, 256, (5, 8, 8, 3), np.uint8)
    np.save(place / "pixels.npy", pixels)
    models = [str(this.path / "model.keras") for this in runs]
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TFGPU, str(place / "pixels.npy"), *models],
        check=True,
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
    )
    for model in models:
        logits = np.load(model + ".npy")
        assert logits.shape == (5, 2) and logits.dtype == np.float32
        ours = tfgpu.load_model(model)(pixels).numpy()
        np.testing.assert_allclose(logits, ours, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("devices", ["CPU:0", "CPU:0,CPU:1"])
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
        {"precision": "mixed_float16", "epochs": 1},
        {"precision": "mixed_bfloat16", "epochs": 1},
        {"jit_compile": "true"},
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


@pytest.mark.parametrize("devices", ["CPU:0", "CPU:0,CPU:1"])
def test_the_average_is_validated_tested_and_saved(run, devices):
    this = run(ema_momentum=0.9, devices=devices)
    plain = run(devices=devices)
    assert this.metrics[0]["loss"] == plain.metrics[0]["loss"]
    assert this.metrics[0]["val_loss"] != plain.metrics[0]["val_loss"]
    assert evaluate_validation(this)["loss"] == pytest.approx(this.result["val_loss"], rel=1e-5)


def test_early_stopping_restores_the_best_average(run):
    this = run(
        ema_momentum=0.5, early_stopping=2, epochs=60, learning_rate=0.9, lr_schedule="constant"
    )
    losses = [line["val_loss"] for line in this.metrics]
    assert len(losses) < 60
    assert evaluate_validation(this)["loss"] == pytest.approx(min(losses), rel=1e-4)


def test_accumulation_and_clipping_train(run):
    this = run(gradient_accumulation_steps=4, clip_norm=1, optimizer="adamw")
    assert this.result["steps"] == 21
    assert this.metrics[-1]["loss"] < this.metrics[0]["loss"]


def test_accumulating_every_batch_is_one_batch_an_epoch(run):
    settings = {"validation_fraction": 0, "epochs": 2, "momentum": 0, "augment": "none"}
    whole = run(batch_size=60, **settings)
    parts = run(batch_size=10, gradient_accumulation_steps=6, **settings)
    for one, other in zip(whole.weights, parts.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_images_are_resized(run):
    assert run(image_size="12x10", epochs=1).result["parameters"] == 112 + 5 * 4 * 4 * 2 + 2


# ---- a second run in the same place ---------------------------------------------------------


@pytest.fixture
def copy(run, tmp_path):
    """A finished run of its own, in `run_dir`."""
    return Run(shutil.copytree(run().path, tmp_path / "run"))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_says_so(copy, capsys):
    before = contents(copy.path)
    assert command(*argv_of({"verbosity": "0"}), f"--run_dir={copy.path}") == 0
    shown = capsys.readouterr()
    assert "holds this run, finished" in shown.out and str(copy.path) in shown.out
    assert "compiling" not in shown.out and shown.err == ""
    assert contents(copy.path) == before


def test_other_settings_are_named(copy, capsys):
    before = contents(copy.path)
    assert command(*argv_of({"augment": "flip", "seed": 2}), f"--run_dir={copy.path}") == 2
    line = the_line(capsys)
    said = [str(copy.path), 'augment: "crop" there, "flip" now', "seed: 0 there, 2 now"]
    assert all(text in line for text in said), line
    assert contents(copy.path) == before


# ---- bad input: one line, its exit code, nothing left behind ---------------------------------


def the_line(capsys):
    """The one line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("tfgpu: ")
    return lines[0]


BAD = [
    ({"epoch": 3}, 2, ["--epoch", "--epochs"]),
    ({"dataset": "no_such_set"}, 2, ["no_such_set"]),
    ({"model": "resnet9000"}, 2, ["--model=resnet9000", "lenet"]),
    ({"model": "e2e_models:tiny"}, 2, ["--model=e2e_models:tiny", "tiny"]),
    ({"model": "e2e_models:of_keras"}, 2, ["e2e_models:of_keras", "tfgpu.Model"]),
    ({"model": "e2e_models:three"}, 2, ["e2e_models:three", "(None, 3)", "(None, 2)"]),
    ({"model": "e2e_models:nothing"}, 2, ["e2e_models:nothing", "NoneType"]),
    ({"model": "e2e_models:other_arguments"}, 2, ["other_arguments", "num_classes"]),
    ({"model": "lenet"}, 2, ["--model=lenet", "8x8", "16x16"]),
    ({"optimizer": "sdg"}, 2, ["--optimizer=sdg", "'sgd'"]),
    ({"strategy": "mirorred"}, 2, ["--strategy=mirorred", "'mirrored'"]),
    ({"devices": "GPU:7"}, 2, ["GPU:7", "CPU:0"]),
    ({"precision": "float16"}, 2, ["--precision=float16", "mixed_float16"]),
    ({"batch_size": 0}, 2, ["--batch_size=0"]),
    ({"batch_size": -8}, 2, ["--batch_size=-8"]),
    ({"batch_size": 55}, 2, ["--batch_size=55", "54"]),
    ({"batch_size": 9, "devices": "CPU:0,CPU:1"}, 2, ["--batch_size=9", "8 or 10"]),
    ({"epochs": 0}, 2, ["--epochs=0"]),
    ({"validation_fraction": 1}, 2, ["--validation_fraction=1"]),
    ({"validation_fraction": 0.001}, 2, ["validation_fraction=0.001", "60"]),
    ({"dataset": "folder:nowhere"}, 3, ["nowhere"]),
    ({"dataset": "folder:empty"}, 3, ["empty"]),
    ({"dataset": "folder:one"}, 3, ["one", "'dark'"]),
    ({"dataset": "folder:broken"}, 3, ["broken/train/light/03.png"]),
    ({"dataset": "folder:sizes"}, 2, ["sizes/train/light/03.png", "--image_size="]),
    ({"dataset": "digits", "data_dir": "cut"}, 3, ["digits-train.tfrecord"]),
]


@pytest.fixture(scope="module")
def bad_folders(place):
    (place / "empty").mkdir()
    write_images(place / "one", train=3)
    shutil.rmtree(place / "one" / "train" / "light")
    shutil.rmtree(place / "one" / "test")
    broken = write_images(place / "broken", train=6, size=(40, 40)) / "train/light/03.png"
    broken.write_bytes(broken.read_bytes()[:900])
    Image.new("RGB", (9, 8)).save(write_images(place / "sizes") / "train/light/03.png")
    from tfgpu.data import digits

    prepared = digits.prepare(data_dir=str(place / "cut"))
    [records] = [name for name in os.listdir(prepared) if "train.tfrecord" in name]
    path = os.path.join(prepared, records)
    os.truncate(path, os.path.getsize(path) // 2)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    BAD,
    ids=["-".join(f"{name}={value}" for name, value in changes.items()) for changes, *_ in BAD],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    bad_folders, place, tmp_path, capsys, changes, code, said
):
    before = everything(place)
    assert command(*argv_of(changes), f"--run_dir={tmp_path}/new/run") == code
    line = the_line(capsys)
    assert all(text in line for text in said), line
    assert everything(tmp_path) == []
    assert [name for name in everything(place) if "__pycache__" not in name] == [
        name for name in before if "__pycache__" not in name
    ]


def test_a_damaged_image_that_is_streamed_is_named(bad_folders, tmp_path, capsys):
    changes = {"dataset": "folder:broken", "input": "streaming", "validation_fraction": 0}
    assert command(*argv_of(changes), f"--run_dir={tmp_path}/run") == 3
    line = the_line(capsys)
    assert "broken/train/light/03.png cannot be read" in line
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed" and list(result) == list(RESULT_FIELDS)
    assert (tmp_path / "run" / "log.txt").read_text().endswith(line + "\n")


def test_a_damaged_test_image_costs_no_training(place, tmp_path, capsys):
    folder = shutil.copytree(place / "images", tmp_path / "images")
    image = folder / "test" / "dark" / "01.png"
    image.write_bytes(image.read_bytes()[:150])
    changes = {"dataset": f"folder:{folder}", "epochs": 1}
    assert command(*argv_of(changes), f"--run_dir={tmp_path}/run") == 3
    assert "test/dark/01.png" in the_line(capsys)
    keras.models.load_model(tmp_path / "run" / "model.keras")


@pytest.mark.parametrize("where", ["images", "images/test/run", "e2e_models.py", "e2e_models.py/x"])
def test_a_place_that_is_taken_is_refused(place, capsys, where):
    (place / "images" / "test" / "run").unlink(missing_ok=True)
    if where.endswith("test/run"):
        (place / "images/test/run").symlink_to("/nowhere/at/all")
    before = everything(place / "images")
    assert command(*argv_of({}), f"--run_dir={where}") == 2
    assert f"run_dir '{where}'" in the_line(capsys)
    assert everything(place / "images") == before
    (place / "images" / "test" / "run").unlink(missing_ok=True)


def test_a_loss_that_is_not_finite(tmp_path, capsys):
    changes = {"learning_rate": "1e30", "clip_norm": None}
    assert command(*argv_of(changes), f"--run_dir={tmp_path}/run") == 5
    line = the_line(capsys)
    assert "--learning_rate=1e+30" in line and "step" in line
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("error", "devices", "advice"),
    [
        (
            tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"),
            "CPU:0,CPU:1",
            "--batch_size=2 or --input=streaming or --precision=mixed_bfloat16",
        ),
        (
            tf.errors.InternalError(None, None, "CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
            "CPU:0",
            "--batch_size=3",
        ),
        (MemoryError(), "CPU:0", "--batch_size=3"),
    ],
)
def test_out_of_memory(tmp_path, capsys, monkeypatch, error, devices, advice):
    def fit(*args, **kwargs):
        raise error

    monkeypatch.setattr(keras.Model, "fit", fit)
    changes = {"batch_size": 6, "devices": devices, "input": "resident"}
    assert command(*argv_of(changes), f"--run_dir={tmp_path}/run") == 5
    line = the_line(capsys)
    assert "out of memory with --batch_size=6" in line and advice in line


def test_out_of_memory_before_training(tmp_path, capsys, monkeypatch):
    def load_arrays(self):
        raise MemoryError

    monkeypatch.setattr(Examples, "load_arrays", load_arrays)
    assert command(*argv_of({"input": "resident"}), f"--run_dir={tmp_path}/run") == 5
    assert "--input=streaming" in the_line(capsys)
    assert everything(tmp_path) == []


def test_a_disk_that_fills_up_while_training(tmp_path, capsys, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if "metrics" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert command(*argv_of({}), f"--run_dir={tmp_path}/run") == 5
    line = the_line(capsys)
    assert "No space left on device" in line and "metrics.jsonl" in line and "--run_dir" in line
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "model.keras"),
        # As HDF5 and TensorFlow say it.
        OSError("Can't write data (errno = 28, error message = 'No space left on device')"),
        tf.errors.ResourceExhaustedError(None, None, "/run/x; No space left on device"),
    ],
)
def test_a_disk_too_full_for_the_model(tmp_path, capsys, monkeypatch, error):
    def save(self, path, **options):
        path.write_bytes(b"half a model")
        raise error

    monkeypatch.setattr(keras.Model, "save", save)
    assert command(*argv_of({"epochs": 1}), f"--run_dir={tmp_path}/run") == 5
    assert "No space left on device" in the_line(capsys)
    assert not [name for name in everything(tmp_path / "run") if "keras" in name]


# ---- in a process of its own -------------------------------------------------------------------


def start(*argv, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "tfgpu.train", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_main_job_on_two_virtual_devices(place):
    path = place / "runs" / "main"
    process = start(
        "--strategy=mirrored",
        "--virtual_devices=2",
        "--epochs=1",
        f"--run_dir={path}",
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    this = Run(path)
    assert (this.result["replicas"], this.result["parameters"]) == (2, 62_006)
    assert this.result["dataset"] == "digits"
    assert this.result["test_accuracy"] > 0.3
    assert out == (path / "log.txt").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_cleanly(place, tmp_path, number, code):
    path = tmp_path / "run"
    process = start(*argv_of({"epochs": 100_000}), f"--run_dir={path}")
    for line in process.stdout:
        # The line of the first epoch comes just before what the run keeps of it.
        if re.match(r"epoch +2/", line):
            break
    process.send_signal(number)
    sent = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 5
    assert process.returncode == code
    [line] = err.splitlines()
    assert re.fullmatch(rf"tfgpu: stopped by {number.name} after [1-9]\d* steps; .*{path}.*", line)
    this = Run(path)
    assert this.result["status"] == "interrupted"
    assert list(this.result) == list(RESULT_FIELDS)
    assert this.result["epochs"] == len(this.metrics) > 0
    assert this.result["loss"] == this.metrics[-1]["loss"]
    assert (path / "log.txt").read_text().endswith(line + "\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_it_starts_leaves_nothing(place, tmp_path, number, code):
    process = start(*argv_of({}), f"--run_dir={tmp_path}/run")
    # TensorFlow's import takes longer than this; Python's own start does not.
    time.sleep(1.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert err == f"tfgpu: stopped by {number.name}\n"
    assert everything(tmp_path) == []
