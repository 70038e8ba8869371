"""A tracker that is a file of the run, in the place of MLflow, in the processes that send."""

import json
import os

TRACKER = """
import json, os, pathlib, time


class MlflowTracker:
    name = "mlflow"

    def open(self, record):
        self.record, self.file = record, record.run_dir / "kept.jsonl"
        self.had = {each["order"] for each in self.lines()}
        return "a file"

    def lines(self):
        text = self.file.read_text() if self.file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def has(self, record):
        return record.order in self.had

    def log(self, records):
        print("noise of a library")
        with open(self.file, "a") as file:
            for each in records:
                found = {"order": each.order, "tag": each.tag, **each.values}
                file.write(json.dumps(found) + "\\n")

    def end(self, ending):
        found = {"ending": ending, **self.record.figures, "model": str(self.record.model)}
        (self.file.parent / "ended.json").write_text(json.dumps(found))
"""


def fake(folder, monkeypatch, source=TRACKER):
    """Has the module that speaks with MLflow be another.

    Args:
        folder: For a file that each interpreter reads when it starts.
        monkeypatch: Of the test.
        source: Defines `MlflowTracker`.
    """
    (folder / "sitecustomize.py").write_text(
        "import sys, types\n"
        "module = types.ModuleType('tfgpu.trackers.mlflow_tracker')\n"
        f"exec({source!r}, vars(module))\n"
        "sys.modules[module.__name__] = module\n"
    )
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def kept(run_dir):
    """What the tracker got of a run, in order."""
    path = run_dir / "kept.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ended(run_dir):
    """What it got at the end."""
    return json.loads((run_dir / "ended.json").read_text())
