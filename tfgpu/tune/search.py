"""A search: its directory, held by a lock, with the oracle and the time that it has taken."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfgpu.artifacts import files
from tfgpu.artifacts.lock import DirectoryLock
from tfgpu.cli import flags
from tfgpu.cli.console import Console
from tfgpu.errors import Interrupted, RequestError
from tfgpu.models.builders import find_builder
from tfgpu.tasks.loading import Dataset
from tfgpu.tasks.options import check_objective
from tfgpu.tasks.parts.spaces import for_examples, of_lenet
from tfgpu.tasks.task import Task
from tfgpu.train import recipe
from tfgpu.train.session import load_data
from tfgpu.train.settings import TrainSettings
from tfgpu.tune import devices, oracle, search_directory
from tfgpu.tune.devices import WorkerDevices
from tfgpu.tune.search_directory import RESULT, SEARCH
from tfgpu.tune.settings import TuneSettings
from tfgpu.tune.space import DEFAULT, Space


@dataclass
class Search:
    """A search in its directory. As a context it holds the directory's lock and the oracle.

    Attributes:
        config: The settings, with the directory as `run_dir`.
        directory: Where the files of the search go.
        space: The search space.
        epochs: Of a whole training.
        gpus: GPUs for its workers, as CUDA_VISIBLE_DEVICES names them.
        worker_devices: The devices of each worker of this machine.
        console: Where messages go.
        data: What the trials are trained on.
        objective: What trials are compared by.
        maximize: Whether more of it is better.
        oracle: One of `tfgpu.tune.oracle`, within the context.
    """

    config: TuneSettings
    directory: Path
    space: Space
    epochs: int
    gpus: Sequence[str]
    worker_devices: Sequence[WorkerDevices]
    console: Console
    data: Dataset
    objective: str
    maximize: bool
    oracle: Any = None

    @property
    def task(self) -> Task:
        """Of the data."""
        return self.data.task

    def __post_init__(self) -> None:
        self._lock = DirectoryLock(self.directory)
        self._earlier_seconds = 0.0
        self.start_clock()

    @classmethod
    def open(cls, config: TuneSettings, *, console: Console) -> Search:
        """Checks all that can be wrong with a search, before anything is written.

        Raises:
            tfgpu.errors.Error: The space, the data, the devices or the directory is at fault.
        """
        if config.space != DEFAULT:
            Space.load(config.space)  # Before the data, which may take long.
        if config.model is not None and ":" in config.model:
            find_builder(config.model)
        # Without workers here, trials run on the devices of other machines.
        gpus, replicas = devices.find(config) if config.workers else ([], 1)
        worker_devices = devices.divide(config.workers, gpus=gpus, cores=devices.usable_cores())
        data = load_data(config)
        task = data.task
        if config.objective != "val_loss":
            check_objective(task, data.spec)
        objective, maximize = oracle.objective_of(config, task)
        of_another = config.model not in (None, "lenet") and ":" not in (config.model or "")
        if task.space is of_lenet and config.space == DEFAULT and of_another:
            raise RequestError(
                f"--model={config.model} has no default space: the task's is for "
                "lenet; write one, --space=FILE.py"
            )
        count = data.train.num_examples
        space = Space.load(config.space, for_examples(task.space, count, replicas=replicas))
        builder = find_builder(config.model, task.models, task=task.name)

        def resolve(settings: TrainSettings) -> recipe.Resolved:
            if settings.model == config.model:
                recipe.check_builder(settings, builder)
            found = recipe.resolve_for(settings, data, replicas=replicas, on_gpu=bool(gpus))
            recipe.check_updates(found, num_examples=count)
            return found

        epochs = resolve(config.training).epochs
        if config.tuner == "hyperband" and "epochs" in space.values():
            raise RequestError(
                f"--space={config.space}: 'epochs' is what --tuner=hyperband decides; leave it "
                "out, or choose another tuner"
            )
        space.check(config.training, resolve)
        model = config.model or next(iter(task.models))
        directory = search_directory.choose(config, data.name, model=model)
        config = dataclasses.replace(config, run_dir=str(directory))
        search_directory.check(directory, config, space, data)
        if config.space == DEFAULT:
            _say_batches(Space.load(DEFAULT, task.space), space, count, console)
        return cls(
            config,
            directory,
            space,
            epochs,
            gpus,
            worker_devices,
            console,
            data,
            objective,
            maximize,
        )

    def __enter__(self) -> Search:
        files.make_directory(self.directory, flag="run_dir")
        self._lock.__enter__()
        try:
            # search.json first: without it the other files would not be those of a search.
            if not (self.directory / SEARCH).exists():
                fingerprint = search_directory.fingerprint(self.config, self.space, self.data)
                files.write_json(self.directory / SEARCH, fingerprint)
            if not (self.directory / "tensorboard").exists():
                values = self.space.values()
                search_directory.write_hparams(
                    values, self.directory / "tensorboard", metric=self.task.objective
                )
            self.console.log_to(self._log)
            self.oracle = oracle.make(
                self.config,
                self.space.hyperparameters,
                epochs=self.epochs,
                directory=self.directory,
                objective=self.objective,
                maximize=self.maximize,
            )
            self.oracle.reload()
            self._earlier_seconds = self.oracle.seconds
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.console.log_to(None)
        self._lock.__exit__()

    def _log(self, text: str) -> None:
        with contextlib.suppress(OSError), open(self.directory / "log.txt", "a") as log:
            log.write(text if text.endswith("\n") else text + "\n")

    @property
    def limits(self) -> dict[str, Any]:
        """The settings that say when a search is finished: with larger ones it is continued."""
        return {
            name: getattr(self.config, name)
            for name in ("max_trials", "max_minutes", "final_seeds")
        }

    def finished_result(self) -> dict[str, Any] | None:
        """Returns the result of this search if it has nothing left to do, else None."""
        path = self.directory / RESULT
        if not path.exists():
            return None
        result = search_directory.read_json(path)
        finished = result.get("status") == "finished" and result.get("asked") == self.limits
        return result if finished else None

    def start_clock(self) -> None:
        """Counts the time of this process from now on."""
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds that the search has taken, in all processes together."""
        return self._earlier_seconds + time.monotonic() - self._began

    @property
    def seconds_left(self) -> float | None:
        """Seconds until --max_minutes are over; None without a limit."""
        if self.config.max_minutes is None:
            return None
        return self.config.max_minutes * 60 - self.seconds

    @property
    def resume_command(self) -> str:
        """The command line that continues the search."""
        again = dataclasses.replace(self.config, resume="auto")
        return shlex.join(["tfgpu", "tune", *flags.to_argv(again, command="tune")])

    def interrupted(self, number: int) -> Interrupted:
        """Returns the error of a search that a signal has stopped."""
        name = signal.Signals(number).name
        return Interrupted(number, f"stopped by {name}; continue with: {self.resume_command}")


def _say_batches(whole: Space, space: Space, count: int, console: Console) -> None:
    """Says what the default space has lost for a small training set."""
    known, taken = (each.values().get("batch_size", []) for each in (whole, space))
    if known != taken:
        console.say(
            f"the default space tries batches of {_listed(taken)} instead of {_listed(known)}: "
            f"there are {count:,} training examples"
        )


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
