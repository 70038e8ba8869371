"""The verdict on made-up timings of each kind."""

import dataclasses

import pytest

from tfgpu.bench import verdict
from tfgpu.bench.verdict import Measured, Timings

# 10 ms a step; 1 GFLOP and 10 MB on a device of 1 TFLOP/s and 100 GB/s: 1 ms and 0.1 ms at best.
BALANCED = Timings(
    data=1e-3,
    compute=10e-3,
    both=10e-3,
    fixed=1e-3,
    flops=1e9,
    traffic=1e7,
    peak_flops=1e12,
    bandwidth=1e11,
)


def timings(**changed):
    return dataclasses.replace(BALANCED, **changed)


def change(factor, gain, *, low=None, flags=None):
    low = gain - 0.01 if low is None else low
    return Measured(
        factor=factor,
        flags=flags or f"--{factor}=other",
        gain={"median": gain, "low": low, "high": gain + 0.01},
    )


@pytest.mark.parametrize(
    ("made_up", "bound"),
    [
        (timings(), "compute"),
        (timings(data=30e-3, both=30e-3), "input"),
        # The processor does both: input takes its time although it would keep up alone.
        (timings(data=9e-3, both=25e-3), "input"),
        (timings(fixed=8e-3), "launch"),
        (timings(traffic=1e9), "memory"),
        # The same traffic beside ten times the operations.
        (timings(traffic=1e9, flops=1e11), "compute"),
        (timings(fixed=None), "compute"),
    ],
)
def test_the_bound_is_the_largest_part_of_the_step(made_up, bound):
    assert verdict.judge(made_up).bound == bound


@pytest.mark.parametrize(
    "made_up",
    [
        timings(),
        timings(both=30e-3),
        timings(fixed=8e-3),
        timings(fixed=-1e-3),  # A straight line through noisy times may cross zero below it.
        timings(fixed=20e-3),
        timings(both=9e-3),  # Noise: training faster than its computation.
        timings(fixed=None),
    ],
)
def test_the_parts_are_shares_of_one_step(made_up):
    judged = verdict.judge(made_up)
    parts = (judged.waiting, judged.launching, judged.working)
    assert all(0 <= part <= 1 for part in parts)
    assert sum(parts) == pytest.approx(1)


def test_utilisation_is_of_the_whole_step():
    # 1 GFLOP in 20 ms is 50 GFLOP/s of 1,000.
    assert verdict.judge(timings(both=20e-3)).utilisation == pytest.approx(0.05)


def test_at_most_the_bound_disappears():
    assert verdict.judge(timings(both=40e-3)).at_most == pytest.approx(4)


def test_the_largest_measured_gain_is_next():
    measured = [change("precision", 1.2), change("input", 1.6), change("xla", 0.5)]
    judged = verdict.judge(timings(), measured)
    assert [found.factor for found in judged.advice] == ["input", "precision"]


def test_of_like_gains_the_one_that_lifts_the_bound_is_next():
    measured = [change("input", 1.32), change("precision", 1.30)]
    assert verdict.judge(timings(), measured).advice[0].factor == "precision"
    starved = timings(both=30e-3)
    assert verdict.judge(starved, measured).advice[0].factor == "input"


@pytest.mark.parametrize(("gain", "first"), [(1.35, "xla"), (1.6, "batch_size")])
def test_another_batch_size_has_to_gain_more(gain, first):
    measured = [change("batch_size", gain), change("xla", 1.3)]
    assert verdict.judge(timings(fixed=8e-3), measured).advice[0].factor == first


@pytest.mark.parametrize("gain", [change("input", 1.01), change("input", 1.2, low=0.9)])
def test_a_gain_within_the_noise_is_no_advice(gain):
    assert verdict.judge(timings(both=30e-3), [gain]).advice == ()


def test_the_text_names_bound_ceiling_flag_and_gain():
    measured = [change("input", 1.5, flags="--input=resident")]
    slow = timings(both=30e-3)
    text = verdict.describe(verdict.judge(slow, measured), slow)
    assert text.startswith("input-bound")
    for part in ("30.00 ms", "3.3%", "1,000", "--input=resident", "1.50 times"):
        assert part in text
    assert "none of the changes" in verdict.describe(verdict.judge(slow), slow)
