"""Which columns of a table are learnt from, which is learnt, and as what."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.data.cells import LARGEST, is_number, not_finite, respelled, spelled, to_numbers
from tfgpu.data.records import Feature, Records, Schema
from tfgpu.errors import DataError, RequestError, did_you_mean

GOALS = ("auto", "classification", "regression")

MOST_CLASSES = 20
"""Different whole numbers of a target that is called a class up to which they are classes."""

TEXT = "it holds text"
"""Why a target is a class, where nothing else is possible."""

_TARGET_NAME = re.compile(r"target|label|class|outcome|y")
_CLASS_NAME = re.compile(r"(.*_)?(label|class|category|grade)")
WHOLE = re.compile(r"-?\d+")
_FLAT = ("number", "class", "id")


def choose(schema: Schema, given: Mapping[str, str]) -> Mapping[str, str]:
    """The column that is learnt: the one that is named, else the only one that is called so.

    Only a table of nothing but numbers, categories and ids is one without a name from the user:
    beside a text or an image, a label is probably theirs.

    Raises:
        RequestError: There is none, or nothing to learn it from.
    """
    unknown = [role for role in given if role != "y"]
    if unknown:
        raise RequestError(
            f"--features={unknown[0]}={given[unknown[0]]}: a table has a target, --target=COLUMN; "
            "--task_options=numbers=NAME+NAME,categories=NAME+NAME,ignore=NAME says what other "
            "columns are"
        )
    columns = [name for name, each in schema.features.items() if usable(each)]
    target = given.get("y")
    if target is None:
        named = [name for name in columns if _TARGET_NAME.fullmatch(name.lower())]
        if len(named) != 1 or len(columns) < len(schema.features):
            raise RequestError(
                f"{schema.requested!r} does not say which of its columns is to be learnt "
                f"({schema.described}): name it with --target=COLUMN"
            )
        target = named[0]
    feature = schema.features[target]
    if not usable(feature) or feature.shape != ():
        raise RequestError(
            f"--target={target}: {target} of {schema.requested!r} is {feature.described}, and a "
            "target is a number or a class"
        )
    if not [name for name in columns if name != target]:
        raise RequestError(
            f"{schema.requested!r} has no column of numbers or categories beside the target "
            f"{target!r}, but {schema.described}"
        )
    return {"y": target}


def usable(feature: Feature) -> bool:
    """Whether a column is numbers or categories, or may be."""
    if feature.kind == "numbers":
        fixed = len(feature.shape) == 1 and None not in feature.shape
        return fixed and np.dtype(feature.dtype).kind in "iuf"
    return feature.kind in _FLAT and feature.shape == ()


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the options say of columns."""

    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    ignore: tuple[str, ...]

    @classmethod
    def of(cls, options: Mapping[str, Any], schema: Schema, target: str) -> Asked:
        """Reads the options.

        Raises:
            RequestError: A name is no column, is named twice, or is the target.
        """
        found = {}
        for name in ("numbers", "categories", "ignore"):
            text = options[name]
            # A name may have a "+" of its own.
            names = [text] if text in schema.features else text.split("+")
            found[name] = tuple(filter(None, names))
        seen: dict[str, str] = {target: "target"}
        for option, names in found.items():
            for name in names:
                if name not in schema.features:
                    raise RequestError(
                        f"--task_options={option}={name}: {schema.requested!r} has no column "
                        f"{name!r}{did_you_mean(name, schema.features)}"
                    )
                if name in seen:
                    raise RequestError(
                        f"--task_options={option}={name}: {name!r} is in {seen[name]} too; "
                        "name it once"
                    )
                seen[name] = option
        return cls(**found)


def goal_of(target: str, feature: Feature, wanted: str) -> tuple[str, str]:
    """Whether a target is a class or a number, and why.

    Whole numbers are classes where there are two of them, or up to `MOST_CLASSES` in a column that
    is called a class, a label, a category or a grade.

    Raises:
        RequestError: The option is none of `GOALS`.
        DataError: A class is wanted as a number.
    """
    if wanted not in GOALS:
        raise RequestError(f"--task_options=goal={wanted}: must be one of {', '.join(GOALS)}")
    count = len(feature.class_names)
    text = feature.dtype == "string" or (feature.kind == "class" and not _whole(feature))
    if text and (wanted == "regression" or (wanted == "auto" and feature.stray)):
        where = f" ({feature.stray})" if feature.stray else ""
        raise DataError(
            f"the target {target!r} holds text where a number belongs{where}; take that away, or "
            "learn a class with --task_options=goal=classification"
        )
    if wanted != "auto":
        return wanted, "as asked for"
    if text:
        return "classification", TEXT
    if count == 2:
        return "classification", "two whole numbers"
    if 0 < count <= MOST_CLASSES and _CLASS_NAME.fullmatch(target.lower()):
        return "classification", f"{count} whole numbers in a column of that name"
    return "regression", f"{count} whole numbers" if count else "numbers"


