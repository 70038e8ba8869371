"""What is logged to W&B, read back from its offline files."""

import os

import pytest
from recorded import STEPS, add_epoch, add_pictures, begun, end

wandb = pytest.importorskip("wandb", reason="needs the extra wandb")

from wandb_files import Offline  # noqa: E402

from tfgpu.trackers import client  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """A machine on which nobody has logged in to W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "home").mkdir()


def sent(record, ending="finished"):
    """Sends a record by a process of its own; returns what it said."""
    said = []
    sender = client.Sender(record, "wandb", warn=said.append)
    sender.update()
    sender.end(ending)
    assert sender.wait(say=said.append), said
    return said


def offline(record):
    """The files of the one run that the directory holds."""
    [file] = (record.run_dir / "wandb").glob("offline-run-*/*.wandb")
    return Offline(file)


def test_a_run_has_settings_metrics_hardware_pictures_and_the_model(tmp_path):
    record = begun(tmp_path / "run", epochs=2)
    add_pictures(record, 2 * STEPS)
    end(record)
    [said] = sent(record)
    assert said.startswith("wandb: offline for want of an account (wandb login); to send it: wandb")
    found = offline(record)
    assert (found.run.run_id, found.run.display_name) == (record.identity["id"], "run")
    assert found.run.project == "tfgpu" and found.exit == 0
    assert found.config.items() >= {"model": "lenet", "image_size": [32, 32]}.items()
    rows = [row for row in found.history if "epoch" in row]
    assert [(row["step"], row["epoch"], row["loss"]) for row in rows] == [(10, 1, 1), (20, 2, 0.5)]
    assert [row["system/cpu"] for row in found.history if "system/cpu" in row] == [51, 52]
    times = [each.time for each in record.records() if each.kind == "epoch"]
    assert [row["_timestamp"] for row in rows] == pytest.approx(times, abs=1e-3)
    assert found.history[-1]["confusion_matrix._type"] == "image-file"
    assert found.history[-1]["examples/words._type"] == "html-file"
    assert found.summary["test_accuracy"] == 0.9 and found.summary["energy_joules"] == 7
    [(name, files)] = found.artifacts.items()
    assert name == f"model-{record.identity['id']}"
    assert set(files) == {"config.json", "environment.json", "model.keras", "result.json"}


def test_nothing_but_the_record_is_kept(tmp_path):
    record = begun(tmp_path / "run", epochs=1)
    sent(record, "interrupted")
    found = offline(record)
    assert (found.run.host, found.run.git.remote_url, found.exit) == ("", "", 1)
    names = {path.name for path in (record.run_dir / "wandb").glob("offline-run-*/files/*")}
    # No list of packages, nothing of the machine, no terminal, no source.
    assert names <= {"media"}


def test_a_run_that_is_continued_has_one_file_with_each_epoch_once(tmp_path):
    record = begun(tmp_path / "run", epochs=2)
    sent(record, "killed")
    record.rewind(STEPS)
    lines = (record.run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (record.run_dir / "metrics.jsonl").write_text(lines[0])
    add_epoch(record, 2)
    add_epoch(record, 3)
    end(record)
    sent(record)
    found = offline(record)
    assert [row["epoch"] for row in found.history if "epoch" in row] == [1, 2, 3]
    assert found.run.run_id == record.identity["id"] and found.exit == 0


def test_a_file_that_was_sent_is_left_alone(tmp_path):
    record = begun(tmp_path / "run", epochs=1)
    sent(record, "killed")
    [file] = (record.run_dir / "wandb").glob("offline-run-*/*.wandb")
    file.with_name(f"{file.name}.synced").touch()  # As `wandb sync` marks it.
    add_epoch(record, 2)
    sent(record)
    assert file.exists()


def test_trials_are_in_the_group_of_their_search(tmp_path):
    begun(tmp_path / "search")
    (tmp_path / "search" / "search.json").write_text("{}")
    trial = begun(tmp_path / "search" / "trials" / "0001", epochs=1)
    sent(trial)
    found = offline(trial)
    assert (found.run.run_group, found.run.display_name) == ("search", "search/0001")


def test_the_mode_that_w_and_b_is_set_to_holds(tmp_path, monkeypatch):
    record = begun(tmp_path / "run", epochs=1)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert sent(record) == ["wandb: nothing is logged, as W&B is set to be disabled"]
    assert not (record.run_dir / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert sent(record)[0].startswith("wandb: offline as W&B is set to")
