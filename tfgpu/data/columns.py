"""Columns of a table that lie in memory: what each is, and the `Source` that they are.

What a column is, is guessed from its cells and, where these leave it open, from its name:

- `number`: every cell is a number. int64 where all are whole, else float64. Whole numbers in a
  column that is called an id, a user or an item are an `id`; in one that is called a label, and few
  in number, a `class`.
- `class`: few different short cells: int64 positions among the sorted cells, which are the names.
- `text`: cells with several words, or of a language that writes none apart.
- `id`: other strings.
- `image`: names of image files, below the folder of the table, where the first of them is there.
- `classes`: lists of labels, joined by the first of "|", ";", "," that the column has: strings in a
  column called labels, tags or the like. In a table of images a space joins too, in such a column,
  and every column of strings that has a "|" or a ";" is one. An empty cell is a list of none.

An empty cell, and in a column of numbers one of `MISSING` or an infinity, is refused when its
column is used, and not before. `Records.with_missing` gives the empty ones as missing values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfgpu.data.folder import decode_image, image_feature
from tfgpu.data.image_files import EXTENSIONS, read_headers
from tfgpu.data.records import Feature, Records, Schema, Source
from tfgpu.errors import DataError, RequestError

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
_LIST_NAME = re.compile(r"(.*_)?(labels|tags|classes|categories|attributes|keywords|genres)")
_SPLITS = ("train", "test", "validation")
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
        distinct: The different cells; None once there are more than `MOST_CLASSES`.
        longest: Characters of the longest cell.
        several_words: Cells with several words.
        empty: Where the first empty cell is.
        unknown: Where the first cell is that is empty or one of `MISSING`, and what it holds.
        infinite: Where the first infinity is.
        stray: Where the first cell is that is no number among mostly numbers, and what it holds.
        images: Whether every cell is called like an image file.
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
    images: bool = True

    def add(self, cells: Sequence[str], place: Place) -> None:
        """Takes the cells of a chunk of rows; those without anything in them are empty."""
        if not all(map(str.strip, cells)):
            cells = [cell if cell.strip() else "" for cell in cells]
            self.empty = self.empty or place(cells.index(""))
        with tf.device("CPU"):
            self.strings.append(tf.constant(cells))
        self.images = self.images and all(cell.lower().endswith(EXTENSIONS) for cell in cells)
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
        infinite = np.isinf(values) if values.dtype.kind == "f" else missing[:0]
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
        strays = [
            i for i, cell in enumerate(cells) if not is_number(cell) or math.isnan(float(cell))
        ]
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


def table_files(rest: str, extension: str) -> dict[str, str]:
    """The file of each split: of a path, or of a folder with one called train.

    Raises:
        RequestError: There is none.
    """
    path = os.path.expanduser(rest)
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise RequestError(f"there is no file {path!r}: {extension}: needs the path of a table")
        return {"train": path}
    files = {name: os.path.join(path, f"{name}.{extension}") for name in _SPLITS}
    found = {name: file for name, file in files.items() if os.path.isfile(file)}
    if "train" not in found:
        raise RequestError(f"the folder {path!r} has no train.{extension}: name the table itself")
    return found


def digest(files: Mapping[str, str]) -> str:
    """SHA-256 of the contents of files by split, in hexadecimal.

    Raises:
        DataError: One cannot be read.
    """
    found = hashlib.sha256()
    for name, path in files.items():
        try:
            found.update(f"{name} {os.path.getsize(path)}\n".encode())
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    found.update(block)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    return found.hexdigest()


def labels_of(cell: str, separator: str) -> list[str]:
    """The labels of a cell, each once."""
    return list(dict.fromkeys(each.strip() for each in cell.split(separator) if each.strip()))


def columns_source(
    columns: Sequence[Column],
    ends: Mapping[str, tuple[int, int]],
    *,
    requested: str,
    fingerprint: str,
    folder_of: str,
) -> Source:
    """The data set that columns are.

    Args:
        columns: All rows of all splits.
        ends: Of each split the first row, and the one after the last.
        requested: How the user named the data set.
        fingerprint: Of the content.
        folder_of: A file of the table: names of images are relative to its folder.

    Raises:
        DataError: An image is not there, or is none.
    """
    folder = os.path.dirname(folder_of)
    rows = max(end for _, end in ends.values())
    features = {column.name: column.feature(rows) for column in columns}
    by_name = {column.name: column for column in columns}
    images = {
        column.name: found
        for column in columns
        if column.images and (found := _image_files(column, folder)) is not None
    }
    features |= {name: feature for name, (feature, _) in images.items()}
    if images:
        fingerprint = _with_files(fingerprint, folder, images)
    separators: dict[str, str] = {}
    for column in columns:
        of_lists = column.list_feature(beside_images=bool(images))
        if of_lists is not None:
            features[column.name], separators[column.name] = of_lists
    for name, feature in features.items():
        if feature.kind in ("number", "id") and feature.dtype != "string":
            by_name[name].strings = []  # The numbers are what is read.
    values: dict[str, tf.Tensor] = {}

    def column_of(name: str, missing: bool) -> tf.Tensor:
        column = by_name[name]
        column.refuse_unusable(missing=missing or name in separators)
        if name not in values:
            with tf.init_scope(), tf.device("CPU"):
                if name in images:
                    values[name] = tf.constant(images[name][1])
                elif name in separators:
                    values[name] = column.lists(features[name], separators[name])
                else:
                    values[name] = column.values(features[name])
            by_name[name].drop()
        return values[name]

    def select(
        names: tuple[str, ...], missing: bool = False
    ) -> Callable[..., dict[str, tf.Tensor]]:
        found = {name: column_of(name, missing) for name in names}

        # Of one row and of many alike, but for images, which may differ in size.
        def decode(positions: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.device("CPU"):
                cells = {name: tf.gather(column, positions) for name, column in found.items()}
                for name in images.keys() & cells.keys():
                    cells[name] = decode_image(cells[name], images[name][0])
                return cells

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
    inputs = list(images) or texts
    only = len(inputs) == 1 and len(classes) == 1
    return Source(
        name=requested,
        fingerprint=fingerprint,
        schema=Schema(
            requested=requested,
            features=features,
            supervised=(inputs[0], classes[0]) if only else None,
        ),
        split=split,
    )


def _image_files(column: Column, folder: str) -> tuple[Feature, list[str]] | None:
    """The feature of a column of names of image files, and their paths.

    Returns:
        None where the first file is not there: then the column is strings.

    Raises:
        DataError: Another is not there, or one is no image.
    """
    cells = [cell.decode() for some in column.strings for cell in some.numpy()]
    paths = [os.path.join(folder, cell) for cell in cells]
    if not paths or not os.path.exists(paths[0]):
        return None
    places = {path: i for i, path in reversed(list(enumerate(paths)))}
    distinct = list(places)
    for path in distinct:
        if not os.path.isfile(path):
            raise DataError(
                f"{path} is not there, which row {places[path] + 1} names in the column "
                f"{column.name!r}; put the image there, or take the row away"
            )
    return image_feature(distinct, read_headers(distinct)), paths


def _with_files(
    fingerprint: str, folder: str, images: Mapping[str, tuple[Feature, list[str]]]
) -> str:
    """A fingerprint that has the names and the sizes of files in it too."""
    paths = sorted({path for _, some in images.values() for path in some})
    sizes = [(os.path.relpath(path, folder), os.path.getsize(path)) for path in paths]
    return hashlib.sha256(json.dumps([fingerprint, sizes]).encode()).hexdigest()


def is_number(cell: str | bytes) -> bool:
    """Whether a cell can be read as a number, NaN and infinity among them."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
