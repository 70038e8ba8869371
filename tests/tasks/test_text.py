"""Texts: models, vocabulary and augmentation by themselves, and a table through every command."""

import io
import json
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import command
from mocked import mocked
from task_runs import assert_same, loaded, result_of, train_run, weights
from worded import texts, write

from tfgpu.errors import DataError, RequestError
from tfgpu.evaluate import __main__ as evaluate
from tfgpu.export import __main__ as export
from tfgpu.models import text as models
from tfgpu.predict import __main__ as predict
from tfgpu.tasks import loading
from tfgpu.tasks.text import AUGMENT, DROPPED, TASK, UNKNOWN

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

RANDOM = np.random.RandomState(0)
BUILDERS = {"bag": models.bag, "convolution": models.convolution, "transformer": models.transformer}


# ---- models --------------------------------------------------------------------------------


def built(name, length, **changes):
    keras.utils.set_random_seed(0)
    settings = {"vocabulary_size": 20, "num_classes": 3, "width": 0.25, **changes}
    model = BUILDERS[name](length=length, **settings)
    for layer in model.layers:  # N-grams start at 0.
        if layer.name.startswith("embedding_"):
            layer.set_weights([RANDOM.uniform(-0.1, 0.1, w.shape) for w in layer.get_weights()])
    return model


def sentences(count, length, *, padding):
    tokens = RANDOM.randint(1, 20, (count, length)).astype(np.int32)
    return np.pad(tokens, ((0, 0), (0, padding)))


@pytest.mark.parametrize("name", BUILDERS)
def test_padding_changes_no_output(name):
    short, long = built(name, 6), built(name, 11)
    for layer in short.layers:
        weights = layer.get_weights()
        if layer.name == "positions":
            weights = [np.pad(weights[0], ((0, 5), (0, 0)), constant_values=9.0)]
        long.get_layer(layer.name).set_weights(weights)
    tokens = sentences(4, 6, padding=5)
    expected = short(tokens[:, :6]).numpy()
    np.testing.assert_allclose(long(tokens).numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_text_without_a_token_has_finite_logits(name):
    assert np.isfinite(built(name, 6)(np.zeros((2, 6), np.int32)).numpy()).all()


@pytest.mark.parametrize("name", BUILDERS)
def test_a_model_depends_on_the_order_of_the_words(name):
    tokens = np.array([[2, 3, 4, 5, 0, 0], [5, 4, 3, 2, 0, 0]], np.int32)
    first, second = built(name, 6)(tokens).numpy()
    assert np.abs(first - second).max() > 1e-6


def test_a_bag_of_tokens_alone_does_not():
    tokens = np.array([[2, 3, 4, 5, 0, 0], [5, 4, 3, 2, 0, 0]], np.int32)
    first, second = built("bag", 6, depth=1)(tokens).numpy()
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_the_bag_is_the_sum_over_the_root_of_the_count():
    model = built("bag", 4)
    words, pairs = (model.get_layer(n).get_weights()[0] for n in ("embedding", "embedding_2"))
    kernel, bias = model.get_layer("logits").get_weights()
    hashed = [(a * 15209 + b) % models.BUCKETS for a, b in ((7, 3), (3, 9))]
    total = words[[7, 3, 9]].sum(0) + pairs[hashed].sum(0)
    expected = total / np.sqrt(5) @ kernel + bias
    found = model(np.array([[7, 3, 9, 0]], np.int32)).numpy()[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_frequent_pairs_of_words_share_buckets_by_chance_alone():
    # Every pair of the 200 most frequent words: as a random hash would spread them, or better.
    first, second = np.meshgrid(np.arange(2, 202), np.arange(2, 202))
    used = len(np.unique((first * models.FACTOR + second) % models.BUCKETS))
    assert used >= models.BUCKETS * (1 - np.exp(-first.size / models.BUCKETS)) - 500


@pytest.mark.parametrize("name", BUILDERS)
def test_every_embedding_is_trained(name):
    model = built(name, 6)
    tokens = tf.constant(sentences(4, 6, padding=0))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tokens)[:, 0] ** 2)
    weights = [each for each in model.trainable_variables if "embeddings" in each.path]
    names = {"bag": 2, "convolution": 1, "transformer": 2}
    assert len(weights) == names[name]
    gradients = tape.gradient(loss, [each.value for each in weights])
    assert all(np.abs(tf.convert_to_tensor(each).numpy()).max() > 0 for each in gradients)


