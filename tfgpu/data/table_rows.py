"""The rows of a table in a file, a chunk at a time, for those who want no whole `Source` of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tfgpu.data import csv_source, parquet_source

EXTENSIONS: tuple[str, ...] = (".csv", ".tsv", ".parquet")

_PARQUET = ".parquet"

Rows = tuple[Sequence[str], Sequence[Sequence[Any]], Sequence[int]]
"""The names of the columns, some rows, and the number that each of them is known by."""


def is_table(path: str) -> bool:
    """Whether a file is read as a table, by its name."""
    return path.lower().endswith(EXTENSIONS)


def chunks(path: str) -> Iterator[Rows]:
    """Yields rows of cells, with the line that each ends on in a CSV, or its number, from 1.

    A cell is a string; in Parquet also a list of numbers.

    Raises:
        RequestError: There is no pyarrow for a Parquet file.
        DataError: The file cannot be read, or is no such table.
    """
    if path.lower().endswith(_PARQUET):
        yield from parquet_source.chunks(path)
    else:
        yield from csv_source.chunks(path)
