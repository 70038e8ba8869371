"""What is logged to MLflow, read back from its own store."""

import pytest
from recorded import STEPS, add_epoch, add_pictures, begun, end

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")

from tfgpu.trackers.mirror import Mirror  # noqa: E402
from tfgpu.trackers.mlflow_tracker import (  # noqa: E402
    MlflowTracker,
    key,
    text,
    without_credentials,
    without_secrets,
)

pytestmark = [
    # Of its own parts.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of MLflow, made once: that takes it seconds."""
    path = tmp_path_factory.mktemp("mlflow")
    return f"sqlite:///{path / 'mlflow.db'}"


@pytest.fixture
def client(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Where files go, of an experiment that is made here.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return mlflow.MlflowClient(tracking_uri=store)


@pytest.fixture
def mirror():
    """Makes what a new process would have."""

    def mirror(record):
        problems = []
        made = Mirror(record, MlflowTracker(), say=lambda text: None, warn=problems.append)
        made.problems = problems
        return made

    return mirror


def run_of(client, record):
    """The one run of a record."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    wanted = f"tags.`tfgpu.id` = '{record.identity['id']}'"
    [found] = client.search_runs(experiments, wanted)
    return found


def steps(client, run, name):
    return [metric.step for metric in client.get_metric_history(run.info.run_id, name)]


def test_a_run_has_settings_metrics_hardware_pictures_and_the_model(client, mirror, tmp_path):
    record = begun(tmp_path / "run", epochs=2)
    add_pictures(record, 2 * STEPS)
    end(record)
    made = mirror(record)
    assert made.end("finished"), made.problems
    run = run_of(client, record)
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {
        "model": "lenet",
        "epochs": "3",
        "image_size": "32x32",
        "remat": "false",
    }
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [(10, 1.0), (20, 0.5)]
    assert run.data.metrics["system/cpu"] == 52 and run.data.metrics["test_accuracy"] == 0.9
    assert run.data.metrics["energy_joules"] == 7
    assert run.data.tags["mlflow.source.git.commit"] == "abc"

    def names(folder):
        return {file.path for file in client.list_artifacts(run.info.run_id, folder)}

    assert names(None) == {"config.json", "environment.json", "result.json", "model", "pictures"}
    assert names("model") == {"model/model.keras"}
    assert len(names("pictures")) == 2


def test_a_run_that_was_killed_goes_on_with_no_epoch_twice(client, mirror, tmp_path):
    record = begun(tmp_path / "run", epochs=2)
    assert mirror(record).update()
    # Its checkpoint was of the first epoch, so the second is trained again.
    lines = (record.run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (record.run_dir / "metrics.jsonl").write_text(lines[0])
    record.rewind(STEPS)
    add_epoch(record, 2)
    add_epoch(record, 3)
    made = mirror(record)
    assert made.update() and run_of(client, record).info.status == "RUNNING"
    end(record)
    assert made.end("interrupted")
    run = run_of(client, record)
    assert run.info.status == "KILLED"
    assert steps(client, run, "epoch") == steps(client, run, "system/cpu") == [10, 20, 30]


def test_a_run_whose_process_was_killed_before_it_knew_the_id_is_found(client, mirror, tmp_path):
    record = begun(tmp_path / "run", epochs=1)
    assert mirror(record).update()
    (record.path / "mlflow.json").unlink()
    add_epoch(record, 2)
    assert mirror(record).update()
    assert steps(client, run_of(client, record), "epoch") == [10, 20]


def test_a_finished_run_is_not_sent_twice(client, mirror, tmp_path):
    record = begun(tmp_path / "run", epochs=1)
    end(record)
    for _ in range(2):
        assert mirror(record).end("finished")
    run = run_of(client, record)
    assert steps(client, run, "test_accuracy") == [30] and steps(client, run, "loss") == [10]


def test_a_setting_that_changed_on_the_way_is_in_a_tag(client, mirror, tmp_path):
    record = begun(tmp_path / "run", epochs=1)
    assert mirror(record).update()
    config = (record.run_dir / "config.json").read_text()
    (record.run_dir / "config.json").write_text(config.replace('"epochs": 3', '"epochs": 9'))
    assert mirror(record).update()
    run = run_of(client, record)
    assert run.data.params["epochs"] == "3" and run.data.tags["continued.epochs"] == "9"


def test_trials_are_below_their_search(client, mirror, tmp_path):
    search = begun(tmp_path / "search")
    (search.run_dir / "search.json").write_text('{"tuner": "random", "space a (b)": "hp"}')
    trial = begun(search.run_dir / "trials" / "0001", epochs=1)
    assert mirror(search).update() and mirror(trial).update()
    parent, child = run_of(client, search), run_of(client, trial)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.run_name == "search/0001"


def test_a_run_that_was_deleted_there_is_a_problem_that_is_named(client, mirror, tmp_path):
    record = begun(tmp_path / "run", epochs=1)
    assert mirror(record).update()
    client.delete_run(run_of(client, record).info.run_id)
    add_epoch(record, 2)
    made = mirror(record)
    assert not made.update()
    assert "must be in the 'active' state" in made.problems[0]


def test_more_epochs_than_a_request_takes(client, mirror, tmp_path):
    record = begun(tmp_path / "run")
    for number in range(1, 302):
        add_epoch(record, number)
    assert mirror(record).update()
    assert len(steps(client, run_of(client, record), "epoch")) == 301


def test_names_and_values_are_such_that_mlflow_takes_them():
    assert key("space (settings)/a") == "space _settings_/a"
    assert [text(value) for value in ("a", 0.1, True, [3, 4])] == ["a", "0.1", "true", "3x4"]


def test_a_password_in_the_address_goes_where_it_is_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
    import os

    assert without_credentials("https://me:s%40@host:5000/x") == "https://host:5000/x"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s@"
    assert without_credentials("sqlite:////a@b.db") == "sqlite:////a@b.db"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("postgresql://bob:hunter2@db.example:5432/ml", "postgresql://db.example:5432/ml"),
        ("mysql+pymysql://db/ml?user=bob&password=hunter2", "mysql+pymysql://db/ml"),
        ("sqlite:///runs/mlflow.db", "sqlite:///runs/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_no_password_is_said_or_kept(uri, said):
    assert without_secrets(uri) == said
