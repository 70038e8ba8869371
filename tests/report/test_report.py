"""`tfgpu report` from end to end: what it says of runs in every state, and that it is safe."""

import json
import statistics
import sys

import pytest
from commands import command, refusal
from fresh_process import python
from reported_runs import (
    EVIL,
    PIXEL,
    check,
    config,
    environment,
    metrics,
    result,
    write,
    write_events,
)

from tfgpu.report import __main__ as report


def page_of(*runs, **flags):
    """The page that the command writes, read and checked."""
    argv = [f"--run_dir={path}" for path in runs] + [f"--{k}={v}" for k, v in flags.items()]
    assert command(report.main, *argv) == 0
    out = runs[0] / "report.html" if len(runs) == 1 else runs[0].parent / "comparison.html"
    return check((flags.get("out") or out).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path):
    path = write(tmp_path / "runs" / "one")
    write_events(
        path / "tensorboard" / "train",
        scalars=[("hardware/cpu", 10, 50.0), ("hardware/cpu", 20, 70.0)],
        pictures=[("batch", PIXEL, "Images of a training batch.")],
    )
    write_events(
        path / "tensorboard" / "validation",
        pictures=[("confusion_matrix", PIXEL, "True classes downwards.")],
        texts=[("mistakes", "| is | predicted |\n| --- | --- |\n| a \\| b | c |", "The surest.")],
    )
    evaluation = path / "evaluation" / "digits-test"
    evaluation.mkdir(parents=True)
    found = {"accuracy": 0.8812, "classes": [{"name": "zero", "recall": 0.5}]}
    (evaluation / "evaluation.json").write_text(json.dumps(found))
    (evaluation / "reliability.png").write_bytes(PIXEL)
    (path / "model.keras").write_bytes(b"")
    return path


def test_a_finished_run_is_told_whole(run):
    page = page_of(run)
    for said in (
        "finished",
        "62,006",
        "CC BY 4.0",
        "@misc{x}",
        "3 of 3",
        "start-up 6.0 s 60.0 %",
        "cpu % 50 99",
        "GPU 0, H200 1,234 its counter of energy",
        "energy of the processor not readable",
        "cpu (in %: of it)",
        "AMD EPYC",
        "accuracy 0.9 0.89 0.88",
        "0.8812",
        "zero 0.5",
        "a | b c",
        f"tfgpu train --experiment={run}/config.json --run_dir={run}-again",
        f"tfgpu evaluate --run_dir={run}",
    ):
        assert said in page.text, said
    shown = {image["alt"] for image in page.all("img")}
    assert shown >= {"Images of a training batch.", "True classes downwards."}
    # Of training and validation together; nothing to go on with.
    assert "training: 0.3 at epoch 1, 0.9 at epoch 3" in page.text
    assert "Continue this run" not in page.text


def test_what_was_given_comes_first_and_what_was_decided_next(run):
    source = (page_of(run), (run / "report.html").read_text())[1]
    order = [source.index(f"<code>{name}</code>") for name in ("epochs", "batch_size", "seed")]
    assert order == sorted(order)
    given = source[source.index("t-settings-given") : source.index("t-settings-decided")]
    assert "epochs" in given and "batch_size" not in given


def test_of_an_older_run_what_was_given_is_told_by_the_defaults(tmp_path):
    about = environment()
    del about["given"]
    path = write(tmp_path / "old", environment=about, config=config(seed=7, unknown=[1, 2]))
    page_of(path)
    source = (path / "report.html").read_text()
    given = source[source.index("t-settings-given") : source.index("t-settings-decided")]
    assert "seed" in given and "[1, 2]" in given and "epochs" not in given


def test_names_of_users_stay_text(tmp_path):
    about = environment(EVIL, citation=EVIL, license=EVIL, task=EVIL, version=EVIL)
    about["variables"][EVIL] = EVIL
    path = write(
        tmp_path / "runs" / "a<b>&c",
        environment=about,
        config=config(dataset=f"folder:{EVIL}", model=EVIL),
        metrics=metrics(metric=EVIL),
        result=result(metric=EVIL, status="failed"),
    )
    (path / "log.txt").write_text(f"tfgpu: {EVIL}\n")
    write_events(
        path / "tensorboard" / "validation",
        pictures=[(EVIL, PIXEL, EVIL)],
        texts=[("words", EVIL, EVIL)],
    )
    folder = path / "evaluation" / "digits-<b>"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({EVIL: 1.0, "rows": [{EVIL: EVIL}]}))
    page = page_of(path)  # Which refuses elements and handlers that are not ours.
    assert page.text.count(EVIL) > 10
    other = write(tmp_path / "runs" / "other")
    assert EVIL in page_of(path, other).text


BROKEN = {
    "begun": {"environment": None, "result": None, "metrics": None},
    "killed": {"result": None},
    "diverged": {
        "result": result(status="failed", loss=None, test_loss=None, test_accuracy=None),
        "metrics": [
            m | {"loss": None if m["epoch"] == 2 else 10.0 ** (9 * m["epoch"])} for m in metrics()
        ],
    },
    "damaged": {"config": "{", "environment": "[]", "result": '{"status": 3, "time_spent": [1]}'},
    "of another version": {
        "config": {"dataset": "digits", "new": {"a": 1}},
        "environment": {"dataset": {"class_names": 3, "x": {"a": {"shape": [1], "dtype": "int8"}}}},
        "result": {"status": "finished", "hardware": [1], "parameters": "many"},
        "metrics": [{"epoch": "one"}, {"loss": "x"}],
    },
}


