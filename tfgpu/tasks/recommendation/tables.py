"""Tables of ids, and what the tables of a model take in memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.data.cells import respelled
from tfgpu.models import recommenders
from tfgpu.tasks.task import DataSpec

# Values that an optimizer keeps for each weight: Keras 3.15's slots.
_SLOTS = {"sgd": 0, "rmsprop": 1, "adagrad": 1, "lion": 1, "adadelta": 2, "adafactor": 1}


class Ids:
    """Numbers from 1 for the ids of a table, and 0 for every other.

    Args:
        keys: Sorted and distinct: int64, or str.
    """

    def __init__(self, keys: Any):
        self.keys = np.asarray(keys)

    @classmethod
    def fit(cls, keys: np.ndarray) -> Ids:
        """The table of the ids that occur."""
        return cls(np.unique(keys))

    def numbers(self, keys: np.ndarray) -> np.ndarray:
        """int32 (n,) of ids (n,), whole numbers or str, whichever the table has.

        What a table has as a whole number is the same however it is written: `1` and `1.0`.
        """
        if self.keys.dtype.kind in "iu" and keys.dtype.kind not in "iu":
            order, texts = self._as_texts
            found = texts.numbers(np.array([respelled(key) for key in keys.tolist()], str))
            return np.where(found > 0, order[found - 1] + 1, 0).astype(np.int32)
        if self.keys.dtype.kind not in "iu" and keys.dtype.kind in "iu":
            keys = keys.astype(str)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places + 1, 0).astype(np.int32)

    @functools.cached_property
    def _as_texts(self) -> tuple[np.ndarray, Ids]:
        """The order of whole numbers as texts, and their table."""
        texts = self.keys.astype(str)
        order = np.argsort(texts)
        return order, Ids(texts[order])

    def number(self, text: str) -> int:
        """The number of an id as it is typed."""
        return int(self.numbers(np.array([text]))[0])


def announce(spec: DataSpec, settings: Mapping[str, Any]) -> Sequence[str]:
    """What the tables take in each replica's memory, with the slots of the optimizer."""
    model, width = settings["model"], settings["width"] or 1.0
    users, items = len(spec.fitted["users"]) + 1, len(spec.fitted["items"]) + 1
    factors = recommenders.units_of(recommenders.FACTORS, width)
    tower = recommenders.units_of(recommenders.TOWER_UNITS, width)
    features = 2 * recommenders.units_of(recommenders.RANKING_UNITS, width)
    columns = {
        "factors": (factors + 1, factors + 1),
        "ranking": (features + 1, features + 1),
        # Of an item a vector, a bias, and another vector where it is in a history.
        "two_tower": (tower, 2 * tower + 1),
    }.get(model)
    if columns is None:
        return ()  # A model of the user's own, whose tables are not known.
    weights = 4 * (users * columns[0] + items * columns[1])
    slots = _SLOTS.get(settings["optimizer"], 2)
    if settings["optimizer"] == "sgd" and settings["momentum"]:
        slots = 1
    slots += settings["ema_momentum"] is not None
    slots += settings["gradient_accumulation_steps"] > 1
    return (
        f"tables: {users:,} users x {columns[0]} and {items:,} items x {columns[1]}, "
        f"{weights / 1e6:,.1f} MB; with gradients and {slots} slots of {settings['optimizer']}, "
        f"{(2 + slots) * weights / 1e6:,.1f} MB on each replica",
    )
