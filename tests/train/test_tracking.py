"""What `tfgpu train --log_to` records and sends; the tracker is a file of the run."""

import json
import shutil

import pytest
from faked_tracker import ended, fake, kept
from trained_runs import argv_of, command, everything, the_line

from tfgpu.trackers.run_record import RunRecord
from tfgpu.train import __main__ as train
from tfgpu.train.record import Record

pytestmark = [
    pytest.mark.usefixtures("here"),
    # TensorFlow's MirroredVariable, when Keras saves or compares weights.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]


@pytest.fixture(autouse=True)
def faked(tmp_path, monkeypatch, here):
    fake(tmp_path, monkeypatch)
    monkeypatch.setattr("tfgpu.trackers.check", lambda log_to: None)


def epochs(run_dir):
    return [int(each["epoch"]) for each in kept(run_dir) if "epoch" in each]


def metrics(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_is_sent_with_its_pictures_and_its_result(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tfgpu.train.tracking.SYSTEM_SECONDS", 0.0)
    path = tmp_path / "run"
    settings = {"log_to": "mlflow", "hardware_interval": "0.001"}
    assert command(*argv_of(settings), f"--run_dir={path}") == 0
    assert "mlflow: a file" in capsys.readouterr().out
    assert epochs(path) == [1, 2, 3]
    last = next(each for each in kept(path) if each.get("epoch") == 3)
    assert last["val_loss"] == metrics(path)[-1]["val_loss"]
    assert {each["tag"] for each in kept(path)} > {"batch", "confusion_matrix"}
    sampled = [each.step for each in RunRecord(path).records() if each.kind == "system"]
    assert len(sampled) > 3 and sampled == sorted(sampled)  # Within the epochs too.
    assert sum("system/process_memory" in each for each in kept(path)) == len(sampled)
    result = json.loads((path / "result.json").read_text())
    assert ended(path)["ending"] == "finished" and ended(path)["model"] == str(path / "model.keras")
    assert ended(path)["test_accuracy"] == result["test_accuracy"]

    # The same command again sends what is missing, and that alone.
    before = kept(path)
    (path / "kept.jsonl").write_text("".join(json.dumps(each) + "\n" for each in before[:4]))
    assert command(*argv_of(settings), f"--run_dir={path}") == 0
    assert kept(path) == before


@pytest.mark.slow
def test_tensorboard_and_trackers_get_the_same_pictures(tmp_path):
    settings = {"log_to": "mlflow", "tensorboard": "default", "epochs": "1"}
    path = tmp_path / "run"
    assert command(*argv_of(settings), f"--run_dir={path}") == 0
    assert {"batch", "confusion_matrix"} <= {each["tag"] for each in kept(path)}


def test_a_run_that_broke_off_is_continued_without_an_epoch_twice(tmp_path, monkeypatch):
    # Epochs end after 8, 16 and 24 steps, and the last checkpoint is that of the tenth.
    path, settings = tmp_path / "run", {"validation_fraction": "0", "checkpoint_every": "10"}
    argv = [*argv_of({**settings, "log_to": "mlflow"}), f"--run_dir={path}"]
    with monkeypatch.context() as patched:

        def on_train_batch_end(self, batch, logs=None):
            _of_progress(self, batch, logs)
            if self._outcome["steps"] >= 18:
                raise RuntimeError("broke off")

        _of_progress = Record.on_train_batch_end
        patched.setattr(Record, "on_train_batch_end", on_train_batch_end)
        with pytest.raises(RuntimeError, match="broke off"):
            train.main(argv)
    assert ended(path)["ending"] == "failed" and epochs(path) == [1, 2]
    assert command(*argv) == 0
    assert epochs(path) == [1, 2, 3] and ended(path)["ending"] == "finished"
    assert [each["epoch"] for each in metrics(path)] == [1, 2, 3]


def test_a_finished_run_can_be_sent_afterwards(run, tmp_path):
    made = run()
    path = shutil.copytree(made.path, tmp_path / "run")
    assert not (path / "tracking").exists()
    assert command(*argv_of({"log_to": "mlflow"}), f"--run_dir={path}") == 0
    assert epochs(path) == [1, 2, 3] and ended(path)["ending"] == "finished"


def test_no_variable_alone_sends_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("tfgpu.train.tracking.Sender", None)  # No process is started.
    path = tmp_path / "run"
    assert command(*argv_of({"epochs": "1"}), f"--run_dir={path}") == 0
    assert not (path / "tracking").exists() and not (path / "wandb").exists()


def test_an_extra_that_is_missing_ends_it_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # The check is the real one.
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *package: None)
    before = everything(tmp_path)
    assert command("--dataset=digits", "--log_to=wandb", f"--run_dir={tmp_path / 'run'}") == 2
    assert "pip install 'tfgpu[wandb]'" in the_line(capsys)
    assert everything(tmp_path) == before