def test_sizes_that_make_no_model_are_refused():
    with pytest.raises(ValueError, match="texts of 2 tokens only"):
        built("bag", 2, depth=3)
    with pytest.raises(ValueError, match="transformer needs a width above 0"):
        built("transformer", 4, width=0)


# ---- augmentation --------------------------------------------------------------------------


def test_a_share_of_the_tokens_is_dropped_and_no_padding():
    tokens = np.pad(np.full((2000, 20), 7, np.int32), ((0, 0), (0, 4)))
    draws = RANDOM.uniform(size=(2000, 1)).astype(np.float32)
    changed, y = AUGMENT["drop"].function(tf.constant(tokens), "y", tf.constant(draws))
    changed = changed.numpy()
    assert y == "y" and set(np.unique(changed[:, :20])) == {UNKNOWN, 7}
    assert (changed[:, 20:] == 0).all()
    dropped = changed[:, :20] == UNKNOWN
    np.testing.assert_allclose(dropped.mean(axis=0), DROPPED, atol=0.04)
    # Of two positions, one says nothing of the other.
    both = np.corrcoef(dropped.T.astype(float))
    assert np.abs(both - np.eye(20)).max() < 0.15


# ---- what is read --------------------------------------------------------------------------


def load(name, **changes):
    options = {**TASK.options, "tokens": None} | changes.pop("options", {})
    settings = {"data_dir": None, "validation_fraction": 0.2, "image_size": None, "seed": 0}
    return loading.load(name, options=lambda task: options, **settings | changes)


def test_the_vocabulary_saw_the_training_texts_alone(tmp_path):
    rows = [(f"word{i} seen", ("a", "b")[i % 2]) for i in range(50)]
    data = load(f"csv:{write(tmp_path / 'a.csv', rows)}")
    vocabulary = data.spec.fitted["vocabulary"]
    assert data.task is TASK and vocabulary[0] == "seen"
    assert len(vocabulary) == 1 + data.train.num_examples == 1 + 36
    x, _ = data.train.load_arrays()
    assert (x[:, :2] > UNKNOWN).all() and (x[:, 2:] == 0).all()
    for held_back in (data.validation, data.test):
        assert (held_back.load_arrays()[0][:, :2] > UNKNOWN).sum() == held_back.num_examples


def test_texts_without_spaces_are_cut_into_characters(tmp_path):
    rows = [("这本书很好", "好"), ("这本书不好", "坏")] * 8
    data = load(f"csv:{write(tmp_path / 'a.csv', rows)}", validation_fraction=0.0)
    assert data.spec.fitted["tokens"] == "character"
    assert set(data.spec.fitted["vocabulary"]) == set("这本书很好不")
    asked = {"tokens": "word"}
    data = load(f"csv:{tmp_path / 'a.csv'}", validation_fraction=0.0, options=asked)
    assert set(data.spec.fitted["vocabulary"]) == {"这本书很好", "这本书不好"}


def test_size_and_length_can_be_asked_for(tmp_path):
    path = write(tmp_path / "a.csv", texts(60))
    data = load(f"csv:{path}", options={"vocabulary": 5, "length": 3})
    assert len(data.spec.fitted["vocabulary"]) == 5 and data.train.element_spec[0].shape == (3,)
    assert data.spec.fitted["longer"] == 1.0 and "100.0% of the training texts" in data.notes[0]
    with pytest.raises(RequestError, match="--task_options=vocabulary=0: must be at least 1"):
        load(f"csv:{path}", options={"vocabulary": 0})


def test_one_text_alone_is_cut_as_many_are(tmp_path):
    data = load(f"csv:{write(tmp_path / 'a.csv', texts(30))}")
    together, labels = data.train.load_arrays()
    x, y = data.train.decode(tf.constant(4, tf.int64))
    whole = load(f"csv:{tmp_path / 'a.csv'}", validation_fraction=0.0)
    assert x.dtype == tf.int32 and x.shape == together[0].shape and y.dtype == tf.int32
    np.testing.assert_array_equal(labels, data.train.load_y())
    assert whole.train.num_examples > data.train.num_examples


def test_whole_numbers_of_any_size_can_be_classes(tmp_path):
    rows = [(text, {"good": 50, "bad": -2}[label]) for text, label in texts(40)]
    path = write(tmp_path / "a.csv", rows, header=("remark", "stars"))
    data = load(f"csv:{path}", features={"x": "remark", "y": "stars"}, task="text")
    assert data.class_names == ("-2", "50")
    assert set(data.train.load_y()) == {0, 1}


