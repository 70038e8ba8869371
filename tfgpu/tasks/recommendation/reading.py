"""From interactions to examples: pairs with ratings, or users with what is to be found for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import Examples
from tfgpu.data.records import Feature, Records, refuse_lines
from tfgpu.errors import DataError, RequestError
from tfgpu.tasks.recommendation import columns
from tfgpu.tasks.recommendation.tables import Ids
from tfgpu.tasks.task import DataSpec, Reading, Request

GOALS = ("auto", "rating", "retrieval")

MOST_HISTORY = 2048
"""Items of a history that a model gets, the last ones of the file."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Lists of whole numbers, one a row, one after another.

    Attributes:
        values: int32, of all rows.
        starts: int64 (rows + 1,): row i is values[starts[i]:starts[i + 1]].
    """

    values: np.ndarray
    starts: np.ndarray

    @classmethod
    def of_pairs(cls, rows: np.ndarray, values: np.ndarray, count: int) -> Rows:
        """Each row's values without repetition, in the order of the pairs."""
        _, first = np.unique(np.stack([rows, values], axis=1), axis=0, return_index=True)
        first = np.sort(first)
        rows, values = rows[first], values[first]
        order = np.argsort(rows, kind="stable")
        ends = np.cumsum(np.bincount(rows, minlength=count))
        return cls(values[order].astype(np.int32), np.concatenate([[0], ends]).astype(np.int64))

    @classmethod
    def of_lists(cls, lists: list[list[int]]) -> Rows:
        """The rows that lists are."""
        values = np.array([value for each in lists for value in each], np.int32)
        return cls(values, np.cumsum([0, *map(len, lists)]).astype(np.int64))

    def to_lists(self) -> list[list[int]]:
        """The rows as lists."""
        flat, ends = self.values.tolist(), self.starts.tolist()
        return [flat[a:b] for a, b in zip(ends, ends[1:], strict=False)]

    def row(self, i: int) -> np.ndarray:
        """int32, the values of a row."""
        return self.values[self.starts[i] : self.starts[i + 1]]

    def pairs(self, most: int) -> np.ndarray:
        """int64, a number for each value and its row; `most` is the largest value that any has."""
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return rows * (most + 1) + self.values

    @property
    def lengths(self) -> np.ndarray:
        """int64 (rows,)."""
        return np.diff(self.starts)

    def padded(self, length: int, padding: int) -> Any:
        """A function of rows' numbers (n,): int32 (n, length), their last values and padding."""
        with tf.device("CPU"):
            # One more, so that a row of nothing points at something.
            values = tf.constant(np.append(self.values, np.int32(padding)))
            starts = tf.constant(self.starts)

        def read(rows: tf.Tensor) -> tf.Tensor:
            with tf.device("CPU"):
                end = tf.gather(starts, rows + 1)
                start = tf.maximum(tf.gather(starts, rows), end - length)
                places = start[:, None] + tf.range(length, dtype=tf.int64)[None, :]
                inside = places < end[:, None]
                places = tf.where(inside, places, len(self.values))
                return tf.ensure_shape(tf.gather(values, places), [None, length])

        return read


def read(request: Request) -> Reading:
    """x and y of one of two goals.

    `rating`: x is {"user": int32 (), "item": int32 (1,)}, y a float32 rating (1,); one example an
    interaction. `retrieval`: x is {"user": int32 (), "history": int32 (H,)}, the items of the user
    in training; y is what `tfgpu.models.retrieval_loss` takes, int32 (L,); one example a user that
    has interactions in the split.

    Raises:
        RequestError: The goal is unknown, or needs a rating that is not there.
        DataError: A rating, a click or a time is none.
    """
    wanted = request.options["goal"]
    if wanted not in GOALS:
        raise RequestError(f"--task_options=goal={wanted}: must be one of {', '.join(GOALS)}")
    if wanted == "rating" and "rating" not in request.roles:
        raise RequestError(
            f"--task_options=goal=rating: {request.schema.requested!r} has no rating; name it "
            "with --features=rating=NAME"
        )
    load = _Loader(request)
    train = load(request.train)
    fitted = dict(request.fitted) if request.fitted is not None else _fit(train, request)
    if fitted["goal"] == "rating" and train.rating is None:
        raise DataError(
            f"{request.schema.requested!r} has no rating, which the model was trained on; it has "
            f"{request.schema.described}"
        )
    users, items = Ids(fitted["users"]), Ids(fitted["items"])
    seen = Rows.of_lists([[], *fitted["seen"]])
    share = seen.lengths.sum() / (len(users.keys) * len(items.keys))
    notes = [
        f"recommendation: {len(users.keys):,} users, {len(items.keys):,} items, "
        f"{train.user.size:,} training interactions ({share:.2%} of all pairs); goal "
        f"{fitted['goal']}"
    ]
    if fitted["goal"] == "rating":
        examples, x, y = _ratings(load, users, items, seen)
        notes.append(
            f"ratings from {fitted['lowest']:g} to {fitted['highest']:g}, mean {fitted['mean']:.3f}"
        )
    else:
        length = max(1, min(int(seen.lengths.max()), MOST_HISTORY))
        if length == MOST_HISTORY:
            notes.append(f"of a history the last {MOST_HISTORY:,} items are taken")
        finished = request.fitted is not None
        examples, x, y = _retrieval(load, users, items, seen, length, finished=finished)
    return Reading(spec=DataSpec(x=x, y=y, fitted=fitted), examples=examples, notes=tuple(notes))


