"""The verdict: what bounds a training step, from its timings; no TensorFlow here.

A step's time consists of waiting for input, a fixed part that does not shrink with the batch
(calls from Python, launches of operations, filling the device), and work. The largest of the
three bounds the step; work is bound by memory or by arithmetic, whichever is slower by the
machine's ceilings: the roofline model (S. Williams, A. Waterman, D. Patterson, "Roofline: an
insightful visual performance model for multicore architectures", Communications of the ACM 52(4),
2009).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tfgpu.bench.interleaved_timing import Spread

Bound = Literal["input", "launch", "memory", "compute"]

# Which factors may lift a bound, the most direct first.
REMEDIES: Mapping[Bound, tuple[str, ...]] = {
    "input": ("input", "batch_size"),
    "launch": ("steps_per_execution", "xla", "batch_size", "input"),
    "memory": ("precision", "xla", "device", "replicas"),
    "compute": ("precision", "device", "replicas", "xla"),
}

WORTH = 1.03
"""Gains below this are not worth a flag: repeated runs differ by as much."""

_LIKE = 1.05  # Gains whose ratio is below this count as equal.

_OTHER_TRAINING = 1.1  # How much more another batch size has to gain: it changes what is learnt.


@dataclass(frozen=True, kw_only=True)
class Timings:
    """The timings of one configuration; seconds are of one step.

    Attributes:
        data: Seconds the input pipeline alone takes.
        compute: Seconds a step takes on a batch that is on the device already.
        both: Seconds a step takes in training.
        fixed: Seconds of `compute` that do not shrink with the batch; None when not known.
        flops: Floating-point operations in a step.
        traffic: Bytes that a step reads and writes at least.
        peak_flops: Floating-point operations per second that the device reached.
        bandwidth: Bytes per second that its memory reached.
    """

    data: float
    compute: float
    both: float
    fixed: float | None
    flops: float
    traffic: float
    peak_flops: float
    bandwidth: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured change of one setting.

    Attributes:
        factor: The factor that it belongs to, such as "precision".
        flags: How to ask for it, such as "--precision=mixed_bfloat16".
        gain: Throughput over the baseline's.
    """

    factor: str
    flags: str
    gain: Spread


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What bounds the step, and what to change.

    Attributes:
        bound: What bounds it.
        waiting: Fraction of the step that waits for input, in [0, 1].
        launching: Fraction that does not shrink with the batch.
        working: The rest.
        utilisation: Floating-point operations per second in training, over the ceiling.
        advice: The changes worth making, the best first; empty when no measured one helps.
        at_most: The gain if the bound disappeared altogether.
    """

    bound: Bound
    waiting: float
    launching: float
    working: float
    utilisation: float
    advice: tuple[Measured, ...]
    at_most: float


def judge(timings: Timings, measured: Sequence[Measured] = ()) -> Verdict:
    """Judges what bounds a step and what to change.

    Args:
        timings: Of the configuration.
        measured: Changes that were measured.
    """
    # By noise, a whole step may take less time than its computation alone.
    step = max(timings.both, timings.compute)
    waiting = step - timings.compute
    launching = min(max(timings.fixed or 0.0, 0.0), timings.compute)
    working = timings.compute - launching
    bound: Bound
    largest = max(waiting, launching, working)
    if largest == waiting:
        bound = "input"
    elif largest == launching:
        bound = "launch"
    elif timings.traffic / timings.bandwidth > timings.flops / timings.peak_flops:
        bound = "memory"
    else:
        bound = "compute"
    rest = step - largest
    return Verdict(
        bound=bound,
        waiting=waiting / step,
        launching=launching / step,
        working=working / step,
        utilisation=timings.flops / timings.both / timings.peak_flops,
        advice=_worth(bound, measured),
        at_most=step / rest if rest else float("inf"),
    )


def _worth(bound: Bound, measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """Returns the changes that help, largest gain first.

    Of equal gains, those that lift the bound come first, and those that affect what is learnt last.
    """
    worth = [
        change for change in measured if change.gain["median"] >= WORTH and change.gain["low"] > 1
    ]

    def rank(change: Measured) -> float:
        weight = _LIKE if change.factor in REMEDIES[bound] else 1.0
        if change.factor == "batch_size":
            weight /= _OTHER_TRAINING
        return -change.gain["median"] * weight

    return tuple(sorted(worth, key=rank))


def describe(verdict: Verdict, timings: Timings) -> str:
    """Formats the verdict in a few lines."""

    def milliseconds(seconds: float) -> str:
        return f"{seconds * 1e3:.2f} ms"

    lines = [
        f"{verdict.bound}-bound: of a step of {milliseconds(timings.both)} "
        f"{verdict.waiting:.0%} waits for input, {verdict.launching:.0%} is fixed cost of calls "
        f"and launches, {verdict.working:.0%} is work",
        f"  input alone {milliseconds(timings.data)}, computation alone "
        f"{milliseconds(timings.compute)}",
        f"  {timings.flops / timings.both / 1e9:,.1f} GFLOP/s, {verdict.utilisation:.1%} of the "
        f"{timings.peak_flops / 1e9:,.0f} that a matrix product reached here",
    ]
    for number, change in enumerate(verdict.advice[:3]):
        gain = change.gain
        line = (
            f"  {'change next' if number == 0 else 'also'}: {change.flags}, measured here "
            f"{gain['median']:.2f} times as fast ({gain['low']:.2f} to {gain['high']:.2f})"
        )
        if "--batch_size" in change.flags:
            line += "; another batch size learns differently"
        lines.append(line)
    if not verdict.advice:
        lines.append("  none of the changes that were measured makes it faster")
    return "\n".join(lines)
