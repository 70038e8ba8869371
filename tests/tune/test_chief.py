"""The chief: which worker has which trial, and what happens to the trials of dead workers."""

import json
import os
import signal
import socket
from unittest import mock

import pytest

from tfgpu.errors import RequestError
from tfgpu.tune.settings import TuneSettings


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def chief(tensorflow, tmp_path):
    import keras_tuner

    from tfgpu.tune import oracle
    from tfgpu.tune.chief import Chief

    hp = keras_tuner.HyperParameters()
    with hp.conditional_scope(hp.Choice("a", [1, 2]) and "a", [1]):
        hp.Float("b", 0.0, 1.0)
    config = TuneSettings(tuner="random", max_trials=9, run_dir=str(tmp_path))
    made = oracle.make(config, hp, epochs=2, directory=tmp_path)
    chief = Chief(made, clock=Clock())
    yield chief
    chief.close()


def pass_time(chief, until):
    """Lets the clock run on, with the chief looking after its workers."""
    silent = []
    while chief.clock.now < until:
        chief.clock.now = min(until, chief.clock.now + 5.0)
        silent += chief.reclaim_silent()
    return silent


def fail(chief, name, reason="it broke"):
    trial = chief.next_trial(name)
    trial.status = "FAILED"
    chief.end(trial, {"reason": reason})
    return trial.trial_id


def test_a_silent_worker_loses_its_trial_to_the_next_one(chief):
    from tfgpu.tune.chief import LEASE

    lost = chief.next_trial("a").trial_id
    assert pass_time(chief, LEASE) == []
    assert pass_time(chief, LEASE + 1) == ["a"]
    assert chief.next_trial("b").trial_id == lost
    assert not chief.owns("a", lost)


def test_a_heartbeat_keeps_a_trial(chief):
    from tfgpu.tune.chief import LEASE

    chief.next_trial("a")
    pass_time(chief, LEASE - 1)
    chief.heartbeat("a")
    assert pass_time(chief, 2 * LEASE - 2) == []


def test_a_chief_that_stood_still_itself_takes_nobody_for_dead(chief):
    from tfgpu.tune.chief import LEASE

    chief.next_trial("a")
    chief.clock.now = 10 * LEASE
    assert chief.reclaim_silent() == []


def test_a_worker_that_is_started_again_gets_its_own_trial_back(chief):
    lost = chief.next_trial("a").trial_id
    assert chief.next_trial("a").trial_id == lost


def test_a_trial_that_kills_its_workers_is_a_failure_with_the_reason(chief):
    from tfgpu.tune.chief import ATTEMPTS

    lost = chief.next_trial("a").trial_id
    for _ in range(ATTEMPTS):
        chief.worker_died("a", "was killed by SIGKILL (out of memory?)")
        following = chief.next_trial("a").trial_id
    assert following != lost
    assert chief.oracle.trials[lost].status == "FAILED"
    reason = chief.oracle.records[lost]["reason"]
    assert reason == "its worker was killed by SIGKILL (out of memory?), 3 times"


def test_three_failures_on_end_close_the_search(chief):
    for expected in (False, False, True):
        assert not chief.closing
        fail(chief, "a")
        assert chief.closing is expected
    assert chief.next_trial("a").status == "STOPPED"


def test_failures_with_a_success_between_them_do_not(chief):
    for _ in range(3):
        fail(chief, "a")
        fail(chief, "a")
        trial = chief.next_trial("a")
        trial.status = "COMPLETED"
        chief.end(trial, {"score": 0.5, "epochs": 2})
    assert not chief.closing


def test_trials_under_way_wait_after_close(chief):
    trial = chief.next_trial("a").trial_id
    chief.close()
    assert chief.oracle.pending == (trial,)


# ---- over the wire ------------------------------------------------------------------------


@pytest.fixture
def stub(chief):
    """Makes the calls of a worker of that name."""
    import grpc
    from keras_tuner.src import protos

    from tfgpu.tune.client import _Signed

    chief.start("127.0.0.1", 0)
    channels = []

    def stub(name):
        channel = grpc.insecure_channel(f"127.0.0.1:{chief.port}")
        channels.append(channel)
        return protos.get_service_grpc().OracleStub(grpc.intercept_channel(channel, _Signed(name)))

    yield stub
    for channel in channels:
        channel.close()


@pytest.fixture
def client(chief, stub):
    """KerasTuner's client as a worker of this project has it."""
    from tfgpu.tune.client import Client

    def client(name):
        variables = {
            "KERASTUNER_TUNER_ID": name,
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(chief.port),
        }
        with mock.patch.dict(os.environ, variables):
            return Client(chief.oracle)

    return client


def test_a_trial_goes_to_a_worker_and_back(chief, client, capsys):
    worker = client("a")
    trial = worker.create_trial("a")
    worker.report_epoch(trial.trial_id, {"val_accuracy": 0.25, "val_loss": 2.0}, step=1)
    assert chief.oracle.records[trial.trial_id]["metrics"]["val_accuracy"] == 0.25
    trial.status = "COMPLETED"
    worker.finish(trial, {"score": 0.5, "epochs": 2, "seconds": 1.0})
    assert chief.oracle.trials[trial.trial_id].score == 0.5
    assert chief.oracle.ongoing_trials == {}
    assert capsys.readouterr().out == ""  # KerasTuner prints the values of conditions.


