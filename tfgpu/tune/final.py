"""The end of a search: the best settings are written, trained with other seeds, and tested."""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tfgpu.artifacts import files
from tfgpu.cli import flags, interrupts
from tfgpu.cli.console import duration
from tfgpu.cli.startup import child_environment
from tfgpu.errors import DataError, ModelFileError, RequestError, WorkError
from tfgpu.train.settings import TrainSettings
from tfgpu.tune import address, worker_pool
from tfgpu.tune.oracle import COMPLETED, FAILED
from tfgpu.tune.search import Search
from tfgpu.tune.search_directory import BEST, FINAL, RESULT, read_json
from tfgpu.tune.trials_table import shown_settings
from tfgpu.tune.worker import wait_until_free

_SET_BY_WORKER = {"jit_compile", "intra_op_threads", "input"}
"""Settings that a trial resolves for its worker's part of the machine; a run with the whole machine
resolves them again."""


def _metrics(search: Search) -> tuple[str, ...]:
    """The fields of a run's result that are kept."""
    name = search.task.objective
    return f"val_{name}", "val_loss", f"test_{name}", "test_loss"


def conclude(search: Search, signals: interrupts.Interrupts) -> dict[str, Any]:
    """Writes the best settings, retrains them, and sums up.

    Args:
        search: After its last trial.
        signals: Those caught since the command started.

    Returns:
        The contents of `result.json`.

    Raises:
        tfgpu.errors.Error: No trial was completed, or a retraining has failed.
    """
    oracle, config = search.oracle, search.config
    trials = list(oracle.trials.values())
    trial = _best_trial(search)
    record = oracle.records[trial.trial_id]
    trained = read_json(search.directory / record["directory"] / "config.json")
    settings = {
        name: value
        for name, value in trained.items()
        if name not in ("run_dir", "resume", "progress", "verbosity")
    }
    for name in _SET_BY_WORKER - set(record.get("settings") or ()):
        settings[name] = getattr(config, name)
    files.write_json(search.directory / BEST, settings)
    if config.final_seeds:
        final = _retrain(search, trial.trial_id, settings, signals)
    else:
        final = [_test(search, search.directory / record["directory"], signals)]
    result: dict[str, Any] = {
        "status": "finished",
        "tuner": config.tuner,
        "objective": search.objective,
        "trials": len(trials),
        "completed": sum(t.status == COMPLETED for t in trials),
        "failed": sum(t.status == FAILED for t in trials),
        "best_trial": trial.trial_id,
        "best_score": trial.score,
        "best_values": {
            k: v for k, v in trial.hyperparameters.values.items() if not k.startswith("tuner/")
        },
        "best_settings": record.get("settings"),
        "final": final,
        **_means(final, _metrics(search)),
        "search_seconds": oracle.seconds,
        "final_seconds": sum(run["seconds"] or 0.0 for run in final),
        "asked": search.limits,
    }
    files.write_json(search.directory / RESULT, result)
    search.console.say(summary(result, search.directory))
    return result


def _best_trial(search: Search) -> Any:
    trials = list(search.oracle.trials.values())
    best = search.oracle.get_best_trials(len(trials))
    best = [trial for trial in best if trial.status == COMPLETED]
    if search.config.final_seeds == 0:
        # A promoted trial continues the run of an earlier one, whose model is then gone.
        gone = {trial.hyperparameters.values.get("tuner/trial_id") for trial in trials}
        best = [trial for trial in best if trial.trial_id not in gone] or best
    if not best:
        raise WorkError(
            f"no trial was completed in {duration(search.seconds)}; raise --max_minutes, and "
            f"continue with: {search.resume_command}"
        )
    return best[0]


def _retrain(
    search: Search, trial_id: str, settings: dict[str, Any], signals: interrupts.Interrupts
) -> list[dict[str, Any]]:
    """Trains the best settings with seeds that the search has not seen."""
    runs = []
    objective = search.objective
    for number in range(1, search.config.final_seeds + 1):
        seed = search.config.seed + number
        directory = search.directory / FINAL / f"trial-{trial_id}-seed-{seed}"
        search.console.progress_line(f"training the best settings with seed {seed}")
        final = TrainSettings.from_json(
            settings | {"seed": seed, "run_dir": str(directory), "progress": "none"}
        )
        wait_until_free(directory)  # By a process whose parent was killed.
        reason = None
        try:
            _run_command(search, ["train", *flags.to_argv(final)], signals, name=f"seed {seed}")
        except WorkError as error:
            reason = str(error)
        result = read_json(directory / RESULT)
        run: dict[str, Any] = {
            "seed": seed,
            "reason": reason,
            "directory": str(directory.relative_to(search.directory)),
            "seconds": result.get("total_seconds"),
            **{name: None if reason else result.get(name) for name in _metrics(search)},
        }
        runs.append(run)
        search.console.progress_line(reason or f"seed {seed}: {objective} {run[objective]:.4f}")
    return runs


