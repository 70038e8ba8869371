"""Which features are the user, the item, the rating and the time, and what they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from tfgpu.data.cells import EXACT, LARGEST, is_number, not_finite
from tfgpu.data.records import Feature, Records, Schema
from tfgpu.errors import DataError, RequestError

_NAMES = {
    "user": r"(user|customer|reader|viewer|member|visitor|reviewer)(_?id)?",
    "item": r"(item|movie|film|book|product|article|track|song|game)(_?id)?",
    "rating": r"(user_|item_|movie_)?(rating|stars|score)s?",
    "click": r"(click|clicked|view|viewed|purchase|purchased|bought|liked|like)s?",
    "time": r"(time_?stamp|time|date|date_?time|unix_?time)",
}
ROLES = tuple(_NAMES)
_ZONED = re.compile(
    r"(?P<time>.*[T ]\d\d(?::?\d\d(?::?\d\d(?:\.\d+)?)?)?)\s*"
    r"(?:[Zz]|(?P<sign>[+-])(?P<hours>\d\d):?(?P<minutes>\d\d)?)"
)
_KINDS = {
    "user": ("id", "number", "class", "text"),
    "item": ("id", "number", "class", "text"),
    "rating": ("number", "class"),
    "click": ("number", "class"),
    "time": ("number", "id", "class", "text"),
}


def choose(schema: Schema, given: Mapping[str, str]) -> Mapping[str, str]:
    """The features that the user names, else those that are called so.

    Returns:
        "user" and "item", and of "rating" or "click" and "time" those that are there.

    Raises:
        RequestError: There is no user or no item, or one has another type.
    """
    unknown = [role for role in given if role not in ROLES]
    if unknown:
        raise RequestError(
            f"--features={unknown[0]}={given[unknown[0]]}: a recommendation set has "
            f"{', '.join(ROLES)}, and no {unknown[0]}"
        )
    roles = dict(given)
    for role, pattern in _NAMES.items():
        if role in roles or (role == "click" and "rating" in roles):
            continue
        if role == "rating" and "click" in given:
            continue
        free = [
            name
            for name, feature in schema.features.items()
            if feature.kind in _KINDS[role] and feature.shape == () and name not in roles.values()
        ]
        named = [name for name in free if re.fullmatch(pattern, name.lower())]
        if len(named) > 1:
            raise RequestError(
                f"{schema.requested!r} has {' and '.join(named)}: say which is the {role} with "
                f"--features={role}=NAME"
            )
        if named:
            roles[role] = named[0]
    if "user" not in roles or "item" not in roles:
        missing = " and no ".join(role for role in ("user", "item") if role not in roles)
        raise RequestError(
            f"{schema.requested!r} is not a recommendation set: it has no {missing}, but "
            f"{schema.described}; name them with --features=user=NAME,item=NAME,rating=NAME"
        )
    for role, name in roles.items():
        feature = schema.features[name]
        if feature.kind not in _KINDS[role] or feature.shape != ():
            raise RequestError(
                f"--features={role}={name}: {name} is {feature.described}, and cannot be the {role}"
            )
    return roles


def load(records: Records, names: tuple[str, ...], features: Mapping[str, Feature]) -> dict:
    """Whole features of all records, by name; classes as their names.

    Returns:
        Arrays (n,): int64, float, or bytes.
    """
    found = records.load(names)
    for name in names:
        feature = features[name]
        if feature.kind == "class" and feature.class_names:
            found[name] = (
                np.array(feature.class_names, dtype="S")[found[name]]
                if all(each.isascii() for each in feature.class_names)
                else np.array([each.encode() for each in feature.class_names], object)[found[name]]
            )
    return found


def as_numbers(values: np.ndarray, role: str, name: str) -> np.ndarray:
    """float64 (n,): ratings, or clicks, which may be `True` and `False` in any case.

    Raises:
        DataError: One is not a number.
    """
    if role == "click" and values.dtype.kind in "OS":
        lower = {each: each.lower() for each in set(values.tolist())}
        if set(lower.values()) <= {b"true", b"false"}:
            values = np.array([lower[each] == b"true" for each in values.tolist()])
    try:
        numbers = values.astype(np.float64)
    except ValueError:
        cell = next(str(each.decode()) for each in values.tolist() if not is_number(each))
        raise DataError(
            f"the column {name!r} is not a {role}: it has {cell!r}, which is no number"
        ) from None
    beyond = ~(np.abs(numbers) <= LARGEST)
    if beyond.any():
        what = not_finite(float(numbers[beyond][0]))
        raise DataError(f"the column {name!r} has a {role} that is {what}")
    return numbers


def as_times(values: np.ndarray, name: str) -> np.ndarray:
    """(n,) values that sort by time: numbers, or ISO 8601 as numbers.

    Raises:
        DataError: One is neither.
    """
    if values.dtype.kind in "iuf":
        return values
    try:
        texts = [each.decode().strip() for each in values.tolist()]
        zones = [_ZONED.fullmatch(text) for text in texts]
        aware = [zone is not None for zone in zones]
        if any(aware) and not all(aware):
            raise ValueError(
                f"{texts[aware.index(True)]!r} has a time zone and {texts[aware.index(False)]!r} "
                "has none"
            )
        # NumPy knows no zones.
        pairs = zip(texts, zones, strict=True)
        plain = [text if zone is None else zone["time"] for text, zone in pairs]
        times = np.array(plain).astype("datetime64[us]")
        if np.isnat(times).any():
            raise ValueError(f"{texts[int(np.isnat(times).argmax())]!r} is none")
        return times.astype(np.int64) - np.array(list(map(_offset, zones)), np.int64)
    except ValueError as error:
        raise DataError(
            f"the column {name!r} is no time: {error}; give numbers, or dates such as "
            "2026-11-27T18:30:00"
        ) from None


def _offset(zone: re.Match[str] | None) -> int:
    """Microseconds that a time zone is ahead of UTC."""
    if zone is None or zone["sign"] is None:
        return 0
    minutes = 60 * int(zone["hours"]) + int(zone["minutes"] or 0)
    return (-1 if zone["sign"] == "-" else 1) * minutes * 60_000_000


def as_keys(values: np.ndarray, name: str) -> np.ndarray:
    """(n,) ids: int64, or str.

    Raises:
        DataError: One is a float that may stand for several whole numbers.
    """
    if values.dtype.kind in "iu":
        if values.size and int(values.max()) > np.iinfo(np.int64).max:
            return values.astype(str)
        return values.astype(np.int64)
    if values.dtype.kind == "f":
        beyond = np.abs(values) > EXACT
        if beyond.any():
            raise DataError(
                f"the column {name!r} has ids as floats beyond 2^53, such as "
                f"{values[beyond][0]:.0f}, where different ids are the same number; store them as "
                "whole numbers or as text"
            )
        whole = values.astype(np.int64)
        if (whole == values).all():
            return whole
        return values.astype(str)
    if values.dtype.kind == "O":
        return np.array([each.decode("utf-8", "surrogateescape") for each in values], str)
    return np.char.decode(values, "utf-8", "surrogateescape")
