"""Charts and tables of a report: what they show, where the values are odd."""

import math

import pytest

from tfgpu.report import tables
from tfgpu.report.charts import Series, figure, line_chart


def chart(*points, **more):
    return line_chart("loss", [Series("a", points, **more)])


def test_points_go_where_their_values_are():
    made = chart((0, 0.0), (5, 5.0), (10, 10.0))
    (path,) = made.lines[0].paths
    places = [tuple(map(float, place.split(","))) for place in path.split()]
    assert places[0][0] == made.left and places[-1][0] == made.right
    assert places[1] == pytest.approx([(made.left + made.right) / 2] + [places[1][1]])
    assert places[1][1] == pytest.approx((places[0][1] + places[2][1]) / 2, abs=0.11)
    assert places[0][1] > places[2][1]  # Upwards is less.


@pytest.mark.parametrize("broken", [None, math.nan, math.inf])
def test_what_is_not_finite_leaves_a_gap(broken):
    made = chart((1, 3.0), (2, 2.0), (3, broken), (4, 1.0), (5, broken))
    assert len(made.lines[0].paths) == 1 and len(made.lines[0].dots) == 1
    assert made.words == ("a: 3 at epoch 1, 1 at epoch 4; lowest 1 at 4, highest 3 at 1.",)


def test_nothing_to_draw_is_no_chart():
    assert line_chart("loss", []) is None
    assert chart((1, None), (2, math.nan)) is None


def test_one_point_is_a_dot():
    made = chart((1, 0.5))
    assert made.lines[0].paths == () and len(made.lines[0].dots) == 1


def test_a_wide_range_is_logarithmic_and_a_narrow_one_is_not():
    wide = chart((1, 1e-3), (2, 1e9))
    assert wide.logarithmic and wide.y_ticks[0][1] == "0.001"
    assert not chart((1, 0.0), (2, 1e9)).logarithmic
    assert not chart((1, 1.0), (2, 900.0)).logarithmic


@pytest.mark.parametrize("values", [(0.1, 0.94), (7, 7), (-3e-7, 4e12), (0, 0), (1e300, 2e300)])
def test_ticks_lie_within_the_axes_and_are_few(values):
    made = chart((1, values[0]), (30, values[1]))
    for at, label in made.y_ticks:
        assert made.top - 0.1 <= at <= made.bottom + 0.1 and label
    assert 2 <= len(made.y_ticks) <= 13
    assert all("." not in label for _, label in made.x_ticks)  # Epochs are whole.


def test_a_band_goes_round_its_line():
    made = chart((1, 2.0), (2, 3.0), band=[(1, 1.0, 4.0), (2, 2.0, 5.0)])
    assert len(made.lines[0].band.split()) == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (3.0, "3"),
        (12345.6, "12,346"),
        (0.12345, "0.1235"),
        (1e-9, "1.000e-09"),
        (2.5e9 + 0.5, "2.500e+09"),
    ],
)
def test_figures_are_for_people(value, text):
    assert figure(value) == text


def test_an_object_of_any_task_becomes_tables():
    found = {
        "accuracy": 0.5,
        "classes": [{"name": "cat", "f1": None}, {"name": "dog", "f1": 0.25, "more": True}],
        "confusion_matrix": [[1, 2], [3, 4]],
        "by_time": {"week": 1},
        "odd": [1, "x", {}],
    }
    made = {table.caption: table for table in tables.of_json("digits", found)}
    assert made["digits: figures"].rows == [["accuracy", "0.5"]]
    assert made["digits: classes"].head == ["name", "f1", "more"]
    assert made["digits: classes"].rows == [["cat", "-", "-"], ["dog", "0.25", "true"]]
    # The classes name the rows of a matrix with as many.
    matrix = made["digits: confusion matrix"]
    assert matrix.head == ["row \\ column", "cat", "dog"]
    assert matrix.rows == [["cat", "1", "2"], ["dog", "3", "4"]]
    assert made["digits: by time"].rows == [["week", "1"]]
    assert len(made) == 4


def test_long_tables_are_cut_and_say_so():
    (made,) = tables.of_json("a", {"rows": [{"i": i} for i in range(1000)]})
    assert len(made.rows) == tables.MOST_ROWS and "of 1,000 rows" in made.note and made.folded


@pytest.mark.parametrize("content", ["words", "| a |\n| b |\n| c |", "| a | b |\n|---|---|\n| c |"])
def test_a_text_that_is_no_table_is_none(content):
    assert tables.of_markdown("a", content) is None
