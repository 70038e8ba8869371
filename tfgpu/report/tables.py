"""Tables for the page, also of what is known by its shape alone, such as a task's evaluation."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfgpu.report.charts import figure

MOST_ROWS = 400
"""Of a table; of more the first are shown, and how many there are is said."""
_MOST_COLUMNS = 40


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        caption: What is in it.
        head: Of the columns.
        rows: Texts.
        note: Below it; "" for none.
        folded: Whether it is shown on demand.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    folded: bool = False


def of_facts(caption: str, facts: Mapping[str, Any], *, head: str = "what") -> Table | None:
    """A table of two columns; what is None or empty is left out, and None where nothing is left."""
    rows = [[name, text(v)] for name, v in facts.items() if v not in (None, "", [], {}, ())]
    return Table(caption, [head, "value"], rows) if rows else None


def text(value: Any) -> str:
    """A JSON value for people."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text(each)}" for name, each in value.items())
    if isinstance(value, Sequence):
        return ", ".join(text(each) for each in value)
    return str(value)


def as_set(value: Any) -> str:
    """A setting as it is written in `config.json`, without the quotes of text."""
    return value if isinstance(value, str) else json.dumps(value)


def of_json(name: str, found: Mapping[str, Any]) -> Iterator[Table]:
    """Tables of an object: its figures, then one for each list of objects and each matrix.

    Args:
        name: For the captions.
        found: Such as the contents of `evaluation.json`, of any task.
    """
    plain = {key: v for key, v in found.items() if not isinstance(v, list | Mapping)}
    flat = of_facts(f"{name}: figures", plain, head="figure")
    if flat is not None:
        yield flat
    for key, value in found.items():
        caption = f"{name}: {key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            table = of_facts(caption, value, head="figure")
            if table is not None:
                yield table
        elif _is_records(value):
            yield _of_records(caption, value)
        elif _is_matrix(value):
            labels = _labels(found, len(value))
            yield _of_matrix(caption, value, labels)


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _is_matrix(value: Any) -> bool:
    if not isinstance(value, list) or not value or not isinstance(value[0], list):
        return False
    width = len(value[0])
    return 0 < width <= _MOST_COLUMNS and all(
        isinstance(row, list) and len(row) == width for row in value
    )


def _labels(found: Mapping[str, Any], count: int) -> list[str]:
    """Names for the rows of a matrix: of a list of as many objects with a `name`, else numbers."""
    for value in found.values():
        if _is_records(value) and len(value) == count and all("name" in each for each in value):
            return [str(each["name"]) for each in value]
    return [str(number) for number in range(count)]


def _of_records(caption: str, records: Sequence[Mapping[str, Any]]) -> Table:
    head = list(dict.fromkeys(str(key) for record in records for key in record))
    rows = [[text(record.get(key)) for key in head] for record in records[:MOST_ROWS]]
    return Table(caption, head, rows, _left_out(len(records)), folded=len(rows) > 30)


def _of_matrix(caption: str, matrix: Sequence[Sequence[Any]], labels: Sequence[str]) -> Table:
    square = len(matrix[0]) == len(matrix)
    head = ["row \\ column", *(labels if square else [str(n) for n in range(len(matrix[0]))])]
    rows = [[label, *map(text, row)] for label, row in zip(labels, matrix, strict=False)]
    return Table(caption, head, rows[:MOST_ROWS], _left_out(len(rows)), folded=len(rows) > 12)


def _left_out(count: int) -> str:
    return f"The first {MOST_ROWS} of {count:,} rows." if count > MOST_ROWS else ""


def of_markdown(caption: str, content: str) -> Table | None:
    """The one table that a Markdown text consists of; None where it is something else."""
    lines = [line.strip() for line in content.strip().splitlines()]
    if len(lines) < 3 or not all(line.startswith("|") and line.endswith("|") for line in lines):
        return None
    if not re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", lines[1]):
        return None
    # A backslash before a bar makes it a part of a cell.
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (lines[0], *lines[2:])
    ]
    if any(len(row) != len(rows[0]) for row in rows):
        return None
    return Table(caption, rows[0], rows[1:])