def test_classes_that_look_like_one_are_said(tmp_path):
    rows = [(f"word{i} seen", ("good", "bad", "Good ")[i % 3]) for i in range(60)]
    data = load(f"csv:{write(tmp_path / 'a.csv', rows)}")
    assert data.class_names == ("Good ", "bad", "good")
    said = "classes: 1 of a name that differs from another's in case or blanks alone"
    assert any(note.startswith(f"{said} ('Good ', 'good')") for note in data.notes)


def test_texts_in_another_encoding_are_refused_in_arrays_too(tmp_path):
    texts = np.array([b"caf%c noir %d" % (0xE9 if i else 101, i) for i in range(40)])
    np.savez(tmp_path / "a.npz", x=texts, y=np.arange(40) % 2)
    with pytest.raises(
        DataError, match="x holds bytes that are not UTF-8, such as number 1, b'caf"
    ):
        load(f"npz:{tmp_path / 'a.npz'}", task="text")


def test_one_class_alone_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", [(text, "good") for text, _ in texts(20)])
    with pytest.raises(DataError, match="'label' of 'csv:.*' holds one class only, 'good'"):
        load(f"csv:{path}")


def test_texts_without_any_token_are_refused(tmp_path):
    path = write(tmp_path / "a.csv", [("!?", "good"), ("...", "bad")] * 10)
    with pytest.raises(DataError, match="hold not one token: is 'text' the column of the texts"):
        load(f"csv:{path}")


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        pytest.param("imdb_reviews", "text", marks=pytest.mark.slow),
        ("ag_news_subset", "description"),
    ],
)
def test_sets_of_tfds_are_texts_by_their_features(tmp_path, name, feature):
    rows = mocked(name, tmp_path, 30)
    data = load(name, data_dir=str(tmp_path), validation_fraction=0.0)
    assert data.task is TASK and data.spec.fitted["column"] == feature
    vocabulary = ["", "[UNK]", *data.spec.fitted["vocabulary"]]
    x, y = data.test.load_arrays()
    # TFDS shuffles what it writes.
    found = sorted(([vocabulary[i] for i in t if i], int(n)) for t, n in zip(x, y, strict=True))
    words = [row[feature].decode().lower().split()[: x.shape[1]] for row in rows]
    assert found == sorted((w, int(row["label"])) for w, row in zip(words, rows, strict=True))


# ---- the commands --------------------------------------------------------------------------

