"""KerasTuner's oracles, whose state survives a kill at any moment.

KerasTuner's own write their state and each trial to separate files, in place: a kill between two
of them loses a trial or leaves an unreadable file, a grid search forgets its position, and a
Bayesian search its random state. Here all of it is one file that is replaced atomically, and the
score of a trial is that of the model it ends with, not of its best epoch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine import trial as trial_module
from keras_tuner.src.engine import conditions
from keras_tuner.src.tuners.gridsearch import LinkedList

from tfgpu.artifacts import files
from tfgpu.engine.private_names import require
from tfgpu.errors import ModelFileError, RequestError
from tfgpu.tasks.task import Task
from tfgpu.tune.settings import TuneSettings

FILE = "oracle.json"

RUNNING, IDLE, STOPPED = "RUNNING", "IDLE", "STOPPED"
COMPLETED, FAILED = "COMPLETED", "FAILED"

# KerasTuner's private names that are used here, and nowhere else in tfgpu.
for _kind, _names in (
    (keras_tuner.Oracle, ("_retry_queue", "_save_trial")),
    (keras_tuner.oracles.HyperbandOracle, ("_brackets", "_current_iteration")),
    (keras_tuner.oracles.HyperbandOracle, ("_random_trial", "_get_size")),
    (keras_tuner.oracles.BayesianOptimizationOracle, ("_random_state",)),
    (keras_tuner.oracles.GridSearchOracle, ("_ordered_ids", "_populate_next")),
    (LinkedList, ("_memory", "_data_to_index", "_next_index", "_last_index")),
):
    for _name in _names:
        require(_kind, _name)

# KerasTuner prints a value of each condition that it sends.
conditions.print = lambda *_: None

_NEVER = 2**31  # Consecutive failures at which KerasTuner stops: it would do so with its lock held.


class PersistentOracle(keras_tuner.Oracle):
    """A mixin for KerasTuner's oracles that keeps their whole state in `oracle.json`.

    Attributes:
        directory: Where `oracle.json` is.
        limit: Trials to make at most; None for as many as the algorithm wants.
        records: By trial id, what is known beside KerasTuner's own fields.
        seconds: Seconds that the search has taken, in all processes together.
        save_error: Why the latest `save` failed; None when it did not.
    """

    directory: Path
    limit: int | None = None
    trials: dict[str, trial_module.Trial]
    ongoing_trials: dict[str, trial_module.Trial]

    def __init__(self, **settings: Any):
        super().__init__(max_consecutive_failed_trials=_NEVER, **settings)
        self.records: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self.verbose = 0
        self.save_error: OSError | None = None
        self._ending_trial = False

    def save(self) -> None:
        """Writes oracle.json; an error is kept in `save_error`, and the next save tries again."""
        if self._ending_trial:
            return
        state = {
            "state": self.get_state(),
            "trials": [trial.get_state() for trial in self.trials.values()],
            "records": self.records,
            "seconds": self.seconds,
        }
        try:
            with files.replacing(self.directory / FILE) as beside:
                beside.write_text(json.dumps(state), encoding="utf-8")
            self.save_error = None
        except OSError as error:
            # KerasTuner holds its lock now, and would keep it.
            self.save_error = error

    def reload(self) -> None:
        """Reads oracle.json, if there is one, and puts the trials that were running into the queue.

        Raises:
            ModelFileError: It is damaged.
        """
        path = self.directory / FILE
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise ModelFileError(
                f"{path} cannot be read ({error}); put it back, or search in another --run_dir"
            ) from None
        try:
            self.trials = {
                state["trial_id"]: trial_module.Trial.from_state(state) for state in saved["trials"]
            }
            self.set_state(saved["state"])
            self.records, self.seconds = saved["records"], saved["seconds"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(
                f"{path} is not what a search writes ({type(error).__name__}: {error}); put it "
                "back, or search in another --run_dir"
            ) from error
        for trial in self.ongoing_trials.values():
            self._retry_queue.append(trial.trial_id)
        self.ongoing_trials = {}

    def _save_trial(self, trial: trial_module.Trial) -> None:
        """Does nothing: `save` writes all trials."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Chooses values for the next trial, unless there have been enough."""
        if self.limit is not None and len(self.trials) >= self.limit:
            answer: dict[str, Any] = {"status": STOPPED, "values": None}
        else:
            answer = super().populate_space(trial_id)
        if answer["status"] == STOPPED and self.ongoing_trials:
            # One of them may have to be tried again.
            answer = {"status": IDLE, "values": None}
        return answer

    def end_trial(self, trial: trial_module.Trial) -> None:
        """Ends a trial, and saves then: KerasTuner would save before all of it is done."""
        self._ending_trial = True
        if trial.trial_id in self._retry_queue:
            self._retry_queue.remove(trial.trial_id)
        try:
            super().end_trial(trial)
        finally:
            self._ending_trial = False
        self.save()

    def score_trial(self, trial: trial_module.Trial) -> None:
        """Sets the score that the worker reported."""
        record = self.records.get(trial.trial_id, {})
        score = record.get("score")
        trial.score = score if score is not None and math.isfinite(score) else math.nan
        trial.best_step = record.get("epochs") or 0

    def requeue(self, tuner_id: str) -> str | None:
        """Takes a worker's trial from it and puts it into the queue.

        Returns:
            The trial's id; None when the worker had none.
        """
        trial = self.ongoing_trials.pop(tuner_id, None)
        if trial is None:
            return None
        self._retry_queue.append(trial.trial_id)
        self.save()
        return str(trial.trial_id)

    @property
    def pending(self) -> tuple[str, ...]:
        """Ids of the trials in the queue: they were begun, and are to be continued."""
        return tuple(self._retry_queue)


