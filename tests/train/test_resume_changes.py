"""A run that is continued after damage, with other settings, or after its end."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from resumed_runs import MODEL, checkpoint_state, command, flip, killed, metrics, outcome, same
from trained_runs import contents, the_line

from tfgpu.checkpoint import store

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL"),
    # TensorFlow's MirroredVariable, when Keras saves weights.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]


def test_a_damaged_checkpoint_is_named_and_an_older_one_leads_to_the_same_bits(whole, cut, capsys):
    newest, older = sorted((cut / "checkpoints").glob("step-*"), reverse=True)[:2]
    flip(newest / "arrays.bin", 100)
    left = cut / "checkpoints" / f".step-00000099-{'0' * 16}.tmp"
    left.mkdir()
    (left / "arrays.bin").write_bytes(b"half")
    capsys.readouterr()
    assert command(cut, epochs=3) == 0
    said = capsys.readouterr().out
    assert f"warning: {left} is left over" in said
    assert f"{newest} cannot be used: the checksum of " in said
    assert not left.exists() and not older.exists()  # Newer ones have come since.
    for path in (cut / "checkpoints").glob("step-*"):
        # The steps were gone through again, which the names tell.
        path.rename(path.with_name(path.name.partition(".")[0]))
    same(whole, cut)


def test_with_every_checkpoint_damaged_nothing_is_touched(cut, capsys):
    for path in (cut / "checkpoints").glob("step-*"):
        flip(path / "manifest.json", 200)
    before = contents(cut)
    assert command(cut, epochs=3) == 4
    assert "holds no checkpoint that can be used: step-000000" in the_line(capsys)
    assert contents(cut) == before


def test_without_its_checkpoints_a_run_is_not_begun_anew(cut, capsys):
    shutil.rmtree(cut / "checkpoints")
    before = contents(cut)
    assert command(cut, epochs=3) == 4
    line = the_line(capsys)
    assert str(cut) in line and "no checkpoint" in line
    assert contents(cut) == before


def test_a_checkpoint_is_read_once(cut, monkeypatch):
    read = []
    real = store.read_arrays
    monkeypatch.setattr(store, "read_arrays", lambda path, of: read.append(path) or real(path, of))
    assert command(cut, epochs=3) == 0
    assert len(read) == 1


def test_metrics_that_were_cut_off_are_spoken_of_and_no_line_is_spoilt(whole, cut, capsys):
    path = cut / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    capsys.readouterr()
    assert command(cut, epochs=3) == 0
    assert "warning: metrics.jsonl lacks " in capsys.readouterr().out
    assert metrics(cut) == metrics(whole)[1:]


def test_a_log_that_cannot_be_written_is_one_line(cut, capsys):
    (cut / "log.txt").unlink()
    (cut / "log.txt").mkdir()
    assert command(cut, epochs=3) == 5
    assert f"while writing {cut / 'log.txt'}; mend it" in the_line(capsys)


@pytest.mark.slow
def test_it_goes_on_with_another_set_up_and_says_so(cut, capsys):
    changes = {
        "devices": "CPU:0,CPU:1",
        "precision": "mixed_float16",
        "jit_compile": "true",
        "steps_per_execution": 2,
        "input": "streaming",
        "tensorboard": "none",
    }
    lines = (cut / "metrics.jsonl").read_text().splitlines()
    assert command(cut, epochs=3, **changes) == 0
    said = capsys.readouterr().out
    for text in (
        "the result will not be bit-identical",
        "replicas: 1 there, 2 now",
        'precision: "float32" there, "mixed_float16" now',
        "jit_compile: false there, true now",
        "steps_per_execution: 3 there, 2 now",
        'input: "resident" there, "streaming" now',
    ):
        assert text in said
    assert outcome(cut)["replicas"] == 2 and outcome(cut)["steps"] == 21
    assert [line["step"] for line in metrics(cut)] == [7, 14, 21]
    assert (cut / "metrics.jsonl").read_text().splitlines()[: len(lines)] == lines


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "mixed_bfloat16"},
        {"precision": "mixed_float16"},
        {"jit_compile": "true"},
        {"steps_per_execution": "1"},
        {"input": "streaming"},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_another_set_up_goes_on_with_what_was_learnt(whole, cut, changes, capsys):
    assert command(cut, epochs=3, **changes) == 0
    assert "will not be bit-identical" in capsys.readouterr().out
    assert [line["step"] for line in metrics(cut)] == [7, 14, 21]
    # Dropout draws other numbers, and these are few examples.
    first, *following = [line["loss"] for line in metrics(cut)]
    assert first == metrics(whole)[0]["loss"]
    assert all(loss < 0.6 * first for loss in following)


def test_what_is_left_open_was_decided_when_the_run_began(whole, cut, tmp_path):
    # The defaults of a run in which they had been left open would be others.
    left_open = dict.fromkeys(
        ("batch_size", "learning_rate", "steps_per_execution", "augment"), None
    )
    assert command(cut, epochs=3, **left_open) == 0
    same(whole, cut)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1, "batch_size": 9}, ["batch_size: 8 there, 9 now", "seed: 0 there, 1 now"]),
        ({"optimizer": "adam"}, ['optimizer: "sgd" there, "adam" now']),
        ({"lr_schedule": "linear"}, ['lr_schedule: "cosine" there, "linear" now']),
        ({"validation_fraction": 0.2}, ["validation_fraction: 0.1 there, 0.2 now"]),
        ({"early_stopping": None}, ["early_stopping: 100 there, null now"]),
        ({"resume": "never"}, ["--resume=never overwrites nothing"]),
    ],
    ids=["seed and batch", "optimizer", "schedule", "split", "early stopping", "never"],
)
def test_other_settings_are_refused_with_their_names(cut, capsys, changes, said):
    before = contents(cut)
    assert command(cut, **{"epochs": 3} | changes) == 2
    line = the_line(capsys)
    assert all(text in line for text in said), line
    assert contents(cut) == before


def test_another_model_of_the_same_name_is_refused(cut, place, capsys):
    source = place / "resume_models.py"
    source.write_text(MODEL.replace("Dropout(0.3)", "Dropout(0.4)"))
    before = contents(cut)
    try:
        assert command(cut, epochs=3) == 2
    finally:
        source.write_text(MODEL)
    assert contents(cut) == before
    line = the_line(capsys)
    assert ".rate: 0.3 there, 0.4 now" in line and str(cut) in line


def test_other_images_of_the_same_names_are_refused(cut, place, tmp_path, capsys):
    image = place / "images" / "train" / "dark" / "00.png"
    kept, before = image.read_bytes(), contents(cut)
    Image.new("RGB", (8, 8)).save(image)
    try:
        assert command(cut, epochs=3) == 2
        assert "data.fingerprint: " in the_line(capsys)
        assert command(cut, epochs=3, dry_run="true") == 2
    finally:
        image.write_bytes(kept)
    assert contents(cut) == before


def test_a_finished_run_that_cannot_be_extended_stays_as_it_was(here, tmp_path, capsys):
    settings = {"lr_schedule": "constant", "warmup_epochs": "0"}
    assert command(tmp_path / "run", epochs=1, **settings) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert command(tmp_path / "run", epochs=2, **settings) == 4
    assert "no checkpoint" in the_line(capsys)
    assert contents(tmp_path / "run") == before


def test_must_needs_a_run(here, tmp_path, capsys):
    assert command(tmp_path / "none", resume="must") == 2
    assert "--resume=must" in the_line(capsys)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_finished_run_is_extended_and_stays_unfinished_until_that_is_done(
    here, tmp_path, monkeypatch, capsys
):
    settings = {"lr_schedule": "constant", "warmup_epochs": "0.5"}
    assert command(tmp_path / "whole", epochs=3, **settings) == 0
    assert command(tmp_path / "cut", epochs=1, **settings) == 0
    killed(tmp_path / "cut", monkeypatch, steps=10, epochs=3, **settings)
    # What the killed process could not say.
    result = tmp_path / "cut" / "result.json"
    assert json.loads(result.read_text())["status"] != "finished"
    assert command(tmp_path / "cut", epochs=3, **settings) == 0
    same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_the_exit_by_early_stopping_has_its_checkpoint(here, tmp_path, capsys):
    settings = {"early_stopping": 1, "learning_rate": 0.9, "epochs": 30, "checkpoint_every": 1000}
    assert command(tmp_path / "whole", **settings) == 0
    assert outcome(tmp_path / "whole")["epochs"] < 30
    assert checkpoint_state(tmp_path / "whole")["step"] == outcome(tmp_path / "whole")["steps"]
    # As if it had been killed in its test.
    cut = Path(shutil.copytree(tmp_path / "whole", tmp_path / "cut"))
    (cut / "model.keras").unlink()
    (cut / "result.json").unlink()
    assert command(cut, **settings) == 0
    same(tmp_path / "whole", cut)
    before = contents(cut)
    assert command(cut, **settings) == 0
    assert "holds this run, finished" in capsys.readouterr().out
    assert contents(cut) == before
