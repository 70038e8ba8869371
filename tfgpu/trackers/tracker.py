"""What a tracker has to be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tfgpu.trackers.run_record import Record, RunRecord

ENDINGS = ("finished", "paused", "failed", "interrupted", "killed")
"""How a run may end: the values of `status` in result.json, and "killed" for one that could not
write any."""


class Tracker(Protocol):
    """A run at an experiment tracker, to which what is missing is added.

    Whatever a method raises is told the user once; everything is tried again later, beginning with
    `open`.
    """

    name: str
    """What `--log_to` calls it."""

    def open(self, record: RunRecord) -> str:
        """Finds the run of a record, or makes it, and sees to its settings.

        Returns:
            Where it is, for the user.
        """

    def has(self, record: Record) -> bool:
        """Whether the tracker had a record already when it was opened."""

    def log(self, records: Sequence[Record]) -> None:
        """Adds records, in their order."""

    def end(self, ending: str) -> None:
        """Adds the result and the model, as far as there are, and closes the run.

        Args:
            ending: One of `ENDINGS`.
        """
