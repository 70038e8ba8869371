"""Cuts a model into segments of which only the borders are kept for the backward pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfgpu.engine.rematerialization import Segments
from tfgpu.machine.tensorflow_internals import nodes

LIMITS = 64
"""How many sizes of the largest segment are tried."""


def segments(model: keras.Model) -> Segments:
    """Cuts a model where the least memory is needed.

    It can be cut where one tensor is all that later layers take of earlier ones: in a residual
    network between its blocks. Of these places those are chosen for which the sum of the tensors
    kept and of the outputs of all layers in the largest segment is least.

    Args:
        model: A functional model of one input and one output.

    Raises:
        ValueError: It is no such model, or it cannot be cut anywhere.
    """
    calls = nodes(model)
    if calls is None or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError("it is not a functional model of one input and one output")
    places, sizes, inside = _places(model, calls)
    if not places:
        raise ValueError("no layer passes on one tensor that is all that later layers take")
    for layer in model.layers:
        if getattr(layer, "activity_regularizer", None) is not None:
            raise ValueError(f"{layer.name} has an activity_regularizer, whose loss would be lost")
    chosen = best_cuts(sizes, inside)
    borders = [model.inputs[0], *(places[at] for at in chosen), model.outputs[0]]
    return Segments(
        [keras.Model(first, last) for first, last in zip(borders, borders[1:], strict=False)]
    )


def _places(model: keras.Model, calls: Sequence[Any]) -> tuple[list[Any], list[int], list[int]]:
    """Tensors to cut at, the bytes of each, and the bytes of all outputs between two of them.

    Returns:
        m tensors, their m sizes, and the m + 1 sums between them; of one example.
    """
    takers: dict[int, int] = {id(model.outputs[0]): 1}
    for node in calls:
        for tensor in node.arguments.keras_tensors:
            takers[id(tensor)] = takers.get(id(tensor), 0) + 1
    open_: dict[int, Any] = {}
    places: list[Any] = []
    sizes: list[int] = []
    inside = [0]
    for node in calls:
        for tensor in node.arguments.keras_tensors:
            takers[id(tensor)] -= 1
            if not takers[id(tensor)]:
                open_.pop(id(tensor), None)
        for tensor in node.outputs:
            inside[-1] += _bytes(tensor)
            if takers.get(id(tensor)):
                open_[id(tensor)] = tensor
        alone = len(open_) == 1 and not node.is_input
        if alone and id(only := next(iter(open_.values()))) != id(model.outputs[0]):
            places.append(only)
            sizes.append(_bytes(only))
            inside.append(0)
    return places, sizes, inside


def _bytes(tensor: Any) -> int:
    return math.prod(side or 1 for side in tensor.shape[1:]) * tf.as_dtype(tensor.dtype).size


def best_cuts(sizes: Sequence[int], inside: Sequence[int]) -> list[int]:
    """Which of m places to cut at.

    Args:
        sizes: Bytes that a cut at each place keeps, m of them.
        inside: Bytes between the places, m + 1 of them.

    Returns:
        Positions in `sizes`, in order; the sum of their sizes and of the largest segment between
        them is least, of `LIMITS` sizes of that segment that were tried.
    """
    total, least = sum(inside), max(inside)
    best, chosen = math.inf, list(range(len(sizes)))
    for step in range(LIMITS):
        limit = least * (total / least) ** (step / LIMITS)
        kept, cuts = _fewest(sizes, inside, limit)
        largest = max(_between(inside, cuts))
        if kept + largest < best:
            best, chosen = kept + largest, cuts
    return chosen


def _fewest(sizes: Sequence[int], inside: Sequence[int], limit: float) -> tuple[int, list[int]]:
    """The cuts that keep least, with no segment above `limit` bytes, and what they keep.

    The least for each place follows from those before it: the last cut before it may be any from
    which the segment is small enough.
    """
    ends = [0, *itertools.accumulate(inside)]  # ends[i]: of all before place i - 1; the last: all.
    least: list[tuple[int, list[int]]] = [(0, [])]
    for here in range(1, len(ends)):
        found = [
            (kept + (sizes[here - 1] if here <= len(sizes) else 0), cuts, place)
            for place, (kept, cuts) in enumerate(least)
            if ends[here] - ends[place] <= limit
        ]
        kept, cuts, place = min(found, key=lambda each: each[0])
        least.append((kept, [*cuts, place - 1] if place else cuts))
    return least[-1]


def _between(inside: Sequence[int], cuts: Sequence[int]) -> list[int]:
    """The bytes of each segment between cuts."""
    borders = [0, *(cut + 1 for cut in cuts), len(inside)]
    return [sum(inside[first:last]) for first, last in zip(borders, borders[1:], strict=False)]
