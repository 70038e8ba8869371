"""Recommendation: loss and metrics against NumPy and keras-rs, and a table through the commands."""

import csv
import json
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from commands import command
from mocked import mocked
from rated import interactions, write
from task_runs import result_of, train_run, weights

from tfgpu.data import sources
from tfgpu.errors import DataError, RequestError
from tfgpu.evaluate import __main__ as evaluate
from tfgpu.export import __main__ as export
from tfgpu.models.recommenders import factors, two_tower
from tfgpu.models.retrieval_loss import NDCG, ItemCrossentropy, Recall, without_left_out
from tfgpu.predict import __main__ as predict
from tfgpu.tasks import loading
from tfgpu.tasks.recommendation import TASK, drop
from tfgpu.tasks.recommendation.answers import ItemPredictor
from tfgpu.tasks.recommendation.columns import as_keys, as_numbers, as_times
from tfgpu.tasks.recommendation.reading import Rows
from tfgpu.tasks.recommendation.tables import Ids

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

RANDOM = np.random.RandomState(0)
SCORES = RANDOM.normal(size=(4, 9)).astype(np.float32)
# Items to find, one that is unknown (0), items left out (-2 - item), padding (-1).
TARGETS = np.array([[3, 5, -4, -1], [1, 0, -1, -1], [-10, -9, -1, -1], [2, 4, 6, 8]], np.int32)


def ranked(row):
    """Items of a row from the best on, without what is left out."""
    out = {0, *(-2 - t for t in TARGETS[row] if t < -1)}
    return [i for i in np.argsort(-SCORES[row]) if i not in out]


# ---- loss and metrics ----------------------------------------------------------------------


def test_what_is_left_out_and_item_0_are_never_best():
    found = without_left_out(TARGETS, SCORES).numpy()
    for row in range(4):
        hidden = set(range(9)) - set(ranked(row))
        assert {i for i in range(9) if found[row, i] < -1e8} == hidden


def test_the_loss_is_the_mean_crossentropy_of_the_known_items_of_each_user():
    expected = []
    for row in range(4):
        kept = ranked(row)
        wanted = [t for t in TARGETS[row] if t > 0]
        log = SCORES[row] - np.log(np.exp(SCORES[row, kept]).sum())
        expected.append(-np.mean([log[t] for t in wanted]) if wanted else 0.0)
    np.testing.assert_allclose(ItemCrossentropy().call(TARGETS, SCORES), expected, rtol=1e-5)


@pytest.mark.parametrize("k", [2, 10])
def test_ndcg_and_recall_are_those_of_the_definition(k):
    gains, recalls = [], []
    for row in (0, 1, 3):  # The third has nothing to find, and does not count.
        wanted = [t for t in TARGETS[row] if t >= 0]
        hits = [i in wanted for i in ranked(row)[:k]]
        discounts = 1 / np.log2(np.arange(2, k + 2))
        gains.append((hits * discounts[: len(hits)]).sum() / discounts[: len(wanted)].sum())
        recalls.append(sum(hits) / len(wanted))
    for metric, values in ((NDCG(k), gains), (Recall(k), recalls)):
        for some in (slice(0, 3), slice(3, 4)):
            metric.update_state(TARGETS[some], SCORES[some])
        assert float(metric.result()) == pytest.approx(np.mean(values), rel=1e-5)


def test_ndcg_is_that_of_keras_rs():
    keras_rs = pytest.importorskip("keras_rs")
    labels = np.zeros((2, 9), np.float32)
    labels[0, [3, 5]], labels[1, [2, 4, 6, 8]] = 1, 1
    labels[:, 0], labels[0, 2] = -1, -1  # Left out.
    theirs = keras_rs.metrics.NDCG(k=3, shuffle_ties=False)
    scores = SCORES[[0, 3]]
    # Theirs weighs a list by its labels; one after another has no such weights.
    expected = []
    for label, score in zip(labels, scores, strict=True):
        theirs.reset_state()
        theirs.update_state(label[None], score[None])
        expected.append(float(theirs.result()))
    ours = NDCG(3)
    ours.update_state(TARGETS[[0, 3]], scores)
    assert float(ours.result()) == pytest.approx(np.mean(expected), rel=1e-5)


# ---- models, tables, augmentation -----------------------------------------------------------


def test_new_users_and_items_have_the_mean():
    model = factors(num_users=5, num_items=4, mean=3.5, width=0.1)
    found = model({"user": np.array([0]), "item": np.array([[0, 0]])}).numpy()
    np.testing.assert_allclose(found, [[3.5, 3.5]])


