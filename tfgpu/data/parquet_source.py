"""`parquet:FILE`: a table in Apache Parquet, with the features that the same table as CSV has.

    parquet:reviews.parquet    one table; a tenth is picked for the test, by the seed
    parquet:FOLDER             FOLDER/train.parquet, with FOLDER/test.parquet or validation.parquet

Types say more than cells do: numbers, booleans ("False" and "True") and strings are taken as they
are, null is an empty cell, and dates are strings of ISO 8601. A column of lists of numbers, all of
one length, is an array for each row; one of lists of strings is lists of labels. Needs pyarrow (the
extra `parquet`). Rows lie in memory, as those of a CSV do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data.cells import LARGEST
from tfgpu.data.columns import Column, Place
from tfgpu.data.records import Feature, Source
from tfgpu.data.table import columns_source, digest, table_files
from tfgpu.errors import DataError, RequestError

NEEDED = "parquet: needs pyarrow: pip install 'tfgpu[parquet]'"

_CHUNK = 65536  # Rows that are converted at a time.


@dataclasses.dataclass
class _Arrays(Column):
    """A column of lists of numbers of one length.

    Attributes:
        chunks: (rows, length) each.
    """

    chunks: list[np.ndarray] = dataclasses.field(default_factory=list)

    def add_lists(self, values: np.ndarray, place: Place) -> None:
        """Takes a chunk of rows (n, length).

        Raises:
            DataError: The length is another than before.
        """
        if self.chunks and self.chunks[0].shape[1] != values.shape[1]:
            raise DataError(
                f"{place(0)}: the column {self.name!r} has {values.shape[1]} numbers here, and "
                f"{self.chunks[0].shape[1]} before; make all lists of one length"
            )
        unusable = ~(np.abs(values.astype(np.float64)) <= LARGEST)
        if unusable.any():
            row = int(np.argwhere(unusable)[0][0])
            self.empty = self.empty or place(row)
        self.chunks.append(values)

    def feature(self, rows: int) -> Feature:
        """See `Column.feature`."""
        first = self.chunks[0]
        return Feature(
            kind="numbers",
            shape=(first.shape[1],),
            dtype=first.dtype.name,
            described=f"{first.shape[1]} numbers",
        )

    def list_feature(self, *, beside_images: bool) -> None:
        """See `Column.list_feature`."""

    def refuse_unusable(self, *, missing: bool) -> None:
        """See `Column.refuse_unusable`."""
        if self.empty:
            raise DataError(
                f"{self.empty}: a number of the column {self.name!r} is missing or infinite; put "
                "one there, or take the row away"
            )

    def values(self, feature: Feature) -> tf.Tensor:
        """See `Column.values`: (rows, length)."""
        return tf.constant(np.concatenate(self.chunks))

    def drop(self) -> None:
        """See `Column.drop`."""
        self.chunks = self.chunks[:1]


@dataclasses.dataclass
class _Others(Column):
    """A column of a type that is not read.

    Attributes:
        type_name: As Arrow has it.
    """

    type_name: str = ""

    def feature(self, rows: int) -> Feature:
        """See `Column.feature`."""
        return Feature(kind="other", described=self.type_name)

    def list_feature(self, *, beside_images: bool) -> None:
        """See `Column.list_feature`."""

    def refuse_unusable(self, *, missing: bool) -> None:
        """See `Column.refuse_unusable`."""
        raise DataError(
            f"the column {self.name!r} is of the type {self.type_name}, which is not read; make "
            "numbers, strings, or lists of numbers of one length of it"
        )


def open_source(rest: str) -> Source:
    """Opens a table.

    Args:
        rest: The path of a file, or of a folder with `train.parquet`.

    Raises:
        RequestError: There is no such file, or no pyarrow.
        DataError: It is no Parquet file, or lists differ in length.
    """
    requested = f"parquet:{rest}"
    files = table_files(rest, "parquet")
    columns: list[Column] = []
    types: list[Any] = []
    ends: dict[str, tuple[int, int]] = {}
    rows = 0
    for split_name, path in files.items():
        before = rows
        for batch in _batches(path):
            found = [(field.name, field.type) for field in batch.schema]
            if not columns:
                types = found
                columns = [_column(name, kind, path) for name, kind in found]
                twice = [name for i, (name, _) in enumerate(found) if name in dict(found[:i])]
                if twice:
                    raise DataError(f"{path} has two columns {twice[0]!r}; give each a name")
            elif found != types:
                first = next(iter(files.values()))
                other = next(
                    (a for a, b in zip(found, types, strict=False) if a != b),
                    (len(found), "columns"),
                )
                raise DataError(f"{path} has other columns than {first}: {other[0]} {other[1]}")

            def place(row: int, path: str = path, first: int = rows - before) -> str:
                return f"{path}, row {first + row + 1}"

            for column, values in zip(columns, batch.columns, strict=True):
                _add(column, values, place)
            rows += batch.num_rows
        if rows == before:
            raise DataError(f"{path} has no row")
        ends[split_name] = before, rows
    return columns_source(
        columns,
        ends,
        requested=requested,
        fingerprint=digest(files),
        folder_of=next(iter(files.values())),
    )


def chunks(path: str) -> Iterator[tuple[list[str], list[list[Any]], list[int]]]:
    """Yields the names of the columns, some rows, and their numbers, from 1.

    Returns of each value the cell that the same table has as CSV, "" for null, so that what was
    learnt from one is found in the other; of a list of numbers the list.

    Raises:
        RequestError: There is no pyarrow.
        DataError: It is no Parquet file.
    """
    count = 0
    for batch in _batches(path):
        names = [str(field.name) for field in batch.schema]
        columns = [_cells(values) for values in batch.columns]
        rows = [list(row) for row in zip(*columns, strict=True)]
        yield names, rows, [*range(count + 1, count + 1 + len(rows))]
        count += len(rows)


def _cells(values: Any) -> list[Any]:
    from pyarrow import types

    kind = values.type
    if types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if types.is_decimal(kind):
        values = values.cast("float64", safe=False)
    elif types.is_temporal(kind):
        values = values.cast("string")
    cells = values.to_pylist()
    if types.is_nested(kind):
        # Of strings those that are joined in a CSV.
        return [
            "|".join(cell) if cell and all(isinstance(each, str) for each in cell) else cell or ""
            for cell in cells
        ]
    return ["" if cell is None else str(cell) for cell in cells]


def _batches(path: str) -> Iterator[Any]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise RequestError(NEEDED) from None
    try:
        # Memory-mapped, a file that is cut short kills the process.
        with parquet.ParquetFile(path, memory_map=False) as file:
            yield from file.iter_batches(_CHUNK)
    except (arrow.ArrowException, OSError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"{path} cannot be read as Parquet: {first}") from None


def _column(name: str, kind: Any, path: str) -> Column:
    from pyarrow import types

    if not name:
        raise DataError(f"{path} has a column without a name; give it one")
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = kind.value_type
        if types.is_integer(inner) or types.is_floating(inner):
            return _Arrays(name)
        if types.is_string(inner) or types.is_large_string(inner):
            return Column(name)
    elif (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_temporal(kind)
        or types.is_null(kind)
    ):
        return Column(name)
    return _Others(name, type_name=str(kind))


def _add(column: Column, values: Any, place: Place) -> None:
    """Gives a column the values of a batch, an `arrow.Array`."""
    from pyarrow import types

    if isinstance(column, _Others):
        return
    kind = values.type
    if types.is_dictionary(kind):
        values = values.dictionary_decode()
        kind = values.type
    if isinstance(column, _Arrays):
        column.add_lists(_as_arrays(values, column.name, place), place)
    elif types.is_integer(kind):
        missing = values.is_null().to_numpy(zero_copy_only=False)
        column.add_whole(values.fill_null(0).to_numpy(zero_copy_only=False), missing, place)
    elif types.is_floating(kind) or types.is_decimal(kind):
        # Null is NaN there.
        found = values.cast("float64", safe=False).to_numpy(zero_copy_only=False)
        column.add_numbers(found, place)
    elif types.is_boolean(kind):
        column.add(["" if each is None else str(each) for each in values.to_pylist()], place)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        lists = values.to_pylist()
        column.add(["|".join(map(str, each or ())) for each in lists], place)
    else:
        cells = values.cast("string").to_pylist()
        column.add(["" if each is None else each for each in cells], place)


def _as_arrays(values: Any, name: str, place: Place) -> np.ndarray:
    """Lists as an array (n, length).

    Raises:
        DataError: They differ in length, or one is not there.
    """
    lengths = np.array([-1 if each is None else each for each in _lengths(values)])
    wrong = np.flatnonzero(lengths != max(lengths[0], 0))
    if lengths[0] < 0 or wrong.size:
        row = 0 if lengths[0] < 0 else int(wrong[0])
        what = "is not there" if lengths[row] < 0 else f"has {lengths[row]} numbers"
        raise DataError(
            f"{place(row)}: the list of the column {name!r} {what}, and that of the first row has "
            f"{max(lengths[0], 0)}; make all lists of one length"
        )
    flat = values.flatten()
    if flat.null_count:
        flat = flat.cast("float64")
    array: np.ndarray = flat.to_numpy(zero_copy_only=False)
    return array.reshape(len(values), -1)


def _lengths(values: Any) -> list[int | None]:
    from pyarrow import compute

    found: list[int | None] = compute.list_value_length(values).to_pylist()
    return found
