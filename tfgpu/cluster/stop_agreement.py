"""How processes that compute in step agree on where all of them stop.

Each counts the boundaries at which it may stop. Whoever wants to stop tells the chief, which
proposes a boundary a little ahead. A process accepts it unless it is past it already, and waits
there for the decision; when all have accepted, the chief says that it holds, else it proposes a
later one. No step costs more than a comparison.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from tfgpu.cluster.wire import Message

if TYPE_CHECKING:
    from tfgpu.cluster.membership import Membership


class StopAgreement:
    """One process's part in it.

    Attributes:
        wanted: The signal for which this process wants to stop; set by a signal handler.
    """

    def __init__(self, members: Membership):
        self.wanted: int | None = None
        self._members = members
        self.condition = members.condition
        self._passed = 0
        self._proposed: tuple[int, int] | None = None  # Round and boundary.
        self._agreed: int | None = None  # The signal.
        self._asked = False
        self._deciding = False
        self._votes: dict[int, int | None] = {}
        self._round = 0

    @property
    def agreed(self) -> bool:
        """Whether all have agreed to stop."""
        return self._agreed is not None

    def boundary(self) -> int | None:
        """See `Membership.boundary`."""
        members = self._members
        if members.alone:
            return self.wanted
        with self.condition:
            self._passed += 1
            members.check()
            while self._proposed is not None and self._passed >= self._proposed[1]:
                if self._agreed is not None:
                    return self._agreed
                self.condition.wait(0.5)
                members.check()
        return None

    def pass_on(self) -> None:
        """Tells the chief of a wish to stop, once; in the thread that beats."""
        if self.wanted is None or self._asked:
            return
        self._asked = True
        if self._members.is_chief:
            self._decide(self.wanted)
        else:
            self._members.try_to_send(0, "stop", signum=self.wanted)

    def take(self, peer: int, message: Message) -> None:
        """Handles a message of the agreement; in the thread that listens."""
        kind, fields, _ = message
        if kind == "stop":
            self._decide(fields["signum"])
        elif kind == "propose":
            passed = self._accept(fields["round"], fields["boundary"])
            self._members.try_to_send(0, "vote", round=fields["round"], passed=passed)
        elif kind == "vote":
            with self.condition:
                if fields["round"] == self._round:
                    self._votes[peer] = fields["passed"]
                    self.condition.notify_all()
        elif kind == "agreed":
            self._settle(fields["signum"])

    def _accept(self, number: int, boundary: int) -> int | None:
        """Accepts a proposal; returns how far this process is when it cannot."""
        with self.condition:
            accepted = self._passed < boundary
            # Where it is refused the next one is later, so nobody is to wait at this one.
            self._proposed = (number, boundary) if accepted else None
            self.condition.notify_all()
            return None if accepted else self._passed

    def _settle(self, signum: int) -> None:
        with self.condition:
            self._agreed = signum
            self.condition.notify_all()

    def _decide(self, signum: int) -> None:
        """At the chief: finds a boundary that nobody has passed, in a thread of its own."""
        with self.condition:
            if self._deciding:
                return
            self._deciding = True
        threading.Thread(target=self._find, args=(signum,), daemon=True).start()

    def _find(self, signum: int) -> None:
        members, ahead = self._members, 2
        others = set(members.peers) - members.left
        farthest = self._passed

        def decided() -> bool:
            return self._votes.keys() >= others or members.over

        while True:
            with self.condition:
                self._round += 1
                self._votes = {}
            proposal: dict[str, Any] = {"round": self._round, "boundary": farthest + ahead}
            own = self._accept(self._round, farthest + ahead)
            for peer in others:
                members.try_to_send(peer, "propose", **proposal)
            with self.condition:
                self.condition.wait_for(decided)
                if members.over:
                    return
                refusals = [v for v in [own, *self._votes.values()] if v is not None]
            if not refusals:
                break
            farthest, ahead = max(refusals), ahead * 2
        for peer in others:
            members.try_to_send(peer, "agreed", signum=signum)
        self._settle(signum)
