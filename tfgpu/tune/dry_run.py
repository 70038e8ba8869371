"""What `tfgpu tune --dry_run` says: the search, what its trials share, and the files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from tfgpu.cli import dry_run
from tfgpu.tune.search import Search
from tfgpu.tune.search_directory import BEST, FINAL, RESULT, SEARCH, TABLE
from tfgpu.tune.settings import TuneSettings
from tfgpu.tune.worker import TRIALS

_MANY = 12


def describe(config: TuneSettings, search: Search) -> str:
    """Lines for a person.

    Args:
        config: The settings as they were given.
        search: Opened, and not entered.
    """
    values = search.space.values()
    decided = dataclasses.replace(
        search.config, objective=search.objective, epochs=config.epochs or search.epochs
    )
    lines = ["every setting, decided (auto: by each trial for itself):"]
    lines += dry_run.settings(decided, dry_run.given(config, of_the_process=True))
    lines += ["", "what trials differ in:"]
    lines += [f"  {name}: {_range(found)}" for name, found in values.items()]
    more = "more" if search.maximize else "less"
    lines.append(f"they are compared by {search.objective}: {more} of it is better")
    lines += ["", f"workers here: {len(search.worker_devices)}"]
    going_on = (search.directory / SEARCH).exists()
    lines += ["", f"would {'go on in' if going_on else 'make'} {search.directory}, with:"]
    names = [SEARCH, "log.txt", "tensorboard/", f"{TRIALS}/", TABLE]
    names += ["tracking/"] if config.log_to != "none" else []
    names += [f"{FINAL}/"] if config.final_seeds else []
    lines += [f"  {name}" for name in (*names, BEST, RESULT)]
    return "\n".join([*lines, "", dry_run.NOTHING])


def _range(values: Sequence[Any]) -> str:
    """The values of a setting; of many numbers, which a search draws from a range, its ends."""
    numbers = all(type(value) in (int, float) for value in values)
    if len(values) > _MANY and numbers:
        return f"from {values[0]:.4g} to {values[-1]:.4g}"
    return json.dumps(values)