@dataclasses.dataclass(frozen=True)
class _Interactions:
    """Arrays (n,): ids, and ratings or nothing."""

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray | None


class _Loader:
    """Loads the interactions of a split; of clicks, those that are above 0."""

    def __init__(self, request: Request):
        self._roles = request.roles
        self._features: Mapping[str, Feature] = request.schema.features
        self._requested = request.schema.requested

    def __call__(self, records: Records) -> _Interactions:
        roles = self._roles
        value = "rating" if "rating" in roles else "click" if "click" in roles else None
        names = tuple(roles[role] for role in ("user", "item", value) if role is not None)
        found = columns.load(records, names, self._features)
        user, item = (columns.as_keys(found[roles[role]], roles[role]) for role in ("user", "item"))
        if value is None:
            return _Interactions(user, item, None)
        numbers = columns.as_numbers(found[roles[value]], value, roles[value])
        if value == "rating":
            return _Interactions(user, item, numbers)
        clicked = numbers > 0
        if not clicked.any():
            raise DataError(f"{self._requested!r}: no {roles['click']} above 0 in a split")
        return _Interactions(user[clicked], item[clicked], None)


def _fit(train: _Interactions, request: Request) -> dict[str, Any]:
    """Tables of ids, the ratings' range, and what each user has, from the training split."""
    goal = request.options["goal"]
    if goal == "auto":
        goal = "retrieval" if train.rating is None else "rating"
    users, items = Ids.fit(train.user), Ids.fit(train.item)
    for role, ids in (("user", users), ("item", items)):
        if ids.keys.dtype.kind == "U":
            refuse_lines(request.schema.requested, role, map(str, ids.keys))
    if len(items.keys) < 2:
        raise DataError(
            f"{request.schema.requested!r} has one item only, {items.keys[0].item()!r}: there is "
            "nothing to choose from"
        )
    numbers = users.numbers(train.user), items.numbers(train.item)
    seen = Rows.of_pairs(*numbers, len(users.keys) + 1)
    fitted: dict[str, Any] = {
        "goal": goal,
        "users": users.keys.tolist(),
        "items": items.keys.tolist(),
        "seen": seen.to_lists()[1:],
    }
    if goal == "rating":
        assert train.rating is not None
        lowest, highest = float(train.rating.min()), float(train.rating.max())
        if lowest == highest:
            raise DataError(
                f"all training ratings of {request.schema.requested!r} are {lowest:g}: there is "
                "nothing to learn; --task_options=goal=retrieval learns which items are taken"
            )
        fitted |= {"mean": float(train.rating.mean()), "lowest": lowest, "highest": highest}
    return fitted


def _new(split: str, found: _Interactions, users: Ids, items: Ids, then: str) -> tuple[str, ...]:
    """What a split has of users and items that are in no training interaction."""
    parts = []
    for what, table, keys in (("a user", users, found.user), ("an item", items, found.item)):
        new = table.numbers(keys) == 0
        if new.any():
            parts.append((int(new.sum()), f"{what} (such as {keys[new][0].item()!r})"))
    if not parts:
        return ()
    (count, what), *others = parts
    more = "".join(f" and {count:,} {what}" for count, what in others)
    return (
        f"{split}: {count:,} of {found.user.size:,} interactions ha{'s' if count == 1 else 've'} "
        f"{what}{more} that training had not; {then}",
    )


def _ratings(load: _Loader, users: Ids, items: Ids, seen: Rows) -> tuple[Any, Any, Any]:
    left_out = seen.padded(max(1, int(seen.lengths.max())), 0)

    def examples(split: str, some: Records) -> Examples:
        found = load(some)
        assert found.rating is not None
        pair = {"user": users.numbers(found.user), "item": items.numbers(found.item)[:, None]}
        made = Examples.from_arrays(pair, found.rating.astype(np.float32)[:, None])

        def decode_raw(*parts: tf.Tensor) -> dict[str, tf.Tensor]:
            x, _ = made.decode(*parts)
            return {**x, "seen": left_out(tf.cast(x["user"], tf.int64)[None])[0]}

        return dataclasses.replace(
            made,
            decode_batch=made.decode,
            decode_raw=decode_raw,
            notes=_new(split, found, users, items, "they get the mean of the others"),
        )

    x = {"user": tf.TensorSpec((), tf.int32), "item": tf.TensorSpec((1,), tf.int32)}
    return examples, x, tf.TensorSpec((1,), tf.float32)


