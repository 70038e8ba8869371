"""The table of what workers do about faults is that of the results, which are what is promised."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

import bad_starts  # noqa: E402


@pytest.fixture(scope="module")
def found():
    path = ROOT / "experiments" / "results" / "bad_starts.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_table_is_that_of_the_results(found):
    page = bad_starts.PAGE.read_text(encoding="utf-8")
    assert bad_starts.with_table(page, found) == page


def test_every_case_was_measured(found):
    assert list(found["cases"]) == [case.what for case in bad_starts.CASES]


def test_each_worker_ended_with_one_line_within_15_seconds(found):
    for what, runs in found["cases"].items():
        for run in runs:
            assert max(run["seconds"]) < 15, what
            for code, line in zip(run["codes"], run["said"], strict=True):
                assert code in (2, 6, 130, 143, -9), what
                assert line.startswith("tfgpu: ") == (code != -9), what
