"""KerasTuner's oracles with persistent state: one file, and nothing forgotten at a kill."""

import json

import pytest

from tfgpu.errors import ModelFileError
from tfgpu.tune.settings import TuneSettings

TUNERS = ("random", "bayesian", "grid", "hyperband")


@pytest.fixture(scope="module")
def make(tensorflow):
    import keras_tuner

    from tfgpu.tune import oracle

    def make(directory, tuner="random", **settings):
        hp = keras_tuner.HyperParameters()
        hp.Choice("a", [1, 2, 3])
        hp.Float("b", 0.0, 1.0, step=0.25)
        config = TuneSettings(tuner=tuner, run_dir=str(directory), **settings)
        return oracle.make(config, hp, epochs=9, directory=directory)

    return make


def run_one(oracle, name="worker-0", score=None):
    """A trial from its beginning to its end; returns its values, None at the end."""
    trial = oracle.create_trial(name)
    if trial.status != "RUNNING":
        return None
    values = trial.hyperparameters.values
    good = values["a"] + values["b"] if score is None else score
    oracle.records[trial.trial_id] = {"score": good, "epochs": 1}
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    return dict(values)


@pytest.mark.parametrize(
    "tuner", [TUNERS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TUNERS[1:])]
)
def test_a_search_that_is_killed_between_trials_goes_on_with_the_same_ones(make, tmp_path, tuner):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = make(tmp_path / "whole", tuner, max_trials=12)
    expected = [run_one(whole) for _ in range(12)]
    found = []
    for _ in range(12):
        again = make(tmp_path / "killed", tuner, max_trials=12)
        again.reload()
        found.append(run_one(again))
    assert found == expected
    assert None not in found


def test_a_grid_visits_every_combination_once_over_restarts(make, tmp_path):
    found = []
    while True:
        oracle = make(tmp_path, "grid")
        oracle.reload()
        values = run_one(oracle)
        if values is None:
            break
        found.append((values["a"], values["b"]))
    assert len(found) == len(set(found)) == 15


def test_a_trial_under_way_is_handed_out_first_after_a_kill(make, tmp_path):
    oracle = make(tmp_path)
    run_one(oracle)
    lost = oracle.create_trial("worker-0")
    again = make(tmp_path)
    again.reload()
    assert again.pending == (lost.trial_id,)
    trial = again.create_trial("worker-7")
    assert trial.trial_id == lost.trial_id
    assert trial.hyperparameters.values == lost.hyperparameters.values


def test_no_more_trials_are_made_than_the_limit(make, tmp_path):
    oracle = make(tmp_path, max_trials=2)
    assert run_one(oracle) and run_one(oracle)
    assert oracle.create_trial("worker-0").status == "STOPPED"


def test_workers_wait_while_a_trial_of_another_may_have_to_be_tried_again(make, tmp_path):
    oracle = make(tmp_path, max_trials=1)
    first = oracle.create_trial("worker-0")
    assert oracle.create_trial("worker-1").status == "IDLE"
    assert oracle.requeue("worker-0") == first.trial_id
    assert oracle.create_trial("worker-1").trial_id == first.trial_id


def test_ids_do_not_depend_on_the_limit(make, tmp_path):
    for limit in (9, 10, 2000):
        (tmp_path / str(limit)).mkdir()
        oracle = make(tmp_path / str(limit), "bayesian", max_trials=limit)
        assert oracle.create_trial("worker-0").trial_id == "0000"


def test_the_score_is_what_the_worker_reports_and_not_the_best_epoch(make, tmp_path):
    oracle = make(tmp_path)
    trial = oracle.create_trial("worker-0")
    oracle.update_trial(trial.trial_id, {"val_accuracy": 0.9}, step=1)
    oracle.update_trial(trial.trial_id, {"val_accuracy": 0.7}, step=2)
    oracle.records[trial.trial_id] = {"score": 0.7, "epochs": 2}
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    assert oracle.trials[trial.trial_id].score == 0.7


