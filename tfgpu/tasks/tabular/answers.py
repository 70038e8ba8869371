"""How `predict` reads the rows of tables, and shows a class or a number for each."""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfgpu.data.cells import LARGEST, MISSING, not_finite, to_number
from tfgpu.data.table_rows import EXTENSIONS, chunks
from tfgpu.errors import DataError, shown
from tfgpu.tasks.parts.predictor import ClassLines, Predictor, csv_row, find_files
from tfgpu.tasks.tabular.encoder import Encoder, title
from tfgpu.tasks.tabular.reading import unusual


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row to be answered; shown as where it stands."""

    place: str
    x: Mapping[str, np.ndarray]

    def __str__(self) -> str:
        return self.place


class RowPredictor(Predictor):
    """Reads the rows of CSV and Parquet files, whose columns are found by their names."""

    extensions = EXTENSIONS
    unit = "rows"

    def __init__(self, spec: Any, settings: Any):
        super().__init__(spec, settings)
        self._encoder = Encoder(spec.fitted)
        self._unknown: dict[str, list[str]] = collections.defaultdict(list)
        self._gaps: collections.Counter[str] = collections.Counter()

    def find(self, arguments: Iterable[str]) -> Iterator[Any]:
        """See `Predictor.find`; at the end, says what is answered without being known."""
        for file in find_files(arguments, self.extensions, unit=self.unit, left=self.left):
            try:
                if isinstance(file, DataError):
                    yield file
                else:
                    yield from self._of_table(file)
            except DataError as error:
                yield error
        for line in unusual(self._unknown, self._gaps):
            print(f"tfgpu: {line}", file=sys.stderr, flush=True)

    def _of_table(self, file: str) -> Iterator[Any]:
        encoder = self._encoder
        for names, rows, lines in chunks(file):
            for column in encoder.columns:
                if column not in names:
                    raise DataError(
                        f"{shown(file)} has no column {column!r}, which the model was trained on; "
                        f"it has {', '.join(names)}"
                    )
            cells = dict(zip(names, zip(*rows, strict=True), strict=True))
            raw, problems = self._raw(cells, [f"{file}:{line}" for line in lines])
            x = encoder(raw)
            good = np.array([i not in problems for i in range(len(rows))])
            known = {name: each[good] for name, each in raw.items()}
            of_good = {name: each[good] for name, each in x.items()}
            for column, found in encoder.unknown(known, of_good).items():
                self._unknown[column] += found
            self._gaps.update(encoder.gaps(known))
            for i, line in enumerate(lines):
                if i in problems:
                    yield DataError(problems[i])
                else:
                    yield _Row(f"{file}:{line}", {name: each[i] for name, each in x.items()})

    def _raw(
        self, cells: Mapping[str, Sequence[str]], places: Sequence[str]
    ) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """What the encoder takes, and what is wrong with rows, by their number."""
        raw: dict[str, np.ndarray] = {}
        problems: dict[int, str] = {}
        encoder = self._encoder
        parts = (*encoder.numbers, *encoder.categories)
        for position, (name, part) in enumerate(zip(encoder.inputs, parts, strict=True)):
            column = part["column"]
            if "index" in part:
                raw[name] = self._numbers_of(cells[column], part, problems)
                continue
            texts = _texts(cells[column], column, problems)
            if position >= len(encoder.numbers):
                found = np.empty(len(texts), object)
                found[:] = [cell.encode() if cell.strip() else b"" for cell in texts]
                raw[name] = encoder.spell(position - len(encoder.numbers), found)
                continue
            values = np.full(len(places), np.nan, np.float32)
            for i, cell in enumerate(texts):
                if cell.strip() in MISSING:
                    continue
                try:
                    number = to_number(cell)
                except ValueError:
                    problems[i] = f"the cell of the column {column!r} is {cell!r}, and no number"
                    continue
                if abs(number) > LARGEST:
                    problems[i] = f"the cell of the column {column!r} is {not_finite(cell)}"
                    continue
                values[i] = number
            raw[name] = values
        return raw, {i: f"{places[i]}: {problem}" for i, problem in problems.items()}

    def _numbers_of(
        self, cells: Sequence[Any], part: Mapping[str, Any], problems: dict[int, str]
    ) -> np.ndarray:
        """One of the numbers of each list of a column; adds what is wrong with rows."""
        values = np.full(len(cells), np.nan, np.float32)
        for i, cell in enumerate(cells):
            if not isinstance(cell, list):
                problems[i] = (
                    f"the model takes {title(part)}, one of a list of numbers, and the cell of "
                    f"the column {part['column']!r} is {cell!r}; Parquet files have lists"
                )
            elif len(cell) <= part["index"]:
                problems[i] = f"the column {part['column']!r} has fewer numbers than in training"
            elif (value := cell[part["index"]]) is not None:
                if abs(value) > LARGEST:
                    problems[i] = f"a number of the column {part['column']!r} is infinite"
                    continue
                values[i] = value
        return values

    def load(self, item: Any) -> Any:
        """See `Predictor.load`."""
        return item.x

    def to_json(self, item: Any) -> Any:
        """See `Predictor.to_json`."""
        return [item.place, {name: each.tolist() for name, each in item.x.items()}]

    def from_json(self, value: Any) -> Any:
        """See `Predictor.from_json`."""
        place, x = value
        spec = self._encoder.spec
        return _Row(
            place,
            {name: np.array(each, spec[name].dtype.as_numpy_dtype) for name, each in x.items()},
        )


class RowClassPredictor(ClassLines, RowPredictor):
    """Classifies rows."""


class NumberPredictor(RowPredictor):
    """Gives a number for each row."""

    def header(self) -> Sequence[str]:
        """See `Predictor.header`."""
        return ["path", self._key]

    @property
    def _key(self) -> str:
        """What the number is called beside the place of its row, which is the path."""
        target: str = self.spec.fitted["target"]
        return target if target != "path" else "target"

    def lines(self, items: Sequence[Any], outputs: Any) -> Iterator[str]:
        """See `Predictor.lines`."""
        target = self.spec.fitted["target"]
        paths = list(map(str, items))
        wide = max(map(len, paths))
        for path, value in zip(paths, np.asarray(outputs)[:, 0].tolist(), strict=True):
            if self.settings.format == "table":
                yield f"{path:<{wide}}  {target} {value:.6g}"
            elif self.settings.format == "csv":
                yield csv_row([path, value])
            else:
                yield json.dumps({"path": path, self._key: value})


def predictor(spec: Any, settings: Any) -> Predictor:
    """The predictor for the goal of a run."""
    kind = RowClassPredictor if spec.class_names else NumberPredictor
    return kind(spec, settings)


def _texts(cells: Sequence[Any], column: str, problems: dict[int, str]) -> list[str]:
    """The cells of a column that holds single values; adds what is wrong with rows."""
    found = []
    for i, cell in enumerate(cells):
        if not isinstance(cell, str):
            problems[i] = (
                f"the cell of the column {column!r} is {cell!r}; the model was trained on single "
                "values, not on lists"
            )
        found.append(cell if isinstance(cell, str) else "")
    return found
