"""Training, validation and test: at random, or by time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfgpu.data.records import Records, Source
from tfgpu.errors import RequestError
from tfgpu.tasks.recommendation import columns
from tfgpu.tasks.task import Splits

_SPLITS = ("random", "time")


def split(
    source: Source,
    roles: Mapping[str, str],
    validation_fraction: float,
    seed: int,
    options: Mapping[str, Any],
) -> Splits:
    """Splits the interactions.

    A test split that the data have is taken as it is. Else `test_fraction` of the interactions is
    picked by the seed, or it is the newest ones; validation comes out of the rest in the same way.

    Raises:
        RequestError: There is no training split or no time, a fraction is out of range, or a part
            would be empty.
    """
    from tfgpu.tasks.loading import carve

    how, fraction = options["split"], options["test_fraction"]
    requested = source.schema.requested
    if how not in _SPLITS:
        raise RequestError(f"--task_options=split={how}: must be one of {', '.join(_SPLITS)}")
    if not 0 < fraction < 1:
        raise RequestError(
            f"--task_options=test_fraction={fraction:g}: must be above 0 and below 1"
        )
    if how == "time" and "time" not in roles:
        raise RequestError(
            f"--task_options=split=time: {requested!r} has no time; name it with "
            "--features=time=NAME, or split at random"
        )
    train = source.split("train", None)
    if train is None:
        raise RequestError(f"{requested!r} has no training split")

    def cut(part: Records, count: int, stream: int, what: str) -> tuple[Records, Records]:
        if not 0 < count < part.num_examples:
            raise RequestError(
                f"{requested!r}: of {part.num_examples} interactions, {what} leaves {count} apart "
                f"and {part.num_examples - count} to train on: both must be positive"
            )
        if how == "random":
            return carve(part, count, seed, stream)
        name = roles["time"]
        values = columns.load(part, (name,), source.schema.features)[name]
        order = np.argsort(columns.as_times(values, name), kind="stable")
        return part.take(np.sort(order[:-count])), part.take(np.sort(order[-count:]))

    for name in ("test", "validation"):
        test = source.split(name, None)
        if test is not None:
            break
    else:
        count = round(train.num_examples * fraction)
        train, test = cut(train, count, 1, f"test_fraction={fraction:g}")
        name = f"{fraction:.0%} of train, {'the newest' if how == 'time' else 'by the seed'}"
    validation = None
    if validation_fraction:
        count = round(train.num_examples * validation_fraction)
        what = f"validation_fraction={validation_fraction:g}"
        train, validation = cut(train, count, 2, what)
    return train, validation, test, name
