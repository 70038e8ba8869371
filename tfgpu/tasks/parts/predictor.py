"""How `predict` reads what the user names, and shows what the model makes of it.

The command goes through its arguments a batch at a time: `find` turns them into items, `load` an
item into x, and `lines` a batch of outputs into what is printed.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import resize
from tfgpu.data.file_tree import FileTree, Remarks
from tfgpu.data.image_files import EXTENSIONS, read_image
from tfgpu.errors import DataError, RequestError, shown


@dataclasses.dataclass(frozen=True)
class Written:
    """A file that a prediction makes.

    Attributes:
        name: Below the folder of `predict --out`.
        content: All of it.
    """

    name: str
    content: bytes


class Predictor:
    """Reads files, and shows outputs as they are. A task subclasses it.

    Args:
        spec: The `DataSpec`.
        settings: Of the prediction: `format`, `top_k` and `users`.

    Attributes:
        spec: The same.
        settings: The same.
        extensions: Of the files that a folder stands for.
        unit: What an item is called, in the plural, in messages.
        writes_files: Whether `written` gives files.
        folder: Where they go; None where there are none.
        left: What folders hold that is left out.
        remarks: What there is to say of the items that were read.
    """

    extensions: tuple[str, ...] = ()
    unit = "files"
    writes_files = False
    folder: Path | None = None

    def __init__(self, spec: Any, settings: Any):
        self.spec = spec
        self.settings = settings
        self.left = Remarks()
        self.remarks = Remarks()

    def find(self, arguments: Iterable[str]) -> Iterator[Any]:
        """Yields the items that arguments stand for, in order; a `DataError` for what is wrong.

        No more arguments are read than the items taken need.
        """
        return find_files(arguments, self.extensions, unit=self.unit, left=self.left)

    def refuse_nothing(self, arguments: Sequence[str]) -> None:
        """Refuses arguments that can stand for no item, before the work begins.

        Raises:
            RequestError: Says why.
        """
        refuse_nothing(arguments, self.extensions, unit=self.unit)

    def load(self, item: Any) -> Any:
        """Reads an item: x without the batch, as NumPy arrays. Called in several threads.

        Raises:
            DataError: It cannot be read.
        """
        raise NotImplementedError

    def to_json(self, item: Any) -> Any:
        """An item as JSON holds it, on its way to the worker that takes it.

        Called at the chief alone, in the order of the items.
        """
        return item

    def from_json(self, value: Any) -> Any:
        """The item that `to_json` made a value of."""
        return value

    def raw(self, item: Any) -> Any:
        """What `rows` and `written` get of an item beside x; read in the same threads."""
        return None

    def rows(self, items: Sequence[Any], outputs: Any) -> Iterator[Mapping[str, Any]]:
        """Yields what is said of each item, as JSON holds it.

        Args:
            items: Of a batch.
            outputs: Of the model, (n, ...), or a dict of such arrays.
        """
        for i, item in enumerate(items):
            one = tf.nest.map_structure(lambda leaf, i=i: np.asarray(leaf[i]).tolist(), outputs)
            yield {"path": str(item), **(one if isinstance(one, dict) else {"output": one})}

    def written(
        self, items: Sequence[Any], raw: Sequence[Any], outputs: Any
    ) -> Iterator[Sequence[Written]]:
        """Yields the files of each item; with `writes_files` alone."""
        return iter(())

    def header(self) -> Sequence[str]:
        """The first row of a CSV; () takes the names of the first row's values."""
        return ()

    def lines(self, items: Sequence[Any], outputs: Any) -> Iterator[str]:
        """Yields a line for each item of a batch, in the format that `settings` ask for."""
        for row in self.rows(items, outputs):
            if self.settings.format == "table":
                yield self.table_line(row)
            elif self.settings.format == "csv":
                yield csv_row(list(_flat(row).values()))
            else:
                yield json_line(row)

    def table_line(self, row: Mapping[str, Any]) -> str:
        """A row for a person."""
        (_, first), *rest = row.items()
        return "  ".join([shown(str(first)), *(f"{name} {_short(value)}" for name, value in rest)])

    def header_of(self, items: Sequence[Any], outputs: Any) -> Sequence[str]:
        """The first row of a CSV, once there is a first batch."""
        return self.header() or list(_flat(next(iter(self.rows(items, outputs)))))


class ImagePredictor(Predictor):
    """Reads image files to the shape that the model takes."""

    extensions = EXTENSIONS
    unit = "images"

    def __init__(self, spec: Any, settings: Any):
        if spec.image_shape is None:
            raise RequestError(
                "this run's task says nothing of how to predict from files: give its Task a "
                "`predict`"
            )
        super().__init__(spec, settings)
        self._names: dict[str, str] = {}  # Of the files of an item, without the extension.
        self._taken: set[str] = set()  # As a file system sees them that ignores case and form.

    def find(self, arguments: Iterable[str]) -> Iterator[Any]:
        """See `Predictor.find`."""
        for item in super().find(arguments):
            # Here, where there is one order of the items, however many workers share them.
            if self.writes_files and not isinstance(item, DataError):
                self.name_of(item)
            yield item

    def to_json(self, item: Any) -> Any:
        """See `Predictor.to_json`: with the name of its files."""
        return [item, self.name_of(item)] if self.writes_files else item

    def from_json(self, value: Any) -> Any:
        """See `Predictor.from_json`."""
        if not self.writes_files:
            return value
        item, self._names[value[0]] = value
        return item

    def name_of(self, item: str) -> str:
        """A name for the files of an item, which no other item has."""
        if item not in self._names:
            stem = os.path.splitext(os.path.basename(item))[0]
            name, number = stem, 1
            while (alike := unicodedata.normalize("NFC", name).casefold()) in self._taken:
                number += 1
                name = f"{stem}-{number}"
            self._names[item] = name
            self._taken.add(alike)
        return self._names[item]

    def load(self, item: Any) -> np.ndarray:
        """See `Predictor.load`: uint8 (height, width, channels)."""
        image = read_image(item, channels=self.spec.image_shape[2], remarks=self.remarks)
        with tf.device("CPU"):
            resized: np.ndarray = resize(tf.constant(image), self.spec.image_shape[:2]).numpy()
        return resized


