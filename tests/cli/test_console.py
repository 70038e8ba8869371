"""The countdown over a list of jobs; Console and Stopwatch are tested with the progress of runs."""

import io

from tfgpu.cli.console import Console, Countdown, summary


def test_the_closing_lines_tell_how_gpus_were_used():
    hardware = {
        "energy_joules": 12345.6,
        "figures": [
            {"figure": "cpu", "mean": 50.0},
            {"figure": "gpu0_utilization", "mean": 87.4},
            {"figure": "gpu11_utilization", "mean": 3.0},
        ],
    }
    said = summary({"hardware": hardware}, where={}, run_dir="runs/a").splitlines()
    assert said[0] == (
        "GPU 0 in use 87 % of the time, GPU 11 in use 3 % of the time, 12,346 J of energy"
    )
    nothing = {"energy_joules": None, "figures": [{"figure": "cpu", "mean": 50.0}]}
    assert summary({"hardware": nothing}, where={}, run_dir="a") == "everything is in a"


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
