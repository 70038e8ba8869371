"""The callbacks of MLflow and W&B in a `fit` of `tfgpu.Model` under two replicas."""

import keras
import numpy as np
import pytest

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
of_wandb = pytest.importorskip("wandb.integration.keras", reason="needs the extra wandb")

from wandb_files import Offline  # noqa: E402

import tfgpu  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    # Of the libraries' own parts.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

EPOCHS, EXECUTIONS = 3, 3  # Executions of an epoch: 10 steps, four at a time.


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of MLflow, in which runs begin, as for a user."""
    place = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patched.chdir(place)
        mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
        yield mlflow.MlflowClient()
        mlflow.set_tracking_uri(None)


def trained(two_replicas, callbacks=()):
    """The history of a training and its model."""
    random = np.random.RandomState(0)
    x = random.rand(200, 8).astype(np.float32)
    y = (x.sum(axis=1) > 4).astype(np.int32)
    with two_replicas.scope():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8,))
        hidden = keras.layers.Dense(16, activation="relu")(inputs)
        model = tfgpu.Model(inputs, keras.layers.Dense(2)(hidden))
        model.compile(
            "adam",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=4,
        )
    fitted = model.fit(
        x, y, batch_size=20, epochs=EPOCHS, validation_data=(x, y), verbose=0, callbacks=callbacks
    )
    return fitted.history, model, x


@pytest.fixture(scope="module")
def two_replicas(tensorflow):
    return tensorflow.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="module")
def plain(two_replicas):
    """The history without any of them."""
    return trained(two_replicas)[0]


def logged(store, run, name):
    history = store.get_metric_history(run.info.run_id, name)
    return [(each.step, pytest.approx(each.value)) for each in history]


def test_the_callback_of_mlflow_by_epoch(store, two_replicas, plain):
    with mlflow.start_run() as run:
        history, _, _ = trained(two_replicas, [mlflow.keras.MlflowCallback()])
    assert history == plain
    for name in ("loss", "accuracy", "val_loss"):
        assert list(enumerate(plain[name])) == logged(store, run, name)


def test_the_callback_of_mlflow_by_steps(store, two_replicas, plain):
    callback = mlflow.keras.MlflowCallback(log_every_epoch=False, log_every_n_steps=2)
    with mlflow.start_run() as run:
        history, _, _ = trained(two_replicas, [callback])
    assert history == plain
    assert [step for step, _ in logged(store, run, "loss")] == [4, 8, 10, 14, 18, 20, 24, 28, 30]


def test_autolog_of_mlflow(store, two_replicas, plain):
    mlflow.tensorflow.autolog(log_models=False, log_datasets=False, checkpoint=False)
    try:
        with mlflow.start_run() as run:
            history, _, _ = trained(two_replicas)
    finally:
        mlflow.tensorflow.autolog(disable=True)
    assert history == plain
    assert list(enumerate(plain["loss"])) == logged(store, run, "loss")


def test_a_model_logged_to_mlflow_gives_the_same_outputs(store, two_replicas, tmp_path):
    _, model, x = trained(two_replicas)
    with mlflow.start_run():
        kept = mlflow.keras.log_model(model, name="model")
    again = mlflow.keras.load_model(kept.model_uri)
    np.testing.assert_allclose(
        again.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6, atol=1e-6
    )


@pytest.fixture
def run_of_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run = wandb.init(dir=str(tmp_path), settings=wandb.Settings(console="off", silent=True))
    yield run
    run.finish()
    wandb.teardown()  # The next one begins anew.


def history_of(run, tmp_path):
    run.finish()
    wandb.teardown()  # Only then is all of it in the file.
    [file] = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    return Offline(file).history


def test_the_callback_of_wandb_by_epoch(run_of_wandb, two_replicas, plain, tmp_path):
    history, _, _ = trained(two_replicas, [of_wandb.WandbMetricsLogger()])
    assert history == plain
    rows = history_of(run_of_wandb, tmp_path)
    assert [row["epoch/epoch"] for row in rows] == list(range(EPOCHS))
    assert [row["epoch/loss"] for row in rows] == pytest.approx(plain["loss"])


def test_the_callback_of_wandb_by_batch(run_of_wandb, two_replicas, plain, tmp_path):
    logger = of_wandb.WandbMetricsLogger(log_freq="batch")
    history, _, _ = trained(two_replicas, [logger])
    assert history == plain
    rows = history_of(run_of_wandb, tmp_path)
    steps = [row["batch/batch_step"] for row in rows if "batch/batch_step" in row]
    assert steps == list(range(EPOCHS * EXECUTIONS))


def test_the_checkpoints_of_wandb(run_of_wandb, two_replicas, plain, tmp_path):
    path = str(tmp_path / "kept" / "{epoch:02d}.keras")
    saving = of_wandb.WandbModelCheckpoint(path)
    history, _, _ = trained(two_replicas, [saving])
    assert history == plain
    kept = keras.models.load_model(tmp_path / "kept" / "03.keras")
    assert kept.count_params() == 8 * 16 + 16 + 16 * 2 + 2
