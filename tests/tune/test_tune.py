"""`tfgpu tune` as a user runs it: processes, files, kills. On the digits, a few epochs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfgpu.cli import flags
from tfgpu.cli.console import Console
from tfgpu.errors import RequestError

ROOT = Path(__file__).resolve().parents[2]

SPACE = """
def space(hp):
    return {
        "learning_rate": hp.Float("rate", 0.005, 0.05, sampling="log"),
        "batch_size": hp.Choice("batch", [32, 64]),
    }
"""

FAILING = """
def space(hp):
    hp.Choice("a", list(range(9)))
    return {"learning_rate": 1e30, "clip_norm": None}
"""

DEFAULTS = {
    "tuner": "random",
    "space": "space.py",
    "max_trials": 3,
    "epochs": 2,
    "final_seeds": 0,
    "tensorboard": "none",
    "devices": "CPU:0",
}

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "TF_NUM_INTRAOP_THREADS": "1",
}


def as_flags(settings):
    """The command line for settings; None leaves one out."""
    return [f"--{name}={value}" for name, value in settings.items() if value is not None]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where the digits are kept, for all searches of this file."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def refusal(tensorflow, tmp_path, data_dir, monkeypatch):
    """Runs `tfgpu tune` in this process, to be refused; returns what it says."""
    from tfgpu.tune import run

    (tmp_path / "space.py").write_text(SPACE)
    monkeypatch.chdir(tmp_path)

    def argv(**settings):
        return as_flags(DEFAULTS | {"data_dir": data_dir, "run_dir": "search"} | settings)

    def refusal(**settings):
        with pytest.raises(RequestError) as refused:
            config = flags.parse(argv(**settings), command="tune")
            run.run(config, console=Console(progress="none"))
        return str(refused.value)

    refusal.argv = argv
    return refusal


def test_a_dry_run_tells_the_space_and_the_files_and_writes_nothing(refusal, tmp_path, capsys):
    from tfgpu.tune import run

    before = sorted(tmp_path.rglob("*"))
    config = flags.parse([*refusal.argv(final_seeds=2), "--dry_run"], command="tune")
    assert run.run(config, console=Console(progress="none")) == {}
    said = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert "  batch_size: [32, 64]\n  learning_rate: from 0.005" in said
    assert "they are compared by val_accuracy: more of it is better" in said
    assert "would make search, with:\n  search.json\n" in said and "  final/\n" in said
    assert any(line.split() == ["--tuner=random", "given"] for line in said.splitlines())


@pytest.fixture
def search(tmp_path, data_dir):
    """Starts `tfgpu tune`; ends what is left of it."""
    (tmp_path / "space.py").write_text(SPACE)
    started = []

    def search(run_dir="search", environment=None, **settings):
        given = DEFAULTS | {"data_dir": data_dir, "run_dir": run_dir} | settings
        process = subprocess.Popen(
            [sys.executable, "-m", "tfgpu.tune", *as_flags(given)],
            cwd=tmp_path,
            env=ENVIRONMENT | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield search
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def end(process, code=0, timeout=240):
    """Waits for the end, which has to be the expected one; returns what was said."""
    said, errors = process.communicate(timeout=timeout)
    assert process.returncode == code, (said, errors)
    return said if code == 0 else errors


def trials(search_dir):
    """The lines of trials.jsonl."""
    path = search_dir / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(condition, *, process, seconds=120):
    """Waits for something to have happened."""
    limit = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)


def completed(search_dir, count):
    return lambda: sum(t["status"] == "completed" for t in trials(search_dir)) >= count


def started(search_dir, count):
    return lambda: len(list((search_dir / "trials").glob("*/checkpoints/step-*"))) >= count


def weights(path):
    """The weights of a saved model, as bytes."""
    import keras

    model = keras.models.load_model(path / "model.keras", compile=False)
    return [w.tobytes() for w in model.get_weights()]


def repeated(run, directory):
    """Trains what a run trained, by `tfgpu train` alone; returns the new run's directory."""
    arguments = [f"--experiment={run / 'config.json'}", f"--run_dir={directory}"]
    subprocess.run(
        [sys.executable, "-m", "tfgpu.train", *arguments],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    return directory


def workers_of(process):
    """Process ids of its workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [
        int(child)
        for child in children
        if b"tfgpu.tune.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_a_search_from_beginning_to_end(search, tmp_path, tensorflow):
    said = end(search(final_seeds=1, tensorboard="default"))
    search_dir = tmp_path / "search"
    found = trials(search_dir)
    result = json.loads((search_dir / "result.json").read_text())
    best = max(found, key=lambda trial: trial["val_accuracy"])

    assert [trial["status"] for trial in found] == ["completed"] * 3
    assert result["best_trial"] == best["trial"]
    assert f"best is trial {best['trial']}, val_accuracy {best['val_accuracy']:.4f}" in said
    # The test split is the winner's alone.
    for trial in found:
        run = json.loads((search_dir / trial["directory"] / "result.json").read_text())
        assert run["test_accuracy"] is None
        assert run["val_accuracy"] == trial["val_accuracy"]
    assert result["final"][0]["seed"] == 1
    assert 0.0 < result["test_accuracy"] <= 1.0
    # What the search found is what its trial trained with, and `train` takes it as it is.
    config = flags.parse([f"--experiment={search_dir / 'best_config.json'}"])
    assert config.learning_rate == best["values"]["rate"]
    assert config.batch_size == best["values"]["batch"]

    # Another time there is nothing to do.
    before = (search_dir / "oracle.json").stat().st_mtime_ns
    assert "holds this search, finished" in end(search(final_seeds=1, tensorboard="default"))
    assert (search_dir / "oracle.json").stat().st_mtime_ns == before

    # HParams: the settings that were searched over, and each trial's beside its score.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    def plugin_data(folder):
        events = EventAccumulator(str(folder))
        events.Reload()
        tags = events.summary_metadata
        return {
            tag: plugin_data_pb2.HParamsPluginData.FromString(tags[tag].plugin_data.content)
            for tag in tags
            if tags[tag].plugin_data.plugin_name == "hparams"
        }, events

    experiment, _ = plugin_data(search_dir / "tensorboard")
    infos = experiment["_hparams_/experiment"].experiment.hparam_infos
    assert [info.name for info in infos] == ["batch_size", "learning_rate"]
    for trial in found:
        run, events = plugin_data(search_dir / trial["directory"] / "tensorboard")
        hparams = run["_hparams_/session_start_info"].session_start_info.hparams
        assert hparams["learning_rate"].number_value == pytest.approx(trial["values"]["rate"])
        (score,) = events.Tensors("result/val_accuracy")
        assert tensorflow.make_ndarray(score.tensor_proto) == pytest.approx(trial["val_accuracy"])


@pytest.mark.slow
def test_a_trial_though_not_the_first_of_its_process_is_the_run_of_its_settings(search, tmp_path):
    end(search())
    search_dir = tmp_path / "search"
    last = search_dir / trials(search_dir)[-1]["directory"]
    assert weights(last) == weights(repeated(last, tmp_path / "alone"))


@pytest.mark.slow
def test_a_killed_search_ends_as_if_it_had_not_been(search, tmp_path, tensorflow):
    end(search(run_dir="whole", epochs=4))
    process = search(epochs=4)
    search_dir = tmp_path / "search"
    until(started(search_dir, 2), process=process)
    os.killpg(process.pid, signal.SIGKILL)  # And with it the pipe that its workers wait at.
    process.communicate()
    said = end(search(epochs=4))
    assert "continuing the search" in said
    whole, again = trials(tmp_path / "whole"), trials(search_dir)
    assert [t["val_accuracy"] for t in again] == [t["val_accuracy"] for t in whole]
    for trial in whole:
        directory = trial["directory"]
        assert weights(search_dir / directory) == weights(tmp_path / "whole" / directory)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_trial_tried_again(search, tmp_path):
    process = search(epochs=6)
    search_dir = tmp_path / "search"
    until(started(search_dir, 1), process=process)
    for worker in workers_of(process):
        os.kill(worker, signal.SIGKILL)
    said = end(process)
    assert "was killed by SIGKILL" in said
    assert [trial["status"] for trial in trials(search_dir)] == ["completed"] * 3


@pytest.mark.slow
def test_ctrl_c_keeps_the_trial_under_way_and_says_how_to_go_on(search, tmp_path):
    process = search(epochs=30, max_trials=1)
    search_dir = tmp_path / "search"
    until(started(search_dir, 1), process=process)
    process.send_signal(signal.SIGINT)
    line = end(process, code=130)
    assert line.startswith("tfgpu: stopped by SIGINT; continue with: tfgpu tune ")
    assert json.loads((search_dir / "trials" / "0000" / "result.json").read_text())["status"] == (
        "interrupted"
    )
    assert "1 of them to be gone on with" in end(search(epochs=30, max_trials=1))


@pytest.mark.slow
def test_a_promoted_trial_is_the_run_that_was_never_paused(search, tmp_path, tensorflow):
    end(search(tuner="hyperband", epochs=3, max_trials=None, ema_momentum=0.9))
    found = trials(tmp_path / "search")
    promoted = [trial for trial in found if "trial_id" in trial["tuner"]]
    assert promoted
    trial = promoted[0]
    assert trial["directory"] == f"trials/{trial['tuner']['trial_id']}"
    paused = next(t for t in found if t["trial"] == trial["tuner"]["trial_id"])
    assert (paused["epochs"], trial["epochs"]) == (1, 3)
    run = tmp_path / "search" / trial["directory"]
    assert weights(run) == weights(repeated(run, tmp_path / "straight"))
    straight = (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    names = ("epoch", "step", "loss", "accuracy", "val_loss", "val_accuracy")
    assert [[json.loads(line)[n] for n in names] for line in lines] == [
        [json.loads(line)[n] for n in names] for line in straight
    ]


@pytest.mark.slow
def test_three_trials_that_diverge_end_the_search_with_the_reason(search, tmp_path):
    (tmp_path / "bad.py").write_text(FAILING)
    line = end(search(space="bad.py", max_trials=8, epochs=3), code=5)
    assert line.startswith("tfgpu: 3 trials on end have failed, the last: the training is not fini")
    assert line.count("\n") == 1
    found = trials(tmp_path / "search")
    assert [trial["status"] for trial in found] == ["failed"] * 3
    assert all("not finite" in trial["reason"] for trial in found)


@pytest.mark.slow
def test_the_time_that_is_over_ends_the_search_and_more_of_it_goes_on(search, tmp_path):
    settings = {"epochs": 2, "max_trials": 500}
    said = end(search(max_minutes=0.4, **settings))
    assert "the 0.4 minutes are over" in said
    search_dir = tmp_path / "search"
    first = len(trials(search_dir))
    assert "val_accuracy" in said and first < 500
    assert "continuing the search" in end(search(max_minutes=0.7, **settings))
    assert len(trials(search_dir)) > first


@pytest.mark.slow
def test_a_search_that_is_killed_in_its_last_trainings_ends_with_them(search, tmp_path):
    process = search(final_seeds=1, max_trials=1, epochs=3)
    search_dir = tmp_path / "search"
    until(lambda: list(search_dir.glob("final/*/checkpoints/step-*")), process=process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    said = end(search(final_seeds=1, max_trials=1, epochs=3))
    assert "test accuracy" in said


@pytest.mark.slow
def test_two_workers_share_the_trials(search, tmp_path):
    end(search(workers=2, max_trials=6))
    found = trials(tmp_path / "search")
    assert [trial["status"] for trial in found] == ["completed"] * 6
    assert {trial["worker"] for trial in found} == {"worker-0", "worker-1"}


@pytest.fixture
def machine():
    """KerasTuner's variables for a machine of that name."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return lambda name: {
        "KERASTUNER_ORACLE_IP": "127.0.0.1",
        "KERASTUNER_ORACLE_PORT": port,
        "KERASTUNER_TUNER_ID": name,
    }


