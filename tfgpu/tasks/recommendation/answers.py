"""How `predict` names users, and shows the items that are best for each."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.errors import DataError
from tfgpu.models.recommenders import NEVER
from tfgpu.tasks.parts.predictor import Predictor, csv_row
from tfgpu.tasks.recommendation.tables import Ids


class ItemPredictor(Predictor):
    """Recommends items to users; what a user has in the training split is left out."""

    unit = "users"

    def __init__(self, spec: Any, settings: Any):
        super().__init__(spec, settings)
        fitted = spec.fitted
        self._users, self._items = Ids(fitted["users"]), np.asarray(fitted["items"])
        self._seen: Sequence[Sequence[int]] = [[], *fitted["seen"]]
        self._what = "rating" if fitted["goal"] == "rating" else "score"

    def refuse_nothing(self, arguments: Sequence[str]) -> None:
        """See `Predictor.refuse_nothing`: every argument is a user."""

    def find(self, arguments: Iterable[str]) -> Iterator[Any]:
        """Yields users, and says which are new; "-" is those on standard input, one a line."""
        for argument in arguments:
            several = argument == "-"
            for user in map(str.strip, sys.stdin if several else [argument]):
                if user:
                    self._say_if_new(user)
                    yield user
                elif not several:
                    yield DataError("--users: a user without a name, between two commas")

    def _say_if_new(self, user: str) -> None:
        if not self._users.number(user):
            print(
                f"tfgpu: user {user!r} has no training interaction; answered with what is best "
                "for everybody",
                file=sys.stderr,
                flush=True,
            )

    def load(self, item: Any) -> Any:
        """See `Predictor.load`."""
        number = self._users.number(item)
        if self._what == "rating":
            every = np.arange(len(self._items) + 1, dtype=np.int32)
            return {"user": np.int32(number), "item": every}
        history = np.zeros(self.spec.x["history"].shape[0], np.int32)
        past = self._seen[number][-len(history) :]
        history[: len(past)] = past
        return {"user": np.int32(number), "history": history}

    def rows(self, items: Sequence[Any], outputs: Any) -> Iterator[Mapping[str, Any]]:
        """See `Predictor.rows`."""
        for user, scores in zip(items, np.array(outputs, np.float32), strict=True):
            number = self._users.number(user)
            scores[[0, *self._seen[number]]] = NEVER
            # Of items that are equally good the first ones, as exported files have them.
            best = np.argsort(-scores, kind="stable")[: self.settings.top_k]
            yield {
                "user": user,
                "known": bool(number),
                "items": [
                    {"item": self._items[i - 1].item(), self._what: float(scores[i])}
                    for i in best.tolist()
                    if scores[i] > NEVER / 2
                ],
            }

    def header(self) -> Sequence[str]:
        """See `Predictor.header`."""
        return ["user", "known", "rank", "item", self._what]

    def lines(self, items: Sequence[Any], outputs: Any) -> Iterator[str]:
        """See `Predictor.lines`; in a CSV there is one for each item."""
        wide = max(map(len, items))
        for row in self.rows(items, outputs):
            found = row["items"]
            if self.settings.format == "jsonl":
                yield json.dumps(row)
            elif self.settings.format == "table":
                shown = (f"{each['item']} {each[self._what]:.4f}" for each in found)
                new = "" if row["known"] else "  (new)"
                yield f"{row['user']:<{wide}}  {'  '.join(shown)}{new}"
            else:
                for rank, each in enumerate(found, 1):
                    yield csv_row([row["user"], row["known"], rank, each["item"], each[self._what]])