def _test(search: Search, directory: Path, signals: interrupts.Interrupts) -> dict[str, Any]:
    """Evaluates the best trial's own model on the test split."""
    config = search.config
    out = directory / "evaluation" / "test"
    began = time.perf_counter()
    _run_command(
        search,
        [
            "evaluate",
            f"--run_dir={directory}",
            f"--out={out}",
            *(
                f"--{name}={value}"
                for name, value in (("model", config.model), ("task", config.task))
                if value is not None and ":" in value
            ),
            f"--strategy={config.strategy}",
            f"--devices={config.devices}",
            f"--virtual_devices={config.virtual_devices}",
        ],
        signals,
        name="the best trial's test",
    )
    tested, trained = read_json(out / "evaluation.json"), read_json(directory / RESULT)
    return {
        "seed": config.seed,
        "directory": str(directory.relative_to(search.directory)),
        "seconds": time.perf_counter() - began,
        **{
            name: (tested if name.startswith("test_") else trained).get(name.removeprefix("test_"))
            for name in _metrics(search)
        },
    }


def _run_command(
    search: Search, argv: Sequence[str], signals: interrupts.Interrupts, *, name: str
) -> None:
    """Runs a command of tfgpu in a child process.

    Raises:
        tfgpu.errors.Error: It failed; with its message and its exit code.
        Interrupted: A signal came.
    """
    stopped: list[int] = []
    log = search.directory / "logs" / "final.log"
    log.parent.mkdir(exist_ok=True)
    environment = child_environment()
    for variable in (address.TUNER_ID, address.ORACLE_IP, address.ORACLE_PORT):
        environment.pop(variable, None)
    if search.gpus and search.config.workers > 1:
        # One GPU, as for the trials: their batch may not divide among more.
        environment["CUDA_VISIBLE_DEVICES"] = search.gpus[0]
    with (
        open(log, "a") as out,
        tempfile.TemporaryFile("w+", errors="replace") as stderr,
        signals.deferred(stopped.append),
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "tfgpu.tune.child", *argv],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
        try:
            terminated = False
            while process.poll() is None:
                if stopped and not terminated:
                    terminated = True
                    process.terminate()
                time.sleep(worker_pool.POLL_SECONDS)
        finally:
            assert process.stdin is not None
            process.stdin.close()  # Ends the child, if it has not ended.
            process.wait()
        stderr.seek(0)
        output = stderr.read()
    if stopped:
        raise search.interrupted(stopped[0])
    if code := process.returncode:
        lines = [line for line in output.splitlines() if line.startswith("tfgpu: ")]
        text = (lines or [worker_pool.describe_exit(code)])[-1].removeprefix("tfgpu: ")
        for kind in (RequestError, DataError, ModelFileError):
            if code == kind.exit_code:
                raise kind(f"{name}: {text}")
        raise WorkError(f"{name}: {text}")


def _means(final: list[dict[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Mean and sample standard deviation of each metric over the retrainings."""
    found: dict[str, Any] = {}
    for name in metrics:
        values = [run[name] for run in final if run[name] is not None]
        found[name] = statistics.mean(values) if values else None
        found[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    return found


def summary(result: dict[str, Any], directory: Path) -> str:
    """Formats a result, as in `result.json`, for the end of the command."""
    objective = result["objective"]
    lines = [
        f"{result['trials']} trials in {duration(result['search_seconds'])}: "
        f"{result['completed']} completed, {result['failed']} failed",
        f"best is trial {result['best_trial']}, {objective} {result['best_score']:.4f}: "
        f"{shown_settings(result['best_values'])}",
    ]
    tested = next(name for name in result if name.startswith("test_") and name != "test_loss")
    shown = tested.replace("_", " ", 1)
    final = [run for run in result["final"] if run[tested] is not None]
    seeds = ", ".join(str(run["seed"]) for run in final)
    if len(final) > 1:
        lines += [
            f"{objective} of {len(final)} trainings with seeds {seeds}: {result[objective]:.4f}, "
            f"standard deviation {result[f'{objective}_std']:.4f}",
            f"{shown}: {result[tested]:.4f}, standard deviation {result[f'{tested}_std']:.4f}",
        ]
    elif final:
        lines.append(
            f"with seed {seeds}: {objective} {result[objective]:.4f}, {shown} {result[tested]:.4f}"
        )
    lines += [
        f"retraining and testing took {duration(result['final_seconds'])}",
        f"train with them: tfgpu train --experiment={shlex.quote(str(directory / BEST))}",
        f"look at the search: tensorboard --logdir {shlex.quote(str(directory))}",
    ]
    return "\n".join(lines)