class ClassLines:
    """Lines for logits over classes; to be put before a `Predictor` among the bases of a class."""

    spec: Any
    settings: Any

    def header(self) -> Sequence[str]:
        """See `Predictor.header`."""
        return ["path", "label", "probability", *self.spec.class_names]

    def lines(self, items: Sequence[Any], outputs: Any) -> Iterator[str]:
        """See `Predictor.lines`."""
        probabilities, names = tf.nn.softmax(outputs).numpy(), self.spec.class_names
        paths = [shown(str(item)) for item in items]
        wide = max(map(len, paths))
        for item, path, row in zip(items, paths, probabilities, strict=True):
            order = np.argsort(-row, kind="stable")
            label, probability = names[order[0]], float(row[order[0]])
            if self.settings.format == "table":
                likeliest = (f"{names[i]} {row[i]:.4f}" for i in order[: self.settings.top_k])
                yield f"{path:<{wide}}  {'  '.join(likeliest)}"
            elif self.settings.format == "csv":
                yield csv_row([path, label, probability, *row.tolist()])
            else:
                every = dict(zip(names, row.tolist(), strict=True))
                said = {"path": str(item), "label": label, "probability": probability}
                yield json_line(said | {"probabilities": every})


class ImageClassPredictor(ClassLines, ImagePredictor):
    """Labels image files."""


def find_files(
    paths: Iterable[str],
    extensions: tuple[str, ...],
    *,
    unit: str,
    left: Remarks | None = None,
) -> Iterator[str | DataError]:
    """Yields the files that paths stand for, in order, reading no more paths than it must.

    Args:
        paths: Of files, of folders (every file below them with one of the extensions, sorted, as
            `tfgpu.data.file_tree` finds them), and "-" for more paths, one a line, on standard
            input.
        extensions: In lower case.
        unit: What they are called, in the plural.
        left: Gets what was left out.

    Yields:
        A path, or what is wrong with a folder.
    """
    for path in paths:
        if path == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            named = (line for line in lines if line and line != "-")
            yield from find_files(named, extensions, unit=unit, left=left)
        elif os.path.isdir(path):
            yield from _below(path, extensions, unit=unit, left=left)
        else:
            yield path


def find_images(paths: Iterable[str]) -> Iterator[str | DataError]:
    """`find_files` for images."""
    return find_files(paths, EXTENSIONS, unit="images")


def _below(
    folder: str, extensions: tuple[str, ...], *, unit: str, left: Remarks | None = None
) -> Iterator[str | DataError]:
    problems: list[DataError] = []
    empty = True
    tree = FileTree(extensions, root=folder)
    for _, path in tree.find([("", folder)], problems.append):
        empty = False
        yield path
    if empty and not problems:
        there = f"; left out: {tree.left}" if tree.left.counts else ""
        problems.append(
            DataError(f"{shown(folder)} holds no {unit} ({', '.join(extensions)}){there}")
        )
    elif left is not None:
        left.merge(tree.left.to_json())
    yield from problems


def refuse_nothing(paths: Sequence[str], extensions: tuple[str, ...], *, unit: str) -> None:
    """Refuses folders without any file of the kind, before the work begins.

    Raises:
        RequestError: No path can stand for a file.
    """
    reasons = []
    for path in paths:
        if path == "-" or not os.path.isdir(path):
            return
        first = next(_below(path, extensions, unit=unit))
        if not isinstance(first, DataError):
            return
        reasons.append(str(first))
    raise RequestError(f"no {unit}: {'; '.join(reasons)}")


def csv_row(cells: Sequence[object]) -> str:
    """A row of CSV without a line end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _text(name: str, value: str, *, line: bool) -> str:
    """A value of a row as it is written: a path as `shown` has it, all else where it has to be."""
    if name == "path":
        return shown(value, line=line)
    return value if is_text(value) else shown(value, line=line)


def is_text(value: str) -> bool:
    """Whether a string stands for UTF-8, and not for bytes that are none."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_line(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON that any program reads.

    JSON has no way to write bytes that are not UTF-8. A path that has such is written as in a
    message, and `path_base64` beside it has the bytes.
    """
    said: dict[str, Any] = {}
    for name, value in row.items():
        said[name] = value
        if isinstance(value, str) and (text := _text(name, value, line=False)) != value:
            said[name] = text
            said[f"{name}_base64"] = base64.b64encode(os.fsencode(value)).decode()
    return json.dumps(said)


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            if isinstance(value, str):
                value = _text(name, value, line=True)
            flat[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    return shown(value) if isinstance(value, str) else str(value)
