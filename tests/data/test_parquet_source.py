"""`parquet:FILE`: the features of the same table as CSV, arrays, and bad input."""

import builtins

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from rated import interactions
from tabled import HEADER, homes
from tabled import write as write_csv

from tfgpu.data import sources
from tfgpu.errors import DataError, RequestError
from tfgpu.tasks import loading
from tfgpu.tasks.tabular import TASK


def write(path, columns):
    """Writes a table of columns by name; returns its path."""
    parquet.write_table(pa.table(columns), path)
    return path


def open_both(folder, header, rows):
    """The same table as CSV and as Parquet."""
    table = write_csv(folder / "a.csv", rows, header=header)
    columns = {
        name: [None if cell == "" else cell for cell in cells]
        for name, cells in zip(header, zip(*rows, strict=True), strict=True)
    }
    other = write(folder / "a.parquet", columns)
    return sources.open_source(f"csv:{table}"), sources.open_source(f"parquet:{other}")


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (HEADER, homes(80)),
        (("user", "item", "rating", "timestamp"), interactions(80)),
        (("flag", "label", "zip"), [(i % 3 == 0, i % 4, f"0{i % 5}") for i in range(40)]),
        (("name", "labels"), [(f"n{i}", ("a|b", "b", "")[i % 3]) for i in range(30)]),
    ],
)
def test_features_and_records_are_those_of_the_csv(tmp_path, header, rows):
    ours, theirs = open_both(tmp_path, header, rows)
    assert ours.schema.features == theirs.schema.features
    assert ours.schema.supervised == theirs.schema.supervised
    names = [name for name, each in ours.schema.features.items() if each.kind != "classes"]
    found, expected = (
        source.split("train", None).with_missing().load(names) for source in (theirs, ours)
    )
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name])
    for name in set(header) - set(names):
        lists = [source.split("train", None).select((name,)) for source in (theirs, ours)]
        for i in range(len(rows)):
            np.testing.assert_array_equal(lists[0](i)[name], lists[1](i)[name])


def test_lists_of_one_length_are_arrays_for_any_task(tmp_path):
    random = np.random.RandomState(0)
    points = random.normal(size=(120, 4)).astype(np.float32)
    labels = np.where(points[:, 1] > 0, "up", "down")
    lists = pa.FixedSizeListArray.from_arrays(pa.array(points.reshape(-1)), 4)
    path = write(tmp_path / "a.parquet", {"points": lists, "label": labels.tolist()})
    data = loading.load(
        f"parquet:{path}",
        data_dir=None,
        validation_fraction=0.1,
        image_size=None,
        seed=0,
        options=lambda task: task.options,
    )
    assert data.task is TASK and data.spec.x["numbers"].shape == (4,)
    names = [(each["column"], each["index"]) for each in data.spec.fitted["numbers"]]
    assert names == [("points", i) for i in range(4)]
    x, y = data.train.load_arrays()
    assert ((x["numbers"][:, 1] > -data.spec.fitted["numbers"][1]["mean"]) == (y == 1)).mean() > 0.9


def refused(path, *names, kind=DataError):
    with pytest.raises(kind) as refusal:
        records = sources.open_source(f"parquet:{path}").split("train", None)
        records.select(names)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path):
    path = write(tmp_path / "a.parquet", {"x": [1.0, None, 3.0], "y": [[1], [2], [3, 4]]})
    said = refused(path)
    assert "a.parquet, row 3: the list of the column 'y' has 2 numbers" in said
    path = write(tmp_path / "a.parquet", {"x": [1.0, None, 3.0], "y": [{"a": 1}] * 3})
    assert "a.parquet, row 2: the cell of the column 'x' is empty" in refused(path, "x")
    assert "'y' is of the type struct<a: int64>, which is not read" in refused(path, "y")
    path = write(tmp_path / "a.parquet", {"x": [1.0, float("-inf")]})
    assert "row 2: the cell of the column 'x' is infinite (-inf)" in refused(path, "x")
    path = write(tmp_path / "a.parquet", {"x": pa.array([], pa.int64())})
    assert "has no row" in refused(path)
    path.write_bytes(b"PAR1 no such thing")
    assert "a.parquet cannot be read as Parquet" in refused(path)
    assert "there is no file" in refused(tmp_path / "b.parquet", kind=RequestError)


def test_a_folder_holds_a_file_for_each_split(tmp_path):
    write(tmp_path / "train.parquet", {"x": [1, 2, 3]})
    write(tmp_path / "test.parquet", {"x": [4]})
    source = sources.open_source(f"parquet:{tmp_path}")
    assert source.split("test", None).load(("x",))["x"].tolist() == [4]
    write(tmp_path / "test.parquet", {"x": ["a"]})
    assert "test.parquet has other columns than" in refused(tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"x": [1, 2]})
    own = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return own(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install 'tfgpu[parquet]'" in refused(path, kind=RequestError)
