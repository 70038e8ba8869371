"""The search space: a function of KerasTuner's `hp` that returns settings of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras_tuner

from tfgpu.cli import experiment
from tfgpu.cli.settings import as_typed
from tfgpu.errors import RequestError, did_you_mean
from tfgpu.tasks.parts import spaces
from tfgpu.train.settings import TrainSettings

DEFAULT = "default"

_RANDOM_SAMPLES = 200  # Checked beside the ends of each range, for values that conflict.


class Space:
    """A search space: a function of `hp`, and the hyperparameters it declares.

    Attributes:
        name: The value of `--space`.
        hyperparameters: Those of KerasTuner, all of them declared.
    """

    def __init__(self, name: str, function: Callable[[keras_tuner.HyperParameters], Any]):
        """Calls the function until it has declared every hyperparameter.

        Raises:
            RequestError: It fails, or declares none.
        """
        self.name = name
        self._function = function
        self.hyperparameters = self._explored()
        if not self.hyperparameters.space:
            raise RequestError(
                f"--space={name}: declares no hyperparameter; use hp.Choice, hp.Int, hp.Float or "
                "hp.Boolean"
            )

    @classmethod
    def load(
        cls, name: str, default: Callable[[keras_tuner.HyperParameters], Any] = spaces.of_lenet
    ) -> Space:
        """Loads the space that `--space` names.

        Args:
            name: "default", or a Python file that defines `space(hp)`, which is run.
            default: What "default" stands for: the task's.

        Raises:
            RequestError: The file cannot be read or run, or defines no such function.
        """
        if name == DEFAULT:
            return cls(name, default)
        function = experiment.read_python(Path(name), flag="space").get("space")
        if not callable(function):
            raise RequestError(
                f"--space={name}: must define a function space(hp) that returns a dict of settings"
            )
        return cls(name, function)

    def changes(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        """Calls the function.

        Args:
            hp: Values; what it declares is added.

        Returns:
            Settings by name, as Python's own types.

        Raises:
            RequestError: It fails or returns something else.
        """
        try:
            found = self._function(hp)
        except Exception as error:
            raise RequestError(
                f"--space={self.name}{experiment.line_of(error, Path(self.name))}: "
                f"{type(error).__name__}: {error}{_with(hp)}"
            ) from error
        if not isinstance(found, Mapping):
            raise RequestError(
                f"--space={self.name}: space(hp) must return a dict of settings, not a "
                f"{type(found).__name__}"
            )
        return {
            str(key): value.item() if hasattr(value, "item") else value
            for key, value in found.items()
        }

    def settings(self, config: TrainSettings, hp: keras_tuner.HyperParameters) -> TrainSettings:
        """Returns the settings of a trial.

        Args:
            config: Settings, of which the space changes some.
            hp: The trial's values.

        Raises:
            RequestError: The space names an unknown setting or one that is the same for all
                trials, or gives one an invalid value.
        """
        hp = hp.copy()
        changes = self.changes(hp)
        known = [field.name for field in dataclasses.fields(TrainSettings)]
        # Of the process, of the data that trials are compared on, and of the files they write.
        fixed = TrainSettings.names(tunable=False)
        for name in changes:
            if name not in known:
                raise RequestError(
                    f"--space={self.name}: {name!r} is not a setting{did_you_mean(name, known)}; "
                    "`tfgpu train --help` lists them"
                )
            if name in fixed:
                raise RequestError(
                    f"--space={self.name}: {name!r} is the same for all trials of a search; set "
                    f"it by --{name} beside --space"
                )
        try:
            return dataclasses.replace(config, **changes)
        except RequestError as error:
            raise RequestError(f"--space={self.name}: {error}{_with(hp)}") from error

    def check(self, config: TrainSettings, resolve: Callable[[TrainSettings], Any]) -> None:
        """Checks values from all over the space.

        Args:
            config: Settings, of which the space changes some.
            resolve: Raises RequestError for settings that data and devices refuse.

        Raises:
            RequestError: Some are refused; names them.
        """
        known = {hp.name for hp in self.hyperparameters.space}
        for hp in self._points():
            asked = hp.copy()
            self.changes(asked)
            if unknown := sorted({each.name for each in asked.space} - known):
                raise RequestError(
                    f"--space={self.name}: {unknown[0]!r} is declared under some values only"
                    f"{_with(hp)}; put it into `with hp.conditional_scope(...)`"
                )
            settings = self.settings(config, hp)
            try:
                resolve(settings)
            except RequestError as error:
                raise RequestError(f"--space={self.name}: {error}{_with(hp)}") from error

    def fingerprint(self) -> dict[str, str]:
        """Returns what two equal spaces have in common: declarations and resulting settings.

        The text of the file is not part of it: a changed comment is still the same search.
        """
        declared = {
            hp.name: f"{type(hp).__name__} {json.dumps(hp.get_config(), sort_keys=True)}"
            for hp in self.hyperparameters.space
        }
        outcomes = [self.changes(hp) for hp in self._points()]
        text = json.dumps(outcomes, sort_keys=True, default=str)
        return declared | {"(settings)": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def values(self) -> dict[str, list[Any]]:
        """Returns the settings that the space gives, each with its sorted values."""
        found: dict[str, list[Any]] = {}
        for hp in self._points():
            for name, value in self.changes(hp).items():
                values = found.setdefault(name, [])
                if value not in values:
                    values.append(value)
        return {
            name: sorted(values, key=lambda value: (str(type(value)), value))
            for name, values in sorted(found.items())
        }

    def _explored(self) -> keras_tuner.HyperParameters:
        hp = keras_tuner.HyperParameters()
        tried: list[list[Any]] = []
        waiting: list[dict[str, Any]] = [{}]
        while waiting:
            attempt = keras_tuner.HyperParameters()
            attempt.values = dict(waiting.pop())
            self.changes(attempt)
            hp.merge(attempt.space)
            # Code under a condition may declare more, once the condition holds.
            for conditions in attempt.inactive_scopes:
                key = [condition.get_config() for condition in conditions]
                if key not in tried:
                    tried.append(key)
                    waiting.append({c.name: c.values[0] for c in conditions})
        return hp

    def _points(self) -> Iterator[keras_tuner.HyperParameters]:
        """Yields the defaults, each end of each range, and random points: always the same ones."""
        yield self._point({})
        for hp in self.hyperparameters.space:
            under = {condition.name: condition.values[0] for condition in hp.conditions}
            for value in _ends(hp):
                yield self._point(under | {hp.name: value})
        for seed in range(_RANDOM_SAMPLES):
            values: dict[str, Any] = {}
            for number, hp in enumerate(self.hyperparameters.space):
                values[hp.name] = hp.random_sample(seed * len(self.hyperparameters.space) + number)
            yield self._point(values)

    def _point(self, wanted: Mapping[str, Any]) -> keras_tuner.HyperParameters:
        point = keras_tuner.HyperParameters()
        for hp in self.hyperparameters.space:  # Parents come before what depends on them.
            point.merge([hp])
            if point.is_active(hp):
                point.values[hp.name] = wanted.get(hp.name, hp.default)
        return point


def _ends(hp: Any) -> list[Any]:
    if hasattr(hp, "min_value"):
        return [hp.min_value, hp.max_value]
    return list(getattr(hp, "values", []))


def _with(hp: keras_tuner.HyperParameters) -> str:
    shown = ", ".join(f"{name}={as_typed(value)}" for name, value in hp.values.items())
    return f" (with {shown})" if shown else ""
