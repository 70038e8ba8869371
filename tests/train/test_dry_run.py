"""What `tfgpu train` says without training, the report it ends with, and samples beside it."""

import json
import shlex
import shutil

import numpy as np
import pytest
from reported_runs import check
from trained_runs import argv_of, command, everything, the_line

from tfgpu.artifacts import event_files
from tfgpu.artifacts.run_files import RunFiles
from tfgpu.train.settings import TrainSettings

pytestmark = [
    pytest.mark.usefixtures("here"),
    # TensorFlow's MirroredVariable, when Keras saves or compares weights.
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]


def test_a_dry_run_tells_what_the_run_then_decides_and_writes_nothing(run, place, capsys):
    settings = {"early_stopping": "7", "optimizer": "adamw", "learning_rate": None}
    path = place / "dry"
    before = everything(place)
    assert command(*argv_of(settings), f"--run_dir={path}", "--dry_run") == 0
    said = capsys.readouterr().out
    assert everything(place) == before
    told = dict(
        line.split()[0][2:].split("=", 1) for line in said.splitlines() if line.startswith("  --")
    )
    assert "  --early_stopping=7" in said and f"would make {path}, with:" in said
    decided = {line.split()[0] for line in said.splitlines() if line.endswith("  decided")}
    assert {"--task=classification", "--weight_decay=0.004", "--learning_rate=0.001"} <= decided
    assert {"--features=x=image,y=label", "--image_size=8x8"} <= decided
    assert "54 images to train on, 6 to validate, 14 to test" in said

    made = run(**settings)
    of_the_process = TrainSettings.names(on_resume="ignored")
    for name, value in told.items():
        recorded = made.config[name]
        if name not in {"task", *of_the_process} and recorded is not None:
            assert json.dumps(recorded).strip('"') == value or name == "image_size", name
    listed = [line.strip().rstrip("/") for line in said.partition("with:")[2].splitlines()]
    files = {each.name for each in made.path.iterdir() if each.name != ".lock"}
    assert set(filter(None, listed[:-1])) == files
    given = json.loads((made.path / "environment.json").read_text())["given"]
    assert given["early_stopping"] == 7 and "weight_decay" not in given


def test_a_dry_run_leaves_nothing_on_auto_but_what_has_no_meaning(place, capsys):
    assert command(*argv_of({"width": "2"}), f"--run_dir={place}/dry", "--dry_run") == 2
    assert "takes no argument 'width'" in the_line(capsys)
    assert command(*argv_of({}), f"--run_dir={place}/dry", "--dry_run") == 0
    said = capsys.readouterr().out
    left = [line for line in said.splitlines() if line.startswith("  --") and "=auto" in line]
    why = {line.split("=")[0].strip(): line.partition("(")[2].rstrip(")") for line in left}
    task = "not of the task classification"
    assert why == {
        "--target": task,
        "--tokens": task,
        "--width": "not of the model e2e_models:small",
        "--depth": "not of the model e2e_models:small",
        "--unfreeze_learning_rate": "without --unfreeze_at",
        "--resume": "",  # Its name for the default, which is no question.
    }


def test_a_dry_run_refuses_what_a_run_refuses(run, place, capsys):
    other = run().path
    capsys.readouterr()
    assert command(*argv_of({"seed": 9}), f"--run_dir={other}", "--dry_run") == 2
    assert "holds a run with other settings" in the_line(capsys)


def test_a_dry_run_prepares_no_data(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert command("--devices=CPU:0", f"--run_dir={tmp_path}/run", "--dry_run") == 0
    said = capsys.readouterr().out
    assert "1,293 images to train on" in said and "--depth=2 " in said
    assert everything(tmp_path) == []


def test_it_ends_with_a_report_of_the_run(place, tmp_path, capsys):
    shutil.copytree(place / "images", tmp_path / "images")
    for split in ("train", "test"):
        (tmp_path / "images" / split / "dark").rename(
            tmp_path / "images" / split / "<img src=x onerror=alert(1)>"
        )
    path = tmp_path / "run"
    changes = {"dataset": f"folder:{tmp_path}/images", "tensorboard": "default"}
    argv = [*argv_of(changes), f"--run_dir={path}", "--report", "--hardware_interval=0.01"]
    assert command(*argv) == 0
    assert f"report: {path}/report.html\n" in capsys.readouterr().out
    page = check((path / "report.html").read_text())
    assert "finished" in page.text and "Continue this run" not in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    # By the task's own report: samples, and what it makes of predictions.
    titles = {image["alt"].partition(".")[0] for image in page.all("img")}
    assert "Images of a training batch as the network sees them, augmented" in titles
    assert "True classes downwards, predicted ones across" in titles
    for part in ("start-up", "training", "validation", "learning rate", "process_memory"):
        assert part in page.text, part
    result = json.loads((path / "result.json").read_text())
    assert sum(result["time_spent"].values()) == pytest.approx(result["total_seconds"], abs=0.1)
    assert result["hardware"]["samples"] > 0
    figures = {each["figure"]: each["mean"] for each in result["hardware"]["figures"]}
    assert figures["process_memory"] > 0.05 and 0 < figures["host_memory"] < 100
    points = event_files.read(path / "tensorboard" / "train").scalars["hardware/process_memory"]
    assert points and all(0.05 < value < 100 for _, value in points)
    steps = [step for step, _ in points]
    assert steps == sorted(set(steps)) and steps[-1] <= result["steps"]
    # The same run once more has its report anew.
    (path / "report.html").unlink()
    assert command(*argv) == 0 and (path / "report.html").exists()


def test_a_run_that_fails_has_its_report_too(place, tmp_path, capsys):
    path = tmp_path / "run"
    argv = [*argv_of({"learning_rate": 1e30}), f"--run_dir={path}", "--report"]
    assert command(*argv) == 5
    assert "see docs/checkpoints.md#how-a-run-ends" in the_line(capsys)
    page = check((path / "report.html").read_text())
    assert "Why: the training is not finite any more" in page.text


def test_a_report_that_cannot_be_written_takes_nothing_from_the_run(run, capsys):
    path = run().path
    (path / "report.html").mkdir()
    try:
        capsys.readouterr()
        assert command(*argv_of({}), f"--run_dir={path}", "--report") == 0
    finally:
        (path / "report.html").rmdir()
    assert "warning: no report was written: --out=" in capsys.readouterr().out


@pytest.mark.slow
def test_sampling_the_hardware_leaves_the_bits_alone(run):
    often, never = run(hardware_interval=0.01), run(hardware_interval="off")
    assert often.result["hardware"]["samples"] > 5 and never.result["hardware"] is None
    assert often.values == never.values
    for one, other in zip(often.weights, never.weights, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_the_command_that_goes_on_does_and_the_report_follows(cut):
    run = RunFiles.read(cut)
    assert run.status == "failed"  # It ends like a process that is killed, and is one of ours.
    program, name, *argv = shlex.split(run.continue_command)
    assert (program, name) == ("tfgpu", "train")
    assert command(*argv, "--report") == 0
    run = RunFiles.read(cut)
    assert (run.status, run.continue_command) == ("finished", None)
    assert check((cut / "report.html").read_text()).text.count("finished") >= 1
    # What was given when it began is known still.
    assert run.environment["given"]["batch_size"]
