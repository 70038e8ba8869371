"""`npz:FILE`: arrays by name, as `numpy.savez` writes them, a row for each example.

    x, y                              one set; a tenth is picked for the test, by the seed
    x_train, y_train, x_test, y_test  with a test split, as the files of Keras' data sets
    train_images, test_labels, ...    the same, the other way round

The names are yours: `--features=x=NAME,y=NAME` says which array is which. `val` or `validation` in
the place of `test` is a validation split. What an array is, follows from its type and shape:

- uint8 (n, height, width) and (n, height, width, channels): images, or masks where the array is
  called `y`, `masks` or the like;
- strings, and whole numbers of which there are few: a class; other strings a text;
- with a number `sample_rate` in the file, (n, samples): recordings;
- other numbers: a number, or a tensor of them.

Examples of different length are told by an array `lengths` (or `NAME_lengths`), one number for
each: either the rows of all examples lie one after another, so that `lengths` adds up to them, or
each example is padded at its end. `class_names` may name the classes 0, 1, ...

How arrays are read: `tfgpu.data.npz_file`.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import python_op
from tfgpu.data.npz_file import Array, read_headers
from tfgpu.data.records import Feature, Records, Schema, Source, refuse_new_classes
from tfgpu.errors import DataError, RequestError

MOST_CLASSES = 1000
"""Different values of an array that may be a class."""

_SPLITS = {
    **{"train": "train", "test": "test"},
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}
_SPLIT = "|".join(_SPLITS)
_OF_SPLIT = re.compile(rf"(?:(?P<before>{_SPLIT})_(?P<base>.+)|(?P<name>.+)_(?P<after>{_SPLIT}))")
_TARGET = re.compile(
    r"(.*_)?(y|labels?|class|classes|category|categories|targets?|masks?|segmentation)"
)
_ID = re.compile(r"(.*_)?(id|user|item|movie|film|book|product|customer|article)(_?ids?)?")
_LENGTHS = re.compile(r"(?:(?P<of>.+)_)?(lengths?|lens?)")
_CLASS_NAMES = ("class_names", "label_names", "target_names", "classes")
_RATES = ("sample_rate", "sampling_rate", "rate", "sr")


@dataclasses.dataclass(frozen=True)
class _Column:
    """A feature of one split.

    Attributes:
        array: Its values.
        lengths: Rows of each example, where they vary.
        packed: Whether the rows of all examples lie one after another; else they are padded.
    """

    array: Array
    lengths: np.ndarray | None = None
    packed: bool = False

    @property
    def one(self) -> tuple[int | None, ...]:
        """The shape of one example."""
        if self.lengths is None:
            return self.array.shape[1:]
        return (None, *self.array.shape[1 if self.packed else 2 :])


def open_source(rest: str) -> Source:
    """Opens a file of arrays. No more than their headers, the lengths and the classes are read.

    Args:
        rest: The path of the file.

    Raises:
        RequestError: There is no such file.
        DataError: It is none, holds Python objects, or arrays do not belong together.
    """
    path = os.path.expanduser(rest)
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "is not there"
        raise RequestError(f"{path!r} {what}: npz: needs the path of a file of NumPy arrays")
    arrays, fingerprint = read_headers(path)
    splits = _splits(path, arrays)
    columns = {
        split: _columns(path, {**arrays, **of_split}, of_split)
        for split, of_split in splits.items()
    }
    counts = {split: _count(path, of_split) for split, of_split in columns.items()}
    rate = _sample_rate(path, arrays)
    named = _class_names(path, arrays)
    features: dict[str, Feature] = {}
    values: dict[str, np.ndarray] = {}  # Of classes: all that there are.
    for name in columns["train"]:
        found = {split: each[name] for split, each in columns.items() if name in each}
        few = _few(name, found, counts["train"])
        if few is not None:
            values[name] = few
        features[name] = _feature(name, found, few, rate=rate, named=named)
    _refuse_few_names(path, named, features, values)
    images = [n for n, each in features.items() if each.kind in ("image", "audio", "text")]
    others = [n for n, each in features.items() if each.kind in ("class", "mask")]
    requested = f"npz:{rest}"

    def split(split_name: str, label: str | None = None) -> Records | None:
        of_split = columns.get(split_name, {})
        if not of_split or (label is not None and label not in of_split):
            return None
        if label in values and split_name != "train":
            table = dict(zip(values[label].tolist(), features[label].class_names, strict=True))
            found = [
                [table[each] for each in np.unique(columns[of][label].array.values).tolist()]
                for of in (split_name, "train")
            ]
            refuse_new_classes(requested, label, split_name, *found)
        return _records(counts[split_name], of_split, features, values)

    return Source(
        name=requested,
        fingerprint=fingerprint,
        schema=Schema(
            requested=requested,
            features=features,
            supervised=(images[0], others[0]) if len(images) == len(others) == 1 else None,
        ),
        split=split,
    )


def _splits(path: str, arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The arrays of each split, by their names without its."""
    found: dict[str, dict[str, Array]] = {}
    plain: dict[str, Array] = {}
    for name, array in arrays.items():
        match = _OF_SPLIT.fullmatch(name)
        if not array.shape or name in _CLASS_NAMES or name in _RATES:
            continue
        if match is None:
            plain[name] = array
        else:
            split = _SPLITS[match["before"] or match["after"]]
            found.setdefault(split, {})[match["base"] or match["name"]] = array
    # What is there without the name of a split is the training's, unless that has arrays.
    found = {"train": found.get("train", plain), **found}
    if not found["train"]:
        raise DataError(f"{path} has no arrays to train on; it has {', '.join(arrays)}")
    return found


