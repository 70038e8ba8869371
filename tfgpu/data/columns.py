"""Columns of a table that lie in memory, and what each is.

What a column is, is guessed from its cells and, where these leave it open, from its name:

- `number`: every cell is a number. int64 where all are whole, else float64. Whole numbers in a
  column that is called an id, a user or an item are an `id`; in one that is called a label, and few
  in number, a `class`. Whole numbers that would be rounded, above int64 or beside an empty cell
  above 2^53, are text.
- `class`: few different short cells: int64 positions among the sorted cells, which are the names.
- `text`: cells with several words, or of a language that writes none apart.
- `id`: other strings.
- `image`: names of image files, below the folder of the table, where any of them is there.
- `classes`: lists of labels, joined by the first of "|", ";", "," that the column has: strings in a
  column called labels, tags or the like. In a table of images a space joins too, in such a column,
  and every column of strings that has a "|" or a ";" is one. An empty cell is a list of none.

An empty cell, and in a column of numbers one of `MISSING` or a number that is infinite in float32,
is refused when its column is used, and not before. `Records.with_missing` gives the empty ones as
missing values.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfgpu.data.cells import (
    EXACT,
    LARGEST,
    MISSING,
    is_code,
    is_number,
    is_whole,
    not_finite,
    to_numbers,
)
from tfgpu.data.image_files import EXTENSIONS
from tfgpu.data.records import Feature
from tfgpu.errors import DataError

MOST_CLASSES = 1000
"""Different cells of a column that may be a class."""

_LONGEST_CLASS = 100  # Characters of a class' name.
_TEXT_NAME = re.compile(r"(.*_)?(text|review|sentence|comment|content|body|message|document)s?")
_CLASS_NAME = re.compile(r"(.*_)?(label|class|category|target|sentiment|polarity|y)")
_ID_NAME = re.compile(r"(.*_)?(id|user|item|movie|film|book|product|customer|article)(_?ids?)?")
_LIST_NAME = re.compile(r"(.*_)?(labels|tags|classes|categories|attributes|keywords|genres)")
_SEPARATORS = ("|", ";", ",", " ")
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
        digits: Whether all are written as whole numbers, with or without blanks around them.
        largest: The largest absolute value, as long as that is so.
        distinct: The different cells; None once there are more than `MOST_CLASSES`.
        longest: Characters of the longest cell.
        several_words: Cells with several words.
        empty: Where the first empty cell is.
        unknown: Where the first cell is that is empty or one of `MISSING`, and what it holds.
        infinite: Where the first number is that is infinite in float32, and what it holds.
        stray: Where the first cell is that is no number among mostly numbers, and what it holds.
        images: Whether every cell is called like an image file.
        no_image: Where the first cell is that is not, and what it holds.
        called_images: Cells that are.
    """

    name: str
    strings: list[tf.Tensor] = dataclasses.field(default_factory=list)
    numbers: list[np.ndarray] | None = dataclasses.field(default_factory=list)
    whole: bool = True
    digits: bool = True
    largest: int = 0
    distinct: set[str] | None = dataclasses.field(default_factory=set)
    longest: int = 0
    several_words: int = 0
    empty: str = ""
    unknown: str = ""
    infinite: str = ""
    stray: str = ""
    images: bool = True
    no_image: str = ""
    called_images: int = 0

    def add(self, cells: Sequence[str], place: Place) -> None:
        """Takes the cells of a chunk of rows; those without anything in them are empty."""
        if not all(map(str.strip, cells)):
            cells = [cell if cell.strip() else "" for cell in cells]
            self.empty = self.empty or place(cells.index(""))
        with tf.device("CPU"):
            self.strings.append(tf.constant(cells))
        called = [cell.lower().endswith(EXTENSIONS) for cell in cells]
        self.called_images += sum(called)
        if not all(called):
            self.images = False
            row = called.index(False)
            self.no_image = self.no_image or f"{place(row)}: {cells[row]!r} is no image file"
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

    def add_numbers(self, values: np.ndarray, place: Place, *, whole: bool = False) -> None:
        """Takes a chunk of rows that are numbers already, with the outcome of their cells.

        Args:
            values: int64, or float64 with NaN for what is missing.
            place: Where a row stands.
            whole: Whether those that are not missing are whole.
        """
        self.images = False
        whole = whole or values.dtype.kind == "i"
        self.whole = self.whole and whole
        missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
        if missing.any():
            self.empty = self.empty or place(int(missing.argmax()))
            self.unknown = self.unknown or f"{self.empty}: "
        infinite = np.abs(values) > LARGEST if values.dtype.kind == "f" else missing[:0]
        if infinite.any():
            row = int(infinite.argmax())
            self.infinite = self.infinite or f"{place(row)}: {values[row]}"
        assert self.numbers is not None
        self.numbers.append(values)
        if not self.whole or self.distinct is None:
            self.distinct, self.strings = None, []
            return
        known, positions = np.unique(values[~missing], return_inverse=True)
        cells = [str(int(each)) for each in known.tolist()]
        self.distinct.update(cells)
        self.longest = max(self.longest, max(map(len, cells), default=0))
        if len(self.distinct) > MOST_CLASSES:
            self.distinct, self.strings = None, []
            return
        every = np.full(len(values), b"", object)
        if cells:
            every[~missing] = np.array([each.encode() for each in cells], object)[positions]
        with tf.device("CPU"):
            self.strings.append(tf.constant(every))

    def add_whole(self, values: np.ndarray, missing: np.ndarray, place: Place) -> None:
        """Takes a chunk of rows that are whole numbers already; none is rounded.

        Where float64 would have to hold what it cannot tell apart, beside a missing value or above
        int64, the column becomes text.

        Args:
            values: Of a type of whole numbers; what is missing may be anything.
            missing: Booleans.
            place: Where a row stands.
        """
        if self.numbers is None:
            self.add(_as_cells(values, missing), place)
            return
        known = values[~missing]
        if known.size:
            self.largest = max(self.largest, abs(int(known.min())), abs(int(known.max())))
        if missing.any():
            self.unknown = self.unknown or f"{place(int(missing.argmax()))}: "
        if self._rounds:
            earlier, self.numbers, self.strings, self.distinct = self.numbers, None, [], set()
            for some in earlier:
                self.add(_as_cells(some, np.isnan(some)), place)
            self.add(_as_cells(values, missing), place)
        elif missing.any():
            numbers = values.astype(np.float64)
            numbers[missing] = np.nan
            self.add_numbers(numbers, place, whole=True)
        else:
            self.add_numbers(values.astype(np.int64), place)

    @property
    def _rounds(self) -> bool:
        """Whether whole numbers would be rounded, and different ones become one."""
        as_integers = self.whole and not self.unknown
        return self.digits and self.largest > (np.iinfo(np.int64).max if as_integers else EXACT)

    def _become_text(self) -> None:
        """Takes whole numbers for names, which stay what they are; those that are missing too."""
        self.numbers = None
        self.empty = self.empty or self.unknown.rpartition(": ")[0]
        for i, some in enumerate(self.strings):
            cells = [cell.strip() for cell in some.numpy().tolist()]
            with tf.device("CPU"):
                self.strings[i] = tf.constant(
                    [b"" if cell.decode() in MISSING else cell for cell in cells]
                )
        if self.distinct is not None:
            stripped = {cell.strip() for cell in self.distinct}
            self.distinct = {"" if cell in MISSING else cell for cell in stripped}

    def _numbers(self, cells: Sequence[str], place: Place) -> np.ndarray | None:
        """The cells as numbers, NaN for missing ones; None where a cell is no number."""
        missing = [i for i, cell in enumerate(cells) if cell.strip() in MISSING]
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
                    self.largest = max(self.largest, max(map(abs, whole)))
                    fits = self.largest <= np.iinfo(np.int64).max
                    found = np.array(whole, np.int64 if fits else np.float64)
            except (ValueError, OverflowError):
                pass
            self.whole = found is not None
        if found is None:
            try:
                found = np.array(to_numbers(kept))
            except ValueError:
                self._find_stray(kept, place)
                return None
            if any(map(is_code, kept)):
                return None
            self.digits = self.digits and all(map(is_whole, kept))
            if self.digits:
                self.largest = max(self.largest, *(abs(int(cell)) for cell in kept))
        beyond = ~(np.abs(found) <= LARGEST)
        if beyond.any():
            row = int(beyond.argmax())
            self.infinite = self.infinite or f"{place(row)}: {cells[row]}"
        if missing:
            row = missing[0]
            self.unknown = self.unknown or f"{place(row)}: {cells[row]}"
            found = found.astype(np.float64)
            found[missing] = np.nan
        return found

    def _find_stray(self, cells: Sequence[str], place: Place) -> None:
        """Remembers the first cell that is no number, where most of the cells are numbers."""
        strays = [
            i for i, cell in enumerate(cells) if not is_number(cell) or math.isnan(float(cell))
        ]
        if self.numbers or 2 * len(strays) < len(cells):
            self.stray = f"{place(strays[0])}: {cells[strays[0]]!r}"

    def feature(self, rows: int) -> Feature:
        """What the column is, once every row has been read."""
        name = self.name.lower()
        cells = self.distinct
        if self._rounds:
            self._become_text()
        few = cells is not None and self.longest <= _LONGEST_CLASS
        if self.numbers is not None:
            names: tuple[str, ...] = ()
            if self.whole and few and cells is not None:
                known = (cell for cell in cells if cell.strip() not in MISSING)
                names = tuple(map(str, sorted(map(int, known))))
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
        nearly = self.called_images > rows // 2 and self.no_image
        described = f"strings ({self.no_image})" if nearly else "strings"
        return Feature(kind="id", dtype="string", described=described, stray=self.stray)

    def list_feature(self, *, beside_images: bool) -> tuple[Feature, str] | None:
        """The feature of a column of lists, and what joins them; None where it is none."""
        cells = self.distinct
        if self.numbers is not None or self.images or not cells:
            return None
        joined = [each for each in _SEPARATORS if any(each in cell for cell in cells)]
        named = _LIST_NAME.fullmatch(self.name.lower()) is not None
        sure = bool(joined) and joined[0] in _SEPARATORS[: 3 if named else 2]
        if not (sure and (named or beside_images)) and not (named and beside_images):
            return None
        separator = joined[0] if joined else _SEPARATORS[0]
        names = sorted({each for cell in cells for each in labels_of(cell, separator)})
        if len(names) > MOST_CLASSES or max(map(len, names), default=0) > _LONGEST_CLASS:
            return None
        found = Feature(
            kind="classes",
            shape=(None,),
            dtype="int64",
            class_names=tuple(names),
            described=f"lists of {len(names)} labels",
        )
        return found, separator

    def lists(self, feature: Feature, separator: str) -> tf.RaggedTensor:
        """The lists of all rows, int64 positions among the labels."""
        table = {name: i for i, name in enumerate(feature.class_names)}
        rows = [
            [table[each] for each in labels_of(cell.decode(), separator)]
            for some in self.strings
            for cell in some.numpy()
        ]
        with tf.device("CPU"):
            return tf.ragged.constant(rows, tf.int64, ragged_rank=1)

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
                f"{place}: the cell of the column {self.name!r} is {not_finite(cell)}; put a "
                "number there, leave it empty, or take the row away"
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


def labels_of(cell: str, separator: str) -> list[str]:
    """The labels of a cell, each once."""
    return list(dict.fromkeys(each.strip() for each in cell.split(separator) if each.strip()))


def _as_cells(values: np.ndarray, missing: np.ndarray) -> list[str]:
    """Whole numbers as a table writes them, "" for what is missing."""
    gone = missing.tolist()
    return ["" if no else str(int(each)) for each, no in zip(values.tolist(), gone, strict=True)]
