"""What a launch makes of the ends of its workers."""

import signal
import time

import pytest

from tfgpu.errors import Interrupted
from tfgpu.launch import supervise
from tfgpu.launch.supervise import Ended


class Workers:
    """Two workers that end as a script says: for each start, a list of ends for each poll."""

    count = 2

    def __init__(self, *starts):
        self.starts = list(starts)
        self.started, self.signals, self.killed = [], [], 0
        self._ends = []

    def start(self, *, again, asked):
        self.started.append(again)
        self._ends = list(self.starts.pop(0))

    def poll(self, seconds):
        if not self._ends:
            time.sleep(0.01)
            return []
        ends = self._ends.pop(0)
        return ends() if callable(ends) else [Ended(*end) for end in ends]

    def send(self, number):
        self.signals.append(number)

    def kill(self):
        self.killed += 1


def raised(number):
    """A poll during which a signal arrives."""
    return lambda: signal.raise_signal(number) or []


def outcome(workers, **more):
    """Exit code and message."""
    try:
        supervise.run(workers, **{"max_restarts": 0, "resume": "AGAIN"} | more)
    except (supervise.Failure, Interrupted) as error:
        return error.exit_code, str(error)
    return 0, ""


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    for name in ("_GRACE_SECONDS", "_SAVE_SECONDS", "_END_SECONDS", "_KILL_SECONDS"):
        monkeypatch.setattr(supervise, name, 0.1)


def test_all_at_0_is_0():
    assert outcome(Workers([[(1, 0)], [(0, 0)]])) == (0, "")


@pytest.mark.parametrize(
    ("ends", "code", "culprit"),
    [
        ([(1, 2), (0, 2)], 2, "worker 1"),
        ([(0, 0), (1, 5)], 5, "worker 1"),
        # The other one noticed before the one at fault had ended.
        ([(0, 6), (1, 5)], 5, "worker 1"),
        ([(0, 6), (1, 6)], 6, "worker 0"),
        ([(1, -9), (0, 6)], 6, "worker 1 was killed by SIGKILL"),
        # What the others die of when one was killed is no reason of their own.
        ([(1, -9), (0, 1)], 6, "worker 1"),
        ([(0, 6), (1, -11)], 6, "worker 1 was killed by SIGSEGV"),
        ([(1, 143), (0, 143)], 143, "worker 1"),
    ],
)
def test_the_exit_code_is_that_of_the_worker_at_fault(ends, code, culprit):
    found, said = outcome(Workers([[end] for end in ends]))
    assert found == code
    assert culprit in said


def test_a_lost_worker_says_how_to_go_on():
    assert outcome(Workers([[(1, -9)], [(0, 6)]]))[1].endswith("continue with: AGAIN")


def test_a_fault_of_its_own_would_come_again():
    assert "AGAIN" not in outcome(Workers([[(1, 3)], [(0, 3)]]))[1]


def test_workers_that_outlive_a_failed_one_are_asked_and_then_killed():
    workers = Workers([[(1, 2)]])
    assert outcome(workers)[0] == 2
    assert workers.signals == [signal.SIGTERM]
    assert workers.killed


def test_a_worker_that_has_finished_does_not_hurry_the_others():
    """The chief tests and saves after the others are done."""
    nothing = [lambda: time.sleep(0.01) or []] * 60
    workers = Workers([[(1, 0)], *nothing, [(0, 0)]])
    assert outcome(workers) == (0, "")
    assert workers.signals == []


@pytest.mark.parametrize("first", [(1, -9), (1, 6)])
def test_a_lost_worker_starts_all_again(first, capsys):
    workers = Workers([[first], [(0, 6)]], [[(0, 0)], [(1, 0)]])
    assert outcome(workers, max_restarts=1) == (0, "")
    assert workers.started == [False, True]
    (line,) = capsys.readouterr().out.splitlines()
    assert "worker 1" in line and "restart 1 of at most 1" in line


def test_the_others_are_ended_at_once_when_all_start_again(monkeypatch):
    monkeypatch.setattr(supervise, "_GRACE_SECONDS", 60)
    workers = Workers([[(1, -9)]], [[(0, 0)], [(1, 0)]])
    started = time.monotonic()
    assert outcome(workers, max_restarts=1) == (0, "")
    assert time.monotonic() - started < 30
    assert workers.signals == []


def test_a_worker_that_stands_still_is_ended_when_all_start_again():
    workers = Workers([[(0, 6)]], [[(0, 0)], [(1, 0)]])
    assert outcome(workers, max_restarts=1) == (0, "")
    assert workers.killed and workers.signals == []


def test_a_reason_of_its_own_is_waited_for_before_all_start_again():
    workers = Workers([[(0, 6)], [(1, 3)]])
    assert outcome(workers, max_restarts=1)[0] == 3
    assert workers.started == [False]


def test_restarts_are_counted():
    lost = [[(1, -9)], [(0, 6)]]
    workers = Workers(lost, lost, lost)
    code, said = outcome(workers, max_restarts=2)
    assert code == 6 and "after 2 restarts" in said
    assert len(workers.started) == 3


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 130, 143])
def test_a_worker_that_failed_or_was_stopped_starts_nothing_again(code):
    workers = Workers([[(1, code)], [(0, code)]])
    assert outcome(workers, max_restarts=5)[0] == code
    assert workers.started == [False]


def test_a_start_that_failed_by_bad_luck_is_repeated():
    workers = Workers([[(1, 2)], [(0, 2)]], [[(0, 0)], [(1, 0)]])
    assert outcome(workers, start_again=lambda: True) == (0, "")
    assert workers.started == [False, False]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_passed_on_once(number, code):
    workers = Workers([raised(number), [(0, code)], [(1, code)]])
    found, said = outcome(workers, max_restarts=3)
    assert found == code and said.endswith("continue with: AGAIN")
    assert workers.signals == [number]
    assert workers.started == [False]


def test_a_second_signal_kills():
    workers = Workers([raised(signal.SIGTERM), raised(signal.SIGTERM)])
    assert outcome(workers)[0] == 143
    assert workers.killed
