"""The countdown over a list of jobs; Console and Stopwatch are tested with the progress of runs."""

import io

from tfgpu.cli.console import Console, Countdown


def test_the_time_left_follows_the_pace_so_far():
    now = [0.0]
    out = io.StringIO()
    countdown = Countdown(Console(progress="plain", file=out), [10, 10, 20], clock=lambda: now[0])
    with countdown:
        assert countdown.left == 40
        now[0] = 5.0  # Half of what was expected.
        countdown.end("first")
        assert countdown.left == 15
        now[0] = 15.0
        countdown.end("second")
        assert countdown.left == 15
        countdown.end("third")
    assert countdown.left == 0
    assert out.getvalue().splitlines() == [
        "1/3  first  15.0 s left",
        "2/3  second  15.0 s left",
        "3/3  third  0.00 s left",
    ]


def test_without_progress_nothing_is_shown():
    out = io.StringIO()
    with Countdown(Console(progress="none", file=out), [1.0]) as countdown:
        countdown.begin("a job")
        countdown.end("a job")
    assert out.getvalue() == ""
