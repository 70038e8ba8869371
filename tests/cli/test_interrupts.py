"""Signals whose exception is lost still stop what they were sent to."""

import signal
import weakref

import pytest

from tfgpu.cli import interrupts
from tfgpu.errors import Interrupted


class _Something:
    pass


def _send_where_python_drops_exceptions(number):
    something = _Something()
    reference = weakref.ref(something, lambda _: signal.raise_signal(number))
    del something
    assert reference() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_inside_a_weak_references_callback_is_found_by_the_check(number):
    with pytest.raises(Interrupted) as stopped, interrupts.caught() as signals:
        _send_where_python_drops_exceptions(number)
        signals.check()
    assert stopped.value.signal == number


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_was_lost_before_training_stops_it_before_it_begins():
    called = []
    with pytest.raises(Interrupted), interrupts.caught() as signals:
        _send_where_python_drops_exceptions(signal.SIGTERM)
        with signals.deferred(called.append):
            called.append("training")
    assert called == []


def test_without_a_signal_the_check_passes():
    with interrupts.caught() as signals:
        signals.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_was_lost_outside_stops_what_is_nested_inside():
    with pytest.raises(Interrupted) as stopped, interrupts.caught():
        _send_where_python_drops_exceptions(signal.SIGTERM)
        with interrupts.caught():
            pytest.fail("it began")
    assert stopped.value.signal == signal.SIGTERM


def test_a_signal_that_a_library_turns_into_an_error_of_its_own_is_still_a_signal():
    with pytest.raises(Interrupted) as stopped, interrupts.caught():
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            raise AttributeError("of the library") from error
    assert stopped.value.signal == signal.SIGINT


def test_an_error_after_a_deferred_signal_stays_that_error():
    with pytest.raises(AttributeError), interrupts.caught() as signals:
        with signals.deferred(lambda number: None):
            signal.raise_signal(signal.SIGINT)
        raise AttributeError("a bug")