def test_a_rating_does_not_depend_on_the_other_candidates():
    model = factors(num_users=5, num_items=4, mean=3.5, width=0.1)
    together = model({"user": np.array([2]), "item": np.array([[1, 2, 3]])}).numpy()
    alone = [
        model({"user": np.array([2]), "item": np.array([[i]])}).numpy()[0, 0] for i in (1, 2, 3)
    ]
    np.testing.assert_allclose(together[0], alone, rtol=1e-6)


@pytest.mark.slow
def test_the_ranking_model_scores_candidates_one_by_one():
    pytest.importorskip("keras_rs")
    from tfgpu.models.recommenders import ranking

    model = ranking(num_users=5, num_items=4, mean=3.5, width=0.2)
    model.get_layer("correction").kernel.assign(RANDOM.normal(size=(12, 1)))
    together = model({"user": np.array([2, 1]), "item": np.array([[1, 2, 3]] * 2)}).numpy()
    alone = model({"user": np.array([2, 1]), "item": np.array([[2], [2]])}).numpy()
    np.testing.assert_allclose(together[:, 1:2], alone, rtol=1e-5)


def test_padding_of_a_history_changes_nothing():
    model = two_tower(num_users=5, num_items=9, width=0.1)
    short = model({"user": np.array([1]), "history": np.array([[3, 4]])})
    long = model({"user": np.array([1]), "history": np.array([[3, 0, 4, 0]])})
    np.testing.assert_allclose(short, long, rtol=1e-6)


@pytest.mark.parametrize("keys", [[7, 2, 11], ["b", "a", "ü"]])
def test_ids_have_numbers_from_1_and_others_0(keys):
    ids = Ids.fit(np.array(keys))
    assert [ids.number(str(key)) for key in sorted(keys)] == [1, 2, 3]
    assert ids.number("zz") == 0 and ids.number("4") == 0


def test_a_whole_number_is_one_id_however_it_is_written():
    ids = Ids([3, 7])
    assert ids.numbers(np.array(["7.0", "7", "3e0", "07", "abc"])).tolist() == [2, 2, 1, 0, 0]


def test_of_items_that_are_equally_good_the_first_are_recommended():
    fitted = {"goal": "rating", "users": [1], "items": list(range(50)), "seen": [[2]]}
    predictor = ItemPredictor(SimpleNamespace(fitted=fitted), SimpleNamespace(top_k=3))
    (row,) = predictor.rows(["1"], np.zeros((1, 51), np.float32))
    assert [each["item"] for each in row["items"]] == [0, 2, 3]


def test_rows_keep_the_order_and_pad_at_the_end():
    rows = Rows.of_pairs(np.array([1, 0, 1, 1]), np.array([5, 6, 7, 5]), 3)
    assert rows.to_lists() == [[6], [5, 7], []]
    padded = rows.padded(3, -1)(tf.constant([1, 2, 0], tf.int64))
    np.testing.assert_array_equal(padded, [[5, 7, -1], [-1, -1, -1], [6, -1, -1]])


