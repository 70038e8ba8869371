import contextlib
import errno
import io
import json
import os

import numpy as np
import pytest

from tfgpu.artifacts.differences import differences
from tfgpu.artifacts.run_directory import RunDirectory
from tfgpu.errors import RequestError
from tfgpu.train.settings import TrainSettings

CONFIG = {"batch_size": 64, "image_size": [32, 32], "run_dir": None, "verbosity": 0}


def create(path, config=CONFIG, **kwargs):
    return RunDirectory.create(
        path, config=config, settings=TrainSettings, dataset="digits", model="lenet", **kwargs
    )


def everything(folder):
    """The files of a run; the lock is no part of it."""
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock")
    return sorted(files)


def full_disk(monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_new_directory_holds_the_config(tmp_path):
    run = create(tmp_path / "a" / "b")
    assert everything(run.path) == ["config.json"]
    assert json.loads((run.path / "config.json").read_text()) == CONFIG
    assert run.finished is None


def test_an_empty_directory_is_used(tmp_path):
    (tmp_path / "run").mkdir()
    assert (create(tmp_path / "run").path / "config.json").exists()


def test_the_directory_follows_the_umask(tmp_path):
    umask = os.umask(0o022)
    try:
        assert create(tmp_path / "run").path.stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(umask)


def test_default_paths_differ_within_a_second(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [create(None).path for _ in range(3)]
    assert len(set(runs)) == 3
    assert all(path.parent.name == "runs" for path in runs)


@pytest.mark.parametrize(
    ("dataset", "model", "start"),
    [
        ("folder:/data/my cats/", "lenet", "my-cats-lenet-"),
        ("cifar10:3.0.2", "my.models:build", "cifar10-3.0.2-my.models-build-"),
        ("folder:..", "../x", "folder-x-"),
    ],
)
def test_default_names_are_one_plain_word(tmp_path, monkeypatch, dataset, model, start):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory.create(None, config={}, settings=TrainSettings, dataset=dataset, model=model)
    assert run.path.name.startswith(start)
    assert run.path.resolve().parent == tmp_path / "runs"


def finish(run, **result):
    run.write_result({"status": "finished"} | result)
    run.model_path.touch()
    run.close()


def test_a_finished_run_whose_model_is_gone_is_gone_on_with(tmp_path):
    run = create(tmp_path / "run")
    finish(run)
    run.model_path.unlink()
    assert run.trained
    again = create(tmp_path / "run")
    assert again.finished is None and again.resuming


def test_a_finished_run_is_given_back(tmp_path):
    finish(create(tmp_path / "run"), accuracy=0.5)
    again = create(tmp_path / "run", {**CONFIG, "verbosity": 1, "run_dir": "elsewhere"})
    assert again.finished == {"status": "finished", "accuracy": 0.5}


@pytest.mark.parametrize("status", [None, "interrupted"])
def test_an_unfinished_run_is_continued(tmp_path, status):
    run = create(tmp_path / "run")
    assert not run.resuming
    if status:
        run.write_result({"status": status})
    run.close()
    again = create(tmp_path / "run")
    assert again.resuming and again.finished is None


def test_a_run_in_use_is_refused(tmp_path):
    first = create(tmp_path / "run")
    with pytest.raises(RequestError, match="in use by process"):
        create(tmp_path / "run")
    first.close()
    create(tmp_path / "run")


@pytest.mark.parametrize("status", ["interrupted", "finished"])
def test_never_resume_refuses_a_directory_with_the_run(tmp_path, status):
    run = create(tmp_path / "run")
    run.write_result({"status": status})
    run.close()
    with pytest.raises(RequestError, match="--resume=never"):
        create(tmp_path / "run", resume="never")


@pytest.mark.parametrize("made", [False, True])
def test_must_resume_refuses_a_directory_without_a_run(tmp_path, made):
    if made:
        (tmp_path / "run").mkdir()
    with pytest.raises(RequestError, match="holds no run"):
        create(tmp_path / "run", resume="must")
    assert (tmp_path / "run").exists() == made


def test_must_resume_refuses_a_run_without_a_checkpoint(tmp_path):
    create(tmp_path / "run").close()
    with pytest.raises(RequestError, match="stopped before its first checkpoint"):
        create(tmp_path / "run", resume="must")
    (tmp_path / "run" / "checkpoints" / "step-000007").mkdir(parents=True)
    assert create(tmp_path / "run", resume="must").resuming


def test_a_run_may_be_continued_on_other_devices(tmp_path):
    create(tmp_path / "run", {**CONFIG, "virtual_devices": 0}).close()
    assert create(tmp_path / "run", {**CONFIG, "virtual_devices": 2}).resuming
    assert json.loads((tmp_path / "run" / "config.json").read_text())["virtual_devices"] == 2


@pytest.mark.parametrize(("schedule", "allowed"), [("constant", True), ("cosine", False)])
def test_more_epochs_extend_a_run_whose_schedule_does_not_depend_on_them(
    tmp_path, schedule, allowed
):
    config = {**CONFIG, "lr_schedule": schedule, "epochs": 2}
    run = create(tmp_path / "run", config)
    run.write_result({"status": "finished"})
    run.close()
    longer = {**config, "epochs": 3}
    if allowed:
        assert create(tmp_path / "run", longer).resuming
    else:
        with pytest.raises(RequestError, match="epochs: 2 there, 3 now"):
            create(tmp_path / "run", longer)


def test_a_run_that_is_extended_is_no_longer_finished(tmp_path):
    path = tmp_path / "run"
    short = CONFIG | {"lr_schedule": "constant", "epochs": 2}
    long = short | {"epochs": 4}
    with contextlib.closing(create(path, config=short)) as directory:
        directory.write_result({"status": "finished", "epochs": 2})
    create(path, config=long).close()  # And killed at once.
    with contextlib.closing(create(path, config=long)) as again:
        assert again.finished is None and again.resuming
    assert json.loads((path / "result.json").read_text()) == {"status": "running", "epochs": 2}


def test_an_average_is_not_extended(tmp_path):
    config = CONFIG | {"lr_schedule": "constant", "epochs": 2, "ema_momentum": 0.9}
    create(tmp_path / "run", config=config).close()
    with pytest.raises(RequestError, match="epochs: 2 there, 4 now"):
        create(tmp_path / "run", config=config | {"epochs": 4})


@pytest.mark.parametrize(("warmup", "allowed"), [(0.5, False), (0.0, True)])
def test_a_warm_up_around_a_thaw_depends_on_the_epochs(tmp_path, warmup, allowed):
    config = CONFIG | {"lr_schedule": "constant", "unfreeze_at": 2, "warmup_epochs": warmup}
    create(tmp_path / "run", config=config | {"epochs": 2}).close()
    longer = config | {"epochs": 4}
    if allowed:
        assert create(tmp_path / "run", config=longer).resuming
    else:
        with pytest.raises(RequestError, match="epochs: 2 there, 4 now"):
            create(tmp_path / "run", config=longer)


def test_what_was_found_on_validation_is_kept_beside_what_was_fitted(tmp_path):
    run = create(tmp_path / "run")
    fitted = {"labels": ("no", "yes"), "mean": 0.5}
    assert not run.has_fitted(fitted)
    run.write_fitted(fitted | {"threshold": 0.3})
    assert run.has_fitted(fitted)
    assert not run.has_fitted(fitted | {"mean": 0.6})


def test_the_settings_of_a_run_can_be_read(tmp_path):
    create(tmp_path / "run").close()
    assert RunDirectory.recorded(tmp_path / "run") == CONFIG
    (tmp_path / "run" / "config.json").write_text("half")
    assert RunDirectory.recorded(tmp_path / "run") == RunDirectory.recorded(tmp_path) == {}


def test_a_full_disk_costs_lines_of_the_log(tmp_path, monkeypatch):
    with contextlib.closing(create(tmp_path / "run")) as directory:
        directory.log("before")
        with monkeypatch.context() as patched:
            patched.setattr(directory, "_log", Full())
            directory.log("during")
        directory.log("after")
    assert (tmp_path / "run" / "log.txt").read_text() == "before\nafter\n"


class Full(io.RawIOBase):
    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_cutting_the_metrics_back_takes_the_later_lines(tmp_path):
    run = create(tmp_path / "run")
    run.append_metrics({"epoch": 1})
    size = run.metrics_size()
    run.append_metrics({"epoch": 2})
    assert run.truncate_metrics(size) == 0
    assert (run.path / "metrics.jsonl").read_text() == '{"epoch": 1}\n'


@pytest.mark.parametrize(
    ("left", "whole"),
    [
        ('{"epoch": 1}\n{"epo', '{"epoch": 1}\n'),
        ('{"epoch": 1}\n', '{"epoch": 1}\n'),
        ("", ""),
        ('{"of another": "run"}\n{"epoch": 7}\n', '{"of another": "run"}\n'),
    ],
)
def test_metrics_that_somebody_has_shortened_keep_whole_lines(tmp_path, left, whole):
    run = create(tmp_path / "run")
    (run.path / "metrics.jsonl").write_text(left)
    size = len('{"epoch": 1}\n{"epoch": 2}\n')
    assert run.truncate_metrics(size) == size - len(whole)
    assert (run.path / "metrics.jsonl").read_text() == whole


def test_other_settings_are_named(tmp_path):
    create(tmp_path / "run")
    with pytest.raises(RequestError, match="batch_size: 64 there, 128 now"):
        create(tmp_path / "run", {**CONFIG, "batch_size": 128})


def test_differences():
    old = {"a": 1, "gone": True, "same": [1, 2], "progress": "bar"}
    new = {"a": 2, "new": None, "same": (1, 2), "progress": "none"}
    assert differences(old, new, ignoring={"progress"}) == [
        "a: 1 there, 2 now",
        "gone: true there, not set now",
        "new: not set there, null now",
    ]


def test_files_of_something_else_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RequestError, match="no config.json"):
        create(tmp_path)
    assert everything(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff\xfe"])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RequestError, match="config.json"):
        create(tmp_path)


def test_a_damaged_result_is_named(tmp_path):
    (create(tmp_path / "run").path / "result.json").write_text("{")
    with pytest.raises(RequestError, match="result.json.*remove that file.*goes on"):
        create(tmp_path / "run")


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RequestError, match="file"):
            create(path)
    assert everything(tmp_path) == ["file"]


def test_a_place_without_the_right_to_write_leaves_nothing(tmp_path, monkeypatch):
    def mkdtemp(**kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    with pytest.raises(RequestError, match="deep/run.*Permission denied"):
        create(tmp_path / "deep" / "run")
    assert everything(tmp_path) == []


def test_a_full_disk_leaves_no_directory(tmp_path, monkeypatch):
    full_disk(monkeypatch)
    with pytest.raises(OSError) as caught:
        create(tmp_path / "deep" / "run")
    assert caught.value.errno == errno.ENOSPC
    assert everything(tmp_path) == []


def test_a_full_disk_keeps_the_old_result(tmp_path, monkeypatch):
    run = create(tmp_path / "run")
    run.write_result({"status": "interrupted"})
    full_disk(monkeypatch)
    with pytest.raises(OSError) as caught:
        run.write_result({"status": "finished"})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(run.path / "result.json")
    assert json.loads((run.path / "result.json").read_text()) == {"status": "interrupted"}
    assert everything(run.path) == ["config.json", "result.json"]


def test_a_full_disk_names_the_metrics(tmp_path, monkeypatch):
    run = create(tmp_path / "run")
    full_disk(monkeypatch)
    with pytest.raises(OSError) as caught:
        run.append_metrics({"epoch": 1})
    assert caught.value.filename == str(run.path / "metrics.jsonl")


def test_metrics_are_valid_json(tmp_path):
    run = create(tmp_path / "run")
    run.append_metrics({"epoch": np.int64(1), "loss": np.float32(0.5)})
    run.append_metrics({"epoch": 2, "loss": float("nan"), "val_loss": np.float64("inf")})

    def refuse(constant):
        raise AssertionError(constant)

    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {"epoch": 1, "loss": 0.5},
        {"epoch": 2, "loss": None, "val_loss": None},
    ]


def test_the_log_grows(tmp_path):
    run = create(tmp_path / "run")
    run.log("one")
    run.close()
    run.log("two\nthree\n")
    run.close()
    assert (run.path / "log.txt").read_text() == "one\ntwo\nthree\n"


def test_a_finished_run_is_not_logged_to(tmp_path):
    finish(create(tmp_path / "run"))
    create(tmp_path / "run").log("finished already")
    assert everything(tmp_path / "run") == ["config.json", "model.keras", "result.json"]


def test_only_the_chief_writes(tmp_path):
    run = RunDirectory(tmp_path / "run", chief=False)
    run.write_environment({})
    run.write_result({})
    run.append_metrics({})
    run.log("x")
    run.close()
    assert everything(tmp_path) == []


def test_lines_of_another_worker_have_a_log_of_their_own(tmp_path):
    with contextlib.closing(create(tmp_path / "run")) as run:
        run.log_of_worker(1, "one")
        run.log_of_worker(1, "two\n")
    assert (run.path / "workers" / "1.log").read_text() == "one\ntwo\n"


def test_a_run_of_a_version_that_did_not_know_a_setting_is_the_same_run(tmp_path):
    old = TrainSettings().to_json() | {"batch_size": 8}
    del old["width"]
    create(tmp_path / "run", config=old).close()
    with contextlib.closing(create(tmp_path / "run", config=old | {"width": None})) as again:
        assert again.resuming
    with pytest.raises(RequestError, match="width: null there, 2.0 now"):
        create(tmp_path / "run", config=old | {"width": 2.0})
