"""Host lists as Slurm writes them: `n[2,10],gpu[001-003]`, and `2(x3),1` for tasks of each."""

from __future__ import annotations

import itertools
import math
import re

_LARGEST = 1 << 16
"""Hosts of a list; more is a mistake."""


def expand(text: str) -> list[str]:
    """Returns the hosts of a list, in the order in which it names them.

    That is the order in which Slurm counts nodes, and not that of the alphabet: `n[2,10]` is n2,
    n10. Of several brackets in a name the last runs fastest. Numbers keep their leading zeros.

    Args:
        text: Such as `n[2,10]`, `gpu[001-003]`, `a[1-2]b[3-4]`, `login,n[1-2]-ib`.

    Raises:
        ValueError: It is no such list.
    """
    hosts: list[str] = []
    for entry in re.split(r",(?![^\[]*\])", text):  # Not at the commas inside a bracket.
        if not re.fullmatch(r"([^\[\],\s]+|\[[^\[\]]+\])+", entry):
            raise ValueError(f"{text!r} is not a list of hosts")
        parts = re.findall(r"[^\[\]]+|\[[^\[\]]+\]", entry)
        choices = [_numbers(part[1:-1]) if part[0] == "[" else [part] for part in parts]
        if math.prod(map(len, choices)) > _LARGEST:
            raise ValueError(f"{entry!r} are too many hosts")
        hosts += map("".join, itertools.product(*choices))
    return hosts


def _numbers(text: str) -> list[str]:
    """The numbers of a bracket, such as `2,7-9`."""
    numbers = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise ValueError(f"[{text}] is not a list of numbers")
        first, last = match[1], match[2] or match[1]
        if not 0 <= int(last) - int(first) < _LARGEST:
            raise ValueError(f"{part} is not a range of numbers")
        numbers += [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return numbers


def tasks_of_nodes(text: str) -> list[int]:
    """Returns the tasks of each node, from such as `2(x3),1`: 2, 2, 2, 1.

    Raises:
        ValueError: It is no such list.
    """
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None or int(match[2] or 1) >= _LARGEST:
            raise ValueError(f"{text!r} is not a list of numbers of tasks")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