def _whole(feature: Feature) -> bool:
    return all(WHOLE.fullmatch(name) for name in feature.class_names)


def load(records: Records, names: tuple[str, ...], schema: Schema) -> dict[str, np.ndarray]:
    """Columns of all records, with what is missing.

    Returns:
        By name (n,), or of several numbers (n, k): float64 with NaN, or bytes with b"".
    """
    found = records.with_missing().load(names) if names else {}
    for name in names:
        feature = schema.features[name]
        if feature.kind == "class":
            table = np.array([*map(str.encode, feature.class_names), b""], object)
            # -1, what is missing, is the last.
            found[name] = table[found[name]]
    return found


def as_strings(values: np.ndarray) -> np.ndarray:
    """(n,) of bytes: numbers as `tfgpu.data.cells.spelled` has them, "" for NaN."""
    if values.dtype.kind in "iuf":
        return np.array([spelled(each).encode() for each in values.tolist()], object)
    if values.dtype.kind == "b":
        return np.array([b"True" if each else b"False" for each in values.tolist()], object)
    return values.astype(object)


class Spelling:
    """Cells -> the same strings as the categories that training has of them.

    A cell that is spelled as a category is that one. Otherwise it is the one that is the same
    number, where the cell comes as a number, or the categories are all numbers: what "1.0" is
    called depends on the other cells of its column, and these differ between tables.

    Args:
        column: For messages.
        vocabulary: The categories, as `as_strings` gave them in training.
    """

    def __init__(self, column: str, vocabulary: Sequence[str]):
        self._column = column
        self._known = set(vocabulary)
        self._of_numbers = any(vocabulary) and all(
            not each or (is_number(each) and respelled(each) == each) for each in vocabulary
        )
        self._by_number: dict[str, list[str]] = collections.defaultdict(list)
        for each in vocabulary:
            self._by_number[respelled(each)].append(each)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(n,) of bytes, of numbers or strings (n,).

        Raises:
            DataError: A number is that of several categories.
        """
        numbers = values.dtype.kind in "iuf"
        cells = as_strings(values).tolist()
        table = {cell: self._one(cell, numbers) for cell in set(cells)}
        found = np.empty(len(cells), object)
        found[:] = [table[cell] for cell in cells]
        return found

    def _one(self, cell: bytes, is_number: bool) -> bytes:
        text = cell.decode(errors="replace")
        if text in self._known or not (is_number or self._of_numbers):
            return cell
        text = respelled(text)
        same = self._by_number.get(text, [text])
        if len(same) > 1:
            raise DataError(
                f"the column {self._column!r} holds the number {text}, which is the category "
                f"{' and '.join(map(repr, same))} of the training: write one of them, among cells "
                "that are no numbers"
            )
        return same[0].encode()


def as_numbers(values: np.ndarray, name: str, feature: Feature) -> np.ndarray:
    """float64 of the same shape, NaN where it is missing.

    Raises:
        DataError: One is not a number, or is infinite in float32.
    """
    if values.dtype.kind in "OSU":
        cells = [each.decode(errors="replace") or "nan" for each in values.tolist()]
        try:
            values = np.array(to_numbers(cells))
        except ValueError:
            wrong = next(each for each in cells if not is_number(each))
            where = feature.stray or repr(wrong)
            raise DataError(
                f"the column {name!r} holds text where a number belongs ({where})"
            ) from None
    numbers = values.astype(np.float64)
    beyond = np.abs(numbers) > LARGEST
    if beyond.any():
        place = tuple(np.argwhere(beyond)[0].tolist())
        what = not_finite(float(numbers[place]))
        raise DataError(f"the column {name!r} is {what} in row {place[0] + 1} of a split")
    return numbers