def test_half_of_a_history_is_dropped_by_the_draw_alone():
    history = np.tile(np.arange(1, 201, dtype=np.int32), (50, 1))
    draws = RANDOM.uniform(size=(50, 1)).astype(np.float32)
    kept = [
        drop({"history": history[s]}, None, draws[s])[0]["history"].numpy()
        for s in (slice(0, 50), slice(7, 9))
    ]
    assert (kept[0] > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert ((kept[0] > 0).mean(axis=0) > 0.2).all() and ((kept[0] > 0).mean(axis=0) < 0.8).all()
    np.testing.assert_array_equal(kept[0][7:9], kept[1])


# ---- reading -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("recommendation")
    write(place / "ratings.csv", interactions(700))
    return place


def loaded(path, *, fitted=None, **options):
    return loading.load(
        f"csv:{path}",
        data_dir=None,
        validation_fraction=0.1,
        image_size=None,
        seed=0,
        fitted=fitted,
        options=lambda task: {**task.options, **options},
    )


def test_a_split_by_time_has_the_newest_interactions_in_the_test(place):
    data = loaded(place / "ratings.csv", split="time", test_fraction=0.2)
    rows = interactions(700)
    users, items = Ids(data.spec.fitted["users"]), Ids(data.spec.fitted["items"])
    x, y = data.test.load_arrays()
    newest = rows[-140:]
    np.testing.assert_array_equal(x["user"], [users.number(str(row[0])) for row in newest])
    np.testing.assert_array_equal(x["item"][:, 0], [items.number(row[1]) for row in newest])
    np.testing.assert_array_equal(y[:, 0], [row[2] for row in newest])


def test_tables_hold_what_is_in_training_alone(tmp_path):
    rows = [*interactions(200), (999, "newest", 5, 10**6)]
    data = loaded(write(tmp_path / "a.csv", rows), split="time", test_fraction=0.1)
    assert 999 not in data.spec.fitted["users"] and "newest" not in data.spec.fitted["items"]
    x, _ = data.test.load_arrays()
    assert x["user"][-1] == 0 and x["item"][-1] == 0


def test_a_user_is_to_find_what_is_new_and_known_items_are_left_out(place):
    data = loaded(place / "ratings.csv", goal="retrieval")
    seen = [set(), *map(set, data.spec.fitted["seen"])]
    x, y = data.validation.load_arrays()
    validated = {}
    for user, history, codes in zip(x["user"], x["history"], y, strict=True):
        assert set(history[history > 0]) == seen[user]
        assert set(-2 - codes[codes < -1]) == seen[user]
        validated[user] = set(codes[codes >= 0])
        assert validated[user] and not validated[user] & seen[user]
    x, y = data.test.load_arrays()
    for user, codes in zip(x["user"], y, strict=True):
        assert set(-2 - codes[codes < -1]) == seen[user] | validated.get(user, set())


def test_movielens_of_tfds_is_known_by_its_features(tmp_path):
    rows = mocked("movielens/100k-ratings", tmp_path, 40, splits=("train",))
    data = loading.load(
        "movielens",
        data_dir=str(tmp_path),
        validation_fraction=0.0,
        image_size=None,
        seed=0,
        options=lambda task: task.options,
    )
    assert data.task.objective == "rmse" and data.train.num_examples == 36
    users, items = data.spec.fitted["users"], data.spec.fitted["items"]
    x, y = data.train.load_arrays()
    found = {
        (users[u - 1], items[i - 1], float(r))
        for u, i, r in zip(x["user"], x["item"][:, 0], y[:, 0], strict=True)
    }
    names = ("user_id", "movie_id", "user_rating")
    made = {(r[names[0]].decode(), r[names[1]].decode(), float(r[names[2]])) for r in rows}
    assert len(found) == 36 and found < made


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "week"}, "split=week"),
        ({"test_fraction": 1.5}, "test_fraction=1.5"),
        ({"goal": "profit"}, "goal=profit"),
    ],
)
def test_a_wrong_option_is_named(place, options, said):
    with pytest.raises(RequestError, match=said):
        loaded(place / "ratings.csv", **options)


def test_new_users_and_items_of_a_split_are_counted(tmp_path):
    rows = [*interactions(200), (999, "newest", 5, 10**6)]
    for goal in ("rating", "retrieval"):
        data = loaded(write(tmp_path / "a.csv", rows), goal=goal, split="time")
        (said,) = (note for note in data.notes if note.startswith("test: "))
        assert said.startswith(
            "test: 1 of 20 interactions has a user (such as 999) and 1 an item (such as 'newest') "
            "that training had not; "
        )


def test_of_other_data_the_training_split_is_not_that_of_the_run(place, tmp_path):
    """Of retrieval: `evaluate --dataset=OTHER --split=train` gave the figures of the run's own."""
    fitted = loaded(place / "ratings.csv", goal="retrieval").spec.fitted
    path = write(tmp_path / "other.csv", interactions(300, seed=1))
    data = loaded(path, goal="retrieval", fitted=fitted)
    x, y = data.train.load_arrays()
    seen = [set(), *map(set, fitted["seen"])]
    for user, codes in zip(x["user"], y, strict=True):
        assert not set(codes[codes > 0]) & seen[user]


def test_the_training_split_of_the_run_is_what_each_user_has(place):
    fitted = loaded(place / "ratings.csv", goal="retrieval").spec.fitted
    data = loaded(place / "ratings.csv", goal="retrieval", fitted=fitted)
    x, y = data.train.load_arrays()
    for user, codes in zip(x["user"], y, strict=True):
        assert set(codes[codes > 0]) == set(fitted["seen"][user - 1])


def test_an_only_item_is_named_as_the_table_has_it(tmp_path):
    path = write(tmp_path / "a.csv", [(i, 7, i % 5, i) for i in range(60)])
    with pytest.raises(DataError, match="has one item only, 7: "):
        loaded(path)


def test_a_table_without_items_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", [(1, 2)], header=("user", "age"))
    schema = sources.open_source(f"csv:{path}").schema
    with pytest.raises(RequestError, match="it has no item"):
        loading.find_task("recommendation").choose(schema, {})


