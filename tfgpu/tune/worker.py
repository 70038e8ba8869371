"""A worker process: `python -m tfgpu.tune.worker CONFIG CORES`; `tfgpu tune` starts it.

It imports TensorFlow and reads the data once, then trains one trial after another, each as a run
in a directory of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from tfgpu.cli import entry, startup
from tfgpu.cli.console import Console, Stopwatch
from tfgpu.errors import DataError, Error, Interrupted, RequestError
from tfgpu.train.settings import TrainSettings
from tfgpu.tune import child, worker_pool
from tfgpu.tune.settings import TuneSettings

TRIALS = "trials"
"""Where the run directories of the trials are, below the directory of the search."""

_LONGEST = 800  # Characters of a failure's reason, at most.
_IDLE = 0.5  # Seconds before a worker that got no trial asks again.


def main(argv: list[str]) -> int | None:
    """Trains trials until there are no more."""
    config = TuneSettings.from_json(json.loads(argv[0]))
    if argv[1] and hasattr(os, "sched_setaffinity"):
        # Before TensorFlow counts them.
        os.sched_setaffinity(0, {int(core) for core in argv[1].split(",")})
    child.end_with_parent()
    with startup.tensorflow(config):
        return _Worker(config).work()


class _Worker:
    def __init__(self, config: TuneSettings):
        self._config = config
        self._session: Any = None
        self._space: Any = None
        self._objective = ""

    def work(self) -> int | None:
        # They import TensorFlow, so not earlier.
        import grpc

        from tfgpu.tasks.parts.spaces import for_examples
        from tfgpu.train.session import Session
        from tfgpu.tune import client as clients
        from tfgpu.tune import oracle, search_directory
        from tfgpu.tune.oracle import IDLE, STOPPED
        from tfgpu.tune.space import Space

        config = self._config
        # Before the first trial, so that an error of this machine or its data fails no trial.
        self._session = Session.open(config.training, stopwatch=Stopwatch())
        data, task = self._session.data, self._session.data.task
        # Another machine may have other files under the same names.
        search_directory.check_data(Path(str(config.run_dir)), data)
        # Of the choices only their names matter here: the chief sends the values.
        default = for_examples(task.space, data.train.num_examples, replicas=1)
        self._space = Space.load(config.space, default)
        self._objective, maximize = oracle.objective_of(config, task)
        known = oracle.make(
            config,
            self._space.hyperparameters,
            epochs=config.epochs or 1,  # Of no use here: the chief's oracle decides.
            directory=Path(str(config.run_dir)),
            objective=self._objective,
            maximize=maximize,
        )
        with clients.Client(known) as client:
            try:
                while True:
                    trial = client.create_trial(client.tuner_id)
                    if trial.status == STOPPED:
                        return None
                    if trial.status == IDLE:
                        time.sleep(_IDLE)
                        continue
                    with client.training(trial.trial_id):
                        clean = self._train(client, trial)
                    if not clean:
                        return worker_pool.RESTART
            except grpc.RpcError as error:
                raise clients.as_error(error) from error
            except (KeyboardInterrupt, Interrupted) as error:
                if client.code is grpc.StatusCode.CANCELLED:
                    return None
                if client.code is grpc.StatusCode.FAILED_PRECONDITION:
                    return worker_pool.RESTART  # For another trial.
                if client.dismissed is not None:
                    raise client.dismissed from None
                raise error

    def _train(self, client: Any, trial: Any) -> bool:
        """Trains a trial and reports on it.

        Returns:
            Whether the process can train another trial.
        """
        import grpc

        from tfgpu.tune.oracle import COMPLETED, FAILED

        began = time.perf_counter()
        root = self._root_trial(client, trial)
        directory = Path(str(self._config.run_dir)) / TRIALS / root
        report: dict[str, Any] = {"directory": f"{TRIALS}/{root}", "worker": client.tuner_id}
        clean = True
        try:
            settings = self._space.settings(self._config.training, trial.hyperparameters)
            report["settings"] = self._space.changes(trial.hyperparameters.copy())
            result, seconds = self._run(client, trial, settings, directory)
            report["score"] = _score(result, settings, directory, self._objective)
        except (KeyboardInterrupt, Interrupted, DataError):
            raise  # Not the fault of the trial.
        except Exception as error:
            if isinstance(error, grpc.RpcError):
                raise  # The fault of the chief or the network.
            trial.status = FAILED
            # TensorFlow's messages may hold whole graphs, and the size of a call is limited.
            text = " ".join(str(error).split())[:_LONGEST]
            report["reason"] = (
                text if isinstance(error, Error) else f"{type(error).__name__}: {text}"
            )
            clean = isinstance(error, Error) and "out of memory" not in text
            print(f"trial {trial.trial_id} failed: {report['reason']}", flush=True)
        else:
            trial.status = COMPLETED
            report |= {
                "epochs": result["epochs"],
                "status_of_run": result["status"],
                "parameters": result["parameters"],
                "samples_per_second": result["samples_per_second"],
                "where": seconds,
            }
        report["seconds"] = time.perf_counter() - began
        client.finish(trial, report)
        return clean

    def _root_trial(self, client: Any, trial: Any) -> str:
        """Returns the id of the trial whose run this one continues, or its own id."""
        values = trial.hyperparameters.values
        name = str(trial.trial_id)
        while "tuner/trial_id" in values:
            name = values["tuner/trial_id"]
            values = client.get_trial(name).hyperparameters.values
        return name

    def _run(
        self, client: Any, trial: Any, settings: TrainSettings, directory: Path
    ) -> tuple[dict[str, Any], dict[str, float]]:
        from tfgpu.train import run

        wait_until_free(directory)
        settings = dataclasses.replace(settings, run_dir=str(directory), resume="auto")
        stopwatch = Stopwatch(phase="start-up")
        with open(os.devnull, "w") as nothing:
            result = run.run(
                settings,
                console=Console(progress="none", file=nothing),
                stopwatch=stopwatch,
                session=self._session,
                until_epoch=trial.hyperparameters.values.get("tuner/epochs"),
                test=False,
                # The retrainings of the best settings write them.
                pictures=self._config.tensorboard == "full",
                callbacks=[_report(client, trial.trial_id)],
            )
        stopwatch.switch("reporting")
        return result, stopwatch.seconds


def _report(client: Any, trial_id: str) -> Any:
    import keras

    class Report(keras.callbacks.Callback):
        """Sends the validation metrics of each epoch to the chief."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            metrics = {
                name: float(value)
                for name, value in (logs or {}).items()
                if name.startswith("val_")
            }
            client.report_epoch(trial_id, metrics, step=epoch + 1)

    return Report()


def _score(
    result: dict[str, Any], settings: TrainSettings, directory: Path, objective: str
) -> float | None:
    """Returns the objective of the model that a run ended with."""
    if settings.early_stopping is None:
        return result[objective]
    # The model is then that of the epoch with the lowest validation loss.
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [epoch for line in lines if (epoch := json.loads(line))["val_loss"] is not None]
    return min(epochs, key=lambda epoch: epoch["val_loss"])[objective] if epochs else None


def wait_until_free(directory: Path) -> None:
    """Waits while the process that had a trial before still saves in its directory."""
    from tfgpu.artifacts.lock import DirectoryLock
    from tfgpu.tune.chief import LEASE

    until = time.monotonic() + LEASE
    while directory.is_dir():
        try:
            with DirectoryLock(directory):
                return
        except RequestError:
            if time.monotonic() > until:
                return  # The run says what is wrong.
            time.sleep(0.2)


if __name__ == "__main__":
    entry.run(main)
