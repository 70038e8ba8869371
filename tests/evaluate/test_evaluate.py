"""Evaluation of a finished run: exact figures however the work is shared, files, refusals."""

import csv
import json
import sys

import keras
import numpy as np
import pytest
from commands import command, refusal
from finished_run import CLASSES, build_model, write_images, write_run
from PIL import Image

from tfgpu.data.folder import read_image
from tfgpu.evaluate import __main__ as evaluate
from tfgpu.evaluate import run
from tfgpu.tasks.parts.class_metrics import BINS, ClassificationMetrics, Counts

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

COUNTS = {"train": 10, "test": 7}  # Of each of three classes: 30 and 21.


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder of images and a run on them."""
    workspace = tmp_path_factory.mktemp("evaluate")
    images = write_images(workspace / "images", counts=COUNTS)
    write_run(workspace / "run", build_model(), dataset=f"folder:{images}")
    return workspace


def predictions(workspace, split):
    """Labels and float64 probabilities of the images of a split, by way of NumPy."""
    files = sorted((workspace / "images").glob(f"{split}/*/*.png"))
    images = np.stack([read_image(str(file), channels=3) for file in files])
    logits = keras.models.load_model(workspace / "run" / "model.keras")(images).numpy()
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    labels = np.array([CLASSES.index(file.parent.name) for file in files])
    return labels, powers / powers.sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def expected(workspace):
    """Labels and probabilities of the test images."""
    return predictions(workspace, "test")


def evaluated(workspace, out, *argv):
    """Runs the command; what evaluation.json holds."""
    arguments = [f"--run_dir={workspace / 'run'}", f"--out={out}", *argv]
    assert command(evaluate.main, *arguments) == 0
    return json.loads((out / "evaluation.json").read_text())


# ---- figures -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "batch_size"),
    [
        pytest.param("one_device", 8, marks=pytest.mark.slow),
        pytest.param("mirrored", 2, marks=pytest.mark.slow),
        *(("mirrored", 8), ("mirrored", 40)),
    ],
)
def test_figures_are_those_of_all_examples_however_they_are_shared(
    workspace, expected, tmp_path, strategy, batch_size
):
    devices = "CPU:0" if strategy == "one_device" else "CPU:0,CPU:1"
    found = evaluated(
        workspace,
        tmp_path,
        f"--strategy={strategy}",
        f"--devices={devices}",
        f"--batch_size={batch_size}",
    )
    labels, probabilities = expected
    predicted = probabilities.argmax(axis=-1)
    assert found["examples"] == 21
    assert found["replicas"] == (1 if strategy == "one_device" else 2)
    assert found["accuracy"] == (predicted == labels).mean()
    assert found["loss"] == pytest.approx(
        -np.log(probabilities[np.arange(21), labels]).mean(), rel=1e-5
    )
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert found["confusion_matrix"] == confusion.tolist()
    assert 0 < found["accuracy"] < 1, "the model has to be right and wrong for the test to tell"
    # The definition, bin by bin.
    confidence = probabilities.max(axis=-1)
    error = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (confidence > low) & (confidence <= low + 1 / BINS)
        if inside.any():
            gap = (predicted == labels)[inside].mean() - confidence[inside].mean()
            error += inside.mean() * abs(gap)
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-6)
    assert sum(each["examples"] for each in found["reliability"]) == 21


def test_the_run_s_own_test_is_found_again(digits_run, tmp_path):
    argv = [f"--run_dir={digits_run}", "--devices=CPU:0,CPU:1", f"--out={tmp_path}"]
    assert command(evaluate.main, *argv) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    result = json.loads((digits_run / "result.json").read_text())
    assert found["examples"] == 360
    assert found["accuracy"] == pytest.approx(result["test_accuracy"], abs=1e-6)
    assert found["loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    assert found["accuracy"] <= found["top_5_accuracy"] <= 1


def test_all_is_every_example_of_every_split(workspace, tmp_path):
    found = evaluated(workspace, tmp_path, "--split=all", "--devices=CPU:0")
    labels, probabilities = predictions(workspace, "*")
    assert found["examples"] == len(labels) == 51
    assert found["accuracy"] == (probabilities.argmax(axis=-1) == labels).mean()
    loss = -np.log(probabilities[np.arange(51), labels]).mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_the_validation_split_is_what_the_run_held_back(workspace, tmp_path):
    found = evaluated(workspace, tmp_path, "--split=validation", "--devices=CPU:0")
    assert found["examples"] == 3  # A tenth of 30.


def test_the_loss_is_the_runs(tmp_path, workspace, expected):
    run = write_run(
        tmp_path / "run",
        build_model(),
        dataset=f"folder:{workspace / 'images'}",
        label_smoothing=0.2,
    )
    found = evaluated(run.parent, tmp_path / "out", "--devices=CPU:0")
    labels, probabilities = expected
    targets = 0.8 * np.eye(3)[labels] + 0.2 / 3
    loss = -(targets * np.log(probabilities)).sum(axis=-1).mean()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


def test_ratios_without_anything_below_the_line_are_none():
    confusion = np.array([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    first, second, third = Counts(confusion, 8.0, np.zeros((3, BINS))).by_class(CLASSES)
    assert first == {
        "name": "dark",
        "precision": pytest.approx(3 / 5),
        "recall": pytest.approx(3 / 4),
        "f1": pytest.approx(2 / 3),
        "examples": 4,
    }
    assert second["recall"] == 0.5
    assert (third["precision"], third["recall"], third["examples"]) == (None, None, 0)


def test_top_k_counts_labels_among_the_k_likeliest():
    metrics = ClassificationMetrics(num_classes=4, k=2)
    metrics.update_state([0, 1, 2, 3], np.tile([4.0, 3.0, 2.0, 1.0], (4, 1)))
    counts = metrics.counts()
    assert (counts.accuracy, counts.top_k_accuracy) == (0.25, 0.5)


def test_a_full_confidence_lies_in_the_last_bin():
    metrics = ClassificationMetrics(num_classes=2, k=2)
    metrics.update_state([0, 1], [[100.0, 0.0], [0.0, 0.0]])
    examples = [each["examples"] for each in metrics.counts().reliability()]
    assert examples[-1] == 1 and sum(examples) == 2
    assert metrics.counts().calibration_error == pytest.approx(0.25)


# ---- what is written and said -------------------------------------------------------------


def test_the_files_of_an_evaluation(workspace, capsys):
    assert command(evaluate.main, f"--run_dir={workspace / 'run'}", "--devices=CPU:0") == 0
    folder = workspace / "run" / "evaluation" / "images-test"
    found = json.loads((folder / "evaluation.json").read_text())
    with open(folder / "confusion_matrix.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == list(CLASSES)
    assert [row[0] for row in rows[1:]] == list(CLASSES)
    assert [list(map(int, row[1:])) for row in rows[1:]] == found["confusion_matrix"]
    for name in ("confusion_matrix.png", "reliability.png"):
        with Image.open(folder / name) as picture:
            picture.load()
            assert picture.format == "PNG" and min(picture.size) > 300
    assert len(list(folder.iterdir())) == 4
    said = capsys.readouterr().out
    assert f"accuracy  {found['accuracy']:.4f}" in said
    assert all(name in said for name in CLASSES)


def test_data_sets_of_the_same_short_name_do_not_replace_each_other(tmp_path):
    first = tmp_path / "images-all"
    places = []
    for dataset in ("folder:a/images", "folder:b/images", "folder:a/images"):
        place = run.free_directory(first, dataset=dataset)
        place.mkdir(exist_ok=True)
        (place / "evaluation.json").write_text(json.dumps({"dataset": dataset}))
        places.append(place)
    assert places == [first, tmp_path / "images-all-2", first]


def test_json_on_request_is_all_of_standard_output(workspace, tmp_path, capsys):
    found = evaluated(workspace, tmp_path, "--json", "--devices=CPU:0")
    assert json.loads(capsys.readouterr().out) == found


def test_without_matplotlib_the_figures_remain_and_the_extra_is_named(
    workspace, tmp_path, monkeypatch, capsys
):
    monkeypatch.delitem(sys.modules, "tfgpu.tasks.parts.plots", raising=False)
    monkeypatch.delattr("tfgpu.tasks.parts.plots", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    evaluated(workspace, tmp_path, "--devices=CPU:0")
    assert "pip install 'tfgpu[plots]'" in capsys.readouterr().err
    assert sorted(each.suffix for each in tmp_path.iterdir()) == [".csv", ".json"]


def test_data_that_changed_since_the_run_are_pointed_out(tmp_path, capsys):
    images = write_images(tmp_path / "images", counts=COUNTS)
    write_run(tmp_path / "run", build_model(), dataset=f"folder:{images}")
    evaluated(tmp_path, tmp_path / "first", "--devices=CPU:0")
    assert "changed" not in capsys.readouterr().err
    (images / "train" / "dark" / "00.png").unlink()
    evaluated(tmp_path, tmp_path / "second", "--devices=CPU:0")
    assert "has changed since the run" in capsys.readouterr().err


# ---- what is refused ----------------------------------------------------------------------


def refused(capsys, workspace, *argv):
    return refusal(
        capsys, evaluate.main, f"--run_dir={workspace / 'run'}", "--devices=CPU:0", *argv
    )


def test_a_data_set_with_other_classes_is_refused(workspace, tmp_path, capsys):
    images = write_images(tmp_path / "a", counts=COUNTS, names=("dark", "greyish", "light"))
    code, said = refused(capsys, workspace, f"--dataset=folder:{images}")
    assert code == 2
    assert "other classes" in said and "label 1" in said


def test_a_data_set_with_fewer_classes_is_refused(workspace, tmp_path, capsys):
    images = write_images(tmp_path / "a", counts=COUNTS, names=CLASSES[:2])
    code, said = refused(capsys, workspace, f"--dataset=folder:{images}")
    assert code == 2
    assert "2 there, 3 in the model" in said


def test_a_data_set_of_grey_images_is_refused(workspace, tmp_path, capsys):
    images = write_images(tmp_path / "a", counts=COUNTS)
    for file in images.rglob("*.png"):
        with Image.open(file) as image:
            image.convert("L").save(file)
    code, said = refused(capsys, workspace, f"--dataset=folder:{images}")
    assert code == 2
    assert "1 channels" in said


def test_images_of_another_size_are_brought_to_the_models(workspace, tmp_path):
    images = write_images(tmp_path / "a", counts=COUNTS, size=(12, 10))
    found = evaluated(workspace, tmp_path / "out", f"--dataset=folder:{images}", "--devices=CPU:0")
    assert found["examples"] == 21


def test_a_data_set_that_is_gone_says_how_to_name_another(workspace, tmp_path, capsys):
    run = write_run(tmp_path / "run", build_model(), dataset=f"folder:{tmp_path / 'gone'}")
    code, said = refused(capsys, run.parent)
    assert code == 3
    assert "does not exist" in said and "--dataset" in said


def test_a_run_without_a_model_is_refused(tmp_path, capsys):
    write_run(tmp_path / "run")
    code, said = refused(capsys, tmp_path)
    assert code == 4
    assert "model.keras" in said


def test_no_validation_split_is_refused(workspace, tmp_path, capsys):
    images = workspace / "images"
    write_run(tmp_path / "run", build_model(), dataset=f"folder:{images}", validation_fraction=0.0)
    code, said = refused(capsys, tmp_path, "--split=validation")
    assert code == 2
    assert "held nothing back" in said


def test_a_place_that_cannot_be_written_is_refused(workspace, tmp_path, capsys):
    (tmp_path / "file").touch()
    code, said = refused(capsys, workspace, f"--out={tmp_path / 'file' / 'out'}")
    assert code == 2
    assert "--out=" in said and "cannot be written" in said


def test_a_batch_that_does_not_divide_is_refused(workspace, capsys):
    code, said = refusal(
        capsys,
        evaluate.main,
        f"--run_dir={workspace / 'run'}",
        "--devices=CPU:0,CPU:1",
        "--batch_size=3",
    )
    assert code == 2
    assert "--batch_size=3 does not divide among 2 replicas; use 4" in said


def test_a_model_that_is_not_finite_is_no_result(workspace, tmp_path, capsys):
    model = build_model()
    model.set_weights([np.full_like(value, np.nan) for value in model.get_weights()])
    write_run(tmp_path / "run", model, dataset=f"folder:{workspace / 'images'}")
    code, said = refused(capsys, tmp_path)
    assert code == 5
    assert "not finite" in said