@pytest.mark.parametrize("state", BROKEN)
def test_every_state_of_a_run_has_a_page(tmp_path, state):
    path = write(tmp_path / "run", **BROKEN[state])
    if state == "diverged":
        (path / "log.txt").write_text("epoch 1\ntfgpu: the training is not finite any more\n")
    page = page_of(path)
    said = {
        "begun": "No epoch has ended yet",
        "killed": "did not say how it ended",
        "diverged": "Why: the training is not finite any more",
        "damaged": "config.json is damaged",
        "of another version": "finished",
    }[state]
    assert said in page.text
    if state in ("begun", "killed", "diverged"):
        assert f"Continue this run tfgpu train --experiment={path}/config.json" in page.text
    page_of(path, write(tmp_path / "other"))


@pytest.mark.parametrize("damage", ["cut", "garbage", "length"])
def test_damaged_event_files_give_what_is_whole(run, damage):
    (file,) = (run / "tensorboard" / "train").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[-9:]
    elif damage == "garbage":
        content[-60:-20] = b"\xff" * 40
    else:
        content[:8] = b"\xff" * 8
    file.write_bytes(bytes(content))
    page = page_of(run)
    assert ("cpu (in %" in page.text) == (damage != "length")


def test_several_runs_are_compared(tmp_path):
    paths = [
        write(
            tmp_path / "runs" / f"seed{seed}",
            config=config(seed=seed),
            metrics=metrics(best=best),
            result=result(best=best),
        )
        for seed, best in enumerate((0.90, 0.94, 0.95))
    ]
    paths.append(write(tmp_path / "runs" / "wide", config=config(width=2.0), metrics=metrics(5)))
    page = page_of(*paths)
    values = [0.88, 0.92, 0.93]
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    assert f"test_accuracy 3 {mean:.4g} {deviation:.4g} 0.88 0.93" in page.text
    assert "Over the seeds of seed0, seed1, seed2" in page.text
    assert "width null null null 2.0" in page.text and "seed 0 1 2 0" in page.text
    assert (
        "learning_rate"
        not in page.text.partition("What they stood on")[0]
        .partition("Settings in which")[2]
        .partition("Curves")[0]
    )
    assert "mean of seed0, seed1, seed2" in page.text and "wide: 0.17" in page.text


def test_without_two_seeds_nothing_is_known_of_the_spread(tmp_path):
    paths = [write(tmp_path / "a"), write(tmp_path / "b", config=config(epochs=4, seed=1))]
    assert "nothing is known of the spread" in page_of(*paths).text


@pytest.mark.parametrize("what", [7, "CPU:0", {"a": 1}, [1]])
def test_runs_are_compared_whatever_their_environments_say(tmp_path, what):
    paths = [
        write(tmp_path / name, environment=environment() | changed)
        for name, changed in (("a", {"devices": what, "versions": what}), ("b", {}))
    ]
    assert "2 runs side by side" in page_of(*paths).text


@pytest.mark.skipif(sys.platform == "win32", reason="names are UTF-16 there")
def test_a_path_need_not_be_utf_8(tmp_path):
    run, out = write(tmp_path / "caf\udce9"), tmp_path / "page.html"
    assert command(report.main, f"--run_dir={run}", f"--out={out}") == 0
    assert "caf\\udce9" in check(out.read_text(encoding="utf-8")).text


def test_paths_are_joined_by_commas_and_may_hold_one(tmp_path):
    first, second = write(tmp_path / "a,b"), write(tmp_path / "c")
    write(tmp_path / "d")
    out = tmp_path / "new" / "page.html"
    argv = [f"--run_dir={first}", f"--run_dir={second},{tmp_path / 'd'}", f"--out={out}"]
    assert command(report.main, *argv) == 0
    assert "3 runs side by side" in check(out.read_text()).text


def test_what_cannot_be_done_is_one_line(tmp_path, capsys):
    run = write(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for argv, said in (
        ([], "--run_dir is missing"),
        ([f"--run_dir={tmp_path}/nowhere"], "nowhere' is no directory"),
        ([f"--run_dir={tmp_path}/empty"], "holds no run (no config.json)"),
        ([f"--run_dir={run}", f"--out={tmp_path}/empty"], "is a directory; name a file"),
        ([f"--run_dir={run}", f"--out={run}/config.json/x.html"], "cannot be written"),
        ([f"--run_dir={run}", f"--out={run}/config.json"], "could replace one; name an .html"),
    ):
        code, line = refusal(capsys, report.main, *argv)
        assert code == 2 and said in line
    assert sorted(tmp_path.rglob("*")) == before


def test_no_tensorflow_is_imported(tmp_path):
    path = write(tmp_path / "run")
    done = python(
        "import sys; from tfgpu.report.__main__ import main\n"
        f"main(['--run_dir={path}'])\n"
        "assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)"
    )
    assert (done.returncode, done.stderr) == (0, "")