def _columns(
    path: str, arrays: Mapping[str, Array], of_split: Mapping[str, Array]
) -> dict[str, _Column]:
    """The features of a split: its arrays, with the lengths of those that vary."""
    lengths = {
        name: array
        for name, array in of_split.items()
        if (match := _LENGTHS.fullmatch(name))
        and len(array.shape) == 1
        and array.dtype.kind in "iu"
        and (match["of"] is None or match["of"] in of_split)
        and len(of_split) > 1
    }
    columns = {}
    for name, array in of_split.items():
        if name in lengths:
            continue
        of = next((n for n in (f"{name}_lengths", f"{name}_length") if n in lengths), None)
        of = of or next((n for n in ("lengths", "length", "lens", "len") if n in lengths), None)
        own = None if of is None else _with_lengths(path, array, lengths[of])
        columns[name] = own or _Column(array)
    used = [column for column in columns.values() if column.lengths is not None]
    if lengths and not used:
        (name, array), *_ = lengths.items()
        total = int(array.values.sum())
        sizes = ", ".join(f"{each.array.name} {_rows(each.array)}" for each in columns.values())
        raise DataError(
            f"{path}: {array.name} has {_rows(array)} lengths that add up to {total:,}, and no "
            f"array has as many rows, nor rows of {int(array.values.max(initial=0)):,} or more: "
            f"{sizes}"
        )
    return columns


def _rows(array: Array) -> str:
    """Rows of an array, for messages."""
    return f"{array.shape[0]:,}"


def _with_lengths(path: str, array: Array, lengths: Array) -> _Column | None:
    """An array of examples of different length; None where it is of none."""
    values = lengths.values.astype(np.int64)
    if values.size and values.min() < 1:
        at = int(np.argmax(values < 1))
        raise DataError(
            f"{path}: {lengths.name}[{at}] is {values[at]}: an example has one row or more; take "
            "it away"
        )
    if array.shape[0] == values.sum() and array.shape[0] != len(values):
        return _Column(array, values, packed=True)
    padded = len(array.shape) >= 2 and array.shape[0] == len(values) and array.dtype.kind in "fiu"
    if padded and array.shape[1] >= values.max(initial=0):
        return _Column(array, values)
    # Examples of one row each.
    if len(array.shape) >= 2 and array.shape[0] == values.sum():
        return _Column(array, values, packed=True)
    return None


def _count(path: str, columns: Mapping[str, _Column]) -> int:
    """How many examples a split has."""
    counts = {
        each.array.name: len(each.lengths) if each.lengths is not None else each.array.shape[0]
        for each in columns.values()
    }
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} has {count:,}" for name, count in counts.items())
        raise DataError(
            f"{path}: the arrays are not of the same number of examples: {shown}; rows of "
            "different length lie one after another, with an array 'lengths' beside that adds up "
            "to them"
        )
    (count,) = set(counts.values())
    if not count:
        raise DataError(f"{path}: {next(iter(counts))} has no rows")
    return count


