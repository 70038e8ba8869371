"""The process that sends, seen from the training."""

import functools
import json
import os
import time

import pytest
from faked_tracker import TRACKER, ended, fake, kept
from recorded import add_epoch, begun, end

from tfgpu import trackers
from tfgpu.errors import RequestError
from tfgpu.trackers.client import Sender


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """Has the module of MLflow be another in the processes that send: `faked(source)`."""
    return functools.partial(fake, tmp_path, monkeypatch)


@pytest.fixture
def heard():
    return []


def sender_of(record, heard):
    return Sender(record, "mlflow", warn=lambda text: heard.append(f"warning: {text}"))


def sent(record):
    return [each["order"] for each in kept(record.run_dir)]


def wait_for(what):
    last = time.monotonic() + 60
    while not what():
        assert time.monotonic() < last
        time.sleep(0.05)


def orders(record):
    return [each.order for each in record.records()]


def test_a_training_that_ends_has_all_sent(tmp_path, faked, heard):
    faked()
    record = begun(tmp_path / "run", epochs=1)
    sender = sender_of(record, heard)
    wait_for(lambda: sent(record))
    add_epoch(record, 2)
    sender.update()
    end(record)
    sender.end("finished")
    assert sender.wait(say=heard.append)
    assert sent(record) == orders(record) and heard == ["mlflow: a file"]
    assert ended(record.run_dir)["ending"] == "finished"
    assert "noise" in (record.path / "mlflow.txt").read_text()


def test_a_training_that_is_killed_is_closed_and_its_next_process_sends_nothing_twice(
    tmp_path, faked, heard
):
    faked()
    record = begun(tmp_path / "run", epochs=1)
    killed = sender_of(record, heard)
    wait_for(lambda: sent(record))
    killed._process.stdin.close()  # What the end of the process does, however it ends.
    again = sender_of(record, heard)  # While the other may be sending.
    wait_for(lambda: (record.run_dir / "ended.json").exists())
    assert ended(record.run_dir)["ending"] == "killed"
    add_epoch(record, 2)
    again.end("finished")
    assert again.wait(say=heard.append)
    assert sent(record) == orders(record)
    killed.wait(say=heard.append)


@pytest.mark.parametrize(
    "source, reason",
    [
        (
            "def MlflowTracker():\n    raise ImportError('made for another protobuf')",
            "made for another protobuf",
        ),
        (
            "import os\nclass MlflowTracker:\n    def open(self, record):\n        os._exit(7)",
            "ended by itself",
        ),
    ],
    ids=["cannot be imported", "takes the process with it"],
)
def test_a_library_that_breaks_is_one_warning(tmp_path, faked, heard, source, reason):
    faked(source)
    record = begun(tmp_path / "run", epochs=1)
    sender = sender_of(record, heard)
    sender._process.wait(60)
    for epoch in (2, 3):
        add_epoch(record, epoch)
        sender.update()
        sender.tell(heard.append)
    sender.end("finished")
    assert not sender.wait(say=heard.append)
    assert [line for line in heard if "mlflow" in line and reason in line]
    assert sum(line.startswith("warning: ") for line in heard) == 1


def test_a_library_that_hangs_does_not_hold_the_end_of_a_training(
    tmp_path, faked, heard, monkeypatch
):
    hanging = "import time\nclass MlflowTracker:\n    def open(self, record): time.sleep(600)"
    faked(hanging)
    monkeypatch.setattr("tfgpu.trackers.client.PATIENCE", {"finished": 0.5})
    record = begun(tmp_path / "run", epochs=1)
    sender = sender_of(record, heard)
    began = time.monotonic()
    sender.end("finished")
    assert not sender.wait(say=heard.append)
    assert time.monotonic() - began < 60


def test_the_makers_of_the_libraries_are_told_nothing(tmp_path, faked, heard, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    faked(
        TRACKER.replace(
            'return "a file"', "return json.dumps({k: os.environ.get(k) for k in self.names})"
        )
        + "\n    names = ['MLFLOW_DISABLE_TELEMETRY', 'WANDB_ERROR_REPORTING']\n"
    )
    record = begun(tmp_path / "run")
    sender = sender_of(record, heard)
    sender.end("finished")
    assert sender.wait(say=heard.append)
    variables = json.loads(heard[0].removeprefix("mlflow: "))
    assert variables == {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    trackers.check("none")
    with pytest.raises(RequestError, match=r"--log_to=wandb,mlflow needs wandb.*tfgpu\[wandb\]"):
        trackers.check("wandb,mlflow")
