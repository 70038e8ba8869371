"""Interleaved timing: how measured processes answer, fail and end."""

import os
import sys

import pytest

from tfgpu.bench import interleaved_timing
from tfgpu.bench.interleaved_timing import MeasuredProcess, MeasurementFailed

ECHO = """
import json, sys
from tfgpu.bench import interleaved_timing
print("chatter")
interleaved_timing.answer("ready")
for line in sys.stdin:
    request = json.loads(line)
    if request == "fail":
        interleaved_timing.answer({"error": "out of memory", "exit_code": 5})
    elif request == "die":
        sys.exit("the last word")
    elif request == "abort":
        import os
        os.abort()
    elif request != "sleep":
        interleaved_timing.answer(request)
"""


@pytest.fixture
def measured():
    root = os.path.dirname(os.path.dirname(interleaved_timing.__file__))
    environment = os.environ | {"PYTHONPATH": os.path.dirname(root)}
    made = MeasuredProcess([sys.executable, "-c", ECHO], environment=environment)
    assert made.read(limit=30) == "ready"
    yield made
    made.close()


def test_answers_come_in_order_and_chatter_is_passed_over(measured):
    assert [measured.ask(number) for number in range(3)] == [0, 1, 2]


def test_an_error_keeps_its_exit_code_and_the_process_lives_on(measured):
    with pytest.raises(MeasurementFailed, match="out of memory") as caught:
        measured.ask("fail")
    assert caught.value.exit_code == 5
    assert measured.ask("next") == "next"


@pytest.mark.parametrize(
    ("request_", "said"), [("die", "exit code 1: the last word"), ("abort", "SIGABRT")]
)
def test_a_process_that_ends_says_how(measured, request_, said):
    with pytest.raises(MeasurementFailed, match=said):
        measured.ask(request_, limit=30)


def test_one_that_does_not_answer_is_not_waited_for_for_ever(measured):
    with pytest.raises(MeasurementFailed, match="no answer within 0.1 s"):
        measured.ask("sleep", limit=0.1)


def test_subjects_take_turns():
    order = []

    def named(name):
        def work():
            order.append(name)
            return float(len(order))

        return work

    rates = interleaved_timing.interleave([named("a"), named("b")], rounds=3)
    assert order == ["a", "b"] * 3
    assert rates == [[1, 3, 5], [2, 4, 6]]


def test_ratios_are_those_of_neighbours():
    # The machine became half as fast after the second round, for both.
    assert interleaved_timing.compare([20, 22, 10, 11], [10, 11, 5, 5.5]) == {
        "median": 2,
        "low": 2,
        "high": 2,
    }


def test_the_spread_is_the_middle_half():
    assert interleaved_timing.spread([5, 1, 4, 2, 3]) == {"median": 3, "low": 2, "high": 4}
    assert interleaved_timing.spread([7]) == {"median": 7, "low": 7, "high": 7}


def test_the_first_call_is_not_counted():
    now = [0.0]
    takes = iter([100.0, 1.0, 3.0, 2.0])

    def work():
        now[0] += next(takes)

    assert interleaved_timing.repeat(work, seconds=5, clock=lambda: now[0]) == 2.0
