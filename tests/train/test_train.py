"""`tfgpu train` from end to end: what it leaves behind, and how it stops.

What needs a process of its own (signals, a Keras without tfgpu) has one. Runs with the same
settings are made once.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from trained_runs import METRICS, TIMES, Run, argv_of, command, contents, everything, the_line

import tfgpu
from tfgpu.tasks import loading as sources
from tfgpu.train.run import RESULT_FIELDS

pytestmark = [
    pytest.mark.usefixtures("here"),
    # TensorFlow's MirroredVariable, when Keras saves or compares weights.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]


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
    left |= {"weights", "freeze", "unfreeze_at", "unfreeze_learning_rate"}
    left |= {"task", "features", "target", "tokens", "task_options"}
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


@pytest.mark.slow
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


# ---- a second run in the same place ---------------------------------------------------------


@pytest.fixture
def copy(run, tmp_path):
    """A finished run of its own, in `run_dir`."""
    return Run(shutil.copytree(run().path, tmp_path / "run"))


def test_a_finished_run_says_so(copy, capsys):
    before = contents(copy.path)
    assert command(*argv_of({"verbosity": "0"}), f"--run_dir={copy.path}") == 0
    shown = capsys.readouterr()
    assert "holds this run, finished" in shown.out and str(copy.path) in shown.out
    assert "compiling" not in shown.out and shown.err == ""
    assert contents(copy.path) == before


def test_a_model_that_was_removed_is_written_again_from_the_last_checkpoint(copy, capsys):
    weights, values = copy.weights, copy.values
    (copy.path / "model.keras").unlink()
    assert command(*argv_of({}), f"--run_dir={copy.path}") == 0
    again = Run(copy.path)
    assert again.result["status"] == "finished" and again.values == values
    assert all((a == b).all() for a, b in zip(again.weights, weights, strict=True))


def test_other_settings_are_named(copy, capsys):
    before = contents(copy.path)
    assert command(*argv_of({"augment": "flip", "seed": 2}), f"--run_dir={copy.path}") == 2
    line = the_line(capsys)
    said = [str(copy.path), 'augment: "crop" there, "flip" now', "seed: 0 there, 2 now"]
    assert all(text in line for text in said), line
    assert contents(copy.path) == before


# ---- in a process of its own -------------------------------------------------------------------


def start(*argv, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "tfgpu.train", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
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
