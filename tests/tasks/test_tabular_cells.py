"""Cells of tables: the same number and the same category in training and in every later table."""

import json
import types

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tabled import write

from tfgpu.data import sources
from tfgpu.data.cells import is_code, is_number, respelled, spelled, to_number
from tfgpu.errors import DataError
from tfgpu.tasks import loading
from tfgpu.tasks.tabular import TASK
from tfgpu.tasks.tabular.answers import NumberPredictor, RowPredictor
from tfgpu.tasks.tabular.columns import Spelling

BIG = 1234567890123456789


def load(name, **changes):
    options = {**TASK.options, "target": "target"} | changes.pop("options", {})
    settings = {"data_dir": None, "validation_fraction": 0.2, "image_size": None, "seed": 0}
    settings |= {"task": "tabular", "features": {"y": "target"}}
    return loading.load(name, **settings | {"options": lambda task: options} | changes)


def refused(name, **changes):
    with pytest.raises(DataError) as refusal:
        load(name, **changes)
    message = str(refusal.value)
    assert "\n" not in message
    return message


# ---- single cells --------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["1_000", "10_20", "\u0661\u0662", "a", ""])
def test_what_only_python_reads_as_a_number_is_none(cell):
    assert not is_number(cell) and not is_number(cell.encode())


def test_numbers_are_read_with_blanks_around_them():
    assert to_number(" -1.5e3 ") == -1500.0
    assert is_code("007") and is_code(" 007") and is_code("-01")
    assert not any(map(is_code, ("0", "0.5", "-0.5", "10", "0 ")))


def test_a_number_is_spelled_in_one_way():
    spellings = ("1.0", "1", "1e0", " 1 ", "1.00")
    assert {respelled(each) for each in spellings} == {spelled(1.0)} == {"1"}
    assert respelled("NA") == spelled(float("nan")) == "" and respelled("2.50") == "2.5"
    assert respelled("10000000000000000000000001") == "10000000000000000000000001"
    assert [respelled(each) for each in ("007", "red", "1_0", "inf")] == [
        "007",
        "red",
        "1_0",
        "inf",
    ]


def test_a_number_that_is_several_categories_is_refused():
    spelling = Spelling("version", ("1.1", "1.10", "1.20", "beta"))
    found = spelling(np.array([b"1.10", b"1.1", b"1.100"], object))
    assert found.tolist() == [b"1.10", b"1.1", b"1.100"]
    assert spelling(np.array([1.2])).tolist() == [b"1.20"]
    spelling = Spelling("version", ("1.10", "1.100", "beta"))
    with pytest.raises(DataError, match="'1.10' and '1.100'"):
        spelling(np.array([1.1]))


# ---- the same table, trained on and predicted ----------------------------------------------

KINDS = {
    "floats": ["1.0", "2.0", "3.5"],
    "padded": [" 1", "2 ", "3"],
    "whole": [1, 2, 3],
    "whole_with_gaps": [1, "NA", 3],
    "ids_with_gaps": [BIG, "", BIG + 1],
    "beyond_int64": [2**63, 2**63 + 1, 2**64 - 1],
    "exponents": ["1e3", "2E-1", "-0.0"],
    "codes": ["007", "010", "11"],
    "padded_codes": [" 007", " 010", " 011"],
    "underscores": ["1_0", "10", "2_0"],
    "mixed": ["1.0", "1", "A"],
    "words": ["red", "NA", " "],
    "flags": ["True", "False", "True"],
    "versions": ["1.1", "1.10", "v2"],
}


def unseen(spec, path, capsys):
    """What `predict` says of a table's categories."""
    predictor = RowPredictor(spec, types.SimpleNamespace(batch_size=8, format="csv"))
    rows = list(predictor.find([str(path)]))
    assert rows and not [row for row in rows if isinstance(row, DataError)]
    return capsys.readouterr().err, rows


def encoded(data):
    """The rows of categories of all splits."""
    splits = (data.train, data.validation, data.test)
    rows = np.concatenate([split.load_arrays()[0]["categories"] for split in splits])
    return sorted(map(tuple, rows.tolist()))


@pytest.mark.parametrize("kind", KINDS)
def test_predict_knows_the_categories_of_the_table_that_was_trained_on(tmp_path, capsys, kind):
    rows = [(KINDS[kind][i % 3], ("yes", "no")[i % 2]) for i in range(60)]
    path = write(tmp_path / "a.csv", rows, header=("cell", "target"))
    data = load(f"csv:{path}", options={"categories": "cell"})
    said, found = unseen(data.spec, path, capsys)
    assert "does not know" not in said
    assert sorted(tuple(row.x["categories"].tolist()) for row in found) == encoded(data)
    assert len(set(encoded(data))) == len(set(KINDS[kind])), "categories were merged"


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([1.0, 2.5, None] * 20),
        pa.array([1.0, 0.1, 3.0] * 20, pa.float32()),
        pa.array([BIG, None, BIG + 1] * 20),
        pa.array([2**63, 2**64 - 1, 5] * 20, pa.uint64()),
        pa.array([True, False, None] * 20),
        pa.array(["1.50", "2", "3"] * 20).cast(pa.decimal128(5, 2)),
        pa.array([1, 2, 3] * 20).cast(pa.timestamp("s")),
        pa.array(["a", None, "NA"] * 20).dictionary_encode(),
    ],
    ids=lambda cells: str(cells.type),
)
def test_predict_knows_the_categories_of_a_parquet_table(tmp_path, capsys, cells):
    path = tmp_path / "a.parquet"
    table = {"cell": cells, "target": ["yes", "no"] * 30}
    parquet.write_table(pa.table(table), path)
    data = load(f"parquet:{path}", options={"categories": "cell"})
    said, found = unseen(data.spec, path, capsys)
    assert "does not know" not in said
    assert sorted(tuple(row.x["categories"].tolist()) for row in found) == encoded(data)
    assert len(set(encoded(data))) == 3


