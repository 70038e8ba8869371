"""How `predict` reads what the user names, and shows what the model makes of it.

The command goes through its arguments a batch at a time: `find` turns them into items, `load` an
item into x, and `lines` a batch of outputs into what is printed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfgpu.data.examples import resize
from tfgpu.data.folder import EXTENSIONS, read_image
from tfgpu.errors import DataError, RequestError


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
    """

    extensions: tuple[str, ...] = ()
    unit = "files"
    writes_files = False
    folder: Path | None = None

    def __init__(self, spec: Any, settings: Any):
        self.spec = spec
        self.settings = settings

    def find(self, arguments: Iterable[str]) -> Iterator[Any]:
        """Yields the items that arguments stand for, in order; a `DataError` for what is wrong.

        No more arguments are read than the items taken need.
        """
        return find_files(arguments, self.extensions, unit=self.unit)

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
                yield json.dumps(row)

    def table_line(self, row: Mapping[str, Any]) -> str:
        """A row for a person."""
        (_, first), *rest = row.items()
        return "  ".join([str(first), *(f"{name} {_short(value)}" for name, value in rest)])

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

    def name_of(self, item: str) -> str:
        """A name for the files of an item, which no other item has."""
        if item not in self._names:
            stem = os.path.splitext(os.path.basename(item))[0]
            taken, name, number = set(self._names.values()), stem, 1
            while name in taken:
                number += 1
                name = f"{stem}-{number}"
            self._names[item] = name
        return self._names[item]

    def load(self, item: Any) -> np.ndarray:
        """See `Predictor.load`: uint8 (height, width, channels)."""
        image = read_image(item, channels=self.spec.image_shape[2])
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
        paths = list(map(str, items))
        wide = max(map(len, paths))
        for path, row in zip(paths, probabilities, strict=True):
            order = np.argsort(-row, kind="stable")
            label, probability = names[order[0]], float(row[order[0]])
            if self.settings.format == "table":
                likeliest = (f"{names[i]} {row[i]:.4f}" for i in order[: self.settings.top_k])
                yield f"{path:<{wide}}  {'  '.join(likeliest)}"
            elif self.settings.format == "csv":
                yield csv_row([path, label, probability, *row.tolist()])
            else:
                every = dict(zip(names, row.tolist(), strict=True))
                said = {"path": path, "label": label, "probability": probability}
                yield json.dumps(said | {"probabilities": every})


class ImageClassPredictor(ClassLines, ImagePredictor):
    """Labels image files."""


def find_files(
    paths: Iterable[str], extensions: tuple[str, ...], *, unit: str
) -> Iterator[str | DataError]:
    """Yields the files that paths stand for, in order, reading no more paths than it must.

    Args:
        paths: Of files, of folders (every file below them with one of the extensions, sorted), and
            "-" for more paths, one a line, on standard input.
        extensions: In lower case.
        unit: What they are called, in the plural.

    Yields:
        A path, or what is wrong with a folder.
    """
    for path in paths:
        if path == "-":
            lines = (line.rstrip("\r\n") for line in sys.stdin)
            named = (line for line in lines if line and line != "-")
            yield from find_files(named, extensions, unit=unit)
        elif os.path.isdir(path):
            yield from _below(path, extensions, unit=unit)
        else:
            yield path


def find_images(paths: Iterable[str]) -> Iterator[str | DataError]:
    """`find_files` for images."""
    return find_files(paths, EXTENSIONS, unit="images")


def _below(folder: str, extensions: tuple[str, ...], *, unit: str) -> Iterator[str | DataError]:
    problems: list[DataError] = []

    def fail(error: OSError) -> None:
        problems.append(DataError(f"{error.filename} cannot be read: {error.strerror}"))

    empty = True
    for parent, subfolders, names in os.walk(folder, onerror=fail):
        subfolders.sort()
        for name in sorted(names):
            if name.lower().endswith(extensions) and not name.startswith("."):
                empty = False
                yield os.path.join(parent, name)
    if empty and not problems:
        problems.append(DataError(f"{folder} holds no {unit} ({', '.join(extensions)})"))
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


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(part)}" for name, part in value.items())
    return str(value)
