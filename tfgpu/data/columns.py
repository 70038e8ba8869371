"""Columns of a table that lie in memory: what each is, and the `Source` that they are.

What a column is, is guessed from its cells and, where these leave it open, from its name:

- `number`: every cell is a number. int64 where all are whole, else float64. Whole numbers in a
  column that is called an id, a user or an item are an `id`; in one that is called a label, and few
  in number, a `class`.
- `class`: few different short cells: int64 positions among the sorted cells, which are the names.
- `text`: cells with several words, or of a language that writes none apart.
- `id`: other strings.

An empty cell, and in a column of numbers one of `MISSING` or an infinity, is refused when its
column is used, and not before. `Records.with_missing` gives the empty ones as missing values.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.errors import DataError

MOST_CLASSES = 1000
"""Different cells of a column that may be a class."""

MISSING = frozenset(
    ("", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL", "None", "?")
)
"""What stands in the place of a number that is not known, as pandas, R and others write it."""

_LONGEST_CLASS = 100  # Characters of a class' name.
_TEXT_NAME = re.compile(r"(.*_)?(text|review|sentence|comment|content|body|message|document)s?")
_CLASS_NAME = re.compile(r"(.*_)?(label|class|category|target|sentiment|polarity|y)")
_ID_NAME = re.compile(r"(.*_)?(id|user|item|movie|film|book|product|customer|article)(_?ids?)?")
# Of scripts that write no spaces between words: Thai to Khmer, kana, CJK ideographs.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{2}")

Place = Callable[[int], str]
"""Row of a chunk -> where it stands, such as "a.csv, line 7"."""


@dataclasses.dataclass
class Column:
    """One column, as far as it has been read.

    Attributes:
        name: Of the feature.
        strings: The cells, in chunks.
        numbers: The same as numbers, NaN for what is missing; None once a cell is none.
        whole: Whether all numbers are whole and written as Python writes them.
        distinct: The different cells; None once there are more than `MOST_CLASSES`.
        longest: Characters of the longest cell.
        several_words: Cells with several words.
        empty: Where the first empty cell is.
        unknown: Where the first cell is that is empty or one of `MISSING`, and what it holds.
        infinite: Where the first infinity is.
        stray: Where the first cell is that is no number among mostly numbers, and what it holds.
    """

    name: str
    strings: list[tf.Tensor] = dataclasses.field(default_factory=list)
    numbers: list[np.ndarray] | None = dataclasses.field(default_factory=list)
    whole: bool = True
    distinct: set[str] | None = dataclasses.field(default_factory=set)
    longest: int = 0
    several_words: int = 0
    empty: str = ""
    unknown: str = ""
    infinite: str = ""
    stray: str = ""

    def add(self, cells: Sequence[str], place: Place) -> None:
        """Takes the cells of a chunk of rows; those without anything in them are empty."""
        if not all(map(str.strip, cells)):
            cells = [cell if cell.strip() else "" for cell in cells]
            self.empty = self.empty or place(cells.index(""))
        with tf.device("CPU"):
            self.strings.append(tf.constant(cells))
        self.longest = max(self.longest, max(map(len, cells)))
        if self.distinct is not None:
            self.distinct.update(cells)
            if len(self.distinct) > MOST_CLASSES:
                self.distinct = None
        if self.numbers is not None:
            found = self._numbers(cells, place)
            if found is None:
                self.numbers = None
            else:
                self.numbers.append(found)
        self.several_words += sum(
            " " in cell or (not cell.isascii() and UNSPACED.search(cell) is not None)
            for cell in cells
        )

    def _numbers(self, cells: Sequence[str], place: Place) -> np.ndarray | None:
        """The cells as numbers, NaN for missing ones; None where a cell is no number."""
        missing = [i for i, cell in enumerate(cells) if cell in MISSING]
        kept = list(cells)
        for i in missing:
            kept[i] = "0"
        found: np.ndarray | None = None
        # Plain Python: NumPy takes twice as long over strings.
        if self.whole:
            try:
                whole = list(map(int, kept))
                # What is written otherwise, such as 007, only looks like a number.
                if list(map(str, whole)) == kept:
                    found = np.array(whole, np.int64)
            except (ValueError, OverflowError):
                pass
            self.whole = found is not None
        if found is None:
            try:
                found = np.array(list(map(float, kept)))
            except ValueError:
                self._find_stray(kept, place)
                return None
            if any(cell[0] == "0" and cell[1:2] not in ("", ".") for cell in kept):
                return None
            if not np.isfinite(found).all():
                row = int(np.flatnonzero(~np.isfinite(found))[0])
                self.infinite = self.infinite or f"{place(row)}: {cells[row]}"
        if missing:
            row = missing[0]
            self.unknown = self.unknown or f"{place(row)}: {cells[row]}"
            found = found.astype(np.float64)
            found[missing] = np.nan
        return found

    def _find_stray(self, cells: Sequence[str], place: Place) -> None:
        """Remembers the first cell that is no number, where most of the cells are numbers."""
        strays = [i for i, cell in enumerate(cells) if not _is_number(cell)]
        if self.numbers or 2 * len(strays) < len(cells):
            self.stray = f"{place(strays[0])}: {cells[strays[0]]!r}"

    def feature(self, rows: int) -> Feature:
        """What the column is, once every row has been read."""
        name = self.name.lower()
        cells = self.distinct
        few = cells is not None and self.longest <= _LONGEST_CLASS
        if self.numbers is not None:
            names: tuple[str, ...] = ()
            if self.whole and few and cells is not None:
                names = tuple(map(str, sorted(int(cell) for cell in cells - MISSING)))
            kind, dtype = "number", "int64" if self.whole else "float64"
            if self.whole and _ID_NAME.fullmatch(name):
                kind, names = "id", ()
            elif names and _CLASS_NAME.fullmatch(name):
                kind = "class"
            described = {"id": "ids", "class": f"{len(names)} classes"}.get(kind, "numbers")
            return Feature(kind=kind, dtype=dtype, class_names=names, described=described)
        if _ID_NAME.fullmatch(name) and self.several_words <= rows // 2:
            return Feature(kind="id", dtype="string", described="ids", stray=self.stray)
        several = self.several_words > rows // 2
        is_text = _TEXT_NAME.fullmatch(name) is not None
        repeated = cells is not None and len(cells) <= max(1, rows // 2)
        if few and not is_text and (repeated or _CLASS_NAME.fullmatch(name)):
            assert cells is not None
            names = tuple(sorted(cell for cell in cells if cell))
            count = "1 class" if len(names) == 1 else f"{len(names)} classes"
            return Feature(
                kind="class", dtype="int64", class_names=names, described=count, stray=self.stray
            )
        if is_text or several:
            return Feature(kind="text", dtype="string", described="text")
        return Feature(kind="id", dtype="string", described="strings", stray=self.stray)

    def refuse_unusable(self, *, missing: bool) -> None:
        """Refuses cells that no task can use.

        Args:
            missing: Whether empty ones are welcome.

        Raises:
            DataError: Names the place.
        """
        is_number = self.numbers is not None
        if is_number and self.infinite:
            place, _, cell = self.infinite.rpartition(": ")
            raise DataError(
                f"{place}: the cell of the column {self.name!r} is infinite ({cell}); put a number "
                "there, leave it empty, or take the row away"
            )
        unknown = self.unknown if is_number else self.empty
        if unknown and not missing:
            place, _, cell = unknown.rpartition(": ") if is_number else (unknown, "", "")
            raise DataError(
                f"{place}: the cell of the column {self.name!r} is {cell or 'empty'}; fill it in "
                "or take the row away"
            )

    def values(self, feature: Feature) -> tf.Tensor:
        """The cells of all rows as the feature has them, (rows,).

        What is missing is NaN, which makes whole numbers float64, -1 among classes, and "" among
        strings.
        """
        with tf.device("CPU"):
            if feature.kind == "class":
                table = {name: i for i, name in enumerate(feature.class_names)}
                found = [
                    np.array([table.get(cell.decode(), -1) for cell in some.numpy()], np.int64)
                    for some in self.strings
                ]
                return tf.constant(np.concatenate(found))
            if feature.dtype != "string":
                assert self.numbers is not None
                return tf.constant(np.concatenate(self.numbers))
            return tf.concat(self.strings, axis=0)

    def drop(self) -> None:
        """Lets go of the chunks; what is known of them stays."""
        self.strings = []
        self.numbers = None if self.numbers is None else []


def columns_source(
    columns: Sequence[Column],
    ends: Mapping[str, tuple[int, int]],
    *,
    requested: str,
    fingerprint: str,
) -> Source:
    """The data set that columns are.

    Args:
        columns: All rows of all splits.
        ends: Of each split the first row, and the one after the last.
        requested: How the user named the data set.
        fingerprint: Of the content.
    """
    rows = max(end for _, end in ends.values())
    features = {column.name: column.feature(rows) for column in columns}
    by_name = {column.name: column for column in columns}
    for name, feature in features.items():
        if feature.kind != "class" and feature.dtype != "string":
            by_name[name].strings = []  # The numbers are what is read.
    values: dict[str, tf.Tensor] = {}

    def column_of(name: str, missing: bool) -> tf.Tensor:
        by_name[name].refuse_unusable(missing=missing)
        if name not in values:
            with tf.init_scope():
                values[name] = by_name[name].values(features[name])
            by_name[name].drop()
        return values[name]

    def select(
        names: tuple[str, ...], missing: bool = False
    ) -> Callable[..., dict[str, tf.Tensor]]:
        found = {name: column_of(name, missing) for name in names}

        # Of one row and of many alike.
        def decode(positions: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.device("CPU"):
                return {name: tf.gather(column, positions) for name, column in found.items()}

        return decode

    whole = Records(
        rows,
        lambda positions: (positions,),
        select,
        select_batch=select,
        select_missing=lambda names: select(names, missing=True),
    )

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
        fingerprint=fingerprint,
        schema=Schema(
            requested=requested,
            features=features,
            supervised=(texts[0], classes[0]) if only else None,
        ),
        split=split,
    )


def _is_number(cell: str) -> bool:
    try:
        return not math.isnan(float(cell))
    except ValueError:
        return False