class RandomSearchOracle(PersistentOracle, keras_tuner.oracles.RandomSearchOracle):
    """Random search."""


class HyperbandOracle(PersistentOracle, keras_tuner.oracles.HyperbandOracle):
    """Hyperband: many short trials, of which the better ones are continued.

    A trial that failed is replaced by another, and a bracket for which no values are left makes do
    with the trials it has: KerasTuner's own would promote fewer, or none.
    """

    hyperband_iterations: float

    def __init__(self, **settings: Any):
        self._drawn: dict[int, int] = {}  # Trials in the first round of brackets that are smaller.
        super().__init__(**settings)

    def get_state(self) -> dict[str, Any]:
        """Returns KerasTuner's state, and which brackets are smaller."""
        return super().get_state() | {"drawn": list(self._drawn.items())}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores a state, except for `hyperband_iterations`.

        A search may be continued with other limits than it was begun with.
        """
        iterations = self.hyperband_iterations
        super().set_state(state)
        self.hyperband_iterations = max(iterations, self._current_iteration + 1)
        self._drawn = dict(state.get("drawn", []))

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Chooses values for the next trial: new ones, or those of a trial to be promoted."""
        for bracket in self._brackets:
            self._drop_failed(bracket["rounds"])
        return super().populate_space(trial_id)

    def _drop_failed(self, rounds: list[list[dict[str, str | None]]]) -> None:
        """Frees the slots of trials that failed, and of those that they continued."""
        failed = {trial.trial_id for trial in self.trials.values() if trial.status == FAILED}
        for slots in reversed(rounds):
            lost = [slot for slot in slots if slot["id"] in failed]
            failed |= {slot["past_id"] for slot in lost}
            slots[:] = [slot for slot in slots if slot not in lost]

    def _random_trial(self, trial_id: str, bracket: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = super()._random_trial(trial_id, bracket)
        number, first = bracket["bracket_num"], bracket["rounds"][0]
        if answer["status"] == RUNNING or not first or self._drawn.get(number) == len(first):
            return answer
        self._drawn[number] = len(first)
        return self.populate_space(trial_id)

    def _get_size(self, bracket_num: int, round_num: int) -> int:
        size: int = super()._get_size(bracket_num, round_num)
        drawn = self._drawn.get(bracket_num, size * self.factor**round_num)
        return min(size, math.ceil(drawn / self.factor**round_num))


class BayesianOptimizationOracle(PersistentOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """Bayesian optimization with a Gaussian process."""

    def get_state(self) -> dict[str, Any]:
        """Returns KerasTuner's state, and that of the random generator."""
        kind, keys, *rest = self._random_state.get_state()
        return super().get_state() | {"random_state": [kind, keys.tolist(), *rest]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        super().set_state(state)
        kind, keys, *rest = state["random_state"]
        self._random_state.set_state((kind, np.array(keys, np.uint32), *rest))


class GridSearchOracle(PersistentOracle, keras_tuner.oracles.GridSearchOracle):
    """Grid search: every combination in turn."""

    def get_state(self) -> dict[str, Any]:
        """Returns KerasTuner's state, and the position in the grid."""
        order = self._ordered_ids
        return super().get_state() | {
            "ids": order._memory,
            "next": [list(pair) for pair in order._next_index.items()],
            "last": order._last_index,
            "populate_next": self._populate_next,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        super().set_state(state)
        order = self._ordered_ids
        order._memory = list(state["ids"])
        order._data_to_index = {name: index for index, name in enumerate(order._memory)}
        order._next_index.update((index, following) for index, following in state["next"])
        order._last_index = state["last"]
        self._populate_next = list(state["populate_next"])


DEFAULT_TRIALS = {"random": 20, "bayesian": 20}
"""Trials of the tuners that would never end by themselves."""


def objective_of(config: TuneSettings, task: Task) -> tuple[str, bool]:
    """What trials are compared by, and whether more of it is better.

    Args:
        config: The settings of the search.
        task: Of the data.

    Raises:
        RequestError: The task has no such metric.
    """
    own = f"val_{task.objective}"
    if config.objective not in (None, own, "val_loss"):
        raise RequestError(
            f"--objective={config.objective} is no measure of the task {task.name}; use {own} or "
            "val_loss"
        )
    objective = config.objective or own
    return objective, objective == own and task.maximize


def make(
    config: TuneSettings,
    hyperparameters: keras_tuner.HyperParameters,
    *,
    epochs: int,
    directory: Path,
    objective: str = "val_accuracy",
    maximize: bool = True,
) -> Any:
    """Makes the oracle that `--tuner` names.

    Args:
        config: The settings of the search.
        hyperparameters: All of them.
        epochs: Of a whole training.
        directory: Where it keeps its state.
        objective: What trials are compared by.
        maximize: Whether more of it is better.

    Returns:
        One of the oracles above.

    Raises:
        RequestError: A package is missing.
    """
    limit = config.max_trials or DEFAULT_TRIALS.get(config.tuner)
    common: dict[str, Any] = {
        "objective": keras_tuner.Objective(objective, "max" if maximize else "min"),
        "hyperparameters": hyperparameters,
        "seed": config.seed + 1,  # KerasTuner takes 0 for "any".
    }
    oracle: Any
    if config.tuner == "hyperband":
        # All brackets once, or as often as trials or time allow.
        limited = limit is not None or config.max_minutes is not None
        oracle = HyperbandOracle(
            max_epochs=epochs, factor=3, hyperband_iterations=2**31 if limited else 1, **common
        )
    elif config.tuner == "bayesian":
        dimensions = len(hyperparameters.space)
        # KerasTuner draws three for each dimension, which may be all the trials there are.
        first = max(3, min(3 * dimensions, (limit or 0) // 3))
        try:
            oracle = BayesianOptimizationOracle(num_initial_points=first, **common)
        except ImportError as error:
            raise RequestError(
                f"--tuner=bayesian needs packages that are missing ({error}): "
                "pip install 'tfgpu[tune]'"
            ) from None
        # As for the others, so that the ids of trials are as long as theirs.
        oracle.max_trials = None
    elif config.tuner == "grid":
        oracle = GridSearchOracle(**common)
    else:
        oracle = RandomSearchOracle(max_trials=None, **common)
    oracle.directory, oracle.limit = directory, limit
    return oracle
