"""What a cell of a table says: a number, nothing, or text.

Numbers are read as a careful reader of CSV does, and not as Python's `float` does: `1_000` is text,
and so are digits of other scripts. Every reader of tables goes by this, that of a training as that
of `predict`: the same cell is the same number, and the same category, everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

MISSING = frozenset(
    ("", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "None", "?")
)
"""What stands in the place of a number that is not known, as pandas, R and others write it."""

LARGEST = float(np.finfo(np.float32).max)
"""Models compute in float32: what is above it is infinity to them."""

EXACT = 2**53
"""Up to here float64 tells whole numbers apart."""

_WHOLE = re.compile(r"[+-]?[0-9]+")
_CODE = re.compile(r"[+-]?0[^.]")


def to_number(cell: str) -> float:
    """The number that a cell is; blanks around it do not count.

    Raises:
        ValueError: It is none.
    """
    if "_" in cell or not cell.isascii():
        raise ValueError(cell)
    return float(cell)


def to_numbers(cells: Sequence[str]) -> list[float]:
    """`to_number` of many cells.

    Raises:
        ValueError: One is no number.
    """
    together = "".join(cells)
    if "_" in together or not together.isascii():
        raise ValueError
    return list(map(float, cells))


def is_number(cell: str | bytes) -> bool:
    """Whether a cell can be read as a number, NaN and infinity among them."""
    try:
        to_number(cell.decode() if isinstance(cell, bytes) else cell)
    except ValueError:
        return False
    return True


def not_finite(value: str | float) -> str:
    """What a number above `LARGEST` is, for a message."""
    if math.isfinite(float(value)):
        return f"infinite in float32, which models compute in ({value})"
    return f"infinite ({value})"


def is_code(cell: str) -> bool:
    """Whether a number begins with a zero that says nothing, as in 007: then it is a name."""
    return _CODE.match(cell.strip()) is not None


def is_whole(cell: str) -> bool:
    """Whether a cell is nothing but the digits of a whole number."""
    return _WHOLE.fullmatch(cell.strip()) is not None


def spelled(value: float) -> str:
    """How a number is spelled as a category; "" for NaN. Whole numbers have no fraction."""
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return ""
    return str(int(value)) if value.is_integer() else repr(value)


def respelled(cell: str) -> str:
    """How the number that a cell is, is spelled as a category; a cell that is none stays."""
    if cell.strip() in MISSING:
        return ""
    if is_code(cell):
        return cell
    try:
        return spelled(int(cell)) if is_whole(cell) else spelled(to_number(cell))
    except ValueError:
        return cell
    except OverflowError:  # Infinity is no whole number.
        return cell
