"""`csv:FILE`: what columns are, and the bad input that users have."""

import gzip
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from worded import texts, write

from tfgpu.data.csv_source import open_source
from tfgpu.errors import DataError, RequestError
from tfgpu.tasks import loading

ROWS = texts(40)


def kinds(path):
    schema = open_source(str(path)).schema
    return {name: feature.kind for name, feature in schema.features.items()}


def loaded(path, *names, split="train"):
    return open_source(str(path)).split(split, None).load(names)


def refused(path, kind=DataError, **changes):
    settings = {"validation_fraction": 0.0, "image_size": None, "seed": 0, "data_dir": None}
    with pytest.raises(kind) as refusal:
        loading.load(f"csv:{path}", **settings | changes)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_a_text_and_a_class_are_found(tmp_path):
    path = write(tmp_path / "a.csv", ROWS)
    assert kinds(path) == {"text": "text", "label": "class"}
    source = open_source(str(path))
    assert source.schema.supervised == ("text", "label")
    assert source.schema.features["label"].class_names == ("bad", "good")
    found = loaded(path, "text", "label")
    assert [text.decode() for text in found["text"]] == [text for text, _ in ROWS]
    assert [("bad", "good")[label] for label in found["label"]] == [label for _, label in ROWS]


def test_columns_of_ratings_are_ids_and_numbers(tmp_path):
    rows = [(i % 7, f"b{i}", i % 5 + 1, 0.5 * i, 881250949 + i, "00501") for i in range(30)]
    header = ("user", "item", "rating", "weight", "timestamp", "zip_code")
    path = write(tmp_path / "ratings.csv", rows, header=header)
    features = open_source(str(path)).schema.features
    found = {name: (each.kind, each.dtype) for name, each in features.items()}
    assert found == {
        "user": ("id", "int64"),
        "item": ("id", "string"),
        "rating": ("number", "int64"),
        "weight": ("number", "float64"),
        "timestamp": ("number", "int64"),
        "zip_code": ("class", "int64"),
    }
    assert features["zip_code"].class_names == ("00501",)
    assert features["rating"].class_names == ("1", "2", "3", "4", "5")
    found = loaded(path, "user", "weight", "timestamp")
    np.testing.assert_array_equal(found["user"], [row[0] for row in rows])
    np.testing.assert_array_equal(found["weight"], [row[3] for row in rows])
    np.testing.assert_array_equal(found["timestamp"], [row[4] for row in rows])


def test_many_records_at_once_are_those_one_after_another(tmp_path):
    records = open_source(str(write(tmp_path / "a.csv", ROWS))).split("train", None)
    records = records.take(np.array([7, 3, 20]))
    one = records.examples(("text", "label"), lambda found: (found["text"], found["label"]))
    texts, labels = one.load_arrays()
    together = records.load(("text", "label"))
    np.testing.assert_array_equal(texts, together["text"])
    np.testing.assert_array_equal(labels, together["label"])


def test_a_byte_order_mark_changes_nothing(tmp_path):
    plain = write(tmp_path / "plain.csv", ROWS)
    marked = write(tmp_path / "marked.csv", ROWS, encoding="utf-8-sig")
    assert kinds(marked) == kinds(plain)
    np.testing.assert_array_equal(loaded(marked, "text")["text"], loaded(plain, "text")["text"])


