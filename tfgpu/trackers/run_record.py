"""What a run directory keeps for trackers: `tracking/` in it.

    identity.json       the id and the name of the run, and the group that it belongs to
    records.jsonl       one object for each epoch, each sample of the hardware and each picture
    pictures/           the pictures
    mlflow.json, ...    what a tracker calls the run
    mlflow.txt, ...     what the library of a tracker had to say
    mlflow.lock, ...    held by the process that sends to it

The settings, the environment, the result and the model are in the files of the run itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tfgpu.artifacts import files

KINDS = ("system", "epoch", "predictions", "batch")
"""Of records, in the order in which those of the same step are written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One thing to log.

    Attributes:
        kind: One of `KINDS`: figures of the hardware, those of an epoch, a picture of what the
            model makes of the validation split, or of a batch of training.
        step: Steps of training before it.
        time: Seconds since 1970.
        values: Figures by name; {} for a picture.
        tag: The name of a picture.
        file: A picture's file below `tracking/pictures`: PNG, or Markdown for one that is text.
        description: Of a picture.
    """

    kind: str
    step: int
    time: float
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tag: str = ""
    file: str = ""
    description: str = ""

    @property
    def order(self) -> int:
        """Grows from record to record of a run; equal for the pictures of one moment."""
        return len(KINDS) * self.step + KINDS.index(self.kind)


_OF_RESULT = ("parameters", "train_seconds", "total_seconds", "best_score", "trials", "failed")


class RunRecord:
    """The record of a run directory.

    Attributes:
        run_dir: The directory of the run.
        path: `tracking` in it.
    """

    def __init__(self, run_dir: Path):
        self.run_dir = run_dir
        self.path = run_dir / "tracking"
        self._recorded: set[int] | None = None  # Steps at which epochs end.
        self._read = 0  # Bytes of metrics.jsonl.

    # ---- what the training writes --------------------------------------------------------------

    def begin(self) -> None:
        """Gives the run its id, where it has none, and sees that what is there can be added to."""
        (self.path / "pictures").mkdir(parents=True, exist_ok=True)
        self._rewrite(self.records())  # Without a line that was cut off when the machine went down.
        if not self.identity:
            name, group = self.run_dir.resolve().name, self._search()
            if group is not None:
                name = f"{group['name']}/{name}"
            identity = {"id": uuid.uuid4().hex, "name": name, "group": group}
            files.write_json(self.path / "identity.json", identity)

    def _search(self) -> dict[str, str] | None:
        """`id` and `name` of the search that this run is a trial of: SEARCH/trials/NUMBER."""
        directory = self.run_dir.resolve().parent.parent
        found = RunRecord(directory).identity if (directory / "search.json").exists() else {}
        return {"id": found["id"], "name": found["name"]} if found else None

    def rewind(self, step: int) -> None:
        """Takes back what was recorded after a step, which is about to be trained again."""
        self._rewrite([each for each in self.records() if each.step <= step])
        self._recorded, self._read = None, 0

    def complete(self) -> None:
        """Appends the epochs of metrics.jsonl that are not recorded yet."""
        if self._recorded is None:
            self._recorded = {each.step for each in self.records() if each.kind == "epoch"}
        # From where it was read to, so that an epoch costs the same however many there were.
        lines, self._read = _lines_from(self.run_dir / "metrics.jsonl", self._read)
        for line in lines:
            if isinstance(line.get("step"), int) and line["step"] not in self._recorded:
                self._recorded.add(line["step"])
                values = {
                    name: value
                    for name, value in line.items()
                    if name != "step" and value is not None
                }
                self._append(
                    Record(kind="epoch", step=line["step"], time=time.time(), values=values)
                )

    def add_system(self, step: int, values: Mapping[str, float]) -> None:
        """Appends figures of the hardware."""
        if values:
            self._append(Record(kind="system", step=step, time=time.time(), values=values))

    def add_picture(
        self, kind: str, step: int, tag: str, content: np.ndarray | str, description: str
    ) -> None:
        """Writes a picture.

        Args:
            kind: "predictions" or "batch".
            step: Steps of training before it.
            tag: TensorBoard's.
            content: uint8 (height, width, 3), or Markdown.
            description: For whoever looks at it.
        """
        text = isinstance(content, str)
        name = f"{step:08d}-{files.file_name(tag)}{'.md' if text else '.png'}"
        with files.replacing(self.path / "pictures" / name) as beside:
            if isinstance(content, str):
                beside.write_text(content, encoding="utf-8")
            else:
                Image.fromarray(content).save(beside)
        self._append(
            Record(
                kind=kind,
                step=step,
                time=time.time(),
                tag=tag,
                file=name,
                description=description,
            )
        )

    def _rewrite(self, records: Sequence[Record]) -> None:
        text = "".join(map(_line, records))
        if self._records.exists() and self._records.read_text(encoding="utf-8") != text:
            with files.replacing(self._records) as beside:
                beside.write_text(text, encoding="utf-8")

    def _append(self, record: Record) -> None:
        with files.named(self._records), open(self._records, "a", encoding="utf-8") as file:
            file.write(_line(record))
            if record.kind != "system":
                file.flush()
                os.fsync(file.fileno())

    # ---- what trackers read --------------------------------------------------------------------

    @property
    def _records(self) -> Path:
        return self.path / "records.jsonl"

    @property
    def identity(self) -> dict[str, Any]:
        """`id`, `name` and `group`; {} before `begin`."""
        return _object(self.path / "identity.json")

    def records(self) -> list[Record]:
        """All of them, in order; of a file that is being written, the lines that are whole."""
        known = {field.name for field in dataclasses.fields(Record)}
        # Of a file that somebody has changed, what fits.
        return [
            Record(**line)
            for line in _lines(self._records)
            if {"kind", "step", "time"} <= line.keys() <= known and line["kind"] in KINDS
        ]

    def picture(self, record: Record) -> Path:
        """The file of a picture."""
        return self.path / "pictures" / record.file

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of the run, or of the search, that is set."""
        config = _object(self.run_dir / "config.json") or _object(self.run_dir / "search.json")
        return {name: value for name, value in config.items() if value is not None}

    @property
    def environment(self) -> dict[str, Any]:
        """What the run stood on."""
        return _object(self.run_dir / "environment.json")

    @property
    def result(self) -> dict[str, Any]:
        """The outcome, as far as it is known."""
        return _object(self.run_dir / "result.json")

    @property
    def figures(self) -> dict[str, float]:
        """The figures of the result that no epoch has: of the test, of time and of energy."""
        result = self.result
        found = {
            name: value
            for name, value in result.items()
            if name.startswith("test_") or name in _OF_RESULT
        }
        found["energy_joules"] = (result.get("hardware") or {}).get("energy_joules")
        return {name: float(value) for name, value in found.items() if value is not None}

    @property
    def documents(self) -> list[Path]:
        """The files of the run that say what was trained and how it went, as far as there are."""
        names = ["config.json", "environment.json", "fitted.json", "result.json"]
        names += ["search.json", "trials.jsonl", "best_config.json"]
        return [path for name in names if (path := self.run_dir / name).exists()]

    @property
    def model(self) -> Path | None:
        """The model of a run that is finished."""
        path = self.run_dir / "model.keras"
        return path if path.exists() and self.result.get("status") == "finished" else None

    def known(self, tracker: str) -> dict[str, Any]:
        """What a tracker wanted to remember; {} for nothing."""
        return _object(self.path / f"{tracker}.json")

    def remember(self, tracker: str, value: Mapping[str, Any]) -> None:
        """Keeps what a tracker wants to remember of this run."""
        files.write_json(self.path / f"{tracker}.json", value)


def _line(record: Record) -> str:
    values = dataclasses.asdict(record)
    return (
        json.dumps({name: value for name, value in values.items() if value not in ("", {})}) + "\n"
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return _lines_from(path, 0)[0]


def _lines_from(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """The objects in the whole lines behind a byte of a file, and where those lines end."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return [], start
    found = []
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break  # It is being written, or was when the machine went down.
        with contextlib.suppress(ValueError):  # A damaged one does not hide those behind it.
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
        start += len(line)
    return found, start


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
