"""Several labels an image: the metric and thresholds, tables and TFDS, and every command."""

import csv
import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import command
from labelled import LABELS, as_lists, images, write
from mocked import mocked
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from task_runs import read_json, train_run

from tfgpu.errors import DataError, RequestError
from tfgpu.evaluate import __main__ as evaluate
from tfgpu.export import __main__ as export
from tfgpu.models.multilabel_metrics import MeanAveragePrecision
from tfgpu.predict import __main__ as predict
from tfgpu.tasks import loading
from tfgpu.tasks.multilabel import TASK
from tfgpu.tasks.parts.label_report import sigmoid

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

RANDOM = np.random.RandomState(0)
EVERY = np.linspace(0, 1, 50)


# ---- the metric ----------------------------------------------------------------------------


def scored(count=400, labels=5):
    y = (RANDOM.uniform(size=(count, labels)) < 0.3).astype(np.float32)
    y[:, 2] = 0
    logits = (RANDOM.normal(size=y.shape) + 2 * y - 1).astype(np.float32)
    return y, logits


def counted(y, logits, *, parts=7):
    metric = MeanAveragePrecision(y.shape[1])
    for some in np.array_split(np.arange(len(y)), parts):
        metric.update_state(y[some], logits[some])
    return metric


def test_mean_average_precision_is_that_of_scikit_learn_for_labels_with_a_positive():
    y, logits = scored()
    present = [0, 1, 3, 4]
    expected = np.mean([average_precision_score(y[:, i], logits[:, i]) for i in present])
    assert float(counted(y, logits).result()) == pytest.approx(expected, abs=2e-3)


