"""In what two runs, searches or trainings differ, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tfgpu.artifacts import files

_MISSING = object()


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], *, ignoring: frozenset[str] = frozenset()
) -> list[str]:
    """Names the settings in which two runs differ: "batch_size: 128 there, 64 now".

    Args:
        old: Settings read from config.json.
        new: Settings asked for now.
        ignoring: Names of settings that do not count.

    Returns:
        One text a setting, sorted.
    """

    def show(value: Any) -> str:
        return "not set" if value is _MISSING else json.dumps(value)

    found = []
    new = files.plain(new)
    for name in sorted((old.keys() | new.keys()) - ignoring):
        before, now = old.get(name, _MISSING), new.get(name, _MISSING)
        if before != now:
            found.append(f"{name}: {show(before)} there, {show(now)} now")
    return found


def first_of(found: Sequence[str], most: int = 5) -> str:
    """Returns the first of what `differences` found, in one line, and how many more there are."""
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return "; ".join([*found[:most], *more])
