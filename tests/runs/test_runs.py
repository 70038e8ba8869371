"""`tfgpu runs`: which runs it finds, what it says of them, in which order."""

import json

import pytest
from commands import command, refusal
from reported_runs import config, environment, metrics, result, write

from tfgpu.artifacts.lock import DirectoryLock
from tfgpu.runs import __main__ as runs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Runs of every kind below `runs/`, and what is none."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "runs"

    def made(name, best, *, began, seconds, **files):
        about = environment() | {"time": f"2026-11-{began:02d}T08:00:00+00:00"}
        done = result(best=best, total_seconds=seconds)
        write(place / name, **({"environment": about, "result": done} | files))

    made("good", 0.95, began=3, seconds=100.0)
    made("better", 0.98, began=1, seconds=10.0)
    made("deep/er/poor", 0.5, began=2, seconds=1000.0)
    write(place / "killed", result=None, metrics=metrics(2), environment=environment())
    failed = result(status="failed", test_loss=None, test_accuracy=None)
    write(place / "failed", result=failed, metrics=metrics(1))
    (place / "failed" / "log.txt").write_text("tfgpu: the \x1b[31mdisk is full\n")
    write(place / "stopped", result=result(status="interrupted"))
    write(place / "broken", config="{")
    # A search is not a run, and its trials are found where it is named.
    write(place / "search" / "trials" / "1", result=result(status="paused"))
    (place / "search" / "search.json").write_text("{}")
    (place / "notes").mkdir()
    (place / "notes" / "a.txt").write_text("")
    # Within a run is no other.
    write(place / "good" / "copy")
    return place


def listed(capsys, *argv):
    assert command(runs.main, "--format=json", *argv) == 0
    return json.loads(capsys.readouterr().out)


def test_runs_below_a_folder_are_found_with_their_state(folder, capsys):
    with DirectoryLock(folder / "killed"):
        found = {each["run_dir"]: each for each in listed(capsys)}
    assert {path.removeprefix("runs/"): each["status"] for path, each in found.items()} == {
        "good": "finished",
        "better": "finished",
        "deep/er/poor": "finished",
        "killed": "running",
        "failed": "failed",
        "stopped": "interrupted",
        "broken": "damaged",
    }
    assert {each["status"] for each in listed(capsys, folder / "killed")} == {"killed"}
    assert [each["status"] for each in listed(capsys, folder / "search")] == ["paused"]
    good = found["runs/good"]
    assert (good["metric"], good["value"]) == ("test_accuracy", pytest.approx(0.93))
    assert (good["epochs"], good["of_epochs"], good["seconds"]) == (3, 3, 100.0)
    assert good["continue"] is None
    assert found["runs/failed"]["metric"] == "val_accuracy"
    assert found["runs/broken"]["problems"][0].startswith("config.json is damaged")
    # Of one that did not say, what its epochs took.
    assert listed(capsys, folder / "killed")[0]["seconds"] == 4.0


def test_looking_takes_no_lock_from_anybody(folder, capsys):
    with DirectoryLock(folder / "good"):
        listed(capsys)
    with DirectoryLock(folder / "good"):
        assert listed(capsys, folder / "good")[0]["status"] == "running"


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("started", ["broken"]),
        ("metric", ["better", "good"]),
        ("time", ["deep/er/poor", "good"]),
        ("status", ["failed", "killed", "stopped", "broken"]),
        ("name", ["better", "broken", "deep/er/poor"]),
    ],
)
def test_sorted(folder, capsys, sort, first):
    found = [each["run_dir"].removeprefix("runs/") for each in listed(capsys, f"--sort={sort}")]
    if sort == "started":
        assert found.index("good") < found.index("deep/er/poor") < found.index("better")
    else:
        assert found[: len(first)] == first


def test_the_least_is_the_best_of_a_loss(tmp_path, capsys):
    for name, best in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        about = environment(objective="mae", maximize=False)
        done = result(metric="mae", best=best)
        write(tmp_path / name, environment=about, result=done, metrics=metrics(metric="mae"))
    found = listed(capsys, "--sort=metric", tmp_path)
    assert [each["run_dir"][-1] for each in found] == ["b", "c", "a"]
    assert found[0]["metric"] == "test_mae"


def test_the_table_says_why_and_how_to_go_on(folder, capsys):
    assert command(runs.main) == 0
    said = capsys.readouterr().out
    assert "runs/good" in said and "test_accuracy  0.9300" in said and "3/3" in said
    assert "runs/failed: the ?[31mdisk is full" in said  # Nothing that a terminal obeys.
    on = said.partition("did not finish:")[2]
    for name in ("failed", "stopped", "killed"):
        assert f"tfgpu train --experiment=runs/{name}/config.json --run_dir=runs/{name}\n" in on
    assert "good" not in on


@pytest.mark.parametrize("named", [False, True])
def test_a_run_whose_settings_are_gone_is_said_beside_the_others(tmp_path, capsys, named):
    write(tmp_path / "whole", result=result())
    gone = tmp_path / "gone"
    gone.mkdir()
    (gone / "config.json").symlink_to(tmp_path / "nowhere.json")
    found = {each["run_dir"]: each for each in listed(capsys, gone if named else tmp_path)}
    assert found[str(gone)]["status"] == "damaged"
    assert found[str(gone)]["problems"] == ["config.json is a link to nothing"]
    assert named or found[str(tmp_path / "whole")]["status"] == "finished"


def test_named_runs_are_compared(tmp_path, capsys):
    a = write(tmp_path / "a", config=config(seed=1))
    older = config(width=2.0, run_dir="x", tensorboard="none")
    del older["remat"]
    b = write(tmp_path / "b", config=older, result=result(best=0.5))
    assert command(runs.main, "--compare", a, b, "--sort=name") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["seed", "1", "0"] in lines and ["width", "null", "2.0"] in lines
    assert ["test_accuracy", "0.8800", "0.4800"] in lines
    names = {line[0] for line in lines}
    assert names.isdisjoint({"remat", "run_dir", "tensorboard", "learning_rate"})
    found = listed(capsys, "--compare", a, b, "--sort=name")
    assert found["differences"] == {"seed": [1, 0], "width": [None, 2.0]}


def test_runs_of_the_same_settings_are_said_to_be(tmp_path, capsys):
    assert command(runs.main, "--compare", write(tmp_path / "a"), write(tmp_path / "b")) == 0
    assert "the same settings" in capsys.readouterr().out


def test_what_cannot_be_done_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = write(tmp_path / "one")
    for argv, said in (
        ([], "there is no folder 'runs' here"),
        (["nowhere"], "'nowhere' is no directory"),
        (["--compare", run], "there is one run"),
        (["--sort=size"], "must be one of started"),
    ):
        code, line = refusal(capsys, runs.main, *argv)
        assert code == 2 and said in line
    (tmp_path / "runs").mkdir()
    assert command(runs.main) == 0
    assert capsys.readouterr().out == "no runs in runs\n"