def _known(found: _Interactions, users: Ids, items: Ids) -> Rows | None:
    """The items that each user has; None where a user or an item is not in the tables."""
    user, item = users.numbers(found.user), items.numbers(found.item)
    if not user.all() or not item.all():
        return None
    return Rows.of_pairs(user, item, len(users.keys) + 1)


def _retrieval(
    load: _Loader, users: Ids, items: Ids, seen: Rows, length: int, *, finished: bool
) -> tuple[Any, Any, Any]:
    from tfgpu.models.retrieval_loss import PADDING, left_out

    history = seen.padded(length, 0)
    known = [seen]  # What is left out of later splits: training, then validation too.

    def targets(split: str, some: Records) -> tuple[np.ndarray, Rows, tuple[str, ...]]:
        """The users of a split, codes for each, and what is unusual."""
        count = len(users.keys) + 1
        if split == "train" and not finished:
            return np.flatnonzero(seen.lengths), seen, ()
        found = load(some)
        if split == "train":
            # Of the run itself; that of other data, which `evaluate` may measure, is another.
            own = _known(found, users, items)
            most = len(items.keys)
            if own is not None and np.isin(own.pairs(most), seen.pairs(most)).all():
                return np.flatnonzero(own.lengths), own, ()
        # Users that are new in this split are told apart, and all are number 0 to the model.
        of_user = users.numbers(found.user).astype(np.int64)
        new, position = np.unique(found.user[of_user == 0], return_inverse=True)
        of_user[of_user == 0] = count + position
        of_item = items.numbers(found.item).astype(np.int64)
        # Items that are new too: each is one to be found, and never is.
        absent, position = np.unique(found.item[of_item == 0], return_inverse=True)
        of_item[of_item == 0] = len(items.keys) + 1 + position
        wanted = Rows.of_pairs(of_user, of_item, count + len(new))
        old_rows = [np.repeat(np.arange(len(each.lengths)), each.lengths) for each in known]
        before = Rows.of_pairs(
            np.concatenate(old_rows), np.concatenate([each.values for each in known]), count
        )
        pairs_before = np.repeat(np.arange(count), before.lengths), before.values
        rows = np.repeat(np.arange(count + len(new)), wanted.lengths)
        width = len(items.keys) + 1 + len(absent)
        again = np.isin(rows * width + wanted.values, pairs_before[0] * width + pairs_before[1])
        rows, values = rows[~again], wanted.values[~again]
        codes = np.where(values > len(items.keys), 0, values)
        present = np.unique(rows)
        left = np.isin(pairs_before[0], present)
        together_rows = np.concatenate([rows, pairs_before[0][left]])
        together = np.concatenate([codes, left_out(pairs_before[1][left])])
        order = np.argsort(together_rows, kind="stable")
        ends = np.cumsum(np.bincount(together_rows, minlength=count + len(new)))
        if split == "validation":
            inside = (rows < count) & (values <= len(items.keys))
            known.append(Rows.of_pairs(rows[inside], values[inside], count))
        starts = np.concatenate([[0], ends]).astype(np.int64)
        codes_of_rows = Rows(together[order].astype(np.int32), starts)
        then = "such users get what is best for everybody, such items count as not found"
        return present, codes_of_rows, _new(split, found, users, items, then)

    def examples(split: str, some: Records) -> Examples:
        present, codes, notes = targets(split, some)
        if not present.size:
            raise DataError(f"the {split} split has nothing that is not in the training split too")
        target = codes.padded(int(codes.lengths.max()), PADDING)
        with tf.device("CPU"):
            rows = tf.constant(present.astype(np.int64))

        def read(positions: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.device("CPU"):
                row = tf.gather(rows, positions)
                user = tf.where(row > len(users.keys), tf.zeros_like(row), row)
                return tf.cast(user, tf.int32), history(user), target(row)

        def decode(user: tf.Tensor, past: tf.Tensor, codes: tf.Tensor) -> tuple[Any, Any]:
            return {"user": user, "history": past}, codes

        return Examples(len(present), read, decode, decode_batch=decode, notes=notes)

    x = {"user": tf.TensorSpec((), tf.int32), "history": tf.TensorSpec((length,), tf.int32)}
    return examples, x, tf.TensorSpec((int(seen.lengths.max()),), tf.int32)
