"""Tables: a number and a class, through every command."""

import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import command, refusal
from tabled import homes, write
from task_runs import assert_same, loaded, result_of, train_run, weights

from tfgpu.evaluate import __main__ as evaluate
from tfgpu.export import __main__ as export
from tfgpu.predict import __main__ as predict

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("tables")
    write(place / "homes.csv", homes(400))
    return place


SETTINGS = ["--epochs=6", "--batch_size=32", "--width=0.25", "--seed=1", "--progress=none"]
SETTINGS += ["--learning_rate=0.01"]
TARGETS = ("price", "tall")


def trained(place, name, target, *flags):
    other = next(each for each in TARGETS if each != target)
    task = ("--task=tabular", f"--target={target}", f"--task_options=ignore={other}")
    return train_run(f"csv:{place / 'homes.csv'}", place / name, *task, *SETTINGS, *flags)


class Runs(dict):
    """A run for each target, trained when it is asked for."""

    def __init__(self, place):
        super().__init__()
        self._place = place

    def __missing__(self, target):
        flags = ("--devices=CPU:0", "--tensorboard=none")
        self[target] = trained(self._place, target, target, *flags)
        return self[target]


@pytest.fixture(scope="module")
def runs(place):
    return Runs(place)


# A class takes the same way as a number, but for what the slow tests see.
EACH = pytest.mark.parametrize(
    "target", ["price", pytest.param("tall", marks=pytest.mark.slow)], ids=str
)


@EACH
def test_a_run_learns_and_keeps_what_was_fitted(runs, target):
    result = result_of(runs[target])
    if target == "price":
        assert result["test_r2"] > 0.9 and result["test_mae"] < result["test_rmse"]
    else:
        assert result["test_accuracy"] > 0.85
    fitted = json.loads((runs[target] / "fitted.json").read_text())
    with zipfile.ZipFile(runs[target] / "model.keras") as archive:
        assert json.loads(archive.read("assets/fitted.json")) == fitted


@EACH
def test_evaluate_finds_the_test_again(runs, tmp_path, target):
    run = runs[target]
    argv = (f"--run_dir={run}", f"--out={tmp_path}", "--devices=CPU:0,CPU:1")
    assert command(evaluate.main, *argv) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    names = ("loss", "mae", "rmse", "r2") if target == "price" else ("loss", "accuracy")
    for name in names:
        assert found[name] == pytest.approx(result_of(run)[f"test_{name}"], rel=1e-4)
    if target == "tall":
        assert 0.9 < found["auc"] <= 1.0
    else:
        assert found["rmse_of_mean"] > found["rmse"]
        assert sum(each["examples"] for each in found["quarters"]) == found["examples"] == 40


def test_evaluate_takes_another_table_with_the_same_columns(runs, place, tmp_path, capsys):
    other = write(tmp_path / "other.csv", [("rome", *row[1:]) for row in homes(50, seed=3)])
    argv = (f"--run_dir={runs['price']}", f"--dataset=csv:{other}", "--split=all", "--json")
    capsys.readouterr()
    assert command(evaluate.main, *argv, f"--out={tmp_path}") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["examples"] == 50
    assert "categories that the model does not know" in said.err
    short = write(tmp_path / "short.csv", [row[4:] for row in homes(50)], header=("price", "tall"))
    code, line = refusal(
        capsys, evaluate.main, f"--run_dir={runs['price']}", f"--dataset=csv:{short}"
    )
    assert code == 3 and "has no column 'age (years)', which the model was trained on" in line


@EACH
def test_predict_answers_rows_and_says_what_is_unknown(runs, tmp_path, capsys, target):
    rows = [("ulm", 20, 100, "x"), ("rome", "", 100, "x"), ("ulm", "old", 50, "x")]
    rows += [("bonn", 3, "inf", "x"), ("bonn", 3, 30, "x")]
    table = write(tmp_path / "new.csv", rows, header=("city", "age (years)", "size", "note"))
    run = runs[target]
    capsys.readouterr()
    assert command(predict.main, f"--run_dir={run}", "--format=jsonl", table) == 1
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert "new.csv:4: the cell of the column 'age (years)' is 'old', and no number" in said.err
    assert "new.csv:5: the cell of the column 'size' is infinite" in said.err
    assert "1 cells hold categories that the model does not know" in said.err
    assert [row["path"] for row in found] == [f"{table}:{line}" for line in (2, 3, 6)]
    if target == "price":
        values = [row["price"] for row in found]
        assert 1150 < values[0] < 1230 and 1030 < values[2] < 1110
    else:
        assert [row["label"] for row in found] == ["yes", "yes", "no"]
    short = write(tmp_path / "short.csv", [("ulm", 3)], header=("city", "size"))
    assert command(predict.main, f"--run_dir={run}", short) == 1
    assert "has no column 'age (years)'" in capsys.readouterr().err