def test_a_score_that_is_not_finite_is_a_failure(make, tmp_path):
    oracle = make(tmp_path)
    run_one(oracle, score=float("nan"))
    assert oracle.trials["0000"].status == "FAILED"


def test_the_better_half_goes_on_for_the_epochs_of_the_next_round(make, tmp_path):
    oracle = make(tmp_path, "hyperband")
    rounds = []
    while (values := run_one(oracle)) is not None:
        rounds.append(values)
    first = [v for v in rounds if v["tuner/initial_epoch"] == 0 and v["tuner/bracket"] == 2]
    promoted = [v for v in rounds if v["tuner/initial_epoch"] == 1]
    assert {v["tuner/epochs"] for v in first} == {1}
    assert {v["tuner/epochs"] for v in promoted} == {3}
    worst = min(v["a"] + v["b"] for v in promoted)
    assert sum(v["a"] + v["b"] > worst for v in first) <= len(promoted)


def hyperband_rounds(oracle, fails):
    """Trials that did not fail, in the first bracket's three rounds of a whole search."""
    rounds = [0, 0, 0]
    while (trial := oracle.create_trial("worker-0")).status == "RUNNING":
        values = trial.hyperparameters.values
        failed = fails(trial, values["tuner/initial_epoch"])
        oracle.records[trial.trial_id] = {"score": None if failed else values["b"], "epochs": 1}
        trial.status = "FAILED" if failed else "COMPLETED"
        oracle.end_trial(trial)
        if not failed and values["tuner/bracket"] == 2:
            rounds[values["tuner/round"]] += 1
    return rounds


def test_another_trial_takes_the_place_of_one_that_failed(make, tmp_path):
    oracle = make(tmp_path, "hyperband")
    assert hyperband_rounds(oracle, lambda trial, start: trial.trial_id == "0004") == [9, 3, 1]


def test_another_trial_is_promoted_where_one_fails_after_it_was(make, tmp_path):
    oracle = make(tmp_path, "hyperband")
    failures = iter([True])
    rounds = hyperband_rounds(oracle, lambda trial, start: start == 1 and next(failures, False))
    assert rounds == [10, 3, 1]  # Of ten, one could not go on.


def test_trials_are_promoted_where_the_space_has_no_more_values(tensorflow, tmp_path):
    import keras_tuner

    from tfgpu.tune import oracle

    hp = keras_tuner.HyperParameters()
    hp.Choice("b", [1, 2, 3, 4])
    config = TuneSettings(tuner="hyperband", run_dir=str(tmp_path))
    found = hyperband_rounds(
        oracle.make(config, hp, epochs=9, directory=tmp_path), lambda trial, start: False
    )
    assert found == [4, 2, 1]


def test_hyperband_goes_on_by_the_limits_of_now(make, tmp_path):
    run_one(make(tmp_path, "hyperband", max_trials=3))
    unlimited = make(tmp_path, "hyperband")
    unlimited.reload()
    assert unlimited.hyperband_iterations == 1
    limited = make(tmp_path, "hyperband", max_trials=9)
    limited.reload()
    assert limited.hyperband_iterations > 9


@pytest.mark.parametrize("text", ["", "{", "[]", '{"trials": []}'])
def test_a_damaged_file_is_refused_and_kept(make, tmp_path, text):
    (tmp_path / "oracle.json").write_text(text)
    with pytest.raises(ModelFileError, match="oracle.json"):
        make(tmp_path).reload()
    assert (tmp_path / "oracle.json").read_text() == text


def test_a_full_disk_leaves_the_state_before_and_does_not_stop_the_search(make, tmp_path):
    import errno
    from unittest import mock

    oracle = make(tmp_path)
    run_one(oracle)
    before = (tmp_path / "oracle.json").read_text()
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch("os.replace", side_effect=full):
        run_one(oracle)
    assert oracle.save_error is not None
    assert (tmp_path / "oracle.json").read_text() == before
    run_one(oracle)
    assert oracle.save_error is None
    assert len(json.loads((tmp_path / "oracle.json").read_text())["trials"]) == 3
