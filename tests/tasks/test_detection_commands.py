"""Detection: a set through every command."""

import json
import signal
import subprocess
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import command, refusal
from PIL import Image
from shaped import NAMES, write
from task_runs import result_of, train_run, weights

from tfgpu.evaluate import __main__ as evaluate
from tfgpu.export import __main__ as export
from tfgpu.models.detections import detect
from tfgpu.predict import __main__ as predict
from tfgpu.train import __main__ as train

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

RANDOM = np.random.RandomState(0)


# The task is named, since what is not known is taken for small enough for one thread.
SETTINGS = [
    "--task=detection",
    "--epochs=2",
    "--batch_size=8",
    "--width=0.25",
    "--depth=2",
    "--seed=1",
]
SETTINGS += ["--augment=crop,flip,resize,color_jitter", "--progress=none", "--learning_rate=0.01"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("detection")
    write(place, 44, size=(36, 50), sides=(10, 20))
    return place


def trained(place, name, *flags):
    return train_run(f"coco:{place / 'boxes.json'}", place / name, *SETTINGS, *flags)


@pytest.fixture(scope="module")
def run(place):
    return trained(place, "run", "--devices=CPU:0")


def test_a_run_has_the_metric_of_the_task_and_what_was_fitted(run):
    result = result_of(run)
    assert result["status"] == "finished" and result["model"] == "centernet"
    assert all(0 <= result[name] <= 1 for name in ("voc_map", "val_voc_map", "test_voc_map"))
    fitted = json.loads((run / "fitted.json").read_text())
    assert fitted == {"max_boxes": 4}
    with zipfile.ZipFile(run / "model.keras") as archive:
        assert json.loads(archive.read("assets/fitted.json")) == fitted
    keras.models.load_model(run / "model.keras", compile=False)


@pytest.mark.slow
def test_streaming_gives_the_same_bits(place, run):
    other = trained(
        place, "streaming", "--devices=CPU:0", "--input=streaming", "--tensorboard=none"
    )
    for ours, theirs in zip(weights(run), weights(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_two_replicas_compute_what_one_does(place, run):
    two = trained(place, "two", "--devices=CPU:0,CPU:1", "--tensorboard=none")
    for name in ("loss", "val_loss", "test_loss"):
        assert result_of(two)[name] == pytest.approx(result_of(run)[name], rel=5e-3)
    assert result_of(two)["test_voc_map"] == pytest.approx(result_of(run)["test_voc_map"], abs=0.05)


@pytest.mark.slow
def test_evaluate_has_cocos_figures(run, tmp_path, capsys):
    argv = (f"--run_dir={run}", f"--out={tmp_path}", "--devices=CPU:0,CPU:1", "--split=all")
    assert command(evaluate.main, *argv) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["examples"] == 44
    # Of Pascal VOC and of COCO: nearly the same thing.
    assert found["map_50"] == pytest.approx(found["voc_map"], abs=0.1)
    assert 0 <= found["map"] <= found["map_50"]
    assert [each["name"] for each in found["classes"]] == list(NAMES)
    boxes = json.loads((run.parent / "boxes.json").read_text())["annotations"]
    assert sum(each["boxes"] for each in found["classes"]) == len(boxes)
    assert f"mAP at 0.50             {found['map_50']:.4f}" in capsys.readouterr().out


def test_predict_draws_each_image(run, place, capsys):
    capsys.readouterr()
    files = [place / "images/0000.png", place / "images/0001.png"]
    assert command(predict.main, f"--run_dir={run}", "--format=jsonl", *files) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in found] == list(map(str, files))
    with Image.open(found[1]["overlay"]) as overlay:
        assert overlay.size == (50, 36)


def test_a_file_that_is_not_cocos_ends_a_training_with_one_line(tmp_path, capsys):
    (tmp_path / "boxes.json").write_text("{}")
    code, said = refusal(
        capsys, train.main, f"--dataset=coco:{tmp_path / 'boxes.json'}", f"--run_dir={tmp_path}/r"
    )
    assert code == 3 and "is not an annotation file of COCO" in said
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_every_exported_file_finds_what_the_model_finds(run, tmp_path):
    assert command(export.main, f"--run_dir={run}", f"--out={tmp_path}") == 0
    stated = json.loads((tmp_path / "export.json").read_text())
    assert {each["format"]: each["verdict"] for each in stated["files"]} == dict.fromkeys(
        ("keras", "saved_model", "onnx", "litert", "litert_float16", "litert_int8"), "accepted"
    )
    images = RANDOM.randint(0, 255, (2, 36, 50, 3)).astype(np.uint8)
    signature = tf.saved_model.load(tmp_path / "saved_model" / "1").signatures["serving_default"]
    found = signature(pixels=tf.constant(images))
    model = keras.models.load_model(run / "model.keras", compile=False)
    expected = detect(model(images.astype(np.float32)), count=100)
    assert found["boxes"].shape[::2] == (2, 4)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)
    np.testing.assert_allclose(
        found["boxes"], expected.boxes.numpy()[..., [1, 0, 3, 2]], rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_bits(place, run):
    flags = [f"--dataset=coco:{place / 'boxes.json'}", f"--run_dir={place / 'killed'}", *SETTINGS]
    flags += ["--devices=CPU:0", "--checkpoint_every=2", "--tensorboard=none"]
    process = subprocess.Popen([sys.executable, "-m", "tfgpu.train", *flags])
    checkpoints = place / "killed" / "checkpoints"
    while process.poll() is None and not (checkpoints.is_dir() and any(checkpoints.iterdir())):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert command(train.main, *flags) == 0
    for ours, theirs in zip(weights(run), weights(place / "killed"), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_two_replicas_train_in_16_bits_with_xla(place):
    flags = ["--precision=mixed_float16", "--jit_compile=true", "--devices=CPU:0,CPU:1"]
    out = trained(place, "float16", *flags, "--tensorboard=none", "--epochs=1")
    assert np.isfinite(result_of(out)["test_loss"])
    assert all(np.isfinite(weight).all() for weight in weights(out))


def tfgpu(command, *flags):
    """A command in a process of its own, as it starts others."""
    argv = [sys.executable, "-m", f"tfgpu.{command}", *flags]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_search_compares_by_the_metric_and_bench_times_the_task(place, tmp_path):
    flags = [f"--dataset=coco:{place / 'boxes.json'}", "--width=0.25", "--depth=1"]
    search = [
        f"--run_dir={tmp_path / 'search'}",
        "--tuner=random",
        "--max_trials=2",
        "--final_seeds=1",
    ]
    tfgpu("tune", *flags, *search, "--epochs=1", "--devices=CPU:0")
    result = json.loads((tmp_path / "search" / "result.json").read_text())
    assert result["objective"] == "val_voc_map" and 0 <= result["test_voc_map"] <= 1
    bench = [f"--run_dir={tmp_path / 'bench'}", "--factors=precision", "--rounds=1"]
    tfgpu("bench", *flags, *bench, "--batch_size=8", "--devices=CPU:0")
    told = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert [cell["error"] for cell in told["cells"]] == [None] * 3