def _few(name: str, found: Mapping[str, _Column], rows: int) -> np.ndarray | None:
    """The values of an array that is a class, sorted; None where it is none."""
    for column in found.values():
        array = column.array
        vector = array.shape[1:] in ((), (1,)) and column.lengths is None
        if not vector or array.dtype.kind not in "biuSU":
            return None
    first = next(iter(found.values())).array.dtype.kind
    if first in "iu" and _ID.fullmatch(name.lower()):
        return None
    values: np.ndarray = np.unique(
        np.concatenate([np.unique(c.array.values) for c in found.values()])
    )
    target = _TARGET.fullmatch(name.lower()) is not None
    if len(values) > (MOST_CLASSES if target else min(MOST_CLASSES, max(2, rows // 2))):
        return None
    return values


def _feature(
    name: str,
    found: Mapping[str, _Column],
    few: np.ndarray | None,
    *,
    rate: int | None,
    named: tuple[str, ...],
) -> Feature:
    """What an array is."""
    arrays = [column.array for column in found.values()]
    shapes = [column.one for column in found.values()]
    ranks = {len(shape) for shape in shapes}
    dtype = arrays[0].dtype
    if len(ranks) > 1 or any(array.dtype.kind != dtype.kind for array in arrays):
        raise DataError(
            f"{arrays[0].path}: {' and '.join(array.name for array in arrays)} differ in type: "
            f"{', '.join(f'{array.dtype} {array.shape}' for array in arrays)}"
        )
    sides = zip(*shapes, strict=True)
    shape = tuple(side[0] if len(set(side)) == 1 else None for side in sides)
    said = f"{dtype.name}{tuple(arrays[0].shape)}".replace("None", "?")
    if few is not None:
        names = tuple(map(_shown, few))
        if _are_numbers(few) and few[-1] < len(named):
            names = tuple(named[int(value)] for value in few)
        count = f"{len(names)} class" + "es" * (len(names) != 1)
        return Feature(kind="class", dtype="int64", class_names=names, described=count)
    if dtype.kind in "SU":
        return Feature(kind="text" if not shape else "other", dtype="string", described="text")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return Feature(kind="other", dtype=dtype.name, described=said)
    if rate is not None and len(shape) == 1:
        return Feature(
            kind="audio",
            shape=shape,
            dtype=dtype.name,
            sample_rate=rate,
            described=f"recordings at {rate} Hz",
        )
    whole = dtype.kind in "iub"
    mask = whole and _TARGET.fullmatch(name.lower()) is not None
    varies = found["train"].lengths is not None
    if not varies and mask and (len(shape) == 2 or (len(shape) == 3 and shape[-1] == 1)):
        return Feature(
            kind="mask",
            shape=(*shape[:2], 1),
            dtype="uint8",
            class_names=named,
            described=f"masks of {shape[0]}x{shape[1]}",
        )
    colours = len(shape) == 3 and shape[-1] in (1, 3)
    if not varies and (colours or (dtype.name == "uint8" and len(shape) == 2)):
        return Feature(
            kind="image",
            shape=shape if colours else (*shape, 1),
            dtype=dtype.name,
            described=f"images {said}",
        )
    if _ID.fullmatch(name.lower()) and whole and not shape:
        return Feature(kind="id", dtype=dtype.name, described="ids")
    if shape == (1,):
        shape = ()
    kind = "numbers" if shape else "number"
    return Feature(kind=kind, shape=shape, dtype=dtype.name, described=said)


def _records(
    count: int,
    columns: Mapping[str, _Column],
    features: Mapping[str, Feature],
    values: Mapping[str, np.ndarray],
) -> Records:
    """Random access to the rows of a split."""
    loaded: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {}

    def reader(name: str) -> Callable[[tf.Tensor], tf.Tensor]:
        if name not in loaded:
            with tf.init_scope():
                loaded[name] = _reader(columns[name], features[name], values.get(name))
        return loaded[name]

    def select(names: tuple[str, ...]) -> Callable[..., dict[str, tf.Tensor]]:
        readers = {name: reader(name) for name in names}

        def decode(position: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.device("CPU"):
                return {name: read(position) for name, read in readers.items()}

        return decode

    varying = any(column.lengths is not None for column in columns.values())
    return Records(
        count, lambda positions: (positions,), select, select_batch=None if varying else select
    )


def _reader(
    column: _Column, feature: Feature, values: np.ndarray | None
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Positions to rows of the feature: one or many, one alone where their length varies."""
    array = column.array.values
    if feature.kind == "mask" and array.size and not 0 <= array.min() <= array.max() <= 255:
        raise DataError(
            f"{column.array.path}: {column.array.name} has the value {array.max()}: a mask has "
            "values from 0 to 255, one for each class"
        )
    if values is not None:
        array = np.searchsorted(values, np.reshape(array, [-1]))
    elif array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
    elif array.dtype.kind == "S":
        _refuse_other_encodings(column.array.path, column.array.name, array)
    sides = list(array.shape[1:])
    if feature.kind in ("image", "mask") and len(feature.shape) == len(sides) + 1:
        sides.append(1)
    elif not feature.shape and sides == [1]:
        sides = []
    if column.lengths is None:
        array = np.reshape(array, [len(array), *sides])  # A view, of a file too.
    dtype = tf.as_dtype(feature.dtype)
    lengths = column.lengths
    mapped = column.array.mapped and values is None

    def native(rows: np.ndarray) -> np.ndarray:
        return rows if dtype == tf.string else rows.astype(feature.dtype)

    if lengths is None and mapped:

        def gather_mapped(positions: tf.Tensor) -> tf.Tensor:
            found = python_op(lambda some: native(array[some]), [positions], dtype)
            return tf.ensure_shape(found, [*positions.shape, *sides])

        return gather_mapped
    if lengths is None:
        with tf.device("CPU"):
            rows = tf.constant(native(array))
        return lambda positions: tf.gather(rows, positions)
    starts = np.cumsum(lengths) - lengths if column.packed else np.zeros_like(lengths)
    rest = feature.shape[1:]

    def cut(position: np.ndarray) -> np.ndarray:
        some = array if column.packed else array[position]
        return native(some[starts[position] : starts[position] + lengths[position]])

    if mapped:
        return lambda position: tf.ensure_shape(python_op(cut, [position], dtype), [None, *rest])
    with tf.device("CPU"):
        all_rows = tf.constant(native(array))
        begin, count = tf.constant(starts), tf.constant(lengths)

    def cut_one(position: tf.Tensor) -> tf.Tensor:
        some = all_rows if column.packed else all_rows[position]
        start = begin[position]
        return tf.ensure_shape(some[start : start + count[position]], [None, *rest])

    return cut_one


def _class_names(path: str, arrays: Mapping[str, Array]) -> tuple[str, ...]:
    """The names of classes 0, 1, ..., where the file has them.

    Raises:
        DataError: Two are the same.
    """
    for name in _CLASS_NAMES:
        array = arrays.get(name)
        if array is not None and len(array.shape) == 1 and array.dtype.kind in "SU":
            names = tuple(map(_shown, array.values))
            twice = [each for each in names if names.count(each) > 1]
            if twice:
                raise DataError(
                    f"{path}: {name} has {twice[0]!r} twice; give each class a name of its own"
                )
            return names
    return ()


def _are_numbers(few: np.ndarray) -> bool:
    """Whether the values of a class are numbers from 0, which names may stand for."""
    return bool(few.dtype.kind in "iu" and len(few) and few[0] >= 0)


def _refuse_few_names(
    path: str,
    named: tuple[str, ...],
    features: Mapping[str, Feature],
    values: Mapping[str, np.ndarray],
) -> None:
    """Refuses names of classes that are too few for every class that they could be of.

    Raises:
        DataError: Names the first of them.
    """
    numbered = [name for name, few in values.items() if _are_numbers(few)]
    masks = any(feature.kind == "mask" for feature in features.values())
    if not named or masks or any(values[name][-1] < len(named) for name in numbered):
        return
    for name in numbered:
        if _TARGET.fullmatch(name.lower()):
            raise DataError(
                f"{path}: {name} has the class {values[name][-1]}, and the names of classes are "
                f"{len(named)}, for 0 to {len(named) - 1}; name all of them"
            )


def _sample_rate(path: str, arrays: Mapping[str, Array]) -> int | None:
    """Of recordings, in Hz, where the file has it."""
    for name in _RATES:
        array = arrays.get(name)
        if array is not None and math.prod(array.shape) == 1 and array.dtype.kind in "iuf":
            rate = int(array.values.reshape(()))
            if rate < 1:
                raise DataError(f"{path}: {name} is {rate}: it is in Hz, above 0")
            return rate
    return None


def _refuse_other_encodings(path: str, name: str, array: np.ndarray) -> None:
    for i, each in enumerate(np.reshape(array, [-1]).tolist()):
        try:
            each.decode()
        except UnicodeDecodeError:
            raise DataError(
                f"{path}: {name} holds bytes that are not UTF-8, such as number {i}, "
                f"{each[:40]!r}: save them as strings"
            ) from None


def _shown(value: Any) -> str:
    # Bytes that are no UTF-8 stay apart from each other.
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