SETTINGS = ["--epochs=5", "--batch_size=16", "--width=0.5", "--seed=1", "--progress=none"]
SETTINGS += ["--augment=drop", "--learning_rate=0.03", "--weight_decay=0.01"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("text")
    write(place / "set.csv", texts(120))
    return place


def trained(place, name, *flags):
    return train_run(f"csv:{place / 'set.csv'}", place / name, *SETTINGS, *flags)


@pytest.fixture(scope="module")
def run(place):
    return trained(place, "run", "--devices=CPU:0")


def test_a_run_learns_and_keeps_its_vocabulary(run):
    result = result_of(run)
    assert result["status"] == "finished" and result["model"] == "bag"
    assert result["test_accuracy"] > 0.9
    fitted = json.loads((run / "fitted.json").read_text())
    assert {"fine", "dull", "winter"} <= set(fitted["vocabulary"])
    with zipfile.ZipFile(run / "model.keras") as archive:
        assert json.loads(archive.read("assets/fitted.json")) == fitted


@pytest.mark.slow
def test_streaming_gives_the_same_bits(place, run):
    other = trained(place, "streaming", "--devices=CPU:0", "--input=streaming")
    for ours, theirs in zip(weights(run), weights(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_two_replicas_compute_what_one_does(place, name):
    flags = (f"--model={name}", "--tensorboard=none", "--depth=2")
    one = result_of(trained(place, f"{name}1", "--devices=CPU:0", *flags))
    two = result_of(trained(place, f"{name}2", "--devices=CPU:0,CPU:1", *flags))
    for each in ("loss", "val_loss", "test_loss"):
        assert two[each] == pytest.approx(one[each], rel=5e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_a_continued_run_has_the_same_bits(place, name):
    flags = ("--devices=CPU:0", f"--model={name}", "--tensorboard=none", "--depth=2")
    flags += ("--lr_schedule=constant", "--warmup_epochs=0")
    whole = trained(place, f"{name}-whole", *flags)
    trained(place, f"{name}-part", *flags, "--epochs=1")
    part = trained(place, f"{name}-part", *flags)
    for ours, theirs in zip(weights(whole), weights(part), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_evaluate_finds_the_test_again(run, tmp_path, capsys):
    argv = (f"--run_dir={run}", f"--out={tmp_path}", "--devices=CPU:0,CPU:1")
    assert command(evaluate.main, *argv) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    for name in ("loss", "accuracy"):
        assert found[name] == pytest.approx(result_of(run)[f"test_{name}"], rel=1e-5)
    assert [each["name"] for each in found["classes"]] == ["bad", "good"]


def test_predict_reads_tables_lines_and_standard_input(run, tmp_path, capsys, monkeypatch):
    table = write(
        tmp_path / "new.csv",
        [("1", "a lovely\nfilm"), ("2", " "), ("3", "a dull sea")],
        header=("id", "text"),
        encoding="utf-8-sig",
    )
    lines = tmp_path / "new.txt"
    lines.write_text("moving people\n\nthe hollow winter\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"tired night\n")))
    capsys.readouterr()
    argv = (f"--run_dir={run}", "--format=jsonl", table, lines, "-")
    assert command(predict.main, *argv) == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    places = [f"{table}:3", f"{table}:5", f"{lines}:1", f"{lines}:3", "-:1"]
    assert [row["path"] for row in rows] == places
    assert [row["label"] for row in rows] == ["good", "bad", "good", "bad", "bad"]
    assert f"{table}:4: the cell of the column 'text' is empty" in captured.err


def test_a_line_of_standard_input_that_is_not_utf8_is_refused_alone(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\ntired night\n")))
    capsys.readouterr()
    assert command(predict.main, f"--run_dir={run}", "--format=jsonl", "-") == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["path"] for line in captured.out.splitlines()] == ["-:2"]
    assert "tfgpu: -:1 is not UTF-8: convert it first" in captured.err


def test_predict_reads_parquet_as_it_does_a_csv(run, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    texts = ["a lovely\nfilm", "a dull sea"]
    parquet.write_table(pyarrow.table({"id": [1, 2], "text": texts}), tmp_path / "a.parquet")
    write(tmp_path / "a.csv", [("1", texts[0]), ("2", texts[1])], header=("id", "text"))
    (one, at_a_worker), (other, _) = (loaded(run, tmp_path / f"a.{e}") for e in ("parquet", "csv"))
    assert len(one) == 2
    assert_same(one, other)
    assert_same(one, at_a_worker)


def test_predict_refuses_a_table_without_the_column(run, tmp_path, capsys):
    table = write(tmp_path / "new.csv", [("a film", "x")], header=("words", "label"))
    capsys.readouterr()
    assert command(predict.main, f"--run_dir={run}", table) == 1
    said = capsys.readouterr().err
    assert "has no column 'text', which the model was trained on" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_exported_files_take_strings_or_tokens_and_give_probabilities(place, tmp_path, name):
    run = trained(place, f"{name}-exported", "--devices=CPU:0", f"--model={name}")
    formats = "--formats=keras,saved_model,onnx,litert"
    assert command(export.main, f"--run_dir={run}", f"--out={tmp_path}", formats) == 0
    stated = json.loads((tmp_path / "export.json").read_text())
    assert all(each["accepted"] for each in stated["files"])
    strings = tf.constant(["A lovely film!", "the dull sea"])
    signature = tf.saved_model.load(tmp_path / "saved_model" / "1").signatures["serving_default"]
    found = signature(text=strings)["probabilities"].numpy()
    plain = keras.models.load_model(tmp_path / "model.keras")(strings).numpy()
    np.testing.assert_allclose(found, plain, atol=1e-6)
    assert (found.argmax(axis=1) == [1, 0]).all()
    import onnxruntime

    vocabulary = json.loads((tmp_path / "vocabulary.json").read_text())
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    tokens = np.zeros((1, session.get_inputs()[0].shape[1]), np.int32)
    tokens[0, :3] = [2 + vocabulary.index(word) for word in ("a", "lovely", "film")]
    np.testing.assert_allclose(session.run(None, {"tokens": tokens})[0], found[:1], atol=1e-5)


def test_a_text_that_another_table_calls_otherwise_is_said(tmp_path):
    first, other = write(tmp_path / "a.csv", texts(60)), tmp_path / "b.csv"
    write(other, texts(60), header=("review", "label"))
    settings = {"data_dir": None, "validation_fraction": 0.1, "image_size": None, "seed": 0}
    settings |= {"task": "text", "features": {"x": "text"}}
    fitted = loading.load(f"csv:{first}", **settings).spec.fitted
    data = loading.load(f"csv:{other}", **settings, fitted=fitted, strict=False)
    assert data.roles["x"] == "review"
    assert any("'review' is taken in its place" in note for note in data.storage_notes)