def test_predict_answers_rows_of_parquet_as_those_of_a_csv(runs, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    columns = {
        "city": pyarrow.array(["ulm", None, "bonn"]).dictionary_encode(),
        "age (years)": pyarrow.array([20, None, 3], pyarrow.int16()),
        "size": pyarrow.array([100.0, 20.5, 30.0], pyarrow.float32()),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "new.parquet")
    rows = [("ulm", 20, 100), ("", "", 20.5), ("bonn", 3, 30)]
    write(tmp_path / "new.csv", rows, header=tuple(columns))
    names = "new.parquet", "new.csv"
    (one, at_a_worker), (other, _) = (loaded(runs["price"], tmp_path / name) for name in names)
    assert len(one) == 3
    assert_same(one, other)
    assert_same(one, at_a_worker)
    capsys.readouterr()
    argv = (f"--run_dir={runs['price']}", "--format=jsonl", tmp_path / "new.parquet")
    assert command(predict.main, *argv) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in found] == [f"{tmp_path}/new.parquet:{i}" for i in (1, 2, 3)]
    assert 1150 < found[0]["price"] < 1230 and 1030 < found[2]["price"] < 1110
    for name, values in (("size", [[1.0], [2.0], None]), ("city", [["ulm", None], [], ["bonn"]])):
        lists = columns | {name: pyarrow.array(values)}
        parquet.write_table(pyarrow.table(lists), tmp_path / "lists.parquet")
        assert command(predict.main, *argv[:2], tmp_path / "lists.parquet") == 1
        assert "the model was trained on single values, not on lists" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_exported_files_take_columns_and_agree(runs, place, tmp_path, target):
    argv = (f"--run_dir={runs[target]}", f"--out={tmp_path}")
    argv += ("--formats=keras,saved_model,onnx,litert",)
    assert command(export.main, *argv) == 0
    stated = json.loads((tmp_path / "export.json").read_text())
    assert all(each["accepted"] for each in stated["files"])
    row = {
        "city": tf.constant([["ulm"]]),
        "age_years": tf.constant([[np.nan]]),
        "size": tf.constant([[100.0]]),
    }
    signature = tf.saved_model.load(tmp_path / "saved_model" / "1").signatures["serving_default"]
    output = "value" if target == "price" else "probabilities"
    found = signature(**row)[output].numpy()
    plain = keras.models.load_model(tmp_path / "model.keras")(row).numpy()
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    import onnxruntime

    columns = json.loads((tmp_path / "columns.json").read_text())
    numbers = {"age (years)": np.nan, "size": 100.0}
    raw = np.array([[numbers[name] for name in columns["raw_numbers"]]], np.float32)
    coded = np.array([[columns["categories"][0]["numbers"]["ulm"]]], np.int32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    other = session.run(None, {"raw_numbers": raw, "categories": coded})[0]
    np.testing.assert_allclose(other, found, rtol=1e-4)


@pytest.mark.slow
def test_streaming_gives_the_same_bits(place, runs):
    flags = ("--devices=CPU:0", "--input=streaming", "--tensorboard=none")
    other = trained(place, "streaming", "price", *flags)
    for ours, theirs in zip(weights(runs["price"]), weights(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["piecewise", "mlp"])
def test_two_replicas_compute_what_one_does(place, target, model):
    flags = (f"--model={model}", "--tensorboard=none", "--augment=drop")
    one, two = (
        result_of(trained(place, f"{model}-{target}-{n}", target, f"--devices={devices}", *flags))
        for n, devices in ((1, "CPU:0"), (2, "CPU:0,CPU:1"))
    )
    for each in ("loss", "val_loss", "test_loss"):
        assert two[each] == pytest.approx(one[each], rel=5e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_continued_run_has_the_same_bits(place, target):
    flags = ("--devices=CPU:0", "--tensorboard=none", "--lr_schedule=constant")
    flags += ("--warmup_epochs=0", "--augment=drop")
    whole = trained(place, f"{target}-whole", target, *flags)
    trained(place, f"{target}-part", target, *flags, "--epochs=2")
    part = trained(place, f"{target}-part", target, *flags)
    for ours, theirs in zip(weights(whole), weights(part), strict=True):
        np.testing.assert_array_equal(ours, theirs)