def test_another_table_has_the_categories_whatever_its_other_cells_are(tmp_path):
    def table(name, cells):
        rows = [(cells[i % 3], ("yes", "no")[i % 2]) for i in range(60)]
        return f"csv:{write(tmp_path / name, rows, header=('cell', 'target'))}"

    options = {"categories": "cell"}
    numbers, text = table("n.csv", ["1.0", "2.0", "3.0"]), table("t.csv", ["1.0", "2.0", "A"])
    for first, other in ((numbers, text), (text, numbers)):
        fitted = load(first, options=options).spec.fitted
        data = load(other, options=options, fitted=fitted, strict=False)
        assert len(set(encoded(data)) - {(0,)}) == 2


# ---- whole numbers that float64 would round ------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        [2**63 + i for i in range(6)],
        [10**25 + i for i in range(6)],
        ["", *(BIG + i for i in range(5))],
        ["NA", *(BIG + i for i in range(5))],
        [" 1234567890123456789", *(BIG + i for i in range(1, 6))],
    ],
    ids=["beyond int64", "huge", "beside a gap", "beside NA", "beside a blank"],
)
def test_large_ids_stay_apart(tmp_path, ids):
    rows = [(ids[i % 6], i % 7) for i in range(40)]
    path = write(tmp_path / "a.csv", rows, header=("user_id", "rating"))
    source = sources.open_source(f"csv:{path}")
    found = source.split("train", None).with_missing().load(("user_id",))["user_id"]
    expected = ["" if each == "NA" else str(each).strip() for each in ids]
    assert [each.decode() for each in found[:6]] == expected


def test_large_ids_of_parquet_stay_apart_where_a_later_chunk_has_gaps(tmp_path):
    path = tmp_path / "a.parquet"
    ids = [BIG + i for i in range(5)] + [7, None]
    parquet.write_table(pa.table({"user_id": ids}), path, row_group_size=5)
    source = sources.open_source(f"parquet:{path}")
    found = source.split("train", None).with_missing().load(("user_id",))["user_id"]
    assert [each.decode() for each in found] == ["" if i is None else str(i) for i in ids]


def test_whole_numbers_that_became_text_are_named_with_the_way_back(tmp_path):
    rows = [("" if i == 3 else BIG + i, i % 5, i % 2) for i in range(60)]
    path = write(tmp_path / "a.csv", rows, header=("nanoseconds", "b", "target"))
    why = load(f"csv:{path}").spec.fitted["left_out"]["nanoseconds"]
    assert "--task_options=numbers=nanoseconds" in why
    found = load(f"csv:{path}", options={"numbers": "nanoseconds"}).spec.fitted["numbers"]
    assert "nanoseconds" in [each["column"] for each in found]


# ---- beyond float32 ------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["a", "target"])
def test_numbers_beyond_float32_are_refused_like_infinity(tmp_path, column):
    rows = [[i / 7, i / 3] for i in range(60)]
    rows[4][("a", "target").index(column)] = "1.7976931348623157e308"
    path = write(tmp_path / "a.csv", rows, header=("a", "target"))
    said = refused(f"csv:{path}")
    assert "line 6" in said and "infinite in float32" in said and "e308" in said
    numbers = {"a": [row[0] for row in rows], "target": [float(row[1]) for row in rows]}
    numbers["a"] = [float(each) for each in numbers["a"]]
    parquet.write_table(pa.table(numbers), tmp_path / "a.parquet")
    assert "infinite in float32" in refused(f"parquet:{tmp_path / 'a.parquet'}")


def test_predict_refuses_a_number_beyond_float32(tmp_path):
    path = write(tmp_path / "a.csv", [(i / 7, i % 2) for i in range(60)], header=("a", "target"))
    spec = load(f"csv:{path}").spec
    other = write(tmp_path / "b.csv", [("1e39",), ("1_0",), ("2",)], header=("a",))
    predictor = RowPredictor(spec, types.SimpleNamespace(batch_size=8, format="csv"))
    large, code, good = map(str, predictor.find([str(other)]))
    assert "line 2" not in good and "infinite in float32" in large and "'1_0'" in code


# ---- names ---------------------------------------------------------------------------------


def test_the_place_of_a_row_stays_where_the_target_is_called_path(tmp_path):
    path = write(tmp_path / "a.csv", [(i / 7, i / 3) for i in range(60)], header=("a", "path"))
    options = {"target": "path"}
    spec = load(f"csv:{path}", features={"y": "path"}, options=options).spec
    predictor = NumberPredictor(spec, types.SimpleNamespace(batch_size=8, format="jsonl"))
    rows = list(predictor.find([str(path)]))[:1]
    (line,) = predictor.lines(rows, np.array([[2.0]]))
    assert json.loads(line) == {"path": f"{path}:2", "target": 2.0}
    assert list(predictor.header()) == ["path", "target"]


def test_a_class_of_two_lines_is_refused(tmp_path):
    rows = [(i / 7, ("a\nb", "c")[i % 2]) for i in range(60)]
    path = write(tmp_path / "a.csv", rows, header=("a", "target"))
    assert "the class 'a\\nb' of" in refused(f"csv:{path}")