@pytest.mark.slow
def test_the_other_machines_end_with_a_chief_that_is_stopped(search, machine, tmp_path):
    chief = search(environment=machine("chief"), workers=0, epochs=30)
    other = search(environment=machine("second"), epochs=30)
    until(started(tmp_path / "search", 1), process=other)
    chief.send_signal(signal.SIGTERM)
    end(chief, code=143)
    assert "the search has no more trials for this machine, or was stopped" in end(other)


@pytest.mark.slow
def test_a_machine_whose_name_another_takes_is_refused(search, machine, tmp_path):
    chief = search(environment=machine("chief"), workers=0, epochs=20)
    first = search(environment=machine("second"), epochs=20)
    until(started(tmp_path / "search", 1), process=first)
    other = search(environment=machine("second"), epochs=20)
    assert "two processes are called 'second-0'; give each machine a KERASTUNER_TUNER_ID" in end(
        first, code=2
    )
    end(chief)
    end(other)
    assert [trial["status"] for trial in trials(tmp_path / "search")] == ["completed"] * 3


@pytest.mark.slow
def test_machines_find_each_other_by_kerastuners_variables(search, machine, tmp_path):
    chief = search(environment=machine("chief"), workers=0)
    other = search(environment=machine("second"))
    end(chief)
    end(other)
    found = trials(tmp_path / "search")
    assert [trial["status"] for trial in found] == ["completed"] * 3
    assert {trial["worker"] for trial in found} == {"second-0"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuner": "hyperbnd"}, "--tuner=hyperbnd: must be one of hyperband"),
        ({"space": "absent.py"}, "--space=absent.py: No such file"),
        ({"validation_fraction": 0}, "leaves nothing to compare trials by"),
        ({"batch_size": 5000, "space": "rate.py"}, "--batch_size=5000 is larger than the training"),
        ({"workers": 0}, "--workers=0 leaves nobody to train"),
        ({"resume": "must"}, "holds no search that --resume=must could continue"),
        ({"devices": "GPU:0"}, "no device GPU:0 here"),
        ({"run_dir": "full"}, "holds files but no search"),
        ({"strategy": "multi_worker_mirrored"}, "a trial trains on one machine"),
        ({"model": "plain:build", "space": "default"}, "takes no argument 'width'"),
        ({"space": "hidden.py"}, "'m' is declared under some values only (with o=adam)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_request_is_one_line_and_writes_nothing(
    refusal, tmp_path, monkeypatch, settings, message
):
    (tmp_path / "rate.py").write_text(
        "def space(hp):\n    return {'learning_rate': hp.Float('rate', 0.1, 0.2)}\n"
    )
    (tmp_path / "hidden.py").write_text(
        "def space(hp):\n"
        "    if hp.Choice('o', ['sgd', 'adam']) == 'adam':\n"
        "        return {'learning_rate': hp.Float('m', 0.1, 0.2)}\n"
        "    return {}\n"
    )
    (tmp_path / "plain.py").write_text("def build(image_shape, num_classes): pass\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.png").write_text("")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = sorted(tmp_path.rglob("*"))
    line = refusal(**settings)
    assert message in line and "\n" not in line
    assert sorted(tmp_path.rglob("*")) == before


def test_another_search_in_the_directory_is_refused(refusal, tmp_path):
    from tfgpu.artifacts.lock import DirectoryLock
    from tfgpu.tune.search import Search

    config = flags.parse(refusal.argv(), command="tune")
    with Search.open(config, console=Console(progress="none")):
        pass  # Begun, and stopped before its first trial.
    assert "holds another search (epochs: 2 there, 3 now)" in refusal(epochs=3)
    assert "--resume=never overwrites nothing" in refusal(resume="never")
    with DirectoryLock(tmp_path / "search"):
        assert "is in use by process" in refusal()
    (tmp_path / "space.py").write_text(SPACE.replace("0.05", "0.5"))
    assert "space rate" in refusal()


def test_a_search_is_not_continued_on_other_data(refusal, tmp_path, monkeypatch):
    from tfgpu.artifacts import files
    from tfgpu.tune import search_directory
    from tfgpu.tune.search import Search

    config = flags.parse(refusal.argv(), command="tune")
    with Search.open(config, console=Console(progress="none")) as search:
        pass
    recorded = tmp_path / "search" / "search.json"
    saved = search_directory.read_json(recorded)
    files.write_json(recorded, saved | {"data.fingerprint": "0123"})
    assert 'over other data (data.fingerprint: "0123" there, ' in refusal()
    older = {name: value for name, value in saved.items() if not name.startswith("data.")}
    files.write_json(recorded, older)
    search_directory.check_data(tmp_path / "search", search.data)


def test_a_machine_with_other_settings_is_refused_by_the_search_of_its_chief(refusal, monkeypatch):
    from tfgpu.tune.search import Search

    config = flags.parse(refusal.argv(), command="tune")
    with Search.open(config, console=Console(progress="none")):
        pass
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "second")
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "1")
    assert "holds another search (epochs: 2 there, 3 now)" in refusal(epochs=3)


def test_a_taken_port_is_refused_before_anything_is_written(refusal, monkeypatch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
        monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
        monkeypatch.setenv("KERASTUNER_ORACLE_PORT", port)
        assert f"KERASTUNER_ORACLE_PORT={port}: cannot be listened on" in refusal()
    assert not (tmp_path / "search").exists()
