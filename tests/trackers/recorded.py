"""Records of runs as a training writes them, and a tracker that keeps them in memory."""

import json

import numpy as np

from tfgpu.trackers.run_record import RunRecord

STEPS = 10  # Of an epoch.


def add_epoch(record, number, **values):
    """What a training does at the end of an epoch."""
    line = {
        "epoch": number,
        "step": number * STEPS,
        "loss": 1 / number,
        "val_loss": None,
        "seconds": 0.5,
        **values,
    }
    with open(record.run_dir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    record.add_system(number * STEPS, {"system/cpu": 50.0 + number})
    record.complete()


def begun(run_dir, *, epochs=0):
    """The record of a run that is going on."""
    run_dir.mkdir(parents=True, exist_ok=True)
    config = {"model": "lenet", "epochs": 3, "image_size": [32, 32], "depth": None, "remat": False}
    (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "environment.json").write_text(json.dumps({"git": {"revision": "abc"}}))
    record = RunRecord(run_dir)
    record.begin()
    for number in range(1, epochs + 1):
        add_epoch(record, number)
    return record


def end(record, *, status="finished", model=b"weights"):
    """What a training leaves at its end."""
    result = {"status": status, "steps": 30, "test_accuracy": 0.9, "hardware": {"energy_joules": 7}}
    (record.run_dir / "result.json").write_text(json.dumps(result))
    (record.run_dir / "model.keras").write_bytes(model)


def add_pictures(record, step):
    """One picture of each sort."""
    image = np.full((4, 6, 3), 255, np.uint8)
    record.add_picture("predictions", step, "confusion_matrix", image, "True classes downwards.")
    record.add_picture("predictions", step, "examples/words", "| a |", "Text.")


class Kept:
    """A tracker in memory.

    Attributes:
        records: What it has.
        fails: What it raises at the next call, while that is not None.
    """

    name = "kept"

    def __init__(self):
        self.records, self.opened, self.ended, self.fails = [], 0, [], None
        self._before = set()

    def open(self, record):
        self._fail()
        self.opened += 1
        self._before = {each.order for each in self.records}
        return "in memory"

    def has(self, record):
        return record.order in self._before

    def log(self, records):
        for record in records:
            self._fail()
            self.records.append(record)

    def end(self, ending):
        self._fail()
        self.ended.append(ending)

    def _fail(self):
        if self.fails is not None:
            raise self.fails
