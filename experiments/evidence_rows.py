"""The rows of the evidence: a figure with its interval, and what it says of a claim; no TensorFlow.

A figure is measured n times, in rounds in which everything that is compared takes its turn. What is
quoted is the median and an interval that holds the median of all such measurements with a
confidence of at least 95 %: the k-th smallest to the k-th largest, with the largest k for which
2 P(B(n, 1/2) < k) <= 0.05 (the sign test's interval; W. J. Conover, "Practical Nonparametric
Statistics", 3.2). It asks nothing of the distribution, and there is none for n < 6.

The verdict on "at least b" (with "at most" the other way round):

- holds: the whole interval is at or above b;
- does not hold here: the whole interval is below b;
- cannot be shown here: b lies inside, or n < 6, or it could not be measured.

A figure that is counted and not sampled (bytes of a file, agreement over a whole test split) is its
own interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from tfgpu.bench.interleaved_timing import spread

HOLDS, FAILS, UNKNOWN = "holds", "does not hold here", "cannot be shown here"
FIGURE = ""
"""The verdict on a figure of which nothing is claimed."""

CONFIDENCE = 0.95
FASTER = 1.03
"""What "faster" asks at least: two processes that run the same differ by as much."""

Side = Literal["at least", "at most"]


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval of the median, by order statistics; None where n is too small for one.

    Args:
        values: Independent measurements.
    """
    n, ordered = len(values), sorted(values)
    found = None
    below = 0.0  # P(B(n, 1/2) < k).
    for k in range(1, n // 2 + 1):
        below += math.comb(n, k - 1) / 2**n
        if 2 * below > 1 - CONFIDENCE:
            break
        found = ordered[k - 1], ordered[-k]
    return found


def verdict(low: float | None, high: float | None, *, side: Side, bound: float) -> str:
    """What an interval says of "at least" or "at most" a bound; None and NaN say nothing."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return UNKNOWN
    if side == "at most":
        low, high, bound = -high, -low, -bound
    if low >= bound:
        return HOLDS
    return FAILS if high < bound else UNKNOWN


def row(
    what: str,
    values: Sequence[float],
    *,
    unit: str,
    side: Side | None = None,
    bound: float | None = None,
    **details: Any,
) -> dict[str, Any]:
    """A row of measurements.

    Args:
        what: What was measured, for the table.
        values: One of each round.
        unit: Of the values.
        side: On which side of the bound the claim has them; None: nothing is claimed.
        bound: What the claim asks.
        details: More to keep, such as the rates of which the values are ratios.
    """
    found = interval(values)
    low, high = (None, None) if found is None else found
    claimed = side is not None and bound is not None
    return {
        "what": what,
        "unit": unit,
        "n": len(values),
        **{"median": spread(values)["median"] if values else None, "low": low, "high": high},
        **{"side": side, "bound": bound},
        "verdict": verdict(low, high, side=side, bound=bound) if claimed else FIGURE,
        "reason": "too few rounds" if claimed and found is None else "",
        "values": list(values),
        **details,
    }


def counted(
    what: str,
    value: float,
    *,
    n: int,
    unit: str,
    side: Side | None = None,
    bound: float | None = None,
    margin: float = 0.0,
    **details: Any,
) -> dict[str, Any]:
    """A row whose value is counted over n things.

    Args:
        what: What was counted.
        value: The figure.
        n: Over how many.
        unit: Of the value.
        side: As in `row`.
        bound: As in `row`.
        margin: Half of its interval, where the things are a sample of others.
        details: More to keep.
    """
    low, high = value - margin, value + margin
    claimed = side is not None and bound is not None
    return {
        "what": what,
        "unit": unit,
        "n": n,
        **{"median": value, "low": low, "high": high},
        **{"side": side, "bound": bound},
        "verdict": verdict(low, high, side=side, bound=bound) if claimed else FIGURE,
        "reason": "",
        "values": [value],
        **details,
    }


def missing(what: str, reason: str) -> dict[str, Any]:
    """A row that could not be measured, and why."""
    return {
        "what": what,
        "unit": "",
        "n": 0,
        **{"median": None, "low": None, "high": None, "side": None, "bound": None},
        "verdict": UNKNOWN,
        "reason": " ".join(reason.split()),
        "values": [],
    }


def ratios(
    what: str,
    rates: Sequence[float],
    base: Sequence[float],
    *,
    side: Side = "at least",
    bound: float = FASTER,
    unit: str = "times as fast",
    **details: Any,
) -> dict[str, Any]:
    """A row of ratios of the rates of the same rounds."""
    values = [a / b for a, b in zip(rates, base, strict=True)]
    kept = {"rate": spread(rates)["median"], "base_rate": spread(base)["median"]} if rates else {}
    return row(what, values, unit=unit, side=side, bound=bound, **kept, **details)
