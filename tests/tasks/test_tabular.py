"""Tables: columns, what is fitted to them, what is recognised, and bad input."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tabled import homes, write

from tfgpu.errors import DataError, RequestError
from tfgpu.models.regression_loss import R2, StandardizedSquaredError
from tfgpu.models.tabular import piecewise
from tfgpu.tasks import loading
from tfgpu.tasks.tabular import CLASSES, DROPPED, NUMBERS, TASK
from tfgpu.tasks.tabular.encoder import Encoder

# TensorFlow's MirroredVariable, when Keras saves or compares weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

RANDOM = np.random.RandomState(0)


def load(path, target="price", **changes):
    options = {**TASK.options, "target": target} | changes.pop("options", {})
    settings = {"data_dir": None, "validation_fraction": 0.2, "image_size": None, "seed": 0}
    features = {"y": target} if target else {}
    settings |= {"features": features, "options": lambda task: options}
    return loading.load(f"csv:{path}", **settings | changes)


def refused(path, kind, **changes):
    with pytest.raises(kind) as refusal:
        load(path, **changes)
    message = str(refusal.value)
    assert "\n" not in message
    return message


# ---- loss and metrics ----------------------------------------------------------------------


def test_r2_is_that_of_scikit_learn_far_from_zero_and_over_batches():
    from sklearn.metrics import r2_score

    targets = 2_000_000 + RANDOM.normal(0, 3, (300, 1))
    found = targets + RANDOM.normal(0, 1, (300, 1))
    metric = R2(3.0, 2_000_000.0)
    targets, found = targets.astype(np.float32), found.astype(np.float32)
    for some in np.array_split(np.arange(300), 7):
        metric.update_state(targets[some], found[some])
    assert float(metric.result()) == pytest.approx(r2_score(targets, found), abs=1e-4)


def test_the_loss_is_one_for_the_mean_of_any_target():
    targets = RANDOM.normal(5e6, 1e4, (500, 1)).astype(np.float32)
    loss = StandardizedSquaredError(float(targets.std()))
    each = loss.call(tf.constant(targets), tf.fill([500, 1], float(targets.mean()))).numpy()
    assert each.shape == (500,) and each.mean() == pytest.approx(1.0, rel=1e-3)


# ---- columns -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("tables")
    write(place / "homes.csv", homes(400))
    return place


def test_what_is_fitted_is_that_of_the_training_rows_alone(place):
    data = load(place / "homes.csv")
    fitted = data.spec.fitted
    names = [each["column"] for each in fitted["numbers"]]
    assert data.task is NUMBERS and names == ["age (years)", "size"]
    # Drawn here in the same way: the training rows' sizes, by their prices.
    targets = data.train.load_y()[:, 0]
    by_price = {row[4]: row for row in homes(400)}
    rows = [by_price[min(by_price, key=lambda p, t=t: abs(p - t))] for t in targets.tolist()]
    sizes = np.array([row[2] for row in rows])
    ages = np.array([float(row[1]) for row in rows if row[1] != ""])
    age, size = fitted["numbers"]
    assert size["mean"] == pytest.approx(sizes.mean(), rel=1e-5)
    assert size["variance"] == pytest.approx(sizes.var(), rel=1e-4)
    assert age["mean"] == pytest.approx(ages.mean(), rel=1e-5)
    assert (age["indicator"], size["indicator"]) == (True, False)
    assert set(fitted["categories"][0]["vocabulary"]) == {"ulm", "bonn", "mainz"}
    assert fitted["left_out"] == {"note": "text"} or "different" in fitted["left_out"]["note"]
    assert fitted["mean"] == pytest.approx(targets.mean(), rel=1e-5)


def test_x_is_what_keras_feature_space_adapts_to(tmp_path):
    path = write(tmp_path / "a.csv", homes(200, missing=0.0))
    data = load(path, validation_fraction=0.0)
    x, _ = data.train.load_arrays()
    each = [data.train.decode_raw(tf.constant(i)) for i in range(data.train.num_examples)]
    names = ("age_years", "size", "city")
    raw = {name: tf.concat([row[name] for row in each], axis=0) for name in names}
    space = keras.utils.FeatureSpace(
        {
            "age_years": "float_normalized",
            "size": "float_normalized",
            "city": keras.utils.FeatureSpace.string_categorical(output_mode="int"),
        },
        output_mode="dict",
    )
    space.adapt(tf.data.Dataset.from_tensors(raw))
    expected = space(raw)
    numbers = np.concatenate([expected[name] for name in ("age_years", "size")], axis=1)
    np.testing.assert_allclose(x["numbers"], numbers, rtol=1e-3, atol=1e-4)
    ours = data.spec.fitted["categories"][0]["vocabulary"]
    theirs = space.features["city"].preprocessor.get_vocabulary()
    cells = raw["city"].numpy()
    assert [ours[i - 1].encode() for i in x["categories"][:, 0]] == cells.tolist()
    assert set(theirs[1:]) == set(ours)


def test_empty_cells_count_as_the_mean_and_are_told_apart(place):
    data = load(place / "homes.csv", validation_fraction=0.0)
    x, _ = data.train.load_arrays()
    age, _, missing = x["numbers"].T
    assert 0 < missing.sum() < len(missing) and set(np.unique(missing)) == {0.0, 1.0}
    assert (age[missing == 1] == 0).all() and (age[missing == 0] != 0).any()
    assert "empty cells of age (years) count as the mean" in " ".join(data.notes)


def test_rows_one_by_one_are_those_of_many(place):
    data = load(place / "homes.csv")
    x, y = data.train.load_arrays()
    one, target = data.train.decode(tf.constant(5, tf.int64))
    for name in x:
        np.testing.assert_array_equal(one[name], x[name][5])
    np.testing.assert_array_equal(target, y[5])


def test_options_say_what_columns_are(place):
    options = {"numbers": "", "categories": "age (years)+note", "ignore": "size+tall"}
    fitted = load(place / "homes.csv", options=options).spec.fitted
    assert not fitted["numbers"]
    assert [each["column"] for each in fitted["categories"]] == ["city", "age (years)", "note"]
    assert "" in fitted["categories"][1]["vocabulary"]
    said = refused(place / "homes.csv", RequestError, options={"ignore": "sizes"})
    assert "ignore=sizes" in said and "did you mean 'size'" in said
    said = refused(place / "homes.csv", RequestError, options={"ignore": "price"})
    assert "in target too" in said


def test_categories_beyond_the_vocabulary_and_new_ones_are_unknown(tmp_path):
    rows = homes(100)
    folder = tmp_path
    write(folder / "train.csv", rows)
    new = [("rome", *rows[0][1:]), ("oslo", *rows[1][1:]), rows[2]]
    write(folder / "test.csv", new)
    data = load(folder)
    x, _ = data.test.load_arrays()
    assert (x["categories"][:, 0] == 0).tolist() == [True, True, False]
    assert any(
        "test: 2 cells hold categories that the model does not know" in n for n in data.notes
    )
    data = load(folder, options={"vocabulary": 2})
    assert len(data.spec.fitted["categories"][0]["vocabulary"]) == 2
    assert (data.train.load_arrays()[0]["categories"] == 0).any()


def test_the_unknown_category_adds_nothing(place):
    data = load(place / "homes.csv")
    keras.utils.set_random_seed(0)
    built = piecewise(**data.task.arguments(data.spec))
    x, _ = data.train.load_arrays()
    x["categories"][:] = 0
    before = built.predict_on_batch(x)
    table = built.get_layer("embedding")
    table.set_weights([each + 1 for each in table.get_weights()])
    np.testing.assert_array_equal(built.predict_on_batch(x), before)


# ---- goal and recognition ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name", "options", "goal"),
    [
        ([1.5, 2.5, 3.5], "y", {}, "regression"),
        ([0, 1, 1], "y", {}, "classification"),
        ([1, 2, 3], "y", {}, "regression"),
        ([1, 2, 3], "grade", {}, "classification"),
        ([1, 2, 3], "y", {"goal": "classification"}, "classification"),
        ([0, 1, 1], "y", {"goal": "regression"}, "regression"),
        (["a", "b", "c"], "y", {}, "classification"),
    ],
)
def test_the_target_decides_what_is_learnt(tmp_path, values, name, options, goal):
    rows = [(float(i) / 7, values[i % 3]) for i in range(40)]
    path = write(tmp_path / "a.csv", rows, header=("x", name))
    data = load(path, target=name, options=options)
    assert data.spec.fitted["goal"] == goal
    assert data.task is (NUMBERS if goal == "regression" else CLASSES)
    assert any(f"target {name!r}" in note and goal in note for note in data.notes)


def test_classes_of_whole_numbers_are_sorted_as_numbers(tmp_path):
    rows = [(i / 7, (10, 9, 100)[i % 3]) for i in range(40)]
    path = write(tmp_path / "a.csv", rows, header=("x", "z"))
    data = load(path, target="z", options={"goal": "classification"})
    assert data.class_names == ("9", "10", "100")
    assert set(data.train.load_y()) == {0, 1, 2}


def test_tables_texts_and_ratings_are_told_apart(tmp_path):
    from rated import interactions
    from rated import write as write_ratings
    from worded import texts
    from worded import write as write_texts

    path = write_texts(tmp_path / "t.csv", texts(40))
    settings = {"data_dir": None, "validation_fraction": 0.2, "image_size": None, "seed": 0}

    def found(path, **features):
        return loading.load(
            f"csv:{path}",
            features=features,
            options=lambda task: {**task.options, "tokens": None},
            **settings,
        ).task.name

    assert found(path) == "text" and found(path, y="label") == "text"
    ratings = write_ratings(tmp_path / "r.csv", interactions(200))
    assert found(ratings) == "recommendation"
    assert found(ratings, y="rating") == "tabular"
    rows = [(*row, i % 5) for i, row in enumerate(texts(40))]
    path = write_texts(tmp_path / "v.csv", rows, header=("text", "label", "votes"))
    assert found(path) == "text" and found(path, y="votes") == "text"
    rows = homes(50)
    mixed = write(tmp_path / "h.csv", rows)
    assert found(mixed, y="price") == "tabular"
    # A text and a class beside other columns leave a doubt, which the user settles.
    with pytest.raises(RequestError, match="--task=tabular or --task=text"):
        found(mixed, y="tall")
    with pytest.raises(RequestError, match="--target=COLUMN"):
        found(mixed)
    plain = [(row[0], row[2], row[5]) for row in rows]
    plain = write(tmp_path / "p.csv", plain, header=("city", "size", "label"))
    assert found(plain) == "tabular"


# ---- bad input -----------------------------------------------------------------------------


def changed(tmp_path, row, column, cell, count=60):
    rows = [list(each) for each in homes(count)]
    rows[row][column] = cell
    return write(tmp_path / "a.csv", rows)


def test_a_target_that_cannot_be_learnt_is_refused_in_one_line(tmp_path):
    path = write(tmp_path / "a.csv", homes(60))
    assert "no feature 'prize' (did you mean 'price'?)" in refused(
        path, RequestError, target="prize"
    )
    said = refused(changed(tmp_path, 7, 4, " "), DataError)
    assert "a.csv, line 9: the cell of the column 'price' is empty" in said
    said = refused(changed(tmp_path, 7, 4, "inf"), DataError)
    assert "a.csv, line 9: the cell of the column 'price' is infinite (inf)" in said
    said = refused(changed(tmp_path, 7, 4, "cheap"), DataError, options={"goal": "regression"})
    assert "'price' holds text where a number belongs" in said and "line 9: 'cheap'" in said
    said = refused(changed(tmp_path, 7, 4, "cheap"), DataError)
    assert "'price' holds text where a number belongs" in said and "line 9: 'cheap'" in said
    said = refused(path, RequestError, target="note", task="tabular")
    assert "note of" in said and "is text, and a target is a number or a class" in said
    rows = [(*row[:4], f"p{i}", row[5]) for i, row in enumerate(homes(60))]
    said = refused(write(tmp_path / "a.csv", rows), DataError)
    assert "'price'" in said and "different values in" in said and "is no class" in said
    rows = [(*row[:4], 3, row[5]) for row in homes(60)]
    said = refused(write(tmp_path / "a.csv", rows), DataError, task="tabular")
    assert "'price'" in said and "is 3 in every training row" in said


def test_features_that_cannot_be_used_are_refused_or_said(tmp_path):
    said = refused(changed(tmp_path, 3, 2, "-inf"), DataError)
    assert "a.csv, line 5: the cell of the column 'size' is infinite (-inf)" in said
    data = load(changed(tmp_path, 3, 2, "wide"))
    said = " ".join(data.notes)
    # Nearly every size is another one, so as categories they say nothing.
    assert "size (" in said and "different values" in said and "'wide'" in said
    said = refused(changed(tmp_path, 3, 2, "big"), DataError, options={"numbers": "size"})
    assert "'size' holds text where a number belongs" in said and "line 5: 'big'" in said
    rows = [(row[3], "same", 5, row[4]) for row in homes(60)]
    path = write(tmp_path / "b.csv", rows, header=("note", "city", "size", "price"))
    said = refused(path, DataError)
    assert "nothing to learn 'price' from" in said and "size: the same in every row" in said


def test_a_table_of_which_all_is_ignored_is_refused_with_the_reason(tmp_path):
    path = write(tmp_path / "a.csv", [(i, i / 9) for i in range(60)], header=("a", "price"))
    said = refused(path, DataError, options={"ignore": "a"})
    assert "to learn 'price' from: --task_options=ignore names every other column" in said


def test_why_a_column_of_numbers_says_nothing_is_said(tmp_path):
    rows = [(2**53 + i, "", 5, i % 7, i / 9) for i in range(60)]
    header = ("count", "gone", "same", "some", "price")
    (said,) = (
        note
        for note in load(write(tmp_path / "a.csv", rows, header=header)).notes
        if note.startswith("left out: ")
    )
    assert "count (the same in every row as float32, such as 90071992547409" in said
    assert "gone (empty in every row), same (the same in every row)" in said


def test_whole_numbers_as_a_target_have_a_way_out(tmp_path):
    rows = [(i / 7, i % 3) for i in range(60)]
    said = " ".join(load(write(tmp_path / "a.csv", rows, header=("a", "y")), target="y").notes)
    assert "regression (3 whole numbers; --task_options=goal=classification for the other)" in said


def test_the_training_split_of_other_data_has_its_unknown_categories_said(place, tmp_path):
    fitted = load(place / "homes.csv").spec.fitted
    rows = [("oslo", *row[1:]) for row in homes(60)]
    data = load(write(tmp_path / "other.csv", rows), fitted=fitted)
    said = [note for note in data.train.notes if "does not know" in note]
    assert said and said[0].startswith("train: ") and "'oslo'" in said[0]


def test_a_gap_where_training_had_none_is_said(tmp_path):
    rows = [list(each) for each in homes(80, missing=0.0)]
    write(tmp_path / "train.csv", rows[:60])
    rows[70][2] = "?"
    write(tmp_path / "test.csv", rows[60:])
    data = load(tmp_path)
    assert any("test: 1 numbers are empty" in note and "1 of size" in note for note in data.notes)
    x, _ = data.test.load_arrays()
    assert x["numbers"][10, 1] == 0


# ---- augmentation --------------------------------------------------------------------------


def test_a_share_of_the_cells_is_dropped_one_independent_of_another():
    x = {
        "numbers": tf.ones([4000, 12]),
        "categories": tf.fill([4000, 5], 3),
    }
    draws = tf.constant(RANDOM.uniform(size=(4000, 1)).astype(np.float32))
    found, y = TASK.augment["drop"].function(x, "y", draws)
    dropped = np.concatenate([found[name].numpy() == 0 for name in x], axis=1).astype(float)
    assert y == "y"
    np.testing.assert_allclose(dropped.mean(axis=0), DROPPED, atol=0.03)
    assert np.abs(np.corrcoef(dropped.T) - np.eye(17)).max() < 0.15


def test_a_name_of_a_column_may_hold_anything():
    fitted = {
        "numbers": [
            {"column": name, "mean": 0, "variance": 1, "edges": [0, 1], "indicator": False}
            for name in ("größe/m²", "a b", "a-b", "2", "%")
        ],
        "categories": [],
    }
    names = list(Encoder(fitted).inputs)
    assert len(set(map(str.lower, names))) == 5 and all(name.isidentifier() for name in names)


# ---- other tables for what a run has learnt ------------------------------------------------


@pytest.mark.parametrize("target", ["price", "tall"])
def test_a_table_without_the_target_of_a_run_is_refused_by_its_name(place, tmp_path, target):
    fitted = load(place / "homes.csv", target, task="tabular").spec.fitted
    header = ("city", "age (years)", "size", "note", "y", "label")
    other = write(tmp_path / "other.csv", homes(60), header=header)
    for named in ({"y": target}, {}):  # As the user named it, or as it was found.
        changes = {"task": "tabular", "fitted": fitted, "strict": False, "features": named}
        line = refused(other, DataError, target=target, **changes)
        assert f"no column {target!r}" in line and "--" not in line


def test_the_target_of_a_run_is_found_among_columns_that_are_called_targets(tmp_path):
    rows = [(i % 7, i % 5, i % 3) for i in range(60)]
    first = write(tmp_path / "first.csv", rows, header=("size", "age", "target"))
    fitted = load(first, None).spec.fitted
    assert fitted["target"] == "target"
    both = write(
        tmp_path / "both.csv", [(*row, 1) for row in rows], header=("size", "age", "target", "y")
    )
    data = load(both, None, task="tabular", fitted=fitted, strict=False)
    assert data.roles == {"y": "target"}


def test_a_column_that_another_table_has_lists_in_is_refused_by_name(tmp_path):
    rows = [(("red", "blue")[i % 2], i % 7, i % 3) for i in range(60)]
    header = ("tags", "size", "target")
    fitted = load(write(tmp_path / "a.csv", rows, header=header), "target").spec.fitted
    rows[3] = ("red|blue", *rows[3][1:])
    other = write(tmp_path / "b.csv", rows, header=header)
    line = refused(other, DataError, target="target", task="tabular", fitted=fitted, strict=False)
    assert "the column 'tags'" in line and "is lists of 2 labels, and the model was" in line
