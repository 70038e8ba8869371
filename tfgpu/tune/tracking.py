"""`--log_to` of a search: its trials are runs of the trackers, below or beside each other.

MLflow has nested runs: the search is one, and its trials are below it. W&B has groups: the trials
are in that of the search. Each trial is sent by the process that trains it; see
`tfgpu.train.tracking`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tfgpu import trackers
from tfgpu.train.tracking import Tracking
from tfgpu.tune.search import Search

_NESTS = ("mlflow",)
"""Trackers in which the search is a run of its own."""


@contextlib.contextmanager
def tracked(search: Search) -> Iterator[None]:
    """Has the search be a run of the trackers while it goes on, and in the end its result.

    Args:
        search: Entered.
    """
    asked = trackers.asked(search.config.log_to)
    if not asked:
        yield
        return
    names = [name for name in asked if name in _NESTS]
    tracking = Tracking(search.directory, names, console=search.console)
    tracking.start()
    ending = "interrupted"
    try:
        yield
        ending = "finished"
    finally:
        tracking.end(ending)
