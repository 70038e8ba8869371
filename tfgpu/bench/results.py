"""The measurements of one configuration of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tfgpu.bench import interleaved_timing
from tfgpu.bench.factors import Cell
from tfgpu.bench.interleaved_timing import Spread


@dataclass
class Result:
    """What was measured of a cell.

    Attributes:
        cell: The configuration.
        error: Why it could not be measured; empty when it was.
        built: What `Trial.build` returned.
        rates: Examples per second, one of each round.
        base: Those of the baseline in the same rounds.
        extra: Other measurements, such as the bandwidth of its all-reduce.
    """

    cell: Cell
    error: str = ""
    built: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> Spread:
        """Examples per second."""
        return interleaved_timing.spread(self.rates)

    @property
    def gain(self) -> Spread:
        """Throughput over the baseline's."""
        return interleaved_timing.compare(self.rates, self.base)
