"""The directory of a search: its files, and whether it holds the search that was asked for."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from tfgpu.artifacts import files
from tfgpu.artifacts.differences import differences, first_of
from tfgpu.artifacts.files import plain
from tfgpu.errors import RequestError
from tfgpu.tasks.loading import Dataset
from tfgpu.train.session import data_identity
from tfgpu.tune.settings import TuneSettings
from tfgpu.tune.space import Space

SEARCH = "search.json"
RESULT = "result.json"
BEST = "best_config.json"
TABLE = "trials.jsonl"
FINAL = "final"

_SPACE, _DATA = "space ", "data."
"""How the names in search.json begin that are no settings."""

_RECORDED = (
    "settings directory worker parameters samples_per_second started ended seconds where"
).split()
"""Fields of the chief's record of a trial that are copied to trials.jsonl."""


def choose(config: TuneSettings, dataset: str, *, model: str) -> Path:
    """Returns the directory that --run_dir names, or a new one below `runs/`, not made yet."""
    if config.run_dir is not None:
        return Path(config.run_dir).expanduser()
    name = (
        f"tune-{files.file_name(dataset)}-{files.file_name(model)}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    directory, number = Path("runs") / name, 1
    while directory.exists():
        number += 1
        directory = Path("runs") / f"{name}-{number}"
    return directory


def fingerprint(
    config: TuneSettings, space: Space | None, data: Dataset | None = None
) -> dict[str, Any]:
    """Returns what makes two searches the same one: settings, hyperparameters and data."""
    # Where the data lie, and who is told of it, is no part of it either.
    free = config.names(on_resume="ignored") | {"data_dir", "log_to"}
    settings = {name: value for name, value in config.to_json().items() if name not in free}
    declared = {} if space is None else space.fingerprint()
    identity = {} if data is None else data_identity(data)
    return settings | {f"{_SPACE}{name}": text for name, text in declared.items()} | identity


def check_same(directory: Path, config: TuneSettings, space: Space | None) -> None:
    """Compares the settings with those of the search in a directory.

    Args:
        directory: Of the search.
        config: The settings.
        space: The search space; None leaves it out.

    Raises:
        RequestError: It is another search; names the differences.
    """
    saved, ours = read_json(directory / SEARCH), fingerprint(config, space)
    left_out = (_DATA,) if space is not None else (_DATA, _SPACE)
    saved = {name: value for name, value in saved.items() if not name.startswith(left_out)}
    found = differences(saved, ours)
    if found:
        raise RequestError(
            f"run_dir {str(directory)!r} holds another search ({first_of(found)}); name another "
            "--run_dir, or give the same settings"
        )


def check_data(directory: Path, data: Dataset) -> None:
    """Compares the data with those of the search in a directory: one says nothing of the others.

    Args:
        directory: Of the search.
        data: What trials are to be trained on.

    Raises:
        RequestError: Its trials were trained on other data; names the differences.
    """
    saved = read_json(directory / SEARCH)
    saved = {name: value for name, value in saved.items() if name.startswith(_DATA)}
    # A search that a version before this one began does not say.
    if saved and (found := differences(saved, data_identity(data))):
        raise RequestError(
            f"run_dir {str(directory)!r} holds a search over other data ({first_of(found)}): its "
            "trials would not compare; name another --run_dir, or make the data the same again"
        )


def check(directory: Path, config: TuneSettings, space: Space, data: Dataset) -> None:
    """Checks that the directory is free or holds this search, and that --resume allows that.

    Raises:
        RequestError: The directory holds something else, or --resume rules it out.
    """
    if not (directory / SEARCH).exists():
        # Hidden files are tfgpu's: the lock, and what a kill left half written.
        if directory.exists() and any(file.name[0] != "." for file in directory.iterdir()):
            raise RequestError(
                f"run_dir {str(directory)!r} holds files but no search (no {SEARCH}); name another"
            )
        if config.resume == "must":
            raise RequestError(
                f"run_dir {str(directory)!r} holds no search that --resume=must could continue; "
                "check the name, or leave --resume out to start one"
            )
        return
    check_same(directory, config, space)
    check_data(directory, data)
    if config.resume == "never":
        raise RequestError(
            f"run_dir {str(directory)!r} holds this search already, and --resume=never "
            "overwrites nothing; name another --run_dir"
        )


def write_hparams(values: dict[str, list[Any]], directory: Path, *, metric: str) -> None:
    """Writes the settings and their ranges, from `Space.values`, for TensorBoard's HParams tab."""
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    settings = []
    for name, found in values.items():
        kinds = {type(value) for value in found}
        domain: Any = None
        if kinds == {float}:
            domain = api.RealInterval(found[0], found[-1])
        elif kinds == {int}:
            domain = api.IntInterval(found[0], found[-1])
        elif len(kinds) == 1 and kinds <= {str, bool}:
            domain = api.Discrete(found)
        settings.append(api.HParam(name, domain))
    metrics = [
        api.Metric(f"result/{name}", display_name=name)
        for name in (f"val_{metric}", "val_loss", metric, "loss", "samples_per_second")
    ]
    writer = tf.summary.create_file_writer(str(directory))
    with writer.as_default():
        api.hparams_config(hparams=settings, metrics=metrics)
    writer.close()


def write_trials(directory: Path, oracle: Any, *, objective: str) -> None:
    """Writes trials.jsonl: a line for each trial, in the order of their start."""
    lines = []
    for trial in oracle.trials.values():
        record = oracle.records.get(trial.trial_id, {})
        values = trial.hyperparameters.values
        line = {
            "trial": trial.trial_id,
            "status": trial.status.lower(),
            "reason": record.get("reason"),
            objective: trial.score,
            "metrics": record.get("metrics"),
            "epochs": record.get("epochs"),
            "values": {k: v for k, v in values.items() if not k.startswith("tuner/")},
            "tuner": {
                k.removeprefix("tuner/"): v for k, v in values.items() if k.startswith("tuner/")
            },
        }
        line |= {name: record.get(name) for name in _RECORDED}
        lines.append(json.dumps(plain(line)) + "\n")
    with contextlib.suppress(OSError), files.replacing(directory / TABLE) as beside:
        beside.write_text("".join(lines), "utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        RequestError: The file cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"{str(path)!r} cannot be read ({error}); name another --run_dir, or put it back"
        ) from None
    if not isinstance(value, dict):
        raise RequestError(f"{str(path)!r} holds no JSON object; name another --run_dir")
    return value