def test_quoted_line_breaks_commas_and_quotes_are_part_of_a_cell(tmp_path):
    rows = [('one\ntwo, "three"', "good"), ("four\r\nfive", "bad")] * 4
    found = loaded(write(tmp_path / "a.csv", rows), "text")["text"]
    assert [text.decode() for text in found[:2]] == ['one\ntwo, "three"', "four\r\nfive"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_are_found(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    lines = [f"{text}, really{delimiter}{label}" for text, label in ROWS]
    path.write_text("\n".join([f"text{delimiter}label", *lines, ""]))
    assert kinds(path) == {"text": "text", "label": "class"}


@pytest.mark.parametrize(("line", "delimiter"), [("sep=;", ";"), ('"sep=|"', "|"), ("SEP=,", ",")])
def test_the_line_of_excel_before_the_header_says_what_parts_cells(tmp_path, line, delimiter):
    """It was taken for the header, and the header for a row."""
    path = tmp_path / "a.csv"
    lines = [f"{text}{delimiter}{label}" for text, label in ROWS]
    path.write_text("\r\n".join([line, f"text{delimiter}label", *lines, ""]))
    assert kinds(path) == {"text": "text", "label": "class"}
    assert len(loaded(path, "text")["text"]) == len(ROWS)


def test_the_cell_that_keeps_a_column_from_being_images_is_named(tmp_path):
    rows = [(f"{i}.png" if i != 3 else "", i % 2) for i in range(20)]
    path = write(tmp_path / "a.csv", rows, header=("file", "label"))
    described = open_source(str(path)).schema.features["file"].described
    assert described == f"strings ({path}, line 5: '' is no image file)"


def test_a_folder_holds_a_table_for_each_split(tmp_path):
    write(tmp_path / "train.csv", ROWS[:30])
    write(tmp_path / "test.csv", [*ROWS[30:], ("new here", "bad")])
    found = loaded(tmp_path, "text", "label", split="test")
    assert found["text"][-1] == b"new here" and len(found["text"]) == 11
    write(tmp_path / "test.csv", ROWS[30:], header=("text", "class"))
    assert "test.csv has other columns than" in refused(tmp_path)


def test_an_empty_cell_is_refused_when_its_column_is_used(tmp_path):
    rows = [(*row, "" if i % 9 == 5 else "x") for i, row in enumerate(ROWS)]
    path = write(tmp_path / "a.csv", rows, header=("text", "label", "note"))
    assert len(loaded(path, "text", "label")["text"]) == 40
    rows[12] = ("two\nlines", " ", "x")
    write(path, rows, header=("text", "label", "note"))
    said = refused(path, features={"x": "text", "y": "label"})
    assert "a.csv, line 15: the cell of the column 'label' is empty" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text,label\nna\xefve,good\n", "not UTF-8 (line 2, byte 0xef)"),
        ("text,label\na b,good\n".encode("utf-16"), "is UTF-16"),
        (b"text,label\na b,good,more\n", "line 2: 3 cells, and the header has 2 columns"),
        (b'text,label\n"a b,good\n', "unexpected end of data"),
        (b"text,text\na b,good\n", "two columns 'text'"),
        (b"text,label\n", "has no row below its header"),
        (b"", "is empty"),
        (b"\ntext,label\na b,good\n", "the first line is empty, and must name the columns"),
        (b"sep=;\ntext;label\na b;good;more\n", "line 3: 3 cells, and the header has 2 columns"),
        (b"text,label\na\0b,good\n", "line 2: a zero byte"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, said):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert said in refused(path)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    path = write(tmp_path / "a.csv", ROWS)
    said = refused(path, RequestError, features={"x": "texts", "y": "label"})
    assert "no feature 'texts' (did you mean 'text'?); it has text: text, label: 2 classes" in said


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "there is no file" in refused(tmp_path / "a.csv", RequestError)
    assert "has no train.csv" in refused(tmp_path, RequestError)


@pytest.mark.parametrize("classes", [("bad", "good", "middling"), (0, 1, 2)], ids=["text", "whole"])
def test_a_class_that_only_the_test_has_is_refused(tmp_path, classes):
    rows = [(text, i, classes[i % 2]) for i, (text, _) in enumerate(ROWS)]
    header = ("text", "weight", "target")
    write(tmp_path / "train.csv", rows, header=header)
    write(tmp_path / "test.csv", [*rows[:6], ("new here", 1, classes[2])], header=header)
    for task in ("text", "tabular"):
        options = {"goal": "classification"} if task == "tabular" else {}
        changes = {"task": task, "options": lambda task, some=options: {**task.options, **some}}
        said = refused(tmp_path, features={"y": "target"}, **changes)
        assert f"class {str(classes[2])!r} of 'target' is in the test split and not in" in said


def test_numbers_that_only_the_test_has_are_welcome(tmp_path):
    rows = [(i / 3, i % 5) for i in range(40)]
    write(tmp_path / "train.csv", rows, header=("a", "target"))
    write(tmp_path / "test.csv", [(0.5, 7), (0.7, 8)], header=("a", "target"))
    data = loading.load(
        f"csv:{tmp_path}", data_dir=None, validation_fraction=0.1, image_size=None, seed=0
    )
    assert data.test.num_examples == 2 and not data.class_names


def test_images_are_told_by_any_that_is_there(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    rows = [("gone.png", "x"), ("b.png", "y"), ("b.png", "x")]
    path = write(tmp_path / "a.csv", rows, header=("image", "label"))
    assert "gone.png is not there, which row 1 names" in refused(path)
    (tmp_path / "b.png").unlink()
    assert kinds(path)["image"] != "image"


def test_separators_within_quotes_of_the_header_part_nothing(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('"Length, in cm, of\nit";"Width, in cm";label\n1;2;x\n3;4;y\n')
    names = list(open_source(str(path)).schema.features)
    assert names == ["Length, in cm, of\nit", "Width, in cm", "label"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'"a"b,c\n1,2\n', "line 1: "),
        (gzip.compress(b"a,b\n1,2\n"), "is compressed (gzip): unpack it"),
        (b"PK\x03\x04\xff", "is a ZIP archive or an Excel workbook"),
    ],
    ids=["header", "gzip", "zip"],
)
def test_what_cannot_be_read_says_what_to_do(tmp_path, content, said):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert said in refused(path)


_MILLION = """
import resource, sys
from tfgpu.data.csv_source import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
records = open_source(sys.argv[1]).split("train", None)
records.select(("user", "item", "rating"))
print(records.num_examples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_million_rows_take_some_hundred_megabytes(tmp_path):
    path = tmp_path / "big.csv"
    with open(path, "w") as file:
        file.write("user,item,rating,title\n")
        for i in range(1_000_000):
            file.write(f"{i * 7919 % 100003},b{i * 31 % 5003},{i % 5 + 1},a title {i}\n")
    argv = [sys.executable, "-c", _MILLION, str(path)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) == 1_000_000 and int(said[1]) < 600_000
