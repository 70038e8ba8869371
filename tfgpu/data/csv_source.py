"""`csv:FILE`: a table with a header, a column for each feature.

    csv:reviews.csv      one table; a tenth is picked for the test, by the seed
    csv:FOLDER           FOLDER/train.csv, with FOLDER/test.csv or FOLDER/validation.csv

UTF-8 with or without a byte-order mark; comma, semicolon or tab, whichever the header has most of;
quoted cells may hold line breaks. Rows lie in memory, without Python objects: a million rows of
five short columns took 150 MB, and 250 once three were loaded as arrays.

What a column is, is guessed from its cells and, where these leave it open, from its name:

- `number`: every cell is a number. int64 where all are whole, else float64. Whole numbers in a
  column that is called an id, a user or an item are an `id`; in one that is called a label, and few
  in number, a `class`.
- `class`: few different short cells: int64 positions among the sorted cells, which are the names.
- `text`: cells with several words, or of a language that writes none apart.
- `id`: other strings.

A cell that is empty is refused when its column is used, and not before.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.errors import DataError, RequestError

MOST_CLASSES = 1000
"""Different cells of a column that may be a class."""

_CHUNK = 65536  # Rows that exist as Python objects at a time.
_LONGEST_CLASS = 100  # Characters of a class' name.
_SPLITS = ("train", "test", "validation")
_TEXT_NAME = re.compile(r"(.*_)?(text|review|sentence|comment|content|body|message|document)s?")
_CLASS_NAME = re.compile(r"(.*_)?(label|class|category|target|sentiment|polarity|y)")
_ID_NAME = re.compile(r"(.*_)?(id|user|item|movie|film|book|product|customer|article)(_?ids?)?")
# Of scripts that write no spaces between words: Thai to Khmer, kana, CJK ideographs.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{2}")


@dataclasses.dataclass
class _Column:
    """One column, as far as it has been read.

    Attributes:
        name: From the header.
        strings: The cells, in chunks.
        numbers: The same as numbers; None once a cell is none.
        whole: Whether all numbers are whole and written as Python writes them.
        distinct: The different cells; None once there are more than `MOST_CLASSES`.
        longest: Characters of the longest cell.
        several_words: Cells with several words.
        empty: File and line of the first empty cell.
    """

    name: str
    strings: list[tf.Tensor] = dataclasses.field(default_factory=list)
    numbers: list[np.ndarray] | None = dataclasses.field(default_factory=list)
    whole: bool = True
    distinct: set[str] | None = dataclasses.field(default_factory=set)
    longest: int = 0
    several_words: int = 0
    empty: str = ""

    def add(self, cells: Sequence[str]) -> None:
        """Takes the cells of a chunk of rows."""
        with tf.device("CPU"):
            self.strings.append(tf.constant(cells))
        self.longest = max(self.longest, max(map(len, cells)))
        if self.distinct is not None:
            self.distinct.update(cells)
            if len(self.distinct) > MOST_CLASSES:
                self.distinct = None
        if self.numbers is not None:
            found = self._numbers(cells)
            if found is None:
                self.numbers = None
            else:
                self.numbers.append(found)
        self.several_words += sum(
            " " in cell or (not cell.isascii() and UNSPACED.search(cell) is not None)
            for cell in cells
        )

    def _numbers(self, cells: Sequence[str]) -> np.ndarray | None:
        """The cells as numbers, 0 for empty ones; None where a cell is no number."""
        kept = [cell or "0" for cell in cells]
        # Plain Python: NumPy takes twice as long over strings.
        if self.whole:
            try:
                whole = list(map(int, kept))
                # What is written otherwise, such as 007, only looks like a number.
                if list(map(str, whole)) == kept:
                    return np.array(whole, np.int64)
            except (ValueError, OverflowError):
                pass
            self.whole = False
        try:
            found = np.array(list(map(float, kept)))
        except ValueError:
            return None
        otherwise = any(cell[0] == "0" and cell[1:2] not in ("", ".") for cell in kept)
        return None if otherwise or not np.isfinite(found).all() else found

    def feature(self, rows: int) -> Feature:
        """What the column is, once every row has been read."""
        name = self.name.lower()
        cells = self.distinct
        few = cells is not None and self.longest <= _LONGEST_CLASS
        if self.numbers is not None:
            names: tuple[str, ...] = ()
            if self.whole and few and cells is not None:
                names = tuple(map(str, sorted(int(cell) for cell in cells if cell)))
            kind, dtype = "number", "int64" if self.whole else "float64"
            if self.whole and _ID_NAME.fullmatch(name):
                kind, names = "id", ()
            elif names and _CLASS_NAME.fullmatch(name):
                kind = "class"
            described = {"id": "ids", "class": f"{len(names)} classes"}.get(kind, "numbers")
            return Feature(kind=kind, dtype=dtype, class_names=names, described=described)
        if _ID_NAME.fullmatch(name) and self.several_words <= rows // 2:
            return Feature(kind="id", dtype="string", described="ids")
        several = self.several_words > rows // 2
        is_text = _TEXT_NAME.fullmatch(name) is not None
        repeated = cells is not None and len(cells) <= max(1, rows // 2)
        if few and not is_text and (repeated or _CLASS_NAME.fullmatch(name)):
            assert cells is not None
            names = tuple(sorted(cell for cell in cells if cell))
            count = "1 class" if len(names) == 1 else f"{len(names)} classes"
            return Feature(kind="class", dtype="int64", class_names=names, described=count)
        if is_text or several:
            return Feature(kind="text", dtype="string", described="text")
        return Feature(kind="id", dtype="string", described="strings")

    def values(self, feature: Feature) -> tf.Tensor:
        """The cells of all rows as the feature has them, (rows,)."""
        with tf.device("CPU"):
            if feature.kind == "class":
                table = {name: i for i, name in enumerate(feature.class_names)}
                found = [
                    np.array([table.get(cell.decode(), 0) for cell in some.numpy()], np.int64)
                    for some in self.strings
                ]
                return tf.constant(np.concatenate(found))
            if feature.dtype != "string":
                assert self.numbers is not None
                return tf.constant(np.concatenate(self.numbers).astype(feature.dtype))
            return tf.concat(self.strings, axis=0)

    def drop(self) -> None:
        """Lets go of the chunks."""
        self.strings, self.numbers = [], None


def open_source(rest: str) -> Source:
    """Opens a table.

    Args:
        rest: The path of a file, or of a folder with `train.csv`.

    Raises:
        RequestError: There is no such file.
        DataError: It is no table in UTF-8.
    """
    requested = f"csv:{rest}"
    files = _files(rest)
    columns: list[_Column] = []
    ends: dict[str, tuple[int, int]] = {}
    rows = 0
    for split_name, path in files.items():
        before = rows
        for names, some, lines in chunks(path):
            if not columns:
                columns = [_Column(name) for name in names]
            elif names != [column.name for column in columns]:
                first = next(iter(files.values()))
                raise DataError(f"{path} has other columns than {first}: {', '.join(names)}")
            for column, cells in zip(columns, zip(*some, strict=True), strict=True):
                if not all(map(str.strip, cells)):
                    row = next(i for i, cell in enumerate(cells) if not cell.strip())
                    column.empty = column.empty or f"{path}, line {lines[row]}"
                    cells = tuple(cell if cell.strip() else "" for cell in cells)
                column.add(cells)
            rows += len(some)
        if rows == before:
            raise DataError(f"{path} has no row below its header")
        ends[split_name] = before, rows
    features = {column.name: column.feature(rows) for column in columns}
    by_name = {column.name: column for column in columns}
    for name, feature in features.items():
        if feature.kind != "class" and feature.dtype != "string":
            by_name[name].strings = []  # The numbers are what is read.
    values: dict[str, tf.Tensor] = {}

    def column_of(name: str) -> tf.Tensor:
        if name not in values:
            if by_name[name].empty:
                raise DataError(
                    f"{by_name[name].empty}: the cell of the column {name!r} is empty; fill it in "
                    "or take the row away"
                )
            with tf.init_scope():
                values[name] = by_name[name].values(features[name])
            by_name[name].drop()
        return values[name]

    def select(names: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        found = {name: column_of(name) for name in names}

        # Of one row and of many alike.
        def decode(positions: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.device("CPU"):
                return {name: tf.gather(column, positions) for name, column in found.items()}

        return decode

    whole = Records(rows, lambda positions: (positions,), select, select_batch=select)

    def split(split_name: str, label: str | None = None) -> Records | None:
        if split_name not in ends:
            return None
        start, end = ends[split_name]
        return whole if (start, end) == (0, rows) else whole.take(np.arange(start, end))

    texts = [name for name, feature in features.items() if feature.kind == "text"]
    classes = [name for name, feature in features.items() if feature.kind == "class"]
    only = len(texts) == 1 and len(classes) == 1
    return Source(
        name=requested,
        fingerprint=_digest(files),
        schema=Schema(
            requested=requested,
            features=features,
            supervised=(texts[0], classes[0]) if only else None,
        ),
        split=split,
    )


def _files(rest: str) -> dict[str, str]:
    """The file of each split."""
    path = os.path.expanduser(rest)
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise RequestError(f"there is no file {path!r}: csv: needs the path of a table")
        return {"train": path}
    files = {name: os.path.join(path, f"{name}.csv") for name in _SPLITS}
    found = {name: file for name, file in files.items() if os.path.isfile(file)}
    if "train" not in found:
        raise RequestError(f"the folder {path!r} has no train.csv: name the table itself")
    return found


def _digest(files: dict[str, str]) -> str:
    """SHA-256 of the contents, in hexadecimal."""
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name} {os.path.getsize(path)}\n".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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
            header = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            names = _names(path, next(reader, []))
            rows: list[list[str]] = []
            lines: list[int] = []
            try:
                for row in reader:
                    if not row:
                        continue  # A line without anything.
                    if len(row) != len(names):
                        raise DataError(
                            f"{path}, line {reader.line_num}: {len(row)} cells, and the header "
                            f"has {len(names)} columns; put cells that hold {delimiter!r} in "
                            "double quotes"
                        )
                    rows.append(row)
                    lines.append(reader.line_num)
                    if len(rows) == _CHUNK:
                        yield names, rows, lines
                        rows, lines = [], []
            except csv.Error as error:
                raise DataError(
                    f"{path}, line {reader.line_num}: {error}; a cell that holds double quotes or "
                    "line breaks must be in double quotes, with those within it doubled"
                ) from None
            if rows:
                yield names, rows, lines
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _names(path: str, header: list[str]) -> list[str]:
    names = [name.strip() or f"column_{i + 1}" for i, name in enumerate(header)]
    if not names:
        raise DataError(f"{path} is empty: its first line must name the columns")
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
            start = file.read(2)
            file.seek(0)
            for number, line in enumerate(file, 1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    wide = start in (b"\xff\xfe", b"\xfe\xff")
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
