"""Whole trainings with a real server of MLflow, W&B offline, and nobody who listens."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from servers import MlflowServer, counting
from wandb_files import Offline

from tfgpu.cli.startup import child_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
pytest.importorskip("wandb", reason="needs the extra wandb")

TRAIN = ["train", "--devices=CPU:0", "--progress=plain", "--validation_fraction=0.1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = MlflowServer(tmp_path_factory.mktemp("server")).start()
    yield made
    made.stop()


@pytest.fixture
def environment(tmp_path):
    """That of a user who has an account nowhere."""
    ours = ("TF_", "KERAS_BACKEND", "GRPC_VERBOSITY", "CUDA_DEVICE_ORDER", "WANDB_", "MLFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    (tmp_path / "home").mkdir()
    home = {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "netrc")}
    return child_environment({**kept, **home})


def start(argv, cwd, environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tfgpu", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=environment,
    )


def end(process):
    """Waits for the end; returns the exit code and what was said."""
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def wait_for_epoch(path, number):
    last = time.monotonic() + 120
    while time.monotonic() < last:
        if path.exists() and len(path.read_text().splitlines()) >= number:
            return
        time.sleep(0.05)
    raise TimeoutError(path)


def run_of(server, path):
    """The client, and the one run that a run directory has there."""
    client = mlflow.MlflowClient(tracking_uri=server.uri)
    id = json.loads((path / "tracking" / "identity.json").read_text())["id"]
    experiments = [each.experiment_id for each in client.search_experiments()]
    [found] = client.search_runs(experiments, f"tags.`tfgpu.id` = '{id}'")
    return client, found


def epochs(server, path):
    client, run = run_of(server, path)
    return [int(each.value) for each in client.get_metric_history(run.info.run_id, "epoch")]


def test_a_training_that_is_killed_and_continued(server, environment, tmp_path):
    environment |= {"MLFLOW_TRACKING_URI": server.uri}
    path = tmp_path / "run"
    argv = [*TRAIN, "--epochs=30", "--log_to=mlflow,wandb", f"--run_dir={path}"]
    process = start(argv, tmp_path, environment)
    wait_for_epoch(path / "metrics.jsonl", 5)
    process.send_signal(signal.SIGKILL)
    end(process)
    code, said = end(start(argv, tmp_path, environment))
    assert code == 0, said
    # That a checkpoint was being written may be one.
    assert "warning: mlflow" not in said and "warning: wandb" not in said
    assert epochs(server, path) == list(range(1, 31))
    client, run = run_of(server, path)
    assert run.info.status == "FINISHED"
    downloaded = client.download_artifacts(run.info.run_id, "model/model.keras", str(tmp_path))
    with open(downloaded, "rb") as file:
        assert file.read() == (path / "model.keras").read_bytes()
    result = json.loads((path / "result.json").read_text())
    assert run.data.metrics["test_accuracy"] == result["test_accuracy"]
    [file] = (path / "wandb").glob("offline-run-*/*.wandb")
    found = Offline(file)
    assert [row["epoch"] for row in found.history if "epoch" in row] == list(range(1, 31))
    assert found.summary["test_accuracy"] == result["test_accuracy"]


def test_a_server_that_goes_away_in_the_middle(server, environment, tmp_path):
    environment |= {"MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    path = tmp_path / "run"
    argv = [*TRAIN, "--epochs=60", "--log_to=mlflow", f"--run_dir={path}"]
    process = start(argv, tmp_path, environment)
    last = time.monotonic() + 120
    while not (path / "tracking" / "mlflow.json").exists() and time.monotonic() < last:
        time.sleep(0.05)
    server.stop()
    try:
        code, said = end(process)
    finally:
        server.start()
    assert code == 0 and json.loads((path / "result.json").read_text())["status"] == "finished"
    assert said.count("warning: ") == said.count("warning: mlflow: ") == 1, said
    assert "not all was sent to mlflow" in said
    assert len(epochs(server, path)) < 60
    # The same command sends the rest.
    code, said = end(start(argv, tmp_path, environment))
    assert code == 0 and "warning" not in said, said
    assert epochs(server, path) == list(range(1, 61))
    assert run_of(server, path)[1].info.status == "FINISHED"


def test_nothing_goes_anywhere_else(environment, tmp_path):
    with counting() as (address, had):
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        environment |= {name: address for name in (*proxies, *map(str.lower, proxies))}
        environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
        argv = [*TRAIN, "--epochs=2", "--log_to=mlflow,wandb", f"--run_dir={tmp_path / 'run'}"]
        code, said = end(start(argv, tmp_path, environment))
        assert code == 0 and "warning" not in said, said
        assert had == []
        # Else this test could not fail: MLflow reports its use where it is not told otherwise.
        program = "import mlflow; mlflow.create_experiment('x'); import time; time.sleep(5)"
        for name in [*environment]:
            if name in ("CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST", "DO_NOT_TRACK"):
                del environment[name]
        subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, timeout=120)
        assert had


def test_the_chief_alone_of_several_workers_sends(server, environment, tmp_path):
    environment |= {"MLFLOW_TRACKING_URI": server.uri}
    path = tmp_path / "run"
    launched = ["launch", "--workers=2", "--", *TRAIN]
    argv = [*launched, "--epochs=2", "--log_to=mlflow", f"--run_dir={path}"]
    code, said = end(start(argv, tmp_path, environment))
    assert code == 0, said
    assert epochs(server, path) == [1, 2]
    assert said.count(f"mlflow: run {run_of(server, path)[1].info.run_id}") == 1


def test_a_search_has_its_trials_below_it(server, environment, tmp_path):
    environment |= {"MLFLOW_TRACKING_URI": server.uri}
    path = tmp_path / "search"
    settings = ["--tuner=random", "--max_trials=2", "--epochs=1", "--final_seeds=1"]
    argv = ["tune", "--devices=CPU:0", *settings, "--log_to=mlflow", f"--run_dir={path}"]
    code, said = end(start(argv, tmp_path, environment))
    assert code == 0 and "warning" not in said, said
    client, parent = run_of(server, path)
    assert parent.info.status == "FINISHED" and parent.data.params["tuner"] == "random"
    result = json.loads((path / "result.json").read_text())
    assert parent.data.metrics["test_accuracy"] == result["test_accuracy"]
    below = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    names = {each.info.run_name.partition("-")[0] for each in below}
    assert names == {"search/0000", "search/0001", "search/trial"}
    assert {each.info.status for each in below} == {"FINISHED"}