# ---- the commands --------------------------------------------------------------------------

SETTINGS = ["--epochs=3", "--seed=1", "--progress=none", "--width=0.25"]


def trained(place, name, *flags):
    return train_run(f"csv:{place / 'ratings.csv'}", place / name, *SETTINGS, *flags)


@pytest.fixture(scope="module")
def rating_run(place):
    return trained(place, "rating", "--devices=CPU:0", "--tensorboard=none")


def test_a_run_of_ratings_has_errors_and_tables(rating_run):
    result = result_of(rating_run)
    assert result["status"] == "finished" and result["model"] == "factors"
    for name in ("rmse", "mae", "val_rmse", "val_mae", "test_rmse", "test_mae"):
        assert 0 < result[name] < 3
    assert "0 slots of sgd" in (rating_run / "log.txt").read_text()
    fitted = json.loads((rating_run / "fitted.json").read_text())
    assert len(fitted["users"]) == len(fitted["seen"]) == 40
    with zipfile.ZipFile(rating_run / "model.keras") as archive:
        assert json.loads(archive.read("assets/fitted.json")) == fitted


def test_predict_leaves_out_what_a_user_has(rating_run, capsys):
    capsys.readouterr()
    argv = (f"--run_dir={rating_run}", "--users=101,zz", "--format=jsonl", "--top_k=30")
    assert command(predict.main, *argv) == 0
    printed = capsys.readouterr()
    known, new = map(json.loads, printed.out.splitlines())
    fitted = json.loads((rating_run / "fitted.json").read_text())
    seen = {fitted["items"][i - 1] for i in fitted["seen"][fitted["users"].index(101)]}
    assert {each["item"] for each in known["items"]} == set(fitted["items"]) - seen
    ratings = [each["rating"] for each in known["items"]]
    assert ratings == sorted(ratings, reverse=True)
    assert not new["known"] and len(new["items"]) == 30 and "user 'zz'" in printed.err


def test_an_exported_file_says_how_many_items_are_left_out(place):
    for goal, name in (("rating", "seen"), ("retrieval", "history")):
        spec = loaded(place / "ratings.csv", goal=goal).spec
        serving = TASK.serve(spec, "onnx")
        width = max(map(len, spec.fitted["seen"]))
        assert serving.inputs[name].shape == (width,)
        assert serving.preprocessing["inputs"][name].startswith(f"int32 (batch, {width}): ")


@pytest.mark.slow
def test_predict_writes_a_row_of_csv_for_each_item(rating_run, capsys):
    capsys.readouterr()
    assert command(predict.main, f"--run_dir={rating_run}", "--users=101", "--format=csv") == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3"] and rows[0]["user"] == "101"


@pytest.mark.slow
def test_evaluate_finds_the_test_again(rating_run, tmp_path):
    argv = (f"--run_dir={rating_run}", f"--out={tmp_path}", "--devices=CPU:0,CPU:1")
    assert command(evaluate.main, *argv) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    for name in ("rmse", "mae", "loss"):
        assert found[name] == pytest.approx(result_of(rating_run)[f"test_{name}"], rel=1e-5)


GOALS = [(), ("--task_options=goal=retrieval",)]


@pytest.mark.slow
@pytest.mark.parametrize("goal", GOALS)
def test_streaming_gives_the_same_bits(place, goal):
    # 567 interactions of 40 users: without a last batch that is smaller, whose mean is rounded
    # otherwise.
    flags = (*goal, "--devices=CPU:0", "--tensorboard=none", f"--batch_size={20 if goal else 189}")
    one = trained(place, f"resident{len(goal)}", *flags, "--input=resident")
    other = trained(place, f"streaming{len(goal)}", *flags, "--input=streaming")
    for ours, theirs in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("goal", GOALS)
