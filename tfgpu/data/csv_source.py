"""`csv:FILE`: a table with a header, a column for each feature.

    csv:reviews.csv      one table; a tenth is picked for the test, by the seed
    csv:FOLDER           FOLDER/train.csv, with FOLDER/test.csv or FOLDER/validation.csv

UTF-8 with or without a byte-order mark; comma, semicolon or tab, whichever the header has most of,
or what a line `sep=;` before it says; quoted cells may hold line breaks. Rows lie in memory,
without Python objects: a million rows of five short columns took 150 MB, and 250 once three were
loaded as arrays.

What columns are, and what becomes of empty cells: `tfgpu.data.columns`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tfgpu.data.columns import Column
from tfgpu.data.records import Source
from tfgpu.data.table import columns_source, digest, table_files
from tfgpu.errors import DataError

_CHUNK = 65536  # Rows that exist as Python objects at a time.
_LONGEST_HEADER = 1 << 16  # Characters.
_SEPARATOR = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.IGNORECASE)
_COMPRESSED = {
    b"\x1f\x8b": "is compressed (gzip)",
    b"BZh": "is compressed (bzip2)",
    b"\xfd7zXZ": "is compressed (xz)",
    b"\x28\xb5\x2f\xfd": "is compressed (Zstandard)",
    b"PK\x03\x04": "is a ZIP archive or an Excel workbook",
}


def open_source(rest: str) -> Source:
    """Opens a table.

    Args:
        rest: The path of a file, or of a folder with `train.csv`.

    Raises:
        RequestError: There is no such file.
        DataError: It is no table in UTF-8, or an image that it names is not there.
    """
    files = table_files(rest, "csv")
    columns: list[Column] = []
    ends: dict[str, tuple[int, int]] = {}
    rows = 0
    for split_name, path in files.items():
        before = rows
        for names, some, lines in chunks(path):
            if not columns:
                columns = [Column(name) for name in names]
            elif names != [column.name for column in columns]:
                first = next(iter(files.values()))
                raise DataError(f"{path} has other columns than {first}: {', '.join(names)}")

            def place(row: int, path: str = path, lines: list[int] = lines) -> str:
                return f"{path}, line {lines[row]}"

            for column, cells in zip(columns, zip(*some, strict=True), strict=True):
                column.add(cells, place)
            rows += len(some)
        if rows == before:
            raise DataError(f"{path} has no row below its header")
        ends[split_name] = before, rows
    return columns_source(
        columns,
        ends,
        requested=f"csv:{rest}",
        fingerprint=digest(files),
        folder_of=files["train"],
    )


def chunks(path: str) -> Iterator[tuple[list[str], list[list[str]], list[int]]]:
    """Yields the names of the columns, some rows, and the line that each of them ends on.

    Raises:
        DataError: The file cannot be read, is not in UTF-8, or a row has more or fewer cells than
            the header.
    """
    _refuse_other_encodings(path)
    # The module's limit for a cell is 131,072 characters, less than a book.
    csv.field_size_limit(2**31 - 1)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter, skipped = _delimiter(file)
            file.seek(0)
            for _ in range(skipped):
                file.readline()
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            rows: list[list[str]] = []
            lines: list[int] = []

            def line() -> int:
                return int(reader.line_num) + skipped

            try:
                names = _names(path, next(reader, None))
                for row in reader:
                    if not row:
                        continue  # A line without anything.
                    if len(row) != len(names):
                        raise DataError(
                            f"{path}, line {line()}: {len(row)} cells, and the header has "
                            f"{len(names)} columns; put cells that hold {delimiter!r} in double "
                            "quotes"
                        )
                    rows.append(row)
                    lines.append(line())
                    if len(rows) == _CHUNK:
                        yield names, rows, lines
                        rows, lines = [], []
            except csv.Error as error:
                raise DataError(
                    f"{path}, line {line()}: {error}; a cell that holds double quotes or "
                    "line breaks must be in double quotes, with those within it doubled"
                ) from None
            if rows:
                yield names, rows, lines
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _delimiter(file: TextIO) -> tuple[str, int]:
    """What parts the cells, and how many lines stand before the header.

    It is what the header has most of; what stands in double quotes parts none. Excel's own line
    before it, `sep=;`, says it.
    """
    header = file.readline()
    said = _SEPARATOR.fullmatch(header)
    if said is not None:
        return said[1], 1
    while header.count('"') % 2 and len(header) < _LONGEST_HEADER and (line := file.readline()):
        header += line
    plain = re.sub('"[^"]*"', "", header)
    return max(",;\t", key=lambda each: (plain.count(each), header.count(each))), 0


def _names(path: str, header: list[str] | None) -> list[str]:
    if header is None:
        raise DataError(f"{path} is empty: its first line must name the columns")
    names = [name.strip() or f"column_{i + 1}" for i, name in enumerate(header)]
    if not names:
        raise DataError(f"{path}: the first line is empty, and must name the columns")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path} has two columns {twice[0]!r}; give each a name of its own")
    return names


def _refuse_other_encodings(path: str) -> None:
    """Reads a file once for its encoding alone: a message then names the line.

    Raises:
        DataError: It is not in UTF-8.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(6)
            for magic, what in _COMPRESSED.items():
                if start.startswith(magic):
                    raise DataError(f"{path} {what}: unpack it, or save it as CSV in UTF-8")
            file.seek(0)
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    wide = start[:2] in (b"\xff\xfe", b"\xfe\xff")
                    what = "UTF-16" if wide else "not UTF-8"
                    raise DataError(
                        f"{path} is {what} (line {number}, byte 0x{line[error.start]:02x}): "
                        f"convert it, such as with `iconv -f {'UTF-16' if wide else 'ENCODING'} "
                        f"-t UTF-8 {Path(path).name}`"
                    ) from None
                if b"\0" in line:
                    raise DataError(f"{path}, line {number}: a zero byte; it is no text file")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