def test_counts_of_parts_add_up():
    y, logits = scored()
    whole, parts = counted(y, logits, parts=1), counted(y, logits, parts=9)
    for ours, theirs in zip(whole.variables, parts.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_thresholds_have_the_best_f1_of_all():
    y, logits = scored()
    found = counted(y, logits).thresholds()
    assert found[2] is None
    for i in (0, 1, 3, 4):
        chances = sigmoid(logits[:, i])
        best = max(f1_score(y[:, i], chances >= each) for each in np.quantile(chances, EVERY))
        assert f1_score(y[:, i], chances >= found[i]) >= best - 0.01


def test_a_threshold_is_in_the_middle_of_what_is_as_good():
    y = np.array([[0.0], [0.0], [1.0]], np.float32)
    logits = np.array([[-3.0], [-2.0], [4.0]], np.float32)
    (found,) = counted(y, logits).thresholds()
    assert np.log(found / (1 - found)) == pytest.approx(1.0, abs=0.05)


# ---- what is read --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("labels")
    rows = images(place, 160)
    write(place / "flags.csv", rows)
    write(place / "lists.csv", as_lists(rows), header=("file", "colours"))
    return place


def load(name, **changes):
    options = {"target": None, "tokens": None} | changes.pop("options", {})
    settings = {"data_dir": None, "validation_fraction": 0.2, "image_size": None, "seed": 0}
    given = {"options": lambda task: {**task.options, **options}}
    return loading.load(name, **settings | given | changes)


def test_columns_of_flags_and_lists_are_the_same_labels(place):
    flags, lists = load(f"csv:{place / 'flags.csv'}"), load(f"csv:{place / 'lists.csv'}")
    assert flags.task is lists.task is TASK
    assert flags.class_names == lists.class_names == tuple(LABELS)
    for ours, theirs in zip(flags.train.load_arrays(), lists.train.load_arrays(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with open(place / "flags.csv") as file:
        rows = [[float(each) for each in row[1:]] for row in list(csv.reader(file))[1:]]
    every = np.concatenate([each.load_y() for each in (flags.train, flags.validation, flags.test)])
    assert sorted(map(tuple, every.tolist())) == sorted(map(tuple, rows))
    assert "of 115 training images have none" in flags.notes[0]


@pytest.mark.parametrize(("separator", "header"), [(";", "colours"), (",", "tags"), (" ", "tags")])
def test_what_joins_a_list_is_found(place, separator, header):
    with open(place / "lists.csv") as file:
        rows = [(name, cell.replace("|", separator)) for name, cell in list(csv.reader(file))[1:]]
    table = write(place / f"{ord(separator)}.csv", rows, header=("file", header))
    assert load(f"csv:{table}").class_names == tuple(LABELS)


def test_labels_can_be_named_and_other_columns_are_left(place):
    with open(place / "flags.csv") as file:
        rows = [(*row, i) for i, row in enumerate(list(csv.reader(file))[1:])]
    table = write(place / "more.csv", rows, header=("image", *LABELS, "taken"))
    data = load(f"csv:{table}", options={"labels": "red+blue"})
    assert data.class_names == ("red", "blue")
    assert load(f"csv:{table}").class_names == tuple(LABELS)
    for name, said in (("rad", "did you mean 'red'"), ("taken", "a label is a column of 0 and 1")):
        with pytest.raises(RequestError, match=said):
            load(f"csv:{table}", options={"labels": name})


@pytest.mark.parametrize("written", [("0", "1"), ("FALSE", "TRUE"), ("false", "true")])
def test_labels_may_be_written_as_tables_write_them(place, written):
    with open(place / "flags.csv") as file:
        _, *rows = csv.reader(file)
    table = [(name, *(written[int(each)] for each in flags)) for name, *flags in rows]
    found = load(f"csv:{write(place / 'written.csv', table)}")
    expected = load(f"csv:{place / 'flags.csv'}")
    np.testing.assert_array_equal(found.train.load_y(), expected.train.load_y())


def test_a_column_that_is_no_label_is_said(place):
    with open(place / "flags.csv") as file:
        _, *rows = csv.reader(file)
    rows[3][1] = "2"
    data = load(f"csv:{write(place / 'two.csv', rows)}")
    assert data.class_names == tuple(LABELS)[1:]
    said = "left out, as labels are columns of 0 and 1: blue (numbers)"
    assert said in data.notes


def test_transparency_is_said_of_the_images_of_a_table(tmp_path):
    rows = images(tmp_path, 20)
    with Image.open(tmp_path / rows[0][0]) as image:
        image.convert("RGBA").save(tmp_path / rows[0][0])
    said = load(f"csv:{write(tmp_path / 'a.csv', rows)}").storage_notes
    name = rows[0][0].rpartition("/")[2]
    assert f"images: 1 with transparency, which is dropped ({name})" in said


def test_an_image_and_one_class_is_a_classification(place):
    with open(place / "flags.csv") as file:
        rows = [(row[0], ("no", "yes")[int(row[1])]) for row in list(csv.reader(file))[1:]]
    table = write(place / "classes.csv", rows, header=("image", "blue"))
    data = load(f"csv:{table}")
    assert data.task.name == "classification" and data.class_names == ("no", "yes")
    assert data.train.load_arrays()[0].shape[1:] == (16, 16, 3)


@pytest.mark.slow
def test_a_set_of_tfds_with_a_sequence_of_labels(tmp_path):
    rows = mocked("bigearthnet/rgb", tmp_path, 12)
    data = load("bigearthnet", data_dir=str(tmp_path), image_size=(16, 16))
    assert data.task is TASK and len(data.class_names) == 43
    found = data.test.load_y()
    expected = np.zeros((len(rows), 43))
    for row, flags in zip(rows, expected, strict=True):
        flags[row["labels"]] = 1
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


def test_bad_images_and_labels_are_refused_or_said_in_one_line(place, tmp_path):
    rows = images(tmp_path, 20)
    table = tmp_path / "a.csv"

    def refusal(kind, **changes):
        with pytest.raises(kind) as refused:
            load(f"csv:{table}", **changes).train.load_arrays()
        assert "\n" not in str(refused.value)
        return str(refused.value)

    write(table, [*rows[:5], ("images/none.png", 1, 0, 0), *rows[5:]])
    assert "none.png is not there, which row 6 names in the column 'image'" in refusal(DataError)
    (tmp_path / "images" / "none.png").write_text("no image")
    assert "none.png is not an image that can be read" in refusal(DataError)
    write(table, [("images/zero.png", 1, 0, 0), *rows])
    assert "zero.png is not there, which row 1 names" in refusal(DataError, task="multilabel")
    write(table, [(f"elsewhere/{name}", *rest) for name, *rest in rows])
    assert "image: strings" in refusal(RequestError, task="multilabel")
    write(table, [*rows[:5], (rows[5][0], "", 0, 0), *rows[6:]])
    assert "a.csv, line 7: the cell of the column 'blue' is empty" in refusal(DataError)
    write(table, [(name, 0, 1, flag) for name, _, _, flag in rows])
    notes = " ".join(load(f"csv:{table}").notes)
    assert "blue: no training image has the label" in notes
    assert "green: every training image has the label" in notes


# ---- the commands --------------------------------------------------------------------------

SETTINGS = ["--epochs=15", "--batch_size=32", "--seed=1", "--progress=none", "--augment=none"]
SETTINGS += ["--optimizer=adamw", "--learning_rate=0.01", "--width=0.5"]


def trained(place, name, *flags, table="flags.csv"):
    return train_run(f"csv:{place / table}", place / name, *SETTINGS, *flags)


@pytest.fixture(scope="module")
def run(place):
    return trained(place, "run", "--devices=CPU:0")


def test_a_run_learns_and_keeps_thresholds_of_validation(place, run):
    assert read_json(run / "result.json")["test_map"] > 0.75
    fitted = read_json(run / "fitted.json")
    assert fitted["labels"] == list(LABELS)
    # Chosen again, from all outputs for the validation split.
    model = keras.models.load_model(run / "model.keras", compile=False)
    data = load(f"csv:{place / 'flags.csv'}", validation_fraction=0.1, seed=1)
    x, y = data.validation.load_arrays()
    expected = counted(y, model.predict(x.astype(np.float32), verbose=0)).thresholds()
    np.testing.assert_allclose(fitted["thresholds"], expected, atol=0.01)


def test_evaluate_is_exact(run, tmp_path):
    argv = (f"--run_dir={run}", f"--out={tmp_path}", "--devices=CPU:0,CPU:1")
    assert command(evaluate.main, *argv) == 0
    found, result = read_json(tmp_path / "evaluation.json"), read_json(run / "result.json")
    assert found["loss"] == pytest.approx(result["test_loss"], rel=1e-4)
    assert found["map"] == pytest.approx(result["test_map"], abs=0.02)
    rows = found["labels"]
    thresholds = read_json(run / "fitted.json")["thresholds"]
    assert [row["threshold"] for row in rows] == thresholds
    assert found["macro_f1"] == pytest.approx(np.mean([row["f1"] for row in rows]))


def test_predict_says_which_labels_are_above(place, run, capsys):
    files = [place / "images" / f"{i:03d}.png" for i in range(3)]
    capsys.readouterr()
    assert command(predict.main, f"--run_dir={run}", "--format=jsonl", *files) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    thresholds = read_json(run / "fitted.json")["thresholds"]
    for row in rows:
        assert list(row["all"]) == list(LABELS)
        for name, threshold in zip(LABELS, thresholds, strict=True):
            each = row["all"][name]
            assert each["threshold"] == threshold
            assert each["above"] == (each["probability"] >= threshold) == (name in row["labels"])
    assert command(predict.main, f"--run_dir={run}", "--format=csv", *files) == 0
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["labels"] for row in found] == ["|".join(row["labels"]) for row in rows]
    assert sys.exc_info() == (None, None, None)


@pytest.mark.slow
def test_without_validation_the_thresholds_are_half(place):
    flags = ("--validation_fraction=0", "--epochs=1", "--tensorboard=none", "--devices=CPU:0")
    run = trained(place, "half", *flags)
    assert "thresholds" not in read_json(run / "fitted.json")


@pytest.mark.slow
def test_exported_files_give_probabilities_and_thresholds(place, run, tmp_path):
    formats = "--formats=keras,saved_model,onnx,litert"
    assert command(export.main, f"--run_dir={run}", f"--out={tmp_path}", formats) == 0
    assert all(each["accepted"] for each in read_json(tmp_path / "export.json")["files"])
    above = read_json(tmp_path / "thresholds.json")
    assert list(above.values()) == read_json(run / "fitted.json")["thresholds"]
    pixels = tf.zeros([1, 16, 16, 3], tf.uint8)
    plain = keras.models.load_model(tmp_path / "model.keras")(pixels).numpy()
    assert plain.shape == (1, 3) and (0 < plain).all() and (plain < 1).all()


@pytest.mark.slow
def test_streaming_two_replicas_and_a_continued_run(place):
    flags = ("--tensorboard=none", "--lr_schedule=constant", "--warmup_epochs=0", "--epochs=4")
    whole = trained(place, "whole", *flags, "--devices=CPU:0")

    def same_bits(other):
        files = [each / "model.keras" for each in (whole, other)]
        models = [keras.models.load_model(file, compile=False).get_weights() for file in files]
        for ours, theirs in zip(*models, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert read_json(whole / "fitted.json") == read_json(other / "fitted.json")

    same_bits(trained(place, "streamed", *flags, "--devices=CPU:0", "--input=streaming"))
    trained(place, "part", *flags, "--devices=CPU:0", "--epochs=2")
    same_bits(trained(place, "part", *flags, "--devices=CPU:0"))
    one = read_json(whole / "result.json")
    two = read_json(trained(place, "two", *flags, "--devices=CPU:0,CPU:1") / "result.json")
    for each in ("loss", "val_loss", "test_loss"):
        assert two[each] == pytest.approx(one[each], rel=5e-3, abs=1e-4)