def test_values_keep_their_precision_in_the_oracle(chief, client):
    worker = client("a")
    trial = worker.create_trial("a")
    before = dict(chief.oracle.trials[trial.trial_id].hyperparameters.values)
    trial.status = "COMPLETED"
    worker.finish(trial, {"score": 0.5, "epochs": 2})
    assert chief.oracle.trials[trial.trial_id].hyperparameters.values == before


def test_the_reason_of_a_failure_comes_over_the_wire(chief, client):
    worker = client("a")
    trial = worker.create_trial("a")
    trial.status = "FAILED"
    worker.finish(trial, {"reason": "Überlauf: not finite"})
    assert chief.oracle.records[trial.trial_id]["reason"] == "Überlauf: not finite"


def test_who_has_lost_a_trial_cannot_end_it(chief, client):
    from tfgpu.errors import WorkError

    worker = client("a")
    trial = worker.create_trial("a")
    chief.worker_died("a", "was lost")
    chief.next_trial("b")
    trial.status = "COMPLETED"
    with pytest.raises(WorkError, match="another worker's by now"):
        worker.finish(trial, {"score": 0.5})
    assert chief.oracle.trials[trial.trial_id].status == "RUNNING"


@pytest.mark.parametrize("case", ["lost", "stopping"])
def test_a_worker_that_is_not_wanted_any_more_ends_itself(chief, client, case):
    worker = client("a")
    trial = worker.create_trial("a")
    if case == "lost":
        chief.worker_died("a", "was lost")
        chief.next_trial("b")
    else:
        chief.stopping = True
    with (
        mock.patch("tfgpu.tune.client.HEARTBEAT", 0.01),
        mock.patch("os.kill") as kill,
        worker.training(trial.trial_id),
        worker,
    ):
        worker._thread.join(20)
    kill.assert_called_once_with(os.getpid(), signal.SIGTERM)
    assert ("another worker's" if case == "lost" else "the search stops") in str(worker.dismissed)


def test_a_name_is_of_the_process_that_took_it_last(chief, client):
    import grpc

    from tfgpu.errors import RequestError

    first, second = client("a"), client("a")
    first.create_trial("a")
    lost = second.create_trial("a")
    with (
        mock.patch("tfgpu.tune.client.HEARTBEAT", 0.01),
        mock.patch("os.kill") as kill,
        first,
    ):
        first._thread.join(20)
    kill.assert_called_once_with(os.getpid(), signal.SIGTERM)
    assert isinstance(first.dismissed, RequestError)
    assert "two processes are called 'a'" in str(first.dismissed)
    with pytest.raises(grpc.RpcError):
        first.create_trial("a")
    assert chief.owns("a", lost.trial_id)


def test_a_chief_that_stops_waits_until_the_workers_have_heard_of_it(chief, client):
    worker = client("a")
    worker.create_trial("a")
    with mock.patch("tfgpu.tune.client.HEARTBEAT", 0.01), mock.patch("os.kill"), worker:
        chief.clock = __import__("time").monotonic
        chief.heartbeat("a")
        chief.notify_stop((), seconds=20)
        assert chief.workers["a"].dismissed
        worker._thread.join(20)
    assert "the search stops" in str(worker.dismissed)


def test_heartbeats_reach_the_chief(chief, client):
    worker = client("a")
    trial = worker.create_trial("a")
    chief.clock.now = 40.0
    worker.stub.GetBestTrials(
        __import__("keras_tuner.src.protos", fromlist=["x"])
        .get_service()
        .GetBestTrialsRequest(num_trials=0),
        metadata=(("tfgpu-trial", trial.trial_id),),
    )
    assert chief.workers["a"].heard == 40.0


def test_a_taken_port_is_named(chief):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"KERASTUNER_ORACLE_PORT={port}"):
            chief.start("127.0.0.1", port)


def test_two_chiefs_do_not_share_a_port(chief):
    from tfgpu.tune.chief import Chief

    chief.start("127.0.0.1", 0)
    with pytest.raises(RequestError, match=str(chief.port)):
        Chief(chief.oracle).start("127.0.0.1", chief.port)


def test_what_breaks_the_oracle_is_kept_for_the_session(chief, client):
    import grpc

    broken = RuntimeError("no values")
    with mock.patch.object(type(chief.oracle), "populate_space", side_effect=broken):
        with pytest.raises(grpc.RpcError):
            client("a").create_trial("a")
    assert chief.error is broken
    # And nobody waits for ever for a lock that KerasTuner has kept.
    assert chief.next_trial("b").status == "STOPPED"


def test_the_state_can_be_read_back_after_every_kind_of_end(chief, tmp_path):
    fail(chief, "a")
    chief.next_trial("a")
    chief.close()
    saved = json.loads((tmp_path / "oracle.json").read_text())
    assert [trial["status"] for trial in saved["trials"]] == ["FAILED", "RUNNING"]


def test_a_trial_that_was_given_back_while_its_end_came_is_not_tried_again(chief):
    trial = chief.next_trial("a")
    chief.oracle._retry_queue.append(trial.trial_id)
    trial.status = "COMPLETED"
    chief.end(trial, {"score": 0.5, "epochs": 2}, sender="a")
    assert chief.next_trial("a").trial_id != trial.trial_id
