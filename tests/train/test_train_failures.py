"""`tfgpu train` that cannot do its work says so in one line, with an exit code."""

import errno
import json
import os
import shutil

import keras
import pytest
import tensorflow as tf
from PIL import Image
from trained_runs import argv_of, command, everything, the_line, write_images

from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.data.examples import Examples
from tfgpu.train.run import RESULT_FIELDS

pytestmark = [
    pytest.mark.usefixtures("here"),
    # TensorFlow's MirroredVariable, when Keras saves or compares weights.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]


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


def damage(image):
    """Changes the middle of a PNG file, whose end is as it was: what only decoding finds."""
    content = bytearray(image.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - each for each in content[middle : middle + 8])
    image.write_bytes(content)


@pytest.fixture(scope="module")
def bad_folders(place):
    (place / "empty").mkdir()
    write_images(place / "one", train=3)
    shutil.rmtree(place / "one" / "train" / "light")
    shutil.rmtree(place / "one" / "test")
    damage(write_images(place / "broken", train=6, size=(40, 40)) / "train/light/03.png")
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
    damage(folder / "test" / "dark" / "01.png")
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


def test_weights_that_are_not_finite_are_no_end(tmp_path, capsys, monkeypatch):
    real = keras.Model.fit

    def fit(self, *args, **kwargs):
        real(self, *args, **kwargs)
        self.layers[-2].bias.assign([0.0, float("nan")])

    monkeypatch.setattr(keras.Model, "fit", fit)
    assert command(*argv_of({"epochs": 1}), f"--run_dir={tmp_path}/run") == 5
    line = the_line(capsys)
    assert "is not finite any more" in line and "/bias is not)" in line
    assert not (tmp_path / "run" / "model.keras").exists()


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


def test_a_run_directory_that_is_removed_is_one_line(tmp_path, capsys, monkeypatch):
    real = RunDirectory.append_metrics

    def append_metrics(self, metrics):
        shutil.rmtree(self.path)
        real(self, metrics)

    monkeypatch.setattr(RunDirectory, "append_metrics", append_metrics)
    assert command(*argv_of({"epochs": 1}), f"--run_dir={tmp_path}/run") == 5
    line = the_line(capsys)
    assert f"{str(tmp_path / 'run')!r} was removed while the run wrote there" in line


def test_tensorboard_needs_a_path_that_is_text(tmp_path, capsys):
    argv = argv_of({"epochs": 1, "tensorboard": "default"})
    assert command(*argv, f"--run_dir={tmp_path}/\udcff") == 2
    assert "/\\xff': TensorBoard's files need a path that is UTF-8" in the_line(capsys)
    assert everything(tmp_path) == []