def test_two_replicas_compute_what_one_does(place, goal):
    flags = (*goal, "--tensorboard=none", f"--batch_size={18 if goal else 250}")
    one = trained(place, f"one{len(goal)}", *flags, "--devices=CPU:0")
    two = trained(place, f"two{len(goal)}", *flags, "--devices=CPU:0,CPU:1")
    for ours, theirs in zip(weights(one), weights(two), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    for name in ("loss", "val_loss", "test_loss"):
        assert result_of(two)[name] == pytest.approx(result_of(one)[name], rel=1e-4)


@pytest.mark.slow
def test_a_run_of_retrieval_ranks_all_items_and_is_exported(place, tmp_path, capsys):
    run = trained(place, "retrieval", "--devices=CPU:0", "--task_options=goal=retrieval")
    result = result_of(run)
    assert result["model"] == "two_tower"
    for name in ("ndcg_at_10", "recall_at_10"):
        assert 0 < result[f"test_{name}"] <= 1 and 0 < result[f"val_{name}"] <= 1
    formats = "--formats=keras,saved_model,onnx,litert"
    assert command(export.main, f"--run_dir={run}", f"--out={tmp_path}", formats) == 0
    stated = json.loads((tmp_path / "export.json").read_text())
    assert all(each["accepted"] for each in stated["files"])
    items = (tmp_path / "items.txt").read_text().splitlines()
    fitted = json.loads((run / "fitted.json").read_text())
    past = fitted["seen"][0]
    signature = tf.saved_model.load(tmp_path / "saved_model" / "1").signatures["serving_default"]
    found = signature(user=tf.constant([1]), history=tf.constant([past]))["items"].numpy()[0]
    assert not set(found.tolist()) & {0, *past}
    capsys.readouterr()
    argv = (f"--run_dir={run}", f"--users={fitted['users'][0]}", "--format=jsonl", "--top_k=10")
    assert command(predict.main, *argv) == 0
    said = json.loads(capsys.readouterr().out)
    assert [each["item"] for each in said["items"]] == [items[i - 1] for i in found]


@pytest.mark.slow
def test_exported_files_of_ratings_give_ratings_and_the_best_items(rating_run, tmp_path):
    assert command(export.main, f"--run_dir={rating_run}", f"--out={tmp_path}") == 0
    stated = json.loads((tmp_path / "export.json").read_text())
    assert all(each["accepted"] for each in stated["files"])
    kinds = ["keras", "saved_model", "onnx", "litert", "litert_float16"]  # There is no int8 file.
    assert [each["format"] for each in stated["files"]] == kinds
    measured = -stated["reference"]["negative_mae"]
    assert measured == pytest.approx(result_of(rating_run)["test_mae"], rel=1e-4)


def test_a_run_of_ratings_refuses_a_table_of_clicks(tmp_path):
    rated = f"csv:{write(tmp_path / 'rated.csv', interactions(200))}"
    header = ("user", "item", "click", "timestamp")
    clicked = f"csv:{write(tmp_path / 'clicked.csv', interactions(200), header=header)}"
    same = {"data_dir": None, "validation_fraction": 0.1, "image_size": None, "seed": 0}
    fitted = loading.load(rated, task="recommendation", **same).spec.fitted
    with pytest.raises(DataError, match="has no rating, which the model was trained on"):
        loading.load(clicked, task="recommendation", fitted=fitted, strict=False, **same)


def test_an_id_of_two_lines_is_refused(tmp_path):
    rows = [(f"u\n{i % 5}", i % 7, i % 3, i) for i in range(60)]
    settings = {"data_dir": None, "validation_fraction": 0.1, "image_size": None, "seed": 0}
    with pytest.raises(DataError, match=r"the user 'u\\n0' of .* has a line break"):
        loading.load(f"csv:{write(tmp_path / 'a.csv', rows)}", task="recommendation", **settings)


def test_times_with_zones_are_in_the_order_that_they_happened():
    texts = [b"2024-01-01T10:00:00Z", b"2024-01-01 10:30+01:00", b"2024-01-01T10:00:00.5-0030"]
    found = as_times(np.array(texts, object), "time")
    start = np.datetime64("2024-01-01T10:00:00", "us").astype(np.int64)
    assert (found - start).tolist() == [0, -30 * 60 * 10**6, 30 * 60 * 10**6 + 500_000]
    with pytest.raises(DataError, match="has a time zone and '2024-01-01' has none"):
        as_times(np.array([texts[0], b"2024-01-01"], object), "time")
    plain = as_times(np.array([b"2024-01-01", b"2024-01-02T00:00"], object), "time")
    assert np.diff(plain).tolist() == [86_400 * 10**6]


def test_clicks_may_be_booleans():
    cells = np.array([b"True", b"FALSE", b"true"], object)
    assert as_numbers(cells, "click", "taken").tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="has 'True', which is no number"):
        as_numbers(cells, "rating", "taken")


def test_ids_as_floats_are_exact_or_refused():
    assert as_keys(np.array([1.0, 2.0]), "user").tolist() == [1, 2]
    with pytest.raises(DataError, match="the column 'user' has ids as floats beyond 2.53"):
        as_keys(np.array([1.0, 2.0**60]), "user")
    assert as_keys(np.array([1, 2**64 - 1], np.uint64), "user").tolist() == ["1", str(2**64 - 1)]
