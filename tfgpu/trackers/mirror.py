"""Keeps the run at a tracker equal to the record in the run directory."""

from __future__ import annotations

import re
from collections.abc import Callable

from tfgpu.trackers.run_record import RunRecord
from tfgpu.trackers.tracker import Tracker

_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_LONGEST = 300  # Characters of what a library says, at most.


class Mirror:
    """Sends what a tracker lacks.

    Attributes:
        behind: Whether the last attempt failed, so that something is missing there.
    """

    def __init__(
        self,
        record: RunRecord,
        tracker: Tracker,
        *,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ):
        """Sends nothing yet.

        Args:
            record: Of the run.
            tracker: Not opened.
            say: Takes a line for the user.
            warn: Takes a warning.
        """
        self.behind = False
        self._record = record
        self._tracker = tracker
        self._say = say
        self._warn = warn
        self._opened = self._told = self._warned = False
        self._sent = 0  # Records that are done with.

    def update(self) -> bool:
        """Sends the records that are missing; returns whether all are there now."""
        return self._try(self._update)

    def end(self, ending: str) -> bool:
        """Sends all that is missing and closes the run; returns whether it is all there now."""

        def end() -> None:
            self._update()
            self._tracker.end(ending)

        return self._try(end)

    def _update(self) -> None:
        if not self._opened:
            where = self._tracker.open(self._record)
            self._opened, self._sent = True, 0
            if not self._told:
                self._say(f"{self._tracker.name}: {where}")
            self._told = True
        records = self._record.records()
        new = records[self._sent :]
        missing = [each for each in new if not self._tracker.has(each)]
        if missing:
            self._tracker.log(missing)
        self._sent = len(records)

    def _try(self, what: Callable[[], None]) -> bool:
        try:
            what()
        # Whatever a library or a server comes up with: it must not end a training.
        except Exception as error:
            self._opened = False  # It is asked again what it has.
            self.behind = True
            if not self._warned:
                self._warned = True
                self._warn(
                    f"{self._tracker.name}: {in_short(error)}; the training goes on, and what is "
                    "missing there is kept in the run directory and sent later"
                )
            return False
        if self.behind:
            self.behind = False
            self._say(f"{self._tracker.name}: what was missing has been sent")
        return True


def in_short(error: BaseException) -> str:
    """What a library says, in one line and without the credentials in addresses."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _CREDENTIALS.sub("//", text)[:_LONGEST]
